"""How mlx_lm calls the modules of a model, for the model types that are known here.

mlx_lm renames what it loads by `Model.sanitize` of its class, and it stacks the unquantized experts of a layer;
scales it mostly does not know there, so that quantized experts have to be stacked already. The table has what becomes
of the names of transformers; `tests/engines/test_mlx.py` loads models under them and compares what they compute.
Source: mlx-lm 0.32.2, utils.py (MODEL_REMAPPING, load_model) and models/*.py (Model.sanitize).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

_GATED = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
_NUMBERED = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_EXPERT = re.compile(r"(?P<block>.+)\.experts\.(?P<expert>0|[1-9]\d{0,5})\.(?P<leaf>\w+)")
_STACK = re.compile(r"(?P<block>.+)\.(?P<stack>\w+)\.(?P<leaf>\w+)")


@dataclass(frozen=True, slots=True)
class MlxPlace:
    """Where a module lies: `name` without its ending; `expert` of a stack, or -1."""

    name: str
    expert: int = -1


@dataclass(frozen=True, slots=True)
class Family:
    """What mlx_lm calls otherwise than transformers in a model type.

    `stack` is the module of a layer's stacked experts, none where there is no stack; `experts` the leaves of an
    expert and those of the stack. `prefixes` are first parts of names, and what they become, the first that fits.
    `leaves` are last names of other modules. `taken_apart` are linears that it takes apart when it loads them
    unquantized.
    """

    stack: str = ""
    experts: Mapping[str, str] = field(default_factory=lambda: _GATED)
    prefixes: tuple[tuple[str, str], ...] = ()
    leaves: Mapping[str, str] = field(default_factory=dict)
    taken_apart: frozenset[str] = frozenset()


_SAME = Family()
_STACKED = Family("switch_mlp")
_LATENT = Family("switch_mlp", taken_apart=frozenset({"kv_b_proj"}))
_AS_PARTS = (("model.language_model", "language_model.model"), ("lm_head", "language_model.lm_head"))
_VISION = (*_AS_PARTS, ("model.visual", "visual"), ("model", "language_model.model"))
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        (
            *(
                "cohere",
                "cohere2",
                "ernie4_5",
                "gemma",
                "gemma2",
                "gemma3_text",
                "glm",
                "glm4",
                "granite",
            ),
            *("helium", "internlm2", "lfm2", "llama", "ministral3", "mistral", "nemotron_h", "olmo2", "olmo3", "phi"),
            *("phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm", "starcoder2"),
        ),
        _SAME,
    ),
    **dict.fromkeys(("ernie4_5_moe", "glm4_moe", "jamba", "olmoe", "qwen2_moe", "qwen3_moe"), _STACKED),
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "glm4_moe_lite", "kimi_k2", "kimi_k25"), _LATENT),
    **dict.fromkeys(("deepseek_v2",), _STACKED),
    **dict.fromkeys(("dots1", "gpt_oss", "llama4"), Family("experts")),
    **dict.fromkeys(("minimax_m2", "mixtral", "phimoe"), Family("switch_mlp", _NUMBERED)),
    "lfm2_moe": Family("switch_mlp", _NUMBERED, leaves=_NUMBERED),
    "gemma3": Family(
        prefixes=(
            *_AS_PARTS,
            ("model.vision_tower", "vision_tower"),
            ("model.multi_modal_projector", "multi_modal_projector"),
        )
    ),
    **dict.fromkeys(("llava", "mistral3"), Family(prefixes=_AS_PARTS)),
    **dict.fromkeys(("qwen2_5_vl", "qwen2_vl", "qwen3_vl"), Family(prefixes=_VISION)),
    "qwen3_5": Family(prefixes=_AS_PARTS),
    "qwen3_5_moe": Family("switch_mlp", prefixes=_AS_PARTS),
}


class MlxNames:
    """The names of a model in mlx_lm, by its config.json; KeyError for a model type that is not known."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Look its model type up."""
        self.model_type = str(config.get("model_type", ""))
        self.family = FAMILIES[self.model_type]

    def place(self, module: str) -> MlxPlace:
        """Where a module lies."""
        name = self._prefixed(module)
        match = _EXPERT.fullmatch(name)
        if match and self.family.stack and match["leaf"] in self.family.experts:
            leaf = self.family.experts[match["leaf"]]
            return MlxPlace(f"{match['block']}.{self.family.stack}.{leaf}", int(match["expert"]))
        block, dot, last = name.rpartition(".")
        return MlxPlace(f"{block}{dot}{self.family.leaves.get(last, last)}")

    def is_taken_apart(self, module: str) -> bool:
        """Whether mlx_lm takes a linear apart when it loads it."""
        return module.rpartition(".")[2] in self.family.taken_apart

    def module_of(self, name: str) -> tuple[str, bool]:
        """(module of transformers, whether it is a stack of experts) that a name in mlx_lm stands for."""
        own = self._unprefixed(name)
        match = _STACK.fullmatch(own)
        back = {new: old for old, new in self.family.experts.items()}
        if match and self.family.stack and match["stack"] == self.family.stack and match["leaf"] in back:
            return f"{match['block']}.experts.{back[match['leaf']]}", True
        block, dot, last = own.rpartition(".")
        names = {new: old for old, new in self.family.leaves.items()}
        return f"{block}{dot}{names.get(last, last)}", False

    def _prefixed(self, module: str) -> str:
        return _renamed(module, self.family.prefixes)

    def _unprefixed(self, name: str) -> str:
        return _renamed(name, [(new, old) for old, new in self.family.prefixes])


def _renamed(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    """A name with the first of the prefixes, whole parts of names, that it begins with as what that becomes."""
    for old, new in prefixes:
        if f"{name}.".startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def known_model_types() -> Collection[str]:
    """The model types whose names are known."""
    return FAMILIES.keys()
