"""The vision towers that TurboMind builds itself: the sizes of heads that it has attention for.

Sources: lmdeploy 0.18.0, turbomind/models/qwen2_vl.py, qwen3_5.py (_VIT_HEAD_DIM_PADDED, above it the sizes of the
kernel) and internvl.py; sizes that config.json leaves out are those of transformers 4.57.6 and 5.17.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from qbridge.formats.rules import ModelRule, Problem
from qbridge.ir.model import Model
from qbridge.targets.lmdeploy.classes import TURBOMIND_ARCHITECTURES


class _Tower(NamedTuple):
    """Keys of vision_config for width and number of heads, their defaults, and the sizes of heads that run."""

    width: tuple[str, int]
    heads: tuple[str, int]
    sizes: tuple[int, ...]


_QWEN3_5 = _Tower(("hidden_size", 1152), ("num_heads", 16), (64, 72))
_INTERNVL = _Tower(("hidden_size", 1024), ("num_attention_heads", 16), (64, 128, 192, 256, 576))
_TOWERS = {
    "Qwen2VLForConditionalGeneration": _Tower(("embed_dim", 1280), ("num_heads", 16), (64, 80)),
    "Qwen2_5_VLForConditionalGeneration": _Tower(("hidden_size", 3584), ("num_heads", 16), (64, 80)),
    "Qwen3_5ForConditionalGeneration": _QWEN3_5,
    "Qwen3_5MoeForConditionalGeneration": _QWEN3_5,
    "InternS2PreviewForConditionalGeneration": _QWEN3_5,
    "InternS2MobiusForConditionalGeneration": _QWEN3_5,
    "InternS1ForConditionalGeneration": _INTERNVL,
    "InternVLChatModel": _INTERNVL,
    "InternVLForConditionalGeneration": _INTERNVL,
}


def odd_heads(model: Model) -> str:
    """Which heads of the vision tower TurboMind has no attention for, in words; empty where it has."""
    tower, vision = _TOWERS.get(model.architecture or ""), model.config.get("vision_config")
    if tower is None or not isinstance(vision, dict):
        return ""
    width, heads = (vision.get(key, default) for key, default in (tower.width, tower.heads))
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        return f"vision_config: {tower.width[0]} is {width!r}, {tower.heads[0]} is {heads!r}"
    known = " and ".join(map(str, tower.sizes))
    return "" if width // heads in tower.sizes else f"heads of {width // heads} in a vision tower (but {known})"


def turbomind_builds(model: Model) -> bool:
    """Whether TurboMind has a class for the model, and attention for its vision tower."""
    return model.architecture in TURBOMIND_ARCHITECTURES and not odd_heads(model)


def _check(model: Model) -> Iterator[Problem]:
    if odd := odd_heads(model):
        yield Problem((odd,), where=("vision_config",))


TOWER = ModelRule("QB249", _check, "lmdeploy 0.18.0, turbomind/models/qwen2_vl.py, qwen3_5.py and internvl.py")
