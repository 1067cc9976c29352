"""How the experts of a layer are stored: one by one, or in tensors that all of them share; where a linear lies there.

lies          tensor                       shape         meaning (E experts, I intermediate size, H hidden size)
single        <X>.N.gate_proj.weight       [I, H]        and up_proj; down_proj is [H, I]; w1, w3, w2 of some classes
rows          <X>.gate_up_proj             [E, 2 I, H]   gate's rows before up's; <X>.down_proj [E, H, I]
columns       <X>.gate_up_proj             [E, H, 2 I]   gate's columns before up's; <X>.down_proj [E, I, H]
fused         as columns                                 even columns are gate's, odd ones up's (gpt-oss)
apart         <Y>.gate_proj.weight         [E, I, H]     and up_proj; down_proj is [E, H, I]; <X> is <Y>.experts

Sources: transformers 5.24.0, models/*/modeling_*.py, of which gpt_oss (GptOssExperts), llama4 (Llama4TextExperts),
gemma4 (Gemma4TextExperts), and conversion_mapping.py: classes that have no converter for single experts (llama4,
gpt_oss, gemma4, qwen3_vl_moe, step3p7) know shared tensors alone, `ModelClass.fused_experts`; all others know both,
qwen2_moe and mixtral as rows (MergeModulelist, Concatenate(dim=1): gate or w1 first).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.model_class import FusedExperts
from qbridge.codecs.arrays import TRANSPOSED, Concatenated, Interleaved
from qbridge.ir.dtypes import DType
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import DENSE
from qbridge.ir.slots import PLAIN, Codec, Slice, Slot

INTERLEAVED, BY_COLUMNS, BY_ROWS, APART, SINGLE = "fused", "columns", "rows", "apart", "single"
LIES: Mapping[str, str] = {  # in words
    SINGLE: "one by one",
    BY_ROWS: "fused by rows",
    BY_COLUMNS: "fused by columns",
    APART: "fused, each linear by itself",
    INTERLEAVED: "fused in turns",
}
FUSED, SEPARATE = "fused", "separate"  # what may be asked for: tensors as the class has them, or single ones
LINEARS: Mapping[str, tuple[str, ...]] = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
LEAVES = ("gate_proj", "up_proj", "down_proj")
_OTHER_LEAVES = ("w1", "w3", "w2")  # the same three, of Mixtral and its like
_SINGLE = re.compile(r"(.+\.experts)\.(0|[1-9]\d{0,5})\.(\w+)")
_STACK_APART = re.compile(r"(.+)\.(gate_proj|up_proj|down_proj)\.weight")
_SHARED = re.compile(r"(.+\.experts)\.(?:gate_up_proj|gate_proj|up_proj|down_proj)\w*")


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

    def weight(self, lies: str, dtype: DType, dims: tuple[int, int]) -> Slot:
        """The slot of an unquantized weight of `dims`, [out, in], in tensors that lie so."""
        if lies == APART:
            leaf = LINEARS[self.fused][self.turn]
            own = Slice(f"{self.block.removesuffix('.experts')}.{leaf}.weight", self.expert, dims)
            return Slot(own.name, dtype, dims, PLAIN, own)
        rows, columns = dims[0] * self.turns, dims[1]
        if lies == BY_ROWS:
            return self.slot("", dtype, (rows, columns), interleaved=False)
        return self.slot("", dtype, (columns, rows), TRANSPOSED, interleaved=lies == INTERLEAVED)


def place_of(module: str) -> Place | None:
    """Where a linear of that name belongs; None if it is none of an expert's."""
    match = _SINGLE.fullmatch(module)
    for fused, leaves in LINEARS.items():
        if match and match[3] in leaves:
            return Place(match[1], fused, int(match[2]), leaves.index(match[3]))
    return None


def lies_of(fused: FusedExperts | None) -> str:
    """How the shared tensors of a class lie, of one that knows single experts as well where there is no row."""
    if fused is None:
        return BY_ROWS
    if fused.apart:
        return APART
    return INTERLEAVED if fused.interleaved else BY_COLUMNS if fused.transposed else BY_ROWS


def under_class_name(module: str, architecture: Architecture) -> str:
    """The name that a class has for a linear of a single expert that goes by another class's; any other as it is."""
    match = _SINGLE.fullmatch(module)
    if match is None or not architecture.known:
        return module
    own = leaves_of(architecture)
    other = _OTHER_LEAVES if own == LEAVES else LEAVES
    return f"{match[1]}.{match[2]}.{own[other.index(match[3])]}" if match[3] in other else module


