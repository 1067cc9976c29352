"""What LMDeploy's TurboMind engine takes of 4-bit weights and of gpt-oss, and what it would silently load as garbage.

Sources: lmdeploy 0.18.0, turbomind/converter.py (get_tm_config), turbomind/weight_format.py,
turbomind/supported_models.py; kernel limits as its native planner reports them per tensor-parallel shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qbridge.architecture.names import dense_linears
from qbridge.formats.common_rules import drop_kv_scales
from qbridge.formats.registry import named
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.passes import Pass
from qbridge.passes.regroup import Regroup
from qbridge.passes.symmetrize import Symmetrize
from qbridge.passes.widen import Widen
from qbridge.targets.choice import Choice
from qbridge.targets.common import START, unquantized_tensors
from qbridge.targets.lmdeploy.awq import FOLDED
from qbridge.targets.lmdeploy.classes import TURBOMIND_ARCHITECTURES
from qbridge.targets.lmdeploy.fusion import TURBOMIND as TURBOMIND_FUSION
from qbridge.targets.lmdeploy.parallel import BLOCKS, TURBOMIND
from qbridge.targets.lmdeploy.pytorch import (
    PARSING,
    kv_scales,
    quantized_head,
    served_by,
)
from qbridge.targets.lmdeploy.towers import TOWER

_CONVERTER = "lmdeploy 0.18.0, turbomind/converter.py (get_tm_config)"


def _known_class(model: Model) -> Iterator[Problem]:
    if model.architecture not in TURBOMIND_ARCHITECTURES:
        named = model.architecture or "config.json names no architecture"
        yield Problem(("TurboMind 0.18.0 has no class for it",), where=(named,))


def _four_bits(spec: Spec, model: Model) -> Problem | None:
    weight = spec.weight
    if weight.type == "int" and weight.bits == 4 and spec.activation is None:
        return None
    return Problem((f"{spec.scheme}: TurboMind has 4-bit weights alone",))


def _wider(spec: Spec, model: Model) -> Pass | None:
    alone = spec.activation is None and spec.weight.type == "int"
    return Widen(4) if alone and spec.weight.bits < 4 else None


def _groups_of(*sizes: int) -> tuple[LayerRule, ...]:
    """Every layer in groups of one of `sizes`, largest first."""

    def check(spec: Spec, model: Model) -> Problem | None:
        never = _four_bits(spec, model) and not _wider(spec, model)  # no groups help other weights
        if spec.weight.group_size in sizes or never:
            return None
        return Problem((f"weights {spec.weight}: TurboMind has groups of {' or '.join(map(str, sizes))}",))

    def fix(spec: Spec, model: Model) -> Pass | None:
        size = spec.weight.group_size or spec.in_features
        return next((Regroup(group) for group in sizes if size % group == 0), Regroup(sizes[-1]))

    return (LayerRule("QB240", check, "lmdeploy 0.18.0, turbomind/weight_format.py", fix),)


def _tiles(spec: Spec, model: Model) -> Problem | None:
    if spec.in_features % (spec.weight.group_size or 1) == 0 and spec.out_features % 8 == 0:
        return None
    fact = f"{spec.out_features} x {spec.in_features}: it wants multiples of 8 x {spec.weight.group_size}"
    return Problem((fact,))


def _act_order(spec: Spec, model: Model) -> Problem | None:
    return Problem((spec.scheme,)) if spec.g_idx else None


def _one_group(model: Model) -> Iterator[Problem]:
    schemes = {spec.weight for spec in model.specs.values()}
    if len(schemes) > 1:
        yield Problem(tuple(sorted(map(str, schemes))), where=tuple(model.specs))


def _unlike_halves(model: Model) -> Iterator[Problem]:
    """gate and up share one format; q, k and v are all dequantized where one of them is not quantized."""
    dense = set(dense_linears(model.tensors))
    for names in TURBOMIND_FUSION.siblings(model, [*model.specs, *dense]):
        where = tuple(name for name in names if name in dense)
        if where and len(where) < len(names) and len(names) == 2:
            yield Problem(("only one of gate and up is quantized",), where=where)


def _asymmetric(spec: Spec, model: Model) -> Problem | None:
    return None if spec.weight.symmetric else Problem((f"weights {spec.weight}: TurboMind has symmetric GPTQ only",))


def _version(model: Model) -> Iterator[Problem]:
    found = tuple(name for name, spec in model.specs.items() if dict(spec.dialect).get("zeros") == "v2")
    if found:
        yield Problem(("zero-points of version 2 are stored",), where=found)


_MODEL: tuple[Rule, ...] = (
    ModelRule("QB202", quantized_head, "lmdeploy 0.18.0, turbomind/text_model.py (not tried)"),
    ModelRule("QB208", kv_scales, "lmdeploy 0.18.0, turbomind/checkpoint.py", drop_kv_scales),
    ModelRule("QB204", _known_class, "lmdeploy 0.18.0, turbomind/supported_models.py"),
    TOWER,
    *PARSING,
)
_COMMON: tuple[Rule, ...] = (
    LayerRule("QB240", _four_bits, _CONVERTER, _wider),
    LayerRule("QB241", _act_order, "lmdeploy 0.18.0, turbomind/weight_format.py (g_idx is never read)"),
    LayerRule("QB240", _tiles, "lmdeploy 0.18.0, turbomind/linear.py"),
    ModelRule("QB242", _unlike_halves, "lmdeploy 0.18.0, turbomind/linear.py"),
    FOLDED,
    unquantized_tensors(DType.F16, "lmdeploy 0.18.0, turbomind/converter.py", DType.F16),
    *_MODEL,
)


def _alone(fact: str) -> ModelRule:
    """A note that the other engine of LMDeploy does not load the checkpoint."""

    def check(model: Model) -> Iterator[Problem]:
        if not all(map(_for_pytorch, model.specs.values())):
            yield Problem((fact,), (START.format("turbomind"),), ("config.json",))

    return ModelRule("QB216", check, _CONVERTER)


def _for_pytorch(spec: Spec) -> bool:
    """Whether the scheme is of the kind that LMDeploy's other engine serves: 8 bits, activations quantized too."""
    return spec.weight.bits == 8 and spec.activation is not None and spec.weight.granularity is not Granularity.GROUP


