"""README: the seed's error leads to a served model in three commands, each of which the one before prints."""

from __future__ import annotations

import re
import shlex

from support import ROOT


def test_each_command_is_printed_by_the_one_before():
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## From an error to a served model") :]
    explained, converted = re.findall(r"(?m)^\$ (.*)$", section)[:2]
    printed = dict(re.findall(r"(?m)^(cure|serve) +(.*)$", section))
    assert shlex.split(explained)[2] == "KeyError: 'model.layers.30.mlp.down_proj.weight_scale'"
    assert printed["cure"] == converted
    assert printed["serve"] == re.search(r"(?m)^```sh\n(.*)$", section)[1]
