"""What SGLang's own classes of configs read of config.json, and what they do not.

Source: sglang 0.5.23, srt/configs, with transformers 5.19.0, which the wheel requires.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qbridge.architecture.config import Reader

# Kinds of models that count layers of full attention by an interval (srt/configs/qwen3_next.py, layers_block_type).
_INTERVALS = frozenset({"qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"})
# Kinds of models of which it asks for keys: moe_layer_freq (srt/models/deepseek_v2.py, _is_layer_sparse),
# deepstack_visual_indexes (srt/configs/qwen3_vl.py), and full_attention_interval.
_ASKED = _INTERVALS | {
    *("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "qwen3_5_moe_vision", "qwen3_5_vision"),
}
READER = Reader((5,), hybrid=False, implied=_ASKED)


def holder(config: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """A config in config.json, itself without a `part`; empty where it is none."""
    held = config.get(part) if part else config
    return held if isinstance(held, Mapping) else {}


def layers_of_interval(config: Mapping[str, Any]) -> Iterator[str]:
    """The path of layer_types, where they are not those of the interval that SGLang counts by."""
    for part in ("", "text_config"):
        held = holder(config, part)
        kinds, interval = held.get("layer_types"), held.get("full_attention_interval")
        if str(held.get("model_type")) not in _INTERVALS or not isinstance(kinds, list):
            continue
        step = interval if type(interval) is int and interval > 0 else _interval_of(kinds)
        if any((kind == "full_attention") != ((layer + 1) % step == 0) for layer, kind in enumerate(kinds)):
            yield f"{part}.layer_types".lstrip(".")


def _interval_of(kinds: list[Any]) -> int:
    """The interval that the first layer of full attention says; more than there are layers without one."""
    return kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1
