"""Every prover takes a sound checkpoint for clean, and no damaged one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import judges
import pytest
import torch
from engine import ROOT
from safetensors.torch import load_file, save_file

import qbridge

pytestmark = pytest.mark.engine

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Tensors, dict[str, Any]], None]
LANGUAGE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def vision_model(folder: Path) -> Path:
    """A tiny Qwen2.5-VL whose language model is float8, of random codes, and whose tower is not."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {"depth": 2, "hidden_size": 128, "intermediate_size": 256, "num_heads": 2, "out_hidden_size": 256}
    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}, "rope_theta": 1e6}
    config = Qwen2_5_VLConfig(text_config=TEXT | rope, vision_config=vision, tie_word_embeddings=False)
    return quantized(folder, Qwen2_5_VLForConditionalGeneration(config), "float8")


def experts(folder: Path) -> Path:
    """A tiny Qwen3-MoE in AWQ, with random codes."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"moe_intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 64}
    quantized(folder, Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, **sizes, tie_word_embeddings=False)), "awq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | sizes | {"torch_dtype": "float16"}))  # as transformers 4
    return folder


TEXT = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def quantized(folder: Path, model: torch.nn.Module, layout: str) -> Path:
    """Save a model with random codes in the place of the linears of its decoder layers."""
    torch.manual_seed(0)
    model.to(torch.float16 if layout == "awq" else torch.bfloat16).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if ".layers." in name and name.split(".")[-2] in LANGUAGE]:
        if name.endswith(".weight"):
            make = awq_parts if layout == "awq" else float8_parts
            tensors |= make(name.removesuffix(".weight"), tensors.pop(name))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": BLOCKS[layout]}))
    return folder


BLOCKS: dict[str, dict[str, Any]] = {
    "float8": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*visual.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
                "input_activations": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "token",
                    "dynamic": True,
                    "symmetric": True,
                },
            }
        },
    },
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "version": "gemm",
        "zero_point": True,
    },
}


def float8_parts(name: str, weight: torch.Tensor) -> Tensors:
    scale = weight.float().abs().amax(1, keepdim=True) / 448
    return {f"{name}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale.bfloat16()}


def awq_parts(name: str, weight: torch.Tensor) -> Tensors:
    rows, columns = weight.shape
    words = torch.iinfo(torch.int32)
    return {
        f"{name}.qweight": torch.randint(words.min, words.max, (columns, rows // 8), dtype=torch.int32),
        f"{name}.qzeros": torch.randint(words.min, words.max, (columns // 128, rows // 8), dtype=torch.int32),
        f"{name}.scales": torch.rand(columns // 128, rows).half() / 100,
    }


def fixture(folder: Path, name: str, target: str | None = None) -> Path:
    source = ROOT / "fixtures" / name / "model"
    if target:
        qbridge.convert(source, folder, target)
    else:
        shutil.copytree(source, folder)
    return folder


def odd_vocabulary(folder: Path) -> Path:
    """A Llama with 250 tokens, for whose embedding and head vLLM makes 256 rows."""

    def cut(tensors: Tensors, config: dict[str, Any]) -> None:
        config["vocab_size"] = 250
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:250]

    return damaged(ROOT / "fixtures/compressed_tensors/llama_w4a16/model", folder, cut)


# What a prover is given, by kind: with a list of what is not quantized, with experts, and dense.
SOUND: dict[str, dict[str, Callable[[Path], Path]]] = {
    "vllm": {
        "listed tower": lambda folder: vision_model(folder),
        "experts": lambda folder: fixture(folder, "compressed_tensors/qwen3_moe_fp8_dynamic"),
        "dense": lambda folder: fixture(folder, "compressed_tensors/llama_w4a16"),
        "padded vocabulary": odd_vocabulary,
    },
    "transformers": {
        "listed tower": lambda folder: vision_model(folder),
        "experts": lambda folder: fixture(folder, "compressed_tensors/qwen3_moe_fp8_dynamic"),
        "dense": lambda folder: fixture(folder, "compressed_tensors/llama_w4a16"),
    },
    "lmdeploy": {
        # LMDeploy never quantizes a tower; it asks the list about layers of Qwen3
        "listed layers": lambda folder: fixture(folder, "compressed_tensors/qwen3_partial", "lmdeploy"),
        "experts": lambda folder: fixture(folder, "compressed_tensors/mixtral_w8a8", "lmdeploy"),
        "experts of TurboMind": experts,
        "dense": lambda folder: fixture(folder, "fp8/llama_lmdeploy_block"),
    },
}


def lists(config: dict[str, Any]) -> list[str]:
    block = config["quantization_config"]
    names: list[str] = block.get("ignore", block.get("modules_to_not_convert"))
    return names


def list_dropped(tensors: Tensors, config: dict[str, Any]) -> None:
    lists(config)[:] = [name for name in lists(config) if name == "lm_head"]


def list_prefixed(tensors: Tensors, config: dict[str, Any]) -> None:
    # LMDeploy takes an entry that holds a module's name anywhere
    names = (
        name.removeprefix("re:.*").removesuffix(".*").replace("model.layers", "model.stack") for name in lists(config)
    )
    lists(config)[:] = [f"wrapped.{name}" for name in names]


def one(tensors: Tensors, *parts: str) -> str:
    return next(name for name in sorted(tensors) if all(part in name for part in parts))


def expert_lost(tensors: Tensors, config: dict[str, Any]) -> None:
    name = next(n for n in sorted(tensors) if ".experts.1." in n and n.split(".")[-2] in ("up_proj", "w3"))
    for lost in [n for n in tensors if n.startswith(name.rpartition(".")[0] + ".")]:
        del tensors[lost]


def scale_lost(tensors: Tensors, config: dict[str, Any]) -> None:
    del tensors[next(name for name in sorted(tensors) if "scale" in name and ("down_proj" in name or ".w2." in name))]


def shard_lost(tensors: Tensors, config: dict[str, Any]) -> None:
    for lost in [name for name in tensors if ".layers.0.self_attn.k_proj." in name]:
        del tensors[lost]


def prefix_changed(tensors: Tensors, config: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".layers.0.self_attn.o_proj." in name]:
        tensors[name.replace("self_attn", "attention")] = tensors.pop(name)


def shape_changed(tensors: Tensors, config: dict[str, Any]) -> None:
    name = next(n for n in sorted(tensors) if ".layers.0." in n and "scale" in n and tensors[n].numel() > 1)
    tensors[name] = tensors[name][: tensors[name].shape[0] // 2].contiguous()


def tensor_added(tensors: Tensors, config: dict[str, Any]) -> None:
    tensors[one(tensors, ".layers.0.", "o_proj").replace("o_proj", "p_proj")] = (
        torch.zeros(4, 4, dtype=torch.float16) + 1
    )


DAMAGES: dict[str, tuple[str, Damage]] = {
    "the list dropped": ("listed", list_dropped),
    "a prefix changed in the list": ("listed", list_prefixed),
    "an expert lost": ("experts", expert_lost),
    "an expert's scale lost": ("experts", scale_lost),
    "a scale lost": ("dense", scale_lost),
    "a shard lost": ("dense", shard_lost),
    "a prefix changed": ("dense", prefix_changed),
    "a shape changed": ("dense", shape_changed),
    "a tensor too many": ("dense", tensor_added),
}


def damaged(source: Path, folder: Path, damage: Damage) -> Path:
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    tensors, config = load_file(file), json.loads((folder / "config.json").read_text())
    damage(tensors, config)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("engine", SOUND)
def test_sound_checkpoints_are_clean_and_damaged_ones_are_not(engine, tmp_path):
    sound = {kind: make(tmp_path / kind) for kind, make in SOUND[engine].items()}
    mutants = {
        f"{kind}: {name}": damaged(folder, tmp_path / f"{kind}-{name}", damage)
        for kind, folder in sound.items()
        for name, (needs, damage) in DAMAGES.items()
        if kind.startswith(needs)
    }
    reports = judges.judge(engine, [*sound.values(), *mutants.values()])
    verdicts = {name: judges.short(reports[str(folder)]) for name, folder in (sound | mutants).items()}
    print("\n".join(f"{name:45} {verdict}" for name, verdict in verdicts.items()))
    assert {verdicts[kind] for kind in sound} == {"clean"}
    unseen = [
        name for name, folder in mutants.items() if reports[str(folder)]["verdict"] not in ("refused", "faulty")
    ]
    assert unseen == []


@pytest.mark.parametrize("engine", SOUND)
def test_quantized_modules_are_those_whose_tensors_are_codes(engine, tmp_path):
    sound = {kind: make(tmp_path / kind) for kind, make in SOUND[engine].items()}
    for path, report in judges.judge(engine, list(sound.values())).items():
        stored = judges.packed_modules(Path(path))
        assert judges.otherwise(stored, report["quantized"]) == {}
        assert sum(report["quantized"].values()) == sum(stored.values()) > 0


def test_every_rank_is_proved_and_its_number_is_told(tmp_path):
    whole = fixture(tmp_path / "whole", "compressed_tensors/qwen3_moe_fp8_dynamic")
    straddling = fixture(tmp_path / "straddling", "gptq/llama_640", "compressed-tensors")  # groups of 128, 320 a rank
    lost = damaged(whole, tmp_path / "lost", expert_lost)
    alone = judges.judge("vllm", [whole, straddling])
    assert {report["verdict"] for report in alone.values()} == {"clean"}
    both = judges.judge("vllm", [whole, straddling, lost], options=["--tp", "2"])
    assert both[str(whole)]["verdict"] == "clean", judges.short(both[str(whole)])
    assert both[str(straddling)]["error"]["message"].startswith("rank 0: ")
    assert "not divisible by group_size" in both[str(straddling)]["error"]["message"]
    assert {entry["rank"] for entry in both[str(lost)]["unfilled"]} == {0, 1}
