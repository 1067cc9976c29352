"""One set of options for every command, built and refused alike."""

from __future__ import annotations

import pytest

import qbridge
from qbridge.plan.options import DEFAULTS, LEAST_MEMORY, Options
from qbridge.targets.registry import find_target
from qbridge.write import jobs
from qbridge.write.budget import Effort

WRONG = [
    {"tp": 0},
    {"tp": ()},
    {"tp": (2, -1)},
    {"regroup": 7},
    {"bits": 5},
    {"dtype": "float8"},
    {"dtype": "float16"},
    {"passes": False, "pad": True},
    {"passes": False, "bits": 8},
    {"memory": LEAST_MEMORY - 1},
]


@pytest.mark.parametrize("options", WRONG, ids=str)
def test_every_command_refuses_what_means_nothing_alike(fixtures, tmp_path, options):
    source = fixtures / "gptq/llama_g128/model"
    with pytest.raises(ValueError) as wrong:
        Options.of(find_target("vllm"), **options)
    for command in (
        lambda: qbridge.convert(source, tmp_path / "out", "vllm", **options),
        lambda: qbridge.convert(source, tmp_path / "out", "vllm", dry_run=True, **options),
        lambda: qbridge.stream(source, "vllm", **options),
    ):
        with pytest.raises(ValueError) as refused:
            command()
        assert str(refused.value) == str(wrong.value)
    assert not (tmp_path / "out").exists()


def test_check_restore_and_verify_refuse_theirs(fixtures, tmp_path):
    source = fixtures / "gptq/llama_g128/model"
    for command in (
        lambda: qbridge.check(source, "vllm", 0),
        lambda: qbridge.check(source, "vllm", 10**20),
        lambda: qbridge.convert(source, tmp_path / "out", "vllm", tp=[1, 1 << 17]),
        lambda: qbridge.restore(source, tmp_path / "out", memory=1),
        lambda: qbridge.restore(source, tmp_path / "out", jobs=-1),
        lambda: qbridge.verify(source, source, memory=1),
    ):
        with pytest.raises(ValueError, match=r"positive|at most 65536|64 MB at least|jobs are 0"):
            command()


def test_one_size_and_several_are_the_same_options():
    target = find_target("vllm")
    assert Options.of(target, 2) == Options.of(target, [2]) == Options(tp=(2,))
    assert Options.of(target) == DEFAULTS
    options = Options(jobs=3, memory=10**9, proof=False)
    assert Effort.of(options) == Effort(3, 10**9, proof=False)


@pytest.mark.parametrize("case", [("gptq/llama_g128", "awq"), ("awq/llama_gemm", "compressed-tensors")])
def test_a_stream_makes_codes_a_block_at_a_time(fixtures, monkeypatch, case):
    source, target = fixtures / case[0] / "model", case[1]
    with qbridge.stream(source, target) as tensors:
        whole = {name: tensor.numpy().tobytes() for name, tensor in tensors}
    sizes = []
    monkeypatch.setattr(Effort, "block", property(lambda effort: sizes.append(effort.memory) or 1 << 11))
    monkeypatch.setattr(jobs, "CODES", 1 << 11)
    with qbridge.stream(source, target, memory=10**8) as tensors:
        assert {name: tensor.numpy().tobytes() for name, tensor in tensors} == whole
    assert sizes == [10**8]
