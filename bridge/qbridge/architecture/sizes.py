"""The sizes that config.json names against the dims of the tensors, where the table knows how these follow."""

from __future__ import annotations

import re
from collections.abc import Collection

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.decoder import EXPERT_COUNTS
from qbridge.architecture.expected import decoder_of
from qbridge.architecture.from_config import assumed_head, dims_by_config
from qbridge.architecture.names import is_embedding
from qbridge.architecture.odd_sizes import odd_sizes
from qbridge.architecture.odd_values import odd_values, two_classes
from qbridge.findings.finding import Findings, QBridgeError
from qbridge.ir.model import Model
from qbridge.source.foreign import CONFIG

Dims = dict[str, tuple[int, ...]]  # [out_features, in_features] by module
_PROJECTED = "word_embed_proj_dim"  # OPT: the embedding has another width than the layers
_ZERO_EXPERTS = "zero_expert_num"  # LongCat-Flash: the router has rows of experts that do nothing
_DRAFT = re.compile(r"^(?:eh_proj|enorm|hnorm|shared_head|nextn|final_layernorm)")  # of multi-token prediction alone
_DIGITS = 9  # of the number of a layer; more are a name like any other
_MOST = 4  # modules that are named with their dims


def judge_sizes(model: Model, findings: Findings, *, mild: bool = False) -> None:
    """QB053 for values that no class is built with, QB052 for sizes that are none, or that tensors belie.

    Two classes are a warning. What tensors belie is a warning where it is `mild`.
    """
    architecture = Architecture.of_model(model)
    text = architecture.text
    if odd := odd_values(architecture):
        findings.add("QB053", CONFIG, odd)
    if two := two_classes(architecture.config):
        findings.add("QB053", CONFIG, two, mild=True)
    if odd := odd_sizes(text):
        findings.add("QB052", CONFIG, odd)
        return
    wanted = _wanted(model, architecture) if architecture.known else {}
    stored: Dims = {name: spec.dims for name, spec in model.specs.items()}
    stored |= {name.removesuffix(".weight"): info.shape for name, info in model.tensors.items()}
    wrong = [name for name, dims in stored.items() if name in wanted and dims != wanted[name]]
    if beyond := _beyond(architecture, stored):
        findings.add("QB052", beyond, (f"num_hidden_layers is {architecture.layers}",), mild=mild)
    if wrong:
        facts = (f"{name}: {_by(stored[name])}, by config.json {_by(wanted[name])}" for name in wrong[:_MOST])
        findings.add("QB052", wrong, tuple(facts), mild=mild)


def _wanted(model: Model, architecture: Architecture) -> Dims:
    """The dims that follow from the config, as far as it says them."""
    usual, there = architecture.row.layers, decoder_of(architecture, [*model.specs, *model.tensors])
    try:
        linears = dims_by_config(model.config)
    except QBridgeError:
        linears = {}
    wanted: Dims = {f"{there}{name.removeprefix(usual)}": dims for name, dims in linears.items()}
    wanted |= _plain(model, architecture, there)
    if _PROJECTED in architecture.text:
        return wanted
    table = f"{there.rpartition('.')[0]}.{architecture.row.ends[0]}"
    for head, (rows, columns) in assumed_head({**model.config, "tie_word_embeddings": False}).items():
        wanted[head] = rows, columns
        if is_embedding(table):
            wanted[table] = rows + architecture.row.more_tokens, columns
    return wanted


def _plain(model: Model, architecture: Architecture, decoder: str) -> Dims:
    """The dims of norms and routers, of those that are stored."""
    text, found = architecture.text, Dims()
    width, norms = text.get("hidden_size"), architecture.norms[0]
    if type(width) is not int:
        return {}
    last = f"{decoder.rpartition('.')[0]}.{architecture.ends[-1]}"
    counted = next((text[key] for key in EXPERT_COUNTS if type(text.get(key)) is int), None)
    for name in model.tensors:
        module = name.removesuffix(".weight")
        if (module == last and not is_embedding(last)) or (
            module.startswith(f"{decoder}.") and _below_layer(module, decoder) in norms
        ):
            found[module] = (width,)
        elif counted is not None and _ZERO_EXPERTS not in text and _chooses(module, architecture):
            found[module] = counted, width
    return found


def _chooses(module: str, architecture: Architecture) -> bool:
    """Whether it has a row for each expert: a router, and no gate of the shared expert."""
    return architecture.is_router(module) and "shared" not in module.rpartition(".")[2]


def _below_layer(module: str, decoder: str) -> str:
    """What a module is called within its layer."""
    return module.removeprefix(f"{decoder}.").partition(".")[2]


def _beyond(architecture: Architecture, stored: Collection[str]) -> list[str]:
    """Attention of layers that config.json does not count, but for those of multi-token prediction."""
    if not architecture.judged or architecture.draft_layers:
        return []
    decoder = decoder_of(architecture, stored)
    layers: dict[int, set[str]] = {}
    for name in stored:
        number, _, rest = name.removeprefix(f"{decoder}.").partition(".")
        counted = name.startswith(f"{decoder}.") and number.isdecimal() and len(number) <= _DIGITS
        if counted and int(number) >= (architecture.layers or 0):
            layers.setdefault(int(number), set()).add(rest)
    return [f"{decoder}.{number}" for number, parts in sorted(layers.items()) if not any(map(_DRAFT.search, parts))]


def _by(dims: tuple[int, ...]) -> str:
    return " x ".join(map(str, dims))
