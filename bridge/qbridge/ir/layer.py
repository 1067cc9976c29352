"""One quantized linear: its shape-only spec, and the spec with its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from qbridge.ir.dtypes import Array, DType
from qbridge.ir.scheme import DENSE, GLOBAL_SCALE, MAX_SIZE, ActivationScheme, Dialect, WeightScheme


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
        code = {**DENSE, "int": DType.I8, "float64": DType.F64}.get(self.weight.type, DType.U8)
        found: dict[str, tuple[DType, tuple[int, ...]]] = {"code": (code, self.dims)}
        if not (self.weight.is_dense or self.weight.is_computed):
            found["scale"] = (self.scale_dtype, self.scale_shape)
        if self.weight.type == "affine":
            found["offset"] = (self.scale_dtype, self.scale_shape)
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


@dataclass(frozen=True, slots=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        out_features, in_features = self.spec.dims
        return f"<Layer: {self.spec.name!r}, {out_features} x {in_features}, {', '.join(self.arrays)}>"

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
