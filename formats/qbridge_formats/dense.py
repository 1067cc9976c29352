"""dense: no quantization, the weights themselves, as any library loads them. Written, never read.

tensor       dtype                           shape    meaning (N = out_features, K = in_features)
<L>.weight   float16 | bfloat16 | float32    [N, K]   each weight rounded once from its exact value, to nearest even
<L>.bias     model dtype                     [N]      as it was

config.json has no quantization block. Unquantized tensors keep their dtype and bytes. Source: transformers 5.23.0,
modeling_utils.py (from_pretrained casts every tensor to the dtype that config.json names).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qbridge.dtypes import DType
from qbridge.findings import Findings
from qbridge.formats import Match, assemble
from qbridge.hf_config import compute_dtype
from qbridge.ir import DENSE, Model, Spec
from qbridge.layout import Slot
from qbridge.passes.dequantize import NAMES, Dequantize
from qbridge.rules import LayerRule, ModelRule, Problem, Rule, no_kv_scales
from qbridge.source import Source
from qbridge.topology import is_routed

NAME = "dense"
SUMMARY = "plain bfloat16, float16 or float32 weights, rounded once (--dtype); written, never read"
ALIASES: tuple[str, ...] = ()
WRITE_ONLY = True
KEEPS_INPUT_DETAILS = True  # inputs are not quantized any more, in whatever detail they were


def sniff(source: Source) -> Match | str:
    """None: there is nothing in a dense checkpoint to convert."""
    return "dense checkpoints have no codes to read"


def read(source: Source, findings: Findings) -> Model:
    """No layer at all (QB010)."""
    return assemble(NAME, source, source.config, {}, findings)


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    slots = {"code": Slot(f"{spec.name}.weight", DENSE[spec.weight.type], spec.dims)}
    if spec.bias is not None:
        slots["bias"] = Slot(f"{spec.name}.bias", spec.bias, (spec.out_features,))
    return slots


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """No block."""
    return {}


def _dtype(model: Model) -> DType:
    """The dtype to round to: the one that config.json computes in, or bfloat16."""
    found = compute_dtype(model.config, DType.BF16)
    return found if found in NAMES else DType.BF16


def _quantized(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.is_dense else Problem((f"weights {spec.weight}",))


def _fused_experts(model: Model) -> Iterator[Problem]:
    """transformers has the experts of gpt-oss in tensors that all of them share, interleaved and transposed."""
    found = tuple(name for name in model.specs if is_routed(name))
    if found and model.architecture == "GptOssForCausalLM":
        yield Problem((f"{len(found)} experts that transformers wants in fused tensors",), where=found)


RULES: tuple[Rule, ...] = (
    ModelRule("QB110", _fused_experts, "transformers 5.17.0, models/gpt_oss/modeling_gpt_oss.py (GptOssExperts)"),
    LayerRule("QB110", _quantized, "what dense means", lambda spec, model: Dequantize(_dtype(model))),
    no_kv_scales("transformers 5.23.0, cache_utils.py: no cache takes stored scales"),
)
