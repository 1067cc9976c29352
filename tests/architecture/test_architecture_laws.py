"""The laws of rows of model classes: the table's rows keep them, and rows that are wrong break them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qbridge.architecture.classes import CLASSES
from qbridge.architecture.families import DENSE, MLA, NEMOTRON, PHI, Family
from qbridge.architecture.model_class import ModelClass
from qbridge.testing import check_architecture

TOY = ModelClass(
    Family(frozenset({"qkv_proj", "gate_up_proj"}), frozenset({"dense", "down_proj"})),
    norms=("input_layernorm", "q_norm"),
    ends=("embed_in", "final_norm"),
    tied=True,
    biased=frozenset({"qkv_proj", "final_norm"}),
    parameters=frozenset({"sinks"}),
    layers="decoder.layers",
    attention="attn",
)
ROWS = [name for name, row in CLASSES.items() if name == next(first for first in CLASSES if CLASSES[first] == row)]


def changed(columns=DENSE.columns, rows=DENSE.rows, **changes):
    return replace(CLASSES["LlamaForCausalLM"], split=replace(DENSE, columns=columns, rows=rows, **changes))


BROKEN = {
    "a linear is split along two axes": changed(rows=DENSE.rows | {"q_proj"}),
    "nothing says the dims of 'qkv'": changed(DENSE.columns | {"qkv"}),
    "reads no hidden states": changed(DENSE.columns | {"o_proj"}, DENSE.rows - {"o_proj"}),
    "writes no hidden states": changed(DENSE.columns - {"k_proj"}, DENSE.rows | {"k_proj"}),
    "is not as wide as": changed(DENSE.columns - {"gate_proj"}, DENSE.rows | {"gate_proj"}),
    "is in no gated MLP": ModelClass(replace(NEMOTRON, gated=True)),
    "has no linear of an MLP": changed(DENSE.columns - {"gate_proj", "up_proj"}, DENSE.rows - {"down_proj"}),
    "is not known to be split": replace(TOY, layers="decoder.blocks", mlp_ratio=4),  # no layers that are known
    "a complete checkpoint is said to lack": replace(TOY, parameters=frozenset({"alphas"})),
    "without .* a checkpoint is said to lack": replace(TOY, ends=("output",), tied=False),  # two heads
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_keeps_the_laws(name):
    check_architecture(CLASSES[name])


def test_a_new_row_keeps_the_laws():
    check_architecture(TOY)
    check_architecture(replace(TOY, split=MLA, norms=()), {"hidden_size": 120})
    check_architecture(ModelClass(PHI, biased=frozenset({"fc1", "dense"})))


@pytest.mark.parametrize("law", BROKEN)
def test_a_row_that_is_wrong_breaks_a_law(law):
    with pytest.raises(AssertionError, match=law):
        check_architecture(BROKEN[law])
