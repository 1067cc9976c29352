"""Modules in what a prover reports, by the names that a checkpoint's tensors have before llama.cpp's converter."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qbridge.architecture.gguf_names import GgufNames, class_of

_NUMBER = re.compile(r"(?<=\.experts\.)\d+\.")


def in_names_of_checkpoints(report: Mapping[str, Any]) -> dict[str, Any]:
    """The same report; modules of a class of llama.cpp have names such as model.layers.0.mlp.down_proj."""
    renamed = {
        kind: {module_named(name, report["model"]): value for name, value in report[kind].items()}
        for kind in ("quantized", "stored")
    }
    return {**report, **renamed}


def module_named(name: str, model: str | None) -> str:
    """The name of a module in checkpoints, of one as a file of llama.cpp's class `model` has it."""
    try:
        known = GgufNames({"architectures": [class_of(model or "")]}).module_of(name)
    except KeyError:  # of another engine, whose models are classes
        return name
    return known[0] if known else name


def as_stored(modules: Iterable[str], stored: Collection[str]) -> frozenset[str]:
    """The names, without an expert's number where only that is stored: a GGUF file has one tensor for all experts."""
    numberless = {name: _NUMBER.sub("", name) for name in modules}
    return frozenset(short if name not in stored and short in stored else name for name, short in numberless.items())
