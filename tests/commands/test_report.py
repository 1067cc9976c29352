"""What a conversion says it costs: bytes of tensors, and padding in weights and FLOPs."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file

import qbridge
from qbridge.architecture.architecture import Architecture
from support import ROOT, cli

PADDED = ROOT / "fixtures/gptq/llama_640/model"  # 640 intermediate features, groups of 128
SPARSE = ROOT / "fixtures/gptq/qwen3_moe_v1_sym/model"


def tensor_bytes(folder):
    return sum(array.nbytes for file in folder.glob("*.safetensors") for array in load_file(file).values())


def linear_weights(folder):
    with qbridge.open(folder) as model:
        return {name: spec.out_features * spec.in_features for name, spec in model.specs.items()}


def grown(sides):
    return sides["after"] / sides["before"]


@pytest.mark.parametrize("options", [{}, {"tp": 2, "pad": True}, {"bits": 8}], ids=str)
@pytest.mark.parametrize("dry_run", [True, False])
def test_bytes_are_those_of_the_tensors(options, dry_run, tmp_path):
    done = qbridge.convert(PADDED, tmp_path / "out", "compressed-tensors", dry_run=dry_run, **options)
    if dry_run:
        qbridge.convert(PADDED, tmp_path / "out", "compressed-tensors", **options)
    assert done.tensor_bytes == {"before": tensor_bytes(PADDED), "after": tensor_bytes(tmp_path / "out")}


def test_nothing_is_padded_unasked(tmp_path):
    done = qbridge.convert(PADDED, tmp_path / "out", "vllm", dry_run=True, tp=2)
    total = sum(linear_weights(PADDED).values())
    assert done.weights == {"before": total, "after": total} and done.flops == {
        "before": 2 * total,
        "after": 2 * total,
    }


def test_padding_costs_weights_and_flops(tmp_path):
    done = qbridge.convert(PADDED, tmp_path / "out", "vllm", tp=2, pad=True)
    for side, folder in (("before", PADDED), ("after", tmp_path / "out")):
        assert done.weights[side] == sum(linear_weights(folder).values())
        assert done.flops[side] == 2 * done.weights[side]
    assert grown(done.weights) > 1
    back = qbridge.restore(tmp_path / "out", tmp_path / "back", dry_run=True)
    assert back.weights == {"before": done.weights["after"], "after": done.weights["before"]}


def test_a_token_meets_the_chosen_experts_only(tmp_path):
    config = json.loads((SPARSE / "config.json").read_text())
    chosen, experts = Architecture.of(config).routed
    assert (chosen, experts) == (config["num_experts_per_tok"], config["num_local_experts"]) and chosen < experts
    done = qbridge.convert(SPARSE, tmp_path / "out", "vllm", dry_run=True)
    weights = linear_weights(SPARSE)
    inside = sum(count for name, count in weights.items() if ".experts." in name)
    assert done.flops["before"] == 2 * (sum(weights.values()) - inside + inside * chosen // experts)


@pytest.mark.parametrize("config", [{}, {"num_experts": 8}, {"num_experts": 2, "num_experts_per_tok": 4}])
def test_without_a_number_of_chosen_experts_every_weight_counts(config):
    assert Architecture.of(config).routed == (1, 1)


def test_plan_is_told_in_percent(tmp_path):
    words = ("convert", PADDED, tmp_path / "out", "--to", "vllm", "--tp", "2", "--dry-run")
    plain, padded = (cli(*words, *more).stdout for more in ((), ("--pad",)))
    assert "\ntensors " in plain and "padding" not in plain
    (line,) = [line for line in padded.splitlines() if line.startswith("padding")]
    assert line == "padding      weights of quantized layers +13.04 %, their FLOPs per token +13.04 %"
    done = json.loads(cli(*words, "--pad", "--json").stdout)
    assert {"tensor_bytes", "weights", "flops"} <= done.keys()
    assert round(100 * (grown(done["weights"]) - 1), 2) == 13.04
    assert not (tmp_path / "out").exists()
