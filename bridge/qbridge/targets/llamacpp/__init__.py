"""What llama.cpp takes: GGUF, whose blocks its CPU kernels serve in every type that is written here.

It splits a model over devices by itself, in whole layers or in rows, so that no tensor-parallel size asks anything
of a file. Source: llama.cpp b10359, src/llama-model.cpp and ggml/src/ggml-cpu/ggml-cpu.c (type_traits_cpu).
"""

from __future__ import annotations

from pathlib import Path

from qbridge.formats.registry import named
from qbridge.ir.model import Model
from qbridge.targets.choice import Choice
from qbridge.targets.target import Target


def _serve(model: Model, path: str, tp: int) -> str:
    """Its server, on a file (a quoted path)."""
    return f"llama-server -m {path}"


TARGETS = (
    Target(
        "llama.cpp@10359",
        "llama.cpp, and what is built on it (ollama, LM Studio): GGUF",
        (Choice(named("gguf"), serve=_serve, served_file=True),),
        prover=Path(__file__).with_name("prover.py"),
    ),
)
