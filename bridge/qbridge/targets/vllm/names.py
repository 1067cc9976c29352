"""What vLLM calls the linears of a checkpoint while it builds them, by model class.

Names of lists in a config are renamed like names of tensors. Source: vllm 0.33.0, model_executor/models
(hf_to_vllm_mapper and packed_modules_mapping of each class) and models/utils.py (WeightsMapper).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Groups = Mapping[str, tuple[str, ...]]

_QKV: Groups = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
_GATED: Groups = {"gate_up_proj": ("gate_proj", "up_proj")}
_BOTH: Groups = {**_QKV, **_GATED}
# Routers are built without the block, by all classes but few; what those few classes do is `routers`.
_ROUTER = re.compile(r"(?:^|\.)(?:gate|router|shared_expert_gate)(?:\.(?:layer|wg|proj|weight|classifier))?$")
_EXPERT = re.compile(r"(.*\.experts)(?:\.\d+)?(?:\.(\w+))?$")


@dataclass(frozen=True, slots=True)
class Names:
    """A model class of vLLM.

    `parts` and `prefixes` rename any part, then the beginning, of a name; `called` (patterns) is what the lists are
    asked about where that is another name still. `packed` are the groups of linears that lists are matched through,
    `merged` those that it builds as one, a dot in whose name says within what. Of `unquantized` (a pattern of its
    names) it hands no block to the layer, nor of `unquantized_ct` with compressed-tensors; it takes `either`
    quantized or not. `routers`: they are built from the block. `experts` is a pattern of stacks of experts that are
    called otherwise on disk. Of `towers` it is known that they are built from the block. What `early` (a pattern of
    its names) is built before the text model has told the lists its groups.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    packed: Groups = field(default_factory=lambda: _BOTH)
    merged: Groups = field(default_factory=lambda: _BOTH)
    called: Mapping[str, str] = field(default_factory=dict)
    unquantized: str = ""
    unquantized_ct: str = ""
    either: str = ""
    routers: bool = False
    experts: str = ""
    towers: bool = False
    early: str = ""

    def renamed(self, name: str, entry: bool = False) -> str:
        """vLLM's name of a module on disk, or of an `entry` of a list, which lacks the tensor's last name."""
        name = name if entry else f"{name}.weight"
        for part, new in self.parts.items():
            name = name.replace(part, new, 1)
        for prefix, new in self.prefixes.items():
            if name.startswith(prefix):
                name = name.replace(prefix, new, 1)
        if entry:
            return name
        for pattern, new in self.called.items():
            name = re.sub(pattern, new, name)
        return name.removesuffix(".weight")

    def parts_of(self, name: str) -> tuple[str, ...]:
        """The last names that lists are asked about in place of that of something built as one; none otherwise."""
        if self.early and re.search(self.early, name):
            return ()
        return tuple(self.packed.get(name.rpartition(".")[2], ()))

    def is_plain(self, name: str, method: str) -> bool:
        """Whether the class builds something without the block, by vLLM's name."""
        if _ROUTER.search(name) and not self.routers:
            return True
        patterns = (self.unquantized, self.unquantized_ct if method == "compressed-tensors" else "")
        return any(pattern and re.search(pattern, name) for pattern in patterns)

    def merges(self, parent: str, leaf: str) -> tuple[str, tuple[str, ...]] | None:
        """(the last name of what a module is built into, its parts), if it is built with others as one."""
        for key, parts in self.merged.items():
            scope, _, merged = key.rpartition(".")
            if leaf in parts and (not scope or parent.rpartition(".")[2] == scope):
                return merged, parts
        return None

    def experts_of(self, name: str) -> str | None:
        """The name of a layer's experts, if a module is one or all of them; shared ones are none."""
        if self.experts and (match := re.fullmatch(self.experts, name)):
            return f"{match[1]}.experts"
        match = _EXPERT.fullmatch(name)
        return match[1] if match else None


