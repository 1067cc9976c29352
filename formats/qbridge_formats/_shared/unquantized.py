"""What a model leaves unquantized, in words that engines match whatever they call the modules in memory.

Engines rename and fuse modules: `vision_tower` becomes `model.vision_tower`, `attn.q`, `k` and `v` become `attn.qkv`,
`mamba.in_proj` becomes `mamba.mamba.in_proj`, experts that share a tensor become `experts`. Stored names match those
only where the engine renames its lists as well, so a module without any quantized one below it is also told by its
last names, which hold under any prefix and for anything below. Sources: vllm 0.33.0, model_executor/models/utils.py
(WeightsMapper) and each model's hf_to_vllm_mapper and packed_modules_mapping; transformers 5.24.0,
conversion_mapping.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbridge.architecture.names import FUSED as USUAL
from qbridge.architecture.names import (
    ROUTERS,
    dense_linears,
    is_head,
    is_routed,
    linear_router,
    module_of,
    tied_head,
)
from qbridge.ir.model import Model, TensorInfo

# What towers and mixers are called instead in memory. vllm 0.33.0, models/*.py (hf_to_vllm_mapper; falcon_h1.py and
# granitemoehybrid.py for mixers); transformers 5.24.0, conversion_mapping.py.
RENAMED: Mapping[str, tuple[str, ...]] = {
    "visual": ("vision_tower",),
    "vit": ("vision_tower",),
    "vision_tower": ("vision_encoder",),
    "vision_model": ("visual",),
    "vision_embedder": ("embed_vision",),
    "multi_modal_projector": ("vision_language_adapter",),
    "mlp1": ("multi_modal_projector",),
    "audio": ("audio_tower",),
    "sound_encoder": ("audio_tower",),
    "sound_projection": ("embed_audio",),
    "mamba": ("mixer",),
}
# Linears that engines build as one, in towers and in decoders. vllm 0.33.0, models/*.py.
FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("q", "k", "v"),
    "kv_proj": ("k_proj", "v_proj"),  # of attention to an encoder
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
}
_FUSED_AFTER = {
    last: [fused for fused, parts in FUSED.items() if parts[-1] == last]
    for last in {parts[-1] for parts in FUSED.values()}
}
# Modules that lie in others in memory. vllm 0.33.0, models/step3p5.py.
MOVED: Mapping[str, str] = {".share_expert.": ".moe.share_expert."}
# The same of linears of Gemma 3n, which are never quantized. vllm 0.33.0, models/gemma3n.py (Gemma3nSelfDecoder).
_OF_SELF_DECODER = re.compile(r"(.*)\.(per_layer_model_projection|altup_projections\.\d+)")
# And of Granite 4's mixers. vllm 0.33.0, models/granitemoehybrid.py (GraniteMoeHybridMambaDecoderLayer).
_OF_MIXER = re.compile(r"(.*\.layers\.\d+)\.mamba\.(\w+_proj)")
ROUTED = r"experts\.\d+\..*"  # any linear of any routed expert


@dataclass(frozen=True, slots=True)
class Subtree:
    """A module below which nothing is quantized.

    `labels` are its last names, and those that engines have for them; no quantized module has them among its own.
    `linears` are the full names of what is listed of it, `numbered` says that it lies within one of several layers.
    """

    path: str
    labels: tuple[str, ...]
    linears: tuple[str, ...]
    numbered: bool

    @property
    def pattern(self) -> str:
        """A regex, from the start of a name, of all below it under any prefix."""
        return _under_any_prefix(self.labels) + r"\..*"

    @property
    def whole(self) -> str:
        """A regex of the module itself as well, for engines that build it as one."""
        return _under_any_prefix(self.labels) + r"(\..*)?"

    @property
    def probes(self) -> tuple[str, ...]:
        """Names that what covers it must match: of something below it, under several prefixes."""
        return tuple(f"{prefix}.x" for prefix in (self.path, *self.labels[:1], f"model.{self.labels[0]}"))


@dataclass(frozen=True, slots=True)
class Unquantized:
    """The linears of a model that are not quantized, each in a subtree or alone, in the order of their tensors.

    `heads` are names of a head that no tensor has: it is tied, or of another name in memory. `nested` says that the
    text model is a part of the model. `routers` are the names in memory of those that have others there.
    """

    items: tuple[Subtree | str, ...]
    heads: tuple[str, ...]
    routers: tuple[str, ...]
    nested: bool
    quantized: frozenset[str]

    @classmethod
    def of(cls, model: Model) -> Unquantized:
        """That of a model, worked out once."""
        return model.once("unquantized", lambda: _unquantized(model))

    @property
    def linears(self) -> tuple[str, ...]:
        """The full names of all that have a tensor."""
        return tuple(name for item in self.items for name in ([item] if isinstance(item, str) else item.linears))

    @property
    def subtrees(self) -> tuple[Subtree, ...]:
        """The subtrees, one for each way to say it: layers share theirs."""
        found: dict[tuple[str, ...], Subtree] = {}
        for item in self.items:
            if isinstance(item, Subtree):
                found.setdefault(item.labels, item)
        return tuple(found.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The full names, tied heads included, and those that engines have for several as one.

        Every engine knows the usual fused linears of a text model by their parts.
        """
        return (*with_fused(self.linears, usual=self.nested), *self.routers, *self.heads)


