"""The whole page: one file, whose policy allows its own style sheet and script and nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from itertools import islice

from qbridge.findings.finding import Finding, Severity
from qbridge.findings.hints import size
from qbridge.page.contents import FILES, Contents
from qbridge.page.drawing import drawn_map, drawn_sample
from qbridge.page.markup import Markup, definitions, element, joined, name, section, table, text

_WHERE = 20  # places of a finding that are listed


def page_of(contents: Contents) -> str:
    """The page as HTML."""
    style, script = source_of("css"), source_of("js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = text(name(contents.title))
    head = (
        '<meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{style}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{_body(contents)}<script>{script}</script></body>'
        "</html>\n"
    )


def source_of(ending: str) -> str:
    """The style sheet (css) or the script (js) of every page."""
    return files("qbridge.page").joinpath(f"page.{ending}").read_text("utf-8")


def _digest(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"


def _body(contents: Contents) -> Markup:
    parts: list[tuple[str, str, list[Markup]]] = [
        ("about", "What it is", [definitions(contents.facts)]),
        (
            "findings",
            "Findings",
            [_finding(each) for each in contents.findings] or [element("p", "Nothing was found.")],
        ),
        ("layers", "Layers", _layers(contents)),
        ("memory", "Memory per GPU", _memory(contents)),
        ("values", "Codes and scales", [element("div", *map(drawn_sample, contents.samples), class_="samples")]),
        ("provenance", "Provenance", _provenance(contents)),
    ]
    if contents.serve:
        parts.insert(1, ("serve", "Serve it", [_command(contents.serve)]))
    shown = [part for part in parts if _is_there(part[0], contents)]
    links = (element("li", element("a", title, href=f"#{identity}")) for identity, title, _ in shown)
    toggle = element("button", "theme: as the system", type="button", id="theme")
    answer = element("p", contents.answer, class_="answer good" if contents.good else "answer bad")
    header = element("header", element("h1", name(contents.title)), answer, toggle)
    nav = element("nav", element("ul", *links), aria_label="Parts of the page")
    return joined((header, nav, element("main", *(section(each[0], each[1], *each[2]) for each in shown), id="main")))


def _is_there(identity: str, contents: Contents) -> bool:
    there = {"about": contents.facts, "memory": contents.memory, "values": contents.samples}
    return bool(there.get(identity, True))


def _command(command: str) -> Markup:
    copy = element("button", "copy", type="button", class_="copy")
    return element("div", element("pre", element("code", command), tabindex=0), copy, class_="command")


def _finding(finding: Finding) -> Markup:
    head = element(
        "h3", element("span", finding.severity, class_=f"severity {finding.severity}"), f" {finding.code} "
    )
    commands = {str(way) for way in finding.ways}
    ways = (_command(line) if line in commands else element("p", line) for line in finding.remedies)
    where = [element("li", element("code", name(each))) for each in islice(finding.where, _WHERE)]
    more = len(finding.where) - len(where)
    where += [element("li", f"and {more} more")] if more > 0 else []
    content = [element("p", element("strong", finding.message)), *(element("p", fact) for fact in finding.facts)]
    if where:
        content.append(element("details", element("summary", f"where ({len(finding.where)})"), element("ul", *where)))
    content += [element("p", finding.entry.why), element("h4", "Ways out"), *ways]
    grave = "grave" if finding.severity is Severity.ERROR else "light"
    return element("article", head, *content, class_=f"finding {grave}")


def _layers(contents: Contents) -> list[Markup]:
    notes = [element("p", note, class_="note") for note in contents.notes]
    if contents.grid is None or not contents.grid.cells:
        return notes or [element("p", "It has no layers that can be drawn.")]
    if contents.grid.left_out:
        notes.append(element("p", f"{contents.grid.left_out} further blocks or kinds are not drawn.", class_="note"))
    return [drawn_map(contents.grid), *notes]


def _memory(contents: Contents) -> list[Markup]:
    note = "Weights as they are stored, without key-value cache and activations."
    caption = "By tensor-parallel size"
    return [table(caption, contents.memory_heads, contents.memory), element("p", note, class_="note")]


def _provenance(contents: Contents) -> list[Markup]:
    rows = [(name(file), size(count)) for file, count in islice(contents.files.items(), FILES)]
    found = [definitions(contents.provenance)]
    if rows:
        more = len(contents.files) - len(rows)
        listed = [table("Files of weights", ("file", "size"), rows)]
        listed += [element("p", f"and {more} more")] if more else []
        summary = element("summary", f"{len(contents.files)} files of weights")
        found.append(element("details", summary, *listed))
    return found
