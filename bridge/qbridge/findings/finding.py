"""Diagnostics: a finding has a code, a severity, a place, facts and help; errors carry all of them at once."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from qbridge.findings.catalogue import entry_of
from qbridge.findings.catalogue.code import IO, REFUSED, UNREADABLE, USAGE, Code
from qbridge.findings.hints import one_line
from qbridge.findings.way import Advice, Way, ways_of


class Severity(str, Enum):
    """An error stops with nothing written; a warning and a note do not."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Finding:
    """One diagnostic. `where` names every layer, tensor or file it is about, in the order found.

    `advice` has the ways out as data, cheapest first, and plain text where there is nothing to type; `help` has the
    same as lines to print. No word of `--allow` lets a `final` one pass, whatever its catalogue entry says of others
    of the code. `fix` stands in place of the catalogue's, where that is of no use here.
    """

    code: str
    where: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()
    severity: Severity = Severity.ERROR
    final: bool = False
    fix: str = ""

    @property
    def entry(self) -> Code:
        """The catalogue entry of the code."""
        return entry_of(self.code)

    @property
    def message(self) -> str:
        """One line, without a full stop."""
        return self.entry.title

    @property
    def help(self) -> tuple[str, ...]:
        """The advice as lines to print."""
        return tuple(map(str, self.advice))

    @property
    def remedies(self) -> tuple[str, ...]:
        """The advice as lines to print, and the fix: the finding's or the catalogue's; each line once."""
        return tuple(dict.fromkeys((*self.help, self.fix or self.entry.fix)))

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways out among the advice."""
        return ways_of(self.advice)

    def as_dict(self) -> dict[str, Any]:
        """The finding as `--json` prints it."""
        return {
            "code": self.code,
            "severity": str(self.severity),
            "message": self.message,
            "count": len(self.where),
            "where": list(self.where),
            "facts": list(self.facts),
            "why": self.entry.why,
            "help": list(self.remedies),
            "ways": [way.as_dict() for way in self.ways],
            "allow": None if self.final else self.entry.allow,
        }

    def __str__(self) -> str:
        more = f" and {len(self.where) - 1} more" if len(self.where) > 1 else ""
        place = f" ({self.where[0]}{more})" if self.where else ""
        facts = f": {'; '.join(self.facts)}" if self.facts else ""
        return f"{self.severity}[{self.code}]: {self.message}{place}{facts}"


@dataclass(slots=True, repr=False)
class Findings:
    """Collects findings; those that differ only in their place become one.

    `allow` holds the words of `--allow`: an error whose catalogue entry names one of them becomes a warning.
    """

    allow: frozenset[str] = frozenset()
    _found: dict[tuple[str, tuple[str, ...], tuple[Advice, ...], Severity, bool, str], dict[str, int]] = field(
        default_factory=dict
    )

    def add(
        self,
        code: str,
        where: str | Iterable[str] = (),
        facts: Sequence[str] = (),
        help: Sequence[Advice] = (),
        values: int = 0,
        *,
        mild: bool = False,
        final: bool = False,
        fix: str = "",
    ) -> None:
        """Note a finding under its catalogue severity, or as a warning if it is `mild`.

        `values` is how many values of each place it is about; no word of `allow` lets a `final` one pass; `fix`
        stands in place of the catalogue's.
        """
        entry = entry_of(code)
        severity = Severity.WARNING if mild else Severity(entry.severity)
        if severity is Severity.ERROR and entry.allow and not final:
            if entry.allow in self.allow:
                severity = Severity.WARNING
            else:
                help = (*help, Way("--allow", entry.allow))
        places = self._found.setdefault((code, tuple(facts), tuple(help), severity, final, fix), {})
        for place in (where,) if isinstance(where, str) else where:
            places[place] = values

    def merge(self, other: Findings) -> None:
        """Note everything that another collection with the same `allow` has."""
        for key, places in other._found.items():
            self._found.setdefault(key, {}).update(places)

    def allows(self, code: str) -> bool:
        """Whether the user let findings of this code pass."""
        return entry_of(code).allow in self.allow

    def __repr__(self) -> str:
        return one_line(self, ", ".join(f"{each.severity}[{each.code}]" for each in self) or "none")

    def __iter__(self) -> Iterator[Finding]:
        """Errors first, then by code, in the order found."""
        found = [
            Finding(code, tuple(where), (*facts, *_counted(where)), help, severity, final, fix)
            for (code, facts, help, severity, final, fix), where in self._found.items()
        ]
        return iter(in_order(found))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop a command."""
        return tuple(f for f in self if f.severity is Severity.ERROR)

    def stop_on_errors(self) -> None:
        """Raise QBridgeError with all findings if one of them is an error."""
        if self.errors:
            raise as_error(tuple(self))


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then by code, else in the order that they are given in."""
    order = list(Severity)
    return sorted(findings, key=lambda finding: (order.index(finding.severity), finding.code))


def _counted(places: Mapping[str, int]) -> tuple[str, ...]:
    """How many values a finding is about and where most of them are, if it counts any."""
    total = sum(places.values())
    if not total:
        return ()
    worst = max(places, key=places.__getitem__)
    return (f"{total} values in {len(places)} places; worst: {worst}, {places[worst]}",)


class QBridgeError(Exception):
    """What the library raises: every finding at once, `findings`, and the exit code of the gravest.

    Its subclasses say which exit code that is.
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        """Keep the findings; the message lists the errors."""
        self.findings = tuple(findings)
        super().__init__("\n".join(str(f) for f in self.findings if f.severity is Severity.ERROR))

    def __reduce__(self) -> tuple[type[QBridgeError], tuple[tuple[Finding, ...]]]:
        """Pickle by the findings: from another process the error arrives as it was raised."""
        return type(self), (self.findings,)

    @property
    def exit_code(self) -> int:
        """4 I/O before 3 unreadable input before 2 usage before 1 refused."""
        return max((f.entry.exit for f in self.findings if f.severity is Severity.ERROR), default=1)


