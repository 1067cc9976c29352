"""How llama.cpp calls a model's tensors and numbers, and back: `gguf_classes` has the classes that are known.

Sources: gguf 0.19.0, constants.py (Keys) and tensor_mapping.py; llama.cpp b10359, conversion/base.py
(TextModel.set_gguf_parameters).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qbridge.architecture.gguf_classes import CLASSES, ROUTER, TOP, GgufClass
from qbridge.architecture.gguf_experts import size
from qbridge.architecture.gguf_rope import Number, llama3_factors
from qbridge.architecture.names import module_of

ROPE_FACTORS = "rope_freqs.weight"  # the tensor of the factors of Llama 3
KV_B = "self_attn.kv_b_proj"  # keys and values of heads, of which ggml has two tensors
_SHARES = ("attn_k_b", "attn_v_b")
_IN_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,5})\.(.+)")
_EXPERT = re.compile(r"((?:mlp|block_sparse_moe)\.experts)\.(0|[1-9]\d{0,5})\.(\w+)")
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(\w+)")


@dataclass(frozen=True, slots=True)
class GgufPlace:
    """Where a module lies: `name` without its ending; `expert` of a stack, or -1; rows of `head` take turns, or 0."""

    name: str
    expert: int = -1
    head: int = 0


@dataclass(frozen=True, slots=True)
class HeadsPlace:
    """Where a share of the rows of each head lies: `name` without its ending; [heads, columns, rows] if `turned`."""

    name: str
    turned: bool


@dataclass(frozen=True, slots=True)
class HeadsSplit:
    """A module that is several tensors: of each head, `counts` rows for each of the `places`."""

    heads: int
    counts: tuple[int, ...]
    places: tuple[HeadsPlace, ...]


class GgufNames:
    """The names of a model in GGUF, and its numbers, by its config.json; KeyError for a class that is not known."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """ValueError for sizes that are no numbers."""
        self.config = config
        named = config.get("architectures")
        self._class: GgufClass = CLASSES[str(named[0]) if isinstance(named, list) and named else ""]
        heads = size(config, "num_attention_heads")
        self.head = config.get("head_dim") or size(config, "hidden_size") // heads
        if type(self.head) is not int or self.head < 2 or self.head % 2:
            raise ValueError(f"head_dim is {self.head!r}, not an even number")

    @property
    def architecture(self) -> str:
        """The name of the class in llama.cpp."""
        return self._class.name

    def place(self, module: str) -> GgufPlace | None:
        """Where a module lies; None if the class has no place for it."""
        if module in TOP:
            return GgufPlace(TOP[module])
        match = _IN_LAYER.fullmatch(module)
        if match is None:
            return None
        if expert := _EXPERT.fullmatch(match[2]):
            stack = self._class.stacks.get(expert[3]) if expert[1] == self._class.experts else None
            return GgufPlace(f"blk.{match[1]}.{stack}", int(expert[2])) if stack else None
        own = self._class.modules.get(match[2])
        paired = self._class.pairs_rows and own in ("attn_q", "attn_k")
        return GgufPlace(f"blk.{match[1]}.{own}", head=self.head if paired else 0) if own else None

    def tensor(self, name: str) -> tuple[GgufPlace, str] | None:
        """(place, leaf) of an unquantized tensor; None if the class has no place for it."""
        module, leaf = module_of(name)
        match = _IN_LAYER.fullmatch(name)
        if match and match[2] in self._class.tensors:
            own, _, leaf = self._class.tensors[match[2]].rpartition(".")
            return GgufPlace(f"blk.{match[1]}.{own}"), leaf
        place = self.place(module)
        return (place, leaf) if place else None

    def split(self, module: str) -> HeadsSplit | None:
        """How a module becomes several tensors; None for one that does not."""
        match = _IN_LAYER.fullmatch(module)
        if not (match and match[2] == KV_B and self._class.splits_heads):
            return None
        keys, values = (f"blk.{match[1]}.{share}" for share in _SHARES)
        places = HeadsPlace(keys, True), HeadsPlace(values, False)
        counts = size(self.config, "qk_nope_head_dim"), size(self.config, "v_head_dim")
        return HeadsSplit(size(self.config, "num_attention_heads"), counts, places)

    def module_of(self, name: str) -> tuple[str, bool] | None:
        """(module, whether it is a stack of experts) that a name in GGUF, without its ending, stands for."""
        return module_of_gguf(name, self._class)

    def share_of(self, name: str) -> tuple[str, int] | None:
        """(module, number of its share) of a name in GGUF, without its ending, that has some of each head's rows."""
        match = _BLOCK.fullmatch(name)
        if not (match and self._class.splits_heads and match[2] in _SHARES):
            return None
        return f"model.layers.{match[1]}.{KV_B}", _SHARES.index(match[2])

    def tensor_of(self, name: str) -> str | None:
        """The name in transformers of a tensor that is no weight or bias of a module there; None for any other."""
        match = _BLOCK.match(name)
        tensors = {own: tensor for tensor, own in self._class.tensors.items()}
        rest = name[match.end(1) + 1 :] if match else ""
        return f"model.layers.{match[1]}.{tensors[rest]}" if match and rest in tensors else None

    def is_router(self, place: GgufPlace) -> bool:
        """Whether a place is that of the weights that choose experts, which llama.cpp has as float32."""
        return place.name.endswith(f".{ROUTER}")

    def adds_one(self, module: str) -> bool:
        """Whether the weights of a module are those of transformers plus 1."""
        return self._class.adds_one and module.endswith("norm")

    def numbers(self) -> dict[str, Number]:
        """The metadata that llama.cpp builds the model from; ValueError for what it has no word for."""
        found: dict[str, Number] = {
            "block_count": size(self.config, "num_hidden_layers"),
            "context_length": size(self.config, "max_position_embeddings"),
            "embedding_length": size(self.config, "hidden_size"),
            "feed_forward_length": size(self.config, "intermediate_size"),
            "attention.head_count": size(self.config, "num_attention_heads"),
            "attention.head_count_kv": self.config.get("num_key_value_heads")
            or size(self.config, "num_attention_heads"),
            "attention.layer_norm_rms_epsilon": float(self.config.get("rms_norm_eps") or 1e-6),
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "rope.dimension_count": self.head,
            "vocab_size": size(self.config, "vocab_size"),
            **self._class.numbers(self.config, self.head),
        }
        self._check_unsaid()
        return {f"{self.architecture}.{key}": value for key, value in found.items()}

    @property
    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """What every frequency is divided by, float32 [head_dim / 2], where config.json says the rope of Llama 3.

        ValueError for factors that are no numbers.
        """
        return llama3_factors(self.config, self.head)

    def _check_unsaid(self) -> None:
        """ValueError for what config.json says and llama.cpp would not do."""
        computed = self._class.activation
        activation = self.config.get("hidden_activation") or self.config.get("hidden_act", computed[0])
        if activation not in computed:
            raise ValueError(f"hidden_act is {activation!r}, llama.cpp computes {computed[0]}")
        if self.config.get("use_sliding_window") or (
            self._class.pairs_rows and self.config.get("sliding_window") is not None
        ):
            raise ValueError("a sliding window, which llama.cpp does not apply for this class")
        if self.rope_factors is not None and self.architecture != "llama":
            raise ValueError("the rope of Llama 3, which llama.cpp has for that class alone")


