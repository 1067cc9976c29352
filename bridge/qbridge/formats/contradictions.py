"""What a checkpoint says of itself in two ways that differ: blocks, files beside config.json, shapes, a tied head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import HEADS, is_embedding
from qbridge.architecture.quantization_block import Block, find_block, quantization_blocks
from qbridge.findings.finding import Findings
from qbridge.formats.registry import config_files
from qbridge.ir.model import Model
from qbridge.source.reader import Source
from qbridge.source.stored import StoredTensor

# What is compared, under every name that a tool gives it.
_SAID: Mapping[str, tuple[str, ...]] = {
    "quant_method": ("quant_method",),
    "bits": ("bits", "w_bit"),
    "group_size": ("group_size", "q_group_size"),
    "sym": ("sym",),
    "zero_point": ("zero_point",),
    "desc_act": ("desc_act",),
}
_SAMPLES, _SAMPLE = 16, 1 << 16  # places of a head that are compared with the embedding's, and the bytes of each


def judge_blocks(source: Source, findings: Findings) -> None:
    """QB043 for a second quantization block, or a file beside config.json, that says another thing than the first."""
    first = find_block(source.config)
    if first is None:
        return
    for other in quantization_blocks(source.config):
        if other.key != first.key and (facts := _differences(first, other)):
            findings.add("QB043", other.key, facts)
    names = config_files().intersection(source.side_files)
    for name in sorted(names):
        if facts := _differences(first, Block(name, source.side_object(name))):
            findings.add("QB043", name, facts)


def _differences(first: Block, other: Block) -> tuple[str, ...]:
    """The keys that both have, in whatever spelling, with values that are not the same."""
    facts = []
    for names in _SAID.values():
        values = [_value(block.raw, names) for block in (first, other)]
        if None not in values and _plain(values[0]) != _plain(values[1]):
            facts.append(f"{names[0]}: {values[0]!r} in {first.key}, which is read, and {values[1]!r} in {other.key}")
    return tuple(facts)


def _value(raw: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((raw[name] for name in names if name in raw), None)


def _plain(value: Any) -> Any:
    return value.lower().replace("_", "-") if isinstance(value, str) else value


def judge_shapes(source: Source, findings: Findings) -> None:
    """QB046 where most modules have codes and scales of another width or group size than the config says.

    For integer codes in words. Only asked where a reader has found that shapes do not fit.
    """
    block = find_block(source.config)
    seen = Counter(_widths(source))
    said = set(_said(block.raw if block else {}))
    right = {kind for kind in seen if any(_agree(kind, each) for each in said)}
    wrong = Counter({kind: count for kind, count in seen.items() if kind not in right})
    coded = sum(name.endswith((".qweight", ".weight_packed")) for name in source.tensors)
    against = coded - seen.total() + sum(seen[kind] for kind in right if kind[1] or any(not size for _, size in said))
    if any(size >= 2**31 for _, size in said):
        return  # no model has such groups: readers say so
    if said and wrong and wrong.total() > against:
        # a whole row in one group fits many sizes: those of several groups know better
        (bits, group, _), count = Counter({k: n for k, n in wrong.items() if k[1]} or wrong).most_common(1)[0]
        looks = f"the tensors look like {bits} bits {_grouped(group)} ({count} of {seen.total()} modules)"
        says = " or ".join(sorted(f"{bits} bits {_grouped(group)}" for bits, group in said))
        findings.add("QB046", block.key if block else "config.json", (looks, f"the config says {says}"))


def _grouped(size: int) -> str:
    return f"in groups of {size}" if size else "in one group for each channel"


def _agree(seen: tuple[int, int, int], said: tuple[int, int]) -> bool:
    """Whether (bits, group size, in_features) of a module are what the config says; 0 is a whole row."""
    (bits, group, width), (said_bits, said_group) = seen, said
    return bits == said_bits and group in (said_group, 0 if said_group >= width else said_group)


def _said(raw: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(bits, group size) that a block names, also for its groups of modules; 0 for a whole row."""
    groups = raw.get("config_groups")
    schemes = (
        [group.get("weights") for group in groups.values() if isinstance(group, dict)]
        if isinstance(groups, dict)
        else [raw]
    )
    for scheme in schemes:
        if not isinstance(scheme, dict):
            continue
        bits, size = _value(scheme, ("bits", "w_bit", "num_bits")), _value(scheme, ("group_size", "q_group_size"))
        if type(bits) is int and type(size) in (int, type(None)):
            yield bits, max(size or 0, 0)


