"""Integer weights with quantized inputs in vLLM: widths, layouts, releases, and what convert writes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import qbridge
from qbridge.formats.registry import find
from qbridge.formats.rules import broken
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.targets.registry import find_target
from qbridge.testing.laws import write_model
from qbridge.testing.strategies import random_layer
from support import edit_json

TOKEN = ActivationScheme(8, Granularity.TOKEN, dynamic=True)
GROUPED = ActivationScheme(8, Granularity.GROUP, dynamic=True, group_size=128)
FOUR = replace(TOKEN, bits=4)
STATIC = ActivationScheme(8, Granularity.TENSOR, dynamic=False)
UNLIKE = replace(TOKEN, symmetric=False)
LINEAR = "model.layers.0.self_attn.o_proj"
EXPERT = "model.layers.0.mlp.experts.0.down_proj"


def weights(bits, symmetric=True, kind=Granularity.GROUP):
    return WeightScheme(bits, kind, symmetric, group_size=128 if kind is Granularity.GROUP else None)


def spec_of(weight, inputs, packed, name=LINEAR):
    stored = DType.F32 if not inputs.dynamic else None
    dialect = (("packed", "yes"),) if packed else ()
    return Spec(name, 256, 256, weight, DType.F16, inputs, stored, dialect=dialect)


def refused(spec, target):
    """Whether the scheme of a layer is one that the target does not serve in compressed-tensors."""
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "float16"}
    engine = find_target(target)
    model = Model("compressed-tensors", config, {spec.name: spec}, {}, {})
    rules = [rule for rule in engine.limits(engine.choice_of("compressed-tensors"), (1,)) if rule.code == "QB220"]
    return any(True for _ in broken(rules, model))


# Weights, inputs, whether packed ones and whether unpacked ones are served.
SCHEMES = [
    *((weights(bits), TOKEN, True, bits == 4) for bits in (2, 3, 4, 5, 6, 7, 8)),
    *((weights(bits, symmetric=False), TOKEN, True, False) for bits in (2, 4, 8)),
    (weights(4), GROUPED, True, False),
    (weights(4), FOUR, True, False),
    (weights(2), FOUR, True, False),
    (weights(4, kind=Granularity.CHANNEL), TOKEN, True, True),
    (weights(8, kind=Granularity.CHANNEL), TOKEN, True, True),
    (weights(8, kind=Granularity.CHANNEL), STATIC, False, True),
    (weights(8, kind=Granularity.CHANNEL), UNLIKE, False, True),
    (weights(8, kind=Granularity.TENSOR), TOKEN, False, True),
    (weights(4), UNLIKE, False, True),
    (weights(1), TOKEN, False, False),
]


@pytest.mark.parametrize(("weight", "inputs", "packed", "unpacked"), SCHEMES, ids=str)
def test_packed_weights_of_many_widths_are_served_and_unpacked_ones_of_four_and_eight(
    weight, inputs, packed, unpacked
):
    assert refused(spec_of(weight, inputs, packed=True), "vllm") is not packed
    assert refused(spec_of(weight, inputs, packed=False), "vllm") is not unpacked
    assert refused(spec_of(weight, inputs, packed=True), "vllm@0.23.0")  # of it nothing is known but unpacked ones


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("weight", "inputs", "served"),
    [
        (weights(8, kind=Granularity.CHANNEL), TOKEN, True),
        (weights(8, kind=Granularity.CHANNEL), STATIC, False),
        (weights(4), TOKEN, False),  # on Arm CPUs alone
        (weights(3), TOKEN, False),
    ],
)
def test_of_experts_eight_bits_and_dynamic_inputs_alone_are_served(weight, inputs, served, packed):
    assert refused(spec_of(weight, inputs, packed, EXPERT), "vllm") is not (served and not packed)


@pytest.mark.parametrize(("bits", "symmetric"), [(3, True), (4, False), (6, True), (4, True)])
def test_they_are_written_packed_where_that_alone_is_served(bits, symmetric, tmp_path):
    linears = [f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qkvo"]
    made = [spec_of(weights(bits, symmetric), TOKEN, packed=False, name=name) for name in linears]
    written = [random_layer(spec, number) for number, spec in enumerate(made)]
    head = {"lm_head.weight": np.ones((4, 4), np.float16)}
    write_model(tmp_path / "src", find("compressed-tensors"), written, head)
    described = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 4, "num_key_value_heads": 4}
    described |= {"torch_dtype": "float16", "num_hidden_layers": 1, "head_dim": 64, "hidden_size": 256}
    edit_json(tmp_path / "src/config.json", lambda found: found.update(described))
    report = qbridge.convert(tmp_path / "src", tmp_path / "out", "vllm", allow=["incomplete"])
    assert report.format == "compressed-tensors" and not report.passes
    with open(tmp_path / "out/config.json") as stream:
        block = json.load(stream)["quantization_config"]
    assert block["format"] == ("int-quantized" if (bits, symmetric) == (4, True) else "pack-quantized")
    assert block["config_groups"]["group_0"]["input_activations"]["num_bits"] == 8
    assert qbridge.verify(tmp_path / "src", tmp_path / "out", allow=["incomplete"]).same
    assert "QB220" not in {f.code for f in qbridge.check(tmp_path / "out", "vllm", allow=["incomplete"]).findings}
    qbridge.restore(tmp_path / "out", tmp_path / "back", allow=["incomplete"])
    assert qbridge.verify(tmp_path / "src", tmp_path / "back", allow=["incomplete"]).identical == len(linears)
