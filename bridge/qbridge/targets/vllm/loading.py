"""What vLLM's classes stop at or leave out: names that they rename twice, tensors that they reshape, keys they miss.

Source: vllm 0.33.0, model_executor/models/qwen3_5.py, bloom.py, utils.py (WeightsMapper).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.expected import surplus
from qbridge.architecture.mixers import stored_modules, unnamed_layers
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.targets.denied import asked_for, biases_rule
from qbridge.targets.stored_names import text_model_rule
from qbridge.targets.vllm.fusion import VLLM

_QWEN = "vllm 0.33.0, model_executor/models/qwen3_5.py (hf_to_vllm_mapper)"
_BLOOM = "vllm 0.33.0, model_executor/models/bloom.py (_repack_qkv)"
_LAYERS = "transformers 5.17.0, models/qwen3_5/configuration_qwen3_5.py (full_attention_interval)"
# Linears whose name begins with that of a part, which the loader replaces by the whole name once more.
_RENAMED_TWICE = {"in_proj_ba": "in_proj_baa", "in_proj_qkvz": "in_proj_qkvzz"}


def _renamed_twice(model: Model) -> Iterator[Problem]:
    fused = VLLM.of(model.architecture or "")
    for leaf, name in _RENAMED_TWICE.items():
        where = tuple(module for module in stored_modules(model) if module.rpartition(".")[2] == leaf)
        if leaf in fused and where:
            parts = " and ".join(fused[leaf])
            fact = f"vLLM 0.33.0 stops: There is no module or parameter named {name}"
            order = "one after the other or, as in Qwen3-Next, in turns by heads"
            help_ = f"store {parts} one by one; whether {leaf} has their rows {order}, the tool that fused them knows"
            yield Problem((f"{leaf} is stored as one, and the loader wants {parts}", fact), (help_,), where)


def _other_layers(model: Model) -> Iterator[Problem]:
    kinds = unnamed_layers(model)
    if kinds is None:
        return
    first, built, stored = next(
        (layer, *pair) for layer, pair in enumerate(zip(kinds.built, kinds.stored, strict=True)) if pair[0] != pair[1]
    )
    fact = f"without layer_types the class builds {built} in layer {first}, and {stored} is stored"
    words = ", ".join(f'"{kind}"' for kind in kinds.stored)
    help_ = f'write "layer_types": [{words}] into config.json, beside num_hidden_layers'
    yield Problem((fact,), (help_, *(("qbridge convert writes it",) if kinds.clear else ())), kinds.where)


# Keys of config.json that a class reads and transformers' class has no default for.
_STEP3 = ("need_fp32_gate", "norm_expert_weight", "use_moe_router_bias")
_ASKED: Mapping[str, tuple[str, ...]] = {
    "AfmoeForCausalLM": ("n_group", "route_norm", "score_func", "topk_group"),
    **dict.fromkeys(("ChatGLMForConditionalGeneration", "ChatGLMModel"), ("original_rope",)),
    "Glm4MoeForCausalLM": ("head_dim",),
    "Glm4MoeLiteForCausalLM": ("first_k_dense_replace",),
    "Glm4vMoeForConditionalGeneration": ("text_config.head_dim", "text_config.use_qk_norm"),
    "Lfm2ForCausalLM": ("block_dim", "conv_dim"),
    "Lfm2VlForConditionalGeneration": ("text_config.block_dim", "text_config.conv_dim"),
    "LongcatFlashForCausalLM": ("mla_scale_kv_lora", "mla_scale_q_lora", "zero_expert_type"),
    "MiMoV2FlashForCausalLM": ("hybrid_layer_pattern",),
    "MiniMaxM2ForCausalLM": ("rotary_dim", "scoring_func", "use_routing_bias"),
    "Qwen3VLMoeForConditionalGeneration": ("text_config.norm_topk_prob",),
    "Step3p5ForCausalLM": _STEP3,
    "Step3p7ForConditionalGeneration": (
        *("vision_config.output_dim", "vision_config.width"),
        *(f"text_config.{key}" for key in _STEP3),
    ),
    "VoxtralForConditionalGeneration": ("audio_config.downsample_factor",),
}
_KEYS = "vllm 0.33.0, model_executor/models, with transformers 5.19.0, models/*/configuration_*.py"


def _unsaid(model: Model) -> Iterator[Problem]:
    where = tuple(key for key in _ASKED.get(model.architecture or "", ()) if not _is_given(model.config, key))
    if where:
        fact = f"{model.architecture} of vLLM 0.33.0 reads them, and transformers' class of the config has no default"
        yield Problem((fact,), where=where)


def _is_given(config: Mapping[str, object], key: str) -> bool:
    """Whether config.json has a key, `part.key` inside of a part."""
    part, _, last = key.rpartition(".")
    holder = config.get(part) if part else config
    return isinstance(holder, dict) and last in holder


# Classes that build biases of q, k and v where config.json asks for them, and else leave stored ones out.
_BIASED_IF_ASKED = """
    ApertusForCausalLM DeciLMForCausalLM Exaone4ForCausalLM ExaoneForCausalLM ExaoneMoeForCausalLM Gemma2ForCausalLM
    Gemma3ForCausalLM Gemma3ForConditionalGeneration Glm4ForCausalLM Glm4MoeForCausalLM Glm4vForConditionalGeneration
    Glm4vMoeForConditionalGeneration GlmOcrForConditionalGeneration GraniteForCausalLM InternLM3ForCausalLM
    LlamaForCausalLM MiniMaxM2ForCausalLM MistralForCausalLM NemotronForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM
    Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration SolarForCausalLM
