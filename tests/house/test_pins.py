"""constraints.txt: what the suite compares with does not move until somebody runs `make pins`."""

from __future__ import annotations

from moved import environment, moved, pins
from support import ROOT

CONSTRAINTS = ROOT / "constraints.txt"


def test_every_package_of_the_environment_is_pinned():
    installed = environment("qbridge-llm", "dev")
    assert {"transformers", "compressed-tensors", "safetensors", "numba", "hypothesis", "ruff"} <= installed.keys()
    assert installed.keys() - pins(CONSTRAINTS).keys() == set()


def test_pins_of_another_python_do_not_count(tmp_path):
    file = tmp_path / "constraints.txt"
    file.write_text("# a comment\na==1 ; python_version < '3'\nA==2 ; python_version >= '3'\nb-c==3\n")
    assert pins(file) == {"a": "2", "b-c": "3"}


def test_what_moved_is_named_with_both_versions():
    lines = moved({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"})
    assert lines == ["b 2 -> 3", "c unpinned -> 4"]
