"""`qbridge prove` in real engines: sound outputs load, and each of five defects is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environments
import gguf_defects
import pytest
import torch
from engine import ROOT
from safetensors.torch import load_file, save_file

import qbridge

pytestmark = pytest.mark.engine

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.0.mlp.down_proj"
# By engine: its environment, a fixture, the target that it is converted for, and whether stubs stand in for a GPU.
ENGINES = {
    "transformers": ("llm-compressor", "compressed_tensors/llama_fp8_block", "transformers", ""),
    "vllm": ("vllm", "compressed_tensors/llama_fp8_block", "vllm", "sm90"),
    "sglang": ("sglang", "compressed_tensors/llama_fp8_block", "sglang", "sm90"),
    "lmdeploy": ("lmdeploy-0.18.0", "compressed_tensors/llama_w8a8", "lmdeploy", "sm90"),
    "gptqmodel": ("gptqmodel", "gptq/llama_g128", "gptqmodel", ""),
    "mlx": ("mlx", "compressed_tensors/llama_w4a16", "mlx", ""),
}


def of_layer(tensors: Tensors, part: str = "") -> list[str]:
    return [name for name in sorted(tensors) if name.startswith(f"{LAYER}.") and part in name]


def unquantized(tensors: Tensors, config: dict[str, Any]) -> None:
    for name in of_layer(tensors):
        del tensors[name]
    tensors[f"{LAYER}.weight"] = torch.ones(config["hidden_size"], config["intermediate_size"], dtype=torch.float16)


def listed(tensors: Tensors, config: dict[str, Any]) -> None:
    unquantized(tensors, config)
    if "quantization" in config:  # of mlx_lm, which asks it by the module's name
        config["quantization"][LAYER] = False
        return
    block = config["quantization_config"]
    key = "ignore" if "ignore" in block else "modules_to_not_convert"
    block[key] = [*(block.get(key) or ()), LAYER]


def missing(tensors: Tensors, config: dict[str, Any]) -> None:
    del tensors["model.layers.0.input_layernorm.weight"]


def one_too_many(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.extra_proj.weight"] = torch.ones(4, 4, dtype=torch.float16)


def scale_dropped(tensors: Tensors, config: dict[str, Any]) -> None:
    del tensors[of_layer(tensors, "scale")[0]]


def scale_transposed(tensors: Tensors, config: dict[str, Any]) -> None:
    (name,) = of_layer(tensors, "scale")
    tensors[name] = tensors[name].T


DEFECTS: dict[str, tuple[Callable[[Tensors, dict[str, Any]], None], str]] = {
    "a module left unquantized": (unquantized, LAYER),
    "a module left unquantized, and listed": (listed, LAYER),
    "a tensor missing": (missing, "layers.0.input_layernorm"),
    "one too many": (one_too_many, "extra_proj"),
    "a scale dropped": (scale_dropped, LAYER),
    "scales transposed": (scale_transposed, LAYER),
}


def damaged(source: Path, folder: Path, damage: Callable[[Tensors, dict[str, Any]], None]) -> Path:
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    tensors, config = load_file(file), json.loads((folder / "config.json").read_text())
    damage(tensors, config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sound_output_loads_and_each_defect_is_named(engine, tmp_path):
    environment, fixture, target, emulate = ENGINES[engine]
    python = str(environments.chosen(environment))
    good = tmp_path / "good"
    qbridge.convert(ROOT / "fixtures" / fixture / "model", good, target)
    proof = qbridge.prove(good, engine, python=python, emulate=emulate)
    assert proof.ok and proof.compared_with == "manifest" and proof.emulated == (emulate or None), str(proof)
    for name, (damage, word) in DEFECTS.items():
        proof = qbridge.prove(damaged(good, tmp_path / name, damage), engine, python=python, emulate=emulate)
        assert proof.verdict == "does not load" and word in str(proof), (name, str(proof))


def test_single_values_without_an_axis_are_no_defect(tmp_path):
    qbridge.convert(
        ROOT / "fixtures/modelopt/llama_fp8_kv/model", tmp_path / "out", "transformers", allow=["rounded"]
    )
    proof = qbridge.prove(tmp_path / "out", "transformers", python=str(environments.chosen("llm-compressor")))
    assert proof.ok, str(proof)


@pytest.mark.parametrize("name", ["llama_w4a16_asym", "llama_w6a16_asym", "llama_static_asym"])
def test_zero_points_in_words_are_no_defect_of_a_checkpoint_that_the_real_tool_wrote(name):
    python = str(environments.chosen("llm-compressor"))
    proof = qbridge.prove(ROOT / "fixtures/compressed_tensors" / name / "model", "transformers", python=python)
    assert proof.ok and proof.quantized >= 7, str(proof)


@pytest.mark.skipif("QBRIDGE_LLAMACPP" not in os.environ, reason="QBRIDGE_LLAMACPP is not set")
def test_llama_cpp_loads_a_sound_output_and_each_defect_is_named(tmp_path):
    python = str(Path(os.environ["QBRIDGE_LLAMACPP"]).parent / "bin/python")  # below whose prefix libllama is
    source, good = ROOT / "fixtures/compressed_tensors/llama_w4a16/model", tmp_path / "good"
    qbridge.convert(source, good, "gguf", allow=["no-tokenizer"])
    proof = qbridge.prove(good, "llama.cpp", python=python)
    assert proof.ok and proof.compared_with == "manifest" and proof.quantized == 7, str(proof)
    for name, (damage, word) in gguf_defects.DEFECTS.items():
        shutil.copytree(good, tmp_path / name)
        gguf_defects.inflict(damage, tmp_path / name / "model.gguf")
        proof = qbridge.prove(tmp_path / name, "llama.cpp", python=python)
        assert proof.verdict == "does not load" and word in str(proof), (name, str(proof))


def test_vllm_loads_on_its_own_device_at_every_rank(tmp_path):
    python = str(environments.chosen("vllm"))
    qbridge.convert(ROOT / "fixtures/gptq/llama_v1_asym/model", tmp_path / "out", "vllm", tp=2)
    for tp in (1, 2):
        proof = qbridge.prove(tmp_path / "out", "vllm", python=python, tp=tp)
        assert proof.ok and proof.emulated is None and not proof.stubs, str(proof)
