"""smooth-quant, LMDeploy's own W8A8 as `lmdeploy lite smooth_quant` writes it.

tensor       dtype        shape    meaning (N = out_features, K = in_features)
<L>.weight   int8         [N, K]   codes, signed, -128 included; or float8_e4m3fn, float8_e5m2
<L>.scale    float32      [N, 1]   one per output channel
<L>.bias     model dtype  [N]      not quantized

W = weight * scale; activations are quantized per token while the model runs, to the codes' own type,
symmetric.
Sources: lmdeploy 0.18.0, lite/apis/smooth_quant.py, pytorch/nn/linear/w8a8.py, pytorch/config.py; 0.6.2 reads the
same tensors (pytorch/models/q_modules.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qbridge.architecture.names import dense_linears, is_decoder_linear, is_router
from qbridge.architecture.quantization_block import NO_BLOCK, find_block, without_quantization
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.common_rules import no_kv_scales, stored_scales
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, CodeType, Granularity, WeightScheme
from qbridge.ir.slots import Slot
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.symmetrize import Symmetrize
from qbridge.source.reader import Source

NAME = "smooth-quant"
SUMMARY = "LMDeploy's own W8A8: int8 or float8 weights, one float32 scale per output channel"
ALIASES: tuple[str, ...] = ()

METHOD = "smooth_quant"
FLOAT8: Mapping[str, tuple[DType, CodeType]] = {
    "float8_e4m3fn": (DType.F8_E4M3, "e4m3fn"),
    "float8_e5m2": (DType.F8_E5M2, "e5m2"),
}
_KEYS = frozenset({"quant_method", "quant_dtype", "modules_to_not_convert", "ignored_layers"})


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json."""
    block = find_block(source.config) or NO_BLOCK
    if block.raw.get("quant_method") == METHOD:
        return Match(2, f"{block.key}.quant_method is {METHOD!r}")
    return f"{block.key}.quant_method is not {METHOD!r}"


def read(source: Source, findings: Findings) -> Model:
    """Every matrix of the block's quant_dtype is a layer; its scale must lie beside it."""
    block = find_block(source.config) or NO_BLOCK
    unknown = sorted(block.raw.keys() - _KEYS)
    if unknown:
        findings.add("QB103", [f"{block.key}.{key}" for key in unknown])
    named = block.raw.get("quant_dtype", "int8")
    if named != "int8" and str(named) not in FLOAT8:
        findings.add("QB013", f"{block.key}.quant_dtype", (f"{named!r} is none of int8, {', '.join(FLOAT8)}",))
        return assemble(NAME, source, {}, {}, Findings())
    int8: tuple[DType, CodeType] = (DType.I8, "int")
    stored, kind = FLOAT8.get(named, int8)
    layers: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or len(tensor.shape) != 2 or tensor.dtype is not stored or 0 in tensor.shape:
            continue
        bias = source.tensors.get(f"{module}.bias")
        try:
            spec = Spec(
                name=module,
                out_features=tensor.shape[0],
                in_features=tensor.shape[1],
                weight=WeightScheme(8, Granularity.CHANNEL, type=kind),
                scale_dtype=DType.F32,
                activation=ActivationScheme(8, Granularity.TOKEN, dynamic=True, type=kind),
                bias=bias.dtype if bias else None,
            )
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            continue
        layers[module] = (spec, layout(spec))
    return assemble(NAME, source, _without_copied_code(source, findings), layers, findings)


def _without_copied_code(source: Source, findings: Findings) -> dict[str, Any]:
    """The config without the auto_map to the modeling file that lmdeploy.lite 0.6.2 copies beside the weights."""
    config = without_quantization(source.config)
    targets = config.get("auto_map")
    files = set(source.side_files)
    if isinstance(targets, dict) and all(f"{str(t).partition('.')[0]}.py" in files for t in targets.values()):
        findings.add("QB104", "config.json", tuple(f"auto_map {key}: {value}" for key, value in targets.items()))
        del config["auto_map"]
    return config


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    code = next((dtype for dtype, kind in FLOAT8.values() if kind == spec.weight.type), DType.I8)
    slots = {
        "code": Slot(f"{spec.name}.weight", code, (spec.out_features, spec.in_features)),
        "scale": Slot(f"{spec.name}.scale", DType.F32, (spec.out_features, 1)),
    }
    if spec.bias is not None:
        slots["bias"] = Slot(f"{spec.name}.bias", spec.bias, (spec.out_features,))
    return slots


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """The block that LMDeploy 0.6.2 and 0.18.0 read alike; what is not quantized is named as 0.18.0 matches it."""
    kinds = {spec.weight.type for spec in model.specs.values()}
    named = next((name for name, (_, kind) in FLOAT8.items() if kind in kinds), "int8")
    block: dict[str, Any] = {"quant_method": METHOD, "quant_dtype": named}
    entries = not_converted(model)
    return {**block, "modules_to_not_convert": entries} if entries else block


