"""How linears are split over ranks, the table held against transformers' configs, tp plans and module trees."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import transformers
from transformers.activations import ACT2FN

import make_sharding as facts
from qbridge.architecture.architecture import Architecture
from qbridge.architecture.classes import CLASSES
from qbridge.architecture.decoder import LEFT_ALONE
from qbridge.architecture.families import TEXT_MODELS, ZERO_AT_ZERO
from qbridge.architecture.mlps import Block, mlp_blocks
from qbridge.architecture.parallel import Rank, fused_out

EVERY = pytest.mark.parametrize("architecture", facts.regular(CLASSES))
LATENT = ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"]
# Classes of code on the hub, and names on the hub of classes that transformers calls otherwise.
FROM_ENGINES = {
    *("BaiChuanForCausalLM", "BaichuanForCausalLM", "BailingMoeForCausalLM", "BailingMoeV2ForCausalLM"),
    *("ChatGLMForConditionalGeneration", "ChatGLMModel", "DeciLMForCausalLM", "DeepseekForCausalLM"),
    *("ExaoneForCausalLM", "InternLM2ForCausalLM", "InternLM3ForCausalLM", "KimiK25ForConditionalGeneration"),
    *("KimiVLForConditionalGeneration", "MPTForCausalLM", "MiMoForCausalLM", "MiniCPMForCausalLM"),
    *("MiniCPMO", "MiniCPMV"),
    *("PhiMoEForCausalLM", "QWenLMHeadModel", "Qwen2_5OmniModel", "SolarForCausalLM", "Step3p5ForCausalLM"),
}
NO_PLAN = {
    "FalconForCausalLM",
    "GptOssForCausalLM",
    "Qwen3VLForConditionalGeneration",
    "StableLmForCausalLM",
}
HALF_A_PLAN = {
    "DeepseekV2ForCausalLM": {"q_a_proj"},
    "DeepseekV32ForCausalLM": {"q_a_proj", "wq_b", "wk", "weights_proj"},
    "DeepseekV3ForCausalLM": {"q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    "Glm4MoeLiteForCausalLM": {"q_proj", "q_a_proj"},
    "GlmMoeDsaForCausalLM": {"q_a_proj", "wq_b", "wk", "weights_proj"},
    "PhimoeForCausalLM": {"q_proj", "k_proj", "v_proj", "o_proj"},
}


def config(architecture="LlamaForCausalLM", heads=32, kv=8, **keys):
    return {
        "architectures": [architecture],
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "num_hidden_layers": 62,
        **keys,
    }


def rank(module, out, into, settings, tp):
    return Architecture.of(settings).rank(module, (out, into), tp)


def head_faults(settings, tp):
    return Architecture.of(settings).head_faults(tp)


def intermediate_key(block, settings):
    return Architecture.of(settings).intermediate_key(block)


def intermediate_copies(block, settings):
    return Architecture.of(settings).intermediate_copies(block)


def layer(leaf, number=0):
    return f"model.layers.{number}.{leaf}"


QWEN2_72B = config("Qwen2ForCausalLM", 64, 8, intermediate_size=29568)
QWEN25_7B = config("Qwen2ForCausalLM", 28, 4, intermediate_size=18944)
QWEN25_15B = config("Qwen2ForCausalLM", 12, 2, intermediate_size=8960)
DEEPSEEK_V2_LITE = config(
    "DeepseekV2ForCausalLM",
    16,
    16,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    n_shared_experts=2,
    n_routed_experts=64,
    first_k_dense_replace=1,
)


# The table against transformers.


@EVERY
def test_tp_plans_agree_leaf_by_leaf(architecture):
    record = CLASSES[architecture].split
    columns, rows, whole = facts.plan(architecture)
    assert columns <= record.columns and rows <= record.rows and whole <= record.whole
    missing = (record.columns | record.rows | record.whole) - columns - rows - whole
    if architecture in NO_PLAN:
        assert not columns | rows | whole
    else:
        assert missing == HALF_A_PLAN.get(architecture, set())


def small(architecture):
    """The small model's config.json."""
    found = facts.instance(architecture).config.to_dict()
    return {**found, "architectures": [architecture]}


