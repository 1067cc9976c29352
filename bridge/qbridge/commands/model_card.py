"""The model card of a checkpoint that gets another format: README.md with metadata that holds, and what was done.

The source's text stays below that. Its blocks of code are marked where they start the model as it was.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from qbridge.commands.front_matter import FrontMatter, UnreadableMetadataError, Value
from qbridge.commands.report import Report
from qbridge.commands.report_rows import grafted_rows, size_rows, subject_rows
from qbridge.findings.escape import as_code_block, as_markdown
from qbridge.findings.finding import Findings
from qbridge.formats.protocol import Format
from qbridge.plan.options import Options
from qbridge.plan.plan import Plan
from qbridge.source.reader import Source
from qbridge.targets.registry import builtin

CARD = "README.md"
SRC, DST, ORIGINAL = "SRC", "DST", "ORIGINAL"  # in place of paths of this machine
_MOST = 10**6  # bytes of a card that is looked at
_LINES = 5  # that a finding shows
_BREAKS = re.compile(r"[-_\s]")
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})(.*)")
_BEGIN, _END = "<!-- qbridge: what was converted -->", "<!-- qbridge: the card of the source -->"
_MARK = "> **Not for this checkpoint:**"
_WRITTEN = re.compile(rf"\A\s*{re.escape(_BEGIN)}.*?{re.escape(_END)}\s*", re.DOTALL)
_MARKED = re.compile(rf"(?m)^[ \t]*{re.escape(_MARK)}.*\r?\n[ \t]*\r?\n")
# Tags that say how many bits a weight has: w8a8, int4, fp8, nvfp4, 8-bit.
_WIDTH = re.compile(r"(?:w|int|fp|mxfp|nvfp)(\d{1,2})(?:a\d{1,2})?|(\d{1,2})bits?")
_QUANTIZED = frozenset({"quantized", "quantization"})
_KEPT = frozenset({"quantized_by"})  # who made the source, not how


@dataclass(frozen=True)
class Conversion:
    """What a card must say: the formats before and after, the plan, and the report that it gives."""

    before: Format
    plan: Plan
    report: Report
    command: str

    @cached_property
    def stale(self) -> frozenset[str]:
        """The names of the format that the checkpoint no longer has."""
        return _words(self.before, self.plan.format)

    @cached_property
    def widths(self) -> frozenset[int]:
        """The bits of its quantized weights; none where all were dequantized."""
        after = (layer.after.weight for layer in self.plan.layers.values() if not layer.unquantized)
        return frozenset(weight.bits for weight in after if not weight.is_dense)

    @cached_property
    def engines(self) -> Mapping[str, bool]:
        """Engines by name, and whether any release of each loads the format that was written."""
        found: dict[str, bool] = {}
        for target in (*builtin(), self.plan.target):  # no other package is imported to write a card
            if not target.is_format:
                loads = not self.widths or target.choice_of(self.plan.format.NAME) is not None
                found[target.engine] = found.get(target.engine, False) or loads
        return found

    @property
    def library(self) -> str:
        """The engine that it is for, by the name of its package; empty for a format."""
        engine = "" if self.plan.target.is_format else self.plan.target.engine
        return next((name for name in self.engines if engine.startswith(f"{name}-")), engine)

    def is_stale(self, text: str) -> bool:
        """Whether a tag or the name of a library is about what the checkpoint no longer is."""
        plain = _plain(text)
        if match := _WIDTH.fullmatch(plain):
            return int(match[1] or match[2]) not in self.widths
        if plain in _QUANTIZED:
            return not self.widths
        loads = next((loads for name, loads in self.engines.items() if _plain(name) == plain), None)
        return any(word in plain for word in self.stale) if loads is None else not loads

    def stale_lines(self, code: Sequence[str]) -> list[int]:
        """Which lines of a block of code, from 1, name that format, or a server that does not load the new one."""
        servers = [re.escape(name) for name, loads in self.engines.items() if not loads]
        starts = re.compile(rf"(?<!\w)(?:(?:{'|'.join(servers)}) serve|-m (?:{'|'.join(servers)}))(?!\w)")
        return [
            number
            for number, line in enumerate(code, 1)
            if any(word in _plain(line) for word in self.stale) or (servers and starts.search(line))
        ]


def card_of(source: Source, conversion: Conversion, findings: Findings) -> str | None:
    """The text of the card; None with a note (QB055) where the source's has to stay as it is."""
    try:
        return _card(_text(source), conversion)
    except UnreadableMetadataError as fault:
        findings.add("QB055", CARD, (str(fault),))
        return None


