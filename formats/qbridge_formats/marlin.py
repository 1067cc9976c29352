"""Marlin as it is serialized: 4-bit symmetric weights, laid out for one kernel's loads.

tensor       dtype    shape           meaning (N = out_features, K = in_features, G = groups of 128, or 1)
<L>.B        int32    [K / 16, 2 N]   codes + 8, in tiles of 16 input and 64 output features
<L>.s        float16  [G, N]          scales, runs of 64 (one group: of 32) output features permuted
<L>.bias     float16  [N]             not quantized

Within a tile word 4t + w, for t = 0 .. 31 and w = 0 .. 3, holds input features r, r + 1, r + 8, r + 9 of output
features 16w + c and 16w + c + 8, with r = 2 (t mod 4) and c = t div 4; its nibbles take these eight in the order
0, 2, 4, 6, 1, 3, 5, 7. AutoAWQ's version marlin names the tensors qweight and scales. There are no zero-points and no
g_idx. vLLM served it up to 0.10.0. Sources: IST-DASLab marlin, marlin/__init__.py; auto-gptq 0.7.1,
nn_modules/qlinear/qlinear_marlin.py; autoawq 0.2.9, awq/modules/linear/marlin.py; vllm 0.33.0,
model_executor/layers/quantization/utils/marlin_utils_test.py (marlin_weights).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.names import dense_linears
from qbridge.architecture.quantization_block import NO_BLOCK, find_block, without_quantization
from qbridge.codecs.arrays import ZEROS, Shuffled
from qbridge.codecs.bits import BitPacked, Tiled
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.assumed import Assumed
from qbridge.formats.common_rules import (
    first_of,
    group_sizes,
    multiples,
    no_blocks,
    no_kv_scales,
    stored_scales,
    weights_only,
    widths,
)
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge.passes.symmetrize import Symmetrize
from qbridge.source.reader import Source
from qbridge_formats._shared.assumed_integers import assumed_linear
from qbridge_formats._shared.config_block import says_marlin
from qbridge_formats._shared.gptq_linear import Scheme, zero_biases

NAME = "marlin"
SUMMARY = "Marlin as IST-DASLab's code, AutoGPTQ and AutoAWQ serialize it: 4 bits, symmetric (vLLM up to 0.10.0)"
ALIASES: tuple[str, ...] = ()

_GROUP = 128


def _order() -> tuple[int, ...]:
    """The code of a tile, output feature * 16 + input feature, that each of its 1024 places holds."""
    found = []
    for thread in range(32):
        row, column = 2 * (thread % 4), thread // 4
        for warp in range(4):
            eight = [(16 * warp + column + 8 * half) * 16 + row + i for half in (0, 1) for i in (0, 1, 8, 9)]
            found += [eight[place] for place in (0, 2, 4, 6, 1, 3, 5, 7)]
    return tuple(found)


CODES = Tiled((64, 16), _order(), BitPacked(4, 1, 8), across=True)
GROUPED = Shuffled(tuple(i + 8 * j for i in range(8) for j in range(8)))
SINGLE = Shuffled(tuple(2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)))


@dataclass(frozen=True, slots=True)
class _Names:
    """What the two tools call the tensors."""

    code: str
    scale: str


_NAMES = {"gptq": _Names("B", "s"), "awq": _Names("qweight", "scales")}


def _block(source: Source) -> Mapping[str, Any]:
    return (find_block(source.config) or NO_BLOCK).raw


def _kind(source: Source) -> str | None:
    """Whose names the tensors have: AutoGPTQ's (gptq) or AutoAWQ's (awq); None if it is not Marlin."""
    if not says_marlin(_block(source)):
        return None
    return "gptq" if any(name.endswith(".B") for name in source.tensors) else "awq"


def sniff(source: Source) -> Match | str:
    """Evidence: the config says Marlin, and modules have its two tensors."""
    kind = _kind(source)
    if kind is None:
        return "config.json does not say marlin"
    modules = _modules(source, _NAMES[kind])
    if not modules:
        return f"config.json says marlin, and no module has a {_NAMES[kind].code}"
    return Match(2, f"config.json says marlin and {len(modules)} modules have its tensors")


def _modules(source: Source, names: _Names) -> list[str]:
    ending = f".{names.code}"
    return [name.removesuffix(ending) for name in source.tensors if name.endswith(ending)]


def read(source: Source, findings: Findings) -> Model:
    """Every module with a B (or AutoAWQ's qweight) is a layer; its group size is the number of its scales."""
    kind = _kind(source) or "gptq"
    found: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused: set[str] = set()
    modules = _modules(source, _NAMES[kind])
    empty = zero_biases(source, modules)
    for module in modules:
        try:
            spec = _spec(source, module, kind, module in empty)
            found[module] = (spec, layout(spec))
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
    config = without_quantization(source.config)
    return assemble(NAME, source, config, found, findings, refused=refused)


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: 4 bits, symmetric, in the groups that it names."""
    raw = (find_block(config) or NO_BLOCK).raw
    if not says_marlin(raw):
        return None
    linear = assumed_linear(Scheme(4, raw.get("group_size", _GROUP), True))
    return dict.fromkeys(names, linear)


def _spec(source: Source, module: str, kind: str, empty_bias: bool) -> Spec:
    names = _NAMES[kind]
    codes, scales = source.tensors[f"{module}.{names.code}"], source.tensors.get(f"{module}.{names.scale}")
    if scales is None or len(scales.shape) != 2 or len(codes.shape) != 2 or not scales.dtype.is_float:
        raise ValueError(f"{names.code} and {names.scale} are not two matrices")
    rows, columns, groups = scales.shape[1], codes.shape[0] * 16, scales.shape[0]
    if groups < 1 or columns % groups:
        raise ValueError(f"{groups} groups do not divide {columns} input features")
    if groups > 1 and columns // groups != _GROUP:
        raise ValueError(f"groups of {columns // groups}: Marlin has one group, or groups of {_GROUP}")
    kinds = (Granularity.CHANNEL, None) if groups == 1 else (Granularity.GROUP, columns // groups)
    if groups == 1 and columns == _block(source).get("group_size"):
        kinds = (Granularity.GROUP, columns)
    bias = source.tensors.get(f"{module}.bias")
    dialect = {"names": kind} if kind != "gptq" else {}
    dialect |= {"bias": "zeros"} if empty_bias else {}
    return Spec(
        name=module,
        out_features=rows,
        in_features=columns,
        weight=WeightScheme(4, kinds[0], group_size=kinds[1]),
        scale_dtype=scales.dtype,
        bias=bias.dtype if bias and not empty_bias else None,
        dialect=tuple(sorted(dialect.items())),
    )


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    names = _NAMES[dict(spec.dialect).get("names", "gptq")]
    rows, groups = spec.scale_shape
    shape = CODES.stored_shape((spec.out_features, spec.in_features))
    shuffled = GROUPED if groups > 1 else SINGLE
    found = {
        "code": Slot(f"{spec.name}.{names.code}", DType.I32, shape, CODES),
        "scale": Slot(f"{spec.name}.{names.scale}", spec.scale_dtype, (groups, rows), shuffled),
    }
    if spec.bias is not None:
        found["bias"] = Slot(f"{spec.name}.bias", spec.bias, (rows,))
    elif dict(spec.dialect).get("bias") == "zeros":
        found["bias"] = Slot(f"{spec.name}.bias", spec.scale_dtype, (rows,), ZEROS)
    return found


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """The block that AutoGPTQ after 0.7.1 and vLLM up to 0.10.0 read, or AutoAWQ's on the way back to it."""
    first = next(iter(model.specs.values()))
    size = first.weight.group_size or -1
    if dict(first.dialect).get("names") == "awq":
        skipped = [module for module in dense_linears(model.tensors) if module != "lm_head"] or None
        keys = {"version": "marlin", "zero_point": False, "modules_to_not_convert": skipped}
        return {"quant_method": "awq", "bits": 4, "group_size": size, **keys}
    return {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": size,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "marlin",
        "is_marlin_format": True,
        "lm_head": "lm_head" in model.specs,
    }


def _asymmetric(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.symmetric else Problem((f"weights {spec.weight}: Marlin has no zero-points",))


def _one_kind(model: Model) -> Iterator[Problem]:
    """A group size for the model, where a linear of 128 inputs alone may have either."""
    sizes = {spec.weight.group_size for spec in model.specs.values()}
    if len(sizes) > 1:
        yield Problem(("some layers have scales per channel, others per group",), where=tuple(model.specs))


_SOURCE = "auto-gptq 0.7.1, nn_modules/qlinear/qlinear_marlin.py"
RULES: tuple[Rule, ...] = (
    LayerRule(
        "QB110",
        first_of(
            weights_only("Marlin", "4-bit", 4), no_blocks("Marlin", f" of {_GROUP}"), multiples("Marlin", 256, 128)
        ),
        _SOURCE,
    ),
    LayerRule("QB112", _asymmetric, _SOURCE, lambda spec, model: Symmetrize()),
    widths("Marlin", (4,), _SOURCE),
    group_sizes("Marlin", lambda model: _GROUP, _SOURCE, f"scales per channel or group of {_GROUP}", channels=True),
    stored_scales("Marlin", DType.F16, _SOURCE),
    ModelRule("QB110", _one_kind, _SOURCE),
    no_kv_scales(_SOURCE),
)
