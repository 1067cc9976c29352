"""verify sees one flipped bit of any tensor of an output: codes, scales, zero-points, unquantized weights.

LAWS=all flips one bit in every tensor of every fixture's conversion to every target; LAWS=<seed> another sample.
"""

from __future__ import annotations

import itertools
import os
import random
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import qbridge
from goldens import ALLOW, ROOT
from support import header_of

TARGETS = ("vllm", "lmdeploy", "transformers", "compressed-tensors", "gptq", "awq", "auto-round", "fp8", "modelopt")
TARGETS += ("smooth-quant", "mxfp4")
SEED = os.environ.get("LAWS", "20261130")
FIXTURES = [str(model.parent.relative_to(ROOT / "fixtures")) for model in sorted(ROOT.glob("fixtures/*/*/model"))]
PAIRS = [(fixture, target) for fixture in FIXTURES for target in TARGETS]
# A conversion of each kind of code and scale, so that no sample is of refusals alone.
ALWAYS = [
    ("compressed_tensors/llama_w8a8", "lmdeploy"),
    ("compressed_tensors/llama_nvfp4", "vllm"),
    ("fp8/llama_blocks", "compressed-tensors"),
    ("gptq/llama_v2_asym", "compressed-tensors"),
    ("gptq/llama_desc_act", "gptq"),
    ("mxfp4/gpt_oss", "vllm"),
]
SAMPLE = PAIRS if SEED == "all" else [*ALWAYS, *random.Random(SEED).sample(PAIRS, 4)]
FLIPS = None if SEED == "all" else 5  # tensors of a conversion; None: all of them


class Flip(NamedTuple):
    """A bit of a tensor by its place in a file."""

    name: str
    file: Path
    byte: int
    bit: int

    @property
    def module(self):
        return self.name.rpartition(".")[0]


@contextmanager
def flipped_in(flips):
    """Within this, some bits are the other way round."""
    for each in flips:
        flip(each.file, each.byte, each.bit)
    yield
    for each in flips:
        flip(each.file, each.byte, each.bit)


def flip(file, byte, bit):
    with open(file, "r+b") as stream:
        stream.seek(byte)
        (value,) = stream.read(1)
        stream.seek(byte)
        stream.write(bytes([value ^ 1 << bit]))


def is_same(src, dst, allow):
    try:
        return qbridge.verify(src, dst, allow=allow, jobs=1).same
    except qbridge.QBridgeError:
        return False


def differing(src, dst, allow):
    """The names that verify gives of what is not the same; none where it cannot read a checkpoint."""
    try:
        findings = qbridge.verify(src, dst, allow=allow, jobs=1).findings
    except qbridge.QBridgeError:
        return frozenset()
    return frozenset(name for finding in findings if finding.severity == "error" for name in finding.where)


def unseen(src, dst, allow, rng):
    """The tensors of an output, with byte and bit, of which verify does not see that a bit is another one."""
    tensors = [(file, tensor) for file in sorted(dst.glob("*.safetensors")) for tensor in header_of(file).values()]
    tensors = [(file, tensor) for file, tensor in tensors if tensor.end > tensor.begin]
    modules = {}
    for file, tensor in tensors if FLIPS is None else rng.sample(tensors, FLIPS):
        flipped = Flip(tensor.name, file, rng.randrange(tensor.begin, tensor.end), rng.randrange(8))
        modules.setdefault(flipped.module, []).append(flipped)
    rounds = ([flipped for flipped in each if flipped] for each in itertools.zip_longest(*modules.values()))
    return [flipped for each in rounds for flipped in unseen_of(src, dst, allow, each)]


def unseen_of(src, dst, allow, flips):
    """Those of some flips, one of a module, that verify does not see: of all at once, then each it did not name."""
    with flipped_in(flips):
        named = differing(src, dst, allow)
    wrong = []
    for each in flips:
        if not named & {each.name, each.module}:
            with flipped_in([each]):
                wrong += [each] if is_same(src, dst, allow) else []
    return wrong


@pytest.mark.parametrize(("fixture", "target"), SAMPLE, ids=lambda value: value.replace("/", "-"))
def test_a_flipped_bit_of_an_output_is_seen(fixture, target, dst):
    src, allow = ROOT / "fixtures" / fixture / "model", ALLOW.get(fixture.rpartition("/")[2], ())
    try:
        qbridge.convert(src, dst, target, allow=allow, jobs=1, proof=False)
    except qbridge.QBridgeError:
        assert (fixture, target) not in ALWAYS
        return
    assert is_same(src, dst, allow)
    assert unseen(src, dst, allow, random.Random(f"{fixture} {target}")) == []


@pytest.mark.parametrize(("fixture", "target"), ALWAYS[:3], ids=lambda value: value.replace("/", "-"))
def test_a_second_conversion_does_not_call_it_done(fixture, target, dst):
    src = ROOT / "fixtures" / fixture / "model"
    qbridge.convert(src, dst, target, jobs=1)
    qbridge.convert(src, dst, target, jobs=1)  # done already
    (file,) = dst.glob("*.safetensors")
    tensor = random.Random(fixture).choice(list(header_of(file).values()))
    flip(file, tensor.begin, 0)
    with pytest.raises(qbridge.QBridgeError):
        qbridge.convert(src, dst, target, jobs=1)
