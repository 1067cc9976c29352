"""Whether a tensor of one checkpoint has its place taken in another, which may fuse linears or experts otherwise."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from qbridge.architecture.names import canonical_tensor, module_of
from qbridge.architecture.prefixes import modules_of

# Linears that some save as one and others apart. transformers 5.24.0, models/*/modeling_*.py and
# conversion_mapping.py; vllm 0.33.0, models/*.py (packed_modules_mapping).
_FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("q", "k", "v", "q_proj", "k_proj", "v_proj"),
    "kv_proj": ("k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13": ("w1", "w3"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
}
_WHOLE = {part: [fused for fused, parts in _FUSED.items() if part in parts] for ps in _FUSED.values() for part in ps}
# Buffers that old tools store and no engine reads.
_BUFFERS = frozenset({"inv_freq", "position_ids", "masked_bias", "rotary_emb"})


class Places:
    """The modules of a checkpoint, to be asked whether a tensor of another one has its place there."""

    def __init__(self, modules: Iterable[str], tensors: Collection[str]) -> None:
        """`modules` are the quantized ones, `tensors` the names of all unquantized tensors."""
        self._quantized = frozenset(modules)
        self._tensors = frozenset(map(canonical_tensor, tensors))
        self._modules = self._quantized | {module_of(name)[0] for name in self._tensors}
        self._experts: dict[str, bool] = {}  # by block, whether each expert has tensors of its own
        for name in (*(f"{module}." for module in self._modules), *self._tensors):
            block, inner, rest = _experts(name)
            if inner:
                self._experts[block] = self._experts.get(block, False) or rest[:1].isdigit()

    def take(self, tensor: str) -> bool:
        """Whether a tensor, or what stands for it, is there; true too for a buffer that no engine reads."""
        name = canonical_tensor(tensor)
        module = module_of(name)[0]
        if name in self._tensors or module in self._quantized or not _BUFFERS.isdisjoint(name.split(".")):
            return True
        block, inner, rest = _experts(name)
        if inner and block in self._experts and self._experts[block] != rest[:1].isdigit():
            return True
        parent, dot, last = module.rpartition(".")
        others = (*_FUSED.get(last, ()), *_WHOLE.get(last, ()))
        return any(f"{parent}{dot}{other}" in self._modules for other in others)


def _experts(name: str) -> tuple[str, str, str]:
    """(block of experts, `experts`, what follows) of a name; the last two are empty if it lies in none."""
    block, inner, rest = name.partition(".experts.")
    return block, inner and "experts", rest


def outermost(names: Iterable[str], others: Iterable[str]) -> dict[str, list[str]]:
    """By the outermost module below which `others` have nothing, the names that lie there; a name alone by itself."""
    taken = frozenset(others)
    inner = taken | modules_of(taken)
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        heads = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
        found.setdefault(next((head for head in heads if head not in inner), name), []).append(name)
    return found
