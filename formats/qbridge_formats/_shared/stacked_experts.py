"""Experts whose codes share tensors with those of all others: one layer for each linear of each expert.

tensor                     shape                      meaning (E experts, I intermediate size, H hidden size)
<X>.gate_up_proj           [E, H, 2 I]                codes by columns: of gate_proj, then those of up_proj
                           or [E, 2 I, H]             or by rows
<X>.down_proj              [E, I, H] or [E, H, I]     codes of down_proj, alike
<X>.<either>_<part>        as the codes, or shorter   a part of every expert, or one for all of them

<Y>.gate_proj.weight       [E, I, H]                  or by rows, each linear by itself (Step-3.5)
<Y>.gate_proj.<part>       as the codes, or shorter

Codes that are packed are <either>_packed, and modules may have them: <X>.<either>.weight_packed, each part beside it.
weight_shape is [2], of one expert; [E, 2]; or [3], of the whole. Zero-points that are packed lie as the codes.

An expert's linears are <X>.N.gate_proj, up_proj and down_proj; <X> ends in experts, <Y>.experts is <X> where <Y> does
not. Packed codes share words along in_features. The dialect keeps which it was, and the name and shape of each part.
Sources: transformers 5.24.0, models/llama4/modeling_llama4.py (Llama4TextExperts), integrations/fbgemm_fp8.py
(FbgemmFp8Llama4TextExperts) and finegrained_fp8.py (FP8Experts); nvidia-modelopt 0.47.0,
torch/export/unified_export_hf.py; vllm 0.33.0, model_executor/models/llama4.py and step3p5.py, and
model_executor/layers/fused_moe/routed_experts.py (load_weights: <either> is w13_weight or w2_weight, the rest stays);
compressed-tensors 0.20.0, compressors/pack_quantized/base.py and helpers.py (of three axes the last two are packed).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.experts import under_class_name
from qbridge.architecture.names import canonical_module
from qbridge.codecs.arrays import TRANSPOSED, Concatenated, Constant, Shared, Turned
from qbridge.ir.dtypes import DType, nbytes
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import Dialect
from qbridge.ir.slots import PLAIN, Slice, Slot
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor
from qbridge_formats._shared.modules import ModuleTensors, tensors_of_modules

Layout = Callable[[Spec], dict[str, Slot]]
KEY = "experts"  # of the dialect: how the codes lie
COLUMNS, ROWS = "columns", "rows"
MERGED: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_APART: Mapping[str, tuple[str, ...]] = {leaf: (leaf,) for leaves in MERGED.values() for leaf in leaves}
_LEAVES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}  # other names of an expert's linears
# What follows the name of a tensor of codes in those of its other parts, and what the part is called elsewhere.
_ENDINGS: Mapping[str, str] = {
    "": "weight",
    "_scale": "weight_scale",
    "_weight_scale": "weight_scale",
    "_scale_inv": "weight_scale_inv",
    "_weight_scale_inv": "weight_scale_inv",
    "_weight_scale_2": "weight_scale_2",
    "_input_scale": "input_scale",
    "_activation_scale": "activation_scale",
    "_bias": "bias",
    "_packed": "weight_packed",
    "_weight_packed": "weight_packed",
    "_shape": "weight_shape",
    "_weight_shape": "weight_shape",
    "_zero_point": "weight_zero_point",
    "_weight_zero_point": "weight_zero_point",
    "_global_scale": "weight_global_scale",
    "_weight_global_scale": "weight_global_scale",
    "_input_global_scale": "input_global_scale",
}
_PARTS = frozenset(_ENDINGS.values())
_CODES = ("weight_packed", "weight")  # the parts that hold codes
_SHAPE = "weight_shape"
_AS_MODULE = f"{KEY}.module"  # of the dialect: gate and up share a tensor, whose parts are those of a module
_EXPERT = re.compile(r"((?:.+\.)?experts)\.(0|[1-9]\d{0,5})\.(\w+)")


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of a checkpoint with their tensors, those of experts in place of the tensors that they share.

    `dialects` has what a layer of an expert keeps, by its name; `faults` why stacked experts are not read, by module;
    `architecture` is the model's.
    """

    tensors: dict[str, ModuleTensors]
    dialects: dict[str, Dialect] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    architecture: Architecture = field(default_factory=lambda: Architecture.of({}))

    def kept(self, module: str, spec: Spec) -> Spec:
        """The spec of a module with what its dialect keeps of a stack."""
        extra = self.dialects.get(module, ())
        return replace(spec, dialect=tuple(sorted((*spec.dialect, *extra)))) if extra else spec

    def known_name(self, module: str) -> str:
        """The name that engines know a module by; ValueError where another module has it."""
        name = under_class_name(canonical_module(module), self.architecture)
        if name != module and name in self.tensors:
            raise ValueError(f"it and {name} are both {name}")
        return name


