"""The map of layers as a table, and histograms as SVG."""

from __future__ import annotations

from math import log2

from qbridge.findings.hints import size
from qbridge.page.layer_map import UNQUANTIZED, Cell, LayerMap
from qbridge.page.markup import Markup, element, joined, name, text
from qbridge.page.samples import Histogram, Sample

SCHEMES = 8  # colours; further schemes have the last
STEPS = 6  # shades of size
_WIDTH, _HEIGHT = 260, 84


def drawn_map(grid: LayerMap) -> Markup:
    """The grid with its legends; a script lets the arrow keys walk through it and changes what colours mean."""
    heads = element("tr", element("th", "block", scope="col"), *(_head(column) for column in grid.columns))
    body = []
    for row in grid.rows:
        cells = (_cell(grid, grid.cells.get((row, column))) for column in grid.columns)
        body.append(element("tr", element("th", name(row) or "outside", scope="row"), *cells))
    drawn = element("table", element("thead", heads), element("tbody", *body), role="grid", aria_label="Layers")
    return element(
        "div",
        _choices(),
        element("div", drawn, class_="wide"),
        element("p", "Choose a cell, or walk with the arrow keys.", id="cell", role="status"),
        _legends(grid),
        id="map",
        data_by="scheme",
    )


def _head(column: str) -> Markup:
    return element("th", element("span", name(column)), scope="col")


def _choices() -> Markup:
    ways = ("scheme", "size", "exactness")
    buttons = (
        element("label", Markup(f'<input type="radio" name="by" value="{way}"{" checked" * (not number)}>'), way)
        for number, way in enumerate(ways)
    )
    return element("fieldset", element("legend", "coloured by"), *buttons)


def _cell(grid: LayerMap, cell: Cell | None) -> Markup:
    if cell is None:
        return Markup('<td class="none"></td>')
    scheme = max(cell.schemes, key=grid.schemes.index)
    exact = grid.exactness.index(min(cell.exactness)) if cell.exactness else None
    colours = f"s{_mark(grid, scheme)} z{_shade(cell.bytes, grid.largest)} {'n' if exact is None else f'e{exact}'}"
    words = [f"{cell.modules} x" if cell.modules > 1 else "", size(cell.bytes)]
    words.append(", ".join(sorted(name(scheme) for scheme in cell.schemes)))
    words += sorted(cell.exactness)
    if cell.different:
        colours, words = f"{colours} differs", [*words, f"{cell.different} differ"]
    said = "; ".join(word for word in words if word)
    mark = "x" if cell.different else ""
    return Markup(f'<td class="{colours}" tabindex="-1" data-says="{text(said)}">{mark}</td>')


def colour_of(grid: LayerMap, scheme: str) -> str:
    """The name that the colour of a scheme has in the style sheet: k0, k1 and so on, u where it is unquantized."""
    return "u" if scheme == UNQUANTIZED else f"k{_mark(grid, scheme)}"


def _mark(grid: LayerMap, scheme: str) -> str:
    return "u" if scheme == UNQUANTIZED else str(min(grid.schemes.index(scheme), SCHEMES - 1))


def _shade(count: int, largest: int) -> int:
    """The step of a size, a third of the one above it each."""
    return max(0, STEPS - 1 - int(log2(max(1, largest) / max(1, count)) / log2(3)))


def _legends(grid: LayerMap) -> Markup:
    schemes = [(f"s{_mark(grid, scheme)}", scheme) for scheme in grid.schemes]
    sizes = [(f"z{step}", f"up to {size(grid.largest / 3 ** (STEPS - 1 - step))}") for step in range(STEPS)]
    classes = [(f"e{n}", word) for n, word in enumerate(grid.exactness)] + [("n", "not quantized")]
    lists = (("scheme", schemes), ("size", sizes), ("exactness", classes))
    return joined(
        element(
            "ul",
            *(element("li", element("span", class_=f"swatch {colour}"), name(said)) for colour, said in entries),
            class_=f"legend by-{way}",
        )
        for way, entries in lists
    )


def drawn_sample(sample: Sample) -> Markup:
    """The histograms of one kind of module."""
    figures = [_figure(sample.codes, f"codes of {sample.kind}", "code")]
    if sample.scales:
        figures.append(_figure(sample.scales, f"scales of {sample.kind}", "binary logarithm of the scale"))
    said = f"{sample.layers} layers, of which {len(sample.sampled)} were sampled"
    head = element("h3", element("code", name(sample.kind)))
    return element("article", head, element("p", said), *figures)


def _figure(drawn: Histogram, title: str, axis: str) -> Markup:
    most = max(drawn.counts) or 1
    width = _WIDTH / len(drawn.counts)
    bars = joined(
        element(
            "rect",
            x=f"{place * width:.1f}",
            y=f"{_HEIGHT * (1 - count / most):.1f}",
            width=f"{max(0.5, width - 1):.1f}",
            height=f"{_HEIGHT * count / most:.1f}",
        )
        for place, count in enumerate(drawn.counts)
        if count
    )
    view = {"viewBox": f"0 0 {_WIDTH} {_HEIGHT}"}
    low, high = drawn.ends
    said = [f"{drawn.total} values, {axis} from {low:.4g} to {high:.4g}"]
    said += [f"{drawn.zeros} zeros"] if drawn.zeros else []
    said += [f"{drawn.broken} not a number"] if drawn.broken else []
    svg = element("svg", element("title", name(title)), bars, role="img", preserveAspectRatio="none", **view)
    ends = element(
        "p", element("span", f"{low:.4g}"), element("span", f"{high:.4g}"), class_="ends", aria_hidden="true"
    )
    return element("figure", svg, ends, element("figcaption", ", ".join(said)))
