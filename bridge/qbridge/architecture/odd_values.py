"""Values of config.json, besides sizes, that no class can be built with: text for a number, too few layer types."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture

_LONGEST = 40  # characters of a value that are shown
_FLOATS = frozenset({"auto", "float16", "half", "bfloat16", "float32", "float", "float64", "double"})
_CHOSEN = "num_experts_per_tok"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and value > 0


def _is_not_negative(value: object) -> bool:
    return isinstance(value, int | float) and _is_number(value) and value >= 0


def _is_float_dtype(value: object) -> bool:
    named = str(value).removeprefix("torch.")
    return isinstance(value, str) and (named in _FLOATS or named.startswith("float8"))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


# Classes that are no other's by another name: vLLM and SGLang build what the class says, transformers the type.
_TYPES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "MixtralForCausalLM": "mixtral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "Phi3ForCausalLM": "phi3",
    "GptOssForCausalLM": "gpt_oss",
}
# What a key may hold besides null, which stands for the default of the class.
_TAKEN: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"), _is_not_negative),
    **dict.fromkeys(("max_position_embeddings", "rope_theta"), _is_positive),
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), _is_text),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), _is_object),
    **dict.fromkeys(("dtype", "torch_dtype"), _is_float_dtype),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), lambda value: isinstance(value, bool)),
}


def odd_values(architecture: Architecture) -> tuple[str, ...]:
    """What is wrong with the values that a text model's config gives, by key; nothing where they can be."""
    text = architecture.text
    odd = [f"{key} is {repr(text[key])[:_LONGEST]}" for key, taken in _TAKEN.items() if _is_odd(text.get(key), taken)]
    names = architecture.config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        odd.append(f"architectures is {repr(names)[:_LONGEST]}")
    return (*odd, *_miscounted(architecture))


def _is_odd(value: object, taken: Callable[[object], bool]) -> bool:
    return value is not None and not taken(value)


def two_classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """A class of one model beside the type of another: engines build one or the other."""
    names, kind = config.get("architectures"), config.get("model_type")
    if not isinstance(names, list) or kind not in _TYPES.values():
        return ()
    other = [name for name in names if isinstance(name, str) and _TYPES.get(name, kind) != kind]
    return tuple(f"architectures names {name}, and model_type is {kind!r}" for name in other)


def _miscounted(architecture: Architecture) -> Iterator[str]:
    """Lists and numbers that do not go with the number of layers, or of experts."""
    text, count, experts = architecture.text, architecture.layers, architecture.experts
    kinds: Any = text.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        yield f"layer_types is {repr(kinds)[:_LONGEST]}"
    elif kinds is not None and count is not None and len(kinds) < count:
        yield f"layer_types names {len(kinds)} layers, and num_hidden_layers is {count}"
    chosen = text.get(_CHOSEN)
    if experts and type(chosen) is int and not 0 < chosen <= experts:
        yield f"{_CHOSEN} is {chosen}, and there are {experts} experts"
