"""plan.json: all that parts of a conversion must know, so that each makes its files without planning anew.

It says what the source was by sizes, digests of headers, etags and the digests of some small values, never by times
or paths; every output file with its tensors; and the text of every other file. The same conversion gives the same
bytes, wherever it is planned.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qbridge.findings.finding import error
from qbridge.formats.registry import named
from qbridge.ir.dtypes import Array, DType
from qbridge.plan.manifest import MALFORMED, header_digest
from qbridge.plan.objects import Objects, Table
from qbridge.plan.output_files import Shard
from qbridge.plan.plan import LayerPlan, OutputTensor, Plan, Writer, writer_of
from qbridge.source.json_text import json_text
from qbridge.source.reader import Source
from qbridge.source.storage import File, Storage
from qbridge.source.stored import StoredTensor

PLAN = "plan.json"
SCHEMA = 1
_COMPUTED = 16 << 20  # bytes of computed tensors that a plan may hold
_SAMPLED = 400  # of a file's bytes, one in so many is among the values that tell it from another
_FEW = 4096  # bytes of a value that is read in any case


@dataclass(frozen=True, slots=True, eq=False)
class SharedPlan:
    """A plan as it is written and read.

    `identity` has what it was made of: the version, the options and the source; `shards` are the files of weights,
    `sides` the names and sizes of the files that are carried over, `documents` the texts of the others by name, those
    that make the output a checkpoint last. `layers`, `others` (the residue with them) and `tensors` are as in `Plan`
    and `Source`, `memory` as in `Source`; `storages` says how many places the files lie in. `facts` is what a report
    says.
    """

    identity: Mapping[str, Any]
    shards: Sequence[Shard]
    sides: Mapping[str, int]
    documents: Mapping[str, str]
    layers: Mapping[str, LayerPlan]
    others: Mapping[str, LayerPlan]
    tensors: Mapping[str, StoredTensor]
    memory: Mapping[str, Array]
    facts: Mapping[str, Any]
    digest: str = ""

    def layer_of(self, tensor: OutputTensor) -> Writer | None:
        """As `Plan.layer_of`."""
        return writer_of(tensor, self.others, self.layers)

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file that a part makes, in the order in which they are shared out."""
        return {**{shard.name: shard.size for shard in self.shards}, **self.sides}

    def share(self, part: int, of: int) -> list[str]:
        """The files of one part (1 to `of`): neighbours, so that parts read little of what others read."""
        whole, begin, found = sum(self.sizes.values()) or 1, 0, []
        for name, size in self.sizes.items():
            if (2 * begin + size) * of // (2 * whole) == part - 1 or (begin == whole and part == of):
                found.append(name)
            begin += size
        return found


def described(
    source: Source,
    plan: Plan,
    shards: Sequence[Shard],
    sides: Sequence[str],
    documents: Mapping[str, str],
    options: Mapping[str, Any],
    version: str,
    facts: Mapping[str, Any],
) -> bytes:
    """The text of plan.json; QBridgeError (QB065) for a conversion that cannot be made in parts."""
    if any(shard.file is not None for shard in shards):
        raise error("QB065", PLAN, ("files are linked, which no part can do for another machine",))
    read = _read_tensors(source, plan)
    computed = {name: source.memory[name] for name in read if name in source.memory}
    if sum(array.nbytes for array in computed.values()) > _COMPUTED:
        raise error("QB065", source.url, ("its weights lie in files that are read whole (pickled ones)",))
    files = _numbered(source, read, shards)
    table = Table(files)
    body = {
        "schema": SCHEMA,
        "identity": {
            "qbridge": version,
            "options": options,
            "source": identity_of(files, source),
            "values": _sample(source, read),
            "formats": [plan.model.format, plan.format.NAME],
        },
        "pinned": source.storage.pinned,
        "shards": [
            [shard.name, _text(shard.header), table.add(tuple(shard.tensors)), list(shard.offsets), shard.end]
            for shard in shards
        ],
        "sides": {name: source.file(name).size for name in sides},
        "documents": documents,
        "layers": table.add(plan.layers),
        "others": table.add({**plan.others, **plan.residue}),
        "tensors": [[files[each.file], *_plain(each)] for each in (source.tensors[name] for name in read)],
        "memory": {name: _text(array.tobytes()) for name, array in computed.items()},
        "facts": table.add(facts),
    }
    return json_text({**body, "objects": table.entries}).encode() + b"\n"


