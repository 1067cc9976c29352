"""Tensor parallelism: what a rank's share of each linear must be, by engine, and the way out where it is not.

A quantization group that crosses the border of two ranks has its scale on one of them only. Sources: vllm 0.33.0,
model_executor/layers/quantization (create_weights of GPTQ, AWQ and compressed-tensors) and
kernels/linear/mixed_precision; vllm 0.5.4 and 0.23.0, layers/quantization/utils/marlin_utils.py; lmdeploy 0.18.0,
pytorch/nn/linear/awq.py and turbomind/linear.py.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import gcd, lcm

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.growth import growth
from qbridge.architecture.names import is_routed
from qbridge.findings.way import Way
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.passes import Pass
from qbridge.passes.regroup import Regroup
from qbridge.targets.blocks import BlockLimits
from qbridge.targets.fusion import COMMON, Fusion
from qbridge.targets.shares import Once, Share, alike, columns, has_one_size, held, rank_outputs


@dataclass(frozen=True, slots=True)
class Parallel:
    """An engine's limits on what one rank holds.

    `sizes` are the group sizes that it has kernels for, largest first; `mixes` the formats in which every layer may
    have its own. `inputs` and `outputs` are what in_features and out_features per rank must be multiples of;
    `whole_outputs` wants outputs in multiples of the group as well; `whole_channels` are formats in which one scale
    per channel cannot be given to several ranks, `whole_groups` those in which a rank gets whole groups, as many as
    there are. `pads_mlps` engines pad MLPs when they load them; in formats of `halves` (with where that was read)
    they halve the groups of experts themselves, for a slower kernel. Classes of `an_expert_each` refuse more ranks
    than a layer has routed experts. `straddled` is what happens to a group that straddles two ranks, by format, where
    it depends on that. `blocks` are the limits on blocks of float8 weights. `source` says where that was read.
    `fused` are the linears that it builds as one. Ranks share the rows of embeddings and heads, padded to a multiple
    of `vocabulary`; 0 where it is not known that they do. In formats of `words` codes are a stream of 32-bit words
    along in_features, of which a rank must get whole ones.
    """

    sizes: tuple[int, ...]
    mixes: frozenset[str] = frozenset()
    inputs: int = 1
    outputs: int = 1
    whole_outputs: bool = False
    whole_channels: frozenset[str] = frozenset()
    whole_groups: frozenset[str] = frozenset()
    pads_mlps: bool = False
    an_expert_each: frozenset[str] = frozenset()
    halves: Mapping[str, str] = field(default_factory=dict)
    straddled: Mapping[str, str] = field(default_factory=dict)
    blocks: BlockLimits | None = None
    source: str = ""
    fused: Fusion = COMMON
    vocabulary: int = 0
    words: frozenset[str] = frozenset()

    def multiple(self, spec: Spec, tp: int) -> int:
        """What the intermediate size of a down projection must be a multiple of."""
        return lcm(spec.weight.group_size or 1, *(spec.weight.block or ()), self.inputs, self.outputs, 32) * tp

    def rules(self, format_name: str, sizes: tuple[int, ...]) -> tuple[Rule, ...]:
        """The limits at some tensor-parallel sizes."""
        found: list[Rule] = []
        once = Once()
        if sizes != (1,) and self.pads_mlps:
            found.append(ModelRule("QB255", self._pads(sizes), self.source))
        if sizes != (1,):
            found += [
                ModelRule("QB250", self._too_many(sizes), self.source),
                ModelRule("QB252", _unknown, self.source),
            ]
        if sizes != (1,) and format_name not in self.whole_groups:
            split = self._split(format_name, sizes, once)
            found.append(LayerRule("QB251", self._straddle(format_name, sizes, once), self.source, split))
        if sizes != (1,) and format_name in self.words:
            found.append(LayerRule("QB227", self._words(format_name, sizes, once), self.source))
        if format_name in self.halves:
            found.append(ModelRule("QB228", _halved(sizes), self.halves[format_name]))
        if self.inputs > 1 or self.outputs > 1:
            found.append(ModelRule("QB253", self._tiles(format_name, sizes, once), self.source))
        if self.blocks:
            pads = partial(self._pads_to_fit, sizes=sizes, once=once)
            found += self.blocks.rules(sizes, self.fused, format_name, pads)
        return tuple(found)

    def shares(self, spec: Spec, model: Model, sizes: tuple[int, ...]) -> Iterator[Share]:
        """The shares that groups must divide.

        There is one for each tensor-parallel size: how many input features a rank holds. Where the outputs of a
        column-parallel layer are to be whole groups as well, there is another for these.
        """
        leaf = spec.name.rpartition(".")[2]
        for tp in sizes:
            rank = held(spec, model, tp)
            if rank is None or rank.fault or (self.pads_mlps and leaf in _MLPS):
                continue
            yield Share(tp, rank.in_features, "in_features")
            if self.whole_outputs and tp > 1 and rank.axis == "column":
                yield Share(tp, rank.out_features, "out_features")

    def straddles(self, spec: Spec, model: Model, sizes: tuple[int, ...]) -> list[Share]:
        """The shares that are no whole groups, or blocks of inputs; of all inputs, the last block may be cut off."""
        size = columns(spec)
        if size is None:
            return []
        uneven = [share for share in self.shares(spec, model, sizes) if share.features % size]
        if spec.weight.block is None:
            return uneven
        return [share for share in uneven if share.axis == "in_features" and share.features < share.whole(spec)]

    def best_size(self, specs: list[Spec], model: Model, sizes: tuple[int, ...]) -> int | None:
        """The largest group size with a kernel that divides every share of some layers, and their own sizes.

        None if there is none, or if the groups of one of them cannot be split.
        """
        common = 0
        if any(has_one_size(spec) for spec in specs):
            return None
        for spec in specs:
            common = gcd(common, spec.weight.group_size or spec.in_features)
            for share in self.shares(spec, model, sizes):
                common = gcd(common, share.features)
        return next((size for size in self.sizes if common and common % size == 0), None)

    def _key(self, spec: Spec, format_name: str) -> str:
        """What the layers that must have one group size with this one have in common: their experts, or nothing."""
        if format_name not in self.mixes:
            return ""
        block, experts, _ = spec.name.partition(".experts.")
        return f"{block}{experts}" if experts else spec.name

    def _scope(self, spec: Spec, model: Model, format_name: str, once: Once) -> list[Spec]:
        """The layers that the engine wants in one group size with this one.

        Only itself; the experts of its block; or every layer of the model that has codes of its kind, as the passes
        so far have left this one.
        """
        key = self._key(spec, format_name)
        if key == spec.name:
            return [spec]
        if key:
            return once(model, ("experts", format_name), lambda: self._by_key(model, format_name))[key]
        own = spec.weight
        mates = [other for other in alike(model) if (other.weight.type, other.weight.block) == (own.type, own.block)]
        kinds = (replace(own, bits=other.weight.bits, symmetric=other.weight.symmetric) for other in mates)
        return [replace(other, weight=kind) for other, kind in zip(mates, kinds, strict=True)]

    def _by_key(self, model: Model, format_name: str) -> dict[str, list[Spec]]:
        """The layers of each key, one for all that are alike: experts of a layer are split alike."""
        found: dict[str, dict[Hashable, Spec]] = {}
        for spec in alike(model):
            kind = spec.name.rpartition(".")[2], spec.out_features, spec.in_features, spec.weight
            found.setdefault(self._key(spec, format_name), {}).setdefault(kind, spec)
        return {key: list(specs.values()) for key, specs in found.items()}

    def _pads(self, sizes: tuple[int, ...]) -> Callable[[Model], Iterator[Problem]]:
        def check(model: Model) -> Iterator[Problem]:
            for tp in sizes:
                for name, spec in model.specs.items():
                    step = (spec.weight.group_size or 1) * tp
                    if name.rpartition(".")[2] in ("down_proj", "w2") and spec.in_features % step:
                        fact = f"{spec.in_features} -> {-(-spec.in_features // step) * step} (tp {tp})"
                        yield Problem((fact,), where=(name,))

        return check

    def _straddle(
        self, format_name: str, sizes: tuple[int, ...], once: Once
    ) -> Callable[[Spec, Model], Problem | None]:
        def find(spec: Spec, model: Model) -> Problem | None:
            size = columns(spec)
            if size is None and format_name in self.whole_channels and max(sizes) > 1:
                fact = f"one scale per channel, which {format_name} gives to one of {max(sizes)} ranks"
                return Problem((fact,), tuple(self.ways_out(spec, model, format_name, sizes, once)))
            if size is None or (spec.weight.block and self.blocks):  # of blocks, QB273 says it
                return None
            scope = self._scope(spec, model, format_name, once)
            worst = next((other for other in scope if self.straddles(other, model, sizes)), None)
            if worst is None:
                return None
            best = self.best_size(scope, model, sizes)
            if best is not None and (size <= best or (".experts." in spec.name and format_name in self.halves)):
                return None  # split already, or by the engine
            share, width = self.straddles(worst, model, sizes)[0], columns(worst) or 1
            groups = f"{share.features} = {share.features / width:g} groups of {width}"
            leaf = f"{worst.name.rpartition('.')[2]}: " if len(scope) > 1 else ""  # the finding is about all of them
            fact = f"{leaf}{share.axis} {share.whole(worst)}, per rank {groups} (tp {share.tp})"
            happens = self.straddled.get(format_name, self.straddled.get("", ""))
            facts = (fact, happens) if happens else (fact,)
            return Problem(facts, tuple(self.ways_out(worst, model, format_name, sizes, once)))

        def check(spec: Spec, model: Model) -> Problem | None:
            key = self._key(spec, format_name), spec.weight.granularity, spec.weight.group_size
            return once(model, ("straddle", *key), lambda: find(spec, model))

        return check

    def _words(self, format_name: str, sizes: tuple[int, ...], once: Once) -> Callable[[Spec, Model], Problem | None]:
        def check(spec: Spec, model: Model) -> Problem | None:
            packed = spec.weight.type == "int" and spec.activation is None
            for share in self.shares(spec, model, sizes) if packed else ():
                if share.features < share.whole(spec) and share.features * spec.weight.bits % 32:
                    fact = f"{share.features} inputs per rank (tp {share.tp}) are no whole 32-bit words of codes"
                    return Problem((fact,), tuple(self.ways_out(spec, model, format_name, sizes, once)))
            return None

        return check

    def _split(self, format_name: str, sizes: tuple[int, ...], once: Once) -> Callable[[Spec, Model], Pass | None]:
        def fix(spec: Spec, model: Model) -> Pass | None:
            best = self._best(spec, model, format_name, sizes, once)
            return None if best is None else Regroup(best)

        return fix

    def _best(self, spec: Spec, model: Model, format_name: str, sizes: tuple[int, ...], once: Once) -> int | None:
        """The largest group size for a layer and all that must be like it."""
        key = self._key(spec, format_name), spec.weight.granularity, spec.weight.group_size
        return once(
            model,
            ("best", *key),
            lambda: self.best_size(self._scope(spec, model, format_name, once), model, sizes),
        )

    def _faults(self, model: Model, tp: int) -> list[str]:
        """Why so many ranks cannot share a model, whatever its format."""
        architecture = Architecture.of_model(model)
        faults, experts = [*architecture.head_faults(tp)], architecture.experts
        if model.architecture in self.an_expert_each and 0 < experts < tp:
            faults.append(f"{experts} routed experts, and the class wants no more ranks than experts")
        return faults

    def _too_many(self, sizes: tuple[int, ...]) -> Callable[[Model], Iterator[Problem]]:
        def check(model: Model) -> Iterator[Problem]:
            for tp in sizes:
                for fault in self._faults(model, tp):
                    yield Problem((f"{fault} (tp {tp})",), where=("config.json",))

        return check

    def _legal(self, model: Model, tp: int) -> bool:
        """Whether a whole model is legal at a size, as it is."""
        whole = (tp,)
        return (
            not self._faults(model, tp)
            and not any(self.straddles(spec, model, whole) for spec in alike(model))
            and not any(True for _ in self._misfits(model, whole))
        )

    def ways_out(
        self, spec: Spec, model: Model, format_name: str, sizes: tuple[int, ...], once: Once
    ) -> Iterator[Way]:
        """Options that make a layer legal, cheapest first."""
        best = self._best(spec, model, format_name, sizes, once)
        misfits = once(model, "misfits", lambda: {name for name, *_ in self._misfits(model, sizes)})
        if best is not None and spec.name not in misfits:
            yield Way("--regroup", best, "scales repeated, no weight changes", exact=True)
        yield from self._pads_to_fit(spec, model, sizes, once)
        sizes_below = range(max(sizes) - 1, 0, -1)
        fits = once(model, "fits", lambda: next((tp for tp in sizes_below if self._legal(model, tp)), None))
        if fits:
            yield Way("--tp", fits, "fewer GPUs")

    def _pads_to_fit(self, spec: Spec, model: Model, sizes: tuple[int, ...], once: Once) -> Iterator[Way]:
        """Padding, where that makes the MLP of a layer legal."""
        pads = once(model, "growth", lambda: growth(model, sizes, self.multiple))
        if spec.name in pads.passes:
            grown = pads.passes[spec.name]
            old, new = spec.in_features, grown.in_features
            if new == old:  # gate or up
                old, new = spec.out_features, grown.out_features
            if new > old:
                note = f"{old} -> {new}, {100 * (new - old) / old:+.2f} %, undone by qbridge restore"
                yield Way("--pad", note=note, exact=True)

    def _misfits(self, model: Model, sizes: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        """(name, fact) of every linear that does not fit the tiles; experts have kernels of their own.

        How ranks share a linear may be unknown; one rank has the whole of it.
        """
        if self.inputs == self.outputs == 1:
            return
        architecture = Architecture.of_model(model)
        decoder = architecture.is_decoder if architecture.known else lambda name: False
        own = [name for name in model.specs if ".experts." not in name]
        fused = {name: names for names in self.fused.siblings(model, own) for name in names}
        for name in own:
            spec = model.specs[name]
            if spec.activation is not None:
                continue
            for tp in sizes:
                rank = held(spec, model, tp)
                if rank.fault if rank else tp > 1 or not decoder(name):
                    continue
                together = sum(rank_outputs(model, other, tp) for other in fused.get(name, [name]))
                for kind, size, least, letter in (
                    ("input", rank.in_features if rank else spec.in_features, self.inputs, "k"),
                    ("output", together, self.outputs, "n"),
                ):
                    if size % least:
                        what = f"{kind}_size_per_partition = {size}"
                        yield name, f"{what} is not divisible by min_thread_{letter} = {least} (tp {tp})"

    def _tiles(self, format_name: str, sizes: tuple[int, ...], once: Once) -> Callable[[Model], Iterator[Problem]]:
        def check(model: Model) -> Iterator[Problem]:
            for name, fact in self._misfits(model, sizes):
                help = tuple(self.ways_out(model.specs[name], model, format_name, sizes, once))
                yield Problem((fact,), help, (name,))

        return check


_MLPS = frozenset({"down_proj", "gate_proj", "up_proj", "gate_up_proj", "w1", "w2", "w3"})


def _halved(sizes: tuple[int, ...]) -> Callable[[Model], Iterator[Problem]]:
    """Experts whose groups Marlin does not take and another kernel halves until they fit, down to 32."""

    def check(model: Model) -> Iterator[Problem]:
        found: dict[str, list[str]] = {}
        for name, spec in model.specs.items():
            size = spec.weight.group_size
            if not is_routed(name) or size is None:
                continue
            for tp in sizes:
                rank = Architecture.of_model(model).rank(name, spec.dims, tp)
                if rank is None or rank.fault:
                    continue
                half = size
                while half > 32 and rank.in_features % half:
                    half //= 2
                if half != size and rank.in_features % half == 0:
                    found.setdefault(f"groups of {size} become {half} (tp {tp})", []).append(name)
        for fact, names in found.items():
            yield Problem((fact,), where=tuple(names))

    return check


def _unknown(model: Model) -> Iterator[Problem]:
    if not Architecture.of_model(model).shards:
        named = model.architecture or "config.json names no architecture"
        yield Problem(("dims are judged without tensor parallelism",), where=(named,))


# A format by its own name: whole groups on every rank, whoever reads it.
ANY = Parallel(
    (128, 64, 32, 16), frozenset({"auto-round", "compressed-tensors", "gptq"}), source="qbridge.targets.parallel"
)
