"""The canonical quantized IR: one meaning, whatever the bytes.

    W[o, i] = (code[o, i] - zero[o, g(i)]) * scale[o, g(i)]  [+ offset[o, g(i)]]  [* or / global_scale]

A `Spec` describes one quantized linear without data, a `Layer` is a spec with arrays, a `Model` holds the specs
of a checkpoint with everything that is not quantized. Integer codes are signed two's complement whatever
a format stores, zeros live in the same signed domain; float codes are raw bits; codes with float offsets (`affine`)
count from 0; scales keep their stored dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.slots import Slot

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype and shape of a tensor that is not quantized, and its name on disk."""

    dtype: DType
    shape: tuple[int, ...]
    stored: str


@dataclass(frozen=True, slots=True)
class Rearranged:
    """An unquantized linear that is written elsewhere than it lies: its weight, of `spec`, by either slot.

    `dims` are those that it is written with, where they are others: zeros are added, or it is cropped.
    """

    spec: Spec
    read: Slot
    write: Slot
    dims: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Model:
    """A checkpoint as its format describes it, without weight data.

    `config` is the Hugging Face config without any quantization block. `slots` gives, by layer and part, the
    tensor that holds it on disk. `tensors` are the ones that are carried over as they are. `tokenizer` is
    tokenizer_config.json, empty if there is none. `kv_cache` is the scheme of stored kv-cache scales, whose tensors
    (`is_kv_scale`) are among `tensors`. `consumed` are side files that say how some
    checkpoint is quantized, so that they are not carried over, whatever the format. `block` is the quantization block
    that its source had, read in the format `origin`: what it lists can be listed again in the same words.
    `rearranged` are unquantized linears, by name, whose tensors are among `tensors` as they will be; `arrangement` is
    how they lie, as the manifest records it.
    """

    format: str
    config: Mapping[str, Any]
    specs: Mapping[str, Spec]
    slots: Mapping[str, Mapping[str, Slot]]
    tensors: Mapping[str, TensorInfo]
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    kv_cache: Mapping[str, Any] = field(default_factory=dict)
    consumed: frozenset[str] = frozenset()
    block: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""
    rearranged: Mapping[str, Rearranged] = field(default_factory=dict)
    arrangement: Mapping[str, Any] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        return f"<Model: {self.format}, {len(self.specs)} layers, {len(self.tensors)} other tensors>"

    def once(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """What `find` gives, asked once for a key: so that no layer asks about the whole model again."""
        if key not in self._known:
            self._known[key] = find()
        found: Found = self._known[key]
        return found

    def stored_in(self, tensor: str) -> list[str]:
        """The names on disk of what an unquantized tensor is made of: of itself, or of what will be in it."""
        return list(self.made.get(tensor, (self.tensors[tensor].stored,)))

    @property
    def made(self) -> Mapping[str, Mapping[str, None]]:
        """By tensor that rearranged linears are written to, the tensors on disk that they lie in."""
        return self.once("made", self._made)

    def _made(self) -> dict[str, dict[str, None]]:
        found: dict[str, dict[str, None]] = {}
        for linear in self.rearranged.values():
            found.setdefault(linear.write.whole, {})[linear.read.tensor] = None
        return found

    @property
    def architecture(self) -> str:
        """The model class that config.json names, or an empty string."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""
