"""The Format protocol, the registry of formats, and detection by content.

A format is a module; its file name is its id with `-` as `_`. Built-in ones live in `qbridge_formats`, others come
through the entry-point group `qbridge.formats`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

import numpy as np

from qbridge.dtypes import Array
from qbridge.findings import Findings, QBridgeError, error
from qbridge.ir import Layer, Model, Spec, TensorInfo
from qbridge.layout import Slot
from qbridge.rules import Rule
from qbridge.source import SMALL, Source
from qbridge.topology import canonical_tensor, module_of, unclaimed

BUILTIN = (
    "auto-round",
    "awq",
    "compressed-tensors",
    "dense",
    "fp8",
    "gptq",
    "marlin",
    "modelopt",
    "mxfp4",
    "smooth-quant",
)

# quant_method values of checkpoints that no format here reads yet, with what they are.
KNOWN_METHODS: Mapping[str, str] = {
    "aqlm": "AQLM vector codes",
    "bitnet": "BitNet ternary weights",
    "bitsandbytes": "bitsandbytes (LLM.int8, NF4, FP4)",
    "eetq": "EETQ int8",
    "exl2": "ExLlamaV2",
    "exl3": "ExLlamaV3",
    "gguf": "GGUF (llama.cpp)",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "paroquant": "ParoQuant (rotated weights)",
    "qqq": "QQQ (W4A8 with scales of two levels)",
    "quanto": "optimum-quanto",
    "quark": "AMD Quark",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}


@dataclass(frozen=True, slots=True)
class Match:
    """Evidence that a checkpoint has a format: 2 when its config says so, 1 when only its tensors do."""

    score: int
    because: str


class Format(Protocol):
    """One on-disk layout.

    Three things a module may leave out: `CONFIG_FILES`, the names of the files beside config.json in which its tools
    say again how the model is quantized; `side_files(block)`, those of them that are written, by name, from the block
    that `config` gives; and `KEEPS_INPUT_DETAILS`, whether its config can say a limit of inputs, or how scales are
    rounded.
    """

    @property
    def NAME(self) -> str:
        """The id, as after --from and --to."""

    @property
    def SUMMARY(self) -> str:
        """One line for `qbridge formats`."""

    @property
    def ALIASES(self) -> tuple[str, ...]:
        """Other names after --from and --to."""

    @property
    def RULES(self) -> tuple[Rule, ...]:
        """What the layout can hold."""

    def sniff(self, source: Source) -> Match | str:
        """Evidence that the checkpoint is of this format, or the reason why not."""

    def read(self, source: Source, findings: Findings) -> Model:
        """The checkpoint's model from config and headers; every fault becomes a finding."""

    def settle(self, model: Model) -> Model:
        """A legal model with what must be the same for all its layers put into their dialects."""

    def layout(self, spec: Spec) -> dict[str, Slot]:
        """The slot of every part of a spec that the rules let through."""

    def config(self, model: Model) -> dict[str, Any]:
        """The quantization block of config.json."""


@lru_cache(maxsize=1)
def registry() -> Mapping[str, str]:
    """Format name to the module that holds it, built-in ones first."""
    found = {name: f"qbridge_formats.{name.replace('-', '_')}" for name in BUILTIN}
    for point in entry_points(group="qbridge.formats"):
        found.setdefault(point.name, point.value)
    return found


_MEMBERS = ("NAME", "SUMMARY", "ALIASES", "RULES", "sniff", "read", "settle", "layout", "config")
_OPTIONAL = ("CONFIG_FILES", "side_files", "KEEPS_INPUT_DETAILS")


@cache
def load(name: str) -> Format:
    """A format by its id; QBridgeError (QB032) if its module cannot be imported or is no format.

    What a third party's format raises later is the same error, so that it is nobody else's crash.
    """
    with _blamed(name):
        module = import_module(registry()[name])
        for member in _MEMBERS:
            if not hasattr(module, member):
                raise AttributeError(f"it lacks {member}")
        for member in _OPTIONAL:
            getattr(module, member, None)  # a module may make its members when asked
    return cast(Format, module if name in BUILTIN else _Guarded(name, module))


class _Guarded:
    """A third party's format, whose exceptions are findings that name it."""

    def __init__(self, name: str, module: object) -> None:
        self._name, self._module = name, module

    def __getattr__(self, member: str) -> Any:
        value = getattr(self._module, member)
        if not callable(value):
            return value

        def guarded(*arguments: Any) -> Any:
            with _blamed(self._name):
                return value(*arguments)

        return guarded


@contextmanager
def _blamed(name: str) -> Iterator[None]:
    """Turn whatever a format's module raises into a QBridgeError (QB032) with its name."""
    try:
        yield
    except QBridgeError:
        raise
    except (Exception, SystemExit) as fault:
        raise error("QB032", name, (registry()[name], f"{type(fault).__name__}: {fault}")) from fault


