"""config.json across transformers 4 and 5: the spellings of what the mathematics depends on.

transformers 5 keeps rope_theta and rope_scaling inside rope_parameters and calls torch_dtype dtype; transformers 4
reads its default there (rope_theta 10000) and says nothing. So what is written is spelled for every transformers
that may read it. An engine on transformers 4 gets no rope_parameters: LMDeploy 0.18.0 takes their presence as a
rope scaling and dies on a rope that has none (pytorch/nn/rotary_embedding.py, _get_fope_parameters).
Sources: transformers 4.57.6 and 5.23.0, configuration_utils.py and modeling_rope_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbridge.dtypes import DType

QUANTIZATION_KEYS = ("quantization_config", "compression_config", "sparseml_quantization_config")
NESTED = ("text_config", "llm_config")

# Two names of one value; whichever is there is written under both.
_SYNONYMS = (("torch_dtype", "dtype"), ("num_experts", "num_local_experts"))
COMPUTE_DTYPE = "torch_dtype"  # the name that `meaning` keeps
_DTYPES = {"float16": DType.F16, "bfloat16": DType.BF16, "float32": DType.F32, "float": DType.F32, "half": DType.F16}
# Keys that say nothing about what the model computes.
_INCIDENTAL = frozenset({"transformers_version", "_name_or_path", "use_cache", *QUANTIZATION_KEYS})


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without any quantization block, nested ones included."""
    return {
        key: {k: v for k, v in value.items() if k not in QUANTIZATION_KEYS} if _is_nested(key, value) else value
        for key, value in config.items()
        if key not in QUANTIZATION_KEYS
    }


def _is_nested(key: str, value: Any) -> bool:
    """Whether a key holds the text model's own config, as multimodal models have it, one level deep."""
    return key in NESTED and isinstance(value, dict)


def as_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config with another dtype to compute in, nested ones included; unchanged if that is an empty string."""
    if not dtype:
        return dict(config)
    named = {"torch_dtype": dtype, "dtype": dtype}
    return {**{k: {**v, **named} if _is_nested(k, v) else v for k, v in config.items()}, **named}


def compute_dtype(config: Mapping[str, Any], default: DType) -> DType:
    """The dtype that config.json says a model computes in, or else `default`."""
    nested = config.get("text_config")
    for holder in (config, nested if isinstance(nested, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if isinstance(holder.get(key), str):
                return _DTYPES.get(str(holder[key]).removeprefix("torch."), default)
    return default


def spell(config: Mapping[str, Any], transformers: tuple[int, ...] = (4, 5)) -> dict[str, Any]:
    """The config with rope, dtype and experts spelled for these major versions of transformers."""
    spelled = _spell(config, transformers)
    for key in NESTED:
        if _is_nested(key, spelled.get(key)):
            spelled[key] = _spell(spelled[key], transformers)
    return spelled


def _spell(config: Mapping[str, Any], transformers: tuple[int, ...]) -> dict[str, Any]:
    spelled = dict(config)
    for names in _SYNONYMS:
        values = [spelled[name] for name in names if spelled.get(name) is not None]
        if values:
            spelled.update(dict.fromkeys(names, values[0]))
    theta, scaling, nested = rope(config)
    if not nested:
        parameters = _parameters(theta, scaling)
        if theta is not None:
            spelled["rope_theta"] = theta
        if parameters:
            spelled["rope_scaling"] = scaling
            spelled["rope_parameters"] = parameters
        if 5 not in transformers:
            spelled.pop("rope_parameters", None)
        if scaling and "partial_rotary_factor" in scaling:
            spelled.setdefault("partial_rotary_factor", scaling["partial_rotary_factor"])
    return spelled


def rope(config: Mapping[str, Any]) -> tuple[float | None, dict[str, Any] | None, bool]:
    """(theta, scaling or None, whether rope_parameters are given per kind of layer).

    Scaling has its kind under rope_type; a default rope has none.
    """
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict) and any(isinstance(value, dict) for value in parameters.values()):
        return None, None, True
    both: dict[str, Any] = {}
    for part in (config.get("rope_scaling"), parameters):
        if isinstance(part, dict):
            both.update(part)
    both.setdefault("rope_type", both.pop("type", "default"))
    both.pop("type", None)
    theta = both.pop("rope_theta", config.get("rope_theta"))
    default = both["rope_type"] == "default" and len(both) == 1
    return theta, None if default else both, False


def _parameters(theta: float | None, scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    if theta is None and scaling is None:
        return {}
    return {**({} if theta is None else {"rope_theta": theta}), **(scaling or {"rope_type": "default"})}


def meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says about the model, in one spelling, so that two configs can be compared."""
    found = _meaning(config)
    for key in NESTED:
        if _is_nested(key, found.get(key)):
            found[key] = _meaning(found[key])
    return found


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in config.items() if key not in _INCIDENTAL}
    for first, second in _SYNONYMS:
        value = found.pop(second, None)
        if found.get(first) is None and value is not None:
            found[first] = value
    theta, scaling, nested = rope(config)
    if not nested:
        for key in ("rope_parameters", "rope_theta", "rope_scaling"):
            found.pop(key, None)
        found["rope"] = {"theta": theta, "scaling": scaling}
    return found
