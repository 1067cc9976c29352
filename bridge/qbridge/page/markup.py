"""HTML and SVG as text: whatever comes from a file is escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from qbridge.findings.hints import printable

MOST = 160  # characters of a name from a file


class Markup(str):
    """Text that is markup already; anything else is escaped where it is put into an element."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as text of a page: escaped, without control characters, directions and what else moves a reader."""
    return value if isinstance(value, Markup) else Markup(escape(printable(str(value)), quote=True))


def element(name: str, *content: object, **attributes: object) -> Markup:
    """An element; of attributes `class_` is class, `_` in a name is `-`, and what is None or False is left out."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    words = "".join(
        f" {key}" if value is True else f' {key}="{text(value)}"'
        for key, value in given.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{words}>{joined(content)}</{name}>")


def joined(content: Iterable[object]) -> Markup:
    """Pieces one after another."""
    return Markup("".join(text(piece) for piece in content))


def table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[object]], class_: str = "") -> Markup:
    """A table whose first column is the head of its row."""
    head = element("tr", *(element("th", name, scope="col") for name in heads))
    body = []
    for row in rows:
        first, *rest = row
        body.append(element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in rest)))
    content = (element("caption", caption), element("thead", head), element("tbody", *body))
    scrolled = element("table", *content, class_=class_ or None)
    return element("div", scrolled, class_="wide", tabindex=0, role="region", aria_label=caption)


def definitions(rows: Iterable[tuple[str, object]]) -> Markup:
    """Labels with what they say; a row without a label goes on with the one before."""
    pieces: list[Markup] = []
    for label, value in rows:
        if label:
            pieces.append(element("dt", label))
        pieces.append(element("dd", value))
    return element("dl", *pieces)


def section(identity: str, title: str, *content: object) -> Markup:
    """A part of the page, with its heading."""
    return element("section", element("h2", title), *content, id=identity)


def name(value: str) -> str:
    """A name from a file, its middle left out where it is very long."""
    half = MOST // 2
    return value if len(value) <= MOST else f"{value[:half]} ... {value[-half:]}"
