"""Keys and values of latent attention: one matrix in transformers, two tensors in GGUF; there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qbridge.architecture.gguf_names import GgufNames, HeadsSplit
from qbridge.architecture.names import module_of
from qbridge.codecs.heads import HeadRows, TurnedHeads
from qbridge.findings.finding import Findings
from qbridge.ir.model import Model, Rearranged, TensorInfo
from qbridge.ir.plain import plain_spec
from qbridge.ir.scheme import DENSE
from qbridge.ir.slots import PLAIN, Codec, Slot
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor


def split_by_heads(name: str, info: TensorInfo, lies: Slot, names: GgufNames) -> list[Rearranged]:
    """The shares of a matrix that has several places; empty for one that has not."""
    module, leaf = module_of(name)
    split = names.split(module) if leaf == "weight" else None
    if split is None or info.dtype not in DENSE.values() or lies.codec != PLAIN:
        return []
    if len(info.shape) != 2 or info.shape[0] != split.heads * sum(split.counts):
        return []
    found = []
    for index, (place, count) in enumerate(zip(split.places, split.counts, strict=True)):
        spec = plain_spec(f"{name}[{index}]", (split.heads * count, info.shape[1]), info.dtype)
        read = replace(lies, codec=HeadRows(split.counts, index))
        found.append(Rearranged(spec, read, _share(split, index, f"{place.name}.weight", info)))
    return found


def _share(split: HeadsSplit, index: int, tensor: str, info: TensorInfo) -> Slot:
    """Where a share lies in GGUF."""
    rows, columns = split.counts[index], info.shape[1]
    turned = split.places[index].turned
    codec: Codec = TurnedHeads(rows) if turned else PLAIN
    return Slot(tensor, info.dtype, (split.heads, *((columns, rows) if turned else (rows, columns))), codec)


def share_name(module: str, index: int) -> str:
    """What the share of a module's matrix is called in a source whose names are those of transformers."""
    return f"{module}[{index}].weight"


def shares_of(source: Source, names: GgufNames, findings: Findings) -> dict[str, str]:
    """The modules of shares, by their tensors; QB117 for those that are no whole matrix of plain weights."""
    modules = {module_of(name)[0].partition("[")[0] for name in source.tensors}
    found = dict[str, str]()
    for module in sorted(modules):
        split = names.split(module)
        stored = [source.tensors.get(share_name(module, index)) for index in range(len(split.counts) if split else 0)]
        if split is None or not any(stored):
            continue
        tensors = [tensor for tensor in stored if tensor]
        found |= {share_name(module, index): module for index, tensor in enumerate(stored) if tensor}
        wanted = [_share(split, index, "", _whole(split, module, tensors[0])).shape for index in range(len(stored))]
        if [tensor.shape for tensor in tensors] != wanted or len({tensor.kind for tensor in tensors}) != 1:
            said = ", ".join(f"{tensor.kind} {list(tensor.shape)}" for tensor in tensors)
            findings.add("QB117", module, (f"its keys and values of heads are {said}, not plain weights {wanted}",))
    return found


def _whole(split: HeadsSplit, module: str, keys: StoredTensor | TensorInfo) -> TensorInfo:
    """The matrix that shares are of, by the first of them, whose heads are turned."""
    return TensorInfo(keys.dtype, (split.heads * sum(split.counts), keys.shape[1]), f"{module}.weight")


def with_joined_heads(model: Model, shares: Mapping[str, str], names: GgufNames) -> Model:
    """The model whose shares are one matrix again."""
    tensors, rearranged = dict(model.tensors), dict(model.rearranged)
    for module in dict.fromkeys(shares.values()):
        split = names.split(module)
        own = [name for name, other in shares.items() if other == module and name in tensors]
        if split is None or len(own) != len(split.counts):
            continue  # refused
        stored = [tensors.pop(name) for name in own]
        whole = _whole(split, module, stored[0])
        tensors[whole.stored] = whole
        for index, info in enumerate(stored):
            spec = plain_spec(
                f"{whole.stored}[{index}]", (split.heads * split.counts[index], whole.shape[1]), info.dtype
            )
            write = Slot(whole.stored, whole.dtype, whole.shape, HeadRows(split.counts, index))
            rearranged[spec.name] = Rearranged(spec, _share(split, index, info.stored, whole), write)
    return replace(model, tensors=tensors, rearranged=rearranged)
