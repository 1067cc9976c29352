"""Linears that an engine builds as one, by engine and model class: what each may have of its own, and what not."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from qbridge.formats.rules import LayerRule, ModelRule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge.targets.fusion import Fusion
from qbridge.targets.registry import find_target, targets
from qbridge.testing.strategies import FP8, NVFP4, NVFP4_INPUTS

TENSOR = WeightScheme(8, Granularity.TENSOR, type="e4m3fn")
LAYER = "model.layers.0"
EXPERT = f"{LAYER}.block_sparse_moe.experts.0"
MLA = f"{LAYER}.self_attn"
DELTA = f"{LAYER}.linear_attn"
# (model class, the linears that vLLM 0.33 builds as one of it, what q, k, v and gate, up are not)
GROUPS = [
    ("MixtralForCausalLM", (f"{EXPERT}.w1", f"{EXPERT}.w3")),
    ("MiniMaxM2ForCausalLM", (f"{EXPERT}.w1", f"{EXPERT}.w3")),
    ("ClassOfNextYearForCausalLM", (f"{EXPERT}.w1", f"{EXPERT}.w3")),
    ("Lfm2ForCausalLM", (f"{LAYER}.feed_forward.w1", f"{LAYER}.feed_forward.w3")),
    ("DeepseekV3ForCausalLM", (f"{MLA}.q_a_proj", f"{MLA}.kv_a_proj_with_mqa")),
    ("Glm4MoeLiteForCausalLM", (f"{MLA}.q_a_proj", f"{MLA}.kv_a_proj_with_mqa")),
    ("KimiK25ForConditionalGeneration", (f"{MLA}.q_a_proj", f"{MLA}.kv_a_proj_with_mqa")),
    ("Qwen3_5ForConditionalGeneration", (f"{DELTA}.in_proj_qkv", f"{DELTA}.in_proj_z")),
    ("Qwen3_5MoeForCausalLM", (f"{DELTA}.in_proj_b", f"{DELTA}.in_proj_a")),
    ("OlmoHybridForCausalLM", tuple(f"{DELTA}.{leaf}_proj" for leaf in "qkvg")),
    ("LlamaForCausalLM", tuple(f"{MLA}.{leaf}_proj" for leaf in "qkv")),
]
# What looks alike, and is several linears in these classes.
APART = [
    ("SarvamMLAForCausalLM", (f"{MLA}.q_a_proj", f"{MLA}.kv_a_proj_with_mqa")),
    ("MiniCPM3ForCausalLM", (f"{MLA}.q_a_proj", f"{MLA}.kv_a_proj_with_mqa")),
    ("LlamaForCausalLM", (f"{DELTA}.in_proj_qkv", f"{DELTA}.in_proj_z")),
    ("LlamaForCausalLM", (f"{MLA}.g_proj", f"{MLA}.o_proj")),
]


@dataclass
class Planted:
    """Values of layers of which each has parts of its own."""

    arrays: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def part(self, layer, part):
        return self.arrays.get((layer, part), np.ones(1, np.float32))

    def once(self, key, find):
        return find()

    def blocks(self, tensor):
        return iter(())


def model_of(architecture, names, weight, activation, dense=(), scale=DType.F32):
    stored = DType.F32 if activation is not None and activation.is_stored else None
    specs = {
        name: Spec(name, 128, 128, weight, scale, activation=activation, input_scale_dtype=stored)
        for name in names
        if name not in dense
    }
    tensors = {f"{name}.weight": TensorInfo(DType.BF16, (128, 128), f"{name}.weight") for name in dense}
    config = {"architectures": [architecture], "dtype": "bfloat16"}
    return Model("compressed-tensors", config, specs, {}, tensors)


def problems(target, format_name, code, model, values=None):
    """What the rules of a code say of a model in a format."""
    target = find_target(target)
    found = []
    for rule in target.limits(target.choice_of(format_name), (1,)):
        if rule.code != code:
            continue
        if isinstance(rule, LayerRule):
            found += [(rule.check(spec, model), spec.name) for spec in model.specs.values()]
        elif isinstance(rule, ModelRule):
            found += [(problem, *problem.where) for problem in rule.check(model)]
        else:
            found += [(problem, *problem.where) for problem in rule.check(model, values or Planted())]
    return {name for problem, *names in found if problem for name in names}


@pytest.mark.parametrize(("architecture", "names"), GROUPS)
def test_unlike_global_scales_of_one_linear_are_refused(architecture, names):
    model = model_of(architecture, names, NVFP4, NVFP4_INPUTS, scale=DType.F8_E4M3)
    for part in ("global_scale", "input_global_scale"):
        values = Planted({(names[-1], part): np.full(1, 2.0, np.float32)})
        assert problems("vllm", "compressed-tensors", "QB222", model, values) == set(names)
    assert problems("vllm", "compressed-tensors", "QB222", model) == set()


@pytest.mark.parametrize("format_name", ["compressed-tensors", "fp8", "modelopt"])
@pytest.mark.parametrize(("architecture", "names"), GROUPS)
def test_scales_per_tensor_of_one_linear_are_refused(architecture, names, format_name):
    model = model_of(architecture, names, TENSOR, FP8)
    unlike = Planted({(names[-1], "scale"): np.full((1, 1), 2.0, np.float32)})
    assert problems("vllm", format_name, "QB272", model, unlike) == set(names)


@pytest.mark.parametrize(("architecture", "names"), GROUPS)
def test_one_linear_is_quantized_as_a_whole(architecture, names):
    model = model_of(architecture, names, TENSOR, FP8, dense=names[-1:])
    assert problems("vllm", "compressed-tensors", "QB221", model) == set(names)


@pytest.mark.parametrize("code", ["QB221", "QB222", "QB272"])
@pytest.mark.parametrize(("architecture", "names"), APART)
def test_linears_that_stay_apart_may_differ(architecture, names, code):
    dense = names[-1:] if code == "QB221" else ()
    model = model_of(
        architecture, names, TENSOR, ActivationScheme(8, Granularity.TENSOR, False, type="e4m3fn"), dense
    )
    values = Planted({(names[-1], part): np.full((1, 1), 2.0, np.float32) for part in ("scale", "input_scale")})
    for format_name in ("compressed-tensors", "fp8", "modelopt"):
        assert problems("vllm", format_name, code, model, values) == set()


def test_releases_differ():
    mla = {"fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa")}
    new, old = (find_target(name).fused("DeepseekV3ForCausalLM") for name in ("vllm@0.33", "vllm@0.5.4"))
    assert mla.items() <= new.items() and not mla.items() & old.items()
    assert old["qkv_proj"] == ("q_proj", "k_proj", "v_proj")


def test_lmdeploy_builds_others_as_one():
    delta = find_target("lmdeploy").fused("Qwen3_5ForConditionalGeneration")
    assert delta["in_proj_ba"] == ("in_proj_b", "in_proj_a") and "in_proj_qkvz" not in delta
    assert find_target("lmdeploy").fused("InternLM2ForCausalLM")["w13"] == ("w1", "w3")
    assert "fused_qkv_a_proj" not in find_target("lmdeploy").fused("DeepseekV3ForCausalLM")
    static = ActivationScheme(8, Granularity.TENSOR, False, type="e4m3fn")
    names = (f"{LAYER}.feed_forward.w1", f"{LAYER}.feed_forward.w3")
    model = model_of("InternLM2ForCausalLM", names, TENSOR, static)
    values = Planted({(names[0], "input_scale"): np.full(1, 2.0, np.float32)})
    assert problems("lmdeploy", "fp8", "QB271", model, values) == set(names)


def test_kernels_are_chosen_for_what_is_built_as_one():
    weight = WeightScheme(4, Granularity.GROUP, group_size=128)
    names = (f"{MLA}.q_a_proj", f"{MLA}.kv_a_proj_with_mqa")
    config = {"architectures": ["DeepseekV3ForCausalLM"], "dtype": "bfloat16"}
    specs = {n: Spec(n, rows, 7168, weight, DType.BF16) for n, rows in zip(names, (1536, 576), strict=True)}
    model = Model("compressed-tensors", config, specs, {}, {})
    (served,) = find_target("vllm").serving(model, 1, 90)
    assert (served.kind, served.out_features) == ("q_a_proj+kv_a_proj_with_mqa", 2112)
    assert len(find_target("vllm@0.5.4").serving(model, 1, 90)) == 2


def test_every_target_says_what_it_fuses_and_is_pickled_with_it():
    for target in targets():
        groups = target.fused("LlamaForCausalLM")
        assert groups.get("qkv_proj", ("q_proj", "k_proj", "v_proj")) == ("q_proj", "k_proj", "v_proj")
    alone = replace(
        find_target("vllm"), name="mine@1", parallel=replace(find_target("vllm").parallel, fused=Fusion({}))
    )
    assert alone.fused("MixtralForCausalLM") == {}
    fusion = find_target("vllm").parallel.fused
    assert pickle.loads(pickle.dumps(fusion)).of("LlamaForCausalLM") == copy.copy(fusion).of("LlamaForCausalLM")
