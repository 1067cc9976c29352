"""What is written as MLX, loaded strictly by mlx_lm and computed in float32, against the float32 twin of the source.

The twin is the dense model with the weights that the codes stand for; mlx_lm renames and stacks it by itself, so that
names and the order of experts are held against its own.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import environments
import numpy as np
import pytest
from engine import HERE, ROOT, ask
from safetensors.numpy import load_file, save_file
from weight_only import fixture

import qbridge
from qbridge.architecture.config import spell
from qbridge.architecture.mlx_names import FAMILIES, MlxNames
from qbridge.ir.values import dequantize
from qbridge.targets.mlx import READER
from qbridge.targets.mlx.keys import REQUIRED

pytestmark = pytest.mark.engine

NEAR = 0.02  # of the log-probability of any token after any of 32 ids
CT = "compressed_tensors"
CASES = [
    "awq/llama_gemm",
    f"{CT}/llama_mxfp4a16",
    f"{CT}/llama_mxfp8",
    f"{CT}/llama_w4a16",
    f"{CT}/llama_w4a16_asym",
    f"{CT}/llama_w4a16_channel",
    f"{CT}/llama_w5a16",
    f"{CT}/llama_w8a8",
    f"{CT}/mixtral_w8a8",
    f"{CT}/qwen2_w4a16_tied",
    f"{CT}/qwen3_moe_w4a16",
    f"{CT}/qwen3_w8a8",
    "gptq/llama_v2_asym",
    "gptq/qwen3_moe_v1_sym",
    "mlx/llama_affine",
    "mlx/llama_floats",
    "mlx/llama_zero_points",
]


def loaded(folder, *options):
    """The report of mlx_lm's own loader, which has raised nothing."""
    report = ask("mlx", "mlx_loading.py", folder, *options)
    assert report["error"] is None, report["error"]
    return report


def twin_of(src, folder):
    """The float32 twin of a checkpoint, under the names of transformers and in words that mlx_lm knows."""
    qbridge.convert(src, folder, "dense", dtype="float32")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(spell(config, READER)))
    return folder


def distance(out, twin, tmp_path):
    """The largest difference of a log-probability."""
    found = []
    for number, folder in enumerate((out, twin)):
        loaded(folder, "--logprobs", tmp_path / f"{number}.npy")
        found.append(np.load(tmp_path / f"{number}.npy"))
    return float(np.abs(found[0] - found[1]).max())


def expected(src):
    """float32 weights of a checkpoint by (name in mlx_lm, expert)."""
    with qbridge.open(src) as opened:
        names = MlxNames(opened.model.config)
        places = {name: names.place(name) for name in opened.specs}
        return {
            (place.name, place.expert): dequantize(opened.layer(name)).astype(np.float32)
            for name, place in places.items()
        }


@pytest.mark.parametrize("case", CASES)
def test_mlx_dequantizes_to_the_weights_of_the_source(case, tmp_path):
    qbridge.convert(fixture(case), tmp_path / "out", "mlx")
    loaded(tmp_path / "out", "--out", tmp_path / "weights.npz")
    weights = np.load(tmp_path / "weights.npz")
    wanted = expected(fixture(case))
    assert {name for name, _ in wanted} == set(weights.files)
    for (name, expert), values in wanted.items():
        written = weights[name] if expert < 0 else weights[name][expert]
        assert np.array_equal(written, values), name


@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_the_twin(case, tmp_path):
    qbridge.convert(fixture(case), tmp_path / "out", "mlx")
    assert distance(tmp_path / "out", twin_of(fixture(case), tmp_path / "twin"), tmp_path) < NEAR


def made(name, folder):
    """A small checkpoint of a class, in a format that is given."""
    subprocess.run(
        [environments.sys.executable, ROOT / "tests/architectures/make.py", folder, name],
        check=True,
        capture_output=True,
    )
    return folder / name / "model"


@pytest.mark.parametrize(
    "name",
    [
        *("Cohere-w4a16", "DeepseekV3-w4a16", "Dots1-w4a16", "Glm4Moe-w4a16", "Jamba-w8a8", "KimiK25_cg-w4a16"),
        *("Lfm2-w4a16", "Llava_cg-awq", "Mixtral-awq", "Olmo2-w4a16", "Olmoe-w4a16", "Phi3-w4a16", "Qwen2Moe-w4a16"),
        *("Qwen2_5_VL_cg-awq", "Qwen3-auto-round", "Qwen3Moe-awq"),
    ],
)
def test_classes_are_loaded_under_the_names_of_their_experts(name, tmp_path):
    src = made(name, tmp_path / "made")
    qbridge.convert(src, tmp_path / "out", "mlx")
    assert distance(tmp_path / "out", twin_of(src, tmp_path / "twin"), tmp_path) < NEAR


