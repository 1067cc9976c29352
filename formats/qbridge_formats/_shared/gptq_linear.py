"""The tensors of a GPTQ linear, whoever wrote them: codecs by width and version, and layers judged by content.

Sources: gptqmodel 7.7.0, nn_modules/qlinear/__init__.py, utils/model.py and quantization/config.py (planar layout);
auto-gptq 0.7.1, nn_modules/qlinear/qlinear_cuda.py; auto-round 0.16.1, export/export_to_autogptq.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from qbridge.architecture.architecture import Architecture
from qbridge.codecs.arrays import TRANSPOSED, ZEROS, Filled, GroupIndex
from qbridge.codecs.bits import BitPacked
from qbridge.findings.finding import Findings
from qbridge.formats.mismatch import mismatch
from qbridge.ir.dtypes import Array, DType
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Codec, Slot, by_kind
from qbridge.source.reader import Source

ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
_WORDS = (DType.I32, DType.I16, DType.I8)


@dataclass(frozen=True, slots=True)
class Scheme:
    """Bits, group size (-1 for one group) and symmetry of one module, as the config says."""

    bits: int
    group_size: int
    sym: bool


@dataclass(frozen=True, slots=True)
class Zeros:
    """How a file says that it stores zero-points: version `v1` or `v2`, and whether words borrowed (GPTQModel)."""

    version: str
    borrowed: bool = False
    planar: bool = False


def modules_of(source: Source) -> list[str]:
    """Modules with a qweight, in the order of their tensors."""
    return [name.removesuffix(".qweight") for name in source.tensors if name.endswith(".qweight")]


def is_gptq_shaped(source: Source, module: str) -> bool:
    """Whether qweight has a column per output feature, as its scales have (AWQ packs several to a word)."""
    codes, scales = source.tensors.get(f"{module}.qweight"), source.tensors.get(f"{module}.scales")
    return bool(codes and scales and codes.shape[1:] == scales.shape[1:])


def read_spec(
    source: Source, module: str, scheme: Scheme, zeros: Zeros, empty_bias: bool, findings: Findings
) -> Spec:
    """The spec of a module; ValueError where its tensors do not fit together."""
    codes, scales = source.tensors[f"{module}.qweight"], source.tensors.get(f"{module}.scales")
    if scales is None or len(scales.shape) != 2 or len(codes.shape) != 2 or not scales.dtype.is_float:
        raise ValueError("qweight and scales are not two matrices")
    if type(scheme.bits) is not int or not 1 <= scheme.bits <= 8 or type(scheme.group_size) is not int:
        raise ValueError(f"the config says {scheme.bits!r} bits in groups of {scheme.group_size!r}")
    if codes.dtype not in _WORDS:
        raise ValueError(f"qweight is {codes.dtype}, not words of 32, 16 or 8 bits")
    bias, grouped = source.tensors.get(f"{module}.bias"), scheme.group_size > 0
    dialect = {"bias": "zeros"} if empty_bias else {}
    dialect |= {"words": str(codes.dtype)} if codes.dtype is not DType.I32 else {}
    dialect |= {"packing": "planar"} if zeros.planar else {}
    spec = Spec(
        name=module,
        out_features=codes.shape[1],
        in_features=codes.shape[0] * codes.dtype.itemsize * 8 // scheme.bits,
        weight=WeightScheme(
            scheme.bits,
            Granularity.GROUP if grouped else Granularity.CHANNEL,
            group_size=scheme.group_size if grouped else None,
        ),
        scale_dtype=scales.dtype,
        bias=bias.dtype if bias and not empty_bias else None,
        dialect=tuple(dialect.items()),
    )
    act_order = _act_order(source, spec, dialect)
    symmetric = _zeros(source, spec, scheme, zeros, dialect, findings)
    weight = replace(spec.weight, symmetric=symmetric)
    return replace(spec, weight=weight, g_idx=act_order, dialect=tuple(sorted(dialect.items())))


def _act_order(source: Source, spec: Spec, dialect: dict[str, str]) -> bool:
    """Whether g_idx permutes the groups; a trivial one says nothing, and it may be absent."""
    tensor = source.tensors.get(f"{spec.name}.g_idx")
    if tensor is None:
        dialect["g_idx"] = "absent"
        return False
    if tensor.shape != (spec.in_features,) or tensor.dtype is not DType.I32:
        raise ValueError(f"g_idx is {tensor.dtype}{list(tensor.shape)}, not I32[{spec.in_features}]")
    index = source.read_small(tensor.name)
    if np.array_equal(index, _trivial(spec.in_features, spec.weight.group_size or spec.in_features)):
        return False
    if index.min() < 0 or index.max() >= spec.scale_shape[1]:
        raise ValueError(f"g_idx has groups from {index.min()} to {index.max()} of {spec.scale_shape[1]}")
    return True


@lru_cache
def _trivial(in_features: int, group_size: int) -> Array:
    return (np.arange(in_features) // group_size).astype(np.int32)


def _zeros(
    source: Source, spec: Spec, scheme: Scheme, said: Zeros, dialect: dict[str, str], findings: Findings
) -> bool:
    """Whether every zero-point is the middle code; how they are stored goes to the dialect, by value."""
    tensor = source.tensors.get(f"{spec.name}.qzeros")
    bits, unit = spec.weight.bits, _word(spec)
    if tensor is None and not scheme.sym:
        raise ValueError("qzeros is absent, and the config says asymmetric")
    if tensor is None:
        dialect["zeros"] = "absent"
        return True
    wanted = _zero_codec(spec, "v2").stored_shape(spec.scale_shape, unit.itemsize * 8)
    if tensor.shape != wanted or tensor.dtype is not unit:
        raise ValueError(mismatch("qzeros", (tensor.dtype, tensor.shape), (unit, wanted)))
    stored = source.read_small(tensor.name)
    word = _only_word(stored, spec)
    version = _believed(_decoded(stored, word, spec, "v2"), spec, scheme, said.version, findings)
    if version == "v1" and said.version == "v1" and said.borrowed:
        version = "v1-words" if bits in ONES and unit is DType.I32 else "v1-wraps"
    if version == "v1" and (_decoded(stored, word, spec, "v2") == 2 ** (bits - 1) - 1).any():
        version = _all_ones(spec, findings)
    dialect["zeros"] = version
    symmetric = not np.any(_decoded(stored, word, spec, version))
    if scheme.sym and not symmetric:
        findings.add("QB029", spec.name, ("sym is true, and zero-points differ: they are read as stored",))
    return symmetric


def _believed(stored: Array, spec: Spec, scheme: Scheme, version: str, findings: Findings) -> str:
    """The version of zero-points, `stored` as if of version 2: the config's, unless symmetric ones are the other's.

    vLLM and Marlin's kernels never look at zero-points where the config says symmetric (vllm 0.33.0,
    quantization/gptq_marlin.py), so all that are alike in the middle are the middle code, whatever the label.
    """
    other, middle = ("v2", 0) if version == "v1" else ("v1", -1)
    if not stored.size or (stored != middle).any():
        return version
    if scheme.sym:
        fact = f"symmetric, and every stored zero-point is the middle code of version {other[1]}"
        findings.add("QB022", spec.name, (fact,))
        return other
    fact = f"sym is false, and every stored zero-point is the middle code of version {other[1]}"
    findings.add("QB029", spec.name, (f"{fact}: they are read as version {version[1]}, as the config says",))
    return version


def _only_word(stored: Array, spec: Spec) -> int | None:
    """The word that all of them are, as in symmetric weights, if one has whole zero-points."""
    whole = stored.size and _word(spec) is DType.I32 and 32 % spec.weight.bits == 0
    return int(stored.flat[0]) if whole and (stored == stored.flat[0]).all() else None


def _decoded(stored: Array, word: int | None, spec: Spec, version: str) -> Array:
    """The zero-points as a version reads them, those of one word where all are alike."""
    codec = _zero_codec(spec, version)
    return codec.decode(stored, DType.I16, spec.scale_shape) if word is None else _of_word(codec, word)


@lru_cache
def _of_word(codec: BitPacked, word: int) -> Array:
    return codec.values_of_word(word)


def _all_ones(spec: Spec, findings: Findings) -> str:
    """The reading of all-ones fields that the user has chosen; a finding that names both where none is."""
    bits = spec.weight.bits
    chosen = [word for word in ("wrap", "add") if f"v1-zeros-{word}" in findings.allow]
    if len(chosen) == 1:
        findings.add("QB024", spec.name, (f"--v1-zeros {chosen[0]}",))
        return "v1-wraps" if chosen[0] == "wrap" else "v1"
    readings = f"0 by wrapping, {2**bits} by adding"
    ways = (f"--v1-zeros wrap reads 0, --v1-zeros add reads {2**bits}",)
    findings.add("QB023", spec.name, (f"stored zero-points of all ones: {readings}",), ways)
    return "v1"


def zero_biases(source: Source, modules: Iterable[str]) -> set[str]:
    """Modules whose bias is all zero in every layer: those that AutoGPTQ added to linears without one.

    A linear that has a bias by its architecture is none of them, whatever its values.
    """
    by_leaf: dict[str, list[str]] = {}
    biased = Architecture.of(source.config).biased
    for module in modules:
        leaf = module.rpartition(".")[2]
        if f"{module}.bias" in source.tensors and leaf not in biased:
            by_leaf.setdefault(leaf, []).append(module)
    return {
        module
        for names in by_leaf.values()
        if not any(np.any(source.read_small(f"{name}.bias")) for name in names)
        for module in names
    }


def _word(spec: Spec) -> DType:
    return DType(dict(spec.dialect).get("words", "I32"))


def _planes(spec: Spec) -> tuple[int, ...]:
    planar = dict(spec.dialect).get("packing") == "planar"
    return PLANES.get(spec.weight.bits, ()) if planar else ()


def _zero_codec(spec: Spec, version: str) -> BitPacked:
    return _zeros_of(spec.weight.bits, _planes(spec), version)


@lru_cache
def _zeros_of(bits: int, planes: tuple[int, ...], version: str) -> BitPacked:
    middle = 2 ** (bits - 1)
    if version == "v1-words":
        return BitPacked(bits, 0, middle, True, word_minus=ONES[bits])
    if version == "v1-wraps":
        return BitPacked(bits, 0, middle - 1, True, wraps=True, planes=planes)
    return BitPacked(bits, 0, middle - (version == "v1"), True, planes=planes)


def _slots(spec: Spec) -> dict[str, Slot]:
    """The tensors of a spec; zero-points of version 1 where symmetric, else of 2, unless settled."""
    dialect, bits, word = dict(spec.dialect), spec.weight.bits, _word(spec)
    codes = BitPacked(bits, 1, 2 ** (bits - 1), True, planes=_planes(spec))
    rows, columns = spec.scale_shape
    zeros = _zero_codec(spec, dialect.get("zeros", "v1" if spec.weight.symmetric else "v2"))
    zero_codec: Codec = Filled(zeros, 0, spec.scale_shape) if spec.weight.symmetric else zeros
    index: Codec = PLAIN if spec.g_idx else GroupIndex(spec.weight.group_size or spec.in_features)
    shape, width = (spec.out_features, spec.in_features), word.itemsize * 8
    found = {
        "code": Slot(".qweight", word, codes.stored_shape(shape, width), codes),
        "scale": Slot(".scales", spec.scale_dtype, (columns, rows), TRANSPOSED),
    }
    if dialect.get("zeros") != "absent":
        found["zero"] = Slot(".qzeros", word, zeros.stored_shape(spec.scale_shape, width), zero_codec)
    if dialect.get("g_idx") != "absent":
        found["g_idx"] = Slot(".g_idx", DType.I32, (spec.in_features,), index)
    if spec.bias is not None:
        found["bias"] = Slot(".bias", spec.bias, (spec.out_features,))
    elif dialect.get("bias") == "zeros":
        found["bias"] = Slot(".bias", spec.scale_dtype, (spec.out_features,), ZEROS)
    return found


layout = by_kind(_slots)


def with_zeros(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """The specs with one version of zero-points: that which they have, else 1 if all are symmetric, else 2."""
    kept = {dict(spec.dialect).get("zeros") for spec in specs.values()} - {None, "absent"}
    if len(kept) == 1:
        version = str(kept.pop())
    else:
        version = "v1" if all(spec.weight.symmetric for spec in specs.values()) else "v2"
    return {
        name: replace(spec, dialect=tuple(sorted({"zeros": version, **dict(spec.dialect)}.items())))
        for name, spec in specs.items()
    }
