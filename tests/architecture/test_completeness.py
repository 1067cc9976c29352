"""What a checkpoint lacks or has too much: the tables against transformers' module trees, then real checkpoints."""

from __future__ import annotations

import re
import time

import pytest
from safetensors.numpy import load_file, save_file

import make_sharding as facts
import qbridge
from goldens import ALLOW
from qbridge.architecture import expected
from qbridge.architecture.architecture import Architecture
from qbridge.architecture.classes import CLASSES
from qbridge.architecture.decoder import LEFT_ALONE
from qbridge.architecture.expected import judge
from qbridge.findings.finding import Findings
from qbridge.ir.model import Model
from support import ROOT, SINGLE, cli, copy_fixture, edit_json, rewrite_tensors

EVERY = pytest.mark.parametrize("architecture", facts.regular(CLASSES))
CASES = sorted(path.parent for path in ROOT.glob("fixtures/*/*/model"))
DELETED = ["gptq/llama_v1_sym", "awq/llama_gemm", "gptq/qwen2_dynamic", "gptq/qwen3_moe_v1_sym"]
CODES = ("QB263", "QB264")
BLOCK = re.compile(r"(?:.*\.)?(?:visual|vision_tower|vision_model)\..*?(?:layers?|blocks)\.(\d+)\.")
LAYER = re.compile(r"\.(?:layers|h)\.(\d+)\.(.+)")
INDEXER = tuple(f"indexer.{leaf}.weight" for leaf in ("weights_proj", "wk", "wq_b"))
# Biases that not every checkpoint of the architecture has, or that engines set to zero.
BIASES_OF_SOME = {
    "DeepseekV32ForCausalLM": "indexer.k_norm.bias",
    "GlmMoeDsaForCausalLM": ("indexer.k_norm.bias", "indexer.k_norm.weight", *INDEXER),
    "StableLmForCausalLM": "norm.bias",
}


def missing(names, config):
    return expected.missing(names, Architecture.of(config))


def config_of(architecture, **changes):
    return {**facts.instance(architecture, **changes).config.to_dict(), "architectures": [architecture]}


def names_of(architecture, packed=False, **changes):
    """Every tensor's name on disk, experts one by one unless `packed`."""
    model = facts.instance(architecture, **changes)
    text = model.config.get_text_config()
    stored = [(name, buffer) for name, buffer in model.named_buffers() if name in model.state_dict()]
    for name, parameter in (*model.named_parameters(), *stored):
        parts = name.split(".")
        if packed or parts[-2] != "experts" or parameter.ndim != 3:
            if packed or not (parts[-2] == "experts" and parts[-1].endswith("_bias")):
                yield name
            continue
        for expert in range(facts.DIMS["num_experts"]):
            for leaf in sorted(facts.sources(text.model_type, parts[-1])):
                yield ".".join([*parts[:-1], str(expert), leaf, "weight"])


def required(name):
    """Whether the tables say that it must be there: all but what is not modelled."""
    parts = name.split(".")
    if LEFT_ALONE & set(parts) or "multi_modal_projector" in parts or name == "model.image_newline":
        return False
    return "experts" not in parts or name.endswith(".weight")


@EVERY
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_nothing_is_missing_from_transformers_own_names(architecture, packed):
    assert missing(names_of(architecture, packed), config_of(architecture)) == []


@pytest.mark.parametrize("architecture", ["DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"])
def test_queries_of_latent_attention_may_be_one_linear(architecture):
    names = list(names_of(architecture, q_lora_rank=None))
    assert missing(names, config_of(architecture, q_lora_rank=None)) == []
    less = [name for name in names if name != "model.layers.1.self_attn.q_proj.weight"]
    assert missing(less, config_of(architecture, q_lora_rank=None)) == ["model.layers.1.self_attn.q_proj"]


@EVERY
def test_every_weight_of_a_decoder_is_missed(architecture):
    names, config = list(names_of(architecture)), config_of(architecture)
    wanted = [name for name in names if required(name)]
    if architecture in BIASES_OF_SOME:
        wanted = [name for name in wanted if not name.endswith(BIASES_OF_SOME[architecture])]
    assert len(wanted) > 8
    unseen = []
    for name in wanted:
        found = missing([other for other in names if other != name], config)
        module = name.removesuffix(".weight")
        if found not in ([module], ["lm_head"]):
            unseen.append((name, found))
    assert unseen == []


@EVERY
def test_a_whole_layer_is_missed(architecture):
    names, config = list(names_of(architecture)), config_of(architecture)
    less = [name for name in names if not (match := LAYER.search(name)) or match[1] != "3"]
    assert len(missing(less, config)) > 3


def judged(architecture, names, **changes):
    """Severity and places of what is found in a model of these tensors."""
    findings = Findings()
    judge(Model("gptq", {**config_of(architecture), **changes}, {}, {}, {}), names, findings)
    return [(finding.code, finding.where) for finding in findings]


@EVERY
def test_complete_models_are_not_doubted(architecture):
    assert judged(architecture, list(names_of(architecture)), num_nextn_predict_layers=0) == []


