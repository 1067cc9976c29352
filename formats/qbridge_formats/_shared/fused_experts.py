"""Experts of classes that want those of a layer in two tensors: what belongs where, whether they fit together.

gate_up_proj holds gate_proj and up_proj of every expert, down_proj holds down_proj. Each tensor and its bias has the
experts as its first axis; `architecture.model_class.FusedExperts` says how the output features lie. Source:
transformers 5.24.0, models/*/modeling_*.py: gpt_oss (GptOssExperts), llama4 (Llama4TextExperts), gemma4
(Gemma4TextExperts), and conversion_mapping.py (qwen3_vl_moe, step3p7), which has no converter for single ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_routed, module_of
from qbridge.codecs.arrays import Concatenated, Interleaved
from qbridge.formats.rules import Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.slots import PLAIN, Codec, Slice, Slot

ARCHITECTURE = "GptOssForCausalLM"
LINEARS: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
_PER_EXPERT = sum(map(len, LINEARS.values()))
_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9]\d{0,5})\.(\w+)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a linear of an expert is fused: `<block>.<fused>`, at the `expert` of its first axis, in turn `turn`."""

    block: str
    fused: str
    expert: int
    turn: int

    @property
    def turns(self) -> int:
        """How many linears share the tensor."""
        return len(LINEARS[self.fused])

    def slot(
        self,
        ending: str,
        dtype: DType,
        shape: tuple[int, ...],
        codec: Codec = PLAIN,
        lies_as: tuple[int, ...] = (),
        interleaved: bool = True,
    ) -> Slot:
        """The slot of a part: a slice of `shape`, the rows of all turns in it; the tensor has it as `lies_as`."""
        own = Slice(f"{self.block}.{self.fused}{ending}", self.expert, lies_as or shape)
        if self.turns > 1:
            kind = Interleaved if interleaved else Concatenated
            codec = kind(codec, self.turn, self.turns)
        return Slot(own.name, dtype, shape, codec, own)

    def slot_apart(self, dtype: DType, shape: tuple[int, ...]) -> Slot:
        """The slot of a weight in a tensor of one linear of all experts, beside their block."""
        leaf = LINEARS[self.fused][self.turn]
        own = Slice(f"{self.block.removesuffix('.experts')}.{leaf}.weight", self.expert, shape)
        return Slot(own.name, dtype, shape, PLAIN, own)


def place_of(module: str) -> Place | None:
    """Where a linear of that name belongs; None if it is none of an expert's."""
    match = _EXPERT.fullmatch(module)
    for fused, leaves in LINEARS.items():
        if match and match[3] in leaves:
            return Place(match[1], fused, int(match[2]), leaves.index(match[3]))
    return None


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
