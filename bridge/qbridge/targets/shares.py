"""What one rank holds of a layer, and answers about a model that the limits of an engine ask for again and again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, TypeVar

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import without_expert
from qbridge.architecture.parallel import Rank
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model

Found = TypeVar("Found")


class Once:
    """What the rules of some limits found out about a model, kept with it, so that no layer asks about all again."""

    def __call__(self, model: Model, key: Hashable, find: Callable[[], Found]) -> Found:
        """What `find` gives, asked once for a model and a key."""
        return model.once((self, key), find)


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank holds of a layer at a tensor-parallel size: `features` of those that `axis` counts."""

    tp: int
    features: int
    axis: Literal["in_features", "out_features"]

    def whole(self, spec: Spec) -> int:
        """The features along the axis that all ranks hold together."""
        return spec.in_features if self.axis == "in_features" else spec.out_features


def columns(spec: Spec) -> int | None:
    """How many inputs share a scale, where a row has more than one."""
    return spec.weight.block[1] if spec.weight.block else spec.weight.group_size


def has_one_size(spec: Spec) -> bool:
    """Whether no other group size would be the same format: scales of blocks, and of two levels or exponents."""
    return spec.weight.block is not None or spec.weight.global_scale is not None or not spec.scale_dtype.is_float


def held(spec: Spec, model: Model, tp: int) -> Rank | None:
    """What each rank holds of a layer, looked up once for all experts of a block."""
    architecture, key = Architecture.of_model(model), (without_expert(spec.name), spec.dims, tp)
    return model.once((held, *key), lambda: architecture.rank(spec.name, spec.dims, tp))


def alike(model: Model) -> list[Spec]:
    """The layers of a model, one for all experts of a block that have the same dims and scheme."""

    def find() -> list[Spec]:
        found: dict[Hashable, Spec] = {}
        for name, spec in model.specs.items():
            found.setdefault((without_expert(name), spec.out_features, spec.in_features, spec.weight), spec)
        return list(found.values())

    return model.once(alike, find)


def rank_outputs(model: Model, name: str, tp: int) -> int:
    """The outputs of a layer on one rank."""
    spec = model.specs[name]
    rank = held(spec, model, tp)
    return rank.out_features if rank else spec.out_features
