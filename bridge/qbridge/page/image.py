"""The map of layers as a PNG, for model cards: blocks from left to right, a row for each kind of module."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from qbridge.commands.report_rows import counted
from qbridge.findings.hints import printable, size
from qbridge.page.contents import Contents
from qbridge.page.document import source_of
from qbridge.page.drawing import colour_of
from qbridge.page.layer_map import LayerMap
from qbridge.page.markup import name

_SCALE = 2  # pixels of the image for one of a screen of old
_MARGIN, _GAP, _BLANK = 16, 2, 8
_WIDTH, _HEIGHT = 12, 16  # of a cell
_TEXT, _TITLE = 13, 18  # sizes of the font
_LEAST = 480  # of the width
_NUMBERED = re.compile(r"^(.*\.)(\d+)$")


@dataclass(frozen=True, slots=True)
class _Words:
    """A line of text, maybe behind a swatch."""

    text: str
    size: int = _TEXT
    ink: str = "ink"
    swatch: str = ""


@dataclass(frozen=True, slots=True)
class _Strip:
    """A kind of module: the colour of its cell in each block, empty where a block has none."""

    label: str
    colours: Sequence[str]


_Line = _Words | _Strip


def image_of(contents: Contents) -> bytes:
    """The PNG of a page's title, answer and map, in the light colours of the page; it needs Pillow."""
    from PIL import Image, ImageDraw, ImageFont

    lines = list(_lines(contents))
    fonts = {each: ImageFont.load_default(each * _SCALE) for each in (_TEXT, _TITLE)}
    labels = [fonts[_TEXT].getlength(line.label) / _SCALE for line in lines if isinstance(line, _Strip)]
    indent = int(max(labels, default=0)) + _BLANK
    width = max(_LEAST, *(_width(line, indent, fonts) for line in lines)) + 2 * _MARGIN
    height = 2 * _MARGIN + sum(map(_height, lines))
    palette = _palette()
    drawn = Image.new("RGB", (width * _SCALE, height * _SCALE), palette["paper"])
    pen = _Pen(ImageDraw.Draw(drawn), fonts, palette, indent)
    for line in lines:
        pen.strip(line) if isinstance(line, _Strip) else pen.words(line)
        pen.top += _height(line)
    made = BytesIO()
    drawn.save(made, "PNG")
    return made.getvalue()


def _palette() -> Mapping[str, str]:
    """The page's light colours by their names: the first block of its style sheet."""
    style = source_of("css")
    colours = (each.partition(":") for each in style[: style.index("}")].split(";"))
    return {key.strip(" -\n"): value for key, _, value in colours}


def _lines(contents: Contents) -> Iterator[_Line]:
    yield _Words(_plain(contents.title), _TITLE)
    yield _Words(_plain(contents.answer), ink="good" if contents.good else "bad")
    grid = contents.grid
    if grid is None or not grid.cells:
        yield _Words("It has no layers that can be drawn.", ink="soft")
        return
    for blocks in _bands(grid):
        yield from _band(grid, blocks)
    yield _Words("")
    yield from _legend(grid)


def _plain(text: str) -> str:
    return printable(name(text))


def _bands(grid: LayerMap) -> list[list[str]]:
    """Blocks that are numbered in one row: the decoder's, those of a vision tower, and what is outside of all."""
    found: dict[str, list[str]] = {}
    for row in grid.rows:
        numbered = _NUMBERED.match(row)
        found.setdefault(numbered[1] if numbered else row, []).append(row)
    return list(found.values())


def _band(grid: LayerMap, blocks: Sequence[str]) -> Iterator[_Line]:
    """A heading, and a strip for each kind of module that these blocks have."""
    last = blocks[-1].rpartition(".")[2]
    yield _Words("")
    yield _Words(_plain(f"{blocks[0]} to {last}" if len(blocks) > 1 else blocks[0] or "outside"), ink="soft")
    for column in grid.columns:
        if any((block, column) in grid.cells for block in blocks):
            yield _Strip(_plain(column), [_cell_colour(grid, block, column) for block in blocks])


def _cell_colour(grid: LayerMap, block: str, column: str) -> str:
    cell = grid.cells.get((block, column))
    if cell is None:
        return ""
    return "bad" if cell.different else colour_of(grid, max(cell.schemes, key=grid.schemes.index))


def _legend(grid: LayerMap) -> Iterator[_Words]:
    """Each scheme with the modules and bytes of the cells that have its colour."""
    for scheme in grid.schemes:
        cells = [cell for cell in grid.cells.values() if scheme in cell.schemes]
        modules = counted(sum(cell.modules for cell in cells), "module")
        said = f"{scheme}: {modules}, {size(sum(cell.bytes for cell in cells))}"
        yield _Words(_plain(said), swatch=colour_of(grid, scheme))
    different = sum(cell.different for cell in grid.cells.values())
    if different:
        yield _Words(f"{counted(different, 'layer')} that differ", swatch="bad")
    if grid.left_out:
        yield _Words(f"{grid.left_out} further blocks or kinds are not drawn.", ink="soft")


def _height(line: _Line) -> int:
    if isinstance(line, _Strip):
        return _HEIGHT + _GAP
    return line.size + _BLANK if line.text else _BLANK


def _width(line: _Line, indent: int, fonts: Mapping[int, Any]) -> int:
    if isinstance(line, _Strip):
        return indent + len(line.colours) * (_WIDTH + _GAP)
    swatch = _WIDTH + _BLANK if line.swatch else 0
    return swatch + int(fonts[line.size].getlength(line.text) / _SCALE)


@dataclass(slots=True)
class _Pen:
    """Draws lines, each at `top`; strips begin at `indent` behind the margin."""

    draw: Any
    fonts: Mapping[int, Any]
    palette: Mapping[str, str]
    indent: int
    top: int = _MARGIN

    def words(self, line: _Words) -> None:
        """Text, behind its swatch."""
        left = _MARGIN
        if line.swatch:
            self._cell(left, line.swatch)
            left += _WIDTH + _BLANK
        self._text(left, line.text, line.size, line.ink)

    def strip(self, line: _Strip) -> None:
        """The cells of a kind of module behind its name."""
        self._text(_MARGIN, line.label, _TEXT, "ink")
        for number, colour in enumerate(line.colours):
            if colour:
                self._cell(_MARGIN + self.indent + number * (_WIDTH + _GAP), colour)

    def _text(self, left: int, text: str, size: int, ink: str) -> None:
        middle = (left * _SCALE, (self.top + _HEIGHT // 2) * _SCALE)
        self.draw.text(middle, text, fill=self.palette[ink], font=self.fonts[size], anchor="lm")

    def _cell(self, left: int, colour: str) -> None:
        right, bottom = left + _WIDTH, self.top + _HEIGHT
        corners = (left * _SCALE, self.top * _SCALE, right * _SCALE - 1, bottom * _SCALE - 1)
        self.draw.rectangle(corners, fill=self.palette[colour])
