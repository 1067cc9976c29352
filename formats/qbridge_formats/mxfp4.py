"""MXFP4 of gpt-oss: the experts of a layer in one tensor, groups of 32 e2m1 codes under a power of two.

E = experts, I = intermediate size, H = hidden size; <X> is model.layers.N.mlp.experts.

tensor                     dtype     shape                 meaning
<X>.gate_up_proj_blocks    uint8     [E, 2 I, H / 32, 16]  codes, the even one in the low four bits
<X>.gate_up_proj_scales    uint8     [E, 2 I, H / 32]      e8m0: 2^(byte - 127)
<X>.gate_up_proj_bias      bfloat16  [E, 2 I]              not quantized
<X>.down_proj_blocks       uint8     [E, H, I / 32, 16]
<X>.down_proj_scales       uint8     [E, H, I / 32]
<X>.down_proj_bias         bfloat16  [E, H]

Output features of gate and up take turns: row 2 i is gate's i-th, row 2 i + 1 is up's. Inputs are not quantized. Each
expert has three layers, <X>.E.gate_proj, up_proj and down_proj. Sources: transformers 5.17.0, integrations/mxfp4.py
(_convert_moe_packed_tensors) and models/gpt_oss/modeling_gpt_oss.py (GptOssExperts._apply_gate).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.experts import LINEARS, place_of
from qbridge.architecture.quantization_block import NO_BLOCK, find_block, without_quantization
from qbridge.codecs.bits import NIBBLES
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.assumed import Assumed
from qbridge.formats.common_rules import no_kv_scales
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge.source.reader import Source
from qbridge_formats._shared.fused_experts import ARCHITECTURE, unfusable
from qbridge_formats._shared.skip_lists import exact_entries, source_entries

NAME = "mxfp4"
SUMMARY = "gpt-oss: MXFP4 experts in fused tensors"
ALIASES: tuple[str, ...] = ()

GROUP = 32
WEIGHT = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=GROUP)
_KEYS = frozenset({"quant_method", "modules_to_not_convert", "dequantize"})
_ENDING = "_blocks"


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json, and tensors of blocks."""
    block = find_block(source.config) or NO_BLOCK
    if block.raw.get("quant_method") != NAME:
        return f"{block.key}.quant_method is not {NAME!r}"
    found = [name for name in source.tensors if name.endswith(_ENDING)]
    if not found:
        return f"{block.key}.quant_method is {NAME!r}, and no tensor is called *{_ENDING}"
    return Match(2, f"{block.key}.quant_method is {NAME!r} and {len(found)} tensors are blocks of codes")


