from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

# the first use of a kernel compiles it, which no deadline should count
hypothesis.settings.register_profile("qbridge", deadline=None)
hypothesis.settings.load_profile("qbridge")

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="rewrite CLI transcripts with what the program says")


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--accept"))


@pytest.fixture
def fixtures() -> Path:
    return ROOT / "fixtures"


@pytest.fixture
def dst(tmp_path):
    """Where a conversion is to go; nothing stands there."""
    return tmp_path / "dst"