def _other_layout(spec: Spec, model: Model) -> Problem | None:
    """What the PyTorch engine does with compressed-tensors of such layers; both were tried with 0.18.0."""
    if not _for_pytorch(spec):
        return None
    first = next(name for name, other in model.specs.items() if _for_pytorch(other))
    return Problem(
        (
            f"{spec.scheme}: served by the PyTorch engine, and not as compressed-tensors",
            "LMDeploy 0.18.0 stops: ValueError: Only compressed-tensors `pack-quantized` format is supported",
            f"or, where it sees no quantization_config: KeyError: '{first}.weight_scale'",
        )
    )


def _if_not_for_pytorch(rule: Rule) -> Rule:
    """The same limit, on the layers alone that TurboMind could serve."""
    if not isinstance(rule, LayerRule):
        return rule
    check = rule.check
    return replace(rule, check=lambda spec, model: None if _for_pytorch(spec) else check(spec, model))


_SERVE = served_by("turbomind")
CHOICES = (
    Choice(named("awq"), (*_groups_of(128), *_COMMON), dtype="float16", serve=_SERVE),
    Choice(
        named("compressed-tensors"),
        (
            *_groups_of(128, 32),
            ModelRule("QB243", _one_group, _CONVERTER),
            *_COMMON,
        ),
        dtype="float16",
        serve=_SERVE,
    ),
    Choice(
        named("gptq"),
        (
            *_groups_of(128),
            LayerRule("QB240", _asymmetric, _CONVERTER, lambda spec, model: Symmetrize()),
            ModelRule("QB244", _version, _CONVERTER),
            *_COMMON,
        ),
        (("zeros", "v1"),),
        dtype="float16",
        serve=_SERVE,
    ),
    Choice(
        named("mxfp4"),
        (
            LayerRule("QB240", _tiles, "lmdeploy 0.18.0, turbomind/linear.py"),
            unquantized_tensors(DType.BF16, "lmdeploy 0.18.0, turbomind/converter.py", DType.BF16),
            *_MODEL,
        ),
        dtype="bfloat16",
        serve=_SERVE,
    ),
)
_ALONE = {
    "compressed-tensors": "TurboMind loads it, the PyTorch engine has compressed-tensors for experts only",
    "mxfp4": "TurboMind loads it, the PyTorch engine has nothing for MXFP4",
}
_LIMITS = replace(TURBOMIND, blocks=BLOCKS)  # float8 is the PyTorch engine's, and its refusal says what is wrong
_OTHER = LayerRule("QB219", _other_layout, "lmdeploy 0.18.0, pytorch/config.py")
# For LMDeploy as a whole, where its other engine has nothing that would hold the model.
ALONE = tuple(
    replace(
        choice,
        rules=(_OTHER, _alone(_ALONE[choice.format.NAME]), *map(_if_not_for_pytorch, choice.rules)),
        parallel=_LIMITS,
    )
    for choice in CHOICES
    if choice.format.NAME in _ALONE
)
# GPTQ, which the PyTorch engine has nothing for; it is never written where AWQ can be.
AS_IS = tuple(
    replace(
        choice,
        rules=(_alone("TurboMind loads it, the PyTorch engine has nothing for GPTQ"), *choice.rules),
        parallel=_LIMITS,
    )
    for choice in CHOICES
    if choice.format.NAME == "gptq"
)
