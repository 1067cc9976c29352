"""What SGLang calls the linears of a checkpoint while it builds them, by model class, and what it builds them of.

Names of most classes are those on disk. Seen by asking each class for its linears with a quantization method that
notes their names: sglang 0.5.23, srt/models (prefix, packed_modules_mapping and hf_to_sglang_mapper of each class).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from qbridge.targets.fusion import Groups

_QKV: Groups = {"qkv_proj": ("q_proj", "k_proj", "v_proj")}
_GATED: Groups = {"gate_up_proj": ("gate_proj", "up_proj")}
_BOTH: Groups = {**_QKV, **_GATED}


@dataclass(frozen=True, slots=True)
class Names:
    """A model class of SGLang.

    `called` (patterns) renames a module on disk, each in turn. `packed` are the groups of linears that its methods
    match lists through. Before that, beginnings (`mapped`) and parts (`within`) of the entries of lists are renamed.
    Of `unquantized` (a pattern of its names) it builds the linears without the block. `towers`: so much is known of
    its towers too. `experts` is a pattern of stacks of experts that are called otherwise on disk.
    """

    called: Mapping[str, str] = field(default_factory=dict)
    packed: Groups = field(default_factory=dict)
    mapped: Mapping[str, str] = field(default_factory=dict)
    within: Mapping[str, str] = field(default_factory=dict)
    unquantized: str = ""
    towers: bool = False
    experts: str = ""

    def renamed(self, name: str) -> str:
        """SGLang's name of a module on disk."""
        for pattern, new in self.called.items():
            name = re.sub(pattern, new, name, count=1)
        return name

    def entries(self, listed: Iterable[str]) -> list[str]:
        """The entries of a list as the class hands them to the method: each is renamed by one part and one prefix."""
        return [self._entry(entry) for entry in listed]

    def _entry(self, entry: str) -> str:
        for part in sorted(self.within, key=len, reverse=True):
            if part in entry:
                entry = entry.replace(part, self.within[part], 1)
                break
        for prefix in sorted(self.mapped, key=len, reverse=True):
            if entry.startswith(prefix):
                return entry.replace(prefix, self.mapped[prefix], 1)
        return entry

    def is_plain(self, name: str) -> bool:
        """Whether the class builds something without the block, by SGLang's name."""
        return bool(self.unquantized and re.search(self.unquantized, name))


TEXT = Names()
_ALL = Names(packed=_BOTH)
_ONLY_QKV = Names(packed=_QKV)
_TOWER = Names(towers=True)
_VISUAL = {r"^model\.visual\.": "visual.", r"\.attn\.qkv$": ".attn.qkv_proj"}
_LISTED = {
    "model.language_model.": "language_model.model.",
    "model.visual.": "visual.",
    "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}
_QWEN2_VL = Names(
    {r"\.attn\.qkv$": ".attn.qkv_proj"}, mapped=_LISTED, within={"attn.qkv": "attn.qkv_proj"}, towers=True
)
_QWEN3_VL = replace(_QWEN2_VL, called={}, unquantized=r"^(?:model\.)?visual\.")
_GLM4V = Names({r"^model\.language_model\.": "model.", **_VISUAL}, towers=True)
_GRANITE_MOE = Names(experts=r"(.*\.block_sparse_moe)\.(?:input_linear|output_linear)")


def _alike(classes: str, names: Names) -> dict[str, Names]:
    return dict.fromkeys(classes.split(), names)


CLASSES: Mapping[str, Names] = {
    **_alike(
        """
        Cohere2MoeForCausalLM Cohere2VisionForConditionalGeneration DeciLMForCausalLM DeepseekV2ForCausalLM
        DeepseekV32ForCausalLM DeepseekV3ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM Gemma3ForCausalLM
        Gemma4ForCausalLM GemmaForCausalLM Glm4MoeLiteForCausalLM GlmMoeDsaForCausalLM HunYuanDenseV1ForCausalLM
        HunYuanMoEV1ForCausalLM Llama4ForCausalLM Llama4ForConditionalGeneration LongcatFlashForCausalLM
        MiniMaxM2ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3_5ForCausalLM
        Qwen3_5ForConditionalGeneration Qwen3_5MoeForCausalLM Qwen3_5MoeForConditionalGeneration
        """,
        _ALL,
    ),
    "BaichuanForCausalLM": Names(packed=_GATED),
    "FalconH1ForCausalLM": Names(unquantized=r"\.mamba\."),
    "Gemma2ForCausalLM": replace(_ALL, called={r"^model\.layers\.\d+\.": ""}),  # its layers have no names
    "Gemma3ForConditionalGeneration": replace(
        _ALL, called={r"^(vision_tower\..*\.self_attn)\.out_proj$": r"\1.proj"}, towers=True
    ),
    "Gemma4ForConditionalGeneration": replace(
        _ALL,
        called={r"\.((?:[qkv]|gate|up)_proj)\.linear$": r".\1"},
        unquantized=r"\.patch_embedder\.",
        towers=True,
    ),
    **_alike("Glm4vForConditionalGeneration GlmOcrForConditionalGeneration", _GLM4V),
    "Glm4vMoeForConditionalGeneration": replace(
        _GLM4V, called={r"^model\.language_model\.": "language_model.", **_VISUAL}
    ),
    **_alike("GraniteMoeForCausalLM GraniteMoeSharedForCausalLM", _GRANITE_MOE),
    "GraniteMoeHybridForCausalLM": replace(_GRANITE_MOE, packed=_QKV),
    "InternVLChatModel": Names({r"^language_model\.": ""}, unquantized=r"^mlp1\."),
    "Lfm2VlForConditionalGeneration": Names(
        {
            r"^model\.language_model\.": "language_model.model.",
            r"^model\.vision_tower\.": "vision_tower.",
            r"^(vision_tower\..*\.self_attn)\.out_proj$": r"\1.proj",
            r"^model\.multi_modal_projector\..*": "",  # which have no names
        },
        unquantized=r"\.patch_embedding$",
        towers=True,
    ),
    "Mistral3ForConditionalGeneration": Names(
        {
            r"^model\.(?=vision_tower\.|multi_modal_projector\.)": "",
            r"^model\.language_model\.": "model.",
            r"^language_model\.": "",
            r"^(vision_tower\..*\.attention)\.o_proj$": r"\1.proj",
        },
        unquantized=r"^multi_modal_projector\.",
        towers=True,
    ),
    "MllamaForConditionalGeneration": Names({r"^(vision_model\..*\.self_attn)\.o_proj$": r"\1.proj"}, towers=True),
    "NemotronHForCausalLM": replace(_ONLY_QKV, called={r"^backbone\.": "model."}, mapped={"backbone.": "model."}),
    "PhiForCausalLM": _ONLY_QKV,
    "Qwen2AudioForConditionalGeneration": Names(
        {r"^language_model\.": "model."}, unquantized=r"^(?:audio_tower|multi_modal_projector)\.", towers=True
    ),
    "Qwen2VLForConditionalGeneration": _QWEN2_VL,
    "Qwen2_5_VLForConditionalGeneration": replace(_QWEN2_VL, packed=_GATED),
    **_alike("Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration", _QWEN3_VL),
    **_alike("OlmoForCausalLM StableLmForCausalLM", Names(unquantized=r"\.self_attn\.")),
    "WhisperForConditionalGeneration": Names(unquantized=r"\.fc[12]$"),
    **_alike(
        """
        Exaone4_5_ForConditionalGeneration Idefics3ForConditionalGeneration SmolVLMForConditionalGeneration
        """,
        _TOWER,  # transformers' own modules
    ),
}