def usable() -> dict[str, Format]:
    """Every format that can be imported, by its id."""
    formats = {}
    for name in registry():
        with suppress(QBridgeError):  # naming a broken one raises
            formats[name] = load(name)
    return formats


def report_unusable(findings: Findings) -> None:
    """A warning (QB035) for each third party's format that cannot be imported."""
    for name in registry():
        try:
            load(name)
        except QBridgeError as fault:
            leave_out(name, fault, findings)


def leave_out(name: str, fault: QBridgeError, findings: Findings) -> None:
    """Warn (QB035) that a format is left out; the error itself if it is a built-in one."""
    if name in BUILTIN:
        raise fault
    findings.add("QB035", name, fault.findings[0].facts)


def aliases() -> Mapping[str, str]:
    """Every name of every format to its id."""
    named = {name: name for name in registry()}
    for name, format_ in usable().items():
        named.update(dict.fromkeys(format_.ALIASES, name))
    return named


def find(name: str) -> Format:
    """A format by id or alias; QBridgeError (QB030) with the nearest names otherwise."""
    known = aliases()
    if name not in known:
        raise error("QB030", name, help=did_you_mean(name, known))
    return load(known[name])


def config_files() -> frozenset[str]:
    """The names of all files beside config.json that say how a model is quantized, whatever its format."""
    return frozenset(name for format_ in usable().values() for name in getattr(format_, "CONFIG_FILES", ()))


