"""compressed-tensors, as llm-compressor writes it: int-quantized weights with their scales beside them.

tensor                 dtype         shape             meaning (N = out_features, K = in_features, G = groups)
<L>.weight             int8          [N, K]            codes, signed, also those of fewer than 8 bits
<L>.weight_scale       any float     [1] | [N, 1] | [N, G]   per tensor | channel | group
<L>.weight_zero_point  int8          as weight_scale   only asymmetric, in the codes' signed domain
<L>.input_scale        any float     [1]               only static activations
<L>.input_zero_point   int8          [1]               only static asymmetric activations
<L>.bias               model dtype   [N]               not quantized

W = (weight - weight_zero_point) * weight_scale.  Sources: compressed-tensors 0.20.0,
compressors/quantized_compressors/base.py and naive_quantized.py, quantization/lifecycle/initialize.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.dtypes import DType
from qbridge.findings import Findings
from qbridge.formats import Match, assemble
from qbridge.hf_config import without_quantization
from qbridge.ir import Dialect, Granularity, Model, Spec
from qbridge.layout import NARROWED, PLAIN, Slot
from qbridge.rules import LayerRule, ModelRule, Problem
from qbridge.source import Source
from qbridge.topology import dense_linears, is_embedding, is_router
from qbridge_formats._ct_config import Block, Group, Matcher, args_of, find_block, is_ours, parse

NAME = "compressed-tensors"
SUMMARY = "llm-compressor's format: int8 weights, scales beside them (W8A8)"
ALIASES = ("llm-compressor",)

SCHEMA_VERSION = "0.20.0"  # the newest schema that what we write was validated with
_STORED_CODES = (DType.I8, DType.U8, DType.F8_E4M3, DType.I32)


def sniff(source: Source) -> Match | str:
    """Evidence: the block in one of its places."""
    found = find_block(source.config)
    if found is not None and is_ours(found[1]):
        return Match(2, f"config.json has a compressed-tensors block under {found[0]}")
    if found is not None:
        return "the quantization block names another method"
    return "config.json has no quantization block of it"


def read(source: Source, findings: Findings) -> Model:
    """Specs from the block's groups and the tensors' headers."""
    found = find_block(source.config)
    config = without_quantization(source.config)
    block = None
    if found is None or not is_ours(found[1]):
        findings.add("QB013", "config.json", ("it has no compressed-tensors block",))
    else:
        block = parse(*found, findings)
    if block is None:
        return assemble(NAME, source, config, {}, Findings())
    _refuse_more_mathematics(block, findings)
    layers = _layers(source, block, findings)
    return assemble(NAME, source, config, layers, findings, {"block": dict(block.raw), "key": block.key})


def _refuse_more_mathematics(block: Block, findings: Findings) -> None:
    """Keys that ask for work beyond weights and input activations."""
    for key in ("transform_config", "sparsity_config", "kv_cache_scheme", "moe_sparsity_config"):
        value = block.raw.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            findings.add("QB102", f"{block.key}.{key}")
    for group in block.groups:
        if group.outputs:
            findings.add("QB102", f"{block.key}.config_groups.{group.name}.output_activations")


def _layers(source: Source, block: Block, findings: Findings) -> dict[str, tuple[Spec, Mapping[str, Slot]]]:
    matcher = Matcher(block)
    layers: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    for module in _matrices(source):
        group = matcher.group(module)
        codes = _is_quantized(source, module)
        if group is None or group.weight is None:
            if codes:
                findings.add("QB013", module, ("its weight is quantized and no config group targets it",))
            continue
        if matcher.ignored(module):
            if codes:
                findings.add("QB019", module)
            continue
        if not codes and (is_router(module) or is_embedding(module)) and matcher.named(module) is None:
            continue
        refused = _not_read(source, module, group)
        if refused:
            findings.add("QB101", module, (refused,))
            continue
        spec = _spec(source, module, group, findings)
        if spec is not None:
            layers[module] = (spec, layout(spec))
    return layers


def _matrices(source: Source) -> list[str]:
    """Modules that own a weight matrix, packed or not, in the order of their tensors."""
    found: dict[str, None] = {}
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_packed" or (leaf == "weight" and len(tensor.shape) == 2):
            found[module] = None
    return list(found)


def _is_quantized(source: Source, module: str) -> bool:
    if f"{module}.weight_packed" in source.tensors or f"{module}.weight_scale" in source.tensors:
        return True
    return source.tensors[f"{module}.weight"].dtype in _STORED_CODES


def _not_read(source: Source, module: str, group: Group) -> str | None:
    """Why a sound layer is not read here, in the format's own names; None if it is."""
    if f"{module}.weight_packed" in source.tensors:
        bits = group.weight.bits if group.weight else 0
        kind = "pack-quantized" if group.weight and group.weight.type == "int" else "nvfp4/mxfp4-pack-quantized"
        return f"format {group.format or kind}, {bits}-bit packed weights"
    if group.weight and group.weight.type != "int":
        return f"format {group.format or 'float-quantized'}, {group.weight.type} weights"
    return None


