"""A way out of a problem, as data: which command and which option ends it, and what that costs.

A rule says what helps; the command that prints it says whether a person reads an option or a whole command to paste.
Where there is nothing to type, advice is plain text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Way:
    """An option of `qbridge` that ends a problem, or, with `command`, the whole command line.

    `option` is the option's name (`--regroup`), `value` its value, None for a flag; without an option the command
    itself is the way. `note` says in a line what it costs or means. An `exact` way changes no weight. With `serve`
    nothing is converted: the engine's server is started with the option.
    """

    option: str = ""
    value: int | str | None = None
    note: str = ""
    exact: bool = False
    command: str = ""
    serve: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The option as words of a command line."""
        return tuple(str(word) for word in (self.option, self.value) if word not in ("", None))

    @property
    def keyword(self) -> dict[str, int | str | bool]:
        """The option as an argument of a library call; empty without one."""
        value = True if self.value is None else self.value
        return {self.option[2:]: value} if self.option else {}

    def of(self, command: str) -> Way:
        """The way as a whole command line; `command` is what the option is added to."""
        return replace(self, command=command)

    def as_dict(self) -> dict[str, Any]:
        """The way as `--json` prints it; `command` is empty where it is that of the finding, with the option."""
        fields = ("option", "value", "note", "exact", "serve")
        whole = " ".join((self.command, *self.words)) if self.command else ""
        return {**{name: getattr(self, name) for name in fields}, "command": whole}

    def __str__(self) -> str:
        """One line to paste; what follows the # is for the reader."""
        if self.serve:
            line = f"serve it with {self.option.lstrip('-')} = {self.value}"
        else:
            line = " ".join((*((self.command,) if self.command else ()), *self.words))
        comment = ": ".join(part for part in ("exact" if self.exact else "", self.note) if part)
        return f"{line}  # {comment}" if comment else line


Advice = Way | str  # a way out, or plain text where there is nothing to type


def ways_of(advice: Iterable[Advice]) -> tuple[Way, ...]:
    """The ways out among advice, in order."""
    return tuple(entry for entry in advice if isinstance(entry, Way))
