"""What transformers says about every architecture of qbridge.architecture; run it to print the module's literal data.

python tests/architecture/make_sharding.py Qwen3ForCausalLM MistralForCausalLM ...
"""

from __future__ import annotations

import functools
import re
import sys

import torch
import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from qbridge.architecture.decoder import LEFT_ALONE
from qbridge.architecture.families import SIZES
from qbridge.architecture.names import ROUTERS

COLUMN = {"colwise", "colwise_gather_output", "packed_colwise"}
ROW = {"rowwise", "rowwise_split_input"}
WHOLE = {"mla_kv_a_proj"}
# Norms, the module around packed experts, and embeddings (since 5.24.0).
NO_LINEAR = {"replicated_with_grad_allreduce", "moe_tp_experts", "embedding_rowwise", "embedding_colwise"}
# Small, different and multiples of 3, so that a shape says which dim is which; of 4 too, for grouped matmuls.
DIMS = {
    "hidden_size": 48,
    "intermediate_size": 108,
    "ffn_hidden_size": 108,
    "intermediate_size_mlp": 180,
    "moe_intermediate_size": 132,
    "shared_expert_intermediate_size": 204,
    "n_shared_experts": 2,
    "moe_num_shared_experts": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 14,
    "q_lora_rank": 10,
    "kv_lora_rank": 22,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "num_hidden_layers": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
}
# What classes want otherwise: older words for sizes, and every kind of layer.
OTHER = {
    "BloomForCausalLM": {"n_head": 6, "n_layer": 4},
    "DeepseekV4ForCausalLM": {"num_hash_layers": 0},
    "FalconH1ForCausalLM": {"mamba_d_ssm": 96, "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 16},
    "GPTJForCausalLM": {"n_embd": 48, "n_head": 6, "n_layer": 4, "rotary_dim": 8},
    "GraniteMoeForCausalLM": {"tie_word_embeddings": False},
    "GraniteMoeHybridForCausalLM": {
        **{"mamba_n_heads": 6, "mamba_d_head": 16, "mamba_d_state": 16, "shared_intermediate_size": 60},
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "GraniteMoeSharedForCausalLM": {"shared_intermediate_size": 60},
    "HeliumForCausalLM": {"head_dim": 8},
    "JambaForCausalLM": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_dt_rank": 6,
    },
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 12},
    "Lfm2MoeForCausalLM": {
        "layer_types": ["conv", "full_attention", "full_attention", "conv"],
        "num_dense_layers": 2,
    },
    "Lfm2VlForConditionalGeneration": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 12},
    "LongcatFlashForCausalLM": {
        **{
            "num_layers": 4,
            "num_hidden_layers": 8,
            "expert_ffn_hidden_size": 132,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
        **{"n_routed_experts": 4},
    },
    "MllamaForConditionalGeneration": {"cross_attention_layers": [1, 3]},
    "MptForCausalLM": {"d_model": 48, "n_heads": 6, "n_layers": 4},
    "NemotronHForCausalLM": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"] * 2,
        **{"num_hidden_layers": 8, "mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 16},
        **{"moe_shared_expert_intermediate_size": 120, "n_shared_experts": 1},
    },
    "OPTForCausalLM": {"word_embed_proj_dim": 48, "ffn_dim": 108},
    "WhisperForConditionalGeneration": {
        **{"d_model": 48, "decoder_layers": 4, "encoder_layers": 4, "decoder_attention_heads": 6},
        **{"encoder_attention_heads": 6, "decoder_ffn_dim": 108, "encoder_ffn_dim": 108},
    },
}


