"""Groups that straddle two ranks: garbage without an error in vLLM, and the same model once split or padded."""

from __future__ import annotations

import functools

import judges
import numpy as np
import pytest
from engine import ask, assert_loads, lmdeploy, turbomind
from safetensors.numpy import load_file
from weight_only import fixture, method

import qbridge
from float8_experts import SPLIT, experts
from qbridge.ir.values import dequantize

pytestmark = pytest.mark.engine

SOURCE = fixture("gptq/llama_640")  # groups of 128, of which a rank of two has two and a half
NOISE = 0.02  # of float16 over two ranks
WRONG = 0.05
# Target, the format that it chooses, options, the passes that make it legal.
REMEDIES = {
    "split": ("vllm", "gptq", {}, {"regroup": 1}),
    "padded": ("vllm", "gptq", {"pad": True}, {"pad": 3}),
    "split awq": ("awq", "awq", {}, {"regroup": 7}),
    "padded awq": ("awq", "awq", {"pad": True}, {"pad": 3}),
    "split compressed-tensors": ("compressed-tensors", "compressed-tensors", {}, {"regroup": 1}),
    "padded compressed-tensors": ("compressed-tensors", "compressed-tensors", {"pad": True}, {"pad": 3}),
}
# Case, the tensor-parallel sizes that it is padded for, intermediate size after that.
W8A8 = ("compressed_tensors/llama_w8a8", (2, 4), 768)
AWQ = ("gptq/llama_640", 2, 768)


@functools.cache
def served(folder, tp=1):
    """The prompt's log-probabilities in float16; every parameter was filled, or vLLM would have refused."""
    run = ask("vllm", "vllm_cpu.py", folder, "--tp", tp, "--dtype", "float16")
    assert run["error"] is None, run["error"]
    return np.array(run["prompt_logprobs"][1:])


@pytest.fixture(scope="module")
def remedied(tmp_path_factory):
    """Folder of the source after one of the remedies."""
    folder = tmp_path_factory.mktemp("remedied")

    @functools.cache
    def make(name):
        target, chosen, options, passes = REMEDIES[name]
        report = qbridge.convert(SOURCE, folder / name, target, tp=2, **options)
        assert (report.format, report.passes) == (chosen, passes)
        return folder / name

    return make


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """Folder of a case padded for LMDeploy."""
    folder = tmp_path_factory.mktemp("grown")

    @functools.cache
    def make(case, sizes, intermediate):
        out = folder / case
        out.parent.mkdir(parents=True, exist_ok=True)
        assert "pad" in qbridge.convert(fixture(case), out, "lmdeploy", tp=sizes, pad=True).passes
        with qbridge.open(out) as opened:
            assert opened.model.config["intermediate_size"] == intermediate
        return out

    return make


def distance(first, second):
    found = float(np.abs(first - second).max())
    print(f"largest difference of a log-probability: {found:.5f}")
    return found


def wrong(dump, source):
    """Linears of an engine that are not those of the source with zeros after them."""
    weights, found = load_file(dump), {}
    with qbridge.open(source) as opened:
        for name in opened.specs:
            values, weight = dequantize(opened.layer(name)).astype(np.float32), weights[f"{name}.weight"].copy()
            old = tuple(slice(length) for length in values.shape)
            if any(now < was for now, was in zip(weight.shape, values.shape, strict=True)):
                found[name] = f"{weight.shape}, it was {values.shape}"
            elif not np.array_equal(weight[old], values):
                found[name] = "another weight"
            else:
                weight[old] = 0
                if weight.any():
                    found[name] = "a weight of the padding is not zero"
    return found


def grown_linears(dump, intermediate):
    """How many linears of an engine have an axis of the padded size."""
    return sum(intermediate in weight.shape for name, weight in load_file(dump).items() if ".mlp." in name)


def test_vllm_computes_something_else_on_two_ranks_without_an_error():
    assert distance(served(SOURCE, 2), served(SOURCE)) > WRONG, "vLLM no longer takes the wrong groups"


@pytest.mark.parametrize("name", REMEDIES)
def test_one_rank_serves_the_very_same_model(name, remedied):
    assert method(remedied(name)) == REMEDIES[name][1]
    assert distance(served(remedied(name)), served(SOURCE)) == 0, "vLLM computes something else from what we wrote"


@pytest.mark.parametrize("name", REMEDIES)
def test_two_ranks_serve_the_same_model(name, remedied):
    assert distance(served(remedied(name), 2), served(SOURCE)) <= NOISE, "two ranks compute something else"


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("case", [W8A8, AWQ], ids=["w8a8", "awq"])
def test_lmdeploys_pytorch_engine_has_the_sources_weights_and_zeros(case, tp, grown, tmp_path):
    dump = tmp_path / "effective.safetensors"
    assert_loads(lmdeploy("0.18.0", grown(*case), tp, dump), tp)
    assert grown_linears(dump, case[2]) > 0
    assert wrong(dump, fixture(case[0])) == {}, "LMDeploy would compute with other weights"


def test_lmdeploy_062_loads_padded_w8a8(grown):
    assert_loads(lmdeploy("0.6.2", grown(*W8A8), 2), 2)


@pytest.mark.parametrize("tp", [1, 2])
def test_turbomind_has_the_sources_weights_and_zeros(tp, grown, tmp_path):
    dump = tmp_path / "effective.safetensors"
    report = turbomind(grown(*AWQ), tp, dump)
    keys = ("error", "missing", "unexpected", "act_order", "lossy_casts")
    assert {key: report[key] for key in keys if report.get(key)} == {}
    assert grown_linears(dump, AWQ[2]) == 3
    assert wrong(dump, fixture(AWQ[0])) == {}, "TurboMind would compute with other weights"


@pytest.mark.parametrize("tp", sorted({row[3] for row in SPLIT}))
def test_vllm_loads_every_share_of_blocks_that_it_splits(tp, tmp_path):
    rows = [row for row in SPLIT if row[3] == tp]
    made = {experts(tmp_path / str(number), *row[:2], sides=row[2], count=8): row for number, row in enumerate(rows)}
    reports = judges.judge("vllm", list(made), options=["--tp", str(tp)])
    loaded = {row: reports[str(folder)]["verdict"] == "clean" for folder, row in made.items()}
    assert loaded == {row: row[4] is not None for row in rows}


@pytest.mark.parametrize("target", ["vllm", "compressed-tensors"])
def test_vllm_loads_every_share_of_padded_blocks_on_four_ranks(target, tmp_path):
    made = []
    for layout in ("fp8", "compressed-tensors"):
        for size, hidden in ((384, 256), (448, 256), (384, 192)):
            src = experts(tmp_path / f"{layout}-{size}-{hidden}", size, hidden, layout, count=8)
            made.append(tmp_path / f"out-{layout}-{size}-{hidden}")
            qbridge.convert(src, made[-1], target, tp=4, pad=True)
            assert qbridge.verify(src, made[-1]).same
    reports = judges.judge("vllm", made, options=["--tp", "4"])
    assert {report["verdict"] for report in reports.values()} == {"clean"}
