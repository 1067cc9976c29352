"""What reads config.json of each target."""

from __future__ import annotations

import pytest

from qbridge.architecture.config import spell
from qbridge.targets.registry import find_target


@pytest.mark.parametrize("target", ["dense", "compressed-tensors", "transformers"])
def test_attention_through_an_indexer_is_called_as_every_transformers_5_calls_it(target):
    config = {"model_type": "deepseek_v32", "layer_types": ["indexed_attention"]}
    assert spell(config, find_target(target).reader)["layer_types"] == ["deepseek_sparse_attention"]
    assert spell(config, find_target("vllm").reader) == config
