"""Which files of an output have the bytes of a file that is there already, so that they can be linked (`--link`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qbridge.findings.finding import Findings
from qbridge.plan.output_files import Shard
from qbridge.plan.plan import OutputTensor, Plan
from qbridge.source.reader import Source
from qbridge.source.safetensors import HeaderError, read_header
from qbridge.source.stored import StoredTensor

_NAMED = 3  # files whose change is said


def linked_shards(shards: Sequence[Shard], source: Source, findings: Findings) -> list[Shard]:
    """The output files, those whose tensors are all of one file of the source with that file.

    Findings: QB325 for those that change and are written, QB326 where all do.
    """
    found, changed = [], dict[str, str]()
    for shard in shards:
        why = _why_written(shard, source)
        found.append(shard if why else replace(shard, file=shard.tensors[0].shard))
        if why and not shard.tensors[0].grafted:  # what is grafted is no file of the source
            changed[shard.tensors[0].shard.name] = why
    facts = [f"{name}: {why}" for name, why in list(changed.items())[:_NAMED]]
    if changed and all(shard.file is None or shard.tensors[0].grafted for shard in found):
        findings.add("QB326", (), facts)
    elif changed:
        findings.add("QB325", list(changed), (f"{len(changed)} of {len(shards)} files", *facts))
    return found


def _why_written(shard: Shard, source: Source) -> str:
    """Why an output file has other bytes than the source's file; nothing if each tensor is there as it is."""
    file = shard.tensors[0].shard
    if any(tensor.shard != file for tensor in shard.tensors):
        return "its tensors come from several files"
    if source.memory:
        return "it is no safetensors file"
    try:
        header = read_header(file)
    except (HeaderError, OSError) as fault:
        return str(fault)
    for tensor in shard.tensors:
        stored = header.get(tensor.name)
        if stored is None:
            was = f"{tensor.origin} is called {tensor.name}" if tensor.origin else f"{tensor.name} is made"
            return was
        if not _is_copy(tensor, stored, source.tensors):
            return f"{tensor.name} is written anew"
    if gone := sorted(header.keys() - {tensor.name for tensor in shard.tensors}):
        return f"{gone[0]} is left out, or written elsewhere"
    return ""


def _is_copy(tensor: OutputTensor, stored: StoredTensor, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether an output tensor is a stored one, as a whole or slice by slice."""
    if (tensor.dtype, tensor.shape) != (stored.dtype, stored.shape):
        return False
    position = stored.begin
    for piece in tensor.slices or (tensor,):
        origin = tensors.get(piece.origin)
        if origin is None or origin.file != stored.file or origin.begin != position:
            return False
        position = origin.end
    return position == stored.end


def rewritten_layers(plan: Plan) -> set[str]:
    """The layers of which some tensor is not carried over as it is."""
    return {name for name, layer in plan.layers.items() if not all(map(layer.copied, layer.write))}
