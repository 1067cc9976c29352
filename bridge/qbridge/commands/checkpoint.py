"""A checkpoint opened for reading: recognised, read into the IR, its layers at hand one by one."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.gguf_names import config_of
from qbridge.architecture.quantization_block import without_quantization
from qbridge.codecs.parts import decode
from qbridge.findings.arguments import checked, typed
from qbridge.findings.finding import Findings, QBridgeError, io_as_finding
from qbridge.findings.hints import one_line
from qbridge.findings.way import Way
from qbridge.formats.contradictions import judge_blocks, judge_head, judge_shapes
from qbridge.formats.detection import detect, judge_method
from qbridge.formats.protocol import Format, Match
from qbridge.formats.registry import find, load, registry, report_unusable, sniffed
from qbridge.ir.dtypes import Array
from qbridge.ir.layer import Layer, Spec
from qbridge.ir.model import Model, Rearranged
from qbridge.plan.options import allowed
from qbridge.source.gguf_files import config_inside, storage_with_original
from qbridge.source.opening import open_source, storage_of
from qbridge.source.reader import FEW, Source
from qbridge.source.storage import Storage
from qbridge.targets.registry import source_formats

_LOG = logging.getLogger(__name__)

# What a reader says where the tensors are not those of its format.
_MISFITS = frozenset({"QB013", "QB015", "QB016", "QB018", "QB101"})
TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model"})

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Checkpoint:
    """A checkpoint in its canonical form; use it in a `with`, or close it.

    `model` has the specs, `findings` what was worth saying without being an error.
    """

    source: Source
    model: Model
    format: str
    because: str
    findings: Findings

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Every quantized linear by name."""
        return self.model.specs

    def layer(self, name: str) -> Layer:
        """One quantized linear with its data; KeyError if there is none of that name."""
        slots = self.model.slots[name]
        stored = {slot.tensor: self.source.read(slot.tensor) for slot in slots.values()}
        return decode(self.model.specs[name], slots, stored)

    def tensor(self, name: str) -> Array:
        """One unquantized tensor as stored (bfloat16 as uint16 bits); KeyError if there is none of that name.

        It goes by its name in `model.tensors`, or by the one on disk where that is another. Rows that lie in another
        order on disk are in their own.
        """
        linears = self.model.rearranged
        shares = [linears[name]] if name in linears else [own for own in linears.values() if own.write.tensor == name]
        if shares:
            return self._joined(shares).reshape(self.model.tensors[name].shape)
        listed = self.model.tensors.get(name)
        return self.source.read(name if listed is None else listed.stored)

    def _decoded(self, linear: Rearranged) -> Array:
        dtype, shape = linear.spec.parts()["code"]
        return linear.read.codec.decode(self.source.read(linear.read.tensor), dtype, shape)

    def _joined(self, shares: Sequence[Rearranged]) -> Array:
        """The tensor that linears share, or are by themselves."""
        ordered = sorted(shares, key=lambda linear: linear.write.codec.turn)
        arrays = [self._decoded(linear) for linear in ordered]
        return ordered[0].write.codec.join(arrays) if len(arrays) > 1 else arrays[0]

    def close(self) -> None:
        """Close the files."""
        self.source.close()

    def __repr__(self) -> str:
        return one_line(self, f"{self.format}, {len(self.specs)} layers, {len(self.model.tensors)} other tensors")

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def with_original(path: PathLike, original: PathLike) -> PathLike | Storage:
    """A path, or the GGUF model that lies there with config.json and tokenizer of the folder `original`, if any."""
    typed("config", original, str, os.PathLike)
    return storage_with_original(Path(path), Path(original)) if os.fspath(original) else path


