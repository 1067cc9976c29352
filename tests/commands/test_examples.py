"""The examples in docstrings of public calls say what happens."""

from __future__ import annotations

import doctest
import importlib

import pytest

from support import ROOT

MODULES = ["checking", "checkpoint", "conversion", "explanation", "inspection", "possibilities", "verification"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(f"qbridge.commands.{name}")
    ran = [
        doctest.DocTestRunner().run(each)
        for each in doctest.DocTestFinder(recurse=True).find(module)
        if each.examples
    ]
    assert ran and all(each.attempted and not each.failed for each in ran)
