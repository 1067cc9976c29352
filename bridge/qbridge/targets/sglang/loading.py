"""What SGLang's classes stop at, or build otherwise, whatever the format: names, keys of config.json, layers.

Each was seen with small checkpoints in its own loaders. Source: sglang 0.5.23, srt/models and srt/configs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from qbridge.architecture.config import rope, unsaid_keys
from qbridge.architecture.names import is_routed
from qbridge.architecture.prefixes import known_pairs, modules_of
from qbridge.formats.rules import ModelRule, Problem, Rule
from qbridge.ir.model import Model
from qbridge.targets.sglang import classes
from qbridge.targets.sglang.config import READER, holder, layers_of_interval
from qbridge.targets.sglang.fusion import words

_MODELS = "sglang 0.5.23, srt/models"

# What the text model is called by classes whose loaders take no other name (load_weights of each).
_TEXT: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("Gemma3ForConditionalGeneration", "InternVLChatModel", "Llama4ForConditionalGeneration"),
            *("MllamaForConditionalGeneration", "Qwen2AudioForConditionalGeneration"),
        ),
        "language_model.model",
    ),
    **dict.fromkeys(("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"), "model"),
    **dict.fromkeys(
        (
            *("Gemma4ForConditionalGeneration", "Glm4vForConditionalGeneration", "Lfm2VlForConditionalGeneration"),
            *("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration"),
        ),
        "model.language_model",
    ),
}
# Keys of config.json that a class reads and no class of a config has a default for, by the part of it where they are.
_ASKED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Cohere2VisionForConditionalGeneration": ("text_config", ("num_experts",)),
    "DeepseekV4ForCausalLM": ("", ("compress_ratios",)),
    "ExaoneForCausalLM": ("", ("pad_token_id",)),
    "ExaoneMoEForCausalLM": ("", ("is_moe_layer",)),
    "ExaoneMoeForCausalLM": ("", ("is_moe_layer",)),
    "Gemma2ForCausalLM": ("", ("hidden_act",)),
    "HunYuanMoEV1ForCausalLM": ("", ("moe_intermediate_size", "use_mixed_mlp_moe")),
    "InternVLChatModel": ("vision_config", ("norm_type",)),
    "KimiK25ForConditionalGeneration": ("vision_config", ("vt_hidden_size",)),
    "MiMoV2FlashForCausalLM": ("", ("hybrid_layer_pattern",)),
    "Qwen2VLForConditionalGeneration": ("vision_config", ("in_chans",)),
    "Step3p5ForCausalLM": ("", ("layer_types",)),
}
# Keys without which a class leaves out modules whose tensors end so.
_SWITCHES: Mapping[str, Mapping[str, str]] = {
    "HunYuanDenseV1ForCausalLM": {"use_qk_norm": ".key_layernorm.weight"},
    "HunYuanMoEV1ForCausalLM": {"use_qk_norm": ".key_layernorm.weight"},
    "MiniMaxM2ForCausalLM": {"use_qk_norm": ".k_norm.weight", "use_routing_bias": "e_score_correction_bias"},
}
# Keys that a class reads under another name than transformers writes, and what it takes where that is not there.
_OTHERWISE: Mapping[str, Mapping[str, tuple[str, int]]] = {
    "NemotronHForCausalLM": {
        "n_groups": ("mamba_n_groups", 8),
        "conv_kernel": ("mamba_d_conv", 4),
        "expand": ("mamba_expand", 2),
    }
}
# Classes that build experts in every layer, whatever mlp_only_layers, decoder_sparse_step or mlp_layer_types say.
_ALL_EXPERTS = words("""
    Cohere2MoeForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
    Qwen3VLMoeForConditionalGeneration
