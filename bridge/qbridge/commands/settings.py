"""config: a user's defaults, from environment variables and a config file; none that weakens a promise.

A setting is the default of an option, used where the option is not typed. No option is a setting that changes what is
kept of a model, or what is overwritten.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import typer

from qbridge.commands.arguments import bytes_of, jobs_of, memory_of, positive_sizes_of, progress_of
from qbridge.commands.results import SCHEMA, Result
from qbridge.findings.finding import QBridgeError, error
from qbridge.findings.hints import did_you_mean
from qbridge.targets.gpus import gpu_of

PREFIX = "QBRIDGE_"
_MOST = 1 << 20  # bytes of a config file
_TYPED = "no default may be given for it: it is typed each time"
# The options that may have one, and what a value of theirs must be.
_OPTIONS: Mapping[str, Callable[[str], object]] = {
    "gpu": gpu_of,
    "jobs": jobs_of,
    "max-shard-size": bytes_of,
    "memory": memory_of,
    "progress": progress_of,
    "tp": positive_sizes_of,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """The default of an option, and where it comes from; `value` is empty where the commands have none.

    `variable` is the environment variable that sets it, `commands` are those that take the option.
    """

    name: str
    value: str
    origin: Literal["default", "environment", "file"]
    variable: str
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Settings(Result):
    """Every default that may be set; `file` is the user's config file, whether it is there or not."""

    file: str
    settings: Sequence[Setting]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Each setting with its value and where that comes from, then the file."""
        origins = {"default": "", "environment": "  (from {})", "file": "  (from the file)"}
        rows = [
            (each.name, f"{each.value or '-'}{origins[each.origin].format(each.variable)}") for each in self.settings
        ]
        return [*rows, ("file", f"{self.file}{'' if Path(self.file).is_file() else ', not there'}")]

    @property
    def line(self) -> str:
        """What is set."""
        given = (f"{each.name}={each.value}" for each in self.settings if each.origin != "default")
        return ", ".join(given) or "defaults alone"

    def as_dict(self) -> dict[str, Any]:
        """The object that `config --json` prints."""
        settings = [asdict(each) for each in self.settings]
        return {"schema": SCHEMA, "command": "config", "file": self.file, "settings": settings}


def config_file() -> Path:
    """The user's config file, in the folder that the system has for such; never one of the current folder."""
    folder = Path(typer.get_app_dir("qbridge"))
    return (folder if folder.is_absolute() else Path.home() / ".config" / "qbridge") / "config.toml"


def settings(defaults: Mapping[str, Mapping[str, str]]) -> Settings:
    """The defaults in force; `defaults` are those of the program, by option and by the command that has it.

    QBridgeError (QB803) for a setting that there is not, or may not be, and for a value that means nothing.
    """
    file = config_file()
    _refuse_typed(defaults.keys())
    written = _read(file)
    found = []
    for name in sorted(_OPTIONS):
        variable = PREFIX + name.replace("-", "_").upper()
        own = defaults.get(name, {})
        value, origin = next(iter(own.values()), ""), "default"
        if name in written:
            value, origin = _checked(name, written[name], str(file)), "file"
        if os.environ.get(variable):
            value, origin = _checked(name, os.environ[variable], variable), "environment"
        found.append(Setting(name, value, origin, variable, tuple(own)))  # type: ignore[arg-type]
    return Settings(str(file), found)


def _refuse_typed(options: Iterable[str]) -> None:
    """QB803 for an environment variable of an option that may have no default."""
    for name in options:
        variable = PREFIX + name.replace("-", "_").upper()
        if name not in _OPTIONS and variable in os.environ:
            raise error("QB803", variable, (_TYPED,))


def _read(file: Path) -> dict[str, str]:
    """The settings of a config file, nothing where there is none; QBridgeError (QB803)."""
    if not file.is_file():
        return {}
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(file, "rb") as stream:
            found = tomllib.loads(stream.read(_MOST).decode())
    except (OSError, ValueError) as fault:
        raise error("QB803", str(file), (str(fault),)) from fault
    for name, value in found.items():
        if name not in _OPTIONS:
            raise error("QB803", str(file), (f"{name}: {_TYPED}, or there is no such option",), _near(name))
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise error("QB803", str(file), (f"{name} is {value!r}, no text or number",))
    return {name: str(value) for name, value in found.items()}


def _near(name: str) -> tuple[str, ...]:
    return did_you_mean(name, sorted(_OPTIONS), "docs/settings.md")


def _checked(name: str, value: str, origin: str) -> str:
    """The value of a setting; QBridgeError (QB803) where it means nothing to the option."""
    try:
        _OPTIONS[name](value)
    except (ValueError, QBridgeError) as fault:
        said = fault.findings[0].help[:1] if isinstance(fault, QBridgeError) else (str(fault),)
        raise error("QB803", origin, (f"{name} is {value!r}", *said)) from fault
    return value
