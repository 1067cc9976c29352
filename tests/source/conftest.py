"""A Hub on the loopback for tests of far sources and destinations."""

from __future__ import annotations

import shutil

import huggingface_hub
import huggingface_hub.constants
import pytest
from hub_server import Hub

from qbridge.source import patience, spool
from support import ROOT

CASE = ROOT / "fixtures/gptq/llama_g128/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Starts a Hub that has the repository `fx/model`, a copy of a fixture; huggingface_hub asks it."""
    started = []

    def start(model=CASE, **options):
        root = tmp_path / f"hub{len(started)}"
        (root / "fx").mkdir(parents=True)
        if model is not None:
            shutil.copytree(model, root / "fx" / "model")
        started.append(Hub(root, **options).__enter__())
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", started[-1].url)
        return started[-1]

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(patience, "FIRST", 0.001)
    monkeypatch.setattr(spool, "BLOCK", 50_000)
    monkeypatch.chdir(tmp_path)
    yield start
    for each in started:
        each.__exit__()
