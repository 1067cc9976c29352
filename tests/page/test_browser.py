"""Pages in a real browser, where there is one: nothing but the page is loaded, every control does what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import chromium
import qbridge

pytestmark = pytest.mark.skipif(not chromium.PROGRAM, reason="no Chromium here")
AXE = os.environ.get("AXE", "")  # axe.min.js, of npm's axe-core: make page


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.page(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    root = Path(__file__).resolve().parents[2] / "fixtures"
    folder = tmp_path_factory.mktemp("pages")
    src = root / "gptq/llama_3bit/model"
    qbridge.convert(src, folder / "out", "vllm", report=folder / "page.html")
    return folder / "page.html"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1024, 1920])
def test_it_fits_and_loads_nothing(browser, file, width, dark):
    browser.open(file.as_uri(), width, dark)
    assert browser.ask("document.documentElement.scrollWidth - innerWidth") <= 0
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(21, 22, 26)" if dark else "rgb(255, 255, 255)")
    assert browser.complaints == []


def test_every_control_does_what_it_says(browser, file):
    browser.open(file.as_uri())
    click = "document.querySelector({!r}).click()".format
    for theme in ("light", "dark", None):
        browser.ask(click("#theme"))
        assert browser.ask("document.documentElement.dataset.theme || null") == theme
    for way in ("size", "exactness", "scheme"):
        browser.ask(click(f"input[value={way}]"))
        assert browser.ask("document.getElementById('map').dataset.by") == way
        shown = (
            "[...document.querySelectorAll('.legend')].filter(each => each.offsetHeight).map(each => each.className)"
        )
        assert browser.ask(shown) == [f"legend by-{way}"]
    browser.ask("document.querySelectorAll('summary').forEach(each => each.click())")
    assert browser.ask("[...document.querySelectorAll('details')].every(each => each.open)")
    browser.ask("document.querySelectorAll('button.copy').forEach(each => each.click())")
    words = browser.ask(
        "new Promise(done => setTimeout(() => done([...document.querySelectorAll('button.copy')]"
        ".map(each => each.textContent)), 300))"
    )
    assert words and set(words) <= {"copied", "selected"}
    links = browser.ask("[...document.links].map(each => each.getAttribute('href'))")
    for link in links:
        browser.ask(click(f"a[href='{link}']"))
        assert browser.ask("location.hash") == link and browser.ask(f"!!document.querySelector({link!r})")
    others = "button:not(#theme):not(.copy),input:not([name=by]),a:not([href]),select,textarea"
    assert links and browser.ask(f"document.querySelectorAll({others!r}).length") == 0
    assert browser.complaints == []


def test_the_map_is_walked_by_arrow_keys(browser, file):
    browser.open(file.as_uri())
    browser.ask("document.querySelector('#map td[tabindex=\"0\"]').focus()")
    seen = set()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp"):
        browser.press(key)
        seen.add(browser.ask("document.getElementById('cell').textContent"))
    assert len(seen) > 1 and browser.ask("document.querySelectorAll('#map td[tabindex=\"0\"]').length") == 1
    browser.ask("document.querySelector('#map td.s0').click()")
    assert "weights int3" in browser.ask("document.getElementById('cell').textContent")


@pytest.mark.skipif(not AXE, reason="AXE names no axe.min.js")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_has_no_barrier_that_axe_knows(browser, file, dark):
    browser.open(file.as_uri(), 1024, dark)
    browser.ask(Path(AXE).read_text() + ";0")
    assert browser.ask("axe.run().then(done => done.violations.map(each => each.id))") == []