class RefusedError(QBridgeError):
    """Exit code 1: the answer is no; what is there can be read, and cannot become what was asked for."""


class UsageError(QBridgeError):
    """Exit code 2: a name, an option or an argument means nothing."""


class ArgumentTypeError(UsageError, TypeError):
    """Exit code 2: an argument has another type (QB802)."""


class UnreadableError(QBridgeError):
    """Exit code 3: what was named is no checkpoint, or a damaged one."""


class StorageError(QBridgeError):
    """Exit code 4: the operating system could not read or write: a full disk, a permission."""


_BY_EXIT = {REFUSED: RefusedError, USAGE: UsageError, UNREADABLE: UnreadableError, IO: StorageError}


def as_error(findings: Iterable[Finding]) -> QBridgeError:
    """Some findings as an error, of the class of its exit code."""
    error = QBridgeError(findings)
    return _BY_EXIT.get(error.exit_code, QBridgeError)(error.findings)


_ROOM = "Make room, then run the same command again."
_PERMISSION = "Mend the permission, then run the same command again."
_PATH = "Correct the path: a part of it is not there, or is a file where a folder is wanted."
_WAYS_OUT = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "Choose a DST on a file system that can be written.",
    errno.ENAMETOOLONG: "Choose a shorter name; an output grows under one that is up to 17 bytes longer.",
    errno.ENOENT: _PATH,
    errno.ENOTDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.EMFILE: "Let the process open more files (ulimit -n), then run the same command again.",
    errno.EIO: "Look at the disk or the network: the system could not read or write it.",
}


@contextmanager
def io_as_finding(where: str) -> Iterator[None]:
    """Turn an OSError into a QBridgeError (QB401)."""
    try:
        yield
    except OSError as fault:
        fix = _WAYS_OUT.get(fault.errno or 0, "")
        raise error("QB401", str(fault.filename or where), (str(fault),), fix=fix) from fault


def error(
    code: str,
    where: str | Iterable[str] = (),
    facts: Sequence[str] = (),
    help: Sequence[Advice] = (),
    fix: str = "",
) -> QBridgeError:
    """A QBridgeError of one finding; `fix` stands in place of the catalogue's."""
    findings = Findings()
    findings.add(code, where, facts, help, fix=fix)
    return as_error(findings)
