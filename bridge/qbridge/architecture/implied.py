"""Keys that a class of transformers 5 does not save, for it has no choice there, and that other readers ask for.

Sources: transformers 5.24.0, models/{deepseek_v2,deepseek_v3,deepseek_v32,deepseek_v4,glm_moe_dsa,hy_v3,qwen3_5} and
qwen3_next, configuration_*.py and modeling_*.py (TopkRouter, MoE, route_tokens_to_experts); the same in 4.57.6;
models/{glm4_moe,qwen3_moe}/modeling_*.py (Attention).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Implied = Callable[[Config], Any]


def _dense_layers(config: Config) -> int | None:
    """How many dense layers come before those with experts; None where layers are mixed in another way."""
    kinds, first = config.get("mlp_layer_types"), config.get("first_k_dense_replace")
    if not isinstance(kinds, list):
        return None
    count = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    mixed = any(kind != "sparse" for kind in kinds[count:])
    return None if mixed or first not in (None, count) else count


def _every_layer(config: Config) -> int | None:
    """Every layer after the dense ones has experts, where no list says otherwise."""
    listed = isinstance(config.get("mlp_layer_types"), list)
    return None if listed and _dense_layers(config) is None else 1


def _interval(config: Config) -> int | None:
    """Every how many layers one has full attention, 4 where config.json does not say.

    Which ones those are is said by layer_types; readers of the interval count layers with it.
    """
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return 4
    full = kinds.count("full_attention")
    return len(kinds) // full if full and len(kinds) % full == 0 else None


def _head_dim(config: Config) -> int | None:
    """hidden_size / num_attention_heads, which transformers takes where config.json has no head_dim."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return hidden // heads if type(hidden) is int and type(heads) is int and heads > 0 else None


def _none(config: Config) -> list[int]:
    """An empty list."""
    return []


def _always(value: str) -> Implied:
    return lambda config: value


_SIGMOID = {
    "moe_layer_freq": _every_layer,
    "scoring_func": _always("sigmoid"),
    "topk_method": _always("noaux_tc"),
}
_IMPLIED: Mapping[str, Mapping[str, Implied]] = {
    "deepseek_v2": {"moe_layer_freq": _every_layer, "scoring_func": _always("softmax")},
    "deepseek_v3": _SIGMOID,
    "deepseek_v32": _SIGMOID,
    "deepseek_v4": {"topk_method": _always("noaux_tc")},
    "glm_moe_dsa": {**_SIGMOID, "first_k_dense_replace": _dense_layers},
    "hy_v3": {"first_k_dense_replace": _dense_layers},
    # a tower without them, which readers that know Qwen3-VL's take for one with three
    **{kind: {"deepstack_visual_indexes": _none} for kind in ("qwen3_5_moe_vision", "qwen3_5_vision")},
    **{kind: {"head_dim": _head_dim} for kind in ("glm4_moe", "qwen3_moe")},
    **{kind: {"full_attention_interval": _interval} for kind in ("qwen3_5_moe_text", "qwen3_5_text", "qwen3_next")},
}
# Classes with linear attention in three of four layers, where config.json says neither layer_types nor an interval.
_HYBRID = frozenset({"qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"})


def implied(config: Config) -> dict[str, Any]:
    """What the class of a config, nested ones aside, implies of such keys; None where nothing can be implied."""
    table = _IMPLIED.get(str(config.get("model_type")), {})
    return {key: find({word: value for word, value in config.items() if word != key}) for key, find in table.items()}


def missing(config: Config) -> dict[str, Any]:
    """The same of those keys alone that the config does not have."""
    return {key: value for key, value in implied(config).items() if config.get(key) is None}


def default_layer_types(text: Config, count: int) -> list[str] | None:
    """The kinds of `count` layers that the class of a text config builds where it has no layer_types; None elsewhere.

    Source: transformers 5.17.0, models/qwen3_5/configuration_qwen3_5.py (__post_init__); qwen3_5_moe, qwen3_next.
    """
    if text.get("layer_types") is not None or str(text.get("model_type")) not in _HYBRID:
        return None
    interval = text.get("full_attention_interval", 4)
    if type(interval) is not int or interval < 1:
        return None
    return ["linear_attention" if (layer + 1) % interval else "full_attention" for layer in range(count)]
