"""Forward passes of several model classes in vLLM on the CPU: what we write computes what its source computes.

The checkpoints are small ones of transformers' own classes (tests/architectures/make.py). vLLM has no CPU kernel for
quantized experts: here experts are plain in the quantized checkpoints, and quantized ones are served as the plain
floats that `--to dense` makes of them. Multimodal models are served without their towers. One thread computes, as two
sum what experts give in whichever order they end.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import dense_twin
import numpy as np
import pytest
import torch
from engine import ROOT, ask
from safetensors.torch import load_file, save_file
from weight_only import method

import qbridge

pytestmark = pytest.mark.engine

MAKER = ROOT / "tests/architectures/make.py"
IDS = 40
NOISE = 0.02  # float16 against float32, as in test_weight_only_vllm.py
WRONG = 0.05
EXPERTS = r"\.experts\."
Tensors = dict[str, torch.Tensor]


def exchanged(tensors: Tensors, one: str, other: str) -> Tensors:
    """Tensors of which two modules, parts of names such as `.k_proj.`, have each other's values."""
    mates = {
        name: name.replace(*pair) for pair in ((one, other), (other, one)) for name in tensors if pair[0] in name
    }
    assert mates and mates.keys() <= tensors.keys()
    return {name: tensors[mates.get(name, name)] for name in tensors}


def values_as_keys(tensors: Tensors) -> Tensors:
    return exchanged(tensors, ".k_proj.", ".v_proj.")


def one_expert_as_another(tensors: Tensors) -> Tensors:
    return exchanged(tensors, ".experts.0.", ".experts.1.")


def keys_before_queries(tensors: Tensors) -> Tensors:
    """The rows of a linear of queries, keys and values in another order: 4 heads of 64 and 2 each of the others."""
    order = torch.cat([torch.arange(256, 384), torch.arange(256), torch.arange(384, 512)])
    rows = {name for name, tensor in tensors.items() if ".0.self_attn.qkv_proj." in name and len(tensor) == 512}
    assert rows
    return {name: tensor[order] if name in rows else tensor for name, tensor in tensors.items()}


def scales_of_half_the_outputs_doubled(tensors: Tensors) -> Tensors:
    """Of half of them: Gemma 3 divides the outputs by their own size."""
    name = next(name for name in tensors if name.endswith("layers.0.mlp.down_proj.scales"))
    scales = tensors[name].clone()
    scales[:, ::2] *= 2
    return {**tensors, name: scales}


@dataclass(frozen=True)
class Case:
    """A checkpoint to make, the target, the format that it chooses, how vLLM serves both, and a wrong output."""

    made: str
    target: str
    chosen: str
    mutant: Callable[[Tensors], Tensors]
    dtype: str = "float16"
    text_only: bool = False


CASES = {
    "Gemma 3": Case(
        "Gemma3_cg-w4a16", "vllm-gptq", "gptq", scales_of_half_the_outputs_doubled, "bfloat16", text_only=True
    ),
    "Qwen3-VL": Case("Qwen3VL_cg-gptq", "compressed-tensors", "compressed-tensors", values_as_keys, text_only=True),
    "Phi-3": Case("Phi3-awq", "compressed-tensors", "compressed-tensors", keys_before_queries),
    "Qwen3-MoE": Case("Qwen3Moe-auto-round", "vllm", "compressed-tensors", one_expert_as_another),
    "Mixtral": Case("Mixtral-w4a16", "vllm-gptq", "gptq", one_expert_as_another),
}
QUANTIZED_EXPERTS = {"Qwen3Moe-w4a16": "awq", "Mixtral-awq": "compressed-tensors"}  # and a format on the way


@functools.cache
def served(folder: Path, dtype: str, text_only: bool = False) -> np.ndarray:
    """Log-probabilities [IDS - 1] of a prompt's ids; every parameter was filled, or vLLM would have refused."""
    more = ["--text-only"] if text_only else []
    run = ask("vllm", "vllm_cpu.py", folder, "--dtype", dtype, "--length", IDS, "--threads", 1, *more)
    assert run["error"] is None, run["error"]
    return np.array(run["prompt_logprobs"][1:])


def distance(first: np.ndarray, second: np.ndarray) -> float:
    found = float(np.abs(first - second).max())
    print(f"largest difference of {len(first)} log-probabilities: {found:.5f}")
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a case's source, of its output, or of the source's dense twin in float32."""
    folder = tmp_path_factory.mktemp("made")

    @functools.cache
    def make(name, what):
        case, out = CASES[name], folder / f"{name}-{what}"
        if what == "source":
            return make_checkpoint(case.made, out, "--leave", EXPERTS)
        if what == "twin":
            dense_twin.write(make(name, "source"), out)
            return out
        report = qbridge.convert(make(name, "source"), out, case.target)
        assert report.format == method(out) == case.chosen
        return out

    return make


def make_checkpoint(name: str, out: Path, *options: str) -> Path:
    """The folder of a checkpoint that tests/architectures/make.py makes by its name there."""
    subprocess.run([sys.executable, MAKER, out, name, *options], check=True)
    return out / name / "model"


def altered(folder: Path, change: Callable[[Tensors], Tensors], out: Path) -> Path:
    """A copy of a checkpoint of one file with other tensors."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    save_file(change(tensors), out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("name", CASES)
def test_the_output_computes_what_the_source_computes(name, made):
    case = CASES[name]
    both = [served(made(name, what), case.dtype, case.text_only) for what in ("output", "source")]
    assert distance(*both) == 0, "vLLM computes something else from what we wrote"


# vLLM serves Gemma 3 in bfloat16 alone: a twin in bfloat16 and one in float32 both differ by more than the bound.
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.dtype == "float16"])
def test_the_output_computes_what_its_codes_stand_for(name, made):
    case = CASES[name]
    twin = served(made(name, "twin"), "float32", case.text_only)
    assert distance(served(made(name, "output"), case.dtype, case.text_only), twin) <= NOISE


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_output_is_seen(name, made, tmp_path):
    case = CASES[name]
    mutant = altered(made(name, "output"), case.mutant, tmp_path / "mutant")
    source = served(made(name, "source"), case.dtype, case.text_only)
    assert distance(served(mutant, case.dtype, case.text_only), source) > WRONG


@pytest.mark.parametrize("name", QUANTIZED_EXPERTS)
def test_quantized_experts_compute_the_same_as_plain_floats(name, tmp_path):
    between, twin = QUANTIZED_EXPERTS[name], tmp_path / "twin"
    source = make_checkpoint(name, tmp_path / "made")
    dense_twin.write(source, twin)
    qbridge.convert(source, tmp_path / between, between)
    qbridge.convert(tmp_path / between, tmp_path / "dense", "dense", dtype="float32")
    mutant = altered(tmp_path / "dense", one_expert_as_another, tmp_path / "mutant")
    expected = served(twin, "float32")
    assert distance(served(tmp_path / "dense", "float32"), expected) == 0
    assert distance(served(mutant, "float32"), expected) > WRONG
