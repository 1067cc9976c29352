"""smooth-quant, LMDeploy's own W8A8 as `lmdeploy lite smooth_quant` writes it.

tensor       dtype        shape    meaning (N = out_features, K = in_features)
<L>.weight   int8         [N, K]   codes, signed, -128 included
<L>.scale    float32      [N, 1]   one per output channel
<L>.bias     model dtype  [N]      not quantized

W = weight * scale; activations are quantized per token while the model runs, to symmetric int8.
Sources: lmdeploy 0.18.0, lite/apis/smooth_quant.py, pytorch/nn/linear/w8a8.py, pytorch/config.py; 0.6.2 reads the
same tensors (pytorch/models/q_modules.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.dtypes import DType
from qbridge.findings import Findings
from qbridge.formats import Match, assemble
from qbridge.hf_config import without_quantization
from qbridge.ir import ActivationScheme, Granularity, Model, Spec, WeightScheme
from qbridge.layout import Slot
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.recast import Recast, survives
from qbridge.rules import LayerRule, ModelRule, Problem
from qbridge.source import Source

NAME = "smooth-quant"
SUMMARY = "LMDeploy's own W8A8: int8 weights, one float32 scale per output channel"
ALIASES: tuple[str, ...] = ()

METHOD = "smooth_quant"
WEIGHT = WeightScheme(8, Granularity.CHANNEL)
ACTIVATION = ActivationScheme(8, Granularity.TOKEN, dynamic=True)
_KEYS = frozenset({"quant_method", "quant_dtype"})


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json."""
    block = source.config.get("quantization_config")
    if isinstance(block, dict) and block.get("quant_method") == METHOD:
        return Match(2, f"quantization_config.quant_method is {METHOD!r}")
    return f"quantization_config.quant_method is not {METHOD!r}"


def read(source: Source, findings: Findings) -> Model:
    """Every int8 matrix is a layer; its scale must lie beside it."""
    block = source.config.get("quantization_config")
    block = block if isinstance(block, dict) else {}
    unknown = sorted(block.keys() - _KEYS)
    if unknown:
        findings.add("QB103", [f"quantization_config.{key}" for key in unknown])
    if block.get("quant_dtype", "int8") != "int8":
        findings.add("QB101", "quantization_config.quant_dtype", (f"smooth-quant {block['quant_dtype']}",))
    layers: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    for name, tensor in source.tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or len(tensor.shape) != 2 or tensor.dtype is not DType.I8 or 0 in tensor.shape:
            continue
        bias = source.tensors.get(f"{module}.bias")
        spec = Spec(
            name=module,
            out_features=tensor.shape[0],
            in_features=tensor.shape[1],
            weight=WEIGHT,
            scale_dtype=DType.F32,
            activation=ACTIVATION,
            bias=bias.dtype if bias else None,
        )
        layers[module] = (spec, layout(spec))
    return assemble(NAME, source, without_quantization(source.config), layers, findings)


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    slots = {
        "code": Slot(f"{spec.name}.weight", DType.I8, (spec.out_features, spec.in_features)),
        "scale": Slot(f"{spec.name}.scale", DType.F32, (spec.out_features, 1)),
    }
    if spec.bias is not None:
        slots["bias"] = Slot(f"{spec.name}.bias", spec.bias, (spec.out_features,))
    return slots


def config(model: Model) -> dict[str, Any]:
    """The block that LMDeploy 0.6.2 and 0.18.0 read alike."""
    return {"quant_method": METHOD, "quant_dtype": "int8"}


def _weights(spec: Spec, model: Model) -> Problem | None:
    weight = spec.weight
    if weight.type == "int" and weight.bits == 8 and weight.symmetric and not spec.g_idx:
        return None
    return Problem((f"weights {weight}{', act-order' if spec.g_idx else ''}",))


def _granularity(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.granularity is Granularity.CHANNEL:
        return None
    return Problem((f"scales per {spec.weight.granularity}, smooth-quant has one per output channel",))


def _one_per_channel(spec: Spec) -> Pass | None:
    return Broadcast() if spec.weight.granularity is Granularity.TENSOR else None


def _scale_dtype(spec: Spec, model: Model) -> Problem | None:
    if spec.scale_dtype is DType.F32:
        return None
    return Problem((f"scales are {spec.scale_dtype}, smooth-quant stores F32",))


def _to_float32(spec: Spec) -> Pass | None:
    return Recast(DType.F32) if survives(spec.scale_dtype, DType.F32) else None


def _activations(spec: Spec, model: Model) -> Problem | None:
    if spec.activation == ACTIVATION:
        return None
    is_ = f"activations are {spec.activation}" if spec.activation else "activations are not quantized"
    return Problem((f"{is_}, LMDeploy runs {ACTIVATION}",))


_LINEAR = "lmdeploy 0.18.0, pytorch/nn/linear/w8a8.py"
RULES: tuple[LayerRule | ModelRule, ...] = (
    LayerRule("QB110", _weights, _LINEAR),
    LayerRule("QB110", _granularity, _LINEAR, _one_per_channel),
    LayerRule("QB301", _scale_dtype, _LINEAR, _to_float32),
    LayerRule("QB203", _activations, "lmdeploy 0.18.0, pytorch/kernels/cuda/w8a8_triton_kernels.py"),
)
