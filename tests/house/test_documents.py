"""Pages that walk through the code name files that are there."""

from __future__ import annotations

import re

import pytest

from support import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", "docs/architecture.md"]
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
