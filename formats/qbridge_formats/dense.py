"""dense: no quantization, the weights themselves, as any library loads them. Written, never read.

tensor       dtype                           shape    meaning (N = out_features, K = in_features)
<L>.weight   float16 | bfloat16 | float32    [N, K]   each weight rounded once from its exact value, to nearest even
<L>.bias     model dtype                     [N]      as it was

Experts of classes that have those of a layer fused, as `fused_experts` says (E = experts, I = intermediate size, H =
hidden size):

<X>.gate_up_proj  [E, H, 2 I]   transposed, gate's columns before up's; of gpt-oss even ones are gate's, odd ones up's
               or [E, 2 I, H]   gate's rows before up's
<X>.down_proj     [E, I, H]     transposed, or [E, H, I]; both have a _bias in gpt-oss, [E, 2 I] and [E, H]

<Y>.gate_proj.weight, up_proj and down_proj   [E, I, H] and [E, H, I] of Step-3.5, <X> without its last name

config.json has no quantization block. Unquantized tensors keep their dtype and bytes. Source: transformers 5.23.0,
modeling_utils.py (from_pretrained casts every tensor to the dtype that config.json names).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.config import compute_dtype
from qbridge.architecture.experts import INTERLEAVED, as_transformers, lies_of, place_of
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.common_rules import no_kv_scales
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.plain import plain_layout
from qbridge.ir.scheme import DENSE
from qbridge.ir.slots import Slot
from qbridge.passes.dequantize import NAMES, Dequantize
from qbridge.source.reader import Source
from qbridge_formats._shared.fused_experts import unfusable

NAME = "dense"
SUMMARY = "plain bfloat16, float16 or float32 weights, rounded once (--dtype); written, never read"
ALIASES: tuple[str, ...] = ()
WRITE_ONLY = True
KEEPS_INPUT_DETAILS = True  # inputs are not quantized any more, in whatever detail they were
TAKES_COMPUTED_WEIGHTS = True  # each is rounded once, like any other


def sniff(source: Source) -> Match | str:
    """None: there is nothing in a dense checkpoint to convert."""
    return "dense checkpoints have no codes to read"


def read(source: Source, findings: Findings) -> Model:
    """No layer at all (QB010)."""
    return assemble(NAME, source, source.config, {}, findings)


def layout(spec: Spec) -> dict[str, Slot]:
    """The tensors of the table above."""
    lies = dict(spec.dialect).get("experts")
    place = place_of(spec.name) if lies else None
    if place and lies:
        found = {"code": place.weight(lies, DENSE[spec.weight.type], spec.dims)}
        rows = (spec.out_features * place.turns,)
        bias = spec.bias and place.slot("_bias", spec.bias, rows, interleaved=lies == INTERLEAVED)
        return {**found, "bias": bias} if bias else found
    return plain_layout(spec)


def settle(model: Model) -> Model:
    """Experts of classes that have them fused go into fused tensors; every other layer stands for itself."""
    fused = Architecture.of_model(model).fused_experts
    if fused is None:
        return model
    lies = lies_of(fused)
    specs = {
        name: replace(spec, dialect=(("experts", lies),)) for name, spec in model.specs.items() if place_of(name)
    }
    return replace(model, specs={**model.specs, **specs})


def config(model: Model) -> dict[str, Any]:
    """No block."""
    return {}


def experts(model: Model, lies: str) -> str:
    """Shared tensors for classes of which transformers knows those alone, and as it knows them."""
    return as_transformers(model, lies)


def _dtype(model: Model) -> DType:
    """The dtype to round to: the one that config.json computes in, or bfloat16."""
    found = compute_dtype(model.config, DType.BF16)
    return found if found in NAMES else DType.BF16


def _quantized(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.is_dense else Problem((f"weights {spec.weight}",))


def _unfusable(model: Model) -> Iterator[Problem]:
    """Experts that transformers would not find in its fused tensors."""
    if Architecture.of_model(model).fused_experts:
        yield from unfusable(model)


RULES: tuple[Rule, ...] = (
    ModelRule("QB110", _unfusable, "transformers 5.24.0, models/*/modeling_*.py and conversion_mapping.py"),
    LayerRule("QB110", _quantized, "what dense means", lambda spec, model: Dequantize(_dtype(model))),
    no_kv_scales("transformers 5.23.0, cache_utils.py: no cache takes stored scales"),
)
