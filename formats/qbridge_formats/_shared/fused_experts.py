"""Experts of classes that want those of a layer in two tensors: whether they fit together.

gate_up_proj holds gate_proj and up_proj of every expert, down_proj holds down_proj. Each tensor and its bias has the
experts as its first axis; `architecture.model_class.FusedExperts` says how the output features lie. Source:
transformers 5.24.0, models/*/modeling_*.py: gpt_oss (GptOssExperts), llama4 (Llama4TextExperts), gemma4
(Gemma4TextExperts), and conversion_mapping.py (qwen3_vl_moe, step3p7), which has no converter for single ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.experts import LINEARS, Place, place_of
from qbridge.architecture.names import is_routed, module_of
from qbridge.formats.rules import Problem
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model

ARCHITECTURE = "GptOssForCausalLM"
_PER_EXPERT = sum(map(len, LINEARS.values()))


def unfusable(model: Model) -> Iterator[Problem]:
    """Experts that do not make up fused tensors: other linears, some are missing, or they are not alike."""
    architecture = Architecture.of_model(model)
    biased = architecture.fused_experts is None or architecture.fused_experts.biased  # none: gpt-oss alone has such
    plain = tuple(name for name in model.tensors if place_of(module_of(name)[0]))
    if plain:
        yield Problem(("it is of an expert that is not quantized, and has no fused tensor",), where=plain)
    odd = tuple(name for name in model.specs if is_routed(name) and place_of(name) is None)
    if odd:
        yield Problem((f"no linear of an expert of {model.architecture}",), where=odd)
    blocks: dict[str, dict[Place, Spec]] = {}
    for name, spec in model.specs.items():
        place = place_of(name)
        if place:
            blocks.setdefault(place.block, {})[place] = spec
    for block, found in blocks.items():
        count = architecture.experts or 1 + max(place.expert for place in found)
        inside = sum(place.expert < count for place in found)
        if not len(found) == inside == count * _PER_EXPERT:
            fact = f"{inside} of the {count * _PER_EXPERT} linears of its {count} experts are quantized"
            yield Problem((fact, f"{len(found) - inside} of other experts"), where=(block,))
        for fused in LINEARS:
            kinds = {(spec.dims, spec.bias) for place, spec in found.items() if place.fused == fused}
            if len(kinds) > 1:
                yield Problem(("its experts differ in dims or bias",), where=(f"{block}.{fused}",))
            elif any((bias is not None) != biased for _, bias in kinds):
                fact = "no bias" if biased else f"a bias, which those of {model.architecture} have not"
                yield Problem((f"its experts have {fact}",), where=(f"{block}.{fused}",))
