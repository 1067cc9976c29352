"""Engines' own parsers take the lines of README and the docs that start a server."""

from __future__ import annotations

import re

import pytest

from documented import lines
from test_explain import parsed

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("program", "engine", "environment"),
    [
        ("vllm serve", "vllm", "vllm"),
        ("lmdeploy serve", "lmdeploy", "lmdeploy-0.18.0"),
        ("python -m sglang.launch_server", "sglang", "sglang"),
    ],
)
def test_the_engine_takes_every_line_that_serves(program, engine, environment, tmp_path):
    found = list(dict.fromkeys(re.sub(r"\bN\b", "2", line) for _, line in lines(program)))
    assert found
    for line, told in zip(found, parsed(engine, environment, found, tmp_path), strict=True):
        assert told["model"] and told["model"] in line
