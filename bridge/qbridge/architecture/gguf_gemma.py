"""The ropes and windows of Gemma 3 as llama.cpp is told them, and what it does without being told.

Sources: llama.cpp b10359, src/models/gemma3.cpp (load_arch_hparams) and conversion/gemma.py (Gemma3Model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.architecture.gguf_rope import Number
from qbridge.architecture.rope import EVERY, FULL, SLIDING, by_kind

_PERIOD = 6  # of layers: all but the last have a window
_WINDOW_THETA, _THETA = 10000.0, 1000000.0  # of layers with a window, and of the others where nothing is said
_LARGEST = 62  # layers of the size whose scores are scaled by the hidden size and not by the head's


def gemma3_numbers(config: Mapping[str, Any], head: int) -> dict[str, Number]:
    """The metadata of a config.json; ValueError for what llama.cpp would do otherwise."""
    _check_windows(config)
    _check_scores(config, head)
    window = config.get("sliding_window")
    if type(window) is not int or window < 1:
        raise ValueError(f"sliding_window is {window!r}")
    ropes = by_kind(config)
    whole, local = (ropes.get(kind, ropes.get(EVERY, {})) for kind in (FULL, SLIDING))
    kind = whole.get("rope_type", "default")
    if kind not in ("default", "linear"):
        raise ValueError(f"rope of type {kind!r} is not written here")
    found: dict[str, Number] = {
        "rope.freq_base": float(whole.get("rope_theta") or _THETA),
        "rope.freq_base_swa": float(local.get("rope_theta") or _WINDOW_THETA),
        "attention.sliding_window": window,
    }
    if kind == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(whole["factor"])}
    if cap := config.get("final_logit_softcapping"):
        found["final_logit_softcapping"] = float(cap)
    return found


def _check_windows(config: Mapping[str, Any]) -> None:
    count, said = int(config["num_hidden_layers"]), config.get("layer_types")
    kinds = [SLIDING if (layer + 1) % _PERIOD else FULL for layer in range(count)]
    period = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", _PERIOD))
    if said != kinds if isinstance(said, list) else period != _PERIOD:
        raise ValueError("layers without a window are not each sixth one, as llama.cpp has them")


def _check_scores(config: Mapping[str, Any], head: int) -> None:
    largest = config["num_hidden_layers"] == _LARGEST
    wanted = config["hidden_size"] // config["num_attention_heads"] if largest else head
    if (scalar := config.get("query_pre_attn_scalar", 256)) != wanted:
        raise ValueError(f"query_pre_attn_scalar is {scalar}, llama.cpp computes with {wanted}")
    if config.get("attn_logit_softcapping"):
        raise ValueError("attn_logit_softcapping, which llama.cpp has not for this class")