def not_converted(model: Model) -> list[str]:
    """Entries of modules_to_not_convert for the linears of the decoder that are not quantized.

    LMDeploy asks of each module that it builds whether its name is a part of some entry. It builds q, k, v and gate,
    up as one, and quantizes in the norm before them, so a fused module stands under the name of its first part (which
    it expands itself) and brings its norm along. Source: lmdeploy 0.18.0, pytorch/config.py (get_quant_method) and
    pytorch/models/utils/model.py (build of the ignored prefixes).
    """
    entries: dict[str, None] = {}
    for module in dense_linears(model.tensors):
        if not (is_decoder_linear(module) or is_router(module)):
            continue
        entries[module] = None
        block, _, leaf = module.rpartition(".")
        layer = block.rpartition(".")[0]
        if leaf in ("q_proj", "k_proj", "v_proj"):
            entries[f"{layer}.input_layernorm"] = None
        elif leaf in ("gate_proj", "up_proj"):
            entries[f"{layer}.post_attention_layernorm"] = None
    if model.architecture == "Qwen3MoeForCausalLM":
        entries.update(dict.fromkeys(_head_norms(model)))
    return list(entries)


def _head_norms(model: Model) -> list[str]:
    """q_norm and k_norm, which LMDeploy builds as quantizing norms in this class, and whose output is not quantized.

    Source: lmdeploy 0.18.0, pytorch/models/qwen3_moe.py, tried with its own classes.
    """
    modules = [name.removesuffix(".weight") for name in model.tensors]
    return [module for module in modules if module.endswith((".self_attn.q_norm", ".self_attn.k_norm"))]


def _other_weights(spec: Spec, model: Model) -> Problem | None:
    weight = spec.weight
    if weight.bits == 8 and weight.type in ("int", "e4m3fn", "e5m2") and not spec.g_idx:
        return None
    return Problem((f"weights {weight}{', act-order' if spec.g_idx else ''}",))


def _zero_points(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.symmetric else Problem((f"weights {spec.weight}",))


def _granularity(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.granularity is Granularity.CHANNEL:
        return None
    return Problem((f"weights {spec.weight}, smooth-quant has one scale per output channel",))


def _one_per_channel(spec: Spec, model: Model) -> Pass | None:
    return Broadcast() if spec.weight.granularity is Granularity.TENSOR else None


def _unquantized_activations(spec: Spec, model: Model) -> Problem | None:
    return Problem((spec.scheme,)) if spec.activation is None else None


def _static_activations(spec: Spec, model: Model) -> Problem | None:
    """Static activations of integers; LMDeploy has those of floats in another format."""
    stored = spec.activation is not None and not spec.activation.dynamic
    return Problem((f"activations {spec.activation}",)) if stored and spec.weight.type == "int" else None


def _asymmetric_activations(spec: Spec, model: Model) -> Problem | None:
    odd = spec.activation is not None and not spec.activation.symmetric
    return Problem((f"activations {spec.activation}",)) if odd else None


def _other_activations(spec: Spec, model: Model) -> Problem | None:
    """What the rules before it have not named already."""
    acts = spec.activation
    if acts is None or not acts.symmetric or (not acts.dynamic and spec.weight.type == "int"):
        return None
    plain = replace(acts, limit=None, power_of_two=False)  # of which there is a rule for every format
    if plain == ActivationScheme(8, Granularity.TOKEN, dynamic=True, type=spec.weight.type):
        return None
    return Problem((f"activations {acts} with weights {spec.weight}",))


_LINEAR = "lmdeploy 0.18.0, pytorch/nn/linear/w8a8.py"
_KERNEL = "lmdeploy 0.18.0, pytorch/kernels/cuda/w8a8_triton_kernels.py"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", _other_weights, _LINEAR),
    LayerRule("QB211", _zero_points, _LINEAR, lambda spec, model: Symmetrize()),
    LayerRule("QB212", _granularity, _LINEAR, _one_per_channel),
    stored_scales("smooth-quant", DType.F32, _LINEAR),
    LayerRule("QB210", _unquantized_activations, _LINEAR),
    LayerRule("QB203", _static_activations, _KERNEL),
    LayerRule("QB209", _asymmetric_activations, _KERNEL),
    LayerRule("QB110", _other_activations, _KERNEL),
    no_kv_scales(_LINEAR),
)
