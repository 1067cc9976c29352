"""Results in Python: as text what the terminal shows, in a line as repr, in a notebook as inert HTML."""

from __future__ import annotations

import json
import pickle
import re
from html.parser import HTMLParser

import pytest

import qbridge
from qbridge.commands.explanation import listing
from qbridge.commands.names import format_names, target_names
from qbridge.findings.finding import Finding, Severity
from support import cli, copy_fixture, edit_header

SRC = "compressed_tensors/llama_w8a8_rope"
HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2Jm & 'q' \"q\""
VOLATILE = re.compile(r"(?m)^(time +)[\d.]+ s$")


@pytest.fixture
def src(tmp_path):
    return copy_fixture(tmp_path, SRC)


@pytest.fixture
def results(src):
    """A result of every public call, and the command line that answers the same, by the name of the call."""
    out, back = src.parent / "out", src.parent / "back"
    qbridge.convert(src, out, "lmdeploy")
    return {
        "convert": (qbridge.convert(src, out, "lmdeploy"), ["convert", src, out, "--to", "lmdeploy"]),
        "restore": (qbridge.restore(out, back, dry_run=True), ["restore", out, back, "--dry-run"]),
        "check": (qbridge.check(src, "vllm"), ["check", src, "--for", "vllm"]),
        "check no": (qbridge.check(src, "awq"), ["check", src, "--for", "awq"]),
        "check table": (qbridge.check(src, "vllm", [1, 64]), ["check", src, "--for", "vllm", "--tp", "1,64"]),
        "what": (qbridge.what(src), ["what", src]),
        "prove": (qbridge.prove(src, "vllm"), ["prove", src, "--in", "vllm"]),
        "inspect": (qbridge.inspect(src), ["inspect", src]),
        "verify": (qbridge.verify(src, out), ["verify", src, out]),
        "clean": (qbridge.clean(src.parent / "none"), ["clean", src.parent / "none"]),
        "explain": (qbridge.explain("QB015"), ["explain", "QB015"]),
        "explain nothing": (qbridge.explain("all is well"), ["explain", "all is well"]),
        "listing": (listing(), ["explain"]),
        "formats": (format_names(), ["formats"]),
        "targets": (target_names(), ["targets"]),
    }


def test_text_is_what_the_command_prints_and_repr_is_a_line(results):
    for name, (result, words) in results.items():
        done = cli(*words, stdin=None)
        below = name == "check table"
        printed = done.stdout + done.stderr if below else done.stderr + done.stdout
        assert VOLATILE.sub("", str(result)) == VOLATILE.sub("", printed.rstrip("\n")), name
        assert done.returncode == result.exit_code, name
        assert "\n" not in repr(result) and len(repr(result)) < 130 and type(result).__name__ in repr(result), name
        assert json.loads(json.dumps(result.as_dict(), default=str))["schema"] == 1


class Page(HTMLParser):
    """The elements and the text of a page; what would run or fetch is an error."""

    def __init__(self, text):
        super().__init__()
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        assert tag in ("pre", "span") and [name for name, _ in attributes] == ["style"], (tag, attributes)
        assert "url(" not in attributes[0][1]

    def handle_data(self, data):
        self.shown += data


def test_html_says_the_same_and_is_small(results):
    for result, _ in results.values():
        html = result._repr_html_()
        assert VOLATILE.sub("", Page(html).shown) == VOLATILE.sub("", f"{result}\n")
        assert len(html) < 4 * len(str(result)) + 2000


def test_hostile_names_are_inert(src):
    edit_header(src / "model.safetensors", lambda header: header.update({HOSTILE: header.pop("model.norm.weight")}))
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, src.parent / "out", "lmdeploy")
    answer = qbridge.check(src, "lmdeploy")
    shown = Page(answer._repr_html_()).shown
    for text in (shown, str(answer)):
        assert "<script>" in text and "\x1b" not in text and "\\x1b[2J" in text
    assert "<script" not in answer._repr_html_() and "<img" not in answer._repr_html_()
    finding = Finding("QB022", (HOSTILE,), (HOSTILE,), (), Severity.WARNING)
    report = qbridge.Inspection(HOSTILE, "awq", HOSTILE, HOSTILE, [], [HOSTILE], 1, 1, 1, {}, [], [finding])
    assert "<script>" in Page(report._repr_html_()).shown
    assert "\x1b" not in repr(report) + str(report) and "\n" not in repr(report)


def test_colours_are_legible_on_white_and_on_black(results):
    colours = {each for result, _ in results.values() for each in re.findall(r"#[0-9a-f]{6}", result._repr_html_())}

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    assert colours
    for colour in colours:
        own = luminance(colour)
        assert 1.05 / (own + 0.05) > 3.5 and (own + 0.05) / 0.05 > 3.5, colour


def test_other_objects_have_a_repr_of_a_line(src):
    with qbridge.open(src) as opened, qbridge.stream(src, "lmdeploy") as streamed:
        layer = opened.layer(next(iter(opened.specs)))
        for value in (opened, opened.model, opened.source, opened.findings, layer, streamed, *qbridge.list_targets()):
            assert "\n" not in repr(value) and len(repr(value)) < 200, type(value)


def test_results_cross_processes(results):
    for result, _ in results.values():
        assert str(pickle.loads(pickle.dumps(result))) == str(result)


def test_open_is_no_name_to_import_bare():
    names = {}
    exec("from qbridge import *", names)
    assert "open" not in names and {"explain", "what", "check"} <= names.keys()
    assert qbridge.open
