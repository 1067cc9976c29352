"""What engines print is recognised, each line as the message that it is, and nothing else is."""

from __future__ import annotations

import re
import time

import pytest
from engine_lines import LINES, UNRELATED

from qbridge.targets.messages import Cure, Message, fault, occurrences
from qbridge.targets.registry import builtin, find_target, messages
from support import ROOT

KNOWN = messages()


def test_every_message_has_a_line():
    assert len(LINES) == len(KNOWN) == len(set(KNOWN)) >= 40


@pytest.mark.parametrize(("line", "message"), [*zip(LINES, KNOWN, strict=True)], ids=lambda value: str(value)[:60])
def test_a_line_is_exactly_its_message(line, message):
    assert [each.message for each in occurrences(line, KNOWN)] == [message]


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_recognised_in_a_log(line):
    before, after = (
        "(EngineCore_0 pid=7) ERROR 11-28 10:00:00 [core.py:700] ",
        "\n[rank0]:W1128 destroy_process_group()",
    )
    assert len(occurrences(f"Starting\n{before}{line}{after}", KNOWN)) == 1


@pytest.mark.parametrize("line", UNRELATED)
def test_other_errors_are_no_messages(line):
    trace = f'Traceback (most recent call last):\n  File "/app/main.py", line 12, in <module>\n    run()\n{line}\n'
    assert occurrences(line, KNOWN) == [] and occurrences(trace, KNOWN) == []


def test_messages_come_in_the_order_of_the_log():
    order = [LINES[4], LINES[40], LINES[1], LINES[4]]
    seen = [each.message for each in occurrences("\n".join(order), KNOWN)]
    assert seen == [KNOWN[4], KNOWN[40], KNOWN[1]]  # one that is printed twice is given once


def test_a_traceback_says_whose_message_it_is():
    line = "KeyError: 'model.layers.3.mlp.gate.qweight'"
    assert [each.message.engine for each in occurrences(line, KNOWN)] == ["lmdeploy"]
    for package in ("vllm", "lmdeploy"):
        trace = f'  File "/usr/lib/python3/site-packages/{package}/models/x.py", line 5\n{line}'
        assert [each.message.engine for each in occurrences(trace, KNOWN)] == [package]
        assert [each.message.engine for each in occurrences(f"$ {package} serve x\n{line}", KNOWN)] == [package]


def test_quotes_and_line_breaks_of_a_terminal_do_not_matter():
    for line in (
        "KeyError: model.layers.30.mlp.down_proj.weight_scale",
        'KeyError: "model.layers.30.mlp.down_proj.weight_scale"',
        r"KeyError: \'model.layers.30.mlp.down_proj.weight_scale\'",
        "KeyError:\n  'model.layers.30.mlp.down_proj.weight_scale'",
    ):
        (each,) = occurrences(line, KNOWN)
        assert each.values == {"top": "model", "rest": "layers.30.mlp.down_proj", "tensor": "weight_scale"}


def test_values_are_those_of_the_line():
    line = "Weight input_size_per_partition = 14784 is not divisible by group_size = 128.Consider"
    (each,) = occurrences(line, KNOWN)
    assert each.values == {"size": "14784", "group": "128"} and each.message.derive(each.values) == {"common": "64"}
    assert each.message.derive({"size": "3696", "group": "128"}) == {}  # 16 is no group of Marlin's


def test_hostile_logs_take_no_time():
    log = "KeyError: 'model." + "a." * 200_000 + "\n" + "Weight input_size_per_partition = " * 20_000 + "(" * 100_000
    start = time.monotonic()
    assert occurrences(log, KNOWN) == []
    assert time.monotonic() - start < 20


def test_each_message_names_its_release_and_its_target():
    for target in builtin():
        for message in target.messages:
            assert find_target(message.engine).engine.partition("-")[0] == target.engine.partition("-")[0]
            release = r"(\d+)\.(\d+)\.(\d+)"
            assert re.fullmatch(f"{release}( to {release})?", message.versions)
            first, *last = (tuple(map(int, found.groups())) for found in re.finditer(release, message.versions))
            read = tuple(map(int, re.search(f" {release}, ", message.source).groups()))
            assert first <= read <= (last or [first])[0]
            assert "  " not in message.cause and message.cause.endswith(".")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{a}", "no words"),
        ("broken {", "cannot be read"),
        ("twice {a} and {a}", "cannot be read"),
        ("no {a.b} field", "cannot be read"),
        ("groups of {size}", "no value for group"),
    ],
)
def test_what_is_no_message(text, why):
    message = Message(text, "toy", "1.5", "toy 1.5, loader.py", "Groups of {group}.", (Cure("toy"),))
    assert why in fault(message) and "is no " in fault(("pattern", "QB001"))


PAGE = ROOT / "docs/explain.md"


def test_the_page_lists_every_message(accept):
    text = PAGE.read_text()
    head = text[: text.index("| printed by")]
    rows = [
        f"| {m.origin} {m.versions} | `{m.words.replace('`', chr(39))}` | {m.source.partition(', ')[2]} |"
        for m in KNOWN
    ]
    whole = "\n".join([head + "| printed by | message | read in |", "|---|---|---|", *rows, ""])
    if accept:
        PAGE.write_text(whole)
    assert text == whole
