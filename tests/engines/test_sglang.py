"""What SGLang's own classes and loaders make of checkpoints as they are, and of what is converted for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import engine
import judges
import numpy as np
import pytest
import sweep_sglang
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

import qbridge

pytestmark = pytest.mark.engine
FIXTURES = Path(__file__).resolve().parent.parent.parent / "fixtures"
# Broken as they are, with the words with which SGLang stops, or the parameters that it leaves unfilled.
RESCUED = {
    "fp8/llama_blocks": ("missing", "weight_scale_inv", ()),
    "fp8/llama_lmdeploy_block": ("missing", "weight_scale_inv", ()),
    "compressed_tensors/qwen3_moe_w8a8": ("error", "implemented only for NPU", ()),
    "compressed_tensors/mixtral_w8a8": ("error", "implemented only for NPU", ()),
    "compressed_tensors/llama_static": ("error", "index 1 is out of bounds", ("dynamic-activations",)),
    "compressed_tensors/llama_static_asym": ("error", "index 1 is out of bounds", ("dynamic-activations",)),
}
FORMATS = {"fp8": "compressed-tensors", "qwen3_moe": "w8a8", "mixtral": "w8a8", "llama_static": "compressed-tensors"}


@pytest.fixture(scope="module")
def proofs(tmp_path_factory):
    """{case: (report of the source, report of the output, the conversion's own)}."""
    made = tmp_path_factory.mktemp("sglang")
    sources = {case: FIXTURES / case / "model" for case in RESCUED}
    outputs = {case: made / case.replace("/", "+") for case in RESCUED}
    told = {case: qbridge.convert(sources[case], outputs[case], "sglang", allow=RESCUED[case][2]) for case in RESCUED}
    reports = judges.judge("sglang", [*sources.values(), *outputs.values()])
    return {case: (reports[str(sources[case])], reports[str(outputs[case])], told[case]) for case in RESCUED}


@pytest.mark.parametrize("case", RESCUED)
def test_what_is_broken_as_it_is_loads_whole_when_it_is_converted(case, proofs):
    kind, words, allow = RESCUED[case]
    before, after, told = proofs[case]
    said = before["error"]["message"] if kind == "error" else " ".join(before["missing"])
    assert before["verdict"] == ("refused" if kind == "error" else "faulty") and words in said
    assert judges.short(after) == "clean"
    assert told.format == next(name for key, name in FORMATS.items() if key in case)
    assert told.activations_changed == (told.layers if allow else 0)
    assert judges.otherwise(judges.packed_modules(Path(after["checkpoint"])), after["quantized"]) == {}


@pytest.mark.parametrize("case", RESCUED)
def test_the_rescue_keeps_every_weight(case, proofs):
    source, output = FIXTURES / case / "model", Path(proofs[case][1]["checkpoint"])
    with qbridge.open(source) as one, qbridge.open(output) as other:
        assert set(one.specs) == set(other.specs)
        for name in one.specs:
            before, after = one.layer(name).arrays, other.layer(name).arrays
            assert before["code"].tobytes() == after["code"].tobytes(), name


def test_two_ranks_load_what_was_made_for_two(tmp_path):
    cases = ("compressed_tensors/qwen3_moe_w8a8", "compressed_tensors/qwen3_moe_fp8_dynamic", "gptq/llama_640")
    for case in cases:
        qbridge.convert(FIXTURES / case / "model", tmp_path / case, "sglang", tp=2, pad=True)
    outputs = [tmp_path / case for case in cases]
    reports = judges.judge("sglang", outputs, options=["--tp", "2"])
    assert {path: judges.short(report) for path, report in reports.items()} == {
        str(path): "clean" for path in outputs
    }


def gptq(folder: Path, hidden: int, intermediate: int, group: int) -> Path:
    """A Llama of one layer in symmetric 4 bits, of random codes."""
    random = np.random.default_rng(0)
    sizes = {name: (hidden, hidden) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    sizes |= {
        "gate_proj": (intermediate, hidden),
        "up_proj": (intermediate, hidden),
        "down_proj": (hidden, intermediate),
    }
    tensors = {}
    for leaf, (rows, columns) in sizes.items():
        name = f"model.layers.0.{'self_attn' if leaf[0] in 'qkvo' else 'mlp'}.{leaf}"
        tensors[f"{name}.qweight"] = random.integers(-(2**31), 2**31, (columns // 8, rows), dtype=np.int32)
        tensors[f"{name}.qzeros"] = np.full((columns // group, rows // 8), 0x77777777, np.int32)
        tensors[f"{name}.scales"] = random.uniform(0.01, 0.02, (columns // group, rows)).astype(np.float16)
    for name in ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"):
        tensors[f"{name}.weight"] = np.ones(hidden, np.float16)
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"{name}.weight"] = random.normal(size=(256, hidden)).astype(np.float16)
    keys = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 1, "vocab_size": 256}
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "hidden_act": "silu"}
    block = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": True, "desc_act": False}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16"}
    folder.mkdir()
    save_numpy(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | keys | heads | {"quantization_config": block}))
    return folder


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize(("intermediate", "group", "step"), [(1344, 64, "pad"), (1536, 256, "regroup")])
def test_padded_and_regrouped_outputs_pass_its_shapes_where_the_original_does_not(
    intermediate, group, step, tp, tmp_path
):
    source = gptq(tmp_path / "source", 512, intermediate, group)  # at tp 4 a rank has 336, or one group and a half
    told = qbridge.convert(source, tmp_path / "output", "sglang", tp=tp, pad=step == "pad")
    before, after = judges.judge("sglang", [source, tmp_path / "output"], options=["--tp", str(tp)]).values()
    assert step in told.passes and before["verdict"] == "refused", judges.short(before)
    assert judges.short(after) == "clean"


def damaged(source: Path, folder: Path, kind: str) -> Path:
    """A copy with a tensor lost, cut in two, or called otherwise; or with a list that says what is not so."""
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    tensors, config = load_file(file), json.loads((folder / "config.json").read_text())
    scales = sorted(name for name in tensors if "scale" in name and "down_proj" in name)
    if kind == "lost":
        del tensors[scales[0]]
    elif kind == "renamed":
        tensors[scales[0].replace("scale", "factor")] = tensors.pop(scales[0])
    elif kind == "cut":
        tensors[scales[0]] = tensors[scales[0]][: len(tensors[scales[0]]) // 2].contiguous()
    elif kind == "shard":
        for name in [name for name in tensors if ".layers.0.self_attn.k_proj." in name]:
            del tensors[name]
    elif kind == "listed":
        block = config["quantization_config"]
        block["ignore"] = [*block.get("ignore", []), scales[0].rpartition(".")[0]]
    elif kind == "extra":
        tensors["model.layers.0.self_attn.p_proj.weight"] = torch.ones(4, 4, dtype=torch.float16)
    save_file(tensors, file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("case", ["compressed_tensors/llama_fp8_dynamic", "compressed_tensors/llama_w4a16_g128"])
def test_the_prover_objects_to_damaged_outputs(case, tmp_path):
    kinds = ("lost", "renamed", "cut", "shard", "listed", "extra")
    qbridge.convert(FIXTURES / case / "model", tmp_path / "sound", "sglang")
    mutants = {kind: damaged(tmp_path / "sound", tmp_path / kind, kind) for kind in kinds}
    reports = judges.judge("sglang", [tmp_path / "sound", *mutants.values()])
    assert judges.short(reports[str(tmp_path / "sound")]) == "clean"
    unseen = [kind for kind, path in mutants.items() if reports[str(path)]["verdict"] not in ("refused", "faulty")]
    assert unseen == []


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """{tp: what SGLang makes of every fixture and of what it is converted to}; each is swept when it is asked for."""

    @cache
    def at(tp):
        return list(sweep_sglang.swept(sorted(FIXTURES.glob("*/*/model")), tmp_path_factory.mktemp(f"tp{tp}"), tp))

    return at


def test_check_agrees_with_the_loader_on_every_fixture(rows):
    """`check` is stricter where a loader cannot see what the kernel makes of it.

    Codes of int8 with a scale per tensor are rounded to float8 after loading (requantize_with_max_scale), and the
    zero-points of activations are left out (apply_weights).
    """
    stricter = {"llama_tensor", "llama_token_asym"}
    unlike = {
        Path(row["source"]).parent.name
        for row in rows(1)
        if (row["check"] == "") != (row["source_report"]["verdict"] == "clean")
    }
    assert unlike == stricter


@pytest.mark.parametrize("tp", [1, 2])
def test_every_output_loads_whole_with_the_weights_of_its_source(tp, rows):
    outputs = [row for row in rows(tp) if row["to"]]
    assert len(outputs) > {1: 110, 2: 40}[tp]
    assert [row for row in outputs if row["output_report"]["verdict"] != "clean" or row["undecoded"]] == []
    assert {row["source"]: row["unequal"] for row in outputs if row["unequal"]} == {}


# Classes with what SGLang makes of them: through transformers, without the block for some linears, with other names,
# with a tower that the block reaches or does not, without a class, with keys that transformers does not save.
CLASSES = (
    *("Llama-awq", "Cwm-gptq", "Cwm-w4a16", "Glm-gptq", "Olmo-gptq", "StableLm-w4a16", "GPTJ-gptq", "GPTJ-w4a16"),
    *("Qwen3VL_cg-gptq", "Gemma3_cg-gptq", "Gemma3_cg-w4a16", "Qwen2_5_VL_cg-awq", "Exaone4_5__cg-awq"),
    *("DeepseekV3-w4a16", "MiniCPM3-awq", "GraniteMoe-gptq", "FalconH1-awq", "Whisper_cg-w4a16", "Gemma2-w4a16"),
)


def test_check_agrees_with_the_loaders_of_model_classes(tmp_path):
    subprocess.run([sys.executable, engine.ROOT / "tests/architectures/make.py", tmp_path, *CLASSES], check=True)
    cases = [tmp_path / name / "model" for name in CLASSES]
    reports = judges.judge("sglang", cases)
    unlike = {
        path.parent.name: judges.short(reports[str(path)])
        for path in cases
        if qbridge.check(path, "sglang").ok != (reports[str(path)]["verdict"] == "clean")
    }
    assert unlike == {}


def test_a_text_model_under_its_present_name_is_renamed_as_the_advice_says(tmp_path):
    """Gemma 3's loader takes its former names alone."""
    name = "Gemma3_cg-w4a16"
    subprocess.run([sys.executable, engine.ROOT / "tests/architectures/make.py", tmp_path, name], check=True)
    there = {"language_model.model": "model.language_model", "vision_tower": "model.vision_tower"}
    there |= {"multi_modal_projector": "model.multi_modal_projector"}
    modern, output = tmp_path / "modern", tmp_path / "out"
    qbridge.convert(tmp_path / name / "model", modern, "compressed-tensors", rename_prefix=there)
    back = {new: old for old, new in there.items()}
    (advice,) = [finding.help[0] for finding in qbridge.check(modern, "sglang").findings if finding.code == "QB269"]
    assert all(f"--rename-prefix {old}={new}" in str(advice) for old, new in back.items())
    qbridge.convert(modern, output, "sglang", rename_prefix=back)
    assert [report["verdict"] for report in judges.judge("sglang", [modern, output]).values()] == ["refused", "clean"]
