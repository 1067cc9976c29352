"""stream: the tensors of a conversion one by one, nothing written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qbridge.architecture.prefixes import Prefixes
from qbridge.commands.checkpoint import Checkpoint, PathLike, open_checkpoint
from qbridge.commands.planning import prepare
from qbridge.commands.restructuring import restructured
from qbridge.findings.arguments import checked
from qbridge.findings.extras import imported
from qbridge.findings.finding import Findings, io_as_finding
from qbridge.findings.hints import one_line
from qbridge.ir.dtypes import nbytes
from qbridge.plan.options import MEMORY, Options
from qbridge.plan.output_files import plan_shards
from qbridge.plan.plan import OutputTensor, Plan
from qbridge.targets.registry import find_target
from qbridge.write.budget import Effort
from qbridge.write.regions import Region, encoded, parts

if TYPE_CHECKING:
    import torch

_STRETCH = 1 << 12  # bytes of a piece of a file that a region is read in: a page


@dataclass(frozen=True, slots=True, eq=False, repr=False)
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
    _block: int
    _by_name: Mapping[str, OutputTensor]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the target, converted when it is asked for."""
        imported("torch", "torch", "a stream gives torch tensors")
        for name in self.names:
            yield name, self.tensor(name)

    @property
    def names(self) -> Iterator[str]:
        """Names of all tensors, in the order of the shards."""
        return (tensor.name for shard in plan_shards(self._plan.outputs) for tensor in shard.tensors)

    def __repr__(self) -> str:
        return one_line(self, f"{self.format}, {len(self.shapes)} tensors, {self.total_size} bytes")

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self._opened.source.close()

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor of the target by its name, converted now; KeyError for a name that it does not have."""
        return self.region(name, tuple((0, size) for size in self.shapes[name][1]))

    def region(self, name: str, bounds: Region) -> torch.Tensor:
        """A part of one tensor: of each dim the first index and the one behind the last; of the source, about as much
        is read where its layout allows it. ValueError for bounds that it does not have.
        """
        from qbridge.ir.torch_tensors import to_torch

        made = self._by_name[name]
        array = encoded(self._opened.source, self._plan, made, self._block, bounds)
        return to_torch(array, made.dtype, tuple(stop - start for start, stop in bounds))

    def parts(self, name: str, bounds: Region) -> Iterator[tuple[Region, torch.Tensor]]:
        """The same region in parts that fit into the stream's memory: where in the tensor each lies, and its values.

        A part is valid until the next is asked for.
        """
        from qbridge.ir.torch_tensors import to_torch

        made = self._by_name[name]
        for where, array in parts(self._opened.source, self._plan, made, self._block, bounds):
            yield where, to_torch(array, made.dtype, tuple(stop - start for start, stop in where))

    def side_file(self, name: str) -> Any:
        """A JSON file beside the weights of the source, None where there is none."""
        return self._opened.source.document(name)

    @property
    def total_size(self) -> int:
        """Bytes of all tensors."""
        return sum(nbytes(t.dtype, t.shape) for t in self._plan.outputs)


@checked
def stream(
    src: PathLike,
    target: str,
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    tp: int | Sequence[int] = 1,
    pad: bool = False,
    regroup: int | None = None,
    bits: int | None = None,
    cast: str = "",
    passes: bool = True,
    dtype: str = "",
    experts: str = "",
    graft: PathLike = "",
    rename_prefix: Prefixes = (),
    memory: int = MEMORY,
) -> Stream:
    """Plan a conversion and hand out its tensors instead of writing them; needs torch.

    Options are those of `convert`, and the tensors are the same. A tensor is made in `memory` bytes besides its own.
    Raises QBridgeError; ValueError for what means nothing.
    """
    wanted = find_target(target)
    options = Options.of(
        wanted,
        tp,
        pad=pad,
        regroup=regroup,
        bits=bits,
        cast=cast,
        passes=passes,
        dtype=dtype,
        experts=experts,
        graft=graft,
        rename_prefix=rename_prefix,
        jobs=1,
        memory=memory,
    )
    opened = open_checkpoint(src, source, allow, plans=True)
    try:
        with io_as_finding(str(src)):
            opened, _ = restructured(opened, options)
            plan = prepare(opened, wanted, options)
    except BaseException:
        opened.source.close()
        raise
    block = opened.source.keep = Effort.of(options).block
    opened.source.stretch = 0 if opened.source.storage.is_far else _STRETCH
    shapes = {t.name: (str(t.dtype), t.shape) for t in plan.outputs}
    by_name = {t.name: t for t in plan.outputs}
    return Stream(plan.config, plan.format.NAME, shapes, opened.findings, opened, plan, block, by_name)