_LANGUAGE = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
_VISUAL = {"model.visual.": "visual.", **_LANGUAGE}
_TOWER = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    **_LANGUAGE,
}
_LINEAR_ATTENTION: Groups = {"in_proj_qkvz": ("in_proj_qkv", "in_proj_z"), "in_proj_ba": ("in_proj_b", "in_proj_a")}

TEXT = Names()
_ONLY_QKV = replace(TEXT, packed=_QKV)
_ONE_BY_ONE = replace(TEXT, packed={}, merged={})  # transformers' own modules
_MLA: Groups = {**_GATED, "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa")}
_LATENT = replace(
    TEXT,
    packed=_MLA,
    merged=_MLA,
    unquantized=r"\.indexer\.weights_proj$",
    either=r"\.indexer\.wk$",
)
_QWEN3_MOE = replace(_ONLY_QKV, routers=True)
_QWEN3_NEXT = replace(
    TEXT,
    packed={**_BOTH, "in_proj_qkvz": ("in_proj_qkvz",), "in_proj_ba": ("in_proj_ba",)},
    unquantized=r"(?:^|\.)lm_head$",
)
_QWEN3_5 = Names(
    {"model.language_model.": "model."},
    packed={**_BOTH, **_LINEAR_ATTENTION},
    merged={**_BOTH, **_LINEAR_ATTENTION},
    unquantized=r"\.conv1d$",
)
_QWEN3_5_VISION = replace(_QWEN3_5, prefixes=_VISUAL, towers=True)
_QWEN2_VISION = Names({**_VISUAL, "model.": "language_model.model."}, packed={}, towers=True)
_LLAVA = Names(_TOWER, towers=True)
_HEAD = r"(?:^|\.)lm_head$"
_PROJECTOR = r"^multi_modal_projector\."  # of torch's own linears
_PLAIN_HEAD = replace(TEXT, unquantized=_HEAD)
_LLAVA_NEXT_VIDEO = replace(_LLAVA, unquantized=_PROJECTOR)
_OMNI = Names(
    {"thinker.lm_head.": "language_model.lm_head.", "thinker.model.": "language_model.model.", "thinker.": ""},
    merged={**_BOTH, "qkv": ("q", "k", "v")},
    unquantized=r"^audio_tower\.",
    towers=True,
)
_GRANITE_MOE = replace(_ONLY_QKV, experts=r"(.*\.block_sparse_moe)\.(?:input_linear|output_linear)", merged=_BOTH)
_EXAONE: Groups = {**_QKV, "gate_up_proj": ("c_fc_0", "c_fc_1")}
_LFM2 = Names(
    parts={".conv.": ".short_conv."},
    packed={**_QKV, "w13": ("w1", "w3")},
    merged={**_QKV, "w13": ("w1", "w3")},
    unquantized=r"\.short_conv\.conv$",
)


def _alike(classes: str, names: Names) -> dict[str, Names]:
    return dict.fromkeys(classes.split(), names)


