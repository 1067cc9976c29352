from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import hypothesis
import pytest

from qbridge.source.reader import Source

# the first use of a kernel compiles it, which no deadline should count
hypothesis.settings.register_profile("qbridge", deadline=None)
hypothesis.settings.load_profile("qbridge")

# no setting of whoever runs the tests
os.environ["XDG_CONFIG_HOME"] = "/nonexistent"
for _name in ("GPU", "JOBS", "MAX_SHARD_SIZE", "MEMORY", "PROGRESS", "TP"):
    os.environ.pop(f"QBRIDGE_{_name}", None)

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


# Seconds of each folder's tests, set up and torn down; with xdist, what all processes took together.
SECONDS: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    SECONDS[report.nodeid.partition("::")[0].rpartition("/")[0]] += report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if len(SECONDS) > 1:
        terminalreporter.section("seconds by folder")
        for folder, seconds in SECONDS.most_common():
            terminalreporter.write_line(f"{seconds:8.1f}  {folder}")


@pytest.fixture
def bytes_read(monkeypatch):
    """How many bytes of each tensor were read, whoever asked."""
    counted: Counter[str] = Counter()
    real = Source.read_into

    def read_into(source, name, offset, buffer):
        counted[name] += buffer.nbytes
        real(source, name, offset, buffer)

    monkeypatch.setattr(Source, "read_into", read_into)
    return counted
