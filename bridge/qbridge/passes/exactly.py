"""DequantizeExactly: the weights themselves instead of codes, where a dtype holds each of them; undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qbridge.ir.dtypes import Array, DType, to_float64
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.values import code_table, dequantize, group_index, row_index
from qbridge.passes import Pass
from qbridge.passes.bits import Kept, array_of
from qbridge.passes.counted import Counted
from qbridge.passes.dequantize import NAMES, Dequantize
from qbridge.passes.unquantize import Unquantize

_CODED = frozenset({"code", "scale", "zero", "offset", "g_idx", "global_scale"})
_INPUTS = frozenset({"input_scale", "input_zero", "input_global_scale"})


@dataclass(frozen=True, slots=True)
class DequantizeExactly(Pass):
    """Weights in `dtype` (F16, BF16 or F32), each exactly what its code stands for; inputs are plain, too.

    ValueError when applied to a layer with a weight that is none of the dtype, or with a scale of zero, under which
    codes cannot be told apart. Undo finds the codes by `kept`: the bits of all other parts that there were.
    """

    name = "dequantize-exactly"
    unquantizes = True
    parts = _CODED | _INPUTS
    recorded_parts = (_CODED | _INPUTS) - {"code"}

    dtype: DType
    kept: Kept = ()

    def needs_values(self, spec: Spec) -> bool:
        """Always: each weight must be looked at."""
        return True

    @property
    def whole(self) -> bool:
        """What is kept has all output features."""
        return bool(self.kept)

    def inputs(self, parts: frozenset[str]) -> frozenset[str]:
        """A weight needs all its parts."""
        return parts | _CODED if "code" in parts else parts

    def plan(self, spec: Spec) -> Spec:
        """The spec of a dense weight."""
        return Dequantize(self.dtype).plan(spec)

    def apply(self, layer: Layer) -> Layer:
        """The layer of weights; ValueError if one of them is none of the dtype."""
        result = Dequantize(self.dtype).apply(layer)
        if "code" in layer.arrays:
            zeros = [part for part in ("scale", "global_scale") if _has_zero(layer, part)]
            if zeros:
                raise ValueError(f"a {zeros[0]} is zero, so its codes could not be told apart again")
            exact, weights = dequantize(layer), to_float64(result.arrays["code"], self.dtype)
            if rounded := int(np.count_nonzero(exact != weights)):
                raise Counted(rounded, f"weights are no {NAMES[self.dtype]}")
        return result

    def lossy(self) -> Unquantize:
        """Each weight rounded."""
        return Unquantize(self.dtype, allowed=True)

    def undo(self, layer: Layer, before: Spec) -> Layer:
        """The codes under what is kept; ValueError where a weight is not the value of a code, or nothing is kept."""
        kept, parts = dict(self.kept), before.parts()
        if missing := parts.keys() - kept.keys() - {"code", "bias"}:
            raise ValueError(f"{', '.join(sorted(missing))} is not recorded")
        arrays = {part: array_of(bits, *parts[part]) for part, bits in kept.items()}
        arrays |= {part: array for part, array in layer.arrays.items() if part == "bias"}
        if "code" in layer.arrays:
            weights = to_float64(layer.arrays["code"], self.dtype)
            arrays["code"] = _codes(weights, Layer(before, arrays)).view(parts["code"][0].numpy)
        return Layer(before, arrays)

    def as_dict(self) -> dict[str, Any]:
        """Name and dtype; `kept` differs from layer to layer and stands elsewhere."""
        return {"pass": self.name, "dtype": str(self.dtype)}

    @classmethod
    def from_dict(cls, recorded: Mapping[str, Any], bits: Mapping[str, str]) -> DequantizeExactly:
        """One that gives back the parts of these bits."""
        return cls(DType(recorded["dtype"]), tuple(bits.items()))


def _has_zero(layer: Layer, part: str) -> bool:
    dtype = layer.spec.parts().get(part, (None, ()))[0]
    return dtype is not None and not to_float64(layer.arrays[part], dtype).all()


def _codes(weights: Array, layer: Layer) -> Array:
    """The code of each weight under the other parts of a layer; ValueError where there is none."""
    spec, arrays = layer.spec, layer.arrays
    columns, rows = group_index(spec, arrays.get("g_idx")), row_index(spec)
    bits = spec.weight.bits
    codes = np.empty(spec.dims, np.uint8)
    for number, row in enumerate(rows):
        zero, offset = (arrays[part][row] if part in arrays else None for part in ("zero", "offset"))
        table = code_table(layer, arrays["scale"][row], zero, offset)[columns]
        same = table.view(np.int64) == weights[number].view(np.int64)[:, None]  # 0.0 and -0.0 are two codes
        if not same.any(axis=1).all():
            raise ValueError("a weight is not the value of a code any more")
        codes[number] = same.argmax(axis=1)
    if spec.weight.type == "int":  # the lowest bits of a code, in two's complement
        sign = np.uint8(1 << (bits - 1))
        codes = (codes ^ sign) - sign
    return codes
