"""The pipeline: open, detect, read, plan, stream, finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbridge import manifest
from qbridge.checkpoint import Checkpoint, PathLike, open_checkpoint
from qbridge.dtypes import Array, nbytes
from qbridge.findings import Findings, error, io_as_finding
from qbridge.ir import Spec
from qbridge.passes import Pass
from qbridge.plan import OutputTensor, Plan
from qbridge.planning import best_plan
from qbridge.repairs import survey
from qbridge.report import Report
from qbridge.sink import check_destination, plan_shards, staged, write_checkpoint
from qbridge.source import MANIFEST
from qbridge.targets import Target, find_target
from qbridge.wishes import NONE, Wishes

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]


def convert(
    src: PathLike,
    dst: PathLike,
    target: str,
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    dry_run: bool = False,
    overwrite: bool = False,
    max_shard_size: int | None = None,
    progress: Progress | None = None,
    tp: int | Sequence[int] = 1,
    pad: bool = False,
    regroup: int | None = None,
    bits: int | None = None,
    passes: bool = True,
) -> Report:
    """Convert the checkpoint `src` into the folder `dst` for a target, losslessly or not at all.

    `target` is an engine (`lmdeploy`, `lmdeploy@0.6.2`) or a format; `source` the format of `src`, detected if None.
    `max_shard_size` is in bytes of tensor data, None keeps the source's shards. `progress` is called with bytes done
    and in all. Nothing stands at `dst` unless the report is returned. Raises QBridgeError.

    The output is legal at every tensor-parallel size of `tp`. `pad` lets MLPs grow for that, `regroup` is a group
    size and `bits` a width (4 or 8) to have; without `passes` nothing but the layout changes. ValueError for numbers
    that mean nothing.
    """
    start = time.monotonic()
    wanted = find_target(target)
    wishes = Wishes((tp,) if isinstance(tp, int) else tuple(tp), pad, regroup, bits, passes)
    there, out = Path(src), Path(dst)
    with io_as_finding(str(src)), open_checkpoint(src, source, allow) as opened:
        check_destination(out, there, overwrite)
        plan = _plan(opened, wanted, wishes)
        shards = plan_shards(plan.outputs, max_shard_size)
        if not dry_run:
            documents = {"config.json": plan.config, MANIFEST: manifest.build(opened.source, plan)}
            total, done = sum(shard.data_size for shard in shards), 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                if progress:
                    progress(done, total)

            with staged(out, there, overwrite) as folder:
                sides = [file for file in opened.source.side_files if str(file) not in opened.model.consumed]
                write_checkpoint(folder, opened.source, shards, encoder(opened, plan), documents, sides, advance)
    return Report.of_plan(there, out, opened, plan, shards, dry_run, start)


def _plan(opened: Checkpoint, target: Target, wishes: Wishes = NONE) -> Plan:
    survey(opened.source, opened.model, opened.findings)
    opened.findings.stop_on_errors()  # what cannot be decoded cannot be planned

    @cache
    def recorded(format_name: str) -> Mapping[str, tuple[Spec, tuple[Pass, ...]]]:
        return manifest.way_back(opened.source, opened.model, format_name)

    plan = best_plan(opened.source, opened.model, target, opened.findings, recorded, wishes)
    opened.findings.stop_on_errors()
    return plan


def encoder(opened: Checkpoint, plan: Plan) -> Callable[[OutputTensor], Array]:
    """Encodes one part of one layer; a layer's small parts are decoded again for each, never kept."""

    def encoded(tensor: OutputTensor) -> Array:
        if tensor.origin:
            return opened.source.read(tensor.origin)
        try:
            return plan.layers[tensor.layer].encoded(opened.source, tensor.part)
        except ValueError as fault:  # a checkpoint edited after the conversion that its manifest records
            raise error("QB304", tensor.layer, (str(fault),)) from fault

    return encoded


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """The tensors of a conversion, one by one, with the config that describes them; nothing is written.

    Iterating yields (name, torch.Tensor) in the order of the shards; each tensor owns its memory.
    """

    config: Mapping[str, Any]
    format: str
    shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    findings: Findings
    _opened: Checkpoint
    _plan: Plan

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the target, converted when it is asked for."""
        from qbridge.tensors import to_torch

        encoded = encoder(self._opened, self._plan)
        for shard in plan_shards(self._plan.outputs):
            for tensor in shard.tensors:
                yield tensor.name, to_torch(encoded(tensor), tensor.dtype, tensor.shape)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.source.close()

    @property
    def total_size(self) -> int:
        """Bytes of all tensors."""
        return sum(nbytes(t.dtype, t.shape) for t in self._plan.outputs)


def stream(src: PathLike, target: str, source: str | None = None, *, allow: Iterable[str] = ()) -> Stream:
    """Plan a conversion and hand out its tensors instead of writing them; needs torch. Raises QBridgeError."""
    wanted = find_target(target)
    opened = open_checkpoint(src, source, allow)
    try:
        with io_as_finding(str(src)):
            plan = _plan(opened, wanted)
    except BaseException:
        opened.source.close()
        raise
    shapes = {t.name: (str(t.dtype), t.shape) for t in plan.outputs}
    return Stream(plan.config, plan.format, shapes, opened.findings, opened, plan)
