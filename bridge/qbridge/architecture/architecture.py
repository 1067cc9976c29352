"""An architecture: a row of `classes` bound to a config.json, and all that the two say together.

Whoever wants to know what a model is like asks an `Architecture`, and no one else reads the text model's config.
Keys of config.json are those of transformers 4.57.6 and 5.24.0, models/*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qbridge.architecture import mlps as blocks
from qbridge.architecture import names, parallel
from qbridge.architecture.classes import CLASSES, UNKNOWN, ModelClass
from qbridge.architecture.decoder import (
    EXPERT_COUNTS,
    INDEXERS,
    MLPS,
    QUERIES,
    heads_of,
    is_decoder_module,
    positive,
    size_of,
)
from qbridge.architecture.families import QK_NORMS, SIZES, TEXT_MODELS, ZERO_AT_ZERO, Family, TextModel
from qbridge.architecture.quantization_block import NESTED
from qbridge.ir.model import Model

_QKV = frozenset({"q_proj", "k_proj", "v_proj"})


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
        classes = config.get("architectures")
        name = str(classes[0]) if isinstance(classes, list) and classes else ""
        return cls(name, row or CLASSES.get(name, UNKNOWN), config, _text_config(config))

    @classmethod
    def of_model(cls, model: Model) -> Architecture:
        """That of a model's config.json, bound once for a model."""
        return model.once("architecture", lambda: cls.of(model.config))

    @property
    def known(self) -> bool:
        """Whether there is a row for the class."""
        return self.row is not UNKNOWN

    @property
    def judged(self) -> bool:
        """Whether a row says what a layer needs, and config.json how many layers there are."""
        return self.known and self.layers is not None

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
        keys = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
        return next((positive(self.text, key) for key in keys if positive(self.text, key)), 0)

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
        linears = (self.split.columns | self.split.rows | self.split.whole) - MLPS - INDEXERS
        if self.latent:
            linears -= {"q_proj"} if self.text.get("q_lora_rank") else QUERIES - {"q_proj"}
        return linears

    @property
    def fused_experts(self) -> bool:
        """Whether the experts of a layer are stored in two tensors, as engines have them."""
        return self.row.fused_experts

    @property
    def mlp(self) -> frozenset[str]:
        """The linears of an MLP."""
        return (self.split.columns | self.split.rows) & MLPS

    @property
    def shared_block(self) -> str:
        """The name of the shared expert's module, or an empty string if a sparse layer has none."""
        if self.row.shared_expert:
            return "shared_expert"
        if any(positive(self.text, key) for key in ("n_shared_experts", "moe_num_shared_experts")):
            return "shared_experts"
        return "shared_expert" if positive(self.text, "shared_expert_intermediate_size") else ""

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts."""
        text = self.text
        kinds, chosen = text.get("mlp_layer_types"), text.get("moe_layers")
        if isinstance(kinds, list) and layer < len(kinds):
            return bool(kinds[layer] == "sparse")
        if isinstance(chosen, list) and chosen:
            return layer in chosen
        every = ("decoder_sparse_step", "interleave_moe_layer_step", "moe_layer_interval")
        return (
            self.experts > 0
            and layer not in (text.get("mlp_only_layers") or ())
            and all((layer + 1) % (positive(text, key) or 1) == 0 for key in every)
            and layer % (positive(text, "moe_layer_freq") or 1) == 0
            and layer >= positive(text, "first_k_dense_replace") + positive(text, "moe_layer_start_index")
            and layer <= (positive(text, "moe_layer_end_index") or layer)
        )

    def has_attention(self, layer: int) -> bool:
        """Whether a layer has softmax attention: hybrid models say which, or that every n-th has."""
        kinds = self.text.get("layer_types")
        if isinstance(kinds, list) and layer < len(kinds):
            return bool(kinds[layer] != "linear_attention")
        return (layer + 1) % (positive(self.text, "full_attention_interval") or 1) == 0

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
        inner = tuple(name for name in self.row.norms if name in QK_NORMS)
        if self.latent:
            inner += ("kv_a_layernorm", *(("q_a_layernorm",) if self.text.get("q_lora_rank") else ()))
        return tuple(name for name in self.row.norms if name not in QK_NORMS), inner

    @property
    def ends(self) -> tuple[str, ...]:
        """What stands before and after the layers."""
        return self.row.ends

    @property
    def tied(self) -> bool:
        """Whether lm_head is the embedding, by config.json, the text model's own config or the class."""
        key = "tie_word_embeddings"
        return bool(self.config.get(key, self.text.get(key, self.row.tied)))

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
        return biased

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
        return parallel.rank(module, dims, self.split, self.text, tp) if self.known else None

    def head_faults(self, tp: int) -> list[str]:
        """Why the model cannot be split over `tp` ranks at all, whatever its quantization; empty if it is unknown.

        The vocabulary is none of the reasons, for engines pad it (`rank`).
        """
        return parallel.head_faults(self.split, self.text, tp) if self.known else []

    # Names, and the sizes of what they name.

    def canonical(self, module: str) -> str:
        """The name that engines know a module by, whatever the tool wrote; full names."""
        return names.canonical_module(module)

    def mlps(self, modules: Iterable[str]) -> list[blocks.Block]:
        """The gated MLPs of decoder layers that are there whole, by full names; see `mlps.mlp_blocks`."""
        return blocks.mlp_blocks(modules)

    def intermediate_key(self, block: str) -> str | None:
        """The key of config.json that holds the size of a block of `mlps`, in the text config if that is nested.

        None if the class is unknown, for vision towers and for multi-token prediction. A key may be shared by blocks:
        shared experts of DeepSeek are `intermediate_copies` times as wide as one routed expert.
        """
        known = self.known and is_decoder_module(block, self.text)
        return blocks.intermediate_key(block, self.text) if known else None

    def intermediate_copies(self, block: str) -> int:
        """How many times its `intermediate_key` a block is wide: the number of shared experts in one module."""
        return blocks.intermediate_copies(block, self.text)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The text model's own config, the sizes that it leaves out filled in if it is nested."""
    for key in NESTED:
        text = config.get(key)
        if isinstance(text, dict):
            defaults = TEXT_MODELS.get(str(text.get("model_type")), TextModel()).sizes
            return {**{name: size for name, size in zip(SIZES, defaults, strict=False) if size}, **text}
    return config