def is_written(source: Source) -> bool:
    """Whether a checkpoint's card is one that a conversion has written, and nobody has written anew."""
    return _BEGIN in source.side_text(CARD, _MOST)


def judge_card(source: Source, before: Format, after: Format, findings: Findings) -> None:
    """QB048 where the card, carried over as it is, names the source's format in its tags or code."""
    words = _words(before, after)
    text = source.side_text(CARD, _MOST)
    lines = [(number, line) for number, line in _telling(text) if any(word in _plain(line) for word in words)]
    if lines:
        shown = [f"line {number}: {line.strip()[:100]}" for number, line in lines[:_LINES]]
        more = [f"and {len(lines) - _LINES} more lines"] if len(lines) > _LINES else []
        findings.add("QB048", CARD, (*shown, *more))


def command_of(
    target: str, source: str | None, options: Options, allow: Iterable[str], shard_size: int | None
) -> str:
    """The command line of a conversion, without what changes no byte of its output."""
    words = ["qbridge", "convert", SRC, DST, "--to", target]
    words += ["--from", source] if source else []
    words += ["--tp", ",".join(map(str, options.tp))] if max(options.tp) > 1 else []
    for name in ("regroup", "bits", "cast", "dtype", "experts"):
        words += [f"--{name}", str(getattr(options, name))] if getattr(options, name) else []
    words += ["--pad"] if options.pad else []
    words += ["--keep-undo"] if options.keep_undo else []
    words += [] if options.passes else ["--no-passes"]
    words += ["--graft", ORIGINAL] if options.graft else []
    words += [word for old, new in options.rename_prefix for word in ("--rename-prefix", f"{old}={new}")]
    words += ["--max-shard-size", f"{shard_size}B"] if shard_size else []
    words += ["--allow", ",".join(sorted(allow))] if allow else []
    return shlex.join(words)


def _text(source: Source) -> str:
    """The source's card, empty if there is none; UnreadableMetadataError if it is too large or no text."""
    if any(name.startswith(f"{CARD}/") for name in source.side_files):
        raise UnreadableMetadataError("it is a folder")
    if CARD not in source.side_files:
        return ""
    file = source.file(CARD)
    if file.size > _MOST:
        raise UnreadableMetadataError(f"it has {file.size} bytes")
    try:
        return file.read().decode()
    except UnicodeDecodeError as fault:
        raise UnreadableMetadataError("it is no text in UTF-8") from fault


def _card(text: str, conversion: Conversion) -> str:
    metadata = FrontMatter.of(text)
    metadata = metadata.changed(dict(_changes(metadata, conversion)))
    body = _MARKED.sub("", _WRITTEN.sub("", metadata.body))
    line_end = "\r\n" if "\r\n" in text else "\n"
    own = _section(conversion, bool(body.strip())).replace("\n", line_end)
    below = _marked(body.lstrip("\r\n"), conversion, line_end)
    head = f"{metadata.text}{line_end}" if metadata.lines else ""
    return f"{head}{own}{below and line_end}{below}"