""")
# Classes that build as many heads of keys as of queries.
_ONE_FOR_EACH = words("OlmoeForCausalLM PhiForCausalLM")
# Parameters that the class makes, no checkpoint has, and nothing fills: what they hold is chance.
_UNFILLED: Mapping[str, str] = {
    "Qwen3ForSequenceClassification": "score.bias, which transformers' class does not have",
    "WhisperForConditionalGeneration": "the biases of k_proj in self_attn, which Whisper does not have",
}
_ONE_ROPE = words("MiMoV2FlashForCausalLM")
_TEXTS = ("model.language_model", "language_model.model", "model")


def _names(model: Model) -> Iterator[Problem]:
    wanted = _TEXT.get(model.architecture or "")
    if wanted is None:
        return
    stored = [info.stored for info in model.tensors.values()]
    modules = modules_of(stored)
    if any(f"{wanted}.{layers}" in modules for layers in ("layers", "embed_tokens")):
        return
    pairs = known_pairs(model.config, stored)
    kept = [(old, new) for old, new in pairs if new == wanted or old not in _TEXTS]
    flags = " ".join(f"--rename-prefix {old}={new}" for old, new in kept)
    ways = (f"convert it with {flags}",) if any(new == wanted for _, new in kept) else ()
    fact = f"{model.architecture} takes the text model under {wanted} alone"
    yield Problem((fact,), ways, where=(min(stored, default=""),))


def _keys(model: Model) -> Iterator[Problem]:
    part, keys = _ASKED.get(model.architecture or "", ("", ()))
    held = holder(model.config, part)
    where = tuple(f"{part}.{key}".lstrip(".") for key in keys if key not in held)
    if where:
        yield Problem((f"{model.architecture} reads them, and no class of its config has a default",), where=where)


def _kinds(model: Model) -> Iterator[Problem]:
    """Layers of full attention that no interval says."""
    where = tuple(dict.fromkeys((*unsaid_keys(model.config, READER), *layers_of_interval(model.config))))
    if where:
        yield Problem(
            ("layers are mixed in a way that these keys cannot say, and it does not read another",), where=where
        )


def _switched(model: Model) -> Iterator[Problem]:
    for key, ending in _SWITCHES.get(model.architecture or "", {}).items():
        found = tuple(info.stored for info in model.tensors.values() if info.stored.endswith(ending))
        if found and not model.config.get(key):
            yield Problem((f"without {key} in config.json, {model.architecture} has no place for them",), where=found)


def _otherwise(model: Model) -> Iterator[Problem]:
    for key, (other, default) in _OTHERWISE.get(model.architecture or "", {}).items():
        value = model.config.get(key)
        if value is not None and model.config.get(other, default) != value:
            fact = f"it reads {other} alone, and takes {model.config.get(other, default)} where {key} says {value}"
            yield Problem((fact,), (f'write "{other}": {value} into config.json',), (key,))


def _layers(model: Model) -> Iterator[Problem]:
    """Layers without experts, and more heads of queries than of keys, which some classes do not build."""
    if model.architecture in _ALL_EXPERTS:
        where = tuple(name for name in model.specs if re.search(r"\.layers\.\d+\.mlp\.(?:gate|up|down)_proj$", name))
        if where:
            yield Problem((f"{model.architecture} builds experts in every layer",), where=where)
    heads, keys = (model.config.get(f"num_{kind}_heads") for kind in ("attention", "key_value"))
    if model.architecture in _ONE_FOR_EACH and keys is not None and keys != heads:
        yield Problem(
            (f"{model.architecture} builds {heads} heads of keys, not {keys}",), where=("num_key_value_heads",)
        )
    if model.architecture == "Llama4ForCausalLM" and (where := tuple(filter(is_routed, model.specs))):
        yield Problem(("its loader, which is Llama's, reads no experts",), where=where)
    if model.architecture in _ONE_ROPE and rope(model.config)[2]:
        fact = f"{model.architecture} reads rope_theta and swa_rope_theta"
        yield Problem((fact,), where=("rope_parameters",))
    pattern = model.config.get("sliding_window_pattern")
    if model.architecture == "Exaone4ForCausalLM" and pattern and not isinstance(pattern, str):
        fact = f"it is {pattern!r}, and {model.architecture} counts the letters of a text"
        yield Problem((fact,), ('write it as letters, for example "LLLG"',), ("sliding_window_pattern",))


def _towers(model: Model) -> Iterator[Problem]:
    """Llava's tower is found by the class of its config: Pixtral's alone is among SGLang's."""
    kind = holder(model.config, "vision_config").get("model_type", "clip_vision_model")
    if model.architecture == "LlavaForConditionalGeneration" and kind != "pixtral":
        yield Problem(
            (f"its tower is a {kind}: 'Conv2d' object has no attribute 'num_embeddings'",), where=("vision_config",)
        )


def _unfilled(model: Model) -> Iterator[Problem]:
    if words := _UNFILLED.get(model.architecture or ""):
        yield Problem((f"{model.architecture} fills nothing into {words}",), where=("config.json",))
    held, text = model.config, holder(model.config, "text_config")
    towers = model.architecture in classes.THROUGH_TOWERS
    if towers and held.get("tie_word_embeddings") is True and text.get("tie_word_embeddings") is False:
        fact = "tie_word_embeddings: text_config says false, and there is no lm_head"
        heads = any(info.stored.endswith("lm_head.weight") for info in model.tensors.values())
        if not heads:
            yield Problem((fact,), where=("text_config.tie_word_embeddings",))


RULES: tuple[Rule, ...] = (
    ModelRule("QB268", classes.unknown, "sglang 0.5.23, srt/models/registry.py and srt/models/transformers.py"),
    ModelRule("QB269", _names, f"{_MODELS} (load_weights)"),
    ModelRule("QB269", _keys, f"{_MODELS} and srt/configs"),
    ModelRule("QB269", _kinds, "sglang 0.5.23, srt/configs/qwen3_next.py (layers_block_type)"),
    ModelRule("QB269", _switched, f"{_MODELS}: hunyuan.py, minimax_m2.py"),
    ModelRule("QB269", _otherwise, "sglang 0.5.23, srt/configs/nemotron_h.py"),
    ModelRule(
        "QB269", _layers, f"{_MODELS}: qwen2_moe.py, qwen3_moe.py, cohere2_moe.py, llama4.py, phi.py, exaone4.py"
    ),
    ModelRule("QB268", _towers, f"{_MODELS}/llava.py (_get_sgl_model_cls)"),
    ModelRule("QB299", _unfilled, f"{_MODELS}: qwen3_classification.py, whisper.py, transformers.py"),
)