@dataclass(frozen=True, slots=True)
class _Stack:
    """The tensors of one linear of all experts, or of two: `parts` by what they are called elsewhere.

    `apart` says that gate and up share none.
    """

    block: str
    stored: str
    leaves: tuple[str, ...]
    parts: Mapping[str, StoredTensor]
    columns: bool
    apart: bool = False

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return next(self.parts[part].shape[0] for part in _CODES if part in self.parts)

    def shape(self, part: str) -> tuple[int, ...]:
        """The shape that a part of one expert's linear would have by itself; ValueError if it is none."""
        whole, count = self.parts[part].shape, self.experts
        if part == _SHAPE:
            if self.columns or whole not in ((2,), (3,), (count, 2)):
                raise ValueError(f"{self.parts[part].name} is {list(whole)}: no shape of {count} experts by rows")
            return (2,)
        if prod(whole) == 1:
            return whole
        if not whole or whole[0] != count or 0 in whole or len(whole) > 3:
            raise ValueError(f"{self.parts[part].name} is {list(whole)}: not one for each of {count} experts")
        own = whole[1:][::-1] if self.columns else whole[1:]
        if prod(own) == 1:
            return own
        if own[0] % len(self.leaves):
            raise ValueError(f"{self.parts[part].name} is {list(whole)}: not alike for {' and '.join(self.leaves)}")
        return (own[0] // len(self.leaves), *own[1:])

    def dialect(self) -> Dialect:
        """What leads back to these tensors."""
        found = {KEY: COLUMNS if self.columns else ROWS}
        found |= {
            f"{KEY}.{part}": f"{tensor.name.removeprefix(self.stored)}:{'x'.join(map(str, tensor.shape))}"
            for part, tensor in self.parts.items()
        }
        if not self.stored.startswith(f"{self.block}."):
            found[f"{KEY}.in"] = "parent"
        elif not self.apart and any(tensor.name.startswith(f"{self.stored}.") for tensor in self.parts.values()):
            found[_AS_MODULE] = "yes"
        return tuple(sorted(found.items()))


def modules_of(source: Source) -> Modules:
    """Every module with its tensors; stacked experts of codes become modules of single ones, slices their tensors."""
    modules = Modules(tensors_of_modules(source), architecture=Architecture.of(source.config))
    shapes: dict[str, tuple[int, ...]] = {}
    for stack in [*_merged(modules), *_apart(modules)]:
        try:
            own = {part: stack.shape(part) for part in stack.parts}
        except ValueError as fault:
            modules.faults[stack.stored] = str(fault)
            continue
        count, dialect = stack.experts, stack.dialect()
        names = [f"{stack.block}.{expert}.{leaf}" for expert in range(count) for leaf in stack.leaves]
        if not modules.tensors.keys().isdisjoint(names):
            modules.faults[stack.stored] = "an expert of it is there by itself as well"
            continue
        like = {
            part: tensor._replace(shape=own[part], end=tensor.begin + nbytes(tensor.dtype, own[part]))
            for part, tensor in stack.parts.items()
        }
        modules.tensors.update(dict.fromkeys(names, like))
        modules.dialects.update(dict.fromkeys(names, dialect))
        sliced = (tensor for part, tensor in stack.parts.items() if part != _SHAPE and prod(tensor.shape) > 1)
        shapes |= {tensor.name: tensor.shape[1:] for tensor in sliced}
    source.split(shapes)
    taken = set(shapes)
    for module in [name for name, own in modules.tensors.items() if name not in modules.dialects]:
        left = {leaf: part for leaf, part in modules.tensors[module].items() if part.name not in taken}
        if left:
            modules.tensors[module] = left
        else:
            del modules.tensors[module]
    return modules


def _code(parts: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """The tensor of three axes that holds codes; None if there is none."""
    tensor = next((parts[part] for part in _CODES if part in parts), None)
    return tensor if tensor is not None and len(tensor.shape) == 3 and tensor.dtype in _PACKED else None


def _merged(modules: Modules) -> Iterator[_Stack]:
    """Blocks of experts with gate and up in one tensor."""
    first, second = MERGED
    for block in _blocks(modules):
        both, down = (_parts_of(block, name, modules) for name in (first, second))
        code, other = _code(both), _code(down)
        if code is None or other is None:
            continue  # said as what it is: codes that are no linears of experts
        columns = _by_columns(code, other)
        if columns is None:
            modules.faults[block] = f"gate_up_proj is {list(code.shape)} and down_proj {list(other.shape)}"
            continue
        for (name, leaves), parts in zip(MERGED.items(), (both, down), strict=True):
            yield _Stack(block, f"{block}.{name}", leaves, parts, columns)


def _blocks(modules: Modules) -> list[str]:
    """The modules of all experts of a layer, which may have no tensors of their own."""
    parents = (module.rpartition(".")[0] for module in modules.tensors if module.endswith(".gate_up_proj"))
    return [name for name in dict.fromkeys((*modules.tensors, *parents)) if name.rpartition(".")[2] == "experts"]


def _parts_of(block: str, name: str, modules: Modules) -> dict[str, StoredTensor]:
    """The tensors of a linear of all experts, by what they are called elsewhere."""
    beside = modules.tensors.get(f"{block}.{name}", {})
    if beside:
        return {part: tensor for part, tensor in beside.items() if part in _PARTS}
    own = modules.tensors.get(block, {})
    endings = {leaf.removeprefix(name): tensor for leaf, tensor in own.items() if leaf.startswith(name)}
    return {_ENDINGS[ending]: tensor for ending, tensor in endings.items() if ending in _ENDINGS}


# How many codes a stored element can hold, by its dtype; of 32 bits what `_words` says.
_PACKED: Mapping[DType, tuple[int, ...]] = {
    DType.F8_E4M3: (1,),
    DType.F8_E5M2: (1,),
    DType.U8: (2,),
    DType.I8: (1, 2),
    DType.I32: (),
}


def _by_columns(both: StoredTensor, down: StoredTensor) -> bool | None:
    """Whether output features are columns, by what [E, H, 2 I] and [E, I, H], or their rows, have in common."""
    (count, *first), (other, *second) = both.shape, down.shape
    if count != other or both.dtype is not down.dtype or 0 in both.shape:
        return None
    for columns in (False, True):
        (doubled, inputs), (outputs, inner) = (pair[::-1] if columns else pair for pair in (first, second))
        whole = doubled // 2, outputs  # I and H, as the output features have them
        if doubled % 2 == 0 and any(_holds((inner, inputs), whole, width) for width in _widths(both.dtype)):
            return columns
    return None


def _widths(dtype: DType) -> Iterable[tuple[int, int]]:
    """(codes, elements that hold them) of each packing of a dtype."""
    return [(32, bits) for bits in range(1, 9)] if dtype is DType.I32 else [(codes, 1) for codes in _PACKED[dtype]]


def _holds(elements: tuple[int, int], features: tuple[int, int], width: tuple[int, int]) -> bool:
    """Whether so many elements hold the codes of so many input features, packed by one width."""
    codes, taken = width
    return all(-(-count * taken // codes) == size for count, size in zip(features, elements, strict=True))


def _apart(modules: Modules) -> Iterator[_Stack]:
    """Linears that have a tensor for all experts each."""
    for module, own in modules.tensors.items():
        parent, _, leaf = module.rpartition(".")
        last = parent.rpartition(".")[2]
        shares = f"{parent}.gate_up_proj" in modules.tensors
        if leaf in _APART and last in ("experts", "moe") and not shares and _code(own) is not None:
            block = parent if last == "experts" else f"{parent}.experts"
            parts = {part: tensor for part, tensor in own.items() if part in _PARTS}
            yield _Stack(block, module, _APART[leaf], parts, columns=False, apart=True)


def is_stacked(spec: Spec) -> bool:
    """Whether a layer is of an expert that shares its tensors."""
    return any(key == KEY and value in (COLUMNS, ROWS) for key, value in spec.dialect)


def as_stored(layout: Layout) -> Layout:
    """`layout` of a format whose layers may have other names on disk (`stored_as`), or share tensors with experts."""

    def stored(spec: Spec) -> dict[str, Slot]:
        name = dict(spec.dialect).get("stored_as")
        if name is None:
            slots = layout(spec)
        else:
            others = tuple((key, value) for key, value in spec.dialect if key != "stored_as")
            slots = layout(replace(spec, name=name, dialect=others))
        return stacked_slots(spec, slots) if is_stacked(spec) else slots

    return stored


def under_known_name(module: str, spec: Spec, modules: Modules) -> Spec:
    """The spec under the name that engines know; ValueError where another module has it."""
    return _called(spec, modules.known_name(module))


def under_name_of_class(spec: Spec, modules: Collection[str], architecture: Architecture) -> Spec:
    """The spec of a single expert's linear under the name that its class has for it, any other as it is.

    ValueError where another of the `modules` has that name.
    """
    name = under_class_name(spec.name, architecture)
    if name != spec.name and name in modules:
        raise ValueError(f"it and {name} are both {name}")
    return _called(spec, name)


def _called(spec: Spec, name: str) -> Spec:
    """The spec under another name; its dialect keeps the one on disk."""
    if name == spec.name:
        return spec
    return replace(spec, name=name, dialect=tuple(sorted((*spec.dialect, ("stored_as", spec.name)))))


def stacked_slots(spec: Spec, slots: Mapping[str, Slot]) -> dict[str, Slot]:
    """The slots of such a layer, from those that it would have by itself.

    ValueError for a name that is none of an expert's linears.
    """
    dialect, match = dict(spec.dialect), _EXPERT.fullmatch(spec.name)
    if match is None:
        raise ValueError(f"{spec.name} is no linear of an expert")
    block, expert, leaf = match[1], int(match[2]), _LEAVES.get(match[3], match[3])
    if dialect.get(f"{KEY}.in") == "parent":
        block = block.rpartition(".")[0]
    code = next((kept for part in _CODES if (kept := dialect.get(f"{KEY}.{part}"))), "")
    apart = code.startswith(".") and _AS_MODULE not in dialect
    stored, leaves = next(item for item in (_APART if apart else MERGED).items() if leaf in item[1])
    found = {}
    for part, slot in slots.items():
        kept = dialect.get(f"{KEY}.{slot.tensor.rpartition('.')[2]}")
        if kept is None:
            if not slot.codec.fixed:  # a stack need not say what its other parts show
                found[part] = slot  # it is missing, which assembly says
            continue
        ending, _, shape = kept.partition(":")
        whole = tuple(int(dim) for dim in shape.split("x") if dim)
        turn, columns = (leaves.index(leaf), len(leaves)), dialect[KEY] == COLUMNS
        if slot.tensor.endswith(f".{_SHAPE}"):
            count = int(code.partition(":")[2].partition("x")[0])
            found[part] = _shape_slot(
                slot, f"{block}.{stored}{ending}", whole, count, (spec.out_features * turn[1], spec.in_features)
            )
            continue
        found[part] = _slot(slot, f"{block}.{stored}{ending}", whole, expert, turn, columns)
    return found


def _slot(slot: Slot, tensor: str, whole: tuple[int, ...], expert: int, turn: tuple[int, int], columns: bool) -> Slot:
    """A part of one expert in a tensor of all of them; `turn` is which of how many linears share it."""
    if prod(whole) == 1:
        return Slot(tensor, slot.dtype, whole, Shared(slot.codec))
    own = Slice(tensor, expert, whole[1:])
    if prod(own.shape) == 1:
        return Slot(own.name, slot.dtype, own.shape, Shared(slot.codec) if turn[1] > 1 else slot.codec, own)
    codec, fitting = slot.codec, (slot.shape[0] * turn[1], *slot.shape[1:])
    if columns and len(own.shape) > 1:
        codec, fitting = TRANSPOSED if codec == PLAIN else Turned(codec), fitting[::-1]
    alike = [[dim for dim in shape if dim != 1] for shape in (own.shape, fitting)]
    shape = own.shape if alike[0] == alike[1] else fitting  # what is there does not fit, which assembly says
    return Slot(own.name, slot.dtype, shape, Concatenated(codec, *turn) if turn[1] > 1 else codec, own)


def _shape_slot(slot: Slot, tensor: str, whole: tuple[int, ...], experts: int, dims: tuple[int, int]) -> Slot:
    """The shape of all experts' linears, `dims` of one, which stands for no part."""
    values = dims if whole == (2,) else (experts, *dims) if whole == (3,) else dims * experts
    return Slot(tensor, slot.dtype, whole, Shared(Constant(values)))
