"""The map of layers as a PNG: what colours it has, and what is said where it cannot be drawn."""

from __future__ import annotations

import sys

import pytest

import qbridge
from support import cli

PIL = pytest.importorskip("PIL.Image")
CODES, PLAIN, BAD = (0x34, 0x68, 0xC0), (0xD9, 0xD9, 0xDF), (0xA1, 0x1D, 0x1D)  # of page.css: k0, u, bad
HOSTILE = "<script>\u202e\u0007 \u4e2d" * 50


def cells(file, colour):
    """The number of cells that have a colour, of 24 x 32 pixels each."""
    with PIL.open(file) as image:
        pixels = dict((each, count) for count, each in image.convert("RGB").getcolors(1 << 24))
    return pixels.get(colour, 0) / (24 * 32)


@pytest.fixture
def src(fixtures):
    return fixtures / "gptq/llama_3bit/model"


def test_each_kind_of_each_block_is_a_cell_and_so_is_each_scheme(src, tmp_path):
    qbridge.inspect(src, report=tmp_path / "map.png")
    with qbridge.open(src) as opened:
        layers = len(opened.specs)
    assert cells(tmp_path / "map.png", CODES) == layers + 1
    assert cells(tmp_path / "map.png", PLAIN) == 2 + 1  # embeddings and head


def test_the_same_command_writes_the_same_image(src, tmp_path):
    first, again = tmp_path / "a.png", tmp_path / "B.PNG"
    for file in (first, again):
        assert cli("convert", src, tmp_path / "out", "--to", "vllm", "--dry-run", "--report", file).returncode == 0
    assert first.read_bytes() == again.read_bytes()


def test_layers_that_differ_are_marked(src, tmp_path, fixtures):
    qbridge.convert(src, tmp_path / "out", "vllm")
    assert qbridge.verify(src, tmp_path / "out", report=tmp_path / "map.png").same
    assert cells(tmp_path / "map.png", BAD) == 0
    qbridge.verify(src, fixtures / "gptq/llama_2bit/model", report=tmp_path / "map.png")
    assert cells(tmp_path / "map.png", BAD) > 1


def test_what_cannot_be_drawn_has_an_image_that_says_so(tmp_path, fixtures):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(qbridge.QBridgeError):
        qbridge.inspect(tmp_path, report=tmp_path / "map.png")
    assert cells(tmp_path / "map.png", CODES) == 0


def test_hostile_names_are_drawn(src, tmp_path):
    folder = tmp_path / HOSTILE[:60].replace("/", "|")
    folder.symlink_to(src)
    qbridge.inspect(folder, report=tmp_path / "map.png")
    with PIL.open(tmp_path / "map.png") as image:
        assert image.width < 4000


def test_no_other_file_is_replaced(src, tmp_path):
    (tmp_path / "map.png").write_text("mine")
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "vllm", report=tmp_path / "map.png")
    assert refused.value.findings[0].code == "QB804" and (tmp_path / "map.png").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_without_pillow_the_extra_is_named_before_anything_is_done(src, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "vllm", report=tmp_path / "map.png")
    (missing,) = refused.value.findings
    assert missing.code == "QB603" and "qbridge-llm[image]" in missing.remedies[0] and not list(tmp_path.iterdir())
