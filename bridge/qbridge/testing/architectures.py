"""The laws of a row of `qbridge.architecture.classes`, tried on a small config that has every key.

They see a row that contradicts itself or what the rest of the house knows of linears; whether the row is that of the
real model, only its module tree says (tests/test_sharding.py and tests/test_completeness.py hold it against that).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.decoder import PARAMETERS
from qbridge.architecture.expected import missing
from qbridge.architecture.from_config import linears
from qbridge.architecture.model_class import ModelClass

# Multiples of 12, so that ranks get whole parts, and all different, so that a size says which key it is of.
SIZES: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 96,
    "num_attention_heads": 24,
    "num_key_value_heads": 12,
    "head_dim": 20,
    "intermediate_size": 108,
    "block_auto_adjust_ff_dim": False,
    "moe_intermediate_size": 132,
    "kv_lora_rank": 22,
    "q_lora_rank": 10,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 8,
    "v_head_dim": 14,
    "index_head_dim": 16,
    "index_n_heads": 6,
}
# The first layer is dense, the others have experts: alone, with shared ones in one module, and with one shared one.
EXPERTS: Mapping[str, Any] = {"num_experts": 2, "first_k_dense_replace": 1}
SHARED: tuple[Mapping[str, Any], ...] = ({}, {"n_shared_experts": 2}, {"shared_expert_intermediate_size": 204})
RANKS = (1, 2, 3, 4, 12)
_BLOCKS = ["linear_attention", "full_attention", "mlp", "moe"]
_SPARSE_MLPS = (frozenset({"gate_proj", "up_proj", "down_proj"}), frozenset({"w1", "w2", "w3"}))


def check_architecture(row: ModelClass, config: Mapping[str, Any] | None = None) -> None:
    """The laws of one row; AssertionError names the one that is broken.

    Every linear has dims and is split along one axis, by columns if it reads hidden states and by rows if it writes
    them, and all ranks together hold it. An MLP is as wide as a key of config.json says, and has gate and up if the
    row says that it is gated. A checkpoint of all that the row asks for lacks nothing, and without any module of its
    last layer, or of those around the layers, it lacks that one. `config` has what the row needs besides the sizes of
    this module. A row is tried as a dense model and with experts, as far as its MLP can be either.
    """
    split = row.split
    axes = [split.columns, split.rows, split.whole]
    _require(sum(map(len, axes)) == len(frozenset().union(*axes)), "a linear is split along two axes")
    wide = {"intermediate_size": SIZES["intermediate_size"] * row.mlp_share}
    sizes = {**SIZES, **wide, **(config or {}), "architectures": ["New"]}
    mlp = Architecture.of(sizes, row).mlp
    _require(bool(mlp), "the row has no linear of an MLP")
    if not (row.judged and row.assumed):  # nothing says which linears there are
        return
    if row.sparse:
        configs = [{**sizes, "num_experts": 2}]
    elif row.one_block:
        configs = [{**sizes, "num_experts": 2, "layers_block_type": _BLOCKS}]
    elif row.expert_block:
        configs = [{**sizes, "num_experts": 2, "shared_intermediate_size": 60}]
    elif mlp in _SPARSE_MLPS:
        configs = [sizes, *({**sizes, **EXPERTS, **shared} for shared in SHARED)]
    else:
        configs = [sizes]
    for keys in configs:
        _check_config(Architecture.of(keys, row))


def _check_config(architecture: Architecture) -> None:
    """The laws of a row bound to one config."""
    try:
        dims = dict(linears(architecture))
    except KeyError as fault:
        raise AssertionError(f"nothing says the dims of {fault}") from fault
    for name, size in dims.items():
        _check_axis(architecture, name, size)
        for tp in RANKS if architecture.row.shards else ():
            _check_rank(architecture, name, size, tp)
    faults = any(architecture.head_faults(tp) for tp in RANKS)
    _require(not faults, "a model that is split has faults")
    _check_mlps(architecture, dims)
    _check_names(architecture, dims)


def _check_axis(architecture: Architecture, name: str, dims: tuple[int, int]) -> None:
    """Linears that are split by columns read hidden states, or their low rank; those by rows write hidden states."""
    leaf, text = name.rpartition(".")[2], architecture.text
    hidden = text["hidden_size"]
    if leaf in architecture.split.columns:
        read = {hidden, *(text[key] for key in ("q_lora_rank", "kv_lora_rank") if architecture.latent)}
        _require(dims[1] in read, f"{name} is split by columns and reads no hidden states")
    elif leaf in architecture.split.rows:
        _require(dims[0] == hidden, f"{name} is split by rows and writes no hidden states")


def _check_rank(architecture: Architecture, name: str, dims: tuple[int, int], tp: int) -> None:
    """All ranks together have the whole linear; each has all of it where it is not split."""
    held = architecture.rank(name, dims, tp)
    if held is None:
        raise AssertionError(f"{name} is not known to be split, or held by every rank")
    columns, rows = {"whole": (1, 1), "column": (tp, 1), "row": (1, tp)}[held.axis]
    whole = held.out_features * columns, held.in_features * rows
    _require(not held.fault and whole == dims, f"{name} is {dims}, and {tp} ranks hold {whole} of it {held.fault}")


def _check_mlps(architecture: Architecture, dims: Mapping[str, tuple[int, int]]) -> None:
    """Every gated MLP is one of `Architecture.mlps`, as wide as its key says."""
    blocks = architecture.mlps(dims)
    inside = {linear for block in blocks for linear in (block.gate, block.up, block.down)}
    outside = [name for name in dims if name.rpartition(".")[2] in architecture.mlp and name not in inside]
    _require(not architecture.gated or not outside, f"{outside[:1]} is in no gated MLP")
    for block in blocks:
        key, size = architecture.intermediate_key(block.name), dims[block.down][1]
        wide = architecture.text[key] * architecture.intermediate_copies(block.name) if key else 0
        parts = 2 if block.gate == block.up else 1
        _require(wide == size and dims[block.gate][0] == parts * size, f"{block.name} is not as wide as {key} says")


def _check_names(architecture: Architecture, modules: Iterable[str]) -> None:
    """A checkpoint of what the row asks for lacks nothing, and without one of its tensors it lacks that one."""
    names = list(dict.fromkeys(_complete(architecture, modules)))
    lost = missing(names, architecture)
    _require(not lost, f"a complete checkpoint is said to lack {lost[:3]}")
    last = (architecture.layers or 0) - 1
    for name in names:
        others = f"{architecture.row.layers}." in name and not name.startswith(f"{architecture.row.layers}.{last}.")
        if others or (".indexer." in name and not architecture.indexer(last)):
            continue
        lost = missing([other for other in names if other != name], architecture)
        _require(lost == [name.removesuffix(".weight")], f"without {name} a checkpoint is said to lack {lost[:3]}")


def _complete(architecture: Architecture, modules: Iterable[str]) -> Iterator[str]:
    """The tensors of a model that has these linears, and everything else that its class has."""
    row, (outer, inner) = architecture.row, architecture.norms
    base = row.layers.rpartition(".")[0]
    present = [*modules, *(f"{base}.{name}".removeprefix(".") for name in architecture.ends)]
    present += [] if architecture.tied or not row.head else [row.head]
    for number in range(architecture.layers or 0):
        layer, sparse = f"{row.layers}.{number}", architecture.is_sparse(number)
        attention, block = f"{layer}.{row.attention}", f"{layer}.{row.mlp}".removesuffix(".")
        mixed = not architecture.has_attention(number) if row.one_block else row.mixers[0].beside
        if mixed and (not row.one_block or architecture.kind(number) == "linear_attention"):
            ways = [min(way, key=sorted) for way in row.mixers[0].parts]
            present += [f"{layer}.{row.mixers[0].name}.{name}" for way in ways for name in way]
        softmax = not row.one_block or architecture.has_attention(number)
        present += [f"{layer}.{name}" for name in (*outer, *row.modules)]
        present += [f"{attention}.{name}" for name in inner] if softmax else []
        present += [f"{attention}.indexer.k_norm"] if architecture.indexer(number) else []
        present += [f"{layer}.{name}" for name in row.expert_block] if sparse else []
        if sparse and not row.expert_block:
            present += [f"{block}.{'router' if 'router' in architecture.biased else 'gate'}"]
        if sparse and architecture.shared_block == "shared_expert" and not row.shared_expert:
            present.append(f"{block}.shared_expert_gate")
        for leaf in architecture.parameters(sparse):
            yield f"{block}.gate.{leaf}" if leaf == "e_score_correction_bias" else f"{attention}.{leaf}"
    for module in present:
        if module.rpartition(".")[2] in PARAMETERS:
            yield module
            continue
        yield f"{module}.weight"
        if module.rpartition(".")[2] in architecture.biased and ".experts." not in module:
            yield f"{module}.bias"


def _require(holds: bool, law: str) -> None:
    if not holds:
        raise AssertionError(law)
