"""What engines print when they refuse a quantized checkpoint, recognised in a line or in a whole log.

A message is written as the engine's own source builds it, with fields in place of its values:

    "Weight input_size_per_partition = {size:number} is not divisible by min_thread_k = {tile:number}."

The kind of a field is `number`, `name` (of a module, tensor or class), `layer` (of a module in a numbered layer),
`word` (no space, no quote), a choice (`weight|weight_scale`), or nothing: any text of the line. Spaces stand for any
run of white space, and quotes may be missing, as a shell takes them away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice
from string import Formatter
from typing import Any

Values = Mapping[str, str]

KINDS: Mapping[str, str] = {
    "": r".{0,400}?",
    "number": r"\d{1,18}",
    "name": r"[\w./\-]{1,400}",
    "layer": r"(?:[\w\-]{1,100}\.){1,12}\d{1,5}(?:\.[\w\-]{1,100}){1,12}",
    "word": r"[^\s'\"]{1,200}",
}
_QUOTES = frozenset("'\"")
_MOST = 50  # places in a log where one message is looked at
# What starts an engine, and what it repeats of that in its log.
_RANKS = re.compile(r"(?:--tp|--tensor-parallel-size|tensor_parallel_size'?|\btp)[ =:]{1,2}(\d{1,3})\b")
_CHECKPOINT = re.compile(
    r"(?:\bserve api_server |\bvllm serve |--model(?:-path)?[ =]|\bmodel(?:_tag|_path)?'?[=:] ?)'?([^\s'\",]{1,1000})"
)


def _nothing(values: Values) -> Values:
    return {}


@dataclass(frozen=True, slots=True)
class Cure:
    """A conversion that is a way out: for which target, and with which options, which may name fields."""

    target: str
    options: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of an engine about a quantized checkpoint: what it means, how to check that, and the way out.

    `text` is what the engine prints, as described above. `engine` is the target that `qbridge check --for` asks and
    that brings the message, `versions` the releases whose source has it, `source` the package, version and file; what
    stands there in parentheses is in that file too. `cause`, `advice` and `check` may name fields of the text, and
    so may the options of each conversion in `cure`, the best first. `derive` gives more values for these; one is left
    out where a field of it has no value. `split` says that the answer depends on the
    tensor-parallel size. `check` has more options of `qbridge check`, `advice` says what else helps, or what does
    where no command is a way out.
    """

    text: str
    engine: str
    versions: str
    source: str
    cause: str
    cure: tuple[Cure, ...] = ()
    advice: str = ""
    split: bool = False
    check: str = ""
    derive: Callable[[Values], Values] = _nothing

    @property
    def pattern(self) -> re.Pattern[str]:
        """The regular expression that the text stands for; a group for each field."""
        return _pattern(self.text)

    @property
    def literals(self) -> tuple[str, ...]:
        """What stands between the fields of the text."""
        return tuple(literal for literal, *_ in Formatter().parse(self.text) if literal.strip())

    @property
    def fields(self) -> Mapping[str, str]:
        """The fields of the text, each with its kind."""
        return {name: kind or "" for _, name, kind, _ in Formatter().parse(self.text) if name}

    def line(self, values: Values) -> str:
        """What the engine prints with these values."""
        return "".join(literal + (values[name] if name else "") for literal, name, *_ in Formatter().parse(self.text))

    @property
    def words(self) -> str:
        """The text for people: dots stand for values."""
        return self.line(dict.fromkeys(self.fields, "..."))

    @property
    def origin(self) -> str:
        """The package whose source has the message; `versions` are its releases."""
        return self.source.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A message in a text: from where to where it stands there, and the values that it has."""

    message: Message
    start: int
    end: int
    values: Values


def fault(message: Any) -> str:
    """What is wrong with a message, as far as it shows without a text; empty if nothing is."""
    if not isinstance(message, Message):
        return f"{message!r} is no qbridge.targets.messages.Message"
    try:
        words = any(map(str.strip, message.literals)) and message.pattern
        texts = {
            name: _names(getattr(message, name)) - message.fields.keys() for name in ("cause", "advice", "check")
        }
    except (ValueError, re.error) as error:
        return f"the message {message.text!r} cannot be read: {error}"
    if not words:
        return f"the message {message.text!r} has no words of its own"
    unknown = sorted(set().union(*texts.values()))
    return f"the message {message.text!r} has no value for {', '.join(unknown)}" if unknown else ""


def _names(text: str) -> set[str]:
    """The fields that a text names."""
    return {name for _, name, *_ in Formatter().parse(text) if name is not None}


@cache
def _pattern(text: str) -> re.Pattern[str]:
    parts = []
    for literal, name, kind, _ in Formatter().parse(text):
        parts.append(_literal(literal))
        if name is not None:
            parts.append(f"(?P<{name}>{KINDS.get(kind or '') or _choice(kind or '')})")
    end = "" if text[-1] in ".:," else r"(?!\w)"  # weight_scale is no beginning of weight_scale_inv
    return re.compile("".join(parts) + end, re.ASCII)


def _choice(kind: str) -> str:
    return "|".join(map(re.escape, kind.split("|")))


def _literal(text: str) -> str:
    """A literal as an expression: quotes may be missing or escaped, white space may be wrapped."""
    tokens = re.findall(r"\s+|['\"]|[^\s'\"]+", text)
    return "".join(r"\s{1,80}" if t.isspace() else r"\\?['\"]?" if t in _QUOTES else re.escape(t) for t in tokens)


@cache
def _anchor(text: str) -> str:
    """The longest word that stands in every occurrence of a message: a text without it is not searched."""
    words = (word for literal, *_ in Formatter().parse(text) for word in re.split(r"[\s'\"]+", literal))
    return max(words, key=len)


def occurrences(text: str, messages: Iterable[Message]) -> list[Occurrence]:
    """The messages that stand in a text, each once, in the order in which they appear there.

    Where two of them match the same words, the one of a package that a traceback in the text names wins, then the
    longer one, then the first in the list.
    """
    every = [each for message in messages if _anchor(message.text) in text for each in _matches(text, message)]
    named = {package for package in {each.message.origin for each in every} if _is_named(package, text)}
    every.sort(key=lambda each: (each.start, each.message.origin not in named, each.start - each.end))
    chosen: dict[Message, Occurrence] = {}
    end = 0
    for each in every:
        if each.start >= end:
            chosen.setdefault(each.message, each)
            end = each.end
    return list(chosen.values())


def _matches(text: str, message: Message) -> Iterator[Occurrence]:
    for match in islice(message.pattern.finditer(text), _MOST):
        yield Occurrence(message, match.start(), match.end(), match.groupdict())


def _is_named(package: str, text: str) -> bool:
    """Whether a traceback, or the command that began it all, names a package."""
    module = package.replace("-", "_")
    return re.search(rf"(?<!\w){module}(?:[/\\.]\w| serve )", text) is not None


def ranks_of(text: str) -> str:
    """The tensor-parallel size that a log says an engine was started with, empty if it says none."""
    return match[1] if (match := _RANKS.search(text)) else ""


def checkpoints_of(text: str) -> Iterator[str]:
    """The paths or repositories that a log says an engine was started on."""
    yield from (match[1] for match in _CHECKPOINT.finditer(text))
