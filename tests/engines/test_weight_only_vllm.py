"""Weight-only checkpoints between GPTQ, AWQ and compressed-tensors, served by vLLM on the CPU in float16."""

from __future__ import annotations

import functools

import dense_twin
import numpy as np
import pytest
from engine import ask
from weight_only import fixture, method

import qbridge

pytestmark = pytest.mark.engine

CT = "compressed-tensors"
NOISE = 0.02  # float16 against float32; an error of one in the zero points makes 0.5 and more
# Case, target, the format that it chooses.
SERVED_SOURCES = [
    ("gptq/llama_v1_sym", CT, CT),
    ("gptq/llama_v1_sym", "awq", "awq"),
    ("gptq/llama_channel", "awq", "awq"),
    ("gptq/qwen2_tied", CT, CT),
    ("awq/llama_gemm", CT, CT),
    ("compressed_tensors/llama_w4a16", "vllm-gptq", "gptq"),
    ("compressed_tensors/llama_w4a16", "awq", "awq"),
    ("compressed_tensors/llama_w4a16_asym", "awq", "awq"),
    ("compressed_tensors/qwen2_w4a16_tied", "gptq", "gptq"),
    ("auto_round/llama_gptq_sym", "vllm", CT),
    ("auto_round/llama_gptq_sym", "gptq", "gptq"),
    ("auto_round/llama_awq_asym", "vllm", CT),
    ("auto_round/llama_awq_asym", "awq", "awq"),
]
REFUSED_SOURCES = [
    ("gptq/llama_v1_asym", "vllm", CT),
    ("gptq/llama_v1_asym", "awq", "awq"),
    ("gptq/llama_v2_asym", "vllm", CT),
    ("gptq/llama_v1_zero0", "awq", "awq"),
    ("gptq/llama_static_groups", "vllm", "gptq"),
    ("awq/llama_gemv", "vllm", "awq"),
    ("awq/llama_llm_awq", "vllm", "awq"),
]
REFUSALS = {
    "gptq/llama_v1_asym": "Unsupported quantization config: bits=4, sym=False",
    "gptq/llama_v2_asym": "Unsupported quantization config: bits=4, sym=False",
    "gptq/llama_3bit": "Unsupported quantization config: bits=3, sym=False",
    "gptq/llama_static_groups": "(desc_act=True) is no longer supported",
    "awq/llama_gemv": "exceeds dimension size",
    "awq/llama_llm_awq": "exceeds dimension size",
    "compressed_tensors/llama_w2a16": "Failed to find a kernel",
}
NARROW = ["gptq/llama_3bit", "compressed_tensors/llama_w2a16"]
TWO_RANKS = [
    ("gptq/llama_v1_sym", CT),
    ("compressed_tensors/llama_w4a16", "gptq"),
    ("compressed_tensors/llama_w4a16_asym", "awq"),
]


@functools.cache
def served(folder, tp=1, dtype="float16"):
    """The prompt's log-probabilities; every parameter was filled, or vLLM would have refused."""
    run = ask("vllm", "vllm_cpu.py", folder, "--tp", tp, "--dtype", dtype)
    assert run["error"] is None, run["error"]
    return np.array(run["prompt_logprobs"][1:])


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Folder of a case converted for a target, or of its dense twin (target `twin`)."""
    folder = tmp_path_factory.mktemp("vllm")

    @functools.cache
    def make(case, target, bits=None):
        out = folder / case / target
        out.parent.mkdir(parents=True, exist_ok=True)
        if target == "twin":
            dense_twin.write(fixture(case), out)
        else:
            qbridge.convert(fixture(case), out, target, bits=bits)
        return out

    return make


def distance(first, second):
    return float(np.abs(first - second).max())


@pytest.mark.parametrize(("case", "target", "chosen"), SERVED_SOURCES)
def test_log_probabilities_are_the_sources_own_bit_for_bit(case, target, chosen, converted):
    out = converted(case, target)
    assert method(out) == chosen
    assert distance(served(out), served(fixture(case))) == 0, "vLLM computes something else from what we wrote"


@pytest.mark.parametrize(("case", "target"), TWO_RANKS)
def test_two_ranks_serve_what_we_write(case, target, converted):
    both = served(converted(case, target), tp=2)
    assert distance(both, served(fixture(case))) <= NOISE, "two ranks compute something else than one from the source"


@pytest.mark.parametrize(("case", "message"), REFUSALS.items())
def test_vllm_refuses_the_source(case, message):
    refusal = ask("vllm", "vllm_cpu.py", fixture(case), "--tp", 1, "--dtype", "float16")["error"]
    assert refusal and message in refusal["message"], "vLLM takes it unconverted, or refuses for another reason"


@pytest.mark.parametrize(("case", "target", "chosen"), REFUSED_SOURCES)
def test_what_vllm_refuses_is_served_after_conversion(case, target, chosen, converted):
    out, twin = converted(case, target), converted(case, "twin")
    assert method(out) == chosen
    assert distance(served(out), served(twin, dtype="float32")) <= NOISE, "vLLM computes something else than its twin"


@pytest.mark.parametrize("case", NARROW)
def test_narrow_codes_are_served_in_4_bits(case, converted):
    out, twin = converted(case, "vllm", bits=4), converted(case, "twin")
    assert distance(served(out), served(twin, dtype="float32")) <= NOISE, "vLLM computes something else than its twin"


def test_vllm_ignores_a_short_last_group_without_a_word(converted):
    case = "gptq/llama_short_group"
    twin = served(converted(case, "twin"), dtype="float32")
    assert distance(served(fixture(case)), twin) > 10 * NOISE, "vLLM has learned to read a short last group"


@pytest.mark.parametrize("target", ["vllm", "vllm-gptq", CT])
def test_a_short_last_group_is_written_as_vllm_reads_it(target, converted):
    case = "gptq/llama_short_group"
    twin = served(converted(case, "twin"), dtype="float32")
    assert distance(served(converted(case, target)), twin) <= NOISE, "vLLM misses the last group's scales"
