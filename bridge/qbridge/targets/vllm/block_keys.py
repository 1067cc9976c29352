"""What vLLM must find in a quantization block.

Source: vllm 0.33.0, model_executor/layers/quantization: from_config of auto_gptq.py, auto_awq.py, fp8.py and
inc/inc.py; utils/gptq_utils.py (normalize_and_validate_gptq_desc_act).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from qbridge.architecture.quantization_block import Block
from qbridge.formats.rules import Problem
from qbridge.ir.model import Model
from qbridge.targets.block_keys import Key, other_layouts, unread, without_block_size

_STOPS = "stops: Cannot find any of {} in the model's quantization config"
_INC_PACKINGS = tuple(f"auto_round:{name}" for name in ("auto_gptq", "auto_awq", "fp8", "llm_compressor"))
_INC_BACKENDS = ("auto", "gptq", "gptq:marlin", "awq", "awq:marlin", "marlin")


def _needed(*names: str) -> Key:
    return Key(names, needed=True, otherwise=_STOPS.format(list(names)))


_SYM = Key(("sym",), (True,), needed=True, otherwise="stops: Unsupported quantization config")
_ANY_SYM = Key(("sym",), needed=True, otherwise=_SYM.otherwise)
_KEYS: Mapping[str, tuple[Key, ...]] = {
    "gptq": (_needed("bits"), _needed("group_size"), _needed("desc_act")),
    "awq": (_needed("bits", "w_bit"), _needed("group_size", "q_group_size"), _needed("zero_point")),
    "fp8": (
        replace(_needed("activation_scheme"), values=("dynamic", "static"), otherwise="stops at activation_scheme"),
    ),
    "auto-round": (
        _needed("bits"),
        _needed("group_size"),
        Key(("backend", "vllm_backend"), _INC_BACKENDS, otherwise="stops: Unsupported backend"),
        Key(("packing_format",), (*_INC_PACKINGS, None), otherwise="stops: Unsupported packing_format"),
    ),
}


def faults(block: Block, model: Model, engine: str) -> Iterator[tuple[str, Problem]]:
    """QB284 for keys that vLLM does not find, and values that it refuses or takes for something else."""
    where = f"{block.key}.quant_method"
    old = block.raw.get("quantization")
    if not block.method and not (isinstance(old, dict) and block.raw.get("producer")):
        yield "QB284", Problem((f"there is none: {engine} takes the model for an unquantized one",), where=(where,))
    if block.method == "intel/auto-round":
        yield "QB284", Problem((f"{block.method!r}: {engine} knows 'auto-round'",), where=(where,))
    yield from unread(block, _KEYS.get(block.method, ()), engine)
    yield from other_layouts(block, model, engine)
    if block.method == "fp8":
        yield from without_block_size(block, model, engine)
    if block.method == "gptq":  # what the tensors show is a limit of layers
        asymmetric = any(not spec.weight.symmetric for spec in model.specs.values())
        yield from unread(block, (_ANY_SYM if asymmetric else _SYM,), engine)
        if not any(spec.g_idx for spec in model.specs.values()):
            yield from _ordered(block, engine)


def _ordered(block: Block, engine: str) -> Iterator[tuple[str, Problem]]:
    """desc_act of groups is refused for what it says, also where no g_idx orders anything; since 0.30."""
    group, said = block.raw.get("group_size"), block.raw.get("desc_act")
    dynamic = block.raw.get("dynamic")
    rules = [(block.key, "", block.raw)]
    for pattern, own in dynamic.items() if isinstance(dynamic, dict) else ():
        if isinstance(own, dict) and not pattern.startswith("-:"):
            rules.append((f"{block.key}.dynamic", f"{pattern}: ", own))
    for key, pattern, own in rules:
        if own.get("desc_act", said) and own.get("group_size", group) != -1:
            fact = f"{pattern}True: {engine} stops: desc_act=True is no longer supported"
            yield "QB284", Problem((fact,), where=(f"{key}.desc_act" if not pattern else key,))
            return
