"""Codes that are decoded on their way go some output features at a time, and come out as if they went whole."""

from __future__ import annotations

from dataclasses import replace
from math import lcm

import numpy as np
import pytest

import qbridge
from qbridge.codecs.arrays import TRANSPOSED, Padded
from qbridge.codecs.bits import BitPacked
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Layer, Spec, identical
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Slot
from qbridge.passes.broadcast import Broadcast
from qbridge.passes.pad import Pad
from qbridge.passes.recast import Recast
from qbridge.passes.regroup import Regroup
from qbridge.passes.symmetrize import Symmetrize
from qbridge.passes.undo import Undo
from qbridge.passes.widen import Widen
from qbridge.plan.windows import EVERYTHING, Window, part_of, windows
from qbridge.targets.parallel import Parallel
from qbridge.write.budget import Effort
from qbridge.write.jobs import Encoded, jobs_of
from support import ROOT, contents
from test_conversion import assert_same_tensors


@pytest.fixture
def in_windows(monkeypatch):
    """Makes blocks far smaller than any layer, and gives the windows that are written from then on."""
    seen = []

    def watched(*args):
        for job in jobs_of(*args):
            if isinstance(job, Encoded) and job.window != EVERYTHING:
                seen.append(job)
            yield job

    def start():
        monkeypatch.setattr(Effort, "block", property(lambda effort: 1 << 12))
        monkeypatch.setattr("qbridge.write.jobs.CODES", 1 << 12)
        monkeypatch.setattr("qbridge.write.writer.jobs_of", watched)
        return seen

    return start


@pytest.mark.parametrize(
    ("case", "target"),
    [
        ("marlin/llama_autogptq", "gptq"),
        ("marlin/llama_autoawq", "awq"),
        ("gptq/llama_g128", "marlin"),
        ("awq/llama_gemv_fast", "compressed-tensors"),
        ("awq/llama_llm_awq", "gptq"),
    ],
)
def test_windows_put_together_are_the_tensor(case, target, tmp_path, in_windows):
    src = ROOT / "fixtures" / case / "model"
    qbridge.convert(src, tmp_path / "whole", target)
    seen = in_windows()
    qbridge.convert(src, tmp_path / "windows", target)
    assert len(seen) > 10
    assert contents(tmp_path / "windows") == contents(tmp_path / "whole")


def test_a_padded_checkpoint_is_restored_in_windows(tmp_path, monkeypatch, in_windows):
    monkeypatch.setattr(Parallel, "multiple", lambda self, spec, tp: lcm(spec.weight.group_size or 1, 480))
    src = ROOT / "fixtures/gptq/llama_v1_asym/model"
    seen = in_windows()
    qbridge.convert(src, tmp_path / "there", "compressed-tensors", tp=(1,), pad=True)
    assert not seen  # padding moves words
    qbridge.restore(tmp_path / "there", tmp_path / "back")
    assert {job.tensor.name.split(".")[-2] for job in seen} == {"gate_proj", "up_proj", "down_proj"}
    assert_same_tensors(src, tmp_path / "back")


@pytest.mark.parametrize("case", ["llama_nvfp4", "llama_mxfp4", "llama_mxfp8", "llama_fp8_static", "llama_w4afp8"])
def test_float_codes_are_padded_and_restored_in_windows(case, tmp_path, monkeypatch, in_windows):
    monkeypatch.setattr(Parallel, "multiple", lambda self, spec, tp: lcm(spec.weight.group_size or 1, 480))
    src = ROOT / "fixtures/compressed_tensors" / case / "model"
    whole = qbridge.convert(src, tmp_path / "whole", "compressed-tensors", pad=True)
    seen = in_windows()
    report = qbridge.convert(src, tmp_path / "windows", "compressed-tensors", pad=True)
    assert whole.passes["pad"] == report.passes["pad"] == 3 and len(seen) > 3
    assert contents(tmp_path / "windows") == contents(tmp_path / "whole")
    qbridge.restore(tmp_path / "windows", tmp_path / "back")
    assert_same_tensors(src, tmp_path / "back")


SPEC = Spec("l", 96, 64, WeightScheme(4, Granularity.GROUP, False, group_size=32), DType.F16, bias=DType.F16)
CHANNEL = replace(SPEC, weight=WeightScheme(4, Granularity.CHANNEL, False))
TENSOR = replace(SPEC, weight=WeightScheme(4, Granularity.TENSOR, False))
SPLIT = replace(SPEC, weight=WeightScheme(4, Granularity.GROUP, False, group_size=16))


