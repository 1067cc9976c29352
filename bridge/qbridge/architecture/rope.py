"""Rotary position embeddings in config.json: what transformers 5 writes, said in the words that transformers 4 reads.

transformers 5 keeps all of it in rope_parameters, in some classes one for each kind of layer; it reads the older
words rope_theta, rope_scaling and partial_rotary_factor as well. transformers 4 reads those alone, and rotates by its
default where they are missing.
Sources: transformers 4.57.6 and 5.24.0, modeling_rope_utils.py and models/*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EVERY = ""  # the kind of layer of a rope that is the same in all of them
FULL, SLIDING = "full_attention", "sliding_attention"
_INSIDE = ("rope_theta", "partial_rotary_factor")  # in rope_parameters, and in transformers 4 beside rope_scaling
_ORIGINAL = "original_max_position_embeddings"
# Types that rotate as the default does: how positions are counted is another matter.
_AS_DEFAULT = frozenset({"default", "mrope", "axial"})
_DEFAULT = {"rope_theta": None, "rope_type": "default"}
_TOWERS_THETA = 10000  # what the vision towers of transformers 4 rotate by, where they read a theta at all
_STRETCHED = frozenset({"llama3", "yarn", "longrope"})  # those for which a class may name _ORIGINAL outside


@dataclass(frozen=True, slots=True)
class _Layered:
    """Where transformers 4 has the thetas of full and sliding attention, and whether full attention may be scaled."""

    full: str
    sliding: str
    scaled: bool = True


# Classes of transformers 4.57.6 that have two ropes, by model_type; sliding attention is never scaled.
_LAYERED = {
    "gemma3_text": _Layered("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": _Layered("rope_theta", "rope_local_base_freq"),
    "olmo3": _Layered("rope_theta", "rope_theta"),
    "modernbert": _Layered("global_rope_theta", "local_rope_theta", scaled=False),
    "modernbert-decoder": _Layered("global_rope_theta", "local_rope_theta", scaled=False),
}
_OTHER_NAMES = {
    model_type: {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    for model_type in ("gpt_neox", "gpt_neox_japanese")
}
# Classes that refuse any other field of rope_scaling than these three (4.57.6, models/phi3/configuration_phi3.py).
_THREE_FIELDS = dict.fromkeys(("phi3", "phi4_multimodal"), ("type", "short_factor", "long_factor"))


def parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rope_parameters of a config; empty if there are none."""
    given = config.get("rope_parameters")
    return given if isinstance(given, dict) else {}


def is_layered(config: Mapping[str, Any]) -> bool:
    """Whether rope_parameters has an entry for each kind of layer."""
    return any(isinstance(value, dict) for value in parameters(config).values())


def misplaced(config: Mapping[str, Any]) -> bool:
    """Whether one flat rope_parameters stands where the class wants one for each kind of layer.

    transformers 5.24.0 stops there (KeyError, models/gemma3/configuration_gemma3.py), unless it is not there at all.
    """
    row = _LAYERED.get(str(config.get("model_type")))
    return row is not None and bool(parameters(config)) and not is_layered(config) and row.full in config