@contextmanager
def no_garbage() -> Iterator[None]:
    """Pause the garbage collector: opening makes many objects and no cycles; it took a third of the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@checked
@no_garbage()
def open_checkpoint(
    path: PathLike | Storage,
    format: str | None = None,
    allow: Iterable[str] = (),
    strict: bool = True,
    plans: bool = False,
    values: bool = True,
) -> Checkpoint:
    """Open a checkpoint of a named format, or of the one its content shows.

    Raises QBridgeError with every fault of the folder, the config and the tensors; unless `strict`, what a reader
    finds wrong is among the findings instead.
    With `plans` the small values that were read are held for the plan that is made next; without `values` none may be
    read (QB064).

    >>> with open_checkpoint("fixtures/awq/llama_gemm/model") as opened:
    ...     opened.specs["model.layers.0.mlp.up_proj"].dims
    (256, 128)
    """
    if not isinstance(path, Storage):
        typed("path", path, str, os.PathLike)
    findings = Findings(allowed(allow))
    where = path.url if isinstance(path, Storage) else str(path)
    with io_as_finding(where):
        source = _opened(storage_of(path), findings)
        source.values = values
        if source.metadata:
            _take_config(source, findings)
    try:
        with (
            io_as_finding(where),
            source.remembering(forget=not plans, room=None if plans or source.storage.is_far else FEW),
        ):
            reader, match = _reader(source, format, findings)
            model = reader.read(source, findings)
            judge_blocks(source, findings)
            if any(finding.code in ("QB016", "QB013") for finding in findings.errors):
                judge_shapes(source, findings)
            if _MISFITS.intersection(finding.code for finding in findings.errors):
                judge_method(source, reader, findings)
            judge_head(source, model, findings)
        _judge_heads(source, model, findings)
        _suggest(source, reader, findings)
        if strict:
            findings.stop_on_errors()
    except BaseException:
        source.close()
        raise
    size = sum(tensor.end - tensor.begin for tensor in source.tensors.values())
    _LOG.info("opened %s: %d bytes in %d tensors, %d files", path, size, len(source.tensors), len(source.shards))
    _LOG.info("it is %s: %s; %d quantized layers", reader.NAME, match.because, len(model.specs))
    return Checkpoint(source, model, reader.NAME, match.because, findings)


def _take_config(source: Source, findings: Findings) -> None:
    """The config that the metadata of files give, where no config.json lies beside them; QBridgeError (QB117)."""
    if source.config:
        source.config = without_quantization(source.config)  # that of the original: the types of GGUF say it all
        if config_inside(source.metadata) and not TOKENIZERS.intersection(source.side_files):
            findings.add("QB120", source.url, ("its config.json is in it",))
        return
    embedding = source.tensors.get("token_embd.weight")
    vocabulary = embedding.shape[0] if embedding else 0
    try:
        source.config = config_of(source.metadata, vocabulary, "output.weight" not in source.tensors)
    except ValueError as fault:
        findings.add("QB117", source.url, (str(fault), "no config.json lies beside it"))
        findings.stop_on_errors()
    findings.add("QB120", source.url)


def _opened(storage: Storage, findings: Findings) -> Source:
    """The source of a storage, whose files and connections are closed where it is none."""
    try:
        return open_source(storage, findings)
    except BaseException:
        storage.close()
        raise


def _reader(source: Source, name: str | None, findings: Findings) -> tuple[Format, Match]:
    if name is None:
        return detect(source, findings)
    report_unusable(findings)
    first, *others = source_formats(name)
    for candidate in others:
        match = sniffed(load(candidate), source)
        if isinstance(match, Match):
            return load(candidate), match
    return find(first), Match(2, f"--from {name}")


def _judge_heads(source: Source, model: Model, findings: Findings) -> None:
    """A head that the index names and no shard holds is the embedding, or it is lost."""
    if source.unstored:
        tied = Architecture.of_model(model).tied
        also = ("config.json says that it is the embedding (tie_word_embeddings)",) if tied else ()
        findings.add("QB005", source.unstored, ("the index names it, no shard holds it", *also), mild=tied)


def _suggest(source: Source, reader: Format, findings: Findings) -> None:
    """Where reading failed, name the format that the content shows instead."""
    if not findings.errors:
        return
    for name in registry():
        if name == reader.NAME:
            continue
        try:
            match = sniffed(load(name), source)
        except QBridgeError:
            continue
        if isinstance(match, Match):
            findings.add("QB034", reader.NAME, (f"it looks like {name}: {match.because}",), (Way("--from", name),))
