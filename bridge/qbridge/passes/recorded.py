"""Passes as a manifest records them, so that they can be undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.cast import Cast
from qbridge.passes.cast_inputs import CastInputs
from qbridge.passes.dynamic_inputs import DynamicInputs
from qbridge.passes.exactly import DequantizeExactly
from qbridge.passes.float4_to_float8 import Float4ToFloat8
from qbridge.passes.float4_to_integers import Float4ToIntegers
from qbridge.passes.float4_to_mxfp8 import Float4ToMxfp8
from qbridge.passes.float4_to_nvfp4 import Float4ToNvfp4
from qbridge.passes.fold_zeros import FoldZeros
from qbridge.passes.integers_to_float8 import IntegersToFloat8
from qbridge.passes.invert import Invert
from qbridge.passes.pad import Pad
from qbridge.passes.plain import PlainInputs
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.passes.symmetrize import Symmetrize
from qbridge.passes.unquantized_inputs import UnquantizedInputs
from qbridge.passes.widen import Widen

REVERSIBLE: tuple[type[Pass], ...] = (
    Broadcast,
    CastInputs,
    DequantizeExactly,
    DynamicInputs,
    Float4ToFloat8,
    Float4ToIntegers,
    Float4ToMxfp8,
    Float4ToNvfp4,
    FoldZeros,
    IntegersToFloat8,
    Invert,
    Pad,
    PlainInputs,
    Recast,
    Regroup,
    Symmetrize,
    UnquantizedInputs,
    Widen,
)
_BY_NAME: Mapping[object, type[Pass]] = {kind.name: kind for kind in REVERSIBLE}


def is_final(recorded: Mapping[str, Any]) -> bool:
    """Whether a recorded pass is not undone: a conversion back, or one of which what undo needs is not recorded."""
    if recorded["pass"] == FoldZeros.name:
        return not recorded.get("recorded", True) or bool(recorded.get("undo"))
    if issubclass(_BY_NAME.get(recorded["pass"], Pass), Cast) and from_dict(recorded, {}).is_final:
        return True
    if not recorded.get("rounded"):
        return bool(recorded.get("undo"))
    return bool(recorded.get("undo")) or recorded["pass"] != Invert.name


def from_dict(recorded: Mapping[str, Any], bits: Mapping[str, str]) -> Pass:
    """The pass that `Pass.as_dict` described, with the bits of its `recorded_parts`.

    KeyError for one that cannot be undone or that qbridge does not know; KeyError, TypeError or ValueError if its
    arguments are none.
    """
    return _BY_NAME[recorded["pass"]].from_dict(recorded, bits)