_KEYS: Mapping[str, str] = {  # of config.json, by the keys of the metadata
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_MODEL_TYPES: Mapping[str, str] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
_ASSUMED = ("vocab_size", "rope.dimension_count", "attention.value_length")


def config_of(metadata: Mapping[str, Any], vocabulary: int, tied: bool) -> dict[str, Any]:
    """config.json of a model by the metadata of its files; ValueError for one that this does not describe in full.

    `vocabulary` is how many tokens its embedding has, `tied` whether that is its head, too.
    """
    name = str(metadata.get("general.architecture"))
    if name not in _MODEL_TYPES:
        raise ValueError(f"general.architecture is {name!r}: known are {', '.join(_MODEL_TYPES)}")
    said = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    if name == "llama" and said.get("expert_count"):
        raise ValueError("experts of general.architecture 'llama' are not described here")
    found = {own: said[key] for key, own in _KEYS.items() if key in said}
    if unknown := sorted(said.keys() - _KEYS.keys() - set(_ASSUMED)):
        raise ValueError(f"{name}.{unknown[0]} has no counterpart here")
    head = found.setdefault("head_dim", _quotient(found, "hidden_size", "num_attention_heads"))
    for key in ("rope.dimension_count", "attention.value_length"):
        if said.get(key, head) != head:
            raise ValueError(f"{name}.{key} is {said[key]}, head_dim {head}")
    found["rms_norm_eps"] = _shortest(found.get("rms_norm_eps"))
    return {
        "architectures": [class_of(name)],
        "model_type": _MODEL_TYPES[name],
        "hidden_act": "silu",
        **found,
        **({"norm_topk_prob": True} if name == "qwen3moe" else {}),
        **({"vocab_size": vocabulary} if vocabulary else {}),
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",  # that of the scales of most blocks
        **{
            f"{own}_token_id": metadata[f"tokenizer.ggml.{own}_token_id"]
            for own in ("bos", "eos")
            if f"tokenizer.ggml.{own}_token_id" in metadata
        },
    }


def _quotient(config: Mapping[str, Any], whole: str, parts: str) -> int:
    try:
        return int(config[whole]) // int(config[parts])
    except (KeyError, ZeroDivisionError, TypeError, ValueError):
        raise ValueError(f"there is no {whole} or {parts}") from None


def _shortest(value: Any) -> float:
    """A float32 by the shortest decimal number that is that float32: 1e-05, not 9.999999747378752e-06."""
    if type(value) is not float:
        raise ValueError("there is no rms_norm_eps")
    return float(f"{value:.7g}")


def known_classes() -> Collection[str]:
    """The model classes whose names are known."""
    return CLASSES.keys()


def class_of(architecture: str) -> str:
    """The model class that a name of llama.cpp stands for, the first one of several; KeyError for any other."""
    found = next((known for known, row in CLASSES.items() if row.name == architecture), None)
    if found is None:
        raise KeyError(architecture)
    return found


def module_of_gguf(name: str, row: GgufClass) -> tuple[str, bool] | None:
    """As `GgufNames.module_of`, of a class whose sizes are not known."""
    top = {own: module for module, own in TOP.items()}
    if name in top:
        return top[name], False
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    layer = f"model.layers.{match[1]}."
    stacks = {own: leaf for leaf, own in row.stacks.items()}
    if match[2] in stacks:
        return f"{layer}{row.experts}.{stacks[match[2]]}", True
    modules = {own: module for module, own in row.modules.items()}
    return (layer + modules[match[2]], False) if match[2] in modules else None
