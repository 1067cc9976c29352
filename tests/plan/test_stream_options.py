"""stream takes the options of convert and gives the same tensors and config."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import qbridge
from support import SINGLE

CASES = [
    ("gptq/llama_640", "vllm", {"tp": 2, "pad": True}),
    ("gptq/llama_g128", "vllm", {"tp": (1, 4)}),
    ("gptq/llama_g128", "gptq", {"regroup": 64}),
    ("compressed_tensors/llama_w4a16", "compressed-tensors", {"bits": 8}),
    ("awq/llama_gemm", "dense", {"dtype": "float16"}),
]


@pytest.mark.parametrize(("case", "target", "options"), CASES)
def test_stream_and_convert_agree(fixtures, tmp_path, case, target, options):
    source = fixtures / case / "model"
    qbridge.convert(source, tmp_path / "out", target, **options)
    written, config = load_file(tmp_path / "out" / SINGLE), json.loads((tmp_path / "out/config.json").read_text())
    with qbridge.stream(source, target, **options) as tensors:
        assert tensors.config == config
        streamed = dict(tensors)
    assert streamed.keys() == written.keys()
    for name, tensor in streamed.items():
        assert tensor.dtype is written[name].dtype and torch.equal(tensor, written[name]), name


@pytest.mark.parametrize(
    ("target", "options"), [("vllm", {"dtype": "float16"}), ("vllm", {"tp": 0}), ("vllm", {"bits": 5})]
)
def test_what_means_nothing_is_refused_alike(fixtures, tmp_path, target, options):
    source = fixtures / "gptq/llama_g128/model"
    with pytest.raises(ValueError) as streamed:
        qbridge.stream(source, target, **options)
    with pytest.raises(ValueError) as converted:
        qbridge.convert(source, tmp_path / "out", target, **options)
    assert str(streamed.value) == str(converted.value)


def test_passes_can_be_forbidden(fixtures):
    with pytest.raises(qbridge.QBridgeError):
        qbridge.stream(fixtures / "gptq/llama_g128/model", "vllm", tp=4, passes=False)
