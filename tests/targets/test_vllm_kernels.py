"""Which kernel of vLLM serves a linear: the cases that people rent devices for, and each limit once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qbridge.targets.vllm.kernels import RELEASES, Limits, Linear, choose, find_release

DOWN, ROWS = 29568, 8192  # Qwen2-72B's down_proj


def down(tp=2, group=128, dtype="float16", format_="gptq", columns=DOWN, bits=4, symmetric=True):
    return Linear(columns // tp, columns, ROWS, bits, symmetric, group, dtype, format_)


def said(verdict):
    return verdict.kernel, verdict.straddles, verdict.legal


@pytest.mark.parametrize(
    ("linear", "device", "humming", "expected"),
    [
        (down(), 80, False, ("Exllama", True, False)),
        (down(dtype="bfloat16"), 80, False, (None, True, False)),
        (down(dtype="bfloat16"), 80, True, ("Humming", True, False)),
        (down(dtype="bfloat16"), 90, False, ("Machete", True, False)),
        (down(dtype="bfloat16"), 100, True, ("Humming", True, False)),
        (down(group=64), 80, False, ("Marlin", False, True)),
        (down(tp=4, group=32, dtype="bfloat16"), 80, False, ("Marlin", False, True)),
        (down(tp=8, group=32), 80, False, ("Exllama", True, False)),
        (down(tp=8, group=32, dtype="bfloat16"), 80, True, ("Humming", True, False)),
        (down(tp=8, group=-1, dtype="bfloat16"), 80, False, ("Marlin", False, True)),
        *((down(tp=tp, columns=29696), 80, True, ("Marlin", False, True)) for tp in (2, 4, 8)),
        *((down(tp=tp, columns=29696), 90, True, ("Machete", False, True)) for tp in (2, 4, 8)),
        (down(format_="compressed-tensors"), 80, True, (None, True, False)),
        (down(format_="compressed-tensors"), 90, True, (None, True, False)),
        (down(format_="awq", symmetric=False), 80, True, (None, True, False)),
        (down(group=64, format_="awq", symmetric=False), 80, False, ("Marlin", False, True)),
        (down(group=64, format_="compressed-tensors", bits=8, symmetric=False), 80, False, (None, False, False)),
        (down(group=64, format_="compressed-tensors", bits=8, symmetric=False), 90, False, ("Machete", False, True)),
    ],
)
def test_down_proj_of_qwen2_72b(linear, device, humming, expected):
    assert said(choose(linear, device, humming=humming)) == expected


def test_awq_says_why_marlin_and_then_awq_refuse():
    verdict = choose(down(format_="awq", symmetric=False), 80)
    assert [line.partition(":")[0] for line in verdict.reasons] == ["AWQ-Marlin", "AWQ"]
    assert "The input size is not aligned with the quantized weight shape." in verdict.reasons[1]


def test_054_repeats_what_people_report():
    for format_, symmetric in (("gptq", True), ("awq", False), ("compressed-tensors", True)):
        verdict = choose(down(format_=format_, symmetric=symmetric), 80, "0.5.4")
        assert not verdict.legal and verdict.kernel is None
        assert verdict.reasons == (
            "Marlin: Weight input_size_per_partition = 14784 is not divisible by min_thread_k = 128. "
            "Consider reducing tensor_parallel_size or running with --quantization gptq.",
        )


def test_023_does_not_pad():
    bfloat16 = down(group=64, dtype="bfloat16")
    assert said(choose(down(group=64), 80, "0.23")) == ("Exllama", False, True)
    assert said(choose(bfloat16, 80, "0.23")) == ("Triton", False, True)
    assert said(choose(bfloat16, 80, "0.23", humming=True)) == ("Humming", False, True)
    assert said(choose(down(), 80, "0.23")) == ("Exllama", True, False)
    assert "min_thread_k = 128" in " ".join(choose(down(), 80, "0.23").reasons)
    assert said(choose(down(group=-1, bits=8), 80, "0.23")) == ("AllSpark", False, True)


def test_marlin_pads_the_cheaper_tile():
    assert choose(down(group=64), 80).note == ""  # 14784 x 8192 is one
    odd = replace(down(group=64), out_features=4160)
    assert choose(odd, 80).note == "Marlin pads 14784 x 4160 to 14848 x 4160: slower"
    assert choose(replace(odd, out_features=4100), 80).note == "Marlin pads 14784 x 4100 to 14848 x 4160: slower"


@pytest.mark.parametrize(
    ("change", "device", "why"),
    [
        ({"group_size": 16}, 80, "gptq: Group size 16 not supported, only [-1, 32, 64, 128]"),
        ({"symmetric": False}, 80, "gptq: Unsupported quantization config: bits=4, sym=False"),
        (
            {"dtype": "bfloat16"},
            75,
            "vLLM: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
        ),
    ],
)
def test_what_is_refused_before_any_kernel(change, device, why):
    verdict = choose(replace(down(tp=1), **change), device, humming=True)
    assert (verdict.kernel, verdict.legal, verdict.reasons) == (None, False, (why,))


def test_compressed_tensors_have_kernels_for_other_groups():
    wide = down(tp=1, group=16, format_="compressed-tensors")
    assert choose(wide, 80).kernel == "Exllama"
    assert choose(replace(wide, group_size=256, in_features=4096, in_features_whole=4096, dtype="bfloat16"), 80).legal
    assert choose(replace(wide, dtype="bfloat16"), 80).kernel is None
    assert choose(replace(wide, bits=3), 80, humming=True).kernel == "Humming"
    assert choose(replace(wide, bits=3), 80, "0.23", humming=True).kernel is None


def test_humming_comes_before_marlin_on_hopper_only():
    odd = replace(down(group=64), out_features=8200)
    assert choose(odd, 90, humming=True).kernel == "Humming"
    assert choose(odd, 90).kernel == choose(odd, 100, humming=True).kernel == "Marlin"


def test_what_fails_only_later():
    symmetric = down(group=64, format_="awq")
    assert choose(symmetric, 80).legal
    late = choose(replace(symmetric, dtype="bfloat16"), 80)
    assert (late.kernel, late.legal) == ("AWQ", False)
    assert late.note == "AWQ raises at the first tokens: only supports float16 activations"
    assert "OC is not multiple" in choose(replace(symmetric, out_features=8200), 80).note
    one = choose(down(group=-1, format_="awq", symmetric=False), 80)
    assert said(one) == ("Marlin", True, False)
    cut = choose(Linear(4100, 8200, ROWS, 4, True, -1, "float16", "gptq"), 80)
    assert said(cut) == ("Marlin", False, False) and "32-bit words" in cut.note


def test_versions():
    assert find_release("0.23").version == "0.23.0"
    assert find_release("0.33").version == "0.33.0"
    with pytest.raises(ValueError, match=r"vLLM 0\.28"):
        choose(down(), 80, "0.28")


def test_every_record_names_its_file():
    import qbridge.targets.vllm.kernels as module

    records = [value for value in vars(module).values() if isinstance(value, Limits)]
    assert len(records) > 20
    assert all(record.file.startswith("vllm") for record in records)
    assert {name for release in RELEASES for name in release.ways} == {"gptq", "awq", "compressed-tensors"}
