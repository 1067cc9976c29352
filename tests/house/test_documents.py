"""Pages that walk through the code name files that are there."""

from __future__ import annotations

import functools
import importlib
import re

import pytest

from support import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/formats.md", "docs/commands.md"]
BASES = [ROOT, ROOT / "bridge/qbridge", ROOT / "formats"]
NAMED = re.compile(r"`([\w./]+(?:\.py|/))`")


@pytest.mark.parametrize("page", PAGES)
def test_named_files_and_folders_are_there(page):
    named = set(NAMED.findall((ROOT / page).read_text()))
    by_name = {file.name for base in BASES[1:] for file in base.rglob("*.py")}
    missing = {name for name in named if not any((base / name).exists() for base in BASES)}
    assert {name for name in missing if "/" in name.rstrip("/") or name not in by_name} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_every_room_is_on_the_walk():
    rooms = {path.parent.name for path in (ROOT / "bridge/qbridge").glob("*/__init__.py")}
    text = (ROOT / "docs/architecture.md").read_text()
    assert [room for room in sorted(rooms) if f"`{room}/" not in text] == []


# qbridge.json and qbridge.residue are files, qbridge.config and qbridge.manifest keys of a GGUF file
DOTTED = re.compile(r"\bqbridge(?:_formats)?\.(?!(?:json|residue|config|manifest)\b)\w+(?:\.\w+)*")
SPOKEN = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *BASES[1].rglob("*.py"), *BASES[2].rglob("*.py")]


def is_there(name):
    """Whether a dotted name is a module, or something in one."""
    module, _, rest = name, "", ()
    while module:
        try:
            there = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            rest = (last, *rest)
        else:
            return functools.reduce(lambda found, part: getattr(found, part, None), rest, there) is not None
    return False


def test_dotted_names_are_there():
    names = {name: page for page in SPOKEN for name in DOTTED.findall(page.read_text())}
    assert {name: page.name for name, page in names.items() if not is_there(name)} == {}
