"""Rotary position embeddings as llama.cpp is told them.

Sources: llama.cpp b10359, conversion/base.py (TextModel.set_gguf_parameters) and conversion/llama.py
(generate_extra_tensors); transformers 5.24.0, modeling_rope_utils.py (_compute_llama3_parameters).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qbridge.architecture.config import rope

LLAMA3 = "llama3"
Number = bool | int | float | str
_YARN = ("beta_fast", "beta_slow")  # of which llama.cpp has the numbers 32 and 1 where it is told none
_PLAIN = frozenset({"rope_type", "factor", "original_max_position_embeddings"})


def rope_numbers(config: Mapping[str, Any], head: int, more: Collection[str] = ()) -> dict[str, Number]:
    """The metadata of one rope for all layers; ValueError for one that llama.cpp has no word for.

    `more` are words of a scaling that the class says in a way of its own.
    """
    theta, scaling, by_layer = rope(config)
    kind = (scaling or {}).get("rope_type", "default")
    if by_layer or kind not in ("default", "linear", "yarn", LLAMA3):
        raise ValueError(f"rope of type {kind!r} is not written here" if scaling else "rope differs by layer")
    found: dict[str, Number] = {"rope.freq_base": float(theta or 10000.0)}
    if scaling and kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": str(kind), "rope.scaling.factor": float(scaling["factor"])}
    if scaling and kind == "yarn":
        found["rope.scaling.original_context_length"] = int(scaling["original_max_position_embeddings"])
        found |= {f"rope.scaling.yarn_{key}": float(scaling[key]) for key in _YARN if scaling.get(key) is not None}
        if unknown := scaling.keys() - {*_PLAIN, *_YARN, *more}:
            raise ValueError(f"rope of type yarn with {', '.join(sorted(unknown))} is not written here")
    return found


def llama3_factors(config: Mapping[str, Any], head: int) -> npt.NDArray[np.float32] | None:
    """What every frequency is divided by, float32 [head_dim / 2], where config.json says the rope of Llama 3."""
    theta, scaling, by_layer = rope(config)
    if by_layer or not scaling or scaling.get("rope_type") != LLAMA3:
        return None
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    exponents = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    waves = 2 * np.pi * np.power(np.float32(theta or 10000.0), exponents).astype(np.float64)
    smooth = (context / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    found = np.where(waves < context / high, 1.0, np.where(waves > context / low, factor, between))
    if not np.isfinite(found).all():
        raise ValueError("the rope of Llama 3 has factors that are no numbers")
    return found.astype(np.float32)
