"""What a person asks of a conversion beyond its target: tensor parallelism, and passes that are not taken unasked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from qbridge.ir.layer import Spec
from qbridge.ir.scheme import DENSE, Granularity
from qbridge.passes import Pass
from qbridge.passes.regroup import Regroup
from qbridge.passes.widen import Widen


@dataclass(frozen=True, slots=True)
class Wishes:
    """`tp` are the tensor-parallel sizes at which the output shall be legal.

    `pad` allows more features in MLPs, `regroup` is the group size wanted, `bits` the width, `dtype` that of dense
    weights (float16, bfloat16 or float32; empty: config.json's); without `passes` nothing but a change of layout is
    done. ValueError for what means nothing.
    """

    tp: tuple[int, ...] = (1,)
    pad: bool = False
    regroup: int | None = None
    bits: int | None = None
    passes: bool = True
    dtype: str = ""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not self.tp or any(size < 1 for size in self.tp):
            raise ValueError("tensor-parallel sizes are positive")
        if self.regroup is not None and self.regroup < 8:
            raise ValueError("a group has 8 weights or more")
        if self.bits not in (None, 4, 8):
            raise ValueError("codes are widened to 4 or 8 bits")
        if self.dtype and self.dtype not in DENSE:
            raise ValueError(f"dense weights are {', '.join(DENSE)}")
        if not self.passes and (self.pad or self.regroup or self.bits):
            raise ValueError("no passes are allowed, and some are asked for")

    def steps(self, spec: Spec) -> Iterator[Pass]:
        """The passes on one layer that were asked for, padding aside."""
        weight = spec.weight
        if self.bits is not None and weight.type == "int" and weight.bits < self.bits:
            yield Widen(self.bits)
        grouped = weight.granularity in (Granularity.GROUP, Granularity.CHANNEL) and spec.activation is None
        if self.regroup is not None and grouped:
            size = gcd(self.regroup, spec.in_features) if spec.in_features % self.regroup else self.regroup
            if size != weight.group_size:
                yield Regroup(size)


NONE = Wishes()
