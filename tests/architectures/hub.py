"""What repositories hold and transformers' save does not write: other names, layers for multi-token prediction.

And classes of code on the hub, whose names and shapes are those of vLLM's and LMDeploy's loaders of them.

vllm 0.33.0, model_executor/models/{deepseek_mtp,qwen3_next_mtp,mimo,internlm2,chatglm,exaone,bailing_moe}.py and
{nemotron_nas,step3p5,minicpmv,internvl}.py; lmdeploy 0.6.2, pytorch/models/{baichuan,qwen}.py.
"""

from __future__ import annotations

import re

import torch

import small
from small import HEAD, HIDDEN, VOCAB, WIDE

BF16 = torch.bfloat16
TABLES = frozenset(
    {"embed", "embed_tokens", "wte", "word_embeddings", "tok_embeddings", "position_embedding", "pos_embed"}
)
Q, KV = HIDDEN, 2 * HEAD  # rows of queries, and of keys or values
DRAFTED = {  # classes with a layer for multi-token prediction, and how it is called
    **dict.fromkeys(("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "Glm4MoeForCausalLM"), "layers"),
    **dict.fromkeys(("GlmMoeDsaForCausalLM", "Glm4MoeLiteForCausalLM"), "layers"),
    **dict.fromkeys(("Qwen3NextForCausalLM", "Qwen3_5ForConditionalGeneration"), "mtp"),
    "Qwen3_5MoeForConditionalGeneration": "mtp",
}
# Fused in what transformers saves; tools write such experts one by one.
FUSED = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration")
IN_COLUMNS = FUSED[:2]  # [experts, in, 2 out] and [experts, in, out]; others have out_features first
# Keys of config.json that repositories have, engines read, and transformers' class has no more.
SAID = {
    "AfmoeForCausalLM": {"n_group": 1, "route_norm": True, "score_func": "sigmoid", "topk_group": 1},
    "DeepseekV3ForCausalLM": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "DeepseekV32ForCausalLM": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "DeepseekV4ForCausalLM": {"topk_method": "noaux_tc", "expert_dtype": "fp8"},
    "Glm4MoeForCausalLM": {"head_dim": HEAD},
    "Glm4MoeLiteForCausalLM": {"first_k_dense_replace": 1, "topk_method": "noaux_tc"},
    "GlmMoeDsaForCausalLM": {"first_k_dense_replace": 1, "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "Glm4vForConditionalGeneration": {"attention_bias": True},
    "Glm4vMoeForConditionalGeneration": {"head_dim": HEAD, "use_qk_norm": False},
    "Lfm2ForCausalLM": {"conv_dim": HIDDEN, "block_dim": HIDDEN, "block_ff_dim": WIDE},
    "Lfm2MoeForCausalLM": {"conv_dim": HIDDEN, "block_dim": HIDDEN, "block_ff_dim": WIDE},
    "Lfm2VlForConditionalGeneration": {"conv_dim": HIDDEN, "block_dim": HIDDEN, "block_ff_dim": WIDE},
    "LongcatFlashForCausalLM": {
        **{"mla_scale_kv_lora": True, "mla_scale_q_lora": True, "zero_expert_type": "identity"},
    },
    "MiniMaxM2ForCausalLM": {"rotary_dim": HEAD, "scoring_func": "sigmoid", "use_routing_bias": True},
    "Qwen3VLMoeForConditionalGeneration": {"norm_topk_prob": True},
}
# Classes whose cases vLLM does not load though their tensors and block are right, and why.
_NO_AUTO_CLASS = "no auto class of transformers 5.17.0 knows the config of a thinker by itself"
UNJUDGED = {
    "Kimi_K25ForConditionalGeneration": "vLLM 0.33.0 takes transformers' class for it, and misses wqkv of its tower",
    "MllamaForConditionalGeneration": "vLLM had a class of its own until 0.10.2 (QB286)",
    "Qwen2_5OmniThinkerForConditionalGeneration": _NO_AUTO_CLASS,
    "Qwen3OmniMoeThinkerForConditionalGeneration": _NO_AUTO_CLASS,
    "Step3p7ForConditionalGeneration": "vLLM reads a key that remote code has and transformers 5.19.0 renames: width",
    "VoxtralForConditionalGeneration": "it reads the audio tower of Mistral's own files alone",
}
# How repositories call what transformers saves otherwise.
CALLED = {
    "DeepseekV4ForCausalLM": (
        (r"^model\.hc_head\.hc_", "hc_head_"),
        (r"^model\.embed_tokens\.", "embed."),
        (r"^model\.", ""),
        (r"\.attn\.norm\.", ".attn.kv_norm."),
    ),
}
# Where repositories have the towers of CLIP and SigLIP; transformers 5.24.0 saves them without a part of the name.
TOWER = re.compile(r"\bvision_tower\.(?=(?:embeddings|encoder|pre_layrnorm|post_layernorm|head)\.)")


def checkpoint(architecture):
    """(shape and dtype by name, config.json, names of lookup tables) of an unquantized repository of the class."""
    if architecture in REMOTE:
        return (*REMOTE[architecture](), TABLES)
    tensors, config, tables = small.shapes(architecture)
    for pattern, name in CALLED.get(architecture, ()):
        tables = {*tables, "embed"}
        tensors = {re.sub(pattern, name, stored): value for stored, value in tensors.items()}
    if architecture in FUSED:
        tensors = one_by_one(tensors, architecture)
    if architecture in DRAFTED:
        tensors, config = drafted(tensors, config, DRAFTED[architecture])
    if architecture == "LongcatFlashForCausalLM":  # transformers gives experts without weights half of some
        tensors = {name: value for name, value in tensors.items() if not re.search(r"\.experts\.[45]\.", name)}
    if any(name.endswith("vision_tower.embeddings.position_embedding.weight") for name in tensors):
        tensors = {TOWER.sub("vision_tower.vision_model.", name): value for name, value in tensors.items()}
    if thinker := config.get("thinker_config"):  # repositories have the same in both
        thinker["text_config"]["tie_word_embeddings"] = thinker.get("tie_word_embeddings", False)
    said = SAID.get(architecture, {})
    if "text_config" in config:
        config["text_config"] |= said
    return tensors, config if "text_config" in config else config | said, tables


def one_by_one(tensors, architecture):
    """Experts as linears of their own, of two tensors that hold all of a layer's."""
    found = {}
    for name, (shape, dtype) in tensors.items():
        block, _, leaf = name.rpartition(".")
        if not block.endswith("experts") or len(shape) != 3:
            found[name] = (shape, dtype)
            continue
        leaves = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else ("down_proj",)
        if architecture not in IN_COLUMNS:  # [experts, 2 out, in] and [experts, out, in]
            shape = (shape[0], shape[2], shape[1])
        for expert in range(shape[0]):
            found |= {
                f"{block}.{expert}.{one}.weight": ((shape[2] // len(leaves), shape[1]), dtype) for one in leaves
            }
    return found


def drafted(tensors, config, kind):
    """With a copy of the last layer for multi-token prediction."""
    text = config.get("text_config", config)
    pattern = re.compile(r"(.*\blayers)\.1\.(.*)")
    copies = {m[2]: value for n, value in tensors.items() if (m := pattern.fullmatch(n)) and "vis" not in n}
    prefix = next(m[1] for n in tensors if (m := pattern.fullmatch(n)) and "vis" not in n)
    norm, joined, rows = ((HIDDEN,), BF16), ((HIDDEN, 2 * HIDDEN), BF16), ((VOCAB, HIDDEN), BF16)
    if kind == "layers":
        text["num_nextn_predict_layers"] = 1
        last = f"{prefix}.2"
        extra = {f"{last}.{name}": value for name, value in copies.items()}
        extra |= {f"{last}.{name}.weight": norm for name in ("enorm", "hnorm", "shared_head.norm")}
        extra |= {f"{last}.{name}.weight": rows for name in ("embed_tokens", "shared_head.head")}
        return {**tensors, **extra, f"{last}.eh_proj.weight": joined}, config
    text["mtp_num_hidden_layers"] = 1
    copies = {name: value for name, value in copies.items() if "linear_attn" not in name}
    extra = {f"mtp.layers.0.{name}": value for name, value in copies.items()}
    extra |= {f"mtp.{name}.weight": norm for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    return {**tensors, **extra, "mtp.fc.weight": joined}, config


def text_config(architecture, model_type, **keys):
    return {
        **{"architectures": [architecture], "model_type": model_type, "hidden_size": HIDDEN, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": WIDE, "vocab_size": VOCAB},
        **{"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 256},
        **{"tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.40.1"},
        **{"auto_map": {"AutoConfig": f"configuration_{model_type}.Config"}, **keys},
    }


def tree(layers, below, ends, biases=()):
    """Shapes of a decoder: what is below each of two layers, and what stands around them."""
    found = {f"{layers}.{n}.{name}.weight": (shape, BF16) for n in range(2) for name, shape in below.items()}
    found |= {f"{layers}.{n}.{name}.bias": (below[name][:1], BF16) for n in range(2) for name in biases}
    return {**found, **{f"{name}.weight": (shape, BF16) for name, shape in ends.items()}}


LLAMA = {
    **{"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_proj": (Q, HIDDEN)},
    **{"self_attn.k_proj": (KV, HIDDEN), "self_attn.v_proj": (KV, HIDDEN), "self_attn.o_proj": (HIDDEN, Q)},
    **{"mlp.gate_proj": (WIDE, HIDDEN), "mlp.up_proj": (WIDE, HIDDEN), "mlp.down_proj": (HIDDEN, WIDE)},
}
ENDS = {"model.embed_tokens": (VOCAB, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (VOCAB, HIDDEN)}
QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")


def llama_like(architecture, model_type, biases=(), **keys):
    return lambda: (tree("model.layers", LLAMA, ENDS, biases), text_config(architecture, model_type, **keys))


def renamed(below, names):
    """Entries under other names; those without one are left out."""
    return {names[name]: shape for name, shape in below.items() if name in names}


def baichuan():
    packed = {name: shape for name, shape in LLAMA.items() if name not in QKV}
    below = {**packed, "self_attn.W_pack": (3 * HIDDEN, HIDDEN)}
    config = text_config("BaichuanForCausalLM", "baichuan", num_key_value_heads=4)
    return tree("model.layers", below, ENDS), config


def internlm2():
    names = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1"}
    names |= {"mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}
    below = {**renamed(LLAMA, names), "attention.wqkv": (Q + 2 * KV, HIDDEN)}
    ends = {"model.tok_embeddings": (VOCAB, HIDDEN), "model.norm": (HIDDEN,), "output": (VOCAB, HIDDEN)}
    return tree("model.layers", below, ends), text_config("InternLM2ForCausalLM", "internlm2", bias=False)


def qwen():
    below = {
        "ln_1": (HIDDEN,),
        "ln_2": (HIDDEN,),
        "attn.c_attn": (3 * HIDDEN, HIDDEN),
        "attn.c_proj": (HIDDEN, HIDDEN),
    }
    below |= {"mlp.w1": (WIDE, HIDDEN), "mlp.w2": (WIDE, HIDDEN), "mlp.c_proj": (HIDDEN, WIDE)}
    ends = {"transformer.wte": (VOCAB, HIDDEN), "transformer.ln_f": (HIDDEN,), "lm_head": (VOCAB, HIDDEN)}
    config = text_config(
        "QWenLMHeadModel", "qwen", intermediate_size=2 * WIDE, kv_channels=HEAD, num_key_value_heads=4
    )
    return tree("transformer.h", below, ends, ("attn.c_attn",)), config


def chatglm():
    below = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    below |= {"self_attention.query_key_value": (Q + 2 * KV, HIDDEN), "self_attention.dense": (HIDDEN, Q)}
    below |= {"mlp.dense_h_to_4h": (2 * WIDE, HIDDEN), "mlp.dense_4h_to_h": (HIDDEN, WIDE)}
    ends = {"transformer.embedding.word_embeddings": (VOCAB, HIDDEN), "transformer.output_layer": (VOCAB, HIDDEN)}
    ends |= {"transformer.encoder.final_layernorm": (HIDDEN,)}
    config = text_config("ChatGLMModel", "chatglm", num_layers=2, ffn_hidden_size=WIDE, padded_vocab_size=VOCAB)
    config |= {"multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": HEAD, "add_qkv_bias": True}
    config["original_rope"] = True
    for key in ("num_hidden_layers", "num_key_value_heads", "intermediate_size"):
        del config[key]
    return tree("transformer.encoder.layers", below, ends, ("self_attention.query_key_value",)), config


def exaone():
    names = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "mlp.down_proj": "mlp.c_proj"}
    names |= {
        "mlp.gate_proj": "mlp.c_fc_0",
        "mlp.up_proj": "mlp.c_fc_1",
        "self_attn.o_proj": "attn.attention.out_proj",
    }
    names |= {f"self_attn.{name}_proj": f"attn.attention.{name}_proj" for name in "qkv"}
    ends = {"transformer.wte": (VOCAB, HIDDEN), "transformer.ln_f": (HIDDEN,), "lm_head": (VOCAB, HIDDEN)}
    config = text_config("ExaoneForCausalLM", "exaone", num_layers=2)
    del config["num_hidden_layers"]
    return tree("transformer.h", renamed(LLAMA, names), ends), config


def experts(block, leaves, router="gate"):
    """The router and four experts of a sparse layer."""
    dims = {"gate_proj": (128, HIDDEN), "up_proj": (128, HIDDEN), "down_proj": (HIDDEN, 128)}
    found = {f"{block}.experts.{n}.{leaf}": dims[leaf] for n in range(4) for leaf in leaves}
    return {**found, f"{block}.{router}": (4, HIDDEN)}


SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
EXPERT = ("gate_proj", "up_proj", "down_proj")


def bailing():
    below = {"input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,)}
    below |= {"attention.query_key_value": (Q + 2 * KV, HIDDEN), "attention.dense": (HIDDEN, Q)}
    below |= experts("mlp", EXPERT)
    ends = {"model.word_embeddings": (VOCAB, HIDDEN), "model.norm": (HIDDEN,), "lm_head": (VOCAB, HIDDEN)}
    return tree("model.layers", below, ends), text_config("BailingMoeForCausalLM", "bailing_moe", **SPARSE)


def deepseek():
    below = {name: shape for name, shape in LLAMA.items() if not name.startswith("mlp.")} | experts("mlp", EXPERT)
    below |= {f"mlp.shared_experts.{leaf}": below[f"mlp.experts.0.{leaf}"] for leaf in EXPERT}
    keys = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "n_shared_experts": 1}
    return tree("model.layers", below, ENDS), text_config("DeepseekForCausalLM", "deepseek", **keys)


def decilm():
    tensors = tree("model.layers", LLAMA, ENDS)
    tensors = {
        name: value for name, value in tensors.items() if ".1.self_attn." not in name and ".1.input" not in name
    }
    attention = {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False}
    ffn = {"ffn_mult": 2.0, "no_op": False, "replace_with_linear": False}
    blocks = [{"attention": attention, "ffn": ffn}, {"attention": {**attention, "no_op": True}, "ffn": ffn}]
    keys = {"block_configs": blocks, "intermediate_size": None, "num_key_value_heads": None}
    return tensors, text_config("DeciLMForCausalLM", "nemotron-nas", **keys)


def step3p5():
    """Routed experts in tensors of three dims, a gate for each head, and a dense layer first."""
    norms = {"self_attn.q_norm": (HEAD,), "self_attn.k_norm": (HEAD,), "self_attn.g_proj": (4, HIDDEN)}
    tensors = tree("model.layers", {**LLAMA, **norms}, ENDS)
    tensors = {name: value for name, value in tensors.items() if ".1.mlp." not in name}
    moe = {"gate_proj": (4, 128, HIDDEN), "up_proj": (4, 128, HIDDEN), "down_proj": (4, HIDDEN, 128)}
    layer = "model.layers.1"
    tensors |= {f"{layer}.moe.{leaf}.weight": (shape, BF16) for leaf, shape in moe.items()}
    tensors |= {f"{layer}.share_expert.{leaf}.weight": (shape[1:], BF16) for leaf, shape in moe.items()}
    tensors |= {f"{layer}.moe.gate.weight": ((4, HIDDEN), BF16), f"{layer}.moe.router_bias": ((4,), torch.float32)}
    keys = {"moe_num_experts": 4, "moe_top_k": 2, "moe_intermediate_size": 128, "moe_layers_enum": "1"}
    config = text_config("Step3p5ForCausalLM", "step3p5", num_attention_groups=2, share_expert_dim=128, **keys)
    gates = {
        "use_head_wise_attn_gate": True,
        "need_fp32_gate": True,
        "norm_expert_weight": True,
        "use_moe_router_bias": True,
    }
    return tensors, {**config, "head_dim": HEAD, **gates}


def mimo():
    tensors, config = llama_like("MiMoForCausalLM", "mimo", QKV, attention_bias=True, num_nextn_predict_layers=1)()
    draft = {name.replace("layers.0", "mtp_layers.0"): v for name, v in tensors.items() if ".layers.0." in name}
    norms = ("token_layernorm", "hidden_layernorm", "final_layernorm")
    draft |= {f"model.mtp_layers.0.{name}.weight": ((HIDDEN,), BF16) for name in norms}
    return {**tensors, **draft, "model.mtp_layers.0.input_proj.weight": ((HIDDEN, 2 * HIDDEN), BF16)}, config


def tower(prefix, names):
    """Two blocks of a vision tower, of linears by the names given, each with a bias."""
    shapes = {"qkv": (192, 64), "q": (64, 64), "out": (64, 64), "fc1": (128, 64), "fc2": (64, 128), "norm": (64,)}
    found = {}
    for number in range(2):
        for name, kind in names.items():
            for leaf, shape in (("weight", shapes[kind]), ("bias", shapes[kind][:1])):
                found[f"{prefix}.{number}.{name}.{leaf}"] = (shape, BF16)
    return found


def internvl():
    tensors = {f"language_model.{name}": value for name, value in tree("model.layers", LLAMA, ENDS, QKV).items()}
    blocks = {
        "attn.qkv": "qkv",
        "attn.proj": "out",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
        "norm1": "norm",
        "norm2": "norm",
    }
    tensors |= tower("vision_model.encoder.layers", blocks)
    tensors |= {f"vision_model.encoder.layers.{n}.ls{i}": ((64,), BF16) for n in range(2) for i in (1, 2)}
    tensors |= {"vision_model.embeddings.class_embedding": ((1, 1, 64), BF16)}
    tensors |= {"vision_model.embeddings.position_embedding": ((1, 5, 64), BF16)}
    tensors |= {"vision_model.embeddings.patch_embedding.weight": ((64, 3, 14, 14), BF16)}
    tensors |= {"mlp1.1.weight": ((HIDDEN, 256), BF16), "mlp1.3.weight": ((HIDDEN, HIDDEN), BF16)}
    tensors |= {"mlp1.0.weight": ((256,), BF16), "mlp1.0.bias": ((256,), BF16)}
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "torch_dtype": "bfloat16"}
    config |= {
        "llm_config": text_config("Qwen2ForCausalLM", "qwen2"),
        "vision_config": vision,
        "downsample_ratio": 0.5,
    }
    return tensors, config


def minicpmv():
    tensors = {f"llm.{name}": value for name, value in tree("model.layers", LLAMA, ENDS, QKV).items()}
    names = {f"self_attn.{name}_proj": "q" for name in ("q", "k", "v", "out")}
    names |= {"mlp.fc1": "fc1", "mlp.fc2": "fc2", "layer_norm1": "norm", "layer_norm2": "norm"}
    tensors |= tower("vpm.encoder.layers", names)
    tensors |= {"vpm.embeddings.patch_embedding.weight": ((64, 3, 14, 14), BF16)}
    tensors |= {"vpm.embeddings.position_embedding.weight": ((16, 64), BF16)}
    tensors |= {"resampler.query": ((4, HIDDEN), BF16), "resampler.proj": ((HIDDEN, HIDDEN), BF16)}
    tensors |= {"resampler.kv_proj.weight": ((HIDDEN, 64), BF16), "resampler.ln_q.weight": ((HIDDEN,), BF16)}
    tensors |= {"resampler.attn.in_proj_weight": ((3 * HIDDEN, HIDDEN), BF16)}
    tensors |= {"resampler.attn.out_proj.weight": ((HIDDEN, HIDDEN), BF16)}
    vision = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return tensors, text_config("MiniCPMV", "minicpmv", version=2.6, vision_config=vision, query_num=4)


def kimi():
    tensors, config, _ = small.shapes("Kimi_K25ForConditionalGeneration")
    config |= {"architectures": ["KimiK25ForConditionalGeneration"], "tie_word_embeddings": False}
    config["text_config"] |= {"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 0}
    config["text_config"] |= {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    places = (
        ("model.mm_projector", "mm_projector"),
        ("vision_tower.encoder.patch_embed", "vision_tower.patch_embed"),
    )
    for there, here in places:
        tensors = {name.replace(there, here): value for name, value in tensors.items()}
    return {**tensors, "language_model.lm_head.weight": ((VOCAB, HIDDEN), BF16)}, config


def called(architecture, other):
    """A class that is called otherwise on the hub."""

    def make():
        tensors, config, _ = small.shapes(other)
        return tensors, {**config, "architectures": [architecture]}

    return make


REMOTE = {
    "BaichuanForCausalLM": baichuan,
    "BailingMoeForCausalLM": bailing,
    "ChatGLMModel": chatglm,
    "DeciLMForCausalLM": decilm,
    "DeepseekForCausalLM": deepseek,
    "ExaoneForCausalLM": exaone,
    "InternLM2ForCausalLM": internlm2,
    "InternLM3ForCausalLM": llama_like("InternLM3ForCausalLM", "internlm3"),
    "InternVLChatModel": internvl,
    "KimiK25ForConditionalGeneration": kimi,
    "MPTForCausalLM": called("MPTForCausalLM", "MptForCausalLM"),
    "MiMoForCausalLM": mimo,
    "MiniCPMForCausalLM": llama_like("MiniCPMForCausalLM", "minicpm"),
    "MiniCPMV": minicpmv,
    "PhiMoEForCausalLM": called("PhiMoEForCausalLM", "PhimoeForCausalLM"),
    "QWenLMHeadModel": qwen,
    "SolarForCausalLM": llama_like("SolarForCausalLM", "solar"),
    "Step3p5ForCausalLM": step3p5,
}
