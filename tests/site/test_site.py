"""The documentation: its generated pages, its plugin, and the built site where SITE names it (make docs)."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urldefrag

import pytest
import yaml

import chromium
from guide_plugin import write_plugin
from qbridge.targets.registry import codes, messages
from support import ROOT

SITE = Path(os.environ.get("SITE", ""))
_SPEC = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs/site/hooks.py")
hooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hooks)
PAGES = dict(hooks.generated())

# What engines print, with values, and the heading that must be first of what the search shows.
PRINTED = {
    "KeyError: 'model.layers.30.mlp.down_proj.weight_scale'": "KeyError",
    "Unsupported quant method: compressed-tensors": "Unsupported quant method",
    "Only compressed-tensors 'pack-quantized' format is supported.": "Only compressed-tensors",
    "requires K >= 128, K % 128 == 0": "requires K",
    "mismatched quant method: user input": "mismatched quant method",
    "Following weights were not initialized from checkpoint": "Following weights were not initialized",
    "Detected some but not all shards of": "Detected some but not all shards",
    "No compressed-tensors compatible scheme was found": "No compressed-tensors compatible scheme",
    "is not divisible by min_thread_k": "min_thread_k",
    "Sparsity support has been removed from compressed-tensors": "Sparsity support has been removed",
}
built = pytest.mark.skipif(not os.environ.get("SITE"), reason="SITE names no built site: make docs")


def test_every_message_is_a_heading():
    headings = {line for page in PAGES.values() for line in page.splitlines() if line.startswith("## ")}
    for message in messages():
        assert f"## {hooks.code(' '.join(message.words.split()))}" in headings


def test_every_code_is_a_heading():
    page = PAGES["recipes/codes.md"]
    assert [code for code in codes() if f"## {code}: " not in page] == []


def test_every_page_is_in_the_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    pages = {str(file.relative_to(ROOT / "docs")) for file in (ROOT / "docs").glob("**/*.md")} | PAGES.keys()
    assert sorted(hooks.named(hooks.whole(nav))) == sorted(pages)
    assert hooks.whole(["index.md"])[-1]["More"]


def test_text_of_the_catalogue_is_no_markup():
    assert hooks.plain("a <b> of `x_y` and x_y*") == "a &lt;b&gt; of `x_y` and x\\_y\\*"


def test_links_out_of_the_docs_are_led_home():
    assert hooks.at_home("[c](../CONTRIBUTING.md)", "architecture.md") == "[c](contributing.md)"
    assert hooks.at_home("[a](docs/check.md)", "contributing.md") == "[a](check.md)"
    assert hooks.at_home("[s](../bridge/qbridge/schemas/what.json)", "json.md") == (
        "s (`bridge/qbridge/schemas/what.json`)"
    )


def test_the_plugin_of_the_guide_works(fixtures, tmp_path):
    laws = write_plugin(tmp_path / "qbridge-acme")
    packages = tmp_path / "packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", packages, tmp_path / "qbridge-acme"], check=True, timeout=300)

    def run(code, *words):
        begin = f"import sys; sys.path.insert(0, {str(packages)!r}); "
        command = [sys.executable, "-c", begin + code, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    program = "from qbridge.cli import main; main()"
    good, narrow = fixtures / "gptq/llama_g128/model", fixtures / "gptq/llama_3bit/model"
    done = run(program, "convert", good, tmp_path / "out", "--to", "acme", "--no-passes")
    assert done.returncode == 0 and "acme serve" in done.stdout, done.stderr
    assert "ACME-001" in run(program, "check", narrow, "--for", "acme").stderr
    assert "acme@1.0" in run(program, "targets").stdout
    done = run(laws)
    assert done.returncode == 0, done.stderr


class _Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links |= {given[key] for key in ("href", "src") if given.get(key)}


@built
def test_every_link_leads_somewhere():
    pages = {file: _Links(file.read_text()) for file in SITE.rglob("*.html")}
    wrong = []
    for file, page in pages.items():
        for link in page.links:
            path, anchor = urldefrag(link)
            if "://" in link or link.startswith(("mailto:", "data:", "javascript:")) or file.name == "404.html":
                continue
            there = (file.parent / unquote(path)).resolve() if path else file.resolve()
            there = there / "index.html" if there.is_dir() else there
            other = pages.get(there)
            if not there.exists() or (anchor and other and unquote(anchor) not in other.ids):
                wrong.append((file.name, link))
    assert pages and wrong == []


@built
def test_nothing_is_fetched_from_elsewhere():
    for file in SITE.rglob("*.html"):
        fetched = re.findall(
            r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"?(https?://[^\">\s]+)", file.read_text()
        )
        assert [link for link in fetched if "canonical" not in link] == []


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(SITE))
    handler.log_message = lambda *words: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.page(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@built
@pytest.mark.skipif(not chromium.PROGRAM, reason="no Chromium here")
@pytest.mark.parametrize("printed", PRINTED)
def test_the_search_finds_the_recipe(browser, address, printed):
    browser.open(f"{address}/index.html?q={quote(printed)}")
    first = browser.ask(
        "new Promise(done => { const end = Date.now() + 20000; const look = () => {"
        " const hit = document.querySelector('.md-search-result__item');"
        " if (hit || Date.now() > end) done(hit ? hit.textContent : ''); else setTimeout(look, 100); }; look(); })"
    )
    link = "document.querySelector('.md-search-result__link').getAttribute('href')"
    assert PRINTED[printed].split()[0] in first and "recipes/" in browser.ask(link)
