"""The experts of gpt-oss: each has three linears, and transformers wants those of a layer fused into two tensors.

gate_up_proj holds gate_proj and up_proj of every expert, their output features in turns (gate's first), down_proj
holds down_proj. Each tensor and its bias has the experts as its first axis. Source: transformers 5.17.0,
models/gpt_oss/modeling_gpt_oss.py (GptOssExperts).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_routed, module_of
from qbridge.codecs.arrays import Interleaved
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
        """How many linears take turns."""
        return len(LINEARS[self.fused])

    def slot(
        self, ending: str, dtype: DType, shape: tuple[int, ...], codec: Codec = PLAIN, lies_as: tuple[int, ...] = ()
    ) -> Slot:
        """The slot of a part: a slice of `shape`, the rows of all turns in it; the tensor has it as `lies_as`."""
        own = Slice(f"{self.block}.{self.fused}{ending}", self.expert, lies_as or shape)
        return Slot(
            own.name, dtype, shape, Interleaved(codec, self.turn, self.turns) if self.turns > 1 else codec, own
        )


def place_of(module: str) -> Place | None:
    """Where a linear of that name belongs; None if it is none of an expert's."""
    match = _EXPERT.fullmatch(module)
    for fused, leaves in LINEARS.items():
        if match and match[3] in leaves:
            return Place(match[1], fused, int(match[2]), leaves.index(match[3]))
    return None


def unfusable(model: Model) -> Iterator[Problem]:
    """Experts that do not make up fused tensors: other linears, some are missing, or they are not alike."""
    plain = tuple(name for name in model.tensors if place_of(module_of(name)[0]))
    if plain:
        yield Problem(("it is of an expert that is not quantized, and has no fused tensor",), where=plain)
    odd = tuple(name for name in model.specs if is_routed(name) and place_of(name) is None)
    if odd:
        yield Problem(("no linear of an expert of gpt-oss",), where=odd)
    blocks: dict[str, dict[Place, Spec]] = {}
    for name, spec in model.specs.items():
        place = place_of(name)
        if place:
            blocks.setdefault(place.block, {})[place] = spec
    for block, found in blocks.items():
        count = Architecture.of_model(model).experts or 1 + max(place.expert for place in found)
        inside = sum(place.expert < count for place in found)
        if not len(found) == inside == count * _PER_EXPERT:
            fact = f"{inside} of the {count * _PER_EXPERT} linears of its {count} experts are quantized"
            yield Problem((fact, f"{len(found) - inside} of other experts"), where=(block,))
        for fused in LINEARS:
            kinds = {(spec.dims, spec.bias) for place, spec in found.items() if place.fused == fused}
            if len(kinds) > 1:
                yield Problem(("its experts differ in dims or bias",), where=(f"{block}.{fused}",))
            elif any(bias is None for _, bias in kinds):
                yield Problem(("its experts have no bias",), where=(f"{block}.{fused}",))