# Hybrids, and classes with other words for sizes: test_expected_parameters.py holds them against what is on disk.
IRREGULAR = {
    *("ApertusForCausalLM", "GPTNeoXForCausalLM", "LlavaOnevisionForConditionalGeneration"),
    *("AfmoeForCausalLM", "BloomForCausalLM", "DeepseekV4ForCausalLM", "FalconH1ForCausalLM", "GPTJForCausalLM"),
    *("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration", "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
    *("GraniteMoeForCausalLM", "GraniteMoeHybridForCausalLM", "GraniteMoeSharedForCausalLM", "HeliumForCausalLM"),
    *("HunYuanDenseV1ForCausalLM", "HunYuanMoEV1ForCausalLM", "JambaForCausalLM", "Kimi_K25ForConditionalGeneration"),
    *("Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Lfm2VlForConditionalGeneration", "LongcatFlashForCausalLM"),
    *("MiMoV2FlashForCausalLM", "MiniCPM3ForCausalLM", "MllamaForConditionalGeneration", "MptForCausalLM"),
    *(
        "NemotronHForCausalLM",
        "OPTForCausalLM",
        "Qwen2_5OmniForConditionalGeneration",
        "Qwen2AudioForConditionalGeneration",
    ),
    *("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration"),
    *("Qwen3OmniMoeThinkerForConditionalGeneration", "Step3p7ForConditionalGeneration"),
    *("VoxtralForConditionalGeneration", "WhisperForConditionalGeneration", "Idefics3ForConditionalGeneration"),
    *("SmolVLMForConditionalGeneration", "LightOnOcrForConditionalGeneration"),
}
# Classes whose small model cannot be made here: of packages that are not installed, or of configs with a fault.
UNMADE = {"Gemma3nForConditionalGeneration", "Gemma3nForCausalLM", "Qwen3OmniMoeForConditionalGeneration"}


def regular(classes):
    """Those of some classes that transformers has, and whose module trees have the names that are on disk."""
    return [name for name in classes if hasattr(transformers, name) and name not in IRREGULAR]


def config_class(architecture):
    return getattr(transformers, architecture).config_class


def text_config(architecture):
    return config_class(architecture)().get_text_config()


def nested(architecture):
    return text_config(architecture).model_type != config_class(architecture).model_type


def sources(model_type, packed):
    """The leaves of one expert on disk that transformers 5 packs into experts.gate_up_proj or experts.down_proj."""
    for step in get_checkpoint_conversion_mapping(model_type) or []:
        leaves = [re.search(r"experts\.\*\.(\w+)\.weight$", source) for source in step.source_patterns]
        if all(leaves) and step.target_patterns[0].endswith(f"experts.{packed}"):
            return {leaf[1] for leaf in leaves}
    return {"gate_up_proj": {"gate_proj", "up_proj"}, "down_proj": {"down_proj"}}[packed]


def plan(architecture):
    """(columns, rows, whole) as far as base_model_tp_plan goes; linear attention is not modelled."""
    config, found = text_config(architecture), (set(), set(), set())
    for name, style in (config.base_model_tp_plan or {}).items():
        block, _, leaf = name.rpartition(".")
        if style in NO_LINEAR or "linear_attn" in name:
            continue
        if block.endswith("experts") and "shared" not in block:
            # Llama 4 stores packed experts transposed, so its styles are swapped.
            expected = {"gate_up_proj": {"packed_colwise", "packed_rowwise"}, "down_proj": {"rowwise", "colwise"}}
            assert style in expected[leaf], (architecture, name, style)
            found[leaf == "down_proj"].update(sources(config.model_type, leaf))
        else:
            kind = [style in styles for styles in (COLUMN, ROW, WHOLE)].index(True)
            found[kind].add(leaf)
    return found


@functools.cache
def instance(architecture, **changes):
    """A small model on the meta device, dense and sparse layers in it."""
    config = config_class(architecture)()
    text = config.get_text_config()
    known, other = text.to_dict(), OTHER.get(architecture, {})
    for key, value in {**DIMS, **other, **changes}.items():
        if key in known or key in other:
            setattr(text, key, value)
    if isinstance(known.get("layer_types"), list) and "layer_types" not in other:  # every kind of layer that is there
        kinds = sorted(set(text.layer_types))
        text.layer_types = [kinds[i % len(kinds)] for i in range(4)]
    if getattr(text, "mlp_layer_types", None) is not None:
        text.mlp_layer_types = ["dense", "sparse"] * 2
    for key, value in (("first_k_dense_replace", 1), ("mlp_only_layers", [0]), ("moe_layers", [1, 3])):
        if getattr(text, key, None) is not None:
            setattr(text, key, value)
    with torch.device("meta"):
        return getattr(transformers, architecture)(config)


@functools.cache
def on_disk(architecture, **changes):
    """Names and shapes of what transformers saves of the small model, tied heads left out."""
    model = instance(architecture, **changes)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    found = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, kept).items()}
    # transformers 5.24.0 gives the decoder of Kimi-K2.5 the name of its tower's blocks
    return {
        name.replace("language_model.model.blocks.", "language_model.model.layers."): shape
        for name, shape in found.items()
    }


def linears(architecture, **changes):
    """(name on disk, out_features, in_features) of the linears in decoder layers, packed experts taken apart."""
    model = instance(architecture, **changes)
    text = model.config.get_text_config()
    for name, parameter in model.named_parameters():
        parts = name.removesuffix(".weight").split(".")
        if LEFT_ALONE & set(parts) or not re.search(r"\.(layers|h)\.\d+\.", name) or "linear_attn" in parts:
            continue
        if parts[-2] == "experts" and parameter.ndim == 3:
            rows = parts[-1] == "down_proj"
            out, into = parameter.shape[1:]
            if rows != (out == text.hidden_size):  # GPT-OSS and Llama 4 store packed experts transposed
                out, into = into, out
            leaves = sources(text.model_type, parts[-1])
            for leaf in leaves:
                yield ".".join([*parts[:-1], "0", leaf]), out // len(leaves), into
        elif name.endswith(".weight") and parameter.ndim == 2 and parts[-1] not in ROUTERS:
            yield ".".join(parts), *parameter.shape


def defaults(config):
    """What a nested text config means by the sizes that it leaves out of config.json, 0 if there is none."""
    fields = type(config).default_config_fields()
    return tuple(fields.get(key) or 0 for key in SIZES)


def main(names):
    tables = {}
    for name in names:
        columns, rows, whole = plan(name)
        leaves = {module.rpartition(".")[2] for module, _, _ in linears(name)}
        print(name, sorted(columns), sorted(rows), sorted(whole), "no plan:", sorted(leaves - columns - rows - whole))
        if nested(name):
            tables[text_config(name).model_type] = defaults(text_config(name))
    for model_type, sizes in sorted(tables.items()):
        print(f'    "{model_type}": TextModel({sizes}),')


if __name__ == "__main__":
    main(sys.argv[1:])
