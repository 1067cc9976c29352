"""How many bytes of weights one rank of an engine holds, as they are stored.

Linears count by the share that `Architecture.rank` gives: codes, scales and zero-points of the rows or columns that
a rank has, all scales per channel and all biases of row-parallel ones, all of what is replicated. Embeddings and
heads count as `Parallel.vocabulary` says. Kernels that pack or pad anew when they load may need a bit more or less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_embedding, is_fused_experts, is_head, is_norm, module_of, without_expert
from qbridge.architecture.parallel import Rank
from qbridge.ir.dtypes import DType, nbytes
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import Granularity
from qbridge.targets.common import model_dtype
from qbridge.targets.parallel import Parallel

_BY_COLUMN = frozenset({Granularity.GROUP, Granularity.BLOCK})  # scales that lie along in_features
_KINDS: Mapping[str, int] = {"code": 0, "scale": 1, "zero": 1, "offset": 1, "g_idx": 2}  # what else there is: 3
_Bytes = tuple[int, int, int, int]  # of codes; of scales and zero-points; of g_idx; of what else there is


@dataclass(frozen=True, slots=True)
class RankWeights:
    """The bytes that one rank holds; unless `exact`, that many at most, by what is not known to be shared."""

    bytes: int
    exact: bool

    def as_dict(self) -> dict[str, int | bool]:
        """As JSON."""
        return {"bytes": self.bytes, "exact": self.exact}


def rank_weights(model: Model, parallel: Parallel, tp: int) -> RankWeights | None:
    """What each of `tp` ranks holds; None where the model cannot be split so."""
    total, exact = Fraction(0), bool(model.slots) or not model.specs
    for (spec, sizes), count in _alike(model).items():
        held = Architecture.of_model(model).rank(spec.name, spec.dims, tp)
        if held is not None and held.fault:
            return None
        exact = exact and (tp == 1 or held is not None)
        total += count * (_share(spec, held, sizes) if held else sum(sizes))
    for name, info in model.tensors.items():
        share = _unquantized(name, info, model, parallel, tp)
        exact = exact and share is not None
        total += _size(info, model) * (1 if share is None else share)
    return RankWeights(ceil(total), exact)


def _alike(model: Model) -> Mapping[tuple[Spec, _Bytes], int]:
    """How many layers there are of each kind that ranks share alike, with the bytes of one; counted once."""

    def find() -> Mapping[tuple[Spec, _Bytes], int]:
        first: dict[tuple[object, ...], Spec] = {}
        found: Counter[tuple[Spec, _Bytes]] = Counter()
        counted: set[str] = set()
        for name, spec in model.specs.items():
            key = (without_expert(name), spec.dims, spec.weight.granularity)
            found[first.setdefault(key, spec), _stored(spec, model, counted)] += 1
        return found

    return model.once(_alike, find)


def _stored(spec: Spec, model: Model, counted: set[str]) -> _Bytes:
    """The bytes of a layer on disk, or those that its scheme takes where there is no tensor.

    A tensor of which several layers have a part counts in parts; one that all of them have whole counts once.
    """
    if spec.name not in model.slots:
        codes = spec.out_features * spec.in_features * spec.weight.bits // 8
        scales = 0 if spec.weight.is_dense else nbytes(spec.scale_dtype, spec.scale_shape)
        return codes, scales, 0, 0
    found = [0, 0, 0, 0]
    for part, slot in model.slots[spec.name].items():
        if slot.codec.common and slot.tensor in counted:
            continue
        counted |= {slot.tensor} if slot.codec.common else set()
        kind = _KINDS.get(part, 3) if prod(slot.shape) > 1 else 3
        found[kind] += nbytes(slot.dtype, slot.shape) // len(slot.codec.turns)
    return found[0], found[1], found[2], found[3]


def _share(spec: Spec, held: Rank, sizes: _Bytes) -> Fraction:
    """One rank's part of a quantized linear."""
    codes, scales, inputs, others = sizes
    share = _part(held, spec.dims)
    if held.axis == "row":
        return share * (codes + inputs) + (share if spec.weight.granularity in _BY_COLUMN else 1) * scales + others
    return share * (codes + scales) + inputs + others


def _part(held: Rank, dims: tuple[int, int]) -> Fraction:
    return Fraction(held.out_features * held.in_features, dims[0] * dims[1])


def _size(info: TensorInfo, model: Model) -> int:
    """The bytes of an unquantized tensor once it has the model dtype, which no engine widens it to."""
    size = nbytes(info.dtype, info.shape)
    wanted = model_dtype(model, DType.F16).itemsize
    return size * min(info.dtype.itemsize, wanted) // info.dtype.itemsize if info.dtype.is_float else size


def _unquantized(name: str, info: TensorInfo, model: Model, parallel: Parallel, tp: int) -> Fraction | None:
    """The part of an unquantized tensor that a rank holds; None where nobody knows, and all of it counts."""
    if tp == 1:
        return Fraction(1)
    module, leaf = module_of(name)
    if (is_embedding(module) or is_head(module)) and leaf == "weight":
        return next(_rows(info, parallel, tp), None)
    if is_norm(module):
        return Fraction(1)
    if len(info.shape) == 3 and is_fused_experts(name):
        return Fraction(1, tp)
    return _linear(module, leaf, model, tp)


def _rows(info: TensorInfo, parallel: Parallel, tp: int) -> Iterator[Fraction]:
    """A rank's part of a padded vocabulary, where it is known how the engine pads it."""
    if parallel.vocabulary and info.shape and info.shape[0]:
        padded = -(-info.shape[0] // parallel.vocabulary) * parallel.vocabulary
        yield Fraction(padded, tp * info.shape[0])


def _linear(module: str, leaf: str, model: Model, tp: int) -> Fraction | None:
    """A rank's part of a linear that is not quantized, or of the bias of any."""
    weight = model.tensors.get(f"{module}.weight")
    dims = model.specs[module].dims if module in model.specs else weight.shape if weight else ()
    if len(dims) != 2:
        return None
    held = Architecture.of_model(model).rank(module, (dims[0], dims[1]), tp)
    if held is None or held.fault:
        return None
    if leaf == "bias" and held.axis == "row":
        return Fraction(1)
    return _part(held, (dims[0], dims[1]))