def test_gemma_3_has_windows_in_turns(tmp_path):
    src = made("Gemma3-w4a16", tmp_path / "made")
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(config | {"sliding_window_pattern": 2}))  # of two layers
    qbridge.convert(src, tmp_path / "out", "mlx")
    assert distance(tmp_path / "out", twin_of(src, tmp_path / "twin"), tmp_path) < NEAR


@pytest.mark.parametrize("case", ["mlx/gemma3_affine", "mlx/qwen3_moe_affine"])
def test_offsets_stay_what_they_are(case, tmp_path):
    qbridge.convert(fixture(case), tmp_path / "out", "mlx")
    loaded(tmp_path / "out", "--out", tmp_path / "weights.npz")
    weights = np.load(tmp_path / "weights.npz")
    for (name, expert), values in expected(fixture(case)).items():
        assert np.array_equal(weights[name] if expert < 0 else weights[name][expert], values), name


def swap(first, second):
    """Exchange the tensors whose names have one word for those that have the other."""

    def mutate(tensors):
        for name in [name for name in tensors if first in name]:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    return mutate


def swap_experts(tensors):
    for name in [name for name in tensors if "switch_mlp" in name]:
        tensors[name] = np.ascontiguousarray(tensors[name][::-1])


def double_a_scale(tensors):
    name = next(name for name in tensors if name.endswith("o_proj.scales"))
    tensors[name] = (tensors[name].astype(np.float32) * 2).astype(tensors[name].dtype)


def exchange_nibbles(tensors):
    for name in [name for name in tensors if tensors[name].dtype == np.uint32]:
        words = tensors[name]
        tensors[name] = (words & 0x0F0F0F0F) << 4 | (words & 0xF0F0F0F0) >> 4


MUTANTS = {
    "gate and up": swap("gate_proj", "up_proj"),
    "experts": swap_experts,
    "a scale": double_a_scale,
    "nibbles": exchange_nibbles,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mutant_is_told_from_the_twin(mutant, tmp_path):
    src = fixture("gptq/qwen3_moe_v1_sym")
    qbridge.convert(src, tmp_path / "out", "mlx")
    twin = twin_of(src, tmp_path / "twin")
    assert distance(tmp_path / "out", twin, tmp_path) < NEAR
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    MUTANTS[mutant](tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    assert distance(tmp_path / "out", twin, tmp_path) > NEAR


FIELDS = """
import dataclasses, importlib, json, sys
from mlx_lm.utils import MODEL_REMAPPING
found = {}
for kind in sys.argv[1:]:
    module = importlib.import_module("mlx_lm.models." + MODEL_REMAPPING.get(kind, kind))
    fields = dataclasses.fields(module.ModelArgs)
    empty = dataclasses.MISSING
    found[kind] = [field.name for field in fields if field.default is empty and field.default_factory is empty]
print(json.dumps(found))
"""


def test_the_keys_that_it_asks_for_are_those_of_its_classes():
    done = subprocess.run(
        [environments.chosen("mlx"), "-c", FIELDS, *FAMILIES], check=True, capture_output=True, text=True
    )
    asked = json.loads(done.stdout.splitlines()[-1])
    assert asked.keys() == FAMILIES.keys()
    for kind, keys in REQUIRED.items():
        assert set(keys) <= set(asked[kind]), kind
    may_lack = {"rope_theta", "head_dim", "rope_scaling", "partial_rotary_factor", "rotary_dim", "block_dim"}
    for kind, keys in asked.items():
        assert set(keys) & may_lack <= set(REQUIRED.get(kind, ())), kind


def test_the_prover_takes_what_is_written(tmp_path):
    qbridge.convert(fixture(f"{CT}/qwen3_moe_w4a16"), tmp_path / "out", "mlx")
    prover = ROOT / "bridge/qbridge/targets/mlx/prover.py"
    done = subprocess.run([environments.chosen("mlx"), prover, tmp_path / "out"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) == (0, "clean")
    assert report["quantized"]["model.layers.0.mlp.switch_mlp.gate_proj"] is True
    file = tmp_path / "out/model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file(tensors, file)
    done = subprocess.run([environments.chosen("mlx"), prover, tmp_path / "out"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"], report["missing"]) == (1, "refused", ["model.norm.weight"])


def test_the_fixtures_are_what_the_tool_writes_today(tmp_path):
    maker = ROOT / "fixtures/makers/mlx_converted.py"
    command = [environments.chosen("mlx"), maker, "llama_zero_points"]
    subprocess.run(
        command, check=True, capture_output=True, env=environments.os.environ | {"QBRIDGE_FIXTURES": str(tmp_path)}
    )
    made, stored = (home / "mlx/llama_zero_points/model/model.safetensors" for home in (tmp_path, ROOT / "fixtures"))
    assert Path(made).read_bytes() == Path(stored).read_bytes()
    assert (HERE / "drivers/mlx_loading.py").is_file()
