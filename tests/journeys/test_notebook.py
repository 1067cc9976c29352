"""docs/notebook.ipynb: its cells run, in order, and what stands below them is what they say.

`pytest --accept` writes the outputs anew. A cell is run as IPython runs it: its last expression is displayed.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import xml.etree.ElementTree

from support import ROOT

NOTEBOOK = ROOT / "docs/notebook.ipynb"
VOLATILE = re.compile(r"(time</span> +|time +|, )\d+\.\d s\b")
SHOWN = (("image/svg+xml", "_repr_svg_"), ("text/html", "_repr_html_"))


def stable(text):
    return VOLATILE.sub(r"\g<1>0.0 s", text).splitlines(keepends=True)


def outputs(source, names, count):
    """What a cell prints, and the value of its last expression in every way in which it can be shown."""
    tree, printed = ast.parse(source), io.StringIO()
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None
    found = []
    if printed.getvalue():
        found.append({"name": "stdout", "output_type": "stream", "text": stable(printed.getvalue())})
    if value is not None:
        data = {kind: stable(getattr(value, method)()) for kind, method in SHOWN if hasattr(value, method)}
        data["text/plain"] = stable(repr(value))
        found.append({"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"})
    return found


def test_the_cells_run_and_say_what_stands_below_them(tmp_path, monkeypatch, accept):
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(NOTEBOOK.read_text())
    names, cells = {}, [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    was = [cell["outputs"] for cell in cells]
    for count, cell in enumerate(cells, 1):
        cell["execution_count"] = count
        cell["outputs"] = outputs("".join(cell["source"]), names, count)
    if accept:
        NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    assert len(cells) == 10
    assert [cell["outputs"] for cell in cells] == was


def test_it_is_a_notebook_whose_outputs_are_inert():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert set(cell) >= {"cell_type", "id", "metadata", "source"}
        for output in cell.get("outputs", ()):
            shown = output.get("data", {})
            assert "<script" not in "".join(shown.get("text/html", ()))
            if "image/svg+xml" in shown:
                xml.etree.ElementTree.fromstring("".join(shown["image/svg+xml"]))