def layer_of(spec):
    random = np.random.default_rng(0)
    arrays = {
        part: random.integers(-8, 8, shape).astype(dtype.numpy) for part, (dtype, shape) in spec.parts().items()
    }
    return Layer(spec, arrays)


def rows_of(layer, window):
    """The window of a layer, by the meaning of its parts."""
    own = window.of(layer.spec)
    taken = slice(window.start, window.start + own.out_features)
    whole = {"g_idx"} | ({"scale", "zero"} if own.weight.granularity is Granularity.TENSOR else set())
    return Layer(own, {part: array if part in whole else array[taken] for part, array in layer.arrays.items()})


@pytest.mark.parametrize(
    ("spec", "step"),
    [
        (SPEC, Pad(128, 96)),
        (CHANNEL, Pad(128, 96)),
        (CHANNEL, Pad(96, 96)),
        (TENSOR, Pad(128, 96)),
        (SPEC, Regroup(16)),
        (SPLIT, Undo(Regroup(16), SPEC)),
        (SPEC, Widen(8)),
        (replace(SPEC, weight=replace(SPEC.weight, bits=8)), Undo(Widen(8), SPEC)),
        (SPEC, Recast(DType.F32)),
        (TENSOR, Broadcast()),
        (replace(SPEC, weight=replace(SPEC.weight, symmetric=True)), Undo(Symmetrize(), SPEC)),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else "",
)
def test_a_pass_over_a_window_gives_the_window_of_the_pass(spec, step):
    layer = layer_of(spec)
    if step == Undo(Regroup(16), SPEC):
        layer = Regroup(16).apply(layer_of(SPEC))
    after = step.apply(layer)
    for window in (Window(0, 32), Window(32, 64), Window(64, None), EVERYTHING):
        assert identical(window.step(step, spec).apply(rows_of(layer, window)), rows_of(after, window))


@pytest.mark.parametrize("before", [SPEC, CHANNEL, TENSOR], ids=lambda spec: str(spec.weight.granularity))
def test_padding_is_cropped_in_windows_and_looked_at(before):
    layer, step = layer_of(before), Pad(128, 96)
    layer = Layer(before, {**layer.arrays, "bias": np.zeros(96, np.float16)})
    padded, undo = step.apply(layer), Undo(step, before)
    for window in (Window(0, 32), Window(32, 64), Window(64, None)):
        found = window.step(undo, padded.spec).apply(rows_of(padded, window))
        assert identical(found, rows_of(layer, window))
    codes = padded.arrays["code"].copy()
    codes[127, 0] ^= 1
    edited, last = Layer(padded.spec, {**padded.arrays, "code": codes}), Window(64, None)
    with pytest.raises(ValueError, match="1 weights of the padded output features"):
        last.step(undo, padded.spec).apply(rows_of(edited, last))


def slot(codec, shape=(96, 8), dtype=DType.I32):
    return Slot("t", dtype, shape, codec)


def test_windows_end_where_words_do():
    across = slot(BitPacked(4, 0, 8, transposed=True), (64, 12))
    assert [w.start for w in windows((SPEC,), (across, slot(BitPacked(4, 1, 8))), 10 * 64)] == list(range(0, 96, 8))
    assert list(windows((SPEC,), (across,), 1))[-1] == Window(88, None)
    assert list(windows((SPEC,), (across,), 10**6)) == [EVERYTHING]
    assert list(windows((SPEC,), (slot(Padded(PLAIN, (4, 4))),), 1)) == [EVERYTHING]
    block = replace(SPEC, weight=WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(40, 40)))
    assert [w.start for w in windows((block,), (slot(PLAIN),), 1)] == [0, 40, 80]
    longer = replace(SPEC, out_features=200)
    assert list(windows((SPEC, longer), (slot(PLAIN),), 48 * 64)) == [Window(0, 48), Window(48, None)]


def test_a_tensor_that_is_not_stored_as_rows_of_features_has_no_place():
    window = Window(0, 32)
    assert part_of(slot(PLAIN, (96, 2)), "scale", SPEC, window).rows == 32
    assert part_of(slot(TRANSPOSED, (2, 96)), "scale", SPEC, window).columns == 32
    assert part_of(slot(PLAIN, (1, 96)), "scale", CHANNEL, window) is None
    assert part_of(slot(PLAIN, (96,)), "bias", SPEC, window) is None
    assert part_of(slot(PLAIN, (1, 1)), "scale", TENSOR, window) is None
    assert part_of(slot(BitPacked(4, 0, 8), (12, 2)), "zero", SPEC, Window(4, 12)) is None
