"""How llama.cpp calls a model class, its tensors and its numbers, for the classes that are known here.

Sources: gguf 0.19.0, constants.py (MODEL_ARCH_NAMES, TENSOR_NAMES, Keys) and tensor_mapping.py; llama.cpp b10359,
conversion/llama.py (LlamaModel.permute), conversion/qwen.py and conversion/base.py (TextModel.set_gguf_parameters).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qbridge.architecture.config import rope
from qbridge.architecture.gguf_gemma import gemma3_numbers

LLAMA3 = "llama3"
ROPE_FACTORS = "rope_freqs.weight"  # the tensor of the factors of Llama 3
Number = int | float | str


@dataclass(frozen=True, slots=True)
class _Class:
    """What llama.cpp calls a class, and how its files differ from those of transformers.

    The rows of q and k of each head take turns (`pairs_rows`); the weights of norms are those plus 1 (`adds_one`).
    `layer` has the names of modules of a layer that are called otherwise than in other classes, `activation` what
    llama.cpp computes between gate and down.
    """

    name: str
    pairs_rows: bool = False
    adds_one: bool = False
    layer: Mapping[str, str] = field(default_factory=dict)
    activation: tuple[str, ...] = ("silu", "swish")

    @property
    def modules(self) -> Mapping[str, str]:
        """Names of the modules of a layer."""
        return {**_LAYER, **self.layer}


_CLASSES: Mapping[str, _Class] = {
    "LlamaForCausalLM": _Class("llama", pairs_rows=True),
    "MistralForCausalLM": _Class("llama", pairs_rows=True),
    "Qwen2ForCausalLM": _Class("qwen2"),
    "Qwen3ForCausalLM": _Class("qwen3"),
    "Qwen3MoeForCausalLM": _Class("qwen3moe"),
    "Gemma3ForCausalLM": _Class(
        "gemma3",
        adds_one=True,
        layer={
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        activation=("gelu_pytorch_tanh",),
    ),
}
_TOP: Mapping[str, str] = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_EXPERTS: Mapping[str, str] = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
_IN_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,5})\.(.+)")
_EXPERT = re.compile(r"mlp\.experts\.(0|[1-9]\d{0,5})\.(\w+)")
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(\w+)")


@dataclass(frozen=True, slots=True)
class GgufPlace:
    """Where a module lies: `name` without its ending; `expert` of a stack, or -1; rows of `head` take turns, or 0."""

    name: str
    expert: int = -1
    head: int = 0


class GgufNames:
    """The names of a model in GGUF, and its numbers, by its config.json; KeyError for a class that is not known."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """ValueError for sizes that are no numbers."""
        self.config = config
        named = config.get("architectures")
        self._class = _CLASSES[str(named[0]) if isinstance(named, list) and named else ""]
        heads = self._size("num_attention_heads")
        self.head = config.get("head_dim") or self._size("hidden_size") // heads
        if type(self.head) is not int or self.head < 2 or self.head % 2:
            raise ValueError(f"head_dim is {self.head!r}, not an even number")

    @property
    def architecture(self) -> str:
        """The name of the class in llama.cpp."""
        return self._class.name

    def place(self, module: str) -> GgufPlace | None:
        """Where a module lies; None if the class has no place for it."""
        if module in _TOP:
            return GgufPlace(_TOP[module])
        match = _IN_LAYER.fullmatch(module)
        if match is None:
            return None
        if expert := _EXPERT.fullmatch(match[2]):
            leaf = _EXPERTS.get(expert[2])
            return GgufPlace(f"blk.{match[1]}.{leaf}", int(expert[1])) if leaf else None
        own = self._class.modules.get(match[2])
        paired = self._class.pairs_rows and own in ("attn_q", "attn_k")
        return GgufPlace(f"blk.{match[1]}.{own}", head=self.head if paired else 0) if own else None

    def adds_one(self, module: str) -> bool:
        """Whether the weights of a module are those of transformers plus 1."""
        return self._class.adds_one and module.endswith("norm")

    def _size(self, key: str) -> int:
        value = self.config.get(key)
        if type(value) is not int or value < 1:
            raise ValueError(f"{key} is {value!r}")
        return value

    def numbers(self) -> dict[str, Number]:
        """The metadata that llama.cpp builds the model from; ValueError for what it has no word for."""
        found: dict[str, Number] = {
            "block_count": self._size("num_hidden_layers"),
            "context_length": self._size("max_position_embeddings"),
            "embedding_length": self._size("hidden_size"),
            "feed_forward_length": self._size("intermediate_size"),
            "attention.head_count": self._size("num_attention_heads"),
            "attention.head_count_kv": self.config.get("num_key_value_heads") or self._size("num_attention_heads"),
            "attention.layer_norm_rms_epsilon": float(self.config.get("rms_norm_eps") or 1e-6),
            "attention.key_length": self.head,
            "attention.value_length": self.head,
            "rope.dimension_count": self.head,
            "vocab_size": self._size("vocab_size"),
            **(gemma3_numbers(self.config, self.head) if self._class.adds_one else self._rope()),
            **self._experts(),
        }
        self._check_unsaid()
        if self.rope_factors is not None and not np.isfinite(self.rope_factors).all():
            raise ValueError("the rope of Llama 3 has factors that are no numbers")
        return {f"{self.architecture}.{key}": value for key, value in found.items()}

    def _rope(self) -> dict[str, Number]:
        theta, scaling, by_layer = rope(self.config)
        kind = (scaling or {}).get("rope_type", "default")
        if by_layer or kind not in ("default", "linear", "yarn", LLAMA3):
            raise ValueError(f"rope of type {kind!r} is not written here" if scaling else "rope differs by layer")
        found: dict[str, Number] = {"rope.freq_base": float(theta or 10000.0)}
        if scaling and kind in ("linear", "yarn"):
            found |= {"rope.scaling.type": str(kind), "rope.scaling.factor": float(scaling["factor"])}
        if scaling and kind == "yarn":
            found["rope.scaling.original_context_length"] = int(scaling["original_max_position_embeddings"])
            if unknown := scaling.keys() - {"rope_type", "factor", "original_max_position_embeddings"}:
                raise ValueError(f"rope of type yarn with {', '.join(sorted(unknown))} is not written here")
        return found

    @property
    def rope_factors(self) -> npt.NDArray[np.float32] | None:
        """What every frequency is divided by, float32 [head_dim / 2], where config.json says the rope of Llama 3.

        Its formula: transformers 5.24.0, modeling_rope_utils.py (_compute_llama3_parameters).
        """
        theta, scaling, by_layer = rope(self.config)
        if by_layer or not scaling or scaling.get("rope_type") != LLAMA3:
            return None
        factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
        context = float(scaling["original_max_position_embeddings"])
        exponents = np.arange(0, self.head, 2, dtype=np.float32) / np.float32(self.head)
        waves = 2 * np.pi * np.power(np.float32(theta or 10000.0), exponents).astype(np.float64)
        smooth = (context / waves - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        found = np.where(waves < context / high, 1.0, np.where(waves > context / low, factor, between))
        return found.astype(np.float32)

    def _experts(self) -> dict[str, Number]:
        if self.architecture != "qwen3moe":
            return {}
        return {
            "expert_count": self._size("num_experts"),
            "expert_used_count": self._size("num_experts_per_tok"),
            "expert_feed_forward_length": self._size("moe_intermediate_size"),
        }

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
        if self.architecture == "qwen3moe":
            if self.config.get("decoder_sparse_step", 1) != 1 or self.config.get("mlp_only_layers"):
                raise ValueError("layers without experts among those with")
            if self.config.get("norm_topk_prob") is False:
                raise ValueError("norm_topk_prob is false, llama.cpp normalises the weights of experts")


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
        "vocab_size": vocabulary,
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
    return _CLASSES.keys()


def class_of(architecture: str) -> str:
    """The model class that a name of llama.cpp stands for, the first one of several; KeyError for any other."""
    found = next((known for known, row in _CLASSES.items() if row.name == architecture), None)
    if found is None:
        raise KeyError(architecture)
    return found


def module_of_gguf(name: str, architecture: str) -> tuple[str, bool] | None:
    """(module, whether it is a stack of experts) that a name in GGUF, without its ending, stands for.

    `architecture` is the name of a class in llama.cpp that is known here.
    """
    modules = _CLASSES[class_of(architecture)].modules
    for module, own in _TOP.items():
        if own == name:
            return module, False
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    for module, own in modules.items():
        if own == match[2]:
            return f"model.layers.{match[1]}.{module}", False
    stacks = {own: leaf for leaf, own in _EXPERTS.items()}
    return (f"model.layers.{match[1]}.mlp.experts.{stacks[match[2]]}", True) if match[2] in stacks else None
