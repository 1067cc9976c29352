"""config.json across transformers 4 and 5: what the mathematics depends on, in the words that a reader knows.

The config is part of the model, so that a key is changed only where the target's transformers would read another
meaning: transformers 5 reads what 4 writes, so nothing is done there; the other way round, 4 is told the rope
(`rope.py`), the number of experts and the dtype again in its own words.
Sources: transformers 4.57.6 and 5.24.0, configuration_utils.py and models/*/configuration_*.py.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qbridge.architecture import implied as by_class
from qbridge.architecture import rope as ropes
from qbridge.architecture.quantization_block import NESTED, QUANTIZATION_KEYS, is_nested, text_holders
from qbridge.ir.dtypes import DType

COMPUTE_DTYPE = "dtype"  # the name that `meaning` gives it
DRAFTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")  # how many layers there are for multi-token prediction
_DTYPE_KEYS = ("dtype", "torch_dtype")  # both transformers take the first that is there
_EXPERTS = ("num_experts", "num_local_experts")
# Classes that transformers 5 writes with num_local_experts, of which transformers 4 reads num_experts alone.
_NUM_EXPERTS = frozenset({"qwen3_moe", "qwen3_omni_moe_talker_text", "qwen3_omni_moe_text", "qwen3_vl_moe_text"})
_DTYPES = {"float16": DType.F16, "bfloat16": DType.BF16, "float32": DType.F32, "float": DType.F32, "half": DType.F16}
# Keys that say nothing about what the model computes.
_INCIDENTAL = frozenset({"transformers_version", "_name_or_path", "use_cache", *QUANTIZATION_KEYS})
# transformers 5.19.0, configuration_utils.py (remap_legacy_layer_types), of which 5.17.0 has the second alone.
_INDEXED, _OLD_INDEXED = "indexed_attention", "deepseek_sparse_attention"
# transformers 5.19.0, models/nemotron_h/configuration_nemotron_h.py; remap_legacy_layer_types
_BLOCK_TYPES = ("layers_block_type", "mtp_layers_block_type")
_OLD_BLOCKS = {"linear_attention": "mamba", "full_attention": "attention"}
_REMOVED = object()
_DEEPEST = 8  # configs that a config lies in; more than three are not known
_TOKENIZER = re.compile(r'("tokenizer_class"\s*:\s*")TokenizersBackend(?=")')


@dataclass(frozen=True, slots=True)
class Reader:
    """What parses config.json for a target: the major versions of transformers, and what the engine cannot bear.

    `old_dtype`: a transformers 4 before 4.56, which knows torch_dtype alone, may be among them. `plain_rope`: whether
    the engine bears rope_parameters beside a rope without scaling, or of two kinds of layers. `indexed`: whether it
    knows attention through an indexer as indexed_attention, as transformers 5.19 does and 5.17 does not. `hybrid`:
    whether it knows the layers of Nemotron-H by the names that transformers 5.17 gave them. `implied` are the model
    types of which it asks for keys that their classes in transformers 5 do not save, and `newer` those that no
    transformers 4 knows, so that a transformers 5 reads them whatever `versions` are. Those of `untied` have their
    heads tied where config.json does not say. `lifted` are keys of the text model's config, by the model's type,
    which it reads beside that config.
    """

    versions: tuple[int, ...] = (4, 5)
    old_dtype: bool = True
    plain_rope: bool = True
    indexed: bool = True
    hybrid: bool = True
    implied: frozenset[str] = frozenset()
    untied: frozenset[str] = frozenset()
    newer: frozenset[str] = frozenset()
    lifted: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def of(self, config: Mapping[str, Any]) -> Reader:
        """The reader of one config, nested ones aside: a transformers 5 where no other knows its model type."""
        if str(config.get("model_type")) not in self.newer:
            return self
        return replace(self, versions=(5,), plain_rope=True)


ANY_READER = Reader(indexed=False)


def _inner(config: Mapping[str, Any], depth: int) -> dict[str, dict[str, Any]]:
    """The configs of their own in a config that lies in `depth` others: the text model's, a tower's."""
    inner = {k: v for k, v in config.items() if isinstance(v, dict) and k.endswith("_config")}
    return {k: v for k, v in inner.items() if k not in QUANTIZATION_KEYS} if depth < _DEEPEST else {}


def with_draft_layers(config: Mapping[str, Any], original: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(the config with the number of layers for multi-token prediction that the original's has and it lacks, key).

    The key is its path, and empty where the config says the same already, or the original's says nothing.
    """
    here = dict(text_holders(config))
    for path, holder in text_holders(original):
        for key in DRAFTS:
            count = holder.get(key)
            if type(count) is int and count > 0 and path in here and not here[path].get(key):
                if not path:
                    return {**config, key: count}, key
                outer = path.removesuffix(".")
                return {**config, outer: {**config[outer], key: count}}, path + key
    return dict(config), ""


