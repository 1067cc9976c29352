"""The modes of MLX, and the tensors of a linear in each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qbridge.architecture.mlx_names import MlxPlace
from qbridge.codecs.affine import Biases, MiddleBiases
from qbridge.codecs.bits import BitPacked
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import INTEGERS, CodeType, Dialect, Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Codec, Slice, Slot, by_kind

AFFINE = "affine"
GROUPS = (128, 64, 32)  # of affine codes
WIDTHS = (2, 3, 4, 5, 6, 8)  # that are written; 1 is read, too
READ_WIDTHS = (1, *WIDTHS)
SCALES = (DType.F16, DType.BF16, DType.F32)


@dataclass(frozen=True, slots=True)
class Mode:
    """What a module's entry in config.json says: group size, bits, and how codes are read."""

    group_size: int
    bits: int
    mode: str

    def as_dict(self) -> dict[str, int | str]:
        """The entry."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


@dataclass(frozen=True, slots=True)
class Floats:
    """A mode of float codes: their type, the size of a group, the dtype of its scales, stored as bytes."""

    type: CodeType
    bits: int
    group_size: int
    scale_dtype: DType

    @property
    def weight(self) -> WeightScheme:
        """The scheme of the weights."""
        return WeightScheme(self.bits, Granularity.GROUP, type=self.type, group_size=self.group_size)


FLOATS = {
    "mxfp4": Floats("e2m1", 4, 32, DType.F8_E8M0),
    "mxfp8": Floats("e4m3fn", 8, 32, DType.F8_E8M0),
    "nvfp4": Floats("e2m1", 4, 16, DType.F8_E4M3),
}


def mode_of(spec: Spec) -> str:
    """The mode of a spec that the rules let through; an empty string for any other."""
    weight = spec.weight
    if weight.type in INTEGERS:
        return AFFINE
    kinds = {(mode.type, mode.group_size): name for name, mode in FLOATS.items()}
    return kinds.get((weight.type, weight.group_size or 0), "")


def entry_of(spec: Spec) -> Mode:
    """What config.json says of a layer."""
    return Mode(spec.weight.group_size or 0, spec.weight.bits, mode_of(spec))


def _slots(spec: Spec) -> dict[str, Slot]:
    """The tensors of a linear that is no expert's, by the ends of their names."""
    weight, shape = spec.weight, spec.scale_shape
    middle = 2 ** (weight.bits - 1)
    is_affine = weight.type in INTEGERS
    packed = BitPacked(weight.bits, 1, middle if weight.type == "int" else 0)
    found = {
        "code": Slot(".weight", DType.U32, packed.stored_shape(spec.dims), packed),
        "scale": Slot(".scales", spec.scale_dtype if is_affine else DType.U8, shape),
    }
    if weight.type == "affine":
        found["offset"] = Slot(".biases", spec.scale_dtype, shape)
    elif is_affine:
        biases: Codec = (MiddleBiases if weight.symmetric else Biases)(middle, spec.scale_dtype)
        found["zero"] = Slot(".biases", spec.scale_dtype, shape, biases)
    if spec.bias is not None:
        found["bias"] = Slot(".bias", spec.bias, (spec.out_features,))
    return found


_by_kind = by_kind(_slots)


def dialect_of(name: str, place: MlxPlace) -> Dialect:
    """Where a layer lies, as `layout` reads it; nothing for one that lies under its own name."""
    if place == MlxPlace(name):
        return ()
    expert = (("expert", str(place.expert)),) if place.expert >= 0 else ()
    return (("at", place.name), *expert)


def slots_of(spec: Spec, name: str, expert: int = -1) -> dict[str, Slot]:
    """The slots of a layer that is called `name`, and is the `expert` of a stack where that is not -1."""
    return {part: placed(slot, name, expert) for part, slot in _by_kind(replace(spec, name="")).items()}


def placed(slot: Slot, name: str, expert: int) -> Slot:
    """A slot whose tensor has only the end of its name, as that of a module, or as a slice of its stack."""
    tensor = name + slot.tensor
    if expert < 0:
        return replace(slot, tensor=tensor)
    own = Slice(tensor, expert, slot.shape)
    return replace(slot, tensor=own.name, slice=own)


def plain_slot(name: str, leaf: str, dtype: DType, shape: tuple[int, ...], expert: int) -> Slot:
    """The slot of an unquantized tensor."""
    return placed(Slot(f".{leaf}", dtype, shape, PLAIN), name, expert)
