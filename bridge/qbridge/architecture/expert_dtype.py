"""expert_dtype of config.json: which number format the routed experts of a float8 checkpoint have.

Source: vllm 0.33.0, models/deepseek_v4/quant_config.py (DeepseekV4FP8Config): "fp4" where the key is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_routed
from qbridge.ir.layer import Spec

_KEY, _FLOAT4, _FLOAT8 = "expert_dtype", "fp4", "fp8"


def with_expert_dtype(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The config that says float8 where it said float4 and every routed expert is float8 now."""
    if not Architecture.of(config).row.float4_experts or config.get(_KEY, _FLOAT4) != _FLOAT4:
        return dict(config)
    types = {spec.weight.type for name, spec in specs.items() if is_routed(name)}
    return {**config, _KEY: _FLOAT8} if types == {"e4m3fn"} else dict(config)