def _unquantized(model: Model) -> Unquantized:
    quantized = quantized_names(model)
    moved = {name.replace(old, new) for name in quantized for old, new in MOVED.items() if old in name}
    inner = _with_parents(quantized | moved)
    dense = _dense(model.tensors)
    parts, items = _Names(quantized | moved), dict[str, list[str] | None]()
    for name in dense:
        path = next((path for path in (*(name[:dot] for dot in _dots(name)), name) if path not in inner), None)
        if path is None:
            continue  # a part of what is quantized beside it
        if path == name and name.rpartition(".")[2] != "experts":
            items[name] = None
        else:
            below = items.setdefault(path, [])
            if below is not None:
                below.append(name)
    nested = is_nested(model)
    heads = () if any(map(is_head, quantized)) else tied_head(model.config)
    if any(map(is_head, dense)):  # engines call any head so
        heads = () if any(name.endswith("lm_head") for name in dense) else ("lm_head",)
    return Unquantized(
        tuple(path if below is None else _subtree(path, below, parts) for path, below in items.items()),
        tuple(name for name in heads if name not in quantized and name not in dense),
        tuple(other for name in dense for other in _elsewhere(name, model.config)),
        nested,
        frozenset(quantized),
    )


def _elsewhere(name: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Names that engines have in memory for a linear, besides the one on disk."""
    if router := linear_router(name, config):
        yield router if not router.startswith("layers.") else f"model.{router}"
    if str(config.get("model_type")).startswith("gemma3n") and (match := _OF_SELF_DECODER.fullmatch(name)):
        yield f"{match[1]}.self_decoder.{match[2]}"
    if config.get("model_type") == "granitemoehybrid" and (match := _OF_MIXER.fullmatch(name)):
        yield f"{match[1]}.mixer.{match[2]}"


def quantized_names(model: Model) -> set[str]:
    """The modules that are quantized, under the names that engines know and those that they are stored by."""
    stored = (dict(spec.dialect).get("stored_as") for spec in model.specs.values())
    return {*model.specs, *(name for name in stored if name)}


def is_nested(model: Model) -> bool:
    """Whether the text model is a part of the model, so that engines may move it, and its head, to another prefix."""
    return any(key.endswith("_config") and isinstance(value, dict) for key, value in model.config.items())


def _with_parents(names: Iterable[str]) -> set[str]:
    """The names and those of all modules that they lie in."""
    found: set[str] = set()
    for name in names:
        while name and name not in found:
            found.add(name)
            name = name.rpartition(".")[0]
    return found


def _dots(name: str) -> Iterator[int]:
    return (place for place, sign in enumerate(name) if sign == ".")


def _dense(tensors: Mapping[str, TensorInfo]) -> dict[str, None]:
    """Unquantized linears in the order of their tensors, modules with a matrix for every expert among them.

    Beside a router engines build such modules as one, `experts`.
    """
    linears = set(dense_linears(tensors))
    routed = {
        ".".join(parts[:place])
        for parts in (name.split(".") for name in tensors)
        for place, part in enumerate(parts)
        if part in ROUTERS
    }
    found: dict[str, None] = {}
    for name, info in tensors.items():
        module, leaf = module_of(name)
        block, _, last = module.rpartition(".")
        if leaf == "weight" and module in linears:
            found[module] = None
        elif len(info.shape) == 3 and info.dtype.is_float:
            if leaf == "weight" and block in routed:
                found |= {module: None, f"{block}.experts": None}
            elif leaf != "weight" and last == "experts":
                found[module] = None
    return found


def _subtree(path: str, linears: Sequence[str], names: _Names) -> Subtree:
    label = names.label(path)
    others = RENAMED.get(label, ()) if label else ()
    labels = (label, *(other for other in others if not names.hold(other)))
    return Subtree(path, labels, tuple(linears), any(part.isdigit() for part in path.split(".")))


class _Names:
    """Quantized modules, to be asked about parts of their names."""

    def __init__(self, names: Iterable[str]) -> None:
        """One text of all: a search in it is quicker than one in each."""
        self._text = "".join(f".{name}.\n" for name in names)

    def hold(self, label: str) -> bool:
        """Whether a module has these names among its own, next to each other."""
        return f".{label}." in self._text

    def end(self, label: str) -> bool:
        """Whether a module's last names are these."""
        return f".{label}.\n" in self._text

    def label(self, path: str) -> str:
        """The fewest last names of a path, from no number on, that no module has among its own."""
        parts = path.split(".")
        for first in range(len(parts) - 1, -1, -1):
            label = ".".join(parts[first:])
            if not parts[first].isdigit() and not self.hold(label):
                return label
        return path


def _under_any_prefix(labels: Sequence[str]) -> str:
    escaped = [re.escape(label) for label in labels]
    return r"(.*\.)?" + (escaped[0] if len(escaped) == 1 else f"({'|'.join(escaped)})")


def endings(names: Iterable[str], others: Collection[str]) -> dict[str, str]:
    """By name, a regex of it under any prefix that matches none of `others`; none where there is no such regex.

    Modules of all layers share one, unless some other has the same last names.
    """
    others_ = _Names(others)
    found = {}
    for name in names:
        parts = name.split(".")
        layer = next((place - 1 for place, part in enumerate(parts) if part.isdigit() and place), len(parts) - 1)
        starts = [max(len(parts) - 2, 0), layer] if layer < len(parts) - 1 else [len(parts) - 1, len(parts) - 2]
        for first in starts:
            label = ".".join(parts[max(first, 0) :])
            if not label[0].isdigit() and not others_.end(label):
                found[name] = f"{_under_any_prefix([label])}$"
                break
    return found


def of_layer(block: str, others: Collection[str]) -> str | None:
    """A regex of what a block of a layer lies in, under any prefix; None where `others` have such a block as well."""
    parts = block.split(".")
    layer = next((place - 1 for place, part in enumerate(parts) if part.isdigit() and place), 0)
    label = ".".join(parts[layer:])
    return None if _Names(others).hold(label) else _under_any_prefix([label])[: -len(parts[-1])]


def with_fused(names: Iterable[str], usual: bool = True) -> list[str]:
    """The names, and after the parts of a linear that engines build as one, that linear's."""
    known = dict.fromkeys(names)
    found: dict[str, None] = {}
    for name in known:
        found[name] = None
        block, dot, leaf = name.rpartition(".")
        for fused in _FUSED_AFTER.get(leaf, ()):
            apart = (fused == "kv_proj" and not block.endswith("encoder_attn")) or not (usual or fused not in USUAL)
            if not apart and all(f"{block}{dot}{part}" in known for part in FUSED[fused]):
                found[f"{block}{dot}{fused}"] = None
    return list(found)


def whole_experts(names: Iterable[str], others: Iterable[str]) -> dict[str, list[str]]:
    """By block of routed experts that has no linear among `others`, the linears of its experts."""
    split = {_block(name) for name in others if is_routed(name)}
    found: dict[str, list[str]] = {}
    for name in names:
        if is_routed(name) and _block(name) not in split:
            found.setdefault(_block(name), []).append(name)
    return found


def _block(name: str) -> str:
    return f"{name.partition('.experts.')[0]}.experts"
