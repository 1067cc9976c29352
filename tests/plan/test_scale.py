"""What is worked out once for many layers holds for each of them."""

from __future__ import annotations

import gc

import pytest

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.growth import growth
from qbridge.architecture.names import fused_siblings, natural, without_expert
from qbridge.commands.checkpoint import no_garbage
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Slot, named

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
}
LEAVES = ("gate_proj", "up_proj", "down_proj")


def linear(name, rows, columns, group=128):
    return Spec(name, rows, columns, WeightScheme(4, Granularity.GROUP, group_size=group), DType.F16)


def test_a_spec_is_its_name_and_its_kind():
    spec = linear("a.b", 8, 256)
    assert Spec(spec.name, *spec.kind) == spec
    assert {"code": Slot("a.b.w", DType.I8, (1,), PLAIN)} == named({"code": Slot(".w", DType.I8, (1,), PLAIN)}, "a.b")


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 11])
def test_experts_of_a_place_are_split_alike(tp):
    for layer in range(4):  # the last is for multi-token prediction
        blocks = [f"model.layers.{layer}.mlp.experts.{expert}" for expert in range(12)]
        assert {without_expert(block) for block in blocks} == {f"model.layers.{layer}.mlp.experts"}
        assert len({Architecture.of(CONFIG).intermediate_key(block) for block in blocks}) == 1
        for leaf in LEAVES:
            assert len({without_expert(f"{block}.{leaf}") for block in blocks}) == 1
            assert len({Architecture.of(CONFIG).rank(f"{block}.{leaf}", (1408, 1408), tp) for block in blocks}) == 1
    assert without_expert("model.layers.0.mlp.experts.3x.up_proj") == "model.layers.0.mlp.experts.3x.up_proj"


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("step", [32, 48, 128, 1024])
def test_growth_is_the_smallest_that_fits(copies, step):
    config = {**CONFIG, "n_shared_experts": copies}
    block, size = "model.layers.1.mlp.shared_experts", 1408 * copies
    dims = {"gate_proj": (size, 2048), "up_proj": (size, 2048), "down_proj": (2048, size)}
    specs = {f"{block}.{leaf}": linear(f"{block}.{leaf}", *dims[leaf]) for leaf in LEAVES}
    found = growth(Model("x", config, specs, {}, {}), (1,), lambda spec, tp: step).passes
    assert Architecture.of(config).intermediate_copies(block) == copies
    own = next(own for own in range(1408, 10**6) if own * copies % step == 0)
    grown = found[f"{block}.down_proj"].in_features if found else size
    assert grown == own * copies


def test_fused_siblings_come_in_reading_order():
    blocks = [f"layers.{layer}.mlp.experts.{expert}" for layer in (10, 9, 0) for expert in (2, 11, 1)]
    found = fused_siblings([f"{block}.{leaf}" for block in blocks for leaf in ("up_proj", "gate_proj")])
    order = [f"layers.{layer}.mlp.experts.{expert}" for layer in (0, 9, 10) for expert in (1, 2, 11)]
    assert found == [[f"{block}.gate_proj", f"{block}.up_proj"] for block in order]
    assert natural(["a1b", "a", "a1", "b0", "a10", "a2", "a1a"]) == ["a", "a1", "a1a", "a1b", "a2", "a10", "b0"]


def test_a_model_is_asked_once():
    asked = []
    model = Model("x", CONFIG, {}, {}, {})
    assert [model.once("key", lambda: asked.append(1) or len(asked)) for _ in range(3)] == [1, 1, 1]


def test_the_collector_runs_again_afterwards():
    with pytest.raises(KeyError), no_garbage():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with no_garbage():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