"""
_BIASES = "vllm 0.33.0, model_executor/models/llama.py, qwen3.py, glm4.py and their like (attention_bias)"
_BIAS_KEYS = ("attention_bias", "qkv_bias", "bias")
_GATED = frozenset({"Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"})
_STEP35 = "vllm 0.33.0, model_executor/models/step3p5.py (use_head_wise_attn_gate)"


def _gates(model: Model) -> Iterator[Problem]:
    """Gates of heads, which the class builds only where config.json asks for them."""
    key = "use_head_wise_attn_gate"
    if model.architecture in _GATED and not Architecture.of_model(model).text.get(key):
        where = tuple(module for module in stored_modules(model) if module.endswith(".g_proj"))
        if where:
            fact = f"vLLM 0.33.0 leaves {len(where)} gates of heads out: without {key} it builds none"
            yield Problem((fact,), (asked_for(key),), where)


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


_V4 = "DeepseekV4ForCausalLM"
_DEEPSEEK = "vllm 0.33.0, models/deepseek_v4/nvidia/model.py (load_weights, _make_deepseek_v4_weights_mapper)"


def _norms_of_v4(model: Model) -> Iterator[Problem]:
    """Norms of latents under the name that transformers' save gives them."""
    if model.architecture == _V4:
        where = tuple(name for name in model.tensors if name.endswith(".attn.norm.weight"))
        if where:
            fact = (
                "vLLM 0.33.0 stops: KeyError, for its class reads attn.kv_norm, as the model's own repository has it"
            )
            yield Problem((fact,), ("call attn.norm in the files attn.kv_norm; the values are the same",), where)


def _keys_of_v4(model: Model) -> Iterator[Problem]:
    """Keys that say what routers and experts are, where the tensors say otherwise."""
    if model.architecture != _V4:
        return
    if model.config.get("topk_method") != "noaux_tc":
        where = tuple(name for name in model.tensors if name.endswith(".ffn.gate.bias"))
        if where:
            fact = "its routers have biases, which vLLM 0.33.0 builds only for one topk_method: it stops at them"
            yield Problem((fact,), ('write "topk_method": "noaux_tc" into config.json',), where)
    stated = model.config.get("expert_dtype", "fp4")
    kinds = {"e4m3fn": "fp8", "e2m1": "fp4"}
    types = {spec.weight.type for name, spec in model.specs.items() if ".ffn.experts." in name}
    stored = {kinds[type_] for type_ in types if type_ in kinds}
    if len(stored) == 1 and stated not in stored and model.format == "fp8":
        (kind,) = stored
        fact = f"vLLM 0.33.0 builds experts of {stated}, and the stored ones are {kind}: it stops at their shapes"
        yield Problem((fact,), (f'write "expert_dtype": "{kind}" into config.json',), ("expert_dtype",))


# Classes whose loaders stop at the first tensor that is none of theirs: a linear, a layer, a weight beside codes.
# Others may skip some. Cohere, DeepSeek-V3 and Llama were tried, the rest has the same AutoWeightsLoader.
_STRICT = frozenset(["CohereForCausalLM", "DeepseekV3ForCausalLM", "LlamaForCausalLM"])
_LOADERS = "vllm 0.33.0, model_executor/models/utils.py (AutoWeightsLoader) and the load_weights of each class"


def _surplus(model: Model) -> Iterator[Problem]:
    where = tuple(surplus(model)) if model.architecture in _STRICT else ()
    if where:
        fact = f"{model.architecture} has no place for them (QB264), and vLLM 0.33.0 stops at the first"
        yield Problem((fact,), ("remove them, or correct the number of layers or experts in config.json",), where)


_FROM_INPUTS = frozenset({"gptq", "awq", "auto-round"})  # their first axis is that of the inputs


def _reshaped(format_name: str) -> LayerRule:
    """What Bloom's loader, which takes the first axis of every tensor of a fused linear for heads, cannot take."""

    def rows(model: Model) -> int:
        return 3 * Architecture.of_model(model).heads[0] if model.architecture == "BloomForCausalLM" else 0

    def check(spec: Spec, model: Model) -> Problem | None:
        wanted = rows(model) if spec.name.rpartition(".")[2] == "query_key_value" else 0
        if not wanted or _is_reshaped(spec, format_name, wanted):
            return None
        fact = f"vLLM 0.33.0 reshapes every tensor of it to [{wanted // 3} heads, 3, ...], which fails on some"
        return Problem((fact,), ("scales per channel, with dynamic activations, are loaded",))

    def repeated(spec: Spec, model: Model) -> Pass | None:
        if spec.weight.granularity is not Granularity.TENSOR or format_name != "compressed-tensors":
            return None
        return Broadcast() if _is_reshaped(Broadcast().plan(spec), format_name, rows(model)) else None

    return LayerRule("QB291", check, _BLOOM, repeated)


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
        text_model_rule(_LOADERS),
        ModelRule("QB291", _renamed_twice, _QWEN),
        ModelRule("QB291", _other_layers, _LAYERS),
        _reshaped(format_name),
        ModelRule("QB330", _unsaid, _KEYS),
        biases_rule("vLLM 0.33.0", _BIASED_IF_ASKED.split(), _BIAS_KEYS, _BIASES),
        ModelRule("QB331", _gates, _STEP35),
        ModelRule("QB291", _indexers, _INDEXER),
        ModelRule("QB291", _norms_of_v4, _DEEPSEEK),
        ModelRule("QB291", _surplus, _LOADERS),
        ModelRule("QB330", _keys_of_v4, _DEEPSEEK),
    )
