"""Beginnings of module names: which ones tools and engines have for the same modules, and how one becomes another.

transformers 5 keeps the text model of a multimodal model under `model.language_model` and its towers under `model`,
older releases the text model under `language_model.model` or `model` and the towers at the top. A text model alone
lies under `model`. An engine that knows one of them may not know the others.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.findings.arguments import typed

Prefix = tuple[str, str]  # (what a name begins with, what it shall begin with), whole modules without the last dot

# Sources: transformers 5.24.0, conversion_mapping.py (source_patterns and target_patterns); vllm 0.33.0,
# model_executor/models/*.py (hf_to_vllm_mapper, orig_to_new_prefix).
_TEXT_MODELS = ("model.language_model", "language_model.model", "model.text_model", "language_model", "model")
_TOWERS = (
    *("visual", "vision_tower", "vision_model", "multi_modal_projector", "vision_embed_tokens", "image_newline"),
    *("audio_tower", "embed_vision", "embed_audio", "mm_projector", "connector", "vision_encoder", "projector"),
)
# What readers take for the text model of a model type, the present name first, and what towers lie under.
# vllm 0.33.0, models/*.py (hf_to_vllm_mapper: the names that it renames, and its own); transformers 5.24.0,
# models/*/modeling_*.py.
_NESTED = ("model.language_model", "language_model.model")
_MODERN = (_NESTED, "model.")
_PLAIN = (("model.language_model", "model"), "model.")
_OMNI = (("thinker.model", "model"), "thinker.")
KNOWN: Mapping[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _PLAIN),
    **dict.fromkeys(("mistral3", "gemma3n", "gemma4"), ((*_NESTED, "model"), "model.")),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm4v_moe"), _MODERN),
    **dict.fromkeys(("gemma3", "llava", "llava_next", "llava_onevision", "paligemma", "cohere2_vision"), _MODERN),
    **dict.fromkeys(("internvl", "interns1", "aya_vision", "vipllava", "aria", "mllama"), _MODERN),
    **dict.fromkeys(("qwen2_5_omni", "qwen3_omni_moe", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker"), _OMNI),
    # the text model alone, whose class knows no towers
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "gemma3_text", "mistral", "qwen2", "qwen3"), _PLAIN),
}


# Classes of a text model alone that take it out of a multimodal model's checkpoint (vllm 0.33.0, hf_to_vllm_mapper of
# qwen3_5.py and gemma4.py; transformers 5.24.0, conversion_mapping.py, qwen3_5_text), or have names of their own.
_TAKES_OTHERS = frozenset(
    [
        *("DeepseekV4ForCausalLM", "Gemma3nForCausalLM", "Gemma4ForCausalLM", "Llama4ForCausalLM"),
        *("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"),
    ]
)


def text_models(architecture: Architecture) -> tuple[str, ...]:
    """The names that readers take for the text model of a class, the usual one first; empty where not known.

    A bare one ("") is that of a base model, whose name transformers adds.
    """
    name, kind = architecture.name, str(architecture.config.get("model_type"))
    if not architecture.known or name in _TAKES_OTHERS:
        return ()
    if name.endswith("ForCausalLM"):
        alone = architecture.text is architecture.config and architecture.row.layers == "model.layers"
        return ("model", "") if alone else ()
    if name.endswith("ForConditionalGeneration") and kind in KNOWN:
        return (*KNOWN[kind][0], "language_model")
    return ()


Prefixes = Mapping[str, str] | Iterable[Prefix]


def pairs_of(prefixes: Prefixes) -> tuple[Prefix, ...]:
    """The pairs without the dots at their ends."""
    typed("rename_prefix", prefixes, Mapping, Iterable)
    pairs = tuple(prefixes.items() if isinstance(prefixes, Mapping) else prefixes)
    for pair in pairs:
        typed("a pair of rename_prefix", pair, tuple, list)
        for name in pair:
            typed("a name in rename_prefix", name, str)
    return tuple((old.removesuffix("."), new.removesuffix(".")) for old, new in pairs)


def check_prefixes(pairs: Iterable[Prefix]) -> None:
    """ValueError for pairs that mean nothing: no change, one beginning twice, or names that no module can have."""
    pairs = list(pairs)
    for old, new in pairs:
        if old == new:
            raise ValueError(f"a prefix and its new name are the same: {old!r}")
        if any(not part for text in (old, new) if text for part in text.split(".")):
            raise ValueError(f"a prefix is the names of modules with dots between them: {old}={new}")
    if len({old for old, _ in pairs}) != len(pairs):
        raise ValueError("a prefix has two new names")


def renamed(name: str, pairs: Iterable[Prefix]) -> str:
    """The name with the longest of the prefixes that it begins with replaced, once; an empty one begins any name."""
    best: Prefix | None = None
    for old, new in pairs:
        if (not old or name == old or name.startswith(f"{old}.")) and (best is None or len(old) > len(best[0])):
            best = old, new
    if best is None:
        return name
    rest = name[len(best[0]) :].removeprefix(".")
    return ".".join(part for part in (best[1], rest) if part)


def inverse(pairs: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The pairs the other way round."""
    return tuple((new, old) for old, new in pairs)


