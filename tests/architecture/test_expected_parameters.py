"""What every class of the table must have, held against what transformers saves of a small model of that class."""

from __future__ import annotations

import re

import pytest
import transformers

import make_sharding as facts
from qbridge.architecture import expected
from qbridge.architecture.architecture import Architecture
from qbridge.architecture.classes import CLASSES
from qbridge.architecture.decoder import LEFT_ALONE
from qbridge.architecture.from_config import linears
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import DType
from qbridge.ir.model import Model, TensorInfo

THERE = [name for name in CLASSES if hasattr(transformers, name) and name not in facts.UNMADE]
EVERY = pytest.mark.parametrize("architecture", THERE)
# A layer's parameters that a checkpoint may lack: by config.json or by the class, an engine does without them.
OPTIONAL = {
    "ApertusForCausalLM": r"mlp\.act_fn\.(beta|eps)",
    "FalconH1ForCausalLM": r"mamba\.conv1d\.bias",
    "DeepseekV32ForCausalLM": r".*indexer\.k_norm\.bias",
    "GlmMoeDsaForCausalLM": r".*indexer\.k_norm\.bias",
    "GraniteMoeHybridForCausalLM": r"mamba\.conv1d\.bias",
    "JambaForCausalLM": r"mamba\.(conv1d|dt_proj)\.bias",
    "Lfm2MoeForCausalLM": r"feed_forward\.expert_bias",
    "LongcatFlashForCausalLM": r"mlp\.experts\.[45]\.(gate|up)_proj\.weight",  # of experts that do nothing
    "MiMoV2FlashForCausalLM": r"self_attn\.attention_sink_bias",
    "MllamaForConditionalGeneration": r"cross_attn_(attn|mlp)_gate",
    "NemotronHForCausalLM": r"mixer\.conv1d\.bias",
    "StableLmForCausalLM": r"\w+norm\.bias",
}
DECODER = re.compile(r"(?:.*\.)?(?:layers|h|transformer\.blocks)\.(\d+)\.(.+)")
ENDS = re.compile(r"(?:.*\.)?(?:embed_tokens|embeddings|norm|norm_f|lm_head|embed_out|score|wte|ln_f)\.weight")


def config_of(architecture):
    return {**facts.instance(architecture).config.to_dict(), "architectures": [architecture]}


def decoder(architecture):
    """Names of a decoder's parameters, those of layers below them too."""
    for name in facts.on_disk(architecture):
        match = DECODER.match(name)
        if (
            LEFT_ALONE & set(name.split("."))
            or ".encoder.layers." in name
            or "project" in name.partition(".layers.")[0]
        ):
            continue
        if match or ENDS.fullmatch(name):
            yield name, match[2] if match else ""


@EVERY
def test_nothing_is_missing_from_what_transformers_saves(architecture):
    known = Architecture.of(config_of(architecture))
    assert known.judged == CLASSES[architecture].judged
    assert expected.missing(facts.on_disk(architecture), known) == []


@pytest.mark.parametrize("architecture", [name for name in THERE if CLASSES[name].judged])
def test_every_parameter_of_a_decoder_is_required_or_optional(architecture):
    names, known, unseen = list(facts.on_disk(architecture)), Architecture.of(config_of(architecture)), []
    optional = re.compile(OPTIONAL.get(architecture, r"\b\B"))
    for name, below in decoder(architecture):
        found = expected.missing([other for other in names if other != name], known)
        lost = name.removesuffix(".weight").rpartition(".")[2]
        if bool(optional.fullmatch(below)) == any(one.rpartition(".")[2] == lost for one in found) or len(found) > 1:
            unseen.append((name, found))
    assert unseen == []


@EVERY
def test_nothing_of_what_transformers_saves_is_too_much(architecture):
    tensors = {name: TensorInfo(name, DType.F16, shape) for name, shape in facts.on_disk(architecture).items()}
    findings = Findings()
    expected.judge(Model("dense", config_of(architecture), {}, {}, tensors), tensors, findings)
    assert [finding.where for finding in findings if finding.code == "QB264"] == []


def decoder_linears(architecture):
    """Name and dims of linears in decoder layers, without mixers and what a class may have besides."""
    row, shapes = CLASSES[architecture], facts.on_disk(architecture)
    mixers = {f"{mixer.name}." for mixer in row.mixers} if not row.one_block else set()
    for name, below in decoder(architecture):
        leaf = name.removesuffix(".weight").rpartition(".")[2]
        linear = name.endswith(".weight") and len(shapes[name]) == 2 and below and not leaf.endswith("norm")
        routed = leaf in ("layer", "gate", "router", "shared_expert_gate", "wg", "classifier", *row.optional)
        if linear and not routed and not any(below.startswith(mixer) for mixer in mixers):
            yield name.removesuffix(".weight"), shapes[name]


@pytest.mark.parametrize("architecture", [name for name in THERE if name in facts.IRREGULAR and CLASSES[name].shards])
def test_ranks_share_every_linear(architecture):
    config = config_of(architecture)
    known = Architecture.of(config)
    for name, (out, into) in decoder_linears(architecture):
        leaf = name.rpartition(".")[2]
        held = known.rank(name, (out, into), 3)
        if CLASSES[architecture].one_block and leaf == "in_proj":  # of Mamba-2: not modelled
            assert held is None
        elif known.split.whole & {leaf}:
            assert held.axis == "whole"
        else:
            assert (held.out_features, held.in_features) in ((out // 3, into), (out, into // 3)), (name, held)


@pytest.mark.parametrize("architecture", [name for name in THERE if CLASSES[name].assumed and CLASSES[name].judged])
def test_config_json_alone_tells_the_linears(architecture):
    known, row = Architecture.of(config_of(architecture)), CLASSES[architecture]
    there, found = set(told(decoder_linears(architecture))), set(told(linears(known)))
    if row.one_block:
        there = {one for one in there if one[1] not in ("in_proj", "out_proj")}
    if not any(routed for _, _, routed, _ in there):  # packed, as engines have them
        found = {one for one in found if not one[2]}
    if row.modules:  # of these the sizes are not known
        there = {one for one in there if one[1] in {name for _, name, *_ in found}}
        assert found <= there
    else:
        assert found == there


def told(linears):
    """Layer, last name, whether it is in an expert, and dims: blocks may have other names in memory."""
    for name, dims in linears:
        yield DECODER.match(name)[1], name.rpartition(".")[2], "experts" in name.split("."), dims
