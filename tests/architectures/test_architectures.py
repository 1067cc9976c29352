"""Checkpoints of every class and format through the laws: a sample by a seed, and all by `make architectures`.

ARCHITECTURES=all runs every case, ARCHITECTURES=<seed> another sample.
"""

from __future__ import annotations

import hashlib
import os
import random

import pytest

import hub
import laws
import make
import packers
from qbridge.architecture import expected
from qbridge.architecture.architecture import Architecture
from qbridge.architecture.classes import CLASSES
from qbridge.architecture.families import CONTAINERS
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.model import Model, TensorInfo

SEED = os.environ.get("ARCHITECTURES", "20261127")
CASES = list(make.cases())
SAMPLE = CASES if SEED == "all" else random.Random(SEED).sample(CASES, 9)
# Classes of which no case is made here, and why.
LEFT_OUT = {
    "BaiChuanForCausalLM": "another name of BaichuanForCausalLM",
    "BailingMoeV2ForCausalLM": "BailingMoe with norms of queries and keys",
    "ChatGLMForConditionalGeneration": "another name of ChatGLMModel",
    "Gemma3nForConditionalGeneration": "its tower needs a package that is not installed",
    "KimiVLForConditionalGeneration": "DeepSeek-V3 beside another tower",
    "MiniCPMO": "MiniCPMV with an audio tower",
    "Qwen2_5OmniModel": "another name of Qwen2_5OmniForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration": "transformers 5.24.0 cannot make its default config",
}


def test_every_class_has_cases():
    made = {case.architecture for case in CASES}
    assert made | LEFT_OUT.keys() == CLASSES.keys() | CONTAINERS and not made & LEFT_OUT.keys()
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.format for case in CASES} == make.FORMATS.keys()


def test_classes_that_no_engine_judges_are_made():
    assert hub.UNJUDGED.keys() <= {case.architecture for case in CASES}


@pytest.mark.parametrize("architecture", hub.REMOTE)
def test_classes_of_code_on_the_hub_are_known_and_complete(architecture):
    tensors, config, _ = hub.checkpoint(architecture)
    known, findings = Architecture.of(config), Findings()
    assert known.known and (known.judged or not known.row.judged)
    there = {name: TensorInfo(name, DType.BF16, shape) for name, (shape, _) in tensors.items()}
    expected.judge(Model("dense", config, {}, {}, there), tensors, findings)
    assert [(finding.code, finding.where) for finding in findings if finding.code != "QB266"] == []
    less = [name for name in tensors if "layers.1." not in name and ".h.1." not in name and ".blocks.1." not in name]
    assert bool(expected.missing(less, known)) == known.judged


def test_the_same_call_writes_the_same_bytes(tmp_path):
    case = next(case for case in CASES if case.name == "DeepseekV3-fp8")
    digests = []
    for out in (tmp_path / "a", tmp_path / "b"):
        case.build(out)
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()})
    assert digests[0] == digests[1]


def test_float8_is_rounded_to_the_nearest():
    torch = pytest.importorskip("torch")
    values = make.small.draw("values", (4096,), scale=40)
    wanted = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (packers.f8(values)[0] == wanted).all()
    assert (packers.bf16(values) == torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.name)
def test_laws(case, tmp_path):
    folder = tmp_path / case.name
    case.build(folder)
    assert laws.inspected(folder) == []
    assert laws.dense_is_exact(folder, tmp_path / "dense") == []
    wrong = {target: laws.converted(folder, target, tmp_path) for target in laws.TARGETS}
    assert {target: found for target, found in wrong.items() if found} == {}
