"""dense: no quantization, the weights themselves, as any library loads them. Written, never read.

tensor       dtype                           shape    meaning (N = out_features, K = in_features)
<L>.weight   float16 | bfloat16 | float32    [N, K]   each weight rounded once from its exact value, to nearest even
<L>.bias     model dtype                     [N]      as it was

The experts of gpt-oss, as `_gpt_oss` says where they lie (E = experts, I = intermediate size, H = hidden size):

<X>.gate_up_proj  [E, H, 2 I], transposed, and its _bias [E, 2 I]: even columns are gate's, odd ones up's
<X>.down_proj     [E, I, H], transposed, and its _bias [E, H]

config.json has no quantization block. Unquantized tensors keep their dtype and bytes. Source: transformers 5.23.0,
modeling_utils.py (from_pretrained casts every tensor to the dtype that config.json names).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.config import compute_dtype
from qbridge.codecs.arrays import TRANSPOSED
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.common_rules import no_kv_scales
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import DENSE
from qbridge.ir.slots import Slot
from qbridge.passes.dequantize import NAMES, Dequantize
from qbridge.source.reader import Source
from qbridge_formats._shared.fused_experts import place_of, unfusable

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
    place = place_of(spec.name) if dict(spec.dialect).get("experts") == "fused" else None
    if place:
        rows, dtype = spec.out_features * place.turns, DENSE[spec.weight.type]
        found = {"code": place.slot("", dtype, (spec.in_features, rows), TRANSPOSED)}
        return found if spec.bias is None else {**found, "bias": place.slot("_bias", spec.bias, (rows,))}
    slots = {"code": Slot(f"{spec.name}.weight", DENSE[spec.weight.type], spec.dims)}
    if spec.bias is not None:
        slots["bias"] = Slot(f"{spec.name}.bias", spec.bias, (spec.out_features,))
    return slots


def settle(model: Model) -> Model:
    """The experts of gpt-oss go into fused tensors; every other layer stands for itself."""
    if not Architecture.of_model(model).fused_experts:
        return model
    fused = {
        name: replace(spec, dialect=(("experts", "fused"),)) for name, spec in model.specs.items() if place_of(name)
    }
    return replace(model, specs={**model.specs, **fused})


def config(model: Model) -> dict[str, Any]:
    """No block."""
    return {}


def _dtype(model: Model) -> DType:
    """The dtype to round to: the one that config.json computes in, or bfloat16."""
    found = compute_dtype(model.config, DType.BF16)
    return found if found in NAMES else DType.BF16


def _quantized(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.is_dense else Problem((f"weights {spec.weight}",))


def _unfusable(model: Model) -> Iterator[Problem]:
    """Experts of gpt-oss that transformers would not find in its fused tensors."""
    if Architecture.of_model(model).fused_experts:
        yield from unfusable(model)


RULES: tuple[Rule, ...] = (
    ModelRule("QB110", _unfusable, "transformers 5.17.0, models/gpt_oss/modeling_gpt_oss.py (GptOssExperts)"),
    LayerRule("QB110", _quantized, "what dense means", lambda spec, model: Dequantize(_dtype(model))),
    no_kv_scales("transformers 5.23.0, cache_utils.py: no cache takes stored scales"),
)
