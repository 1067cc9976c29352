"""A way out is data: one of `Way` reads as an option, as a whole command, and as JSON."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shlex
import shutil

import pytest

import qbridge
from qbridge.findings.finding import Finding, Findings
from qbridge.findings.way import Way, ways_of
from support import cli

CONVERT = "qbridge convert SRC DST --to vllm --tp 2"
SHOWN = [
    (Way("--regroup", 64, "scales repeated", exact=True), "--regroup 64  # exact: scales repeated"),
    (Way("--pad"), "--pad"),
    (Way("--tp", 1, "fewer GPUs"), "--tp 1  # fewer GPUs"),
    (Way("--tp", 1, "fewer GPUs", serve=True), "serve it with tp = 1  # fewer GPUs"),
    (Way("--bits", 8).of(CONVERT), f"{CONVERT} --bits 8"),
    (Way("--regroup", 0), "--regroup 0"),
    (Way(command=CONVERT), CONVERT),
    (Way(command=CONVERT, exact=True), f"{CONVERT}  # exact"),
]


@pytest.mark.parametrize(("way", "line"), SHOWN)
def test_a_way_reads_as_one_line_that_can_be_pasted(way, line):
    assert str(way) == line
    words = shlex.split(str(way), comments=True)
    assert words == [*way.command.split(), *way.words] or way.serve


@pytest.mark.parametrize(("way", "line"), SHOWN)
def test_a_way_as_json_says_the_same(way, line):
    fields = json.loads(json.dumps(way.as_dict()))
    assert (fields["option"], fields["value"], fields["note"]) == (way.option, way.value, way.note)
    assert fields["exact"] is way.exact and fields["serve"] is way.serve
    assert fields["command"] == (line.partition("  #")[0] if way.command else "")


def test_a_way_is_immutable_hashable_and_can_be_pickled():
    way = Way("--tp", 1, "fewer GPUs")
    assert pickle.loads(pickle.dumps(way)) == way and hash(way) == hash(dataclasses.replace(way))
    assert way.of(CONVERT) != way and way.command == ""
    with pytest.raises(dataclasses.FrozenInstanceError):
        way.option = "--pad"


def test_a_finding_holds_ways_and_text_and_prints_lines():
    findings = Findings()
    findings.add("QB251", ("a", "b"), ("fact",), ("start another engine", Way("--pad", exact=True)))
    (finding,) = findings
    assert finding.help == ("start another engine", "--pad  # exact")
    assert finding.ways == ways_of(finding.advice) == (Way("--pad", exact=True),)
    fields = finding.as_dict()
    assert fields["help"] == [*finding.help, finding.entry.fix]
    assert fields["ways"] == [Way("--pad", exact=True).as_dict()]
    assert Finding("QB251", ("a",), (), ("text",)).ways == ()


def test_the_word_that_lets_an_error_pass_is_a_way():
    findings = Findings()
    findings.add("QB302", "a")
    (finding,) = findings
    assert finding.ways == (Way("--allow", "rounded"),) and "--allow rounded" in finding.help


def test_check_has_commands_and_convert_has_options_of_the_same_ways(fixtures, tmp_path):
    source = shutil.copytree(fixtures / "gptq/llama_640/model", tmp_path / "model")
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.convert(source, tmp_path / "out", "vllm", tp=2, passes=False)
    options = next(f for f in refused.value.findings if f.code == "QB251").ways
    (finding,) = [f for f in qbridge.check(source, "vllm", 2).findings if f.code == "QB251"]
    assert [(way.option, way.value, way.note) for way in finding.ways] == [
        (way.option, way.value, way.note) for way in options
    ]
    assert [way.command for way in options] == [""] * 3
    commands = [way for way in finding.ways if not way.serve]
    assert [way.option for way in commands] == ["--regroup", "--pad"]
    for number, way in enumerate(commands):
        place, words = str(tmp_path / f"dst{number}"), shlex.split(str(way), comments=True)
        words[3] = place
        assert cli(*words[1:]).returncode == 0 and qbridge.check(place, "vllm", 2).ok