def side_files(format_: Format, block: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The files, by name, that a format writes beside config.json to say again what its block says."""
    make = getattr(format_, "side_files", None)
    return make(block) if make and block else {}


def did_you_mean(name: str, known: Mapping[str, object] | Sequence[str]) -> tuple[str, ...]:
    """Help lines: the nearest known name if one is near, and all of them."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return (*(f"did you mean {n!r}?" for n in near), f"known: {', '.join(sorted(known))}")


def detect(source: Source, findings: Findings) -> tuple[Format, Match]:
    """The format of a checkpoint, by content; QBridgeError with every format's reason if none or two fit.

    A third party's format that fails is left out with a warning (QB035).
    """
    matches: list[tuple[Format, Match]] = []
    reasons = []
    for name in registry():
        try:
            candidate = load(name)
            result = sniffed(candidate, source)
        except QBridgeError as fault:
            leave_out(name, fault, findings)
            continue
        if isinstance(result, Match):
            matches.append((candidate, result))
        reasons.append(f"{name}: {result.because if isinstance(result, Match) else result}")
    best = [found for found in matches if found[1].score == max(m.score for _, m in matches)]
    if len(best) == 1:
        return best[0]
    if best:
        raise error("QB012", str(source.path), reasons, ("name it with --from",))
    raise _unrecognised(source, reasons)


def quant_method(config: Mapping[str, Any]) -> str | None:
    """The quant_method of a config, wherever its block lies."""
    for holder in (config, config.get("text_config"), config.get("llm_config")):
        if isinstance(holder, dict):
            for key in ("quantization_config", "compression_config"):
                block = holder.get(key)
                if isinstance(block, dict) and isinstance(block.get("quant_method"), str):
                    return str(block["quant_method"])
    return None


def sniffed(format_: Format, source: Source) -> Match | str:
    """What a format says of a checkpoint; QBridgeError (QB032) if that is neither evidence nor a reason."""
    result = format_.sniff(source)
    if not isinstance(result, (Match, str)):
        raise error("QB032", format_.NAME, (registry()[format_.NAME], f"sniff gave a {type(result).__name__}"))
    return result


def _unrecognised(source: Source, reasons: list[str]) -> QBridgeError:
    method = quant_method(source.config)
    if method is not None:
        known = KNOWN_METHODS.get(method.lower())
        named = f"{known}, which qbridge does not read yet" if known else "which qbridge does not know"
        if method.lower() in aliases():
            named = "whose tensors are not in the checkpoint"
        return error("QB011", str(source.path), (f"quant_method {method!r}: {named}", *reasons))
    codes = [t.name for t in source.tensors.values() if not t.dtype.is_float and len(t.shape) == 2]
    if codes:
        fact = f"no quant_method, but {len(codes)} integer matrices such as {codes[0]}"
        return error("QB011", str(source.path), (fact, *reasons))
    return error("QB010", str(source.path), reasons)


def assemble(
    format_name: str,
    source: Source,
    config: Mapping[str, Any],
    layers: Mapping[str, tuple[Spec, Mapping[str, Slot]]],
    findings: Findings,
    kv_cache: Mapping[str, Any] | None = None,
    refused: Collection[str] = (),
) -> Model:
    """A Model from a reader's layers: checks every slot against its tensor and accounts for the others.

    `refused` are modules that the reader has a finding about already. Findings: QB010 no layer at all, QB015 missing
    tensors, QB016 wrong dtype or shape, QB028 too large, QB018 tensors that nobody claims, QB039 plain parameters.
    """
    _check_slots(source, layers, findings)
    claimed = {slot.tensor for _, slots in layers.values() for slot in slots.values()}
    rest: dict[str, TensorInfo] = {}
    for name, tensor in source.tensors.items():
        if name not in claimed:
            known_as = canonical_tensor(name)
            if known_as in rest:
                findings.add("QB033", name, (f"it and {rest[known_as].stored} are both {known_as}",))
            rest[known_as] = TensorInfo(tensor.dtype, tensor.shape, name)
    _account(rest, {module_of(tensor)[0] for tensor in claimed}, bool(kv_cache), refused, findings)
    if not layers and not findings.errors:
        findings.add("QB010", str(source.path), ("no module's weight is quantized",))
    specs = {name: spec for name, (spec, _) in layers.items()}
    slots_of = {name: slots for name, (_, slots) in layers.items()}
    stale = config_files().intersection(map(str, source.side_files))
    return Model(format_name, config, specs, slots_of, rest, source.tokenizer(), kv_cache or {}, stale)


def _account(
    rest: Mapping[str, TensorInfo],
    coded: Collection[str],
    kv_cache: bool,
    refused: Collection[str],
    findings: Findings,
) -> None:
    """Say what the tensors are that are no weight or bias: parameters, or what somebody must know more about."""
    sorted_out = unclaimed(rest, coded, kv_cache)
    for name in sorted_out.parts:
        if module_of(rest[name].stored)[0] not in refused:
            fact = "codes or scales, by dtype or name, of a layer that is not read here: never carried over"
            findings.add("QB018", rest[name].stored, (fact,), final=True)
    for name in sorted_out.strange:
        if module_of(rest[name].stored)[0] not in refused:
            findings.add("QB018", rest[name].stored)
    if sorted_out.parameters:
        findings.add("QB039", [rest[name].stored for name in sorted_out.parameters])


def _check_slots(source: Source, layers: Mapping[str, tuple[Spec, Mapping[str, Slot]]], findings: Findings) -> None:
    """Every slot against its tensor's header."""
    missing: dict[str, list[str]] = {}
    for _, slots in layers.values():
        stored = slots["code"].tensor.rpartition(".")[0]
        for part, slot in slots.items():
            tensor = source.tensors.get(slot.tensor)
            if tensor is None:
                missing.setdefault(slot.tensor.removeprefix(stored), []).append(stored)
            elif (tensor.dtype, tensor.shape) != (slot.dtype, slot.shape):
                is_, wanted = f"{tensor.dtype}{list(tensor.shape)}", f"{slot.dtype}{list(slot.shape)}"
                findings.add("QB016", slot.tensor, (f"it is {is_}, the scheme gives {wanted}",))
            elif part != "code" and tensor.end - tensor.begin > SMALL:
                findings.add("QB028", slot.tensor, (f"{tensor.end - tensor.begin} bytes",))
    for suffix, names in missing.items():
        findings.add("QB015", names, (f"{len(names)} of {len(layers)} quantized layers lack *{suffix}",))


def needed(slots: Mapping[str, Slot], parts: Collection[str]) -> dict[str, Slot]:
    """The slots of `parts`, and of those without which one of them cannot be read or written."""
    found = {part: slot for part, slot in slots.items() if part in parts}
    for part in {part for slot in found.values() for part in slot.codec.needs}:
        found[part] = slots[part]
    return found


def encode(layer: Layer, slots: Mapping[str, Slot]) -> dict[str, Any]:
    """The stored array of every part that the layer holds, and of every fixed tensor, by tensor name."""
    return {
        slot.tensor: encode_part(layer, part, slot)
        for part, slot in slots.items()
        if part in layer.arrays or slot.codec.fixed
    }


def encode_part(layer: Layer, part: str, slot: Slot) -> Array:
    """The stored array of one part (or fixed tensor) of a layer; ValueError for a value that the slot cannot hold."""
    array = layer.arrays.get(part, np.empty(0))
    return slot.codec.encode(array, slot, layer.arrays)


def decode(spec: Spec, slots: Mapping[str, Slot], stored: Mapping[str, Any]) -> Layer:
    """The layer of stored arrays by tensor name; parts whose tensor is not given are left out.

    ValueError for stored values that no array of the layer could have given.
    """
    parts, arrays = spec.parts(), dict[str, Array]()
    for part, slot in sorted(slots.items(), key=lambda item: len(item[1].codec.needs)):
        if slot.tensor not in stored or slot.codec.fixed:
            continue
        arrays[part] = slot.codec.decode(stored[slot.tensor], *parts[part], arrays)
    return Layer(spec, arrays)
