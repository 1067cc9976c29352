"""Options of a conversion on the command line: padding, groups, sizes, and numbers that mean nothing."""

from __future__ import annotations

import json

import pytest

import qbridge
from padding import (
    DOWN,
    cut,
    edited,
    fixture,
    flip,
)
from support import cli, only_neighbours
from test_conversion import config


def test_the_command_line_pads_for_several_sizes(tmp_path):
    source = cut(tmp_path)
    done = cli("convert", source, tmp_path / "out", "--to", "gptq", "--tp", "2,4", "--pad", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["passes"], report["exactness"]) == ({"pad": 3, "regroup": 1}, {"equal": 4, "reversible": 3})
    assert config(tmp_path / "out")["intermediate_size"] == 1024
    assert cli("verify", source, tmp_path / "out").returncode == 0
    edited(tmp_path / "out", f"{DOWN}.qweight", flip((-1, 0)))
    assert cli("verify", source, tmp_path / "out").returncode == 1


def test_the_command_line_plans_without_writing(tmp_path):
    done = cli("convert", fixture("gptq/llama_640"), tmp_path / "out", "--to", "vllm", "--tp", "2", "--dry-run")
    assert done.returncode == 0 and "regroup x 1" in done.stdout
    only_neighbours(tmp_path)


def test_the_command_line_names_the_ways_out(tmp_path):
    done = cli("convert", fixture("gptq/llama_640"), tmp_path / "out", "--to", "vllm", "--tp", "2", "--no-passes")
    assert done.returncode == 1 and "QB251" in done.stderr
    said = " ".join(done.stderr.split())
    assert "per rank 320 = 2.5 groups of 128 (tp 2)" in said
    assert "--regroup 64 # exact" in said and "--pad # exact: 640 -> 768, +20.00 %" in said and "--tp 1" in said
    only_neighbours(tmp_path)


@pytest.mark.parametrize("option", [("--regroup", "64"), ("--pad",)])
def test_the_ways_out_are_ways_out(option, tmp_path):
    words = ("convert", fixture("gptq/llama_640"), tmp_path / "out", "--to", "vllm", "--tp", "2")
    assert cli(*words, *option).returncode == 0
    assert qbridge.verify(fixture("gptq/llama_640"), tmp_path / "out").same


@pytest.mark.parametrize("words", [("--tp", "0"), ("--tp", "two"), ("--no-passes", "--pad")], ids=" ".join)
def test_numbers_that_mean_nothing_are_usage(words, tmp_path):
    done = cli("convert", fixture("gptq/llama_640"), tmp_path / "out", "--to", "gptq", *words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    only_neighbours(tmp_path)


@pytest.mark.parametrize(
    "wanted",
    [
        {"tp": 0},
        {"tp": ()},
        {"tp": (2, -1)},
        {"bits": 5},
        {"bits": 0},
        {"regroup": 4},
        {"regroup": -1},
        {"passes": False, "pad": True},
        {"passes": False, "bits": 8},
        {"passes": False, "regroup": 32},
    ],
    ids=str,
)
def test_numbers_that_mean_nothing_are_value_errors(wanted, tmp_path):
    with pytest.raises(ValueError):
        qbridge.convert(fixture("gptq/llama_640"), tmp_path / "out", "gptq", **wanted)
    only_neighbours(tmp_path)
