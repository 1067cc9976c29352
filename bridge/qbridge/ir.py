"""The canonical quantized IR: one meaning, whatever the bytes.

    W[o, i] = (code[o, i] - zero[o, g(i)]) * scale[o, g(i)]  [* or / global_scale]

A `Spec` describes one quantized linear without data, a `Layer` is a spec with arrays, a `Model` holds the specs
of a checkpoint with everything that is not quantized. Integer codes are signed two's complement whatever
a format stores, zeros live in the same signed domain; float codes are raw bits; scales keep their stored dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, TypeVar

from qbridge.dtypes import Array, DType
from qbridge.layout import Slot

CodeType = Literal["int", "e4m3fn", "e5m2", "e2m1", "float16", "bfloat16", "float32"]
Dialect = tuple[tuple[str, str], ...]
Found = TypeVar("Found")

MAX_SIZE = 2**31 - 1  # of a dim, a group or a block: what engines index with, and products of two fit in 64 bits

GlobalScale = Literal[
    "multiply", "divide"
]  # what one more scale of the whole tensor does to the scales of its groups
GLOBAL_SCALE = DType.F32

DENSE: Mapping[str, DType] = {"float16": DType.F16, "bfloat16": DType.BF16, "float32": DType.F32}
CODE_BITS: Mapping[str, int] = {"e4m3fn": 8, "e5m2": 8, "e2m1": 4, "float16": 16, "bfloat16": 16, "float32": 32}


class Granularity(str, Enum):
    """How many weights (or activations) share one scale."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    GROUP = "group"
    BLOCK = "block"
    TOKEN = "token"  # noqa: S105 - one scale per token, activations only

    def __str__(self) -> str:
        return self.value

    __hash__ = str.__hash__  # Enum's own takes a call in Python


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How the weight of a linear is quantized; group_size counts weights along in_features."""

    bits: int
    granularity: Granularity
    symmetric: bool = True
    type: CodeType = "int"
    group_size: int | None = None
    block: tuple[int, int] | None = None
    global_scale: GlobalScale | None = None

    def __post_init__(self) -> None:
        """Refuse a scheme that has no meaning (ValueError)."""
        if self.type == "int" and not 1 <= self.bits <= 8:
            raise ValueError(f"integer codes have 1 to 8 bits, not {self.bits}")
        if self.type != "int" and self.bits != CODE_BITS[self.type]:
            raise ValueError(f"{self.type} codes have {CODE_BITS[self.type]} bits, not {self.bits}")
        if (self.granularity is Granularity.GROUP) != (self.group_size is not None):
            raise ValueError("group_size goes with granularity group, and only with it")
        if (self.granularity is Granularity.BLOCK) != (self.block is not None):
            raise ValueError("block goes with granularity block, and only with it")
        if self.granularity is Granularity.TOKEN:
            raise ValueError("weights have no tokens")
        if self.block is not None and len(self.block) != 2:
            raise ValueError("a block has rows and columns")
        if self.global_scale and (self.granularity is not Granularity.GROUP or self.type == "int"):
            raise ValueError("a global scale goes with float codes and scales per group")
        if self.type != "int" and not self.symmetric:
            raise ValueError("float codes have no zero-points")
        sizes = (*(self.block or ()), *(() if self.group_size is None else (self.group_size,)))
        if not all(1 <= size <= MAX_SIZE for size in sizes):
            raise ValueError(f"group and block sizes are 1 to {MAX_SIZE}")

    @property
    def is_dense(self) -> bool:
        """Whether the codes are the weights themselves, without a scale (what `dense` writes)."""
        return self.type in DENSE

    def scale_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Shape of scale and zero: [1, 1], [out, 1], [out, groups] or [block rows, block columns]."""
        if self.granularity is Granularity.TENSOR:
            return (1, 1)
        if self.block is not None:
            return (-(-out_features // self.block[0]), -(-in_features // self.block[1]))
        return (out_features, -(-in_features // self.group_size) if self.group_size else 1)

    def __str__(self) -> str:
        if self.is_dense:
            return self.type
        kind = f"int{self.bits}" if self.type == "int" else self.type
        size = self.group_size or ("x".join(map(str, self.block)) if self.block else "")
        where = f"{self.granularity}{f' {size}' if size else ''}{' and tensor' if self.global_scale else ''}"
        return f"{kind} {'symmetric' if self.symmetric else 'asymmetric'} per {where}"


@dataclass(frozen=True, slots=True)
class ActivationScheme:
    """How the input of a linear is quantized while it runs.

    Of dynamic scales: inputs are clipped to `limit` before one is taken (FBGEMM's upper bound), and `power_of_two`
    rounds it up to one.
    """

    bits: int
    granularity: Granularity
    dynamic: bool
    symmetric: bool = True
    type: CodeType = "int"
    group_size: int | None = None
    global_scale: GlobalScale | None = None
    limit: float | None = None
    power_of_two: bool = False

    def __post_init__(self) -> None:
        """Refuse a scheme that has no meaning (ValueError)."""
        if not 1 <= self.bits <= 16:
            raise ValueError(f"activations have 1 to 16 bits, not {self.bits}")
        if (self.granularity is Granularity.GROUP) != (self.group_size is not None):
            raise ValueError("group_size goes with granularity group, and only with it")
        if self.granularity is Granularity.TOKEN and not self.dynamic:
            raise ValueError("one scale per token is dynamic only")
        if self.global_scale and not (self.dynamic and self.granularity is Granularity.GROUP):
            raise ValueError("a stored global scale goes with dynamic scales per group")
        if (self.limit is not None or self.power_of_two) and not self.dynamic:
            raise ValueError("only dynamic scales have a limit or are rounded")
        if self.limit is not None and not 0 < self.limit < float("inf"):
            raise ValueError(f"the limit of inputs is a positive number, not {self.limit}")

    @property
    def is_stored(self) -> bool:
        """Whether a scale of the input is stored: its only one, or the global one of dynamic groups."""
        return not self.dynamic or self.global_scale is not None

    def __str__(self) -> str:
        kind = f"int{self.bits}" if self.type == "int" else self.type
        how = f"{'dynamic' if self.dynamic else 'static'} {'symmetric' if self.symmetric else 'asymmetric'}"
        size = f" {self.group_size}" if self.group_size else ""
        limit = "" if self.limit is None else f" up to {self.limit:g}"
        rounded = " in powers of two" if self.power_of_two else ""
        return (
            f"{kind} {how} per {self.granularity}{size}{' and tensor' if self.global_scale else ''}{limit}{rounded}"
        )


@dataclass(frozen=True, slots=True)
class Spec:
    """The shape-only description of one quantized linear, its dialect included.

    `dialect` is what its format leaves open and undo needs, as sorted pairs; only that format reads it.
    """

    name: str
    out_features: int
    in_features: int
    weight: WeightScheme
    scale_dtype: DType
    activation: ActivationScheme | None = None
    input_scale_dtype: DType | None = None
    bias: DType | None = None
    g_idx: bool = False
    dialect: Dialect = ()

    def __post_init__(self) -> None:
        """Refuse dims and combinations that have no meaning (ValueError)."""
        if not all(1 <= size <= MAX_SIZE for size in (self.out_features, self.in_features)):
            raise ValueError(f"{self.name}: features are 1 to {MAX_SIZE}")
        stored = self.activation is not None and self.activation.is_stored
        if stored != (self.input_scale_dtype is not None):
            raise ValueError(f"{self.name}: a stored input scale goes with static activations, and only with them")
        if self.g_idx and self.weight.block:
            raise ValueError(f"{self.name}: act-order is one of groups, not of blocks")

    @property
    def dims(self) -> tuple[int, int]:
        """(out_features, in_features), the shape of its codes."""
        return self.out_features, self.in_features

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Shape of scale and zero."""
        return self.weight.scale_shape(self.out_features, self.in_features)

    @property
    def scheme(self) -> str:
        """The scheme in words, the same for every layer that is quantized alike."""
        return _scheme(self.weight, self.activation, self.g_idx)

    @property
    def kind(self) -> Kind:
        """All but the name, in order: what is worked out for one layer holds for every one of its kind.

        `Spec(name, *kind)` is a layer of the kind.
        """
        return (
            self.out_features,
            self.in_features,
            self.weight,
            self.scale_dtype,
            self.activation,
            self.input_scale_dtype,
            self.bias,
            self.g_idx,
            self.dialect,
        )

    def parts(self) -> dict[str, tuple[DType, tuple[int, ...]]]:
        """Canonical dtype and shape of every array a layer of this spec has."""
        code = DENSE.get(self.weight.type, DType.I8 if self.weight.type == "int" else DType.U8)
        found: dict[str, tuple[DType, tuple[int, ...]]] = {"code": (code, self.dims)}
        if not self.weight.is_dense:
            found["scale"] = (self.scale_dtype, self.scale_shape)
        if not self.weight.symmetric:
            found["zero"] = (DType.I16, self.scale_shape)
        if self.weight.global_scale:
            found["global_scale"] = (GLOBAL_SCALE, (1,))
        if self.g_idx:
            found["g_idx"] = (DType.I32, (self.in_features,))
        if self.bias is not None:
            found["bias"] = (self.bias, (self.out_features,))
        if self.input_scale_dtype is not None and self.activation is not None:
            part = "input_global_scale" if self.activation.global_scale else "input_scale"
            found[part] = (self.input_scale_dtype, (1,))
            if not self.activation.symmetric:
                found["input_zero"] = (DType.I16, (1,))
        return found


Kind = tuple[
    int, int, WeightScheme, DType, ActivationScheme | None, DType | None, DType | None, bool, Dialect
]  # the fields of a Spec after its name


@lru_cache
def _scheme(weight: WeightScheme, activation: ActivationScheme | None, g_idx: bool) -> str:
    acts = f", activations {activation}" if activation else ", activations not quantized"
    return f"weights {weight}{acts}{', act-order' if g_idx else ''}"


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A spec with arrays by part name (`Spec.parts`); a pass is given only the parts that it names."""

    spec: Spec
    arrays: Mapping[str, Array]

    def __post_init__(self) -> None:
        """Refuse an array that the spec does not describe (ValueError)."""
        parts = self.spec.parts()
        for name, array in self.arrays.items():
            if name not in parts:
                raise ValueError(f"{self.spec.name}: the spec has no part {name!r}")
            dtype, shape = parts[name]
            if array.dtype != dtype.numpy or array.shape != shape:
                raise ValueError(
                    f"{self.spec.name}: {name} is {array.dtype}{array.shape}, the spec says {dtype}{shape}"
                )

    @property
    def complete(self) -> bool:
        """Whether every part of the spec is there."""
        return self.arrays.keys() == self.spec.parts().keys()


def identical(a: Layer, b: Layer) -> bool:
    """Same spec and the same raw bytes in every part: NaN equals NaN, -0.0 differs from 0.0."""
    return (
        a.spec == b.spec
        and a.arrays.keys() == b.arrays.keys()
        and all(array.tobytes() == b.arrays[name].tobytes() for name, array in a.arrays.items())
    )


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype and shape of a tensor that is not quantized, and its name on disk."""

    dtype: DType
    shape: tuple[int, ...]
    stored: str


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A checkpoint as its format describes it, without weight data.

    `config` is the Hugging Face config without any quantization block. `slots` gives, by layer and part, the
    tensor that holds it on disk. `tensors` are the ones that are carried over as they are. `tokenizer` is
    tokenizer_config.json, empty if there is none. `kv_cache` is the scheme of stored kv-cache scales, whose tensors
    (`is_kv_scale`) are among `tensors`. `consumed` are side files that say how some
    checkpoint is quantized, so that they are not carried over, whatever the format.
    """

    format: str
    config: Mapping[str, Any]
    specs: Mapping[str, Spec]
    slots: Mapping[str, Mapping[str, Slot]]
    tensors: Mapping[str, TensorInfo]
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    kv_cache: Mapping[str, Any] = field(default_factory=dict)
    consumed: frozenset[str] = frozenset()
    _known: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """What `find` gives, asked once for a key: so that no layer asks about the whole model again."""
        if key not in self._known:
            self._known[key] = find()
        found: Found = self._known[key]
        return found

    @property
    def architecture(self) -> str:
        """The model class that config.json names, or an empty string."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""
