"""An architecture: a row of `classes` bound to a config.json, and all that the two say together.

Whoever wants to know what a model is like asks an `Architecture`, and no one else reads the text model's config.
Keys of config.json are those of transformers 4.57.6 and 5.24.0, models/*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture import mlps as blocks
from qbridge.architecture import names, parallel
from qbridge.architecture.classes import CLASSES
from qbridge.architecture.config import DRAFTS
from qbridge.architecture.decoder import (
    EXPERT_COUNTS,
    FIRST_SPARSE,
    INDEXERS,
    MLPS,
    QUERIES,
    SHARED_COUNTS,
    heads_of,
    is_decoder_module,
    is_draft_module,
    positive,
    size_of,
)
from qbridge.architecture.families import (
    CONTAINERS,
    INNER_NORMS,
    LFM2,
    SIZES,
    TEXT_MODELS,
    ZERO_AT_ZERO,
    Family,
    Mixer,
    TextModel,
)
from qbridge.architecture.model_class import UNKNOWN, FusedExperts, ModelClass
from qbridge.architecture.quantization_block import NESTED
from qbridge.ir.model import Model

_QKV = frozenset({"q_proj", "k_proj", "v_proj"})
# Words of config.json for layers that have no softmax attention; hybrid_override_pattern has letters for them.
_OTHER_KINDS = frozenset({"linear_attention", "conv", "mlp", "moe", "cross_attention"})
_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_OLD_KINDS = {"mamba": "linear_attention", "attention": "full_attention"}
# What older classes call sizes. transformers 5.24.0, attribute_map in models/*/configuration_*.py.
_OTHER_WORDS = {
    "num_hidden_layers": ("decoder_layers", "n_layer", "n_layers", "num_layers"),
    "hidden_size": ("d_model", "n_embed", "n_embd"),
    "num_attention_heads": ("decoder_attention_heads", "n_head", "n_heads"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Architecture:
    """What is known of a model from its config.json.

    `row` says nothing if the class is unknown. `text` is the text model's own config, the sizes that it leaves out
    filled in if it is nested; it is `config` otherwise. Modules are named by their last names, if not said otherwise.
    """

    name: str  # of the first model class that config.json names, or an empty string
    row: ModelClass
    config: Mapping[str, Any]
    text: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any], row: ModelClass | None = None) -> Architecture:
        """What config.json says of its class, whose row is another than the table's if one is given."""
        name, text = _first(config), _text_config(config)
        of_text = _first(text) if name in CONTAINERS and text is not config else ""
        return cls(name, row or CLASSES.get(of_text or name, UNKNOWN), config, text)

    @classmethod
    def of_model(cls, model: Model) -> Architecture:
        """That of a model's config.json, bound once for a model."""
        return model.once("architecture", lambda: cls.of(model.config))

    @property
    def known(self) -> bool:
        """Whether there is a row for the class."""
        return self.row is not UNKNOWN

    @property
    def shards(self) -> bool:
        """Whether it is known how ranks share the linears."""
        return self.known and self.row.shards

    @property
    def judged(self) -> bool:
        """Whether a row says what a layer needs, and config.json how many layers there are."""
        return self.known and self.row.judged and self.layers is not None

    # Sizes.

    @property
    def layers(self) -> int | None:
        """num_hidden_layers, None if it is no number; it may be larger than that of any model."""
        count = self.text.get("num_hidden_layers")
        return count if type(count) is int else None

    @property
    def heads(self) -> tuple[int, int]:
        """(heads, kv heads) of attention, zeros if unknown."""
        return heads_of(self.text)

    @property
    def experts(self) -> int:
        """How many routed experts a sparse layer has, 0 for a dense model."""
        return next((size_of(self.text, key) for key in EXPERT_COUNTS if size_of(self.text, key)), 0)

    @property
    def routed(self) -> tuple[int, int]:
        """(experts that a token goes through, experts there are); (1, 1) if config.json does not say."""
        chosen = size_of(self.text, "num_experts_per_tok") or size_of(self.text, "moe_k")
        return (chosen, self.experts) if 0 < chosen <= self.experts else (1, 1)

    @property
    def draft_layers(self) -> int:
        """How many layers for multi-token prediction config.json speaks of."""
        return next((positive(self.text, key) for key in DRAFTS if positive(self.text, key)), 0)

    # Linears.

    @property
    def split(self) -> Family:
        """Which linears there are, and how ranks share them; none of an unknown class."""
        return self.row.split

    @property
    def gated(self) -> bool:
        """Whether the MLP is act(gate) * up with act(0) = 0, with the activation that config.json names."""
        acts = self.text.get("hidden_act"), self.text.get("hidden_activation")
        return self.split.gated and all(act is None or str(act) in ZERO_AT_ZERO for act in acts)

    @property
    def latent(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return "kv_b_proj" in self.split.columns

    @property
    def attention(self) -> frozenset[str]:
        """The linears of an attention block."""
        linears = (self.split.columns | self.split.rows | self.split.whole) - MLPS - INDEXERS - self.row.optional
        if self.latent:
            linears -= {"q_proj"} if self.text.get("q_lora_rank") else QUERIES - {"q_proj"}
        return linears

    @property
    def fused_experts(self) -> FusedExperts | None:
        """How the experts of a layer are stored in two tensors; None where each linear has its own."""
        return self.row.fused_experts

    @property
    def mlp(self) -> frozenset[str]:
        """The linears of an MLP."""
        return (self.split.columns | self.split.rows) & MLPS

    @property
    def adjusts_mlp(self) -> bool:
        """Whether the MLP is of another size than config.json says, which the class computes of it (LFM2)."""
        dense = self.split is LFM2 and not self.experts
        return dense and bool(self.text.get("block_auto_adjust_ff_dim", True))

    @property
    def shared_block(self) -> str:
        """The name of the shared expert's module, or an empty string if a sparse layer has none."""
        if self.row.shared_expert:
            return "shared_expert"
        if any(positive(self.text, key) for key in SHARED_COUNTS):
            return "shared_experts"
        return "shared_expert" if positive(self.text, "shared_expert_intermediate_size") else ""

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        text = self.text
        kinds, chosen = text.get("mlp_layer_types"), text.get("moe_layers")
        if self.row.one_block:
            return self.kind(layer) == "moe"
        for listed, sparse in ((kinds, "sparse"), (text.get("moe_layer_freq"), 1), (text.get("is_moe_layer"), True)):
            if isinstance(listed, list) and layer < len(listed):
                return bool(listed[layer] == sparse)
        if isinstance(chosen, list) and chosen:
            return layer in chosen
        period = positive(text, "expert_layer_period")
        if period and layer % period != positive(text, "expert_layer_offset"):
            return False
        every = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval")
        return (
            self.experts > 0
            and layer not in (text.get("mlp_only_layers") or ())
            and all((layer + 1) % (positive(text, key) or 1) == 0 for key in every)
            and layer % (positive(text, "moe_layer_freq") or 1) == 0
            and layer >= sum(positive(text, key) for key in FIRST_SPARSE)
            and layer <= (positive(text, "moe_layer_end_index") or layer)
        )

    def kind(self, layer: int) -> str:
        """What config.json says that a layer has in place of attention, or alone; "" where it says nothing."""
        text = self.text
        pattern = text.get("hybrid_override_pattern")
        if isinstance(pattern, str):
            return _LETTERS.get(pattern[layer : layer + 1], "")
        for key in ("layers_block_type", "layer_types"):
            kinds = text.get(key)
            if isinstance(kinds, list) and layer < len(kinds):
                return _OLD_KINDS.get(str(kinds[layer]), str(kinds[layer]))
        for key, words in (("cross_attention_layers", ("cross_attention", "")), ("full_attn_idxs", ("", "conv"))):
            numbers = text.get(key)
            if isinstance(numbers, list):
                return words[layer not in numbers]
        period = positive(text, "attn_layer_period")
        if period:
            return "" if layer % period == positive(text, "attn_layer_offset") else "linear_attention"
        return "" if (layer + 1) % (positive(text, "full_attention_interval") or 1) == 0 else "linear_attention"

    def has_attention(self, layer: int) -> bool:
        """Whether a layer has softmax attention: hybrid models say which, or that every n-th has."""
        return self.kind(layer) not in _OTHER_KINDS

    def has_mlp(self, layer: int) -> bool:
        """Whether a layer has an MLP or experts, which layers of one block may not have."""
        return not self.row.one_block or self.kind(layer) in ("mlp", "moe")

    def mixer(self, modules: Collection[str]) -> Mixer | None:
        """What a layer has in place of softmax attention, by the names of modules below it."""
        every = self.row.mixers
        return next((one for one in every if any(name.startswith(f"{one.name}.") for name in modules)), None)

    def is_router(self, module: str) -> bool:
        """Whether a module, by its full name, chooses experts."""
        return names.is_router(module)

    def is_decoder(self, module: str) -> bool:
        """Whether a module, by its full name, is in one of the decoder's layers: in no tower and no draft layer."""
        return is_decoder_module(module, self.text)

    def is_draft(self, module: str) -> bool:
        """Whether a module, by its full name, is in a layer for multi-token prediction."""
        return is_draft_module(module, self.text)

    def indexer(self, layer: int) -> frozenset[str]:
        """What a layer chooses keys by; layers of GLM share one, as config.json says."""
        if not self.split.whole >= INDEXERS:
            return frozenset()
        kinds, full = self.text.get("indexer_types"), self.row.indexers
        if isinstance(kinds, list):
            full = layer < len(kinds) and kinds[layer] == "full"
        return INDEXERS | {"k_norm"} if full else frozenset()

    # Everything else of a layer, and what stands around the layers.

    @property
    def norms(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """A layer's norms: those of every layer, and those inside of attention."""
        inner = tuple(name for name in self.row.norms if name in INNER_NORMS)
        if self.latent:
            inner += ("kv_a_layernorm", *(("q_a_layernorm",) if self.text.get("q_lora_rank") else ()))
        return tuple(name for name in self.row.norms if name not in INNER_NORMS), inner

    @property
    def ends(self) -> tuple[str, ...]:
        """What stands before and after the layers."""
        return self.row.ends

    @property
    def tied(self) -> bool:
        """Whether lm_head is the embedding, by config.json, the text model's own config or the class."""
        key, thinker = "tie_word_embeddings", self.config.get("thinker_config")
        holders = (self.config, *((thinker,) if isinstance(thinker, dict) else ()), self.text)
        return bool(next((holder[key] for holder in holders if key in holder), self.row.tied))

    @property
    def biased(self) -> frozenset[str]:
        """The linears and norms that have a bias."""
        text, biased, (key, names_) = self.text, self.row.biased, self.row.biased_if
        if text.get(key, True):
            biased |= names_
        if self.latent:  # its attention_bias is about other linears
            return biased
        model = TEXT_MODELS.get(str(text.get("model_type")), TextModel())
        if (model.qkv_bias and text.get("qkv_bias", True)) or text.get("attention_bias"):
            biased |= self.split.columns & _QKV
        return biased | (self.mlp if text.get("mlp_bias") and not self.experts else frozenset())

    def parameters(self, sparse: bool) -> frozenset[str]:
        """A layer's parameters of its own, besides those of linear attention."""
        corrected = self.row.corrected and sparse and self.text.get("topk_method", "noaux_tc") == "noaux_tc"
        return self.row.parameters | ({"e_score_correction_bias"} if corrected else frozenset())

    # Tensor parallelism.

    def rank(self, module: str, dims: tuple[int, int], tp: int) -> parallel.Rank | None:
        """What each of `tp` ranks holds of a linear of `dims` (out_features, in_features).

        kv heads that are fewer than ranks are repeated. None if the class, the linear or the number of heads is
        unknown, and for vision towers and blocks for multi-token prediction: such a linear is judged as if there were
        no tensor parallelism. Routed experts are split within each expert (no expert parallelism). Embeddings and
        heads count as whole, for engines pad the vocabulary (vLLM 0.33.0,
        model_executor/layers/vocab_parallel_embedding.py: to a multiple of 64).
        """
        return parallel.rank(module, dims, self.row, self.text, tp) if self.shards else None

    def head_faults(self, tp: int) -> list[str]:
        """Why the model cannot be split over `tp` ranks at all, whatever its quantization; empty if it is unknown.

        The vocabulary is none of the reasons, for engines pad it (`rank`).
        """
        return parallel.head_faults(self.split, self.text, tp) if self.shards else []

    # Names, and the sizes of what they name.

    def canonical(self, module: str) -> str:
        """The name that engines know a module by, whatever the tool wrote; full names."""
        return names.canonical_module(module)

    def mlps(self, modules: Iterable[str]) -> list[blocks.Block]:
        """The gated MLPs of decoder and draft layers that are there whole, by full names; see `mlps.mlp_blocks`."""
        return blocks.mlp_blocks(modules)

    def intermediate_key(self, block: str) -> str | None:
        """The key of config.json that holds the size of a block of `mlps`, in the text config if that is nested.

        None if the class is unknown, and for vision towers. A key may be shared by blocks: shared experts of DeepSeek
        are `intermediate_copies` times as wide as one routed expert, and draft layers are built of the same config.
        """
        of_text = self.is_decoder(block) or self.is_draft(block)
        known = self.known and self.row.judged and not self.adjusts_mlp and of_text
        return blocks.intermediate_key(block, self.text) if known else None

    def intermediate_copies(self, block: str) -> int:
        """How many times its `intermediate_key` a block is wide: the number of shared experts in one module."""
        return blocks.intermediate_copies(block, self.text)


def _first(config: Mapping[str, Any]) -> str:
    """The first model class that a config names, or an empty string."""
    classes = config.get("architectures")
    return str(classes[0]) if isinstance(classes, list) and classes else ""


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's own config, the sizes that it leaves out filled in if it is nested."""
    thinker = config.get("thinker_config")
    for holder in (thinker, config) if isinstance(thinker, dict) else (config,):
        for key in NESTED:
            text = holder.get(key)
            if isinstance(text, dict):
                defaults = TEXT_MODELS.get(str(text.get("model_type")), TextModel()).sizes
                return _in_usual_words(
                    {**{n: size for n, size in zip(SIZES, defaults, strict=False) if size}, **text}
                )
    return _in_usual_words(config)


def _in_usual_words(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config with the usual words for what it says in others; of an encoder-decoder the decoder's sizes."""
    said = {word: next((other for other in words if other in config), "") for word, words in _OTHER_WORDS.items()}
    added = {
        word: config[other]
        for word, other in said.items()
        if other and (word not in config or other.startswith("decoder_"))
    }
    if "num_hidden_layers" not in config and "num_hidden_layers" not in added:
        kinds = [config.get(key) for key in ("hybrid_override_pattern", "layers_block_type")]
        counts = [len(kind) for kind in kinds if isinstance(kind, (str, list))]
        added |= {"num_hidden_layers": counts[0]} if counts else {}
    return {**config, **added} if added else config