def is_of_other_block(module: str, architecture: Architecture) -> bool:
    """Whether a linear of an expert lies in a block that the class has under another name.

    transformers calls block_sparse_moe mlp in memory (conversion_mapping.py, mixtral).
    """
    return architecture.row.mlp == "block_sparse_moe" and ".block_sparse_moe." not in module


def leaves_of(architecture: Architecture) -> tuple[str, str, str]:
    """What gate, up and down of a single expert are called in a class."""
    return _OTHER_LEAVES if architecture.split.columns >= {"w1"} else LEAVES


@dataclass(frozen=True, slots=True)
class Experts:
    """The unquantized experts of a layer: where they are and how they lie.

    `block` ends in experts. `sizes` are the intermediate and the hidden one. `leaves` are what gate, up and down are
    called one by one; `stored` has the names on disk of those that have another there.
    """

    block: str
    lies: str
    count: int
    sizes: tuple[int, int]
    dtype: DType
    leaves: tuple[str, str, str] = LEAVES
    stored: Mapping[str, str] = field(default_factory=dict)

    def linears(self) -> Iterator[tuple[str, tuple[int, int], Slot]]:
        """(name, dims [out, in], slot of the weight) of every linear, under the names that all classes share."""
        for expert in range(self.count):
            for number, leaf in enumerate(LEAVES):
                name = f"{self.block}.{expert}.{leaf}"
                dims = self.sizes if leaf != "down_proj" else self.sizes[::-1]
                place = place_of(name)
                if place is None or self.lies == SINGLE:
                    tensor = f"{self.block}.{expert}.{self.leaves[number]}.weight"
                    yield name, dims, Slot(self.stored.get(tensor, tensor), self.dtype, dims)
                else:
                    yield name, dims, place.weight(self.lies, self.dtype, dims)

    def as_dict(self) -> dict[str, Any]:
        """What leads back to these tensors from where the linears are later."""
        return {"lies": self.lies, "leaves": list(self.leaves), "stored": dict(self.stored)}

    def back(self, recorded: Mapping[str, Any], name_of: Callable[[str], str]) -> Experts:
        """The experts as `as_dict` recorded them, their block under its former name.

        LookupError, TypeError or ValueError for what is no such record.
        """
        gate, up, down = map(str, recorded["leaves"])
        lies, stored = str(recorded["lies"]), {str(k): str(v) for k, v in recorded["stored"].items()}
        if lies not in (BY_COLUMNS, BY_ROWS, APART, SINGLE):
            raise ValueError(f"experts lie as {lies!r}")
        return replace(self, block=name_of(self.block), lies=lies, leaves=(gate, up, down), stored=stored)

    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors by the names that engines know."""
        found: dict[str, TensorInfo] = {}
        known = {stored: name for name, stored in self.stored.items()}
        for _, _, slot in self.linears():
            name = slot.slice.tensor if slot.slice else slot.tensor
            shape = (self.count, *slot.slice.shape) if slot.slice else slot.shape
            found.setdefault(known.get(name, name), TensorInfo(self.dtype, shape, name))
        return found


def unquantized_experts(model: Model) -> dict[str, Experts]:
    """By block, the experts of a model that are not quantized and that are there whole, in the tensors' order.

    Blocks with biases, of experts without a gate, or of which some linears are quantized are left out.
    """
    return {block: experts for block, experts in _blocks(model).items() if experts is not None}


def unrecognized_experts(model: Model) -> list[str]:
    """The blocks that `unquantized_experts` leaves out."""
    return [block for block, experts in _blocks(model).items() if experts is None]


def rearrangements(model: Model, ask: Callable[[str], str]) -> dict[str, tuple[Experts, Experts | str]]:
    """By block, unquantized experts that lie otherwise than they should, and as they should, or why not known.

    `ask` gives, of how they lie, FUSED, SEPARATE, or an empty string where that will do.
    """
    found: dict[str, tuple[Experts, Experts | str]] = {}
    for block, experts in unquantized_experts(model).items():
        if how := ask(experts.lies):
            wanted = as_class_stores(experts, how, Architecture.of_model(model), model.tensors)
            if isinstance(wanted, str) or wanted.lies != experts.lies:
                found[block] = experts, wanted
    return found


def _blocks(model: Model) -> dict[str, Experts | None]:
    """The experts by block, None for those that are not known; worked out once."""
    return model.once("experts", lambda: _find_blocks(model))


def _find_blocks(model: Model) -> dict[str, Experts | None]:
    held: dict[str, dict[str, TensorInfo]] = {}
    for name, info in model.tensors.items():
        if block := _block_of(name, info):
            held.setdefault(block, {})[name] = info
    split = {name.partition(".experts.")[0] + ".experts" for name in model.specs if ".experts." in name}
    return {block: None if block in split else _recognized(block, tensors) for block, tensors in held.items()}


def _block_of(name: str, info: TensorInfo) -> str:
    """The block of experts that a tensor belongs to; empty if there is none."""
    if ".experts." not in name and ".moe." not in name:  # the names of most tensors are not looked at any further
        return ""
    module, _, leaf = name.rpartition(".")
    if match := _SINGLE.fullmatch(module):
        return match[1]
    apart = _STACK_APART.fullmatch(name) if leaf == "weight" and len(info.shape) == 3 else None
    if apart:
        return apart[1] if apart[1].endswith(".experts") else f"{apart[1]}.experts"
    shared = _SHARED.fullmatch(name)
    return shared[1] if shared else ""


def _recognized(block: str, tensors: Mapping[str, TensorInfo]) -> Experts | None:
    """The experts that some tensors are, exactly; None if they are none that are whole, unquantized and alike."""
    dtypes = {info.dtype for info in tensors.values()}
    if len(dtypes) != 1 or not dtypes <= set(DENSE.values()):
        return None
    (dtype,) = dtypes
    for experts in _readings(block, tensors, dtype):
        wanted = experts.tensors()
        if {name: info.shape for name, info in wanted.items()} == {
            name: info.shape for name, info in tensors.items()
        }:
            return experts
    return None


def _shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in tensors.items()}


def _readings(block: str, tensors: Mapping[str, TensorInfo], dtype: DType) -> Iterator[Experts]:
    """What the tensors can be, by one or two of their shapes."""
    both, down = (tensors.get(f"{block}.{name}") for name in LINEARS)
    if both and down and len(both.shape) == len(down.shape) == 3:
        for lies, axes in ((BY_ROWS, (1, 2)), (BY_COLUMNS, (2, 1))):
            sizes = both.shape[axes[0]] // 2, both.shape[axes[1]]
            yield Experts(block, lies, both.shape[0], sizes, dtype)
    gate = tensors.get(f"{block.removesuffix('.experts')}.gate_proj.weight")
    if gate and len(gate.shape) == 3:
        yield Experts(block, APART, gate.shape[0], (gate.shape[1], gate.shape[2]), dtype)
    stored = {name: info.stored for name, info in tensors.items() if name != info.stored}
    for leaves in (LEAVES, _OTHER_LEAVES):
        first = tensors.get(f"{block}.0.{leaves[0]}.weight")
        if first and len(first.shape) == 2:
            sizes = first.shape[0], first.shape[1]
            yield Experts(block, SINGLE, len(tensors) // len(leaves), sizes, dtype, leaves, stored)


def as_transformers(model: Model, lies: str) -> str:
    """What transformers needs of unquantized experts that lie so: FUSED where it knows no single ones, or no such."""
    return "" if lies == SINGLE and Architecture.of_model(model).fused_experts is None else FUSED


def as_class_stores(
    experts: Experts, how: str, architecture: Architecture, others: Collection[str] = ()
) -> Experts | str:
    """The experts as `how` (FUSED, SEPARATE) stores them in a class, or why that is not known.

    `others` are names of tensors that are taken.
    """
    fused = architecture.fused_experts
    if not architecture.known or architecture.row.expert_block:
        return f"how {architecture.name or 'the model'} stores experts otherwise is not known"
    if fused is not None and (fused.biased or fused.interleaved):
        return f"experts of {architecture.name} are stored in one way only"
    if how == SEPARATE:
        changed = Experts(experts.block, SINGLE, experts.count, experts.sizes, experts.dtype, leaves_of(architecture))
    else:
        changed = Experts(experts.block, lies_of(fused), experts.count, experts.sizes, experts.dtype)
    taken = changed.tensors().keys() & (set(others) - experts.tensors().keys())
    return f"{min(taken)} is there already" if taken else changed