def read(source: Source, findings: Findings) -> Model:
    """Three layers for each expert; the fused tensors of the source become a slice for each of them."""
    block = find_block(source.config) or NO_BLOCK
    unknown = sorted(block.raw.keys() - _KEYS)
    if unknown:
        findings.add("QB103", [f"{block.key}.{key}" for key in unknown])
    specs: list[Spec] = []
    refused: set[str] = set()
    for name in [name for name in source.tensors if name.endswith(_ENDING)]:
        base = name.removesuffix(_ENDING)
        try:
            specs += _layers(source, base)
        except KeyError as fault:
            findings.add("QB015", base, (f"there is no {fault.args[0]}",))
            refused.add(base.rpartition(".")[0])
        except ValueError as fault:
            findings.add("QB016", base, (str(fault),))
            refused.add(base.rpartition(".")[0])
    found = {spec.name: (spec, layout(spec)) for spec in specs}
    slots = [slot for _, own in found.values() for slot in own.values()]
    source.split({slot.slice.tensor: slot.shape for slot in slots if slot.slice})
    return assemble(NAME, source, without_quantization(source.config), found, findings, refused=refused)


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: the experts, which are all that is quantized."""
    block = find_block(config)
    if block is None or block.method != NAME:
        return None
    return {name: Assumed(WEIGHT, None, DType.F8_E8M0) for name in names if place_of(name) is not None}


def _layers(source: Source, base: str) -> Iterator[Spec]:
    """The layers of every expert in fused tensors; ValueError or KeyError where these do not fit together."""
    block, _, fused = base.rpartition(".")
    if fused not in LINEARS:
        raise ValueError(f"{fused} is none of {', '.join(LINEARS)}")
    blocks, scales, bias = (source.tensors[f"{base}_{ending}"] for ending in ("blocks", "scales", "bias"))
    shape, leaves = blocks.shape, LINEARS[fused]
    if (blocks.dtype, scales.dtype) != (DType.U8, DType.U8):
        raise ValueError(f"blocks are {blocks.dtype}, scales {scales.dtype}, not U8")
    if len(shape) != 4 or shape[3] * 2 != GROUP or scales.shape != shape[:3] or 0 in shape:
        raise ValueError(f"blocks are {list(shape)}, scales {list(scales.shape)}")
    if place_of(f"{block}.{shape[0] - 1}.{leaves[0]}") is None:
        raise ValueError(f"{block} is no block of experts, or of more than any model has")
    if shape[1] % len(leaves):
        raise ValueError(f"{shape[1]} rows are not those of {' and '.join(leaves)}")
    if bias.shape != shape[:2] or not bias.dtype.is_float:
        raise ValueError(f"the bias is {bias.dtype}{list(bias.shape)}")
    for expert in range(shape[0]):
        for leaf in leaves:
            yield Spec(
                name=f"{block}.{expert}.{leaf}",
                out_features=shape[1] // len(leaves),
                in_features=shape[2] * GROUP,
                weight=WEIGHT,
                scale_dtype=DType.F8_E8M0,
                bias=bias.dtype,
            )


def layout(spec: Spec) -> dict[str, Slot]:
    """A slice of each tensor of the table above; ValueError for what is no linear of an expert."""
    place = place_of(spec.name)
    if place is None:
        raise ValueError(f"{spec.name} is no linear of an expert")  # the rules refuse it
    rows, groups = spec.out_features * place.turns, spec.in_features // GROUP
    shape = NIBBLES.stored_shape((rows, spec.in_features), 8)
    slots = {
        "code": place.slot(_ENDING, DType.U8, shape, NIBBLES, (rows, groups, GROUP // 2)),
        "scale": place.slot("_scales", DType.U8, (rows, groups)),
    }
    if spec.bias is not None:
        slots["bias"] = place.slot("_bias", spec.bias, (rows,))
    return slots


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """The block that transformers and vLLM read."""
    skipped = exact_entries(model, source_entries(model, NAME, ("modules_to_not_convert",)))
    return {"quant_method": NAME, "modules_to_not_convert": skipped}


def _experts_alone(spec: Spec, model: Model) -> Problem | None:
    if place_of(spec.name):
        return None
    return Problem(("it is no linear of an expert, and gpt-oss has nothing else quantized",))


def _scheme(spec: Spec, model: Model) -> Problem | None:
    if (spec.weight, spec.scale_dtype, spec.activation, spec.g_idx) != (WEIGHT, DType.F8_E8M0, None, False):
        return Problem((f"{spec.scheme}: scales are {spec.scale_dtype}",))
    if spec.in_features % GROUP:
        return Problem((f"weights {spec.weight}: {spec.in_features} inputs are not whole groups",))
    return None


def _architecture(model: Model) -> Iterator[Problem]:
    fused = Architecture.of_model(model).fused_experts
    if fused is None or not fused.biased:
        yield Problem(
            (f"only {ARCHITECTURE} has its experts in such tensors",), where=(model.architecture or "config.json",)
        )


_SOURCE = "transformers 5.17.0, integrations/mxfp4.py"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _experts_alone, _SOURCE),
    LayerRule("QB110", _scheme, _SOURCE),
    ModelRule("QB110", _architecture, _SOURCE),
    ModelRule("QB110", unfusable, "transformers 5.17.0, models/gpt_oss/modeling_gpt_oss.py (GptOssExperts)"),
    no_kv_scales("transformers 5.17.0, utils/quantization_config.py (Mxfp4Config) has no key for them"),
)
