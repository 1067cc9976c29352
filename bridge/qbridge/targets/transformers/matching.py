"""Which linears transformers builds quantized: its lists, matched with the names that modules have in memory.

Sources: transformers 5.24.0, conversion_mapping.py (names on disk and in memory), quantizers/auto.py (where the block
lies), quantizers/quantizers_utils.py (should_convert_module) and quantizer_finegrained_fp8.py; compressed-tensors
0.20.0, utils/match.py (is_match).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_head, is_routed, linear_router, tied_head
from qbridge.architecture.quantization_block import Block
from qbridge.formats.patterns import matches
from qbridge.formats.rules import Problem
from qbridge.ir.model import Model
from qbridge.targets.block_keys import without_block_size
from qbridge.targets.derivation import (
    STACKS,
    Answer,
    Built,
    Derivation,
    deviations,
    is_beyond,
    seen,
    stored_linears,
    strings,
    unseen,
)
from qbridge.targets.remote_code import UNKNOWN_TYPES

ENGINE = "transformers 5.24.0"
_PLACES = ("quantization_config", "text_config.quantization_config")
_Renames = tuple[tuple[str, str], ...]
_LLAVA: _Renames = (
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model(?:\.model)?", "model.language_model"),
    (r"^(vision_tower|vision_model|multi_modal_projector|audio_tower)", r"model.\1"),
)
_QWEN2_VL: _Renames = (
    (r"^visual", "model.visual"),
    (r"^model(?!\.(?:language_model|visual))", "model.language_model"),
)
_THINKER: _Renames = (
    (r"^(audio_tower|visual)", r"model.\1"),
    (r"^model(?!\.(?:language_model|visual|audio_tower))", "model.language_model"),
)
_DEEPSEEK_V4: _Renames = (
    *((r"^head\b", "lm_head"), (r"^layers\.", "model.layers."), (r"\.attn\.", ".self_attn."), (r"\.ffn\.", ".mlp.")),
    *((r"\.indexer\.compressor\.", ".compressor.indexer."), (r"\.indexer\.wq_b\b", ".compressor.indexer.q_b_proj")),
    *(
        (rf"\.w{old}\b", f".{new}_proj")
        for old, new in (("q_a", "q_a"), ("q_b", "q_b"), ("kv", "kv"), ("gate", "gate"))
    ),
    *((r"\.wo_([ab])\b", r".o_\1_proj"), (r"\.shared_experts\.w1\b", ".shared_experts.gate_proj")),
    *((rf"\.shared_experts\.w{old}\b", f".shared_experts.{new}_proj") for old, new in ((2, "down"), (3, "up"))),
)
# Of classes whose linears are called otherwise on disk than in memory; experts and routers left out.
_RENAMES: Mapping[str, _Renames] = {
    **dict.fromkeys(
        [
            *("Gemma3ForConditionalGeneration", "InternVLForConditionalGeneration", "LlavaForConditionalGeneration"),
            *("LlavaNextForConditionalGeneration", "Mistral3ForConditionalGeneration"),
            *("AyaVisionForConditionalGeneration", "LlavaNextVideoForConditionalGeneration"),
            *("LlavaOnevisionForConditionalGeneration", "PaliGemmaForConditionalGeneration"),
            *(
                "Kimi_K25ForConditionalGeneration",
                "KimiK25ForConditionalGeneration",
                "MllamaForConditionalGeneration",
            ),
            *("Qwen2AudioForConditionalGeneration", "VoxtralForConditionalGeneration"),
        ],
        _LLAVA,
    ),
    "DeepseekV4ForCausalLM": _DEEPSEEK_V4,
    "GPTNeoXForCausalLM": ((r"^embed_out", "lm_head"),),
    **dict.fromkeys(["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"], _QWEN2_VL),
    **dict.fromkeys(
        ["Qwen2_5OmniThinkerForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration"], _THINKER
    ),
    **dict.fromkeys(
        [
            *("Cohere2VisionForConditionalGeneration", "Exaone4_5_ForConditionalGeneration"),
            *("Gemma4ForConditionalGeneration", "Glm46VForConditionalGeneration", "Glm4vMoeForConditionalGeneration"),
            *("GlmOcrForConditionalGeneration", "Idefics3ForConditionalGeneration", "Lfm2VlForConditionalGeneration"),
            *(
                "LightOnOcrForConditionalGeneration",
                "Llama4ForConditionalGeneration",
                "SmolVLMForConditionalGeneration",
            ),
            *("Glm4vForConditionalGeneration", "Qwen3VLForConditionalGeneration", "Qwen3_5ForConditionalGeneration"),
            *("Qwen3VLMoeForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration"),
        ],
        (),
    ),
}
_LEFT_ASIDE = (*STACKS, "router.layer")
_BLOCKS = (128, 128)
_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


def derive(config: Mapping[str, Any], model: Model) -> Iterator[tuple[str, Problem]]:
    """Where transformers would build something else of a config.json than what the tensors are."""
    kind, code = str(config.get("model_type")), config.get("auto_map")
    if kind in UNKNOWN_TYPES:
        fact = f"{ENGINE} does not know model_type {kind!r}"
        fate = "the repository's code runs, which is not read here" if code else "there is no auto_map: it stops"
        yield "QB289", Problem((fact, fate), ("serve it with vLLM or LMDeploy",), ("config.json",), mild=bool(code))
    yield from unseen(config, _PLACES, ENGINE)
    block = seen(config, _PLACES)
    method = None if block is None else _METHODS.get(block.method.replace("_", "-"))
    if block is None or method is None or not (model.slots or model.specs):
        return
    yield from _without_size(block, model)
    renames = _RENAMES.get(model.architecture, ())
    built = list(_built(model, renames))
    how, answer = method(block, built, lambda name: _renamed(name, renames))
    known = model.architecture in _RENAMES
    architecture = Architecture.of_model(model)

    def asked(unit: Built) -> Answer:
        head = unit.kind == "head"
        decoder = head or all(map(architecture.is_decoder, (*unit.quantized, *unit.plain)))
        said = answer(unit)
        return said if known or (decoder and architecture.known) or said is False else None

    yield from deviations(built, asked, ENGINE, how)


def _without_size(block: Block, model: Model) -> Iterator[tuple[str, Problem]]:
    """Without weight_block_size it takes scales for those of blocks (utils/quantization_config.py)."""
    if block.method != "fp8":
        return
    if "weight_block_size" in block.raw:
        yield from without_block_size(block, model, ENGINE)
        return
    if any(spec.weight.type == "e4m3fn" and spec.weight.block != _BLOCKS for spec in model.specs.values()):
        fact = f"there is none: {ENGINE} takes the scales for those of blocks of {list(_BLOCKS)}"
        yield "QB284", Problem((fact,), where=(f"{block.key}.weight_block_size",))


def _renamed(name: str, renames: _Renames) -> str:
    """The name in memory; towers of CLIP and SigLIP have no `vision_model` there."""
    for pattern, new in renames:
        name = re.sub(pattern, new, name)
    return name.replace("vision_tower.vision_model.", "vision_tower.", 1)


def _built(model: Model, renames: _Renames) -> Iterator[Built]:
    """Every linear by its name in memory; routers and experts are no Linear there, drafts are left aside."""
    architecture, head = Architecture.of_model(model), False
    quantized, plain = stored_linears(model)
    for side, names in enumerate((quantized, plain)):
        for stored in names:
            parts = ((stored,), ()) if side == 0 else ((), (stored,))
            if stored.endswith(".indexer.weights_proj"):  # it is kept in float32 (_keep_in_fp32_modules)
                continue
            if router := linear_router(stored, model.config):
                yield Built(router, "linear", *parts)
                continue
            if is_routed(stored) or architecture.is_router(stored) or _left_aside(stored, architecture):
                continue
            kind: Any = "head" if is_head(stored) or stored == architecture.row.head else "linear"
            head = head or kind == "head"
            yield Built(_renamed(stored, renames), kind, *parts)
    if not head and architecture.known and architecture.tied:
        name = tied_head(model.config)[-1]
        yield Built(name, "head", plain=(name,))


def _left_aside(stored: str, architecture: Architecture) -> bool:
    parts = stored.split(".")
    if "mtp" in parts or stored.endswith(_LEFT_ASIDE) or "experts" in parts:
        return True
    number = next((parts[i + 1] for i, part in enumerate(parts[:-1]) if part == "layers"), "")
    tower = any("vision" in part or "visual" in part or "audio" in part for part in parts)
    return not tower and bool(architecture.layers) and is_beyond(number, architecture.layers)


Method = Callable[[Block, list[Built], Callable[[str], str]], tuple[str, Callable[[Built], Answer]]]


def _fp8(block: Block, built: list[Built], rename: Callable[[str], str]) -> tuple[str, Callable[[Built], Answer]]:
    given = block.raw.get("modules_to_not_convert")
    given = block.raw.get("ignored_layers") if given is None else given
    keys = [rename(f"{key}.").removesuffix(".") for key in strings(given)]
    patterns = {key: f"(?:{key}){_BOUNDARY}" for key in keys}
    found = matches(patterns.values(), [unit.name for unit in built])

    def answer(unit: Built) -> Answer:
        if not isinstance(given, list) and unit.kind == "head":
            return False
        return not any(unit.name in found.of(pattern) or unit.name.endswith(key) for key, pattern in patterns.items())

    return "it matches modules_to_not_convert as beginnings and ends of names in memory", answer


def _compressed_tensors(
    block: Block, built: list[Built], rename: Callable[[str], str]
) -> tuple[str, Callable[[Built], Answer]]:
    groups = block.raw.get("config_groups")
    lists = [group.get("targets") for group in groups.values()] if isinstance(groups, dict) else []
    targets = [target for names in lists for target in strings(names)]
    ignore = strings(block.raw.get("ignore"))
    expressions = [entry[3:] for entry in (*targets, *ignore) if entry.startswith("re:")]
    found = matches(expressions, [unit.name for unit in built])

    def hits(entries: Iterable[str]) -> Callable[[str], bool]:
        every = frozenset(entries)
        patterns = [entry[3:] for entry in every if entry.startswith("re:")]
        if "Linear" in every:
            return lambda name: True
        return lambda name: name in every or any(name in found.of(pattern) for pattern in patterns)

    wanted, left = hits(targets), hits(ignore)

    def answer(unit: Built) -> Answer:
        return wanted(unit.name) and not left(unit.name)

    return "it matches ignore and targets by the names of modules in memory, and classes", answer


_METHODS: Mapping[str, Method] = {"fp8": _fp8, "compressed-tensors": _compressed_tensors}
DERIVATION = Derivation(derive, ("QB280", "QB281", "QB283", "QB284", "QB285", "QB289"))