def _changes(metadata: FrontMatter, conversion: Conversion) -> Iterator[tuple[str, Value | None]]:
    """The keys of the metadata that do not hold, with what does."""
    library = metadata.texts("library_name")
    if conversion.library if not library else conversion.is_stale(library[0]):
        yield "library_name", conversion.library or None
    tags = [tag for tag in metadata.texts("tags") if tag]
    wanted = _tags(tags, conversion)
    if wanted != tags:
        yield "tags", wanted or None
    relation = metadata.texts("base_model_relation")
    if relation and not conversion.widths:
        yield "base_model_relation", None
    elif any(metadata.texts("base_model")) and conversion.widths and relation != ("quantized",):
        yield "base_model_relation", "quantized"
    for key, entry in metadata.entries.items():
        names = isinstance(entry.texts, str) and _plain(entry.texts) in conversion.stale
        if names and key.startswith("quant") and key not in _KEPT:
            yield key, conversion.plan.format.NAME if conversion.widths else None


def _tags(tags: Sequence[str], conversion: Conversion) -> list[str]:
    """The tags that hold, with the format's where the first stood that does not."""
    name = conversion.plan.format.NAME
    place = next((place for place, tag in enumerate(tags) if conversion.is_stale(tag)), len(tags))
    hold = [tag for tag in tags if not conversion.is_stale(tag)]
    if not conversion.widths or any(_plain(tag) == _plain(name) for tag in hold):
        return hold
    return [*hold[:place], name, *hold[place:]]


def _section(conversion: Conversion, is_above: bool) -> str:
    """What was converted, as Markdown; `is_above` the source's card."""
    report, source = conversion.report, conversion.report.source_format
    rows = [
        ("source", f"{source} ({report.because})"),
        *subject_rows(report),
        *size_rows(report),
        *grafted_rows(report, ORIGINAL),
    ]
    parts = [
        f"{_BEGIN}\n# Converted by qbridge for {as_markdown(report.target)}",
        f"The source is {as_markdown(source)}. qbridge.json says what was done to each layer.",
        as_code_block(conversion.command, "sh"),
        "\n".join(("| | |", "|---|---|", *(f"| {label} | {as_markdown(value)} |" for label, value in rows))),
    ]
    if report.serve:
        parts += ["To serve it:", as_code_block(report.serve)]
    if is_above:
        parts.append("The card of the source follows.")
    return "\n\n".join((*parts, f"{_END}\n"))


def _marked(body: str, conversion: Conversion, line_end: str) -> str:
    """A text whose blocks of code have a line above them where they are about what the checkpoint no longer is."""
    lines, done = body.splitlines(keepends=True), list[str]()
    start = 0
    for begin, end in _blocks(lines):
        done += lines[start:begin]
        if numbers := conversion.stale_lines(lines[begin + 1 : end]):
            match = _FENCE.match(lines[begin])
            indent = match[1] if match else ""
            which = f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of the code below"
            about = f"{'are' if len(numbers) > 1 else 'is'} about the source, which is {conversion.before.NAME}."
            done += [f"{indent}{_MARK} {which} {about}{line_end}", line_end]
        start = begin
    return "".join((*done, *lines[start:]))


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The places of the fences around each block of code; the last one may end with the text."""
    begin, fence = -1, ""
    for number, line in enumerate(lines):
        match = _FENCE.match(line)
        if match and begin < 0:
            begin, fence = number, match[2]
        elif match and match[2].startswith(fence) and not match[3].strip():
            yield begin, number
            begin = -1
    if begin >= 0:
        yield begin, len(lines)


def _words(before: Format, after: Format) -> frozenset[str]:
    """The names of a format that another one does not have."""
    if before.NAME == after.NAME:
        return frozenset()
    names, others = ((each.NAME, *each.ALIASES) for each in (before, after))
    return frozenset(map(_plain, names)) - frozenset(map(_plain, others))


def _plain(text: str) -> str:
    """A name without what tools spell in several ways: compressed_tensors, llmcompressor."""
    return _BREAKS.sub("", text.lower())


def _telling(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the metadata before the text, and of its blocks of code."""
    lines = text.splitlines()
    is_metadata, is_code = bool(lines) and lines[0].strip() == "---", False
    for number, line in enumerate(lines, 1):
        bare = line.strip()
        if is_metadata and number > 1 and bare == "---":
            is_metadata = False
        elif bare.startswith(("```", "~~~")):
            is_code = not is_code
        elif is_metadata or is_code:
            yield number, line
