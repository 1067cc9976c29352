"""What a person asks of a command beyond its source and target: one set of options for every command."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, cast

from qbridge.architecture.experts import FUSED, SEPARATE
from qbridge.architecture.prefixes import Prefix, check_prefixes, pairs_of
from qbridge.findings.arguments import typed, wrong_type
from qbridge.findings.catalogue.code import ALLOW, CHOICES
from qbridge.findings.finding import error
from qbridge.findings.hints import did_you_mean
from qbridge.ir.layer import Spec
from qbridge.ir.scheme import DENSE, Granularity
from qbridge.passes import Pass
from qbridge.passes.regroup import Regroup
from qbridge.passes.widen import Widen
from qbridge.plan.casting import CASTS
from qbridge.targets.target import Target

MEMORY = 512 * 10**6  # bytes beyond those of the idle program
LEAST_MEMORY = 64 * 10**6  # of them: compiled kernels, and one thread
MOST_RANKS = 1 << 16  # more than any engine runs on; what divides a size is counted up to it


def check_sizes(sizes: tuple[int, ...]) -> None:
    """ValueError for tensor-parallel sizes that there are not."""
    if not sizes or min(sizes) < 1:
        raise ValueError("tensor-parallel sizes are positive")
    if max(sizes) > MOST_RANKS:
        raise ValueError(f"a tensor-parallel size is at most {MOST_RANKS}")


@dataclass(frozen=True, slots=True)
class Options:
    """The options of every command; each takes those that mean something to it. ValueError for what means nothing.

    Decided before anything is written (convert, stream, a dry run; check asks for `tp` alone):

    - `tp`: tensor-parallel sizes, one or several, at each of which the output is legal.
    - `pad`: MLPs may grow for that; exact, and undone by restore.
    - `regroup`: the group size to have, in weights of a row, 8 or more.
    - `bits`: the width to widen narrower codes to, 4 or 8.
    - `cast`: the number format to have, fp8 (also fp8-block, fp8-channel, fp8-tensor), nvfp4, mxfp8 or int8.
    - `keep_undo`: what a cast forgets is stored beside the manifest.
    - `passes`: False allows nothing but a change of layout.
    - `dtype`: of dense weights: float16, bfloat16 or float32; empty: config.json's.
    - `experts`: how unquantized ones are stored, fused or separate; empty: as they are, or as the target needs them.
    - `graft`: the unquantized original, whose tensors are taken where the source has none; empty: none.
    - `rename_prefix`: what names begin with and shall begin with, each of whole modules; pairs, or a mapping such as
      `{"model.language_model": "model"}`.
    - `link`: files whose bytes do not change are linked, not written: blocks shared, a hard link, or a symbolic one.

    Kept to while it works (convert, stream, restore, verify):

    - `jobs`: threads; 0: one for each core.
    - `memory`: bytes to work in beyond the idle program's, `LEAST_MEMORY` or more.
    - `proof`: what is written is read back and compared, layer by layer; linked files are not.
    - `card`: README.md is written anew (convert): metadata that holds, what was done, and below it the source's text;
      without it the source's is carried over as it is.
    """

    tp: tuple[int, ...] = (1,)
    pad: bool = False
    regroup: int | None = None
    bits: int | None = None
    passes: bool = True
    dtype: str = ""
    experts: str = ""
    graft: str = ""
    rename_prefix: tuple[Prefix, ...] = ()
    link: bool = False
    jobs: int = 0
    memory: int = MEMORY
    proof: bool = True
    card: bool = True
    cast: str = ""
    keep_undo: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning, and values of another type (TypeError)."""
        _check_types(self)
        check_sizes(self.tp)
        if self.regroup is not None and self.regroup < 8:
            raise ValueError("a group has 8 weights or more")
        if self.bits not in (None, 4, 8):
            raise ValueError("codes are widened to 4 or 8 bits")
        if self.dtype and self.dtype not in DENSE:
            raise ValueError(f"dense weights are {', '.join(DENSE)}")
        if self.experts not in ("", FUSED, SEPARATE):
            raise ValueError(f"experts are {FUSED} or {SEPARATE}")
        if self.cast not in ("", *CASTS):
            raise ValueError(f"a cast is one of {', '.join(CASTS)}")
        if self.keep_undo and not self.cast:
            raise ValueError("what a cast forgets is kept, and none is asked for")
        if not self.passes and (self.pad or self.regroup or self.bits or self.cast):
            raise ValueError("no passes are allowed, and some are asked for")
        check_prefixes(self.rename_prefix)
        check_effort(self.jobs, self.memory)

    @classmethod
    def of(cls, target: Target, tp: int | Sequence[int] = 1, **fields: Any) -> Options:
        """The options of a command that has a target; ValueError also for what means nothing to the target.

        `graft` may be any path, `rename_prefix` a mapping or pairs, with or without dots at their ends.
        """
        fields["graft"] = os.fspath(fields.get("graft", ""))
        fields["rename_prefix"] = pairs_of(fields.get("rename_prefix", ()))
        options = cls(sizes(tp), **fields)
        if options.dtype and target.formats != ("dense",):
            raise ValueError("dtype goes with the target dense")
        return options

    def steps(self, spec: Spec) -> Iterator[Pass]:
        """The passes on one layer that were asked for, padding aside."""
        weight = spec.weight
        if self.bits is not None and weight.type == "int" and weight.bits < self.bits:
            yield Widen(self.bits)
        grouped = weight.granularity in (Granularity.GROUP, Granularity.CHANNEL) and spec.activation is None
        if self.regroup is not None and grouped:
            size = gcd(self.regroup, spec.in_features) if spec.in_features % self.regroup else self.regroup
            if size != weight.group_size:
                yield Regroup(size)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "pad": (bool,),
    "regroup": (int, type(None)),
    "bits": (int, type(None)),
    "cast": (str,),
    "keep_undo": (bool,),
    "passes": (bool,),
    "dtype": (str,),
    "experts": (str,),
    "link": (bool,),
    "jobs": (int,),
    "memory": (int,),
    "proof": (bool,),
    "card": (bool,),
}


def _check_types(options: Options) -> None:
    for name, kinds in _KINDS.items():
        typed(name, getattr(options, name), *kinds)


def sizes(tp: int | Sequence[int]) -> tuple[int, ...]:
    """Tensor-parallel sizes, one or several; TypeError for what is neither."""
    several = tuple(tp) if isinstance(tp, Iterable) and not isinstance(tp, str | bytes) else (tp,)
    for size in several:
        typed("tp", size, int)
    return cast(tuple[int, ...], several)


def allowed(allow: Iterable[str]) -> frozenset[str]:
    """The words of `allow`; TypeError for what is no collection of words, QBridgeError (QB030) for another word."""
    if isinstance(allow, str | bytes) or not isinstance(allow, Iterable):
        raise wrong_type(f"allow is a collection of words, such as ['rounded'], not {allow!r}")
    words = tuple(allow)
    for word in words:
        typed("a word of allow", word, str)
    for word in sorted(frozenset(words) - ALLOW.keys() - CHOICES.keys()):
        raise error("QB030", f"--allow {word}", help=did_you_mean(word, ALLOW, "`qbridge convert --help`"))
    return frozenset(words)


def check_effort(jobs: int, memory: int) -> None:
    """ValueError for numbers that mean nothing, and for less memory than one thread and its kernels take."""
    if jobs < 0:
        raise ValueError("jobs are 0, for one on each core, or more")
    if memory < LEAST_MEMORY:
        raise ValueError(f"memory is {LEAST_MEMORY // 10**6} MB at least")


DEFAULTS = Options()
