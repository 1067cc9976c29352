"""The sizes that config.json names against the dims of the tensors, where the table knows how these follow."""

from __future__ import annotations

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.expected import decoder_of
from qbridge.architecture.from_config import assumed_head, dims_by_config
from qbridge.architecture.names import is_embedding
from qbridge.architecture.odd_sizes import odd_sizes
from qbridge.findings.finding import Findings, QBridgeError
from qbridge.ir.model import Model
from qbridge.source.foreign import CONFIG

Dims = dict[str, tuple[int, ...]]  # [out_features, in_features] by module
_PROJECTED = "word_embed_proj_dim"  # OPT: the embedding has another width than the layers
_MOST = 4  # modules that are named with their dims


def judge_sizes(model: Model, findings: Findings) -> None:
    """QB052 where a size is none that a model has, or leads to other dims of linears, embedding or head."""
    architecture = Architecture.of_model(model)
    text = architecture.text
    if odd := odd_sizes(text):
        findings.add("QB052", CONFIG, odd)
        return
    wanted = _wanted(model, architecture) if architecture.known else {}
    stored: Dims = {name: spec.dims for name, spec in model.specs.items()}
    stored |= {name.removesuffix(".weight"): info.shape for name, info in model.tensors.items()}
    wrong = [name for name, dims in stored.items() if name in wanted and dims != wanted[name]]
    if wrong:
        facts = (f"{name}: {_by(stored[name])}, by config.json {_by(wanted[name])}" for name in wrong[:_MOST])
        findings.add("QB052", wrong, tuple(facts))


def _wanted(model: Model, architecture: Architecture) -> Dims:
    """The dims that follow from the config, as far as it says them."""
    usual, there = architecture.row.layers, decoder_of(architecture, [*model.specs, *model.tensors])
    try:
        linears = dims_by_config(model.config)
    except QBridgeError:
        linears = {}
    wanted: Dims = {f"{there}{name.removeprefix(usual)}": dims for name, dims in linears.items()}
    if _PROJECTED in architecture.text:
        return wanted
    table = f"{there.rpartition('.')[0]}.{architecture.row.ends[0]}"
    for head, (rows, columns) in assumed_head({**model.config, "tie_word_embeddings": False}).items():
        wanted[head] = rows, columns
        if is_embedding(table):
            wanted[table] = rows + architecture.row.more_tokens, columns
    return wanted


def _by(dims: tuple[int, ...]) -> str:
    return " x ".join(map(str, dims))
