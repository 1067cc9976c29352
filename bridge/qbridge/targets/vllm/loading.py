"""What vLLM's classes stop at: names that they rename twice, tensors that they reshape, other layers, keys they miss.

Source: vllm 0.33.0, model_executor/models/qwen3_5.py, bloom.py, utils.py (WeightsMapper).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.implied import default_layer_types
from qbridge.formats.rules import ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.targets.vllm.fusion import VLLM

_QWEN = "vllm 0.33.0, model_executor/models/qwen3_5.py (hf_to_vllm_mapper)"
_BLOOM = "vllm 0.33.0, model_executor/models/bloom.py (_repack_qkv)"
_LAYERS = "transformers 5.17.0, models/qwen3_5/configuration_qwen3_5.py (full_attention_interval)"
# Linears whose name begins with that of a part, which the loader replaces by the whole name once more.
_RENAMED_TWICE = {"in_proj_ba": "in_proj_baa", "in_proj_qkvz": "in_proj_qkvzz"}
_MIXERS = {"self_attn": "full_attention", "linear_attn": "linear_attention"}


def _modules(model: Model) -> list[str]:
    """The modules of a model as they are called on disk, each once."""
    coded = (str(dict(spec.dialect).get("stored_as") or name) for name, spec in model.specs.items())
    plain = (info.stored.rpartition(".")[0] for info in model.tensors.values())
    return list(dict.fromkeys((*coded, *plain)))


def _renamed_twice(model: Model) -> Iterator[Problem]:
    fused = VLLM.of(model.architecture or "")
    for leaf, name in _RENAMED_TWICE.items():
        where = tuple(module for module in _modules(model) if module.rpartition(".")[2] == leaf)
        if leaf in fused and where:
            parts = " and ".join(fused[leaf])
            fact = f"vLLM 0.33.0 stops: There is no module or parameter named {name}"
            help_ = f"store {parts} one by one: their rows are those of {leaf}, in this order"
            yield Problem((f"{leaf} is stored as one, and the loader wants {parts}", fact), (help_,), where)


def _other_layers(model: Model) -> Iterator[Problem]:
    architecture = Architecture.of_model(model)
    kinds = default_layer_types(architecture.text, architecture.layers or 0)
    if kinds is None:
        return
    stored, where = list(kinds), dict[str, None]()
    for module in _modules(model):
        parts = module.split(".")
        at = next((i for i, part in enumerate(parts) if part in _MIXERS), 0)
        if not at or not parts[at - 1].isdecimal() or not architecture.is_decoder(module):
            continue
        layer, kind = int(parts[at - 1]), _MIXERS[parts[at]]
        if layer < len(kinds) and kinds[layer] != kind:
            stored[layer] = kind
            where[".".join(parts[: at + 1])] = None
    if where:
        first = next(layer for layer, kind in enumerate(kinds) if stored[layer] != kind)
        fact = f"without layer_types the class builds {kinds[first]} in layer {first}, and {stored[first]} is stored"
        words = ", ".join(f'"{kind}"' for kind in stored)
        yield Problem(
            (fact,), (f'write "layer_types": [{words}] into config.json, beside num_hidden_layers',), tuple(where)
        )


# Keys of config.json that a class reads and transformers' class has no default for, by the part of it where they are.
_ASKED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "AfmoeForCausalLM": ("", ("n_group", "route_norm", "score_func", "topk_group")),
    **dict.fromkeys(("ChatGLMForConditionalGeneration", "ChatGLMModel"), ("", ("original_rope",))),
    "Glm4MoeForCausalLM": ("", ("head_dim",)),
    "Glm4MoeLiteForCausalLM": ("", ("first_k_dense_replace",)),
    "Glm4vMoeForConditionalGeneration": ("text_config", ("head_dim", "use_qk_norm")),
    "Lfm2ForCausalLM": ("", ("block_dim", "conv_dim")),
    "Lfm2VlForConditionalGeneration": ("text_config", ("block_dim", "conv_dim")),
    "LongcatFlashForCausalLM": ("", ("mla_scale_kv_lora", "mla_scale_q_lora", "zero_expert_type")),
    "MiMoV2FlashForCausalLM": ("", ("hybrid_layer_pattern",)),
    "MiniMaxM2ForCausalLM": ("", ("rotary_dim", "scoring_func")),
    "Qwen3VLMoeForConditionalGeneration": ("text_config", ("norm_topk_prob",)),
    "Step3p7ForConditionalGeneration": ("vision_config", ("output_dim", "width")),
    "VoxtralForConditionalGeneration": ("audio_config", ("downsample_factor",)),
}
_KEYS = "vllm 0.33.0, model_executor/models, with transformers 5.19.0, models/*/configuration_*.py"


def _unsaid(model: Model) -> Iterator[Problem]:
    part, keys = _ASKED.get(model.architecture or "", ("", ()))
    holder = model.config.get(part) if part else model.config
    given = holder if isinstance(holder, dict) else {}
    where = tuple(f"{part}.{key}".lstrip(".") for key in keys if key not in given)
    if where:
        fact = f"{model.architecture} of vLLM 0.33.0 reads them, and transformers' class of the config has no default"
        yield Problem((fact,), where=where)


_INDEXER = "vllm 0.33.0, model_executor/models/deepseek_v2.py (_try_load_fp8_indexer_wk)"


def _indexers(model: Model) -> Iterator[Problem]:
    """Keys of an indexer are built with its weights_proj as one linear of floats: the loader decodes some float8."""
    keys = {name: spec for name, spec in model.specs.items() if name.endswith(".indexer.wk")}
    where = tuple(name for name, spec in keys.items() if not _is_decoded(spec))
    if where:
        fact = f"{len(where)} linears: vLLM 0.33.0 stops at their names, for it builds wk and weights_proj as one"
        yield Problem(
            (fact,), ("it decodes float8 with a scale per channel or block, without scales of inputs",), where
        )


def _is_decoded(spec: Spec) -> bool:
    weight = spec.weight
    shared = weight.granularity is Granularity.TENSOR or weight.global_scale
    return weight.type == "e4m3fn" and not shared and spec.input_scale_dtype is None


_FROM_INPUTS = frozenset({"gptq", "awq", "auto-round"})  # their first axis is that of the inputs


def _reshaped(format_name: str) -> Callable[[Model], Iterator[Problem]]:
    """What Bloom's loader, which takes the first axis of every tensor of a fused linear for heads, cannot take."""

    def check(model: Model) -> Iterator[Problem]:
        if model.architecture != "BloomForCausalLM":
            return
        rows = 3 * Architecture.of_model(model).heads[0]
        names = (name for name in model.specs if name.rpartition(".")[2] == "query_key_value")
        where = tuple(name for name in names if rows and not _is_reshaped(model.specs[name], format_name, rows))
        if where:
            fact = f"vLLM 0.33.0 reshapes every tensor of it to [{rows // 3} heads, 3, ...], which fails on some"
            yield Problem((fact,), ("scales per channel, with dynamic activations, are loaded",), where)

    return check


def _is_reshaped(spec: Spec, format_name: str, rows: int) -> bool:
    """Whether the first axis of each tensor of a linear holds outputs, in shares for q, k and v of every head."""
    weight, acts = spec.weight, spec.activation
    packed = format_name == "compressed-tensors" and weight.type == "int" and acts is None  # weight_shape [2]
    scalar = (
        weight.granularity is Granularity.TENSOR or weight.global_scale or (acts is not None and not acts.dynamic)
    )
    if format_name in _FROM_INPUTS or packed or scalar:
        return False
    return weight.block is None or -(-spec.out_features // weight.block[0]) % rows == 0


def rules(format_name: str) -> tuple[Rule, ...]:
    """What no loader of the newest release takes, in one of its formats."""
    return (
        ModelRule("QB291", _renamed_twice, _QWEN),
        ModelRule("QB291", _other_layers, _LAYERS),
        ModelRule("QB291", _reshaped(format_name), _BLOOM),
        ModelRule("QB330", _unsaid, _KEYS),
        ModelRule("QB291", _indexers, _INDEXER),
    )
