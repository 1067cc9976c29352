"""The command that starts the server, and which kernel would serve each kind of linear."""

from __future__ import annotations

from dataclasses import replace

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.parallel import Rank, fused_out
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.common import model_dtype_name
from qbridge.targets.remote_code import needs_remote_code
from qbridge.targets.serving import Served
from qbridge.targets.vllm import fusion
from qbridge.targets.vllm.kernels import Linear, choose

_METHODS = ("gptq", "awq", "compressed-tensors")
_HALF = "float16"
_WITHOUT_HUMMING = ("0.5.4",)  # the wheels of 0.23.0 and 0.33.0 require the package humming-kernels

# Types of models that it parses itself, of those that transformers does not know (transformers_utils/config.py).
_OWN_CONFIGS = ("RefinedWeb", "RefinedWebModel", "chatglm", "deepseek_vl_v2", "kimi_vl")


def serve(model: Model, path: str, tp: int) -> str:
    """vLLM's server; config.json says how the model is quantized, and in which dtype it computes."""
    ranks = f" --tensor-parallel-size {tp}" if tp > 1 else ""
    code = " --trust-remote-code" if needs_remote_code(model.config, _OWN_CONFIGS) else ""
    return f"vllm serve {path}{ranks}{code}"


def kernels(model: Model, version: str, tp: int, capability: int) -> list[Served]:
    """What serves each kind of weight-only linear; nothing in formats whose kernels are not in a table."""
    if model.format not in _METHODS:
        return []
    dtype = _dtype(model, capability, version)
    humming = version not in _WITHOUT_HUMMING
    found: dict[Linear, Served] = {}
    held: dict[Linear, list[str]] = {}
    own = [name for name in model.specs if ".experts." not in name]  # experts have other kernels, in no table
    fused = fusion.VLLM_054 if version == "0.5.4" else fusion.VLLM
    siblings = {name: names for names in fused.siblings(model, own) for name in names}
    for name in own:
        spec, names = model.specs[name], siblings.get(name, [name])
        if spec.activation is not None or spec.weight.type != "int" or name != names[0]:
            continue
        if spec.g_idx:
            continue  # so has act-order
        linear = _linear(spec, [model.specs[other] for other in names], model, tp, dtype)
        if linear is None:
            continue
        if linear not in found:
            verdict = choose(linear, capability, version, humming=humming)
            half = choose(replace(linear, dtype=_HALF), capability, version, humming=humming)
            halved = half.legal and not verdict.legal
            leaf = "+".join(other.rpartition(".")[2] for other in names)
            shape = linear.out_features, linear.in_features
            found[linear] = Served(
                leaf,
                *shape,
                spec.scheme,
                0,
                verdict.kernel,
                verdict.legal,
                verdict.note,
                verdict.reasons,
                instead=f"--dtype {_HALF}" if halved else "",
                dtype=_HALF if halved else "",
            )
        held.setdefault(linear, []).extend(names)
    return [replace(kind, layers=len(held[key]), names=tuple(held[key])) for key, kind in found.items()]


def _dtype(model: Model, capability: int, version: str) -> str:
    """What activations have with --dtype auto.

    A GPU without bfloat16 gets float16 (vllm 0.33.0, config/model.py, _resolve_auto_dtype), which 0.5.4 refuses.
    """
    named = model_dtype_name(model)
    return "float16" if capability < 80 and version != "0.5.4" else named


def _linear(spec: Spec, fused: list[Spec], model: Model, tp: int, dtype: str) -> Linear | None:
    held: dict[str, Rank] = {}
    for part in fused:
        share = Architecture.of_model(model).rank(part.name, part.dims, tp)
        if share is None or share.fault:
            return None
        held[part.name] = share
    return Linear(
        in_features=held[spec.name].in_features,
        in_features_whole=spec.in_features,
        out_features=fused_out(held),
        bits=spec.weight.bits,
        symmetric=spec.weight.symmetric and model.format != "awq",  # AWQ always stores zero-points
        group_size=spec.weight.group_size or -1,
        dtype=dtype,
        format=model.format,
        cut=tp > 1 and held[spec.name].axis == "column",
    )