def as_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config with another dtype to compute in, the text model's included; unchanged if that is an empty string.

    It is written under the keys that are there; under torch_dtype, which every reader knows, where there is none.
    """
    if not dtype:
        return dict(config)
    changed = {k: _with_dtype(v, dtype) if is_nested(k, v) else v for k, v in config.items()}
    return {**_with_dtype(changed, dtype), **({} if _has_dtype(changed) else {"torch_dtype": dtype})}


def _has_dtype(config: Mapping[str, Any]) -> bool:
    return any(config.get(key) is not None for key in _DTYPE_KEYS)


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    return {k: dtype if k in _DTYPE_KEYS and v is not None else v for k, v in config.items()}


def compute_dtype(config: Mapping[str, Any], default: DType) -> DType:
    """The dtype that config.json says a model computes in, or else `default`."""
    for _, holder in text_holders(config):
        for key in _DTYPE_KEYS:
            if isinstance(holder.get(key), str):
                return _DTYPES.get(str(holder[key]).removeprefix("torch."), default)
    return default


def spell(config: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """The config, nested ones included, in words that a reader takes as the source's own transformers took it.

    A rope that transformers 4 has no words for (`unsaid_rope`) is left as it is.
    """
    return _spell(config, reader)


def _spell(config: Mapping[str, Any], reader: Reader, is_text: bool = True, depth: int = 0) -> dict[str, Any]:
    inner = {k: _spell(v, reader, k in NESTED, depth + 1) for k, v in _inner(config, depth).items()}
    spelled = {**config, **inner}
    for changes in _changes(config, reader, is_text).values():
        spelled.update(changes)
    return {key: value for key, value in spelled.items() if value is not _REMOVED}


def unread(config: Mapping[str, Any], reader: Reader) -> list[str]:
    """The words of a config that no version of a reader understands, or lacks, so that `spell` says others."""
    holders = list(_holders(config))
    by_version = [
        {word for _, held, is_text in holders for word in _changes(held, replace(reader, versions=(one,)), is_text)}
        for one in reader.versions
    ]
    return sorted(set.intersection(*by_version))


def unsaid_rope(config: Mapping[str, Any]) -> bool:
    """Whether rope_parameters say something, somewhere, that transformers 4 has no words for."""
    return any(ropes.old_words(held) is None for _, held, _ in _holders(config))


def unsaid_keys(config: Mapping[str, Any], reader: Reader) -> list[str]:
    """Keys that a reader asks for, by their paths, that are neither there nor implied by the class."""
    holders = [holder for holder in _holders(config) if str(holder[1].get("model_type")) in reader.implied]
    return [f"{at}{key}" for at, held, _ in holders for key, value in by_class.missing(held).items() if value is None]


def _holders(config: Mapping[str, Any], prefix: str = "", is_text: bool = True) -> Iterator[tuple[str, Any, bool]]:
    """(what its keys are called, config, whether it is the text model's) of a config and all in it, by themselves."""
    inner = _inner(config, prefix.count("."))
    yield prefix, {key: value for key, value in config.items() if key not in inner}, is_text
    for key, value in inner.items():
        yield from _holders(value, f"{prefix}{key}.", key in NESTED)


def _changes(config: Mapping[str, Any], reader: Reader, is_text: bool) -> dict[str, dict[str, Any]]:
    """By word that the reader does not understand, the keys to write; nested configs aside."""
    changes: dict[str, dict[str, Any]] = {}
    reader = reader.of(config)
    if rope := _rope_changes(config, reader, is_text):
        changes["rope_parameters" if "rope_parameters" in config else "rope_scaling"] = rope
    layers = config.get("layer_types")
    if not reader.indexed and isinstance(layers, list) and _INDEXED in layers:
        changes["layer_types"] = {"layer_types": _old_layers(layers)}
    for key in _BLOCK_TYPES if not reader.hybrid and config.get("model_type") == "nemotron_h" else ():
        if isinstance(kinds := config.get(key), list) and kinds != (old := _old_blocks(kinds)):
            changes[key] = {key: old}
    changes |= _unsaid(config, reader)
    if 4 not in reader.versions:
        return changes
    dtype = config.get("dtype")
    if reader.old_dtype and config.get("torch_dtype") is None and isinstance(dtype, str) and _is_dtype(dtype):
        changes["dtype"] = {"torch_dtype": dtype}
    many = config.get("num_local_experts")
    if str(config.get("model_type")) in _NUM_EXPERTS and many is not None and config.get("num_experts") is None:
        changes["num_local_experts"] = {"num_experts": many}
    return changes


def _old_layers(layers: list[Any]) -> list[Any]:
    """Kinds of layers by the names that every transformers 5 knows, which the newer ones take for their own."""
    return [_OLD_INDEXED if layer == _INDEXED else layer for layer in layers]


def _old_blocks(kinds: list[Any]) -> list[Any]:
    """Kinds of layers of Nemotron-H as transformers 5.16 has them, which the newer ones take for their own."""
    return [_OLD_BLOCKS.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]


def _is_dtype(name: str) -> bool:
    return name.removeprefix("torch.") in _DTYPES


def _rope_changes(config: Mapping[str, Any], reader: Reader, is_text: bool) -> dict[str, Any]:
    told = ropes.old_words(config)
    if 4 not in reader.versions or told is None:
        return {"rope_parameters": _REMOVED} if ropes.misplaced(config) else {}
    scaling = told.get("rope_scaling", config.get("rope_scaling"))
    if isinstance(scaling, dict):
        told = {**told, "rope_scaling": ropes.plain_mrope(scaling)}
    # No null is added: transformers 5 takes one for the whole rope of a class that reads rope_parameters by itself.
    changes = {key: value for key, value in told.items() if config.get(key) != value}
    plain = not isinstance(scaling, dict) or ropes.is_layered(config)
    new = 5 in reader.versions or not reader.plain_rope
    again = bool(told) or not ropes.parameters(config)  # nothing is removed that is not said in other words
    fails = (plain and again and is_text and not reader.plain_rope) or (new and ropes.misplaced(config))
    if fails and "rope_parameters" in config:
        changes["rope_parameters"] = _REMOVED
    return changes


def unread_tokenizer(tokenizer: Mapping[str, Any], reader: Reader) -> list[str]:
    """What tokenizer_config.json says that a reader does not take, and `spell_tokenizer` says otherwise.

    transformers 4.57.6: models/auto/tokenization_auto.py has another name for the class; a list of extra tokens is an
    AttributeError in tokenization_utils_base.py (_set_model_specific_special_tokens).
    """
    if 5 in reader.versions:
        return []
    facts = []
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        facts.append("tokenizer_class is TokenizersBackend")
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        facts.append("extra_special_tokens is a list")
    return facts


def _unsaid(config: Mapping[str, Any], reader: Reader) -> dict[str, dict[str, Any]]:
    """By key that a reader asks for or takes otherwise where it is absent, what the class of a config means."""
    kind, found = str(config.get("model_type")), dict[str, Any]()
    if kind in reader.implied:
        found |= {key: value for key, value in by_class.missing(config).items() if value is not None}
    if kind in reader.untied and "tie_word_embeddings" not in config:
        found["tie_word_embeddings"] = False
    texts = [config[key] for key in NESTED if isinstance(config.get(key), dict)]
    lifted = [key for key in reader.lifted.get(kind, ()) if key not in config]
    found |= {key: text[key] for text in texts for key in lifted if key in text}
    return {key: {key: value} for key, value in found.items()}


def spell_tokenizer(text: str) -> str:
    """The text of a tokenizer_config.json by transformers 5 in words of transformers 4, which 5 reads as well.

    Nothing else is changed, blanks included. ValueError for what is no JSON.
    """
    wanted, edited = json.loads(text), text
    if wanted.get("tokenizer_class") == "TokenizersBackend":
        wanted["tokenizer_class"] = "PreTrainedTokenizerFast"
        edited = _TOKENIZER.sub(r"\g<1>PreTrainedTokenizerFast", edited, count=1)
    if isinstance(wanted.get("extra_special_tokens"), list):
        more = wanted.pop("extra_special_tokens")
        tokens = wanted.get("additional_special_tokens") or []
        wanted["additional_special_tokens"] = [*tokens, *(token for token in more if token not in tokens)]
        edited = edited.replace('"extra_special_tokens"', '"additional_special_tokens"', 1)
    with contextlib.suppress(ValueError):
        if json.loads(edited) == wanted:
            return edited
    return json.dumps(wanted, indent=2) + "\n"  # another key of that name came first


def rope(config: Mapping[str, Any]) -> tuple[float | None, dict[str, Any] | None, bool]:
    """(theta, scaling or None, whether the rope differs by kind of layer) of a config, nested ones aside.

    Scaling has its kind under rope_type; a default rope has none.
    """
    kinds = ropes.by_kind(config)
    if kinds.keys() - {ropes.EVERY}:
        return None, None, True
    found = dict(kinds.get(ropes.EVERY, {"rope_type": "default"}))
    theta = found.pop("rope_theta", None)
    if config.get("partial_rotary_factor") is not None or found.get("partial_rotary_factor") == 1:
        found.pop("partial_rotary_factor", None)  # a part is rotated, which is no scaling
    return theta, None if found == {"rope_type": "default"} else found, False


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says about the model, nested ones included, in one spelling, so that two can be compared.

    By name, with those of the configs that it lies in before it: `text_config.hidden_size`. The dtype to compute in
    is `COMPUTE_DTYPE` in each.
    """
    return {f"{prefix}{key}": value for prefix, held, _ in _holders(config) for key, value in _meaning(held).items()}


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    without = _INCIDENTAL | ropes.words(config)
    said = by_class.implied(config)
    found = {k: v for k, v in config.items() if k not in without and (v is None or said.get(k) != v)}
    for first, second in (_DTYPE_KEYS, _EXPERTS):
        if found.get(first) in (None, found.get(second)) and found.get(second) is not None:
            found[first] = found.pop(second)
    if _has_dtype(found):
        found.pop("torch_dtype", None)  # transformers takes the other
        found[COMPUTE_DTYPE] = str(found[COMPUTE_DTYPE]).removeprefix("torch.")
    if isinstance(layers := found.get("layer_types"), list):
        found["layer_types"] = _old_layers(layers)
    for key in _BLOCK_TYPES:
        if isinstance(layers := found.get(key), list):
            found[key] = _old_blocks(layers)
    if kinds := ropes.by_kind(config):
        found["rope"] = kinds.get(ropes.EVERY, kinds)
    return found
