"""What module and tensor names mean: embeddings, heads, decoder linears, fused groups.

Names are those of transformers' model files (5.23.0, models/*/modeling_*.py); nothing here looks at data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qbridge.ir import TensorInfo

EMBEDDINGS = frozenset(
    {"embed_tokens", "embed_positions", "wte", "wpe", "word_embeddings", "tok_embeddings", "embed_in"}
)
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
HEADS = frozenset({"lm_head", "embed_out", "output", "score"})

# Tensors of ordinary modules besides weight and bias.
KNOWN_LEAVES = frozenset(
    {
        "weight",
        "bias",
        "inv_freq",  # buffers of old rotary embeddings
        "e_score_correction_bias",  # DeepSeek routers
        "sinks",  # gpt-oss attention
        "A_log",  # state-space blocks
        "D",
        "dt_bias",
    }
)

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}

_DECODER = re.compile(r"(?:^|\.)layers\.\d+\.")


def module_of(tensor: str) -> tuple[str, str]:
    """(module, leaf) of a tensor name."""
    module, _, leaf = tensor.rpartition(".")
    return module, leaf


def is_embedding(module: str) -> bool:
    """Whether the module is a lookup table, by its last name."""
    return module.rpartition(".")[2] in EMBEDDINGS


def is_head(module: str) -> bool:
    """Whether the module maps hidden states to the vocabulary, by its last name."""
    return module.rpartition(".")[2] in HEADS


def is_router(module: str) -> bool:
    """Whether the module chooses experts, by its last name; transformers 5 has them as no Linear."""
    return module.rpartition(".")[2] in ROUTERS


def is_decoder_linear(module: str) -> bool:
    """Whether the module is a projection inside a decoder layer (routers are not)."""
    return bool(_DECODER.search(module)) and module.endswith("_proj")


def dense_linears(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Modules whose weight is an unquantized matrix that is no embedding, in the tensors' order."""
    found = []
    for name, info in tensors.items():
        module, leaf = module_of(name)
        if leaf == "weight" and len(info.shape) == 2 and info.dtype.is_float and not is_embedding(module):
            found.append(module)
    return found


def unknown_tensors(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Tensors that are no float weight, bias or known buffer of an ordinary module."""
    return [
        name for name, info in tensors.items() if module_of(name)[1] not in KNOWN_LEAVES or not info.dtype.is_float
    ]


def natural(names: Iterable[str]) -> list[str]:
    """Names in reading order: layer 2 before layer 10."""

    def key(name: str) -> list[tuple[str, int]]:
        parts = re.split(r"(\d+)", name)
        return [(text, int(number)) for text, number in zip(parts[::2], [*parts[1::2], "0"], strict=True)]

    return sorted(names, key=key)