CLASSES: Mapping[str, Names] = {
    **_alike(
        """
        Cohere2ForCausalLM Cohere2MoeForCausalLM CohereForCausalLM DeciLMForCausalLM Ernie4_5ForCausalLM
        Ernie4_5_MoeForCausalLM Exaone4ForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM GemmaForCausalLM
        Glm4ForCausalLM Glm4MoeForCausalLM GraniteForCausalLM HyperCLOVAXForCausalLM InternLM3ForCausalLM
        LlamaForCausalLM LongcatFlashForCausalLM MiMoForCausalLM MiMoV2FlashForCausalLM MiniCPMForCausalLM
        Ministral3ForCausalLM MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM SolarForCausalLM
        """,
        TEXT,
    ),
    **_alike(
        "ApertusForCausalLM MiniMaxM2ForCausalLM NemotronForCausalLM OlmoeForCausalLM PhiMoEForCausalLM", _ONLY_QKV
    ),
    **_alike(
        """
        ArceeForCausalLM CwmForCausalLM GlmForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM
        PhiForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM Starcoder2ForCausalLM VaultGemmaForCausalLM
        """,
        _ONE_BY_ONE,
    ),
    **_alike("DeepseekV2ForCausalLM DeepseekV3ForCausalLM DeepseekV32ForCausalLM Glm4MoeLiteForCausalLM", _LATENT),
    "GlmMoeDsaForCausalLM": _LATENT,
    **_alike(  # the head is built without its name
        "AfmoeForCausalLM ExaoneMoeForCausalLM", replace(TEXT, called={r"^lm_head(?=\.)": ""})
    ),
    "BloomForCausalLM": replace(_ONE_BY_ONE, unquantized=_HEAD),
    "Cohere2VisionForConditionalGeneration": Names(
        {key: new for key, new in _TOWER.items() if key != "lm_head."}, unquantized=_PROJECTOR, towers=True
    ),
    "ExaoneForCausalLM": replace(TEXT, packed=_EXAONE, merged=_EXAONE),
    "FalconForCausalLM": replace(TEXT, packed={}),
    "FalconH1ForCausalLM": replace(
        TEXT,
        parts={"mamba": "mamba.mamba"},
        called={r"\.self_attn\.": ".", r"\.layers\.(\d+)\.mamba\.mamba\.": r".\1.mixer."},
        unquantized=rf"\.conv1d$|{_HEAD}",
    ),
    "GPTJForCausalLM": replace(TEXT, packed={}, merged=_QKV),
    "GPTNeoXForCausalLM": replace(_ONE_BY_ONE, prefixes={"embed_out.": "lm_head."}),
    "Gemma3ForConditionalGeneration": _LLAVA,
    "Gemma3nForCausalLM": replace(
        TEXT,
        called={
            r"\.(per_layer_model_projection|altup_projections)(?=\.)": r".self_decoder.\1",
        },
        unquantized=r"(?:^|\.)(?:audio_tower|vision_tower|embed_audio|embed_vision)\.",
        towers=True,
    ),
    "Gemma4ForCausalLM": Names({"model.language_model.": "model."}),
    "Glm4vForConditionalGeneration": Names(_VISUAL, packed={**_QKV, "gate_up_proj": ("gate_up_proj",)}, towers=True),
    "Glm4vMoeForConditionalGeneration": Names(_VISUAL, towers=True),
    **_alike("GraniteMoeForCausalLM GraniteMoeSharedForCausalLM", _GRANITE_MOE),
    "GraniteMoeHybridForCausalLM": replace(_GRANITE_MOE, called={r"\.mamba\.(?=\w+_proj)": ".mixer."}),
    **_alike("Idefics3ForConditionalGeneration SmolVLMForConditionalGeneration", Names(towers=True)),
    "InternLM2ForCausalLM": replace(
        TEXT, packed={"gate_up_proj": ("w1", "w3")}, merged={"gate_up_proj": ("w1", "w3")}
    ),
    "InternVLForConditionalGeneration": Names(_TOWER, packed={}),
    "JambaForCausalLM": replace(TEXT, parts={".self_attn.": "."}, unquantized=rf"\.mamba\.|{_HEAD}"),
    "KimiK25ForConditionalGeneration": Names(
        {
            "language_model.layers.": "language_model.model.layers.",
            "mm_projector.proj.0": "mm_projector.linear_1",
            "mm_projector.proj.2": "mm_projector.linear_2",
        },
        packed=_MLA,
        merged=_MLA,
        unquantized_ct=r"^(?:vision_tower|mm_projector)\.",
    ),
    "Lfm2ForCausalLM": _LFM2,
    "Lfm2MoeForCausalLM": replace(_LFM2, routers=True),
    "Llama4ForCausalLM": TEXT,
    "Llama4ForConditionalGeneration": replace(
        TEXT, unquantized=r"^(?:vision_model|multi_modal_projector)\.", towers=True
    ),
    "LlavaForConditionalGeneration": _LLAVA,
    "LlavaNextForConditionalGeneration": _LLAVA,
    "LlavaNextVideoForConditionalGeneration": _LLAVA_NEXT_VIDEO,
    "LlavaOnevisionForConditionalGeneration": replace(_LLAVA_NEXT_VIDEO, early=r"^vision_tower\."),
    "MiniCPM3ForCausalLM": replace(  # q_a_proj is built without its name
        TEXT, called={r".*\.self_attn\.q_a_proj(?=\.)": ""}, packed=_GATED, merged=_GATED
    ),
    "Mistral3ForConditionalGeneration": Names(
        {**_TOWER, "model.": "language_model.model."}, unquantized=r"\.patch_merger\.merging_layer$", towers=True
    ),
    "MixtralForCausalLM": replace(
        _ONLY_QKV, parts={".gate_proj.": ".w1.", ".up_proj.": ".w3.", ".down_proj.": ".w2."}
    ),
    "NemotronHForCausalLM": Names(
        {"backbone": "model"}, {"embeddings": "embed_tokens"}, packed=_QKV, merged=_QKV, unquantized=r"\.conv1d$"
    ),
    "OPTForCausalLM": replace(_PLAIN_HEAD, packed=_QKV, merged=_QKV),
    "PaliGemmaForConditionalGeneration": _LLAVA_NEXT_VIDEO,
    "Phi3ForCausalLM": replace(TEXT, packed={"qkv_proj": ("qkv_proj",), "gate_up_proj": ("gate_up_proj",)}),
    **_alike("Qwen2_5OmniModel Qwen2_5OmniForConditionalGeneration", _OMNI),
    "PhimoeForCausalLM": replace(
        _ONE_BY_ONE,
        parts={".block_sparse_moe.gate.": ".mlp.router.", ".block_sparse_moe.": ".mlp."},
        routers=True,
    ),
    "Qwen2MoeForCausalLM": TEXT,
    "Qwen2VLForConditionalGeneration": _QWEN2_VISION,
    "Qwen2_5_VLForConditionalGeneration": replace(_QWEN2_VISION, packed={**_BOTH, "qkv": ("qkv",)}),
    "Qwen3MoeForCausalLM": _QWEN3_MOE,
    "Qwen3NextForCausalLM": _QWEN3_NEXT,
    "Qwen3VLForConditionalGeneration": Names(_VISUAL, packed={**_BOTH, "qkv": ("qkv",)}, towers=True),
    "Qwen3VLMoeForConditionalGeneration": Names(_VISUAL, packed=_QKV, routers=True, towers=True),
    "Qwen3_5ForCausalLM": _QWEN3_5,
    "Qwen3_5ForConditionalGeneration": _QWEN3_5_VISION,
    "Qwen3_5MoeForCausalLM": _QWEN3_5,
    "Qwen3_5MoeForConditionalGeneration": _QWEN3_5_VISION,
    "WhisperForConditionalGeneration": Names(
        parts={".fc1.": ".mlp.fc1.", ".fc2.": ".mlp.fc2."},
        packed={**_QKV, "kv_proj": ("k_proj", "v_proj")},
        merged={"self_attn.qkv_proj": _QKV["qkv_proj"], "encoder_attn.kv_proj": ("k_proj", "v_proj")},
        towers=True,
    ),
    "Step3p5ForCausalLM": Names(
        parts={".share_expert.": ".moe.share_expert."}, experts=r"(.*\.moe)\.(?:gate|up|down)_proj"
    ),
}
# Classes whose head is built from the block and then given the embedding's weight, where the two are tied; others use
# the embedding for it. model_executor/models (tie_weights), and transformers' own modules.
TIES = frozenset(
    {
        *("ApertusForCausalLM", "DeciLMForCausalLM", "Ernie4_5_MoeForCausalLM", "Exaone4ForCausalLM"),
        *("ExaoneForCausalLM", "ExaoneMoeForCausalLM", "FalconForCausalLM", "GPTNeoXForCausalLM"),
        *("Gemma3ForCausalLM", "Gemma4ForCausalLM", "GemmaForCausalLM", "Glm4ForCausalLM", "GraniteForCausalLM"),
        *("GraniteMoeForCausalLM", "GraniteMoeHybridForCausalLM", "GraniteMoeSharedForCausalLM"),
        *("HyperCLOVAXForCausalLM", "Idefics3ForConditionalGeneration", "InternLM2ForCausalLM"),
        *("InternLM3ForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Llama4ForCausalLM", "LlamaForCausalLM"),
        *("MiMoForCausalLM", "MiniCPMForCausalLM", "Ministral3ForCausalLM", "MinistralForCausalLM"),
        *("MistralForCausalLM", "MixtralForCausalLM", "NemotronForCausalLM", "Qwen2ForCausalLM"),
        *("Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "SmolVLMForConditionalGeneration"),
        *("SolarForCausalLM", "WhisperForConditionalGeneration"),
        *(name for name, names in CLASSES.items() if names is _ONE_BY_ONE),
    }
)
# Of what qbridge reads, by the last version that had them: model_executor/models/registry.py.
REMOVED: Mapping[str, str] = {
    **dict.fromkeys(["MllamaForConditionalGeneration", "MotifForCausalLM", "Phi4FlashForCausalLM"], "0.10.2"),
    "Phi3SmallForCausalLM": "0.9.2",
    "Phi4MultimodalForCausalLM": "0.12.0",
    "JAISLMHeadModel": "0.22.0",
    **dict.fromkeys(
        [
            *("BaiChuanForCausalLM", "BaichuanForCausalLM", "BambaForCausalLM", "Dots1ForCausalLM"),
            *("InternLM2VEForCausalLM", "InternLMForCausalLM", "MiniMaxForCausalLM", "MiniMaxM1ForCausalLM"),
            *("MiniMaxText01ForCausalLM", "MiniMaxVL01ForConditionalGeneration", "QWenLMHeadModel"),
            *("QwenVLForConditionalGeneration", "Tarsier2ForConditionalGeneration", "XverseForCausalLM"),
        ],
        "0.23.0",
    ),
    **dict.fromkeys(
        [
            *("AquilaForCausalLM", "AquilaModel", "AyaVisionForConditionalGeneration", "Grok1ForCausalLM"),
            *("Grok1ModelForCausalLM", "MantisForConditionalGeneration", "TarsierForConditionalGeneration"),
        ],
        "0.24.0",
    ),
    **dict.fromkeys(["FuyuForCausalLM", "PersimmonForCausalLM", "TeleChatForCausalLM"], "0.25.0"),
    **dict.fromkeys(["OuroForCausalLM", "Plamo2ForCausalLM"], "0.26.0"),
    **dict.fromkeys(
        [
            *("ArcticForCausalLM", "ChameleonForConditionalGeneration", "Fairseq2LlamaForCausalLM", "GritLM"),
            *(
                "HCXVisionForCausalLM",
                "MPTForCausalLM",
                "MptForCausalLM",
                "RWForCausalLM",
                "StableLMEpochForCausalLM",
            ),
        ],
        "0.28.0",
    ),
}
# Of these, what transformers 5.24.0 has a class of that name for, whose attention can be another's: vLLM runs that
# (models/registry.py, _try_resolve_transformers; is_backend_compatible). Dots1 was tried; MPT has its own attention.
NATIVE = frozenset(
    {
        *("AyaVisionForConditionalGeneration", "BambaForCausalLM", "ChameleonForConditionalGeneration"),
        *("Dots1ForCausalLM", "FuyuForCausalLM", "MiniMaxForCausalLM", "PersimmonForCausalLM"),
    }
)
