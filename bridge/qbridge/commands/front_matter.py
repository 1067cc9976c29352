"""The metadata of a model card: YAML between two lines of dashes, read as events and changed line by line.

Nothing is constructed from it: no object, no tag, no alias. What is not changed keeps its bytes, comments included.
The same lines are metadata to huggingface_hub 2.4.0, repocard.py (REGEX_YAML_BLOCK).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST = 1 << 17  # characters of metadata that are read; results of embedding benchmarks take the most
_DEEPEST = 30  # levels; a reader of YAML takes quadratic time in them
_BLOCK = re.compile(r"\A(\ufeff?\s*---(?:\r\n|\r|\n))(.*?)((?:\r\n|\r|\n)---[ \t]*(?:\r\n|\n|\Z))", re.DOTALL)
_BETWEEN = re.compile(r"#|\s*\Z")  # a comment at the margin, or an empty line
_EMPTY = re.compile(r"\A(\ufeff?\s*---(?:\r\n|\r|\n))()(---[ \t]*(?:\r\n|\n|\Z))")

Value = str | Sequence[str]


class UnreadableMetadataError(ValueError):
    """Metadata that cannot be changed safely; the message says what it is."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A key of the metadata: its lines, from `start` to before `end`, and the texts of its value.

    `texts` is a text, several of a list of texts, or None of any other value.
    """

    start: int
    end: int
    texts: Value | None


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """The metadata of a card, in lines that keep their ends, with what stands before and after them.

    `opening` and `closing` are the lines of dashes, `body` is the rest of the card.
    """

    opening: str
    lines: tuple[str, ...]
    closing: str
    body: str
    entries: Mapping[str, Entry]

    @classmethod
    def of(cls, card: str) -> FrontMatter:
        """The metadata of a card, empty where it has none; UnreadableMetadataError if it cannot be changed safely."""
        match = _EMPTY.match(card) or _BLOCK.match(card)
        if match is None:
            return cls("---\n", (), "---\n", card, {})
        closing = match[3].lstrip("\r\n")
        lines = tuple(f"{match[2]}{match[3].removesuffix(closing)}".splitlines(keepends=True))
        return cls(match[1], lines, closing, card[match.end() :], _entries("".join(lines), lines))

    @property
    def text(self) -> str:
        """The metadata with its lines of dashes."""
        return f"{self.opening}{''.join(self.lines)}{self.closing}"

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of a key, empty where it is not there; UnreadableMetadataError if it has another value."""
        entry = self.entries.get(key)
        if entry is None:
            return ()
        if entry.texts is None:
            raise UnreadableMetadataError(f"{key} is neither a text nor a list of texts")
        return (entry.texts,) if isinstance(entry.texts, str) else tuple(entry.texts)

    def changed(self, changes: Mapping[str, Value | None]) -> FrontMatter:
        """The metadata with other values of some keys; None removes one, and new ones come last.

        UnreadableMetadataError where what comes out would say something else.
        """
        pieces = {key: _lines_of(key, value, self.opening) for key, value in changes.items()}
        replaced = {entry.start: (entry, key) for key, entry in self.entries.items() if key in pieces}
        lines, number = list[str](), 0
        while number < len(self.lines):
            if number in replaced:
                entry, key = replaced[number]
                lines += pieces.pop(key)
                number = entry.end
            else:
                lines.append(self.lines[number])
                number += 1
        lines += (line for piece in pieces.values() for line in piece)
        done = FrontMatter.of(f"{self.opening}{''.join(lines)}{self.closing}{self.body}")
        for key in self.entries.keys() | changes.keys():
            before = changes[key] if key in changes else self.entries[key].texts
            after = done.entries[key].texts if key in done.entries else None
            if after != (before if before is None or isinstance(before, str) else tuple(before)):
                raise UnreadableMetadataError(f"{key} cannot be told from its neighbours")
        return done


def _lines_of(key: str, value: Value | None, opening: str) -> list[str]:
    import yaml

    if value is None:
        return []
    plain = value if isinstance(value, str) else list(value)
    is_visible = all(text.isprintable() for text in ([plain] if isinstance(plain, str) else plain))
    text = yaml.safe_dump({key: plain}, allow_unicode=is_visible, width=1 << 30, default_flow_style=False)
    line_end = "\r\n" if opening.endswith("\r\n") else "\n"
    return [f"{line}{line_end}" for line in text.splitlines()]


def _entries(text: str, lines: Sequence[str]) -> dict[str, Entry]:
    """The keys of metadata, each with its lines; UnreadableMetadataError where they have none of their own."""
    import yaml

    if len(text) > MOST:
        raise UnreadableMetadataError(f"it has {len(text)} characters of metadata")
    try:
        found = list(_keys(text))
    except yaml.YAMLError as fault:
        mark = getattr(fault, "problem_mark", None)
        line = f" in line {mark.line + 2}" if mark else ""
        raise UnreadableMetadataError(f"its metadata is no YAML{line}: {getattr(fault, 'problem', fault)}") from fault
    ends = [start for _, start, _ in found[1:]] + [len(lines)]
    entries: dict[str, Entry] = {}
    for (key, start, texts), end in zip(found, ends, strict=False):
        if key in entries or end <= start:
            raise UnreadableMetadataError(f"{key} has no lines of its own, or is there twice")
        while end > start + 1 and _BETWEEN.match(lines[end - 1]):
            end -= 1  # a comment above the next key
        entries[key] = Entry(start, end, texts)
    return entries


def _keys(text: str) -> Iterator[tuple[str, int, Value | None]]:
    """(key, line, texts) of each key of a mapping in YAML, without constructing anything."""
    import yaml

    key: yaml.ScalarEvent | None = None
    texts: list[str] | None = None
    for depth, event in _levels(text):
        is_text = isinstance(event, yaml.ScalarEvent)
        if depth == 1 and key is None:
            if isinstance(event, yaml.CollectionStartEvent):
                raise UnreadableMetadataError("a key of its metadata is no text")
            key = event if is_text else None
        elif depth == 1 and key is not None and is_text:
            yield key.value, key.start_mark.line, event.value
            key = None
        elif depth == 1 and key is not None and isinstance(event, yaml.CollectionStartEvent):
            texts = [] if isinstance(event, yaml.SequenceStartEvent) else None
        elif depth == 1 and key is not None:  # the end of its value
            yield key.value, key.start_mark.line, None if texts is None else tuple(texts)
            key = None
        elif depth == 2 and texts is not None:
            texts = [*texts, event.value] if is_text else None


def _levels(text: str) -> Iterator[tuple[int, Any]]:
    """The events of one mapping in YAML, each with the collections around it; of one that begins or ends, without it.

    UnreadableMetadataError for tags, anchors and aliases, many levels, several documents, and for no mapping.
    """
    import yaml

    depth, documents = 0, 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise UnreadableMetadataError("its metadata has a tag, an anchor or an alias")
        documents += isinstance(event, yaml.DocumentStartEvent)
        if documents > 1:
            raise UnreadableMetadataError("its metadata is more than one document")
        if isinstance(event, yaml.NodeEvent) and not depth:
            _check_root(event)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        yield depth, event
        depth += isinstance(event, yaml.CollectionStartEvent)
        if depth > _DEEPEST:
            raise UnreadableMetadataError(f"its metadata has more than {_DEEPEST} levels")


def _check_root(event: Any) -> None:
    """UnreadableMetadataError for metadata that is no mapping with a key per line."""
    import yaml

    if not isinstance(event, yaml.MappingStartEvent) or event.flow_style:
        raise UnreadableMetadataError("its metadata has no key per line")
