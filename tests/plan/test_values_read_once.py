"""Planning reads each small value once, however many formats and rules ask for it."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import qbridge
from qbridge.source import reader
from qbridge.source.opening import open_source, storage_of
from support import copy_fixture

CASES = [
    ("compressed_tensors/llama_nvfp4", "vllm"),
    ("compressed_tensors/llama_nvfp4", "lmdeploy"),
    ("modelopt/llama_nvfp4", "lmdeploy"),
    ("gptq/llama_desc_act", "vllm"),
    ("gptq/llama_v1_asym", "vllm"),
    ("gptq/llama_v1_zero0", "awq"),
    ("awq/llama_gemv_fast", "gptq"),
    ("mxfp4/gpt_oss", "lmdeploy"),
]


@pytest.mark.parametrize(("case", "target"), CASES)
def test_no_value_is_read_twice_from_opening_to_the_plan(fixtures, tmp_path, bytes_read, case, target):
    with contextlib.suppress(qbridge.QBridgeError):  # a refusal asks every format
        qbridge.convert(fixtures / case / "model", tmp_path / "out", target, dry_run=True)
    read = dict(bytes_read)
    with qbridge.open(fixtures / case / "model") as opened:
        sizes = {name: tensor.end - tensor.begin for name, tensor in opened.source.tensors.items()}
    twice = {name: count / sizes[name] for name, count in read.items() if name in sizes and count > sizes[name]}
    assert read and not twice


def test_what_is_kept_is_bounded_read_only_and_let_go(tmp_path, monkeypatch, bytes_read):
    monkeypatch.setattr(reader, "VALUES", 300_000)
    source = open_source(storage_of(copy_fixture(tmp_path)), qbridge.Findings())
    small = [name for name, tensor in source.tensors.items() if tensor.end - tensor.begin <= 300_000]
    with source.remembering():
        for name in (*small, *small):
            value = source.read(name)
            assert source._held == sum(array.nbytes for array in source._values.values()) <= 300_000
            with pytest.raises(ValueError, match="read-only"):
                value.reshape(-1)[:1] = 0
        assert source.once("key", lambda: 1) == source.once("key", lambda: 2) == 1
    assert not source._values and source._held == 0
    assert source.once("key", lambda: 2) == 2
    first = source.read(small[0])
    assert first.flags.writeable and np.array_equal(first, source.read(small[0]))
    source.close()


def test_who_does_not_plan_holds_no_values(fixtures):
    with qbridge.open(fixtures / "gptq/llama_desc_act/model") as opened:
        assert not opened.source._values and opened.source._held == 0


def test_values_from_opening_are_there_for_the_plan(tmp_path, bytes_read):
    source = open_source(storage_of(copy_fixture(tmp_path)), qbridge.Findings())
    name = next(iter(source.tensors))
    with source.remembering(forget=False):
        source.read(name)
    with source.remembering():
        source.read(name)
        assert b"".join(bytes(block) for block in source.blocks(name, 100)) == source.read(name).tobytes()
    tensor = source.tensors[name]
    assert bytes_read[name] == tensor.end - tensor.begin
    source.close()
