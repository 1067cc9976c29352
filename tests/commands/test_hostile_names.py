"""Names and values that a stranger chose do nothing: on a terminal, in a notebook, in JSON, in a card."""

from __future__ import annotations

import json
import re
import unicodedata
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

import qbridge
from qbridge import display, render
from support import copy_fixture, edit_json, rewrite_tensors

MARKUP = "</script><img src=x onerror=alert(1)>"
ESCAPES = "\x1b]0;pwned\x07\x1b[2J\x9b31m\r\n\t"
BIDI = "\u202eevil\u2066\u200b\u2028\x85\ufeff"
HOSTILE = f"{MARKUP}{ESCAPES}{BIDI}[bold]|`# $x$"
OURS = re.compile(r"\x1b\[[0-9;]*m")  # colours


@pytest.fixture
def src(tmp_path):
    """A checkpoint with a hostile tensor, hostile values in config.json, and a hostile card."""
    src = copy_fixture(tmp_path)
    rewrite_tensors(src, lambda tensors: tensors.update({f"model.{HOSTILE}.weight": np.ones(3, np.float16)}))
    edit_json(src / "config.json", lambda config: config.update({HOSTILE: HOSTILE, "_name_or_path": HOSTILE}))
    (src / "README.md").write_text(f"---\nbase_model: '{MARKUP}: !!python/name:os.system'\n---\n# {MARKUP}\n")
    return src


def assert_inert(text, html=None):
    """No character that a terminal obeys or that hides another; no tag of the name in a page."""
    odd = {c for c in OURS.sub("", text) if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert not odd, ascii(text)
    if html is not None:
        assert "<img" not in html and "<script" not in html and "</script" not in html
        assert_inert(html)


def assert_shown_safely(ask):
    """What a command answers, or refuses with, in every way in which it can be shown."""
    console = Console(file=StringIO(), force_terminal=True, width=70, highlight=False, soft_wrap=True)
    try:
        result = ask()
    except qbridge.QBridgeError as fault:
        render.findings(console, fault.findings)
        assert_inert(console.file.getvalue())
        assert_inert(json.dumps([finding.as_dict() for finding in fault.findings]))
        return fault
    display.answer(result, console, console)
    assert_inert(console.file.getvalue())
    assert_inert(str(result), result._repr_html_())
    assert_inert(repr(result))
    assert_inert(json.dumps(result.as_dict(), default=str))
    return result


def test_names_of_tensors_and_values_of_config_do_nothing_in_any_command(src, tmp_path):
    shown = [
        assert_shown_safely(lambda: qbridge.inspect(src)),
        assert_shown_safely(lambda: qbridge.check(src, "vllm")),
        assert_shown_safely(lambda: qbridge.check(src, "lmdeploy", [1, 2])),
        assert_shown_safely(lambda: qbridge.convert(src, tmp_path / "refused", "dense")),
        assert_shown_safely(lambda: qbridge.convert(src, tmp_path / "dst", "vllm", allow=["unknown-tensors"])),
        assert_shown_safely(lambda: qbridge.verify(src, tmp_path / "dst")),
        assert_shown_safely(lambda: qbridge.what(src)),
        assert_shown_safely(lambda: qbridge.restore(tmp_path / "dst", tmp_path / "back")),
        assert_shown_safely(lambda: qbridge.convert(src, tmp_path / HOSTILE.replace("/", "-"), "vllm", dry_run=True)),
    ]
    assert any("onerror" in str(each) for each in shown)


def test_a_hostile_name_in_a_message_does_nothing():
    name = f"model.layers.3.mlp.down_proj.{MARKUP}"
    for text in (f"KeyError: '{name}'", f"{HOSTILE} KeyError: 'model.layers.3.mlp.down_proj.weight_scale' {HOSTILE}"):
        assert_shown_safely(lambda text=text: qbridge.explain(text))


def test_hostile_names_of_files_do_nothing(tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "-")
    copied = copy_fixture(tmp_path).rename(folder)
    (copied / f"{HOSTILE.replace('/', '-')}.bin").write_bytes(b"x")
    assert_shown_safely(lambda: qbridge.inspect(folder))
    assert_shown_safely(lambda: qbridge.check(folder, "vllm", 2))
    assert_shown_safely(lambda: qbridge.clean(folder))
    assert_shown_safely(lambda: qbridge.inspect(folder / "none"))


def test_the_card_and_the_manifest_are_inert(src, tmp_path):
    qbridge.convert(src, tmp_path / "dst", "lmdeploy", allow=["unknown-tensors"])
    card = (tmp_path / "dst/README.md").read_text()
    own = card[card.index("<!-- qbridge: what") : card.index("<!-- qbridge: the card of the source")]
    assert_inert(own)
    assert "onerror" not in own and f"base_model: '{MARKUP}: !!python/name:os.system'\n" in card
    json.loads((tmp_path / "dst/qbridge.json").read_text())
    json.loads((tmp_path / "dst/config.json").read_text())


def test_half_a_character_is_carried_over(tmp_path):
    src = copy_fixture(tmp_path)
    edit_json(src / "config.json", lambda config: config.update({"_name_or_path": "\ud800", "x\udfff": ["\udc00a"]}))
    assert_shown_safely(lambda: qbridge.convert(src, tmp_path / "dst", "lmdeploy"))
    for folder in ("src", "dst"):
        config = json.loads((tmp_path / folder / "config.json").read_text("utf-8"))
        assert (config["_name_or_path"], config["x\udfff"]) == ("\ud800", ["\udc00a"])
    assert qbridge.convert(src, tmp_path / "dst", "lmdeploy").already_done
    qbridge.restore(tmp_path / "dst", tmp_path / "back")
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((src / "config.json").read_text())
