"""The formats by name: built-in modules of `qbridge_formats`, others through the entry points `qbridge.formats`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, cast

from qbridge.architecture.names import is_activation_scale, is_fused_experts, module_of, unclaimed
from qbridge.findings.finding import Findings, QBridgeError, error
from qbridge.findings.hints import did_you_mean, folded
from qbridge.formats.plugins import blamed, clashes, installed
from qbridge.formats.protocol import Format, Match
from qbridge.ir.model import TensorInfo
from qbridge.source.reader import Source

BUILTIN = (
    "auto-round",
    "awq",
    "compressed-tensors",
    "dense",
    "fp8",
    "gguf",
    "gptq",
    "marlin",
    "mlx",
    "modelopt",
    "mxfp4",
    "quark",
    "smooth-quant",
    "w8a8",
)


@lru_cache(maxsize=1)
def registry() -> Mapping[str, str]:
    """Format name to the module that holds it, built-in ones first."""
    found = {name: f"qbridge_formats.{name.replace('-', '_')}" for name in BUILTIN}
    for name, module in installed("qbridge.formats").items():
        found.setdefault(name, module)
    return found


_MEMBERS = ("NAME", "SUMMARY", "ALIASES", "RULES", "sniff", "read", "settle", "layout", "config")
_OPTIONAL = ("metadata", "computed", "CONFIG_FILES", "side_files", "KEEPS_INPUT_DETAILS", "BLOCK_KEYS")


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


def _blamed(name: str) -> AbstractContextManager[None]:
    return blamed(name, registry()[name])


def usable() -> dict[str, Format]:
    """Every format that can be imported, by its id."""
    formats = {}
    for name in registry():
        with suppress(QBridgeError):  # naming a broken one raises
            formats[name] = load(name)
    return formats


def report_unusable(findings: Findings) -> None:
    """A warning (QB035) for each third party's format that cannot be imported, or whose name is taken."""
    report_clashes(findings)
    for name in registry():
        try:
            load(name)
        except QBridgeError as fault:
            leave_out(name, fault, findings)


def report_clashes(findings: Findings) -> None:
    """A warning (QB035) for each third party's format that has the name of another one."""
    for name, module in clashes("qbridge.formats", BUILTIN):
        findings.add("QB035", name, (f"{module}: another format has this name, and is taken",))


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
    """A format by id or alias in letters of any case; QBridgeError (QB030) with the nearest names otherwise."""
    known = aliases()
    name = {folded(each): each for each in known}.get(folded(name), name)
    if name not in known:
        raise error("QB030", name, help=did_you_mean(name, known, "`qbridge formats`"))
    return load(known[name])


@dataclass(frozen=True, slots=True)
class _Named:
    """A format by its id, imported when it is first asked for anything else; it pickles and compares by its id."""

    NAME: str

    def __getattr__(self, member: str) -> Any:
        if member.startswith("__"):
            raise AttributeError(member)
        return getattr(load(self.NAME), member)


def named(name: str) -> Format:
    """A format by its id, which is imported when it is first used; that raises what `load` does."""
    return cast(Format, _Named(name))


def config_files() -> frozenset[str]:
    """The names of all files beside config.json that say how a model is quantized, whatever its format."""
    return frozenset(name for format_ in usable().values() for name in getattr(format_, "CONFIG_FILES", ()))


def side_files(format_: Format, block: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The files, by name, that a format writes beside config.json to say again what its block says."""
    make = getattr(format_, "side_files", None)
    return make(block) if make and block else {}


def sniffed(format_: Format, source: Source) -> Match | str:
    """What a format says of a checkpoint; QBridgeError (QB032) if that is neither evidence nor a reason."""
    result = format_.sniff(source)
    if not isinstance(result, (Match, str)):
        raise error("QB032", format_.NAME, (registry()[format_.NAME], f"sniff gave a {type(result).__name__}"))
    return result


def _account(
    rest: Mapping[str, TensorInfo],
    coded: Collection[str],
    kv_cache: bool,
    refused: Collection[str],
    findings: Findings,
) -> None:
    """Say what the tensors are that are no weight or bias: parameters, or what somebody must know more about."""
    sorted_out = unclaimed(rest, coded, kv_cache)
    fused: dict[str, str] = {}
    for info in (rest[name] for name in sorted_out.parts):
        if len(info.shape) > 2 and not info.dtype.is_float and is_fused_experts(info.stored):
            fused.setdefault(module_of(info.stored)[0], f"{info.stored} is {info.dtype}{list(info.shape)}")
    for name in sorted_out.parts:
        module = module_of(rest[name].stored)[0]
        if module in refused:
            continue
        if is_activation_scale(rest[name].stored):
            findings.add("QB350", rest[name].stored)
        elif module in fused:
            fact = f"quantized experts fused into one tensor, which is not read here: {fused[module]}"
            findings.add("QB018", rest[name].stored, (fact,), final=True)
        else:
            fact = "codes or scales, by dtype or name, of a layer that is not read here: never carried over"
            findings.add("QB018", rest[name].stored, (fact,), final=True)
    for name in sorted_out.strange:
        if module_of(rest[name].stored)[0] not in refused:
            findings.add("QB350" if is_activation_scale(rest[name].stored) else "QB018", rest[name].stored)
    if sorted_out.parameters:
        findings.add("QB039", [rest[name].stored for name in sorted_out.parameters])
