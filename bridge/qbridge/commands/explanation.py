"""explain: what a code of qbridge means, or what an engine that refused a checkpoint has printed, and the way out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qbridge.commands.checkpoint import PathLike
from qbridge.commands.planned_cures import planned
from qbridge.commands.remedies import new_folder
from qbridge.commands.results import SCHEMA, Result
from qbridge.findings.arguments import checked
from qbridge.findings.catalogue import CATALOGUE
from qbridge.findings.catalogue.code import Code
from qbridge.findings.finding import error
from qbridge.findings.hints import did_you_mean, printable, word_of_command
from qbridge.targets.messages import Message, Occurrence, Values, checkpoints_of, occurrences, ranks_of
from qbridge.targets.registry import codes, messages

UNKNOWN = (
    "No message in this text is one that qbridge knows of an engine refusing a quantized checkpoint. "
    "Ask about the checkpoint itself: qbridge check SRC --for ENGINE. "
    "qbridge explain alone lists the messages that it knows."
)
_CODE = re.compile(r"[A-Za-z]+-?\d+")
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PLACEHOLDERS = {
    "SRC": "SRC is the checkpoint (--src PATH fills it in)",
    "DST": "DST a new folder",
    "--tp N": "N the tensor-parallel size",
}


@dataclass(frozen=True, slots=True)
class Meaning:
    """A message of an engine as it stands in a text: what it says here, how to check that, and the way out.

    `line` is the message, `values` what its fields hold there. `check` is a command line, `cure` are others, the best
    first, empty where no command helps; `advice` says what else does. `source` is where the engine has the message.
    """

    engine: str
    versions: str
    source: str
    line: str
    values: Mapping[str, str]
    cause: str
    check: str
    cure: tuple[str, ...]
    advice: str = ""

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The meaning in lines, each with its label."""
        rows = [
            ("message", self.line),
            ("printed by", f"{self.source.partition(' ')[0]} {self.versions}"),
            ("cause", self.cause),
            ("advice", self.advice),
            ("source", self.source),
            ("where", _placeholders((self.check, *self.cure))),
            ("check", self.check),
            *(("or" if number else "cure", command) for number, command in enumerate(self.cure)),
        ]
        return [(label, printable(value)) for label, value in rows if value]


@dataclass(frozen=True, slots=True, repr=False)
class Explanation(Result):
    """What a text means: the entry of a code, or the messages of engines that stand in it, the first one first.

    Neither where nothing in it is known, which is no error: `ok` says so.
    """

    code: Code | None = None
    messages: Sequence[Meaning] = ()

    @property
    def ok(self) -> bool:
        """Whether anything in the text is known."""
        return self.code is not None or bool(self.messages)

    def as_dict(self) -> dict[str, Any]:
        """The object that `explain --json` prints."""
        answer = (
            {"messages": [asdict(meaning) for meaning in self.messages]} if self.code is None else asdict(self.code)
        )
        return {"schema": SCHEMA, "command": "explain", **answer}

    @property
    def line(self) -> str:
        """The code and its title, or the messages."""
        if self.code is not None:
            return f"{self.code.code}, {self.code.title}"
        return "; ".join(f"{meaning.engine}: {meaning.line}" for meaning in self.messages) or "nothing known"


@checked
def explain(text: str, src: PathLike | None = None) -> Explanation:
    """What a code (QB015) means, or the messages of engines in a line or a whole log.

    `src` is the checkpoint that the commands are about; else the one whose path the log names, where there is such a
    folder here. Conversions of a checkpoint that is here are planned before they are printed: those that would be
    refused are left out. Raises QBridgeError (QB030) for what looks like a code and is none.
    """
    if _CODE.fullmatch(text.strip()):
        return Explanation(_entry(text.strip()))
    plain = _COLOUR.sub("", text)
    checkpoint = _checkpoint(plain) if src is None else str(src)
    ranks = ranks_of(plain)
    return Explanation(None, [_meaning(each, plain, checkpoint, ranks) for each in occurrences(plain, messages())])


def _entry(code: str) -> Code:
    """The entry of a code, in letters of any case; no plugin is imported for one of ours."""
    entries = CATALOGUE if code.upper() in CATALOGUE else codes()
    if code.upper() not in entries:
        raise error("QB030", code, help=did_you_mean(code.upper(), entries, "`qbridge explain`"))
    return entries[code.upper()]


def _checkpoint(text: str) -> str:
    """The folder that a log says is served, if it is here."""
    for path in checkpoints_of(text):
        with suppress(OSError, ValueError):  # a name that no file system has
            if Path(path).is_dir():
                return path
    return ""


def _meaning(each: Occurrence, text: str, checkpoint: str, ranks: str) -> Meaning:
    message, values = each.message, {**each.values, **each.message.derive(each.values)}
    tp = values.get("tp") or ranks
    split = f" --tp {tp or 'N'}" if message.split or tp not in ("", "1") else ""
    src = word_of_command(checkpoint) if checkpoint else "SRC"
    more = f" {_filled(message.check, values)}" if message.check else ""
    cures, refusal = planned(
        (f"{line}{split}" for line in _conversions(message, values, src, checkpoint)), checkpoint
    )
    return Meaning(
        engine=message.engine,
        versions=message.versions,
        source=message.source,
        line=" ".join(text[each.start : each.end].split()),
        values=each.values,
        cause=message.cause.format(**values),
        check=f"qbridge check {src} --for {message.engine}{split}{more}",
        cure=cures,
        advice=" ".join(filter(None, (message.advice.format(**values), refusal))),
    )


def _filled(text: str, values: Values) -> str:
    """Options of a command with values in their fields, each one word."""
    return text.format(**{name: shlex.quote(value) for name, value in values.items()})


def _conversions(message: Message, values: Values, src: str, checkpoint: str) -> Iterator[str]:
    """The command lines of the cures, without those that need a value which there is not.

    Their folder is a new one where the checkpoint is known.
    """
    for cure in message.cure:
        engine = cure.target.partition("@")[0]
        dst = word_of_command(new_folder(checkpoint, engine)) if checkpoint else "DST"
        with suppress(KeyError, IndexError):
            more = f" {_filled(cure.options, values)}" if cure.options else ""
            yield f"qbridge convert {src} {dst} --to {cure.target}{more}"


def _placeholders(commands: Sequence[str]) -> str:
    """What the words mean that a reader must replace in commands, empty if there are none."""
    return ", ".join(
        meaning for word, meaning in _PLACEHOLDERS.items() if any(f" {word}" in line for line in commands)
    )


@dataclass(frozen=True, slots=True, repr=False)
class Listing(Result):
    """Everything that `explain` knows: the codes of qbridge, and the messages of engines."""

    codes: Sequence[Code]
    messages: Sequence[Message]

    @property
    def line(self) -> str:
        """How many codes and messages there are."""
        return f"{len(self.codes)} codes, {len(self.messages)} messages of engines"

    def as_dict(self) -> dict[str, Any]:
        """The object that `explain --json` prints without a text."""
        fields = ("engine", "versions", "source", "text", "cause", "advice")
        known = [
            {**{name: getattr(message, name) for name in fields}, "cure": [asdict(cure) for cure in message.cure]}
            for message in self.messages
        ]
        return {
            "schema": SCHEMA,
            "command": "explain",
            "codes": [{"code": entry.code, "title": entry.title} for entry in self.codes],
            "messages": known,
        }


def listing() -> Listing:
    """Every code, and every message that an engine prints, each of them by its engine."""
    return Listing(sorted(codes().values(), key=lambda entry: entry.code), messages())
