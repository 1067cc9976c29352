"""The laws of every seam, shipped, so that a new codec, format or target tests itself.

    from qbridge.testing import check_format
    def test_laws(): check_format("my-format")

Needs hypothesis (`pip install qbridge-llm[test]`)."""

from __future__ import annotations

from qbridge.testing.architectures import check_architecture
from qbridge.testing.laws import (
    check_checkpoint,
    check_codec,
    check_format,
    check_layer,
    check_pair,
    check_pairs,
    empty_model,
    made_legal,
    same_values,
    through,
    write_model,
)
from qbridge.testing.passes import check_pass
from qbridge.testing.storages import FILES, Memory, check_storage
from qbridge.testing.strategies import grouped_layers, layers, random_layer, specs
from qbridge.testing.targets import check_target
from qbridge.testing.writing import Inline, MemoryOutput, check_executor, check_output

__all__ = [
    "FILES",
    "Inline",
    "Memory",
    "MemoryOutput",
    "check_architecture",
    "check_checkpoint",
    "check_codec",
    "check_executor",
    "check_format",
    "check_layer",
    "check_output",
    "check_pair",
    "check_pairs",
    "check_pass",
    "check_storage",
    "check_target",
    "empty_model",
    "grouped_layers",
    "layers",
    "made_legal",
    "random_layer",
    "same_values",
    "specs",
    "through",
    "write_model",
]