@EVERY
def test_module_trees_agree_leaf_by_leaf(architecture):
    record, found = CLASSES[architecture].split, set()
    variants = [{}, {"q_lora_rank": None}] if architecture in LATENT else [{}]
    hidden, latent = facts.DIMS["hidden_size"], {facts.DIMS["q_lora_rank"], facts.DIMS["kv_lora_rank"]}
    for changes in variants:
        for name, out, into in facts.linears(architecture, **changes):
            leaf = name.rpartition(".")[2]
            found.add(leaf)
            if leaf in record.columns:
                assert into in {hidden, *latent}, name
            elif leaf in record.rows:
                assert out == hidden, name
    assert found == record.columns | record.rows | record.whole


@EVERY
def test_three_ranks_hold_a_third_of_every_split_linear(architecture):
    whole, text, split = CLASSES[architecture].split.whole, small(architecture), set()
    for name, out, into in facts.linears(architecture):
        got, leaf = rank(name, out, into, text, 3), name.rpartition(".")[2]
        assert got is not None, name
        if leaf in whole:
            assert got == Rank(out, into, "whole")
        elif leaf != "query_key_value":  # one kv head for all
            assert got == (Rank(out // 3, into, "column") if got.axis == "column" else Rank(out, into // 3, "row"))
            split.add(got.axis)
    assert split == {"column", "row"}


@EVERY
def test_the_config_key_of_every_mlp_holds_its_size(architecture):
    if not CLASSES[architecture].split.gated and architecture != "GptOssForCausalLM":
        return
    text = small(architecture)
    inner = text.get("text_config", text)
    linears = {name: (out, into) for name, out, into in facts.linears(architecture)}
    blocks = mlp_blocks(linears)
    assert blocks and {linear for block in blocks for linear in (block.gate, block.up, block.down)} == {
        name for name in linears if "attn" not in name
    }
    for block in blocks:
        key = intermediate_key(block.name, text)
        assert linears[block.down][1] == inner[key] * intermediate_copies(block.name, text), (block, key)
        parts = 2 if block.gate == block.up else 1
        assert linears[block.gate][0] == linears[block.down][1] * parts


@EVERY
def test_gated_is_what_the_mlps_compute(architecture):
    record, model = CLASSES[architecture].split, facts.instance(architecture)
    text = model.config.get_text_config()
    act = getattr(text, "hidden_act", None) or getattr(text, "hidden_activation", None) or text.activation
    if record.gated:
        assert act in ZERO_AT_ZERO
    seen = 0
    for name, module in model.named_modules():
        children = dict(module.named_children())
        if LEFT_ALONE & set(name.split(".")) or not (f := gated(children, ACT2FN[act])):
            continue
        mlp = module.to_empty(device="cpu").eval()
        with torch.no_grad():
            for parameter in mlp.parameters():
                parameter.normal_()
            x = torch.randn(3, facts.DIMS["hidden_size"])
            assert torch.allclose(mlp(x), f(x), rtol=1e-4, atol=1e-3), name
        seen += 1
    packed = any(name.endswith("experts.gate_up_proj") for name, _ in model.named_parameters())
    if architecture != "GptOssForCausalLM":
        assert record.gated == (seen > 0 or packed)


def gated(children, act):
    """down(act(gate) * up) of these submodules, if they are such an MLP's."""
    if {"gate_proj", "up_proj", "down_proj"} <= children.keys():
        return lambda x: children["down_proj"](act(children["gate_proj"](x)) * children["up_proj"](x))
    if {"gate_up_proj", "down_proj"} <= children.keys():

        def fused(x):
            gate, up = children["gate_up_proj"](x).chunk(2, dim=-1)
            return children["down_proj"](act(gate) * up)

        return fused
    return None


def routed(architecture):
    """The first packed experts of the small model, filled, as a function of hidden states of the first expert."""
    modules = facts.instance(architecture).named_modules()
    experts = next((m for name, m in modules if name.endswith(".experts") and hasattr(m, "gate_up_proj")), None)
    if experts is not None:
        experts = experts.to_empty(device="cpu").eval()
        for parameter in experts.parameters():
            parameter.data.normal_()
    first = torch.zeros(3, 1, dtype=torch.long)
    return experts, lambda x: experts(x, first, torch.ones(3, 1))


@EVERY
def test_gated_is_what_routed_experts_compute(architecture):
    experts, run = routed(architecture)
    if experts is None or architecture.startswith("Llama4") or architecture == "GptOssForCausalLM":
        return  # Llama 4 runs all experts at once; GPT-OSS is the next test
    text = facts.instance(architecture).config.get_text_config()
    act = ACT2FN[getattr(text, "hidden_act", None) or text.hidden_activation]
    with torch.no_grad():
        x = torch.randn(3, facts.DIMS["hidden_size"])
        gate, up = torch.nn.functional.linear(x, experts.gate_up_proj[0]).chunk(2, dim=-1)
        want = torch.nn.functional.linear(act(gate) * up, experts.down_proj[0])
        assert torch.allclose(run(x), want, rtol=1e-4, atol=1e-3)


def test_gpt_oss_adds_one_to_up():
    experts, run = routed("GptOssForCausalLM")
    with torch.no_grad():
        experts.gate_up_proj[..., 1::2] = 0
        experts.gate_up_proj_bias[..., 1::2] = 0
        experts.down_proj_bias.zero_()
        assert run(torch.randn(3, facts.DIMS["hidden_size"])).abs().min() > 0


@pytest.mark.parametrize("name", sorted(ZERO_AT_ZERO))
def test_activations_are_zero_at_zero(name):
    assert ACT2FN[name](torch.zeros(1)).item() == 0.0


def test_defaults_are_those_of_transformers():
    nested = [name for name in CLASSES if hasattr(transformers, name) and facts.nested(name)]
    texts = [facts.text_config(name) for name in nested]
    assert {text.model_type: facts.defaults(text) for text in texts} == {
        name: model.sizes for name, model in TEXT_MODELS.items() if model.sizes
    }


def test_the_module_does_not_import_transformers():
    code = "import sys, qbridge.architecture.architecture; assert not {'transformers', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_transformers_has_not_is_from_engines_files():
    assert {name for name in CLASSES if not hasattr(transformers, name)} == FROM_ENGINES
    assert not hasattr(transformers, "InternLMForCausalLM") and "InternLMForCausalLM" not in CLASSES


# The arithmetic.


@pytest.mark.parametrize(("tp", "out"), [(1, 256), (2, 128), (4, 128), (8, 128)])
def test_kv_heads_fewer_than_ranks_are_repeated(tp, out):
    assert rank(layer("self_attn.k_proj"), 256, 2048, config(heads=16, kv=2), tp) == Rank(out, 2048, "column")


def test_kv_heads_that_do_not_divide_are_a_fault():
    at = lambda kv, tp: rank(layer("self_attn.v_proj"), kv * 128, 64, config(heads=40, kv=kv), tp).fault  # noqa: E731
    assert at(10, 4) == "10 kv heads are not divisible by 4"
    assert at(2, 5) == "5 ranks are not divisible by 2 kv heads"
    assert at(10, 5) == "" and at(10, 20) == ""


def test_heads_that_do_not_divide_are_a_fault():
    fault = "28 heads are not divisible by 8"
    assert rank(layer("self_attn.q_proj"), 3584, 3584, QWEN25_7B, 8) == Rank(3584, 3584, "column", fault)
    assert rank(layer("self_attn.o_proj"), 3584, 3584, QWEN25_7B, 8) == Rank(3584, 3584, "row", fault)
    assert rank(layer("self_attn.o_proj"), 3584, 3584, QWEN25_7B, 4) == Rank(3584, 896, "row")
    assert head_faults(QWEN25_7B, 8) == [fault]
    assert head_faults(QWEN25_7B, 4) == []


def test_features_are_split_by_heads_whatever_head_dim_is():
    assert (
        rank(layer("self_attn.q_proj"), 4100, 64, config(), 2).fault == "4100 features are not divisible by 32 heads"
    )


@pytest.mark.parametrize(("tp", "into"), [(1, 29568), (2, 14784), (4, 7392), (8, 3696)])
def test_down_proj_of_qwen2_72b(tp, into):
    assert rank(layer("mlp.down_proj"), 8192, 29568, QWEN2_72B, tp) == Rank(8192, into, "row")


def test_fused_linears_add_up():
    parts = {"q_proj": 1536, "k_proj": 256, "v_proj": 256}
    ranks = {leaf: rank(layer(f"self_attn.{leaf}"), out, 1536, QWEN25_15B, 4) for leaf, out in parts.items()}
    assert fused_out(ranks) == 3 * 128 + 128 + 128
    ranks = {leaf: rank(layer(f"mlp.{leaf}"), 8960, 1536, QWEN25_15B, 4) for leaf in ("gate_proj", "up_proj")}
    assert fused_out(ranks) == 4480


def test_linears_that_are_fused_on_disk():
    phi4 = config("Phi3ForCausalLM", 40, 10, intermediate_size=17920)
    assert rank(layer("self_attn.qkv_proj"), 7680, 5120, phi4, 2) == Rank(3840, 5120, "column")
    assert rank(layer("self_attn.qkv_proj"), 7680, 5120, phi4, 20) == Rank(4 * 128, 5120, "column")
    assert rank(layer("self_attn.qkv_proj"), 7680, 5120, phi4, 4).fault == "10 kv heads are not divisible by 4"
    assert rank(layer("mlp.gate_up_proj"), 35840, 5120, phi4, 2) == Rank(17920, 5120, "column")
    assert rank(layer("mlp.gate_up_proj"), 10, 5120, phi4, 2).fault == "5 features are not divisible by 2"


def test_falcon_has_one_kv_head_unless_its_config_says_otherwise():
    name = "transformer.h.0.self_attention.query_key_value"
    old = {
        "architectures": ["FalconForCausalLM"],
        "num_attention_heads": 64,
        "num_kv_heads": 64,
        "multi_query": True,
    }
    new = {**old, "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True}
    assert rank(name, 66 * 64, 4096, old, 4) == Rank(18 * 64, 4096, "column")
    assert rank(name, 144 * 64, 8192, new, 4) == Rank(36 * 64, 8192, "column")
    assert rank(name, 144 * 64, 8192, new, 16) == Rank(10 * 64, 8192, "column")


def test_latent_attention_and_shared_experts():
    at = lambda leaf, out, into: rank(layer(leaf, 1), out, into, DEEPSEEK_V2_LITE, 4)  # noqa: E731
    assert at("self_attn.kv_a_proj_with_mqa", 576, 2048) == Rank(576, 2048, "whole")
    assert at("self_attn.kv_b_proj", 4096, 512) == Rank(1024, 512, "column")
    assert at("self_attn.q_proj", 3072, 2048) == Rank(768, 2048, "column")
    assert at("self_attn.o_proj", 2048, 2048) == Rank(2048, 512, "row")
    assert at("mlp.shared_experts.down_proj", 2048, 2816) == Rank(2048, 704, "row")
    assert at("mlp.experts.63.up_proj", 1408, 2048) == Rank(352, 2048, "column")
    assert at("mlp.gate", 64, 2048) == Rank(64, 2048, "whole")
    shared, routed = layer("mlp.shared_experts"), layer("mlp.experts.63")
    for name, copies in ((shared, 2), (routed, 1)):
        assert intermediate_key(name, DEEPSEEK_V2_LITE) == "moe_intermediate_size"
        assert intermediate_copies(name, DEEPSEEK_V2_LITE) == copies
    assert intermediate_key(layer("mlp"), DEEPSEEK_V2_LITE) == "intermediate_size"


def test_mixtral_experts_by_either_name():
    mixtral, expert = config("MixtralForCausalLM", intermediate_size=14336), layer("block_sparse_moe.experts.7")
    for gate, up, down in (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")):
        for leaf in (gate, up):
            assert rank(f"{expert}.{leaf}", 14336, 4096, mixtral, 2) == Rank(7168, 4096, "column")
        assert rank(f"{expert}.{down}", 4096, 14336, mixtral, 2) == Rank(4096, 7168, "row")
        names = [f"{expert}.{leaf}" for leaf in (gate, up, down)]
        assert mlp_blocks(sorted(names)) == [Block(expert, *names)]
    assert intermediate_key(expert, mixtral) == "intermediate_size"


def test_an_unknown_architecture_or_leaf_is_unknown():
    for unknown in ({}, {"architectures": []}, {"architectures": None}, config("NeverHeardOfForCausalLM")):
        assert not Architecture.of(unknown).known
        assert rank(layer("mlp.down_proj"), 64, 64, unknown, 2) is None
        assert intermediate_key(layer("mlp"), unknown) is None
        assert head_faults(unknown, 3) == []
    assert rank(layer("mlp.fc_mystery"), 64, 64, config(), 2) is None
    assert rank("model.mlp.down_proj", 64, 64, config(), 2) is None
    assert rank(layer("linear_attn.in_proj_qkvz"), 64, 64, config("Qwen3NextForCausalLM"), 2) is None
    assert rank(layer("self_attn.q_proj"), 64, 64, {"architectures": ["LlamaForCausalLM"]}, 2) is None


@pytest.mark.parametrize(
    "module",
    [
        "visual.blocks.0.mlp.down_proj",
        "model.visual.layers.0.mlp.down_proj",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
        "model.vision_tower.layers.0.mlp.down_proj",
        "mtp.layers.0.mlp.down_proj",
        layer("mlp.down_proj", 62),  # the config has 62 layers, 0 to 61
    ],
)
def test_vision_towers_and_multi_token_prediction_are_left_alone(module):
    assert rank(module, 64, 64, config(), 2) is None
    assert intermediate_key(module.rpartition(".")[0], config()) is None


def test_the_vocabulary_is_whole():
    for module in ("model.embed_tokens", "lm_head"):
        assert rank(module, 151643, 64, config(), 8) == Rank(151643, 64, "whole")


def test_multimodal_configs_have_the_dims_of_their_text_config():
    text = {"model_type": "gemma3_text", "num_hidden_layers": 34, "intermediate_size": 10240, "hidden_size": 2560}
    gemma = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    name = "language_model.model.layers.0.self_attn.k_proj"
    assert rank(name, 1024, 2560, gemma, 2) == Rank(512, 2560, "column")  # 4 kv heads, by default
    assert head_faults(gemma, 16) == ["8 heads are not divisible by 16"]
    text["num_key_value_heads"] = 2
    assert rank(name, 512, 2560, gemma, 4) == Rank(256, 2560, "column")
    assert intermediate_key("language_model.model.layers.0.mlp", gemma) == "intermediate_size"


def test_gated_holds_for_the_activation_of_the_config():
    assert Architecture.of(config(hidden_act="silu")).gated
    assert not Architecture.of(config(hidden_act="sigmoid")).gated
    assert not Architecture.of(config("GptOssForCausalLM", hidden_act="silu")).gated


def test_blocks_are_whole_and_of_decoders():
    mlp = [layer(f"mlp.{leaf}") for leaf in ("gate_proj", "up_proj", "down_proj")]
    tower = [name.replace("model.", "model.vision_tower.") for name in mlp]
    fused = [layer("mlp.gate_up_proj", 1), layer("mlp.down_proj", 1)]
    partial = [layer("mlp.up_proj", 2), layer("mlp.down_proj", 2)]
    assert mlp_blocks([*fused, *tower, *partial, *mlp]) == [
        Block(layer("mlp", 1), fused[0], *fused),
        Block(layer("mlp"), *mlp),
    ]


def test_sizes_that_do_not_divide_are_faults_if_a_layer_has_them():
    moe = {"intermediate_size": 6142, "moe_intermediate_size": 770, "num_experts": 128}
    sparse = config("Qwen3MoeForCausalLM", 32, 4, decoder_sparse_step=1, mlp_only_layers=[], **moe)
    assert head_faults(sparse, 4) == ["moe_intermediate_size 770 is not divisible by 4"]
    both = ["moe_intermediate_size 770 is not divisible by 4", "intermediate_size 6142 is not divisible by 4"]
    assert head_faults({**sparse, "mlp_only_layers": [0]}, 4) == both
    assert head_faults({**sparse, "decoder_sparse_step": 2}, 4) == both
    shared = config("Qwen2MoeForCausalLM", 16, 16, **moe, shared_expert_intermediate_size=5634)
    assert "shared_expert_intermediate_size 5634 is not divisible by 4" in head_faults(shared, 4)
    assert head_faults(config(kv=6, intermediate_size=64), 4) == ["6 kv heads are not divisible by 4"]
    assert head_faults(config(intermediate_size=100), 8) == ["intermediate_size 100 is not divisible by 8"]
