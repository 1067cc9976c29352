"""Linears and dims from config.json alone, against transformers' module trees."""

from __future__ import annotations

import json
from collections import Counter

import pytest

import make_sharding as facts
import qbridge
from qbridge.architecture.architecture import Architecture
from qbridge.architecture.classes import CLASSES
from qbridge.architecture.from_config import assumed_model
from qbridge.source.folder import Folder
from support import ROOT

BLOCK = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
LATENT = ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"]
VARIANTS = [*((name, {}) for name in facts.regular(CLASSES)), *((name, {"q_lora_rank": None}) for name in LATENT)]


def write(folder, architecture, **changes):
    """A folder with the small model's config.json and nothing else."""
    config = facts.instance(architecture, **changes).config.to_dict()
    found = {**config, "architectures": [architecture], "quantization_config": BLOCK}
    (folder / "config.json").write_text(json.dumps(found, default=str))
    return found


def tail(name):
    """Layer, whether it is in an expert or a shared one, and the last name: blocks have other names in memory."""
    parts = name.split(".")
    layer = next(int(part) for part in parts if part.isdigit())
    return layer, "experts" in parts, "shared" in name, parts[-1]


@pytest.mark.parametrize(("architecture", "changes"), VARIANTS, ids=str)
def test_linears_are_those_of_the_module_tree(architecture, changes, tmp_path):
    config = write(tmp_path, architecture, **changes)
    wanted = Counter()
    for name, out, into in facts.linears(architecture, **changes):
        wanted[(*tail(name), out, into)] += facts.DIMS["num_experts"] if ".experts." in name else 1
    found = assumed_model(Folder(tmp_path))
    assert Counter((*tail(name), s.out_features, s.in_features) for name, s in found.specs.items()) == wanted
    assert (
        not any(".experts." in name for name in found.specs)
        or Architecture.of(config).experts == facts.DIMS["num_experts"]
    )


@pytest.mark.parametrize("architecture", facts.regular(CLASSES))
def test_every_architecture_of_the_table_is_checked(architecture, tmp_path):
    write(tmp_path, architecture)
    done = qbridge.check(tmp_path, "vllm", 3)
    assert done.assumed and done.layers > 0
    assert not {"QB252", "QB262", "QB263"} & {finding.code for finding in done.findings}


@pytest.mark.parametrize("case", ["gptq/qwen3_moe_v1_sym", "compressed_tensors/qwen3_moe_w4a16"])
def test_experts_of_a_real_checkpoint(case, tmp_path):
    there = ROOT / "fixtures" / case / "model"
    (tmp_path / "config.json").write_bytes((there / "config.json").read_bytes())
    with qbridge.open(there) as opened:
        wanted = {name: (s.out_features, s.in_features) for name, s in opened.specs.items()}
    assert {n: (s.out_features, s.in_features) for n, s in assumed_model(Folder(tmp_path)).specs.items()} == wanted
