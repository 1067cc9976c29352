"""What can be fuzzed: for each target what runs an input, and what it begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz import answers, inputs

RUN: dict[str, Callable[[bytes, Path], int]] = {
    "folder": inputs.run_folder,
    "header": inputs.run_header,
    "gguf": inputs.run_gguf,
    "hub": answers.run_hub,
}
SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "folder": inputs.seeds,
    "header": inputs.header_seeds,
    "gguf": inputs.gguf_seeds,
    "hub": answers.hub_seeds,
}