@pytest.mark.parametrize("architecture", [name for name in facts.regular(CLASSES) if "Conditional" in name])
def test_blocks_of_a_tower_are_required(architecture):
    names = list(names_of(architecture))
    blocks = sorted({match[0] for name in names if (match := BLOCK.match(name))})
    last = max(blocks, key=lambda name: int(BLOCK.match(name)[1]))
    if architecture.startswith("Llava"):  # takes the output of the one before
        assert judged(architecture, [name for name in names if not name.startswith(last)]) == []
        last = blocks[1]
    for block in (blocks[0], last):
        (code, where), *others = judged(architecture, [name for name in names if not name.startswith(block)])
        assert (code, where) == ("QB263", (block.rstrip("."),)) and not others
    module = next(name for name in names if name.startswith(blocks[0]) and name.endswith(".weight"))
    assert judged(architecture, [name for name in names if name != module]) == [
        ("QB263", (module.removesuffix(".weight"),))
    ]
    tower = [name for name in names if LEFT_ALONE.isdisjoint(name.split("."))]
    assert judged(architecture, tower) == [("QB267", ("vision_tower",))]


def test_unknown_architectures_are_not_judged():
    assert missing(["model.layers.0.x.weight"], {"architectures": ["UnheardOf"], "num_hidden_layers": 2}) == []
    assert missing([], {}) == []


# Checkpoints


def found(src, *codes, target="vllm", allow=()):
    """The findings of these codes."""
    return [finding for finding in qbridge.check(src, target, allow=allow).findings if finding.code in codes]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_fixtures_are_complete(case):
    assert found(case / "model", *CODES, allow=ALLOW.get(case.name, ())) == []


@pytest.mark.parametrize("case", DELETED)
def test_no_tensor_can_go_unseen(case, tmp_path):
    src = copy_fixture(tmp_path, case)
    whole, unseen = load_file(src / SINGLE), []
    before = {finding.code for finding in qbridge.check(src, "vllm").findings}
    for name in whole:
        rest = {other: array for other, array in whole.items() if other != name}
        save_file(rest, src / SINGLE, metadata={"format": "pt"})
        done = qbridge.check(src, "vllm")
        if done.ok or {finding.code for finding in done.findings} <= before:
            unseen.append(name)
    # symmetric GPTQ needs no zero-points, and no g_idx that is in order
    idle = (".g_idx", ".qzeros") if case.startswith("gptq") else ()
    assert [name for name in unseen if not name.endswith(idle)] == []


def test_missing_tensors_are_counted_with_examples(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_rope")
    rewrite_tensors(src, lambda tensors: [tensors.pop(n) for n in list(tensors) if ".layers.1.mlp.up_proj." in n])
    (finding,) = found(src, "QB263")
    assert finding.severity == "error" and finding.where == ("model.layers.1.mlp.up_proj",)
    assert finding.facts == ("model.layers.*.mlp.up_proj: 1",)
    done = cli("check", src, "--for", "vllm")
    assert done.returncode == 1 and "error[QB263]" in done.stderr


def test_many_missing_tensors_are_one_finding(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_rope")
    rewrite_tensors(src, lambda tensors: [tensors.pop(n) for n in list(tensors) if ".layers.1." in n])
    (finding,) = found(src, "QB263", target="lmdeploy")
    assert len(finding.where) == 9 and len(finding.facts) == 6 and finding.facts[-1] == "and 4 names more"


def test_head_may_be_the_embedding(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_rope")
    rewrite_tensors(src, lambda tensors: tensors.pop("lm_head.weight"))
    assert [finding.where for finding in found(src, "QB263")] == [("lm_head",)]
    edit_json(src / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert found(src, "QB263") == []


def test_more_layers_than_the_config_says(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_w8a8_rope")
    edit_json(src / "config.json", lambda config: config.update(num_hidden_layers=1))
    (finding,) = found(src, *CODES)
    assert (finding.code, finding.severity, len(finding.where)) == ("QB264", "warning", 7)
    assert all(name.startswith("model.layers.1.") for name in finding.where)
    edit_json(src / "config.json", lambda config: config.update(num_nextn_predict_layers=1))
    assert found(src, *CODES) == []


def test_more_experts_than_the_config_says(tmp_path):
    src = copy_fixture(tmp_path, "gptq/qwen3_moe_v1_sym")
    experts = []
    edit_json(src / "config.json", lambda config: experts.append(config["num_local_experts"]))
    edit_json(src / "config.json", lambda config: config.update(num_local_experts=experts[0] - 1))
    (finding,) = found(src, *CODES)
    assert finding.code == "QB264" and all(f".experts.{experts[0] - 1}." in name for name in finding.where)
    edit_json(src / "config.json", lambda config: config.update(num_local_experts=experts[0] + 1))
    (finding,) = found(src, *CODES)
    assert finding.code == "QB263" and all(f".experts.{experts[0]}." in name for name in finding.where)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.layers.0.mlp.down_proj.weight", True),  # beside its qweight
        ("model.layers.0.mlp.side_proj.weight", True),
        ("model.layers.0.self_attn.qkv_proj.weight", False),
        ("vision_tower.layers.0.side_proj.weight", False),
    ],
)
def test_a_weight_too_many_is_a_warning(name, told, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")

    def add(tensors):
        tensors[name] = tensors["lm_head.weight"][:8].copy()

    rewrite_tensors(src, add)
    done = found(src, "QB264")
    assert bool(done) == told and all(finding.where[0] in name for finding in done)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2_5_VLForConditionalGeneration", "UnheardOf"])
def test_configs_and_names_that_lie_are_judged_in_bounded_time(architecture):
    names = [f"{prefix}.{n}.k{n}.weight" for prefix in ("model.layers", "visual.blocks") for n in range(5000)]
    lies = {"num_hidden_layers": 10**8, "num_nextn_predict_layers": 10**8, "vision_config": {"depth": 10**9}}
    findings, start = Findings(), time.process_time()
    judge(Model("gptq", {"architectures": [architecture], **lies}, {}, {}, {}), names, findings)
    assert time.process_time() - start < 30 and list(findings)
