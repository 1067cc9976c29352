"""Integer linears of GPTQ, AWQ and AutoRound from config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.findings.finding import Findings
from qbridge.formats.assumed import Assumed
from qbridge.ir.dtypes import DType
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge_formats._shared.gptq_linear import Scheme


def assumed_linear(scheme: Scheme, act_order: bool = False, dialect: tuple[tuple[str, str], ...] = ()) -> Assumed:
    """A linear of a scheme, its scales float16 as the tools store them; ValueError for what no linear has.

    `act_order`: whether its inputs are ordered, which has a meaning only where there are groups.
    """
    if (type(scheme.bits), type(scheme.group_size), type(scheme.sym)) != (int, int, bool):
        raise ValueError(f"its config says {scheme}")
    grouped = scheme.group_size > 0
    where, size = (Granularity.GROUP, scheme.group_size) if grouped else (Granularity.CHANNEL, None)
    weight = WeightScheme(scheme.bits, where, scheme.sym, group_size=size)
    return Assumed(weight, None, DType.F16, act_order and grouped, dialect)


def require(raw: Mapping[str, Any], findings: Findings) -> None:
    """ValueError for a quantization block that names no bits, or that a reader has errors about."""
    if raw.get("bits") is None:
        raise ValueError("it does not say bits and group size")
    if findings.errors:
        faults = (f"{finding.where[0]}: {', '.join(finding.facts)}" for finding in findings.errors)
        raise ValueError("; ".join(faults))