_ENTRY = re.compile(r"((?:re:|[-+]:)?\^?)(.*)", re.DOTALL)
_ROOT = re.compile(r"(\w+)(\\?\.|\$?$)")


def renamed_entry(entry: str, pairs: Iterable[Prefix], roots: Collection[str] = ()) -> str:
    """An entry of a block's list, a plain name or a pattern that begins with one, with its prefix replaced.

    An empty prefix begins every name: an entry is one if its first part is one of `roots`, those of all modules.
    """
    mark, body = _ENTRY.fullmatch(entry).groups()  # type: ignore[union-attr]  # it matches any text
    for old, new in sorted(pairs, key=lambda pair: -len(pair[0])):
        if not old and (root := _ROOT.match(body)) and root[1] in roots:
            return f"{mark}{new}{root[2] if root[2].endswith('.') else '.'}{body}"
        for spell, dot in ((str, "."), (lambda text: text.replace(".", r"\."), r"\.")):
            if body == spell(old) or (old and body.startswith(spell(old) + dot)):
                rest = body[len(spell(old)) :]
                return mark + (spell(new) + rest if new else rest.removeprefix(dot))
    return entry


def renamed_names(value: Any, pairs: Collection[Prefix], names: Collection[str]) -> Any:
    """A JSON value in whose lists each entry that is one of `names`, those of modules, is renamed."""
    if isinstance(value, Mapping):
        return {key: renamed_names(entry, pairs, names) for key, entry in value.items()}
    if isinstance(value, list):
        return [
            renamed(entry, pairs) if isinstance(entry, str) and entry in names else renamed_names(entry, pairs, names)
            for entry in value
        ]
    return value


def renamed_lists(value: Any, pairs: Collection[Prefix], roots: Collection[str]) -> Any:
    """A JSON value whose lists, and keys of objects, have entries renamed; `roots` are those of `renamed_entry`."""
    if isinstance(value, Mapping):
        return {renamed_entry(key, pairs, roots): renamed_lists(entry, pairs, roots) for key, entry in value.items()}
    if isinstance(value, list):
        return [
            renamed_entry(entry, pairs, roots) if isinstance(entry, str) else renamed_lists(entry, pairs, roots)
            for entry in value
        ]
    return value


def modules_of(names: Iterable[str]) -> set[str]:
    """Every module that tensors lie in, those that modules lie in included."""
    found: set[str] = set()
    for name in names:
        parent = name.rpartition(".")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition(".")[0]
    return found


def known_pairs(config: Mapping[str, Any], names: Collection[str]) -> list[Prefix]:
    """Pairs that readers of the model's type know, whose first name begins tensors of the checkpoint's `names`."""
    modules = modules_of(names)
    texts, towers = KNOWN.get(str(config.get("model_type")), (_TEXT_MODELS, "model."))
    here = next((text for text in _TEXT_MODELS if text in modules and _is_text(text, modules)), None)
    found = [(here, other) for other in texts if other != here] if here else []
    for tower in (*_TOWERS, *(name for name in ("lm_head",) if "language_model.model" in texts)):
        former, present = (f"language_model.{tower}", tower) if tower == "lm_head" else (tower, f"{towers}{tower}")
        if former in modules:
            found.append((former, present))
        elif present in modules:
            found.append((present, former))
    return found


def _is_text(module: str, modules: Collection[str]) -> bool:
    """Whether layers lie right below a module."""
    return any(f"{module}.{layers}" in modules for layers in ("layers", "decoder.layers", "h", "blocks"))