def _widths(source: Source) -> Iterator[tuple[int, int, int]]:
    """(bits, group size or 0, in_features) of each module whose tensors show them."""
    for name in source.tensors:
        module, _, leaf = name.rpartition(".")
        own = {part: source.tensors.get(f"{module}.{part}") for part in ("scales", "qzeros", "g_idx", "weight_scale")}
        if leaf == "qweight":
            found = _of_words(source.tensors[name], own["scales"], own["qzeros"], own["g_idx"])
        elif leaf == "weight_packed":
            found = _of_rows(source, module, source.tensors[name], own["weight_scale"])
        else:
            continue
        if found is not None and found[0] in range(1, 9):
            yield found


def _of_words(
    codes: StoredTensor, scales: StoredTensor | None, zeros: StoredTensor | None, index: StoredTensor | None
) -> tuple[int, int, int] | None:
    """Codes in words down the columns (as many columns as scales), or across them (fewer)."""
    if scales is None or len(codes.shape) != 2 or len(scales.shape) != 2 or not all((*codes.shape, *scales.shape)):
        return None
    word, (groups, rows) = codes.dtype.itemsize * 8, scales.shape
    fits = zeros is not None and zeros.dtype is codes.dtype and zeros.shape[:-1] == (groups,)
    if zeros is None or not fits or codes.shape[0] == groups:  # AWQ's GEMV has rows of N in all three
        return None
    bits, is_across = zeros.shape[1] * word // rows, codes.shape[1] == zeros.shape[1]
    width = codes.shape[0] if is_across else codes.shape[0] * word // max(bits, 1)
    if not is_across and (codes.shape[1] != rows or (index is not None and index.shape != (width,))):
        return None
    return bits, _size(width, groups), width


def _of_rows(
    source: Source, module: str, codes: StoredTensor, scales: StoredTensor | None
) -> tuple[int, int, int] | None:
    """Codes in words along the rows, with the dims of the matrix beside them."""
    dims = source.tensors.get(f"{module}.weight_shape")
    if scales is None or dims is None or dims.shape != (2,) or len(codes.shape) != 2 or len(scales.shape) != 2:
        return None
    width = int(source.read_small(dims.name)[1])
    if width < 1 or not scales.shape[1]:
        return None
    return codes.shape[1] * codes.dtype.itemsize * 8 // width, _size(width, scales.shape[1]), width


def _size(width: int, groups: int) -> int:
    """The size of `groups` groups of a row; 0 for a whole row."""
    return 0 if groups == 1 else -(-width // groups)


def judge_head(source: Source, model: Model, findings: Findings) -> None:
    """QB047 where config.json says that the head is the embedding, and other values are stored for it.

    A few places of both are read.
    """
    if not Architecture.of_model(model).tied:
        return
    quantized = [name for name in model.specs if name.rpartition(".")[2] in HEADS and name.count(".") < 2]
    if quantized:
        findings.add("QB047", quantized, ("it is quantized, with codes of its own",))
        return
    stored = {name.removesuffix(".weight"): info.stored for name, info in model.tensors.items()}
    heads = [name for name in stored if name.rpartition(".")[2] in HEADS and name.count(".") < 2]
    tables = [name for name in stored if is_embedding(name)]
    for head in heads:
        like = [source.tensors[stored[name]] for name in tables]
        own = source.tensors[stored[head]]
        table = next((each for each in like if (each.dtype, each.shape) == (own.dtype, own.shape)), None)
        if table is not None and (differing := _differing(source, own, table)):
            findings.add("QB047", own.name, (f"{differing} of {_SAMPLES} places differ from {table.name}",))


def _differing(source: Source, one: StoredTensor, other: StoredTensor) -> int:
    """How many of some places, spread over two tensors of one size, have other bytes."""
    total = one.end - one.begin
    size = min(_SAMPLE, total)
    buffers = np.empty(size, np.uint8), np.empty(size, np.uint8)
    count = 0
    for number in range(_SAMPLES):
        offset = (total - size) * number // max(_SAMPLES - 1, 1)
        for tensor, buffer in zip((one, other), buffers, strict=True):
            source.read_into(tensor.name, offset, buffer)
        count += not np.array_equal(*buffers)
    return count
