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
    known = text.to_dict()
    for key, value in {**DIMS, **changes}.items():
        if key in known:
            setattr(text, key, value)
    if getattr(text, "layer_types", None):  # every kind of layer, as far as they are there
        kinds = sorted(set(text.layer_types))
        text.layer_types = [kinds[i % len(kinds)] for i in range(4)]
    if getattr(text, "mlp_layer_types", None) is not None:
        text.mlp_layer_types = ["dense", "sparse"] * 2
    for key, value in (("first_k_dense_replace", 1), ("mlp_only_layers", [0]), ("moe_layers", [1, 3])):
        if getattr(text, key, None) is not None:
            setattr(text, key, value)
    with torch.device("meta"):
        return getattr(transformers, architecture)(config)


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
