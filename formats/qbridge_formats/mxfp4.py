"""MXFP4 of gpt-oss: the experts of a layer in one tensor, groups of 32 e2m1 codes under a power of two. Read only.

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

from collections.abc import Iterator, Mapping
from typing import Any

from qbridge.codes import NIBBLES
from qbridge.dtypes import DType
from qbridge.findings import Findings
from qbridge.formats import Match, assemble
from qbridge.hf_config import without_quantization
from qbridge.ir import Granularity, Model, Spec, WeightScheme
from qbridge.layout import PLAIN, Codec, Shared, Slot
from qbridge.rules import LayerRule, Problem, Rule
from qbridge.source import Source
from qbridge.topology import dense_linears

NAME = "mxfp4"
SUMMARY = "gpt-oss: MXFP4 experts in fused tensors (read only)"
ALIASES: tuple[str, ...] = ()

GROUP = 32
WEIGHT = WeightScheme(4, Granularity.GROUP, type="e2m1", group_size=GROUP)
LAYERS: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_KEYS = frozenset({"quant_method", "modules_to_not_convert", "dequantize"})
_ENDING = "_blocks"


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json, and tensors of blocks."""
    block = source.config.get("quantization_config")
    if not isinstance(block, dict) or block.get("quant_method") != NAME:
        return f"quantization_config.quant_method is not {NAME!r}"
    found = [name for name in source.tensors if name.endswith(_ENDING)]
    if not found:
        return f"quantization_config.quant_method is {NAME!r}, and no tensor is called *{_ENDING}"
    return Match(2, f"quantization_config.quant_method is {NAME!r} and {len(found)} tensors are blocks of codes")


def read(source: Source, findings: Findings) -> Model:
    """Three layers for each expert; the fused tensors of the source become a slice for each of them."""
    block = source.config.get("quantization_config")
    unknown = sorted(block.keys() - _KEYS) if isinstance(block, dict) else []
    if unknown:
        findings.add("QB103", [f"quantization_config.{key}" for key in unknown])
    shapes: dict[str, tuple[int, ...]] = {}
    fused: dict[str, tuple[int, int, int]] = {}
    refused: set[str] = set()
    for name in [name for name in source.tensors if name.endswith(_ENDING)]:
        base = name.removesuffix(_ENDING)
        try:
            fused[base] = _dims(source, base)
            shapes |= _slices(source, base, *fused[base])
        except KeyError as fault:
            findings.add("QB015", base, (f"there is no {fault.args[0]}",))
        except ValueError as fault:
            findings.add("QB016", base, (str(fault),))
        refused |= {base.rpartition(".")[0]} if base not in fused else set()
    source.split(shapes)
    found = {spec.name: (spec, slots) for base, dims in fused.items() for spec, slots in _layers(source, base, dims)}
    return assemble(NAME, source, without_quantization(source.config), found, findings, refused=refused)


def _dims(source: Source, base: str) -> tuple[int, int, int]:
    """(experts, rows, in_features) of fused tensors; ValueError or KeyError where they do not fit together."""
    leaf = base.rpartition(".")[2]
    if leaf not in LAYERS:
        raise ValueError(f"{leaf} is none of {', '.join(LAYERS)}")
    blocks = source.tensors[base + _ENDING]
    if f"{base}_scales" not in source.tensors:
        raise KeyError(f"{base}_scales")
    scales, shape = source.tensors[f"{base}_scales"], blocks.shape
    if (blocks.dtype, scales.dtype) != (DType.U8, DType.U8):
        raise ValueError(f"blocks are {blocks.dtype}, scales {scales.dtype}, not U8")
    if len(shape) != 4 or shape[3] * 2 != GROUP or scales.shape != shape[:3] or 0 in shape:
        raise ValueError(f"blocks are {list(shape)}, scales {list(scales.shape)}")
    if shape[1] % len(LAYERS[leaf]):
        raise ValueError(f"{shape[1]} rows are not those of {' and '.join(LAYERS[leaf])}")
    bias = source.tensors.get(f"{base}_bias")
    if bias is not None and (bias.shape != shape[:2] or not bias.dtype.is_float):
        raise ValueError(f"the bias is {bias.dtype}{list(bias.shape)}")
    return shape[0], shape[1], shape[2] * GROUP


def _slices(source: Source, base: str, experts: int, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """The shape of one expert's part of each fused tensor."""
    shapes: dict[str, tuple[int, ...]] = {
        base + _ENDING: NIBBLES.stored_shape((rows, columns), 8),
        f"{base}_scales": (rows, columns // GROUP),
        f"{base}_bias": (rows,),
    }
    return {name: shape for name, shape in shapes.items() if name in source.tensors}


def _layers(source: Source, base: str, dims: tuple[int, int, int]) -> Iterator[tuple[Spec, dict[str, Slot]]]:
    """The layers of every expert, with the slices that they share."""
    experts, rows, columns = dims
    prefix, _, fused = base.rpartition(".")
    parts = LAYERS[fused]
    for expert in range(experts):
        bias = source.tensors.get(f"{base}_bias[{expert}]")
        stored: dict[str, tuple[str, DType, tuple[int, ...], Codec]] = {
            "code": ("blocks", DType.U8, NIBBLES.stored_shape((rows, columns), 8), NIBBLES),
            "scale": ("scales", DType.U8, (rows, columns // GROUP), PLAIN),
            **({"bias": ("bias", bias.dtype, (rows,), PLAIN)} if bias else {}),
        }
        for place, leaf in enumerate(parts):
            spec = Spec(
                name=f"{prefix}.{expert}.{leaf}",
                out_features=rows // len(parts),
                in_features=columns,
                weight=WEIGHT,
                scale_dtype=DType.F8_E8M0,
                bias=bias.dtype if bias else None,
            )
            slots = {
                part: Slot(f"{base}_{ending}[{expert}]", dtype, shape, Shared(codec, place, len(parts)))
                for part, (ending, dtype, shape, codec) in stored.items()
            }
            yield spec, slots


def layout(spec: Spec) -> dict[str, Slot]:
    """ValueError: the rules let no layer through."""
    raise ValueError(f"{spec.name}: {NAME} is read, not written")


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """The block that transformers and vLLM read."""
    return {"quant_method": NAME, "modules_to_not_convert": dense_linears(model.tensors)}


def _not_written(spec: Spec, model: Model) -> Problem | None:
    return Problem((f"{NAME} keeps all experts of a layer in one tensor, which qbridge reads and does not write",))


RULES: tuple[Rule, ...] = (LayerRule("QB110", _not_written, "transformers 5.17.0, integrations/mxfp4.py"),)