def by_kind(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rope of each kind of layer in one spelling, that of all layers under `EVERY`; empty if nothing is said.

    Each has at least rope_type and rope_theta (None if the class's default is meant).
    """
    names = _OTHER_NAMES.get(str(config.get("model_type")), {})
    outside = {word: config.get(word, config.get(names.get(word, word))) for word in _INSIDE}
    scaling = config.get("rope_scaling")
    old = dict(scaling) if isinstance(scaling, dict) else {}
    if is_layered(config):
        given = {kind: part for kind, part in parameters(config).items() if isinstance(part, dict)}
        return {kind: _normal(part, outside, config) for kind, part in given.items()}
    row = _LAYERED.get(str(config.get("model_type")))
    if row and (misplaced(config) or not parameters(config)):
        thetas = {FULL: config.get(row.full), SLIDING: config.get(row.sliding)}
        if not old and all(theta is None for theta in thetas.values()):
            return {}
        parts = {FULL: old, SLIDING: {}}
        return {kind: _normal(part, {**outside, "rope_theta": thetas[kind]}, config) for kind, part in parts.items()}
    one = _normal({**old, **parameters(config)}, outside, config)
    return {} if one == _DEFAULT else {EVERY: one}


def _normal(part: Mapping[str, Any], outside: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """One rope, its words from outside brought in, its type under rope_type alone."""
    entry = {word: value for word, value in outside.items() if value is not None or word == "rope_theta"}
    entry |= {word: value for word, value in part.items() if word != "type"}
    kind = str(part.get("rope_type") or part.get("type") or "default")
    entry["rope_type"] = "default" if kind in _AS_DEFAULT else kind
    alone = str(config.get("model_type")) in _THREE_FIELDS
    if alone and entry.get("partial_rotary_factor") == 1:
        del entry["partial_rotary_factor"]
    if (alone or entry["rope_type"] in _STRETCHED) and config.get(_ORIGINAL) is not None:
        entry[_ORIGINAL] = config[_ORIGINAL]
    return entry


def words(config: Mapping[str, Any]) -> set[str]:
    """The keys of a config that say its rope, all of them in `by_kind`."""
    model_type = str(config.get("model_type"))
    row, names = _LAYERED.get(model_type), _OTHER_NAMES.get(model_type, {}).values()
    if is_layered(config) and not row:
        return {"rope_parameters", "rope_scaling"}  # what else is there is not what transformers 5 rotates by
    more = (*((row.full, row.sliding) if row else ()), *((_ORIGINAL,) if model_type in _THREE_FIELDS else ()))
    return {"rope_parameters", "rope_scaling", *_INSIDE, *names, *more}


def old_words(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What transformers 4 has to be told of rope_parameters, by key; None if it has no words for that.

    A rope without scaling has None for rope_scaling.
    """
    model_type, given = str(config.get("model_type")), parameters(config)
    if is_layered(config):
        return _two_ropes(_LAYERED.get(model_type), given)
    axial = given.get("rope_type") == "axial" and given.get("rope_theta") == _TOWERS_THETA
    if not given or axial or model_type in _LAYERED:
        return {}
    names = _OTHER_NAMES.get(model_type, {})
    told = {names.get(word, word): given[word] for word in _INSIDE if given.get(word) is not None}
    scaling, three = _scaling(given), _THREE_FIELDS.get(model_type)
    if three and told.get("partial_rotary_factor") == 1:
        del told["partial_rotary_factor"]  # transformers 5 writes it, and it is what both of them take for none
    if three and scaling:
        if _ORIGINAL in scaling:
            told[_ORIGINAL] = config.get(_ORIGINAL, scaling[_ORIGINAL])
        scaling = {**scaling, "type": scaling["rope_type"]}
        scaling = {field: scaling[field] for field in three if field in scaling}
    return {**told, "rope_scaling": scaling}


def _two_ropes(row: _Layered | None, given: Mapping[str, Any]) -> dict[str, Any] | None:
    full, sliding = (given.get(kind) for kind in (FULL, SLIDING))
    if row is None or len(given) != 2 or not isinstance(full, dict) or not isinstance(sliding, dict):
        return None
    scaling = _scaling(full)
    scaled = _scaling(sliding) or (scaling and not row.scaled)
    if scaled or "partial_rotary_factor" in full or "partial_rotary_factor" in sliding:
        return None
    thetas = full.get("rope_theta"), sliding.get("rope_theta")
    if row.full == row.sliding and thetas[0] != thetas[1]:
        return None
    told = zip((row.full, row.sliding), thetas, strict=True)
    return {**{word: theta for word, theta in told if theta is not None}, "rope_scaling": scaling}


def _scaling(part: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rope_scaling of transformers 4: all but what lies beside it there; None for a plain rope."""
    rest = {word: value for word, value in part.items() if word not in _INSIDE}
    kind = rest.setdefault("rope_type", rest.get("type", "default"))
    if rest.keys() <= {"rope_type", "type"} and str(kind) in _AS_DEFAULT:
        return None
    return plain_mrope(rest)


def plain_mrope(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """A rope_scaling whose rope_type is not mrope, a type which transformers 4 knows under `type` alone.

    4.57.6 has KeyError 'mrope' (ROPE_INIT_FUNCTIONS in modeling_rope_utils.py).
    """
    if scaling.get("rope_type") != "mrope":
        return dict(scaling)
    return {"type": "mrope", **scaling, "rope_type": "default"}
