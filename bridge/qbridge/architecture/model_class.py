"""What is known of a model class: the fields of a row of `classes`."""

from __future__ import annotations

from dataclasses import dataclass

from qbridge.architecture.families import LINEAR_ATTENTION, TWO_NORMS, Family, Mixer


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """How a class stores the experts of a layer in two tensors, gate_up_proj and down_proj, experts as first axis.

    The two other axes of a weight are in_features and out_features with `transposed`, else out_features first. Those
    of gate and up take turns with `interleaved`, else all of gate's come first. With `apart` each linear has a tensor
    of its own, gate_proj.weight, up_proj.weight and down_proj.weight of the block that the experts are in.
    """

    transposed: bool = False
    apart: bool = False
    interleaved: bool = False
    biased: bool = False


@dataclass(frozen=True, slots=True)
class ModelClass:
    """What is known of a model class; modules are named by their last names.

    `split` says which linears there are and how ranks share them.
    """

    split: Family
    norms: tuple[str, ...] = TWO_NORMS  # of a layer, with weights; those of latent attention are added to them
    ends: tuple[str, ...] = ("embed_tokens", "norm")  # the embedding and the last norm
    more_tokens: int = 0  # rows of the embedding beyond vocab_size
    tied: bool = False  # lm_head is the embedding unless config.json says otherwise
    biased: frozenset[str] = frozenset()  # what has a bias whatever config.json says
    biased_if: tuple[str, frozenset[str]] = ("", frozenset())  # what has one unless config.json denies it by this key
    parameters: frozenset[str] = frozenset()  # a layer's, that are no weight or bias of a module
    corrected: bool = False  # the router corrects its scores, unless topk_method says otherwise
    indexers: bool = False  # every layer chooses keys, though config.json has no indexer_types
    shared_expert: bool = False  # every sparse layer has one, without a gate, whatever config.json says
    fused_experts: FusedExperts | None = None  # where dense experts are stored in two tensors a layer alone
    float4_experts: bool = False  # routed experts of its float8 checkpoints have float4 codes
    query_gates: bool = False  # q_proj holds a gate beside every query
    mlp_ratio: int = 0  # intermediate over hidden size where config.json has no key for it
    mlp_share: int = 1  # how many linears the intermediate size of config.json is shared by
    layers: str = "model.layers"  # the name before the numbers of layers
    attention: str = "self_attn"  # the name of a layer's attention
    mlp: str = "mlp"  # the name of a layer's MLP, and of the block that experts are in
    head: str = "lm_head"  # the name of what maps to the vocabulary; an empty string if there is none
    encoder: str = ""  # the name before the numbers of an encoder's layers, which are split as the decoder's are
    mixers: tuple[Mixer, ...] = (LINEAR_ATTENTION,)  # what layers may have in place of attention
    one_block: bool = False  # a layer has attention, or a mixer, or an MLP, or experts
    sparse: bool = False  # every layer has experts, and no MLP
    expert_block: frozenset[str] = frozenset()  # what a sparse layer has in place of experts one by one, below it
    modules: frozenset[str] = frozenset()  # what every layer has besides, below it
    optional: frozenset[str] = frozenset()  # linears that a layer may have and need not
    assumed: bool = True  # the linears can be told from config.json alone
    judged: bool = True  # what a layer must have is known, and is the same in all layers of a kind
    shards: bool = True  # how ranks share the linears is known


UNKNOWN = ModelClass(Family(frozenset(), frozenset(), gated=False))  # stands for a class that is in no row
