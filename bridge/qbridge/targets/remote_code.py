"""Models whose classes are code of their repositories: an engine is started with a flag that lets it run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Types of models that transformers does not know (5.17.0 and 5.24.0, models/auto/configuration_auto.py).
_UNKNOWN = """
    NVLM_D RefinedWeb RefinedWebModel aquila arctic baichuan bailing_moe bailing_moe_v2 chatglm cogvlm deepseek
    deepseek_vl_v2 h2ovl_chat hunyuan internlm internlm2 internlmxcomposer2 internvl_chat jais kimi_vl mimo minicpm
    minicpmo minicpmv molmo nemotron-nas orion phi3_v phi4mm plamo plamo2 qwen solar stablelm_epoch telechat xverse
"""
UNKNOWN_TYPES = frozenset(_UNKNOWN.split())


def needs_remote_code(config: Mapping[str, Any], own: Collection[str] = ()) -> bool:
    """Whether only code of the repository parses a config.json; `own` are types that the engine itself parses."""
    brought, kind = config.get("auto_map"), config.get("model_type")
    return isinstance(brought, Mapping) and "AutoConfig" in brought and kind in UNKNOWN_TYPES - set(own)