def parsed(text: bytes, storages: Sequence[Storage]) -> SharedPlan:
    """What `described` wrote, its files in these storages; QBridgeError (QB066) for what it cannot have written."""
    try:
        body = json.loads(text)
        for name in body["identity"]["formats"]:  # whose codecs and passes the table may have
            named(name)
        files = [File(storages[place], name) for place, name, *_ in body["identity"]["source"]]
        objects = Objects(body["objects"], files)
        tensors = [
            StoredTensor(name, files[number], DType(dtype), tuple(shape), begin, end, kind)
            for number, name, dtype, shape, begin, end, kind in body["tensors"]
        ]
        shards = [
            Shard(name, base64.b64decode(header), objects[outputs], offsets, None, end)
            for name, header, outputs, offsets, end in body["shards"]
        ]
        memory = {name: np.frombuffer(base64.b64decode(data), np.uint8) for name, data in body["memory"].items()}
        return SharedPlan(
            body["identity"],
            shards,
            body["sides"],
            body["documents"],
            objects[body["layers"]],
            objects[body["others"]],
            {tensor.name: tensor for tensor in tensors},
            memory,
            objects[body["facts"]],
            digest_of(text),
        )
    except MALFORMED as fault:
        raise error("QB066", PLAN, (f"it is damaged: {type(fault).__name__}",)) from fault


def digest_of(text: bytes) -> str:
    """What every part says which plan it is of."""
    return hashlib.sha256(text).hexdigest()


def identity_of(files: Iterable[File], source: Source) -> list[list[Any]]:
    """Of every file: whether another checkpoint's (1) or not (0), its name, size, digest of its header, and etag.

    What a server pins by an etag needs no header to be read.
    """
    return [[int(file.storage is not source.storage), file.name, file.size, *_content(file)] for file in files]


def changed(plan: SharedPlan, source: Source, names: Iterable[str]) -> Iterator[str]:
    """Files and tensors, of those that some tensors lie in, that are not what the plan was made of."""
    read = {tensor.file for tensor in map(plan.tensors.__getitem__, names)}
    for place, name, size, header, etag in plan.identity["source"]:
        file = next(
            (each for each in read if each.name == name and place == (each.storage is not source.storage)), None
        )
        if file is not None and (not file.storage.has(name) or (file.size, *_content(file)) != (size, header, etag)):
            yield name
            read.discard(file)
    for tensor, digest in plan.identity["values"].items():
        if plan.tensors[tensor].file in read and _digest(source, tensor) != digest:
            yield tensor


def tensors_read(plan: SharedPlan | Plan, shard: Shard) -> set[str]:
    """The tensors of the source that a shard is made of."""
    found: set[str] = set()
    for tensor in (piece for whole in shard.tensors for piece in whole.slices or (whole,)):
        if tensor.origin:
            found.add(tensor.origin)
            continue
        layers = plan.others if tensor.layer in plan.others else plan.layers
        found.update(slot.tensor for name in (tensor.layer, *tensor.beside) for slot in layers[name].read.values())
    return found


def _content(file: File) -> tuple[str, str]:
    """(digest of the header, etag), of which the first is empty where the second is not."""
    etag = file.storage.etag(file.name)
    return ("", etag) if etag else (header_digest(file), "")


def _read_tensors(source: Source, plan: Plan) -> list[str]:
    """Every tensor of the source that some output is made of."""
    layers = (*plan.layers.values(), *plan.others.values())
    found = {slot.tensor for layer in layers for slot in layer.read.values()}
    found |= {piece.origin for whole in plan.outputs for piece in whole.slices or (whole,) if piece.origin}
    return sorted(name for name in found if name in source.tensors)


def _numbered(source: Source, read: Iterable[str], shards: Sequence[Shard]) -> dict[File, int]:
    """Every file that is named, its own first, with its number."""
    files = dict.fromkeys(source.tensors[name].file for name in read)
    files |= dict.fromkeys(
        tensor.shard for shard in shards for whole in shard.tensors for tensor in (whole, *whole.slices)
    )
    order = sorted(files, key=lambda file: (file.storage is not source.storage, file.name))
    return {file: number for number, file in enumerate(order)}


def _sample(source: Source, read: Sequence[str]) -> dict[str, str]:
    """By tensor, the digests of some small values of each file that no etag pins: two fine-tunes differ in them."""
    small: dict[File, list[str]] = {}
    for name in read:
        tensor = source.tensors[name]
        if name not in source.memory and tensor.end - tensor.begin <= max(_FEW, tensor.file.size // _SAMPLED):
            small.setdefault(tensor.file, []).append(name)
    chosen: list[str] = []
    for file, names in small.items():
        if not file.storage.etag(file.name):
            mean = sum(source.tensors[name].end - source.tensors[name].begin for name in names) // len(names)
            count = max(1, file.size // _SAMPLED // max(mean, 1))
            chosen += names[:: -(-len(names) // count)]
    return {name: _digest(source, name) for name in chosen}


def _digest(source: Source, name: str) -> str:
    return hashlib.sha256(source.read(name).tobytes()).hexdigest()


def _plain(tensor: StoredTensor) -> list[Any]:
    return [tensor.name, tensor.dtype.value, list(tensor.shape), tensor.begin, tensor.end, tensor.kind]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
