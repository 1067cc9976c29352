"""Pages: whole, safe and small, for every command that writes one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

import qbridge
from qbridge.ir.model import Model, TensorInfo
from qbridge.page import layer_map, samples
from qbridge.page.markup import element, name, text
from support import cli

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=alert(1) \u202e\u0007"
PARTS = ["about", "serve", "findings", "layers", "memory", "values", "provenance"]


class Read(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.inside, self.sources, self.text = [], [], "", {"script": [], "style": []}, ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in self.sources:
            self.sources[self.inside].append(data)
        else:
            self.text += data

    def ids(self):
        return [value for _, key, value in self.attributes if key == "id"]


def is_safe(page: str) -> Read:
    """Assert that a page loads nothing and runs its own script alone; what it is made of."""
    read = Read(page)
    (policy,) = [value for _, key, value in read.attributes if key == "content" and "default-src" in value]
    for kind, sources in read.sources.items():
        (source,) = sources
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    assert read.tags.count("script") == 1
    assert not {"img", "iframe", "link", "object", "embed", "base", "form", "a href"} & set(read.tags)
    for tag, key, value in read.attributes:
        assert not key.startswith("on") and key not in ("style", "src", "srcset", "action"), (tag, key)
        assert key != "href" or value.startswith("#"), value
    assert not re.search(r"https?://|url\(|@import", page)
    return read


@pytest.fixture
def src(fixtures):
    return fixtures / "gptq/llama_3bit/model"


def test_a_conversion_has_a_page(src, tmp_path):
    done = qbridge.convert(src, tmp_path / "out", "vllm", report=tmp_path / "page.html")
    read = is_safe((tmp_path / "page.html").read_text())
    assert [each for each in read.ids() if each in PARTS] == PARTS
    assert done.serve in read.text and "compressed-tensors" in read.text and "7 reversible" in read.text
    assert any(key == "data-says" and "reversible" in value for _, key, value in read.attributes)
    assert not (tmp_path / "out/page.html").exists()


def test_a_plan_has_a_page(src, tmp_path):
    qbridge.convert(src, tmp_path / "out", "vllm", dry_run=True, report=tmp_path / "page.html")
    assert "planned for vllm" in is_safe((tmp_path / "page.html").read_text()).text


@pytest.mark.parametrize("tp", [1, (1, 2, 4)])
def test_a_check_has_a_page(src, tmp_path, tp):
    qbridge.check(src, "vllm", tp, "h100", report=tmp_path / "page.html")
    read = is_safe((tmp_path / "page.html").read_text())
    assert "QB224" in read.text and "qbridge convert" in read.text and "GPU" in read.text


def test_a_config_alone_has_a_page(src, tmp_path):
    (tmp_path / "model").mkdir()
    shutil.copy(src / "config.json", tmp_path / "model")
    qbridge.check(tmp_path / "model", "vllm", report=tmp_path / "page.html")
    read = is_safe((tmp_path / "page.html").read_text())
    assert "the weights were not read" in read.text and "map" in read.ids()


def test_a_verification_marks_what_differs(src, tmp_path):
    qbridge.convert(src, tmp_path / "out", "vllm")
    assert qbridge.verify(src, tmp_path / "out", report=tmp_path / "same.html").same
    assert "the same model" in is_safe((tmp_path / "same.html").read_text()).text
    shutil.copytree(src, tmp_path / "other")
    flip_a_scale(tmp_path / "other/model.safetensors")
    assert not qbridge.verify(src, tmp_path / "other", report=tmp_path / "page.html").same
    read = is_safe((tmp_path / "page.html").read_text())
    marked = [value for _, key, value in read.attributes if key == "class" and value and "differs" in value.split()]
    assert len(marked) == 1 and "QB501" in read.text


def flip_a_scale(file):
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    start = next(entry["data_offsets"][0] for key, entry in header.items() if key.endswith("scales"))
    data[8 + size + start] ^= 1
    file.write_bytes(data)


def test_a_refusal_has_a_page(src, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "marlin", report=tmp_path / "page.html")
    read = is_safe((tmp_path / "page.html").read_text())
    assert refused.value.findings[0].code in read.text and "nothing was written" in read.text
    assert not (tmp_path / "out").exists()


def test_a_container_has_a_page(fixtures, tmp_path):
    file = next(iter(sorted(fixtures.rglob("*.gguf"))))
    qbridge.inspect(file, report=tmp_path / "page.html")
    is_safe((tmp_path / "page.html").read_text())


def test_the_command_line_writes_it(src, tmp_path):
    done = cli("inspect", src, "--report", tmp_path / "page.html", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["format"] == "gptq"
    first = (tmp_path / "page.html").read_text()
    assert cli("inspect", src, "--report", tmp_path / "page.html").returncode == 0
    assert (tmp_path / "page.html").read_text() == first and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("other", ["config.json", "nowhere/page.html", "folder"])
def test_no_other_file_is_replaced(src, tmp_path, other):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(src, tmp_path / "out", "vllm", report=tmp_path / other)
    assert refused.value.findings[0].code == "QB804" and not (tmp_path / "out").exists()
    assert (tmp_path / "config.json").read_text() == "{}"


def test_hostile_names_are_inert(src, tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "|")
    shutil.copytree(src, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [HOSTILE]
    (folder / "config.json").write_text(json.dumps(config))
    qbridge.inspect(folder, report=tmp_path / "page.html")
    read = is_safe((tmp_path / "page.html").read_text())
    assert "alert(1)" in read.text and "\u202e" not in read.text and "\x07" not in read.text
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(folder, tmp_path / "out", "marlin", report=tmp_path / "page.html")
    is_safe((tmp_path / "page.html").read_text())


def test_markup_escapes_what_is_no_markup():
    made = element("p", HOSTILE, element("b", "<i>"), title=HOSTILE, hidden=True, class_=None)
    read = Read(made)
    assert read.tags == ["p", "b"] and "<i>" in read.text and text("<") == "&lt;"
    assert {key for _, key, _ in read.attributes} == {"title", "hidden"}
    assert len(name("a" * 10_000)) < 200


def test_a_map_is_bounded_whatever_the_names_are():
    tensors = {f"a{n}.layers.{n}.kind{n}": TensorInfo(None or DTYPE, (2, 2), "x") for n in range(2000)}
    grid = layer_map.layer_map(Model("f", {}, {}, {}, tensors))
    assert len(grid.rows) <= layer_map.ROWS and len(grid.columns) <= layer_map.COLUMNS and grid.left_out > 1000


DTYPE = qbridge.ir.dtypes.DType.F16


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("model.layers.3.mlp.up_proj", ("model.layers.3", "mlp.up_proj")),
        ("model.layers.3.mlp.experts.17.w1", ("model.layers.3", "mlp.experts.*.w1")),
        ("lm_head", ("", "lm_head")),
        ("visual.blocks.0.attn.qkv", ("visual.blocks.0", "attn.qkv")),
    ],
)
def test_modules_have_a_block_and_a_kind(module, place):
    assert layer_map.position(module) == place


def test_samples_are_what_the_layers_hold(fixtures):
    with qbridge.open(fixtures / "gptq/llama_3bit/model") as opened:
        found = samples.samples(opened)
        sample = next(each for each in found if each.kind == "mlp.up_proj")
        layer = opened.layer("model.layers.0.mlp.up_proj")
    counts = [int((layer.arrays["code"] == value).sum()) for value in range(-4, 4)]
    assert list(sample.codes.counts) == counts and sample.scales.total == layer.arrays["scale"].size


def test_samples_take_bounded_memory(fixtures, bytes_read, monkeypatch):
    monkeypatch.setattr(samples, "CODES", 512)
    with qbridge.open(fixtures / "compressed_tensors/llama_w8a8/model") as opened:
        bytes_read.clear()
        assert samples.samples(opened)
    assert max(bytes_read.values()) <= 1024


def test_histograms_count_what_has_no_logarithm():
    drawn = samples.logarithms(np.array([0.0, 0.0, np.nan, np.inf, 1.0, -2.0]))
    assert (drawn.zeros, drawn.broken, sum(drawn.counts), drawn.total) == (2, 2, 2, 6)
    nothing = samples.logarithms(np.array([0.0]))
    assert nothing.zeros == 1 and sum(nothing.counts) == 0