def _spec(source: Source, module: str, group: Group, findings: Findings) -> Spec | None:
    weight = source.tensors[f"{module}.weight"]
    scale = source.tensors.get(f"{module}.weight_scale")
    scale_dtype = scale.dtype if scale and scale.dtype.is_float else _model_dtype(source)
    bias = source.tensors.get(f"{module}.bias")
    static = group.activation is not None and not group.activation.dynamic
    input_scale = source.tensors.get(f"{module}.input_scale")
    dialect: Dialect = ()
    if scale is not None and len(scale.shape) == 1 and scale.shape == (weight.shape[0],) != (1,):
        dialect = (("scale_shape", "1-D"),)
    try:
        return Spec(
            name=module,
            out_features=weight.shape[0],
            in_features=weight.shape[1],
            weight=group.weight,  # type: ignore[arg-type]
            scale_dtype=scale_dtype,
            activation=group.activation,
            input_scale_dtype=(input_scale.dtype if input_scale else scale_dtype) if static else None,
            bias=bias.dtype if bias else None,
            dialect=dialect,
        )
    except ValueError as fault:
        findings.add("QB013", module, (str(fault),))
        return None


def _model_dtype(source: Source) -> DType:
    """The dtype that missing scales would have had: that of the first float tensor."""
    return next((t.dtype for t in source.tensors.values() if t.dtype.is_float), DType.F32)


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    name, shape = spec.name, spec.scale_shape
    if spec.weight.granularity is Granularity.TENSOR or ("scale_shape", "1-D") in spec.dialect:
        shape = (shape[0],)  # type: ignore[assignment]
    slots = {
        "code": Slot(f"{name}.weight", DType.I8, (spec.out_features, spec.in_features), PLAIN),
        "scale": Slot(f"{name}.weight_scale", spec.scale_dtype, shape, PLAIN),
        "zero": Slot(f"{name}.weight_zero_point", DType.I8, shape, NARROWED),
        "bias": Slot(f"{name}.bias", spec.bias or DType.F32, (spec.out_features,), PLAIN),
        "input_scale": Slot(f"{name}.input_scale", spec.input_scale_dtype or DType.F32, (1,), PLAIN),
        "input_zero": Slot(f"{name}.input_zero_point", DType.I8, (1,), NARROWED),
    }
    parts = spec.parts()
    return {part: slot for part, slot in slots.items() if part in parts}


def config(model: Model) -> dict[str, Any]:
    """A block that every release since 0.9 reads: one group per scheme, ignore by full names."""
    by_scheme: dict[tuple[Any, Any], list[str]] = {}
    for spec in model.specs.values():
        by_scheme.setdefault((spec.weight, spec.activation), []).append(spec.name)
    groups = {
        f"group_{number}": {
            "targets": ["Linear"] if len(by_scheme) == 1 else names,
            "weights": args_of(weight),
            "input_activations": None if activation is None else args_of(activation),
            "output_activations": None,
            "format": "int-quantized",
        }
        for number, ((weight, activation), names) in enumerate(by_scheme.items())
    }
    ignore = dense_linears(model.tensors)
    if "lm_head" not in model.specs and "lm_head" not in ignore:
        ignore.append("lm_head")  # tied: no tensor of its own, and the target Linear would claim it
    return {
        "quant_method": "compressed-tensors",
        "version": SCHEMA_VERSION,
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _unwritable(spec: Spec, model: Model) -> Problem | None:
    weight, activation = spec.weight, spec.activation
    if spec.g_idx or weight.type != "int" or weight.granularity is Granularity.BLOCK:
        return Problem((spec.scheme,))
    if activation is None:
        return Problem((f"{spec.scheme}: int-quantized means quantized activations",))
    return None


RULES: tuple[LayerRule | ModelRule, ...] = (
    LayerRule("QB110", _unwritable, "compressed-tensors 0.20.0, compressors/format.py"),
)
