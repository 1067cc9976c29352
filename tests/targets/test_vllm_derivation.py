"""vLLM: what it builds from lists, by its names, against what is on disk."""

from __future__ import annotations

import re

import pytest

import qbridge
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.slots import PLAIN, Slot
from qbridge.targets.registry import find_target
from qbridge.targets.vllm.matching import DERIVATION, PLACES
from qbridge.targets.vllm.names import CLASSES, REMOVED
from support import SINGLE, copy_fixture, edit_header, edit_json, edit_quantization, facts, places

DERIVED = {"QB280", "QB281", "QB282", "QB283", "QB284", "QB285", "QB286"}
QKV = [f"model.layers.0.self_attn.{leaf}_proj" for leaf in "qkv"]


def derived(folder, target="vllm"):
    """{code: places} of what is derived."""
    found = {}
    for finding in qbridge.check(folder, target).findings:
        if finding.code in DERIVED:
            found.setdefault(finding.code, set()).update(finding.where)
    return found


def of_class(folder, name, **keys):
    edit_json(folder / "config.json", lambda config: config.update(architectures=[name], **keys))


def below(folder, prefix):
    """A text model's tensors below another name, in the header alone."""

    def renamed(header):
        found = {name if name == "__metadata__" else f"{prefix}{name}": entry for name, entry in header.items()}
        return found

    edit_header(folder / SINGLE, renamed)


def planted(folder, *modules, shape=(64, 64)):
    """Dense matrices beside what is there: BF16, so that codes of any dtype may lie beside them."""
    data = (folder / SINGLE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    size, begin = 2 * shape[0] * shape[1], len(data) - 8 - length
    with (folder / SINGLE).open("ab") as stream:
        stream.write(bytes(size * len(modules)))

    def longer(header):
        for number, module in enumerate(modules):
            at = begin + number * size
            header[f"{module}.weight"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}

    edit_header(folder / SINGLE, longer)


def undone(folder, *modules):
    """Quantized linears of float8 as dense ones, of the same dims."""

    def changed(header):
        for module in modules:
            entry = header[f"{module}.weight"]
            rows, columns = entry["shape"]
            for leaf in ("weight_scale_inv", "weight_scale", "input_scale"):
                header.pop(f"{module}.{leaf}", None)
            header.pop(f"{module}.weight")
            shapes[module] = (rows, columns)

    shapes = {}
    edit_header(folder / SINGLE, changed)
    _compacted(folder)
    for module, shape in shapes.items():
        planted(folder, module, shape=shape)


def _compacted(folder):
    """Bytes that no tensor covers any more are left out of the file."""
    data = (folder / SINGLE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    body, parts, at = data[8 + length :], [], 0

    def moved(header):
        nonlocal at
        for entry in header.values():
            if "data_offsets" in entry:
                begin, end = entry["data_offsets"]
                parts.append(body[begin:end])
                entry["data_offsets"] = [at, at + end - begin]
                at += end - begin

    edit_header(folder / SINGLE, moved)
    data = (folder / SINGLE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    (folder / SINGLE).write_bytes(data[: 8 + length] + b"".join(parts))


# Lists of fp8: whole names


DOWN = ("model.layers.0.mlp.down_proj",)


@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers"])
def test_parts_of_names_are_nothing_to_fp8(key, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    undone(src, *DOWN)
    edit_quantization(src, lambda block: block.pop("modules_to_not_convert", None) and None)
    edit_quantization(src, lambda block: block.update({key: ["lm_head", "mlp.down_proj"]}))
    found = [f for f in qbridge.check(src, "vllm").findings if f.code == "QB280"]
    assert places(found) == set(DOWN) and "whole names" in facts(found)
    edit_quantization(src, lambda block: block.update({key: list(DOWN)}))
    assert not derived(src)


def test_a_part_of_what_is_fused_must_not_be_listed_alone(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_quantization(src, lambda block: block.update(modules_to_not_convert=["lm_head", QKV[0]]))
    assert derived(src) == {"QB282": set(QKV)}


# GPTQ: parts of names, block lists, dynamic


def gptq(tmp_path, **keys):
    src = copy_fixture(tmp_path, "gptq/llama_v1_sym")
    edit_quantization(src, lambda block: block.update(keys))
    return src


def test_lists_of_gptq_that_leave_out_attention(tmp_path):
    lists = [["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]
    found = derived(gptq(tmp_path, modules_in_block_to_quantize=lists))
    assert found == {"QB281": {*QKV, "model.layers.0.self_attn.o_proj"}}


def test_lists_of_gptq_with_half_of_what_is_fused(tmp_path):
    lists = [["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]]
    assert derived(gptq(tmp_path, modules_in_block_to_quantize=lists)) == {"QB282": set(QKV)}


@pytest.mark.parametrize("lists", [None, [], [[]], [["self_attn", "mlp"]]])
def test_lists_of_gptq_that_say_all_or_nothing(lists, tmp_path):
    assert not derived(gptq(tmp_path, modules_in_block_to_quantize=lists))


@pytest.mark.parametrize(
    ("dynamic", "wanted"),
    [
        ({r"-:.*mlp\.down_proj": {}}, {"QB281": set(DOWN)}),
        ({r"-:model\.layers\.0\.mlp\.down.*": {}, r"+:.*": {"bits": 4}}, {"QB281": {DOWN[0]}}),
        ({r"-:mlp\.down_proj": {}}, {}),  # from the start of a name
        ({r"-:.*qkv_proj": {}}, {"QB281": set(QKV)}),  # the name of what is fused
    ],
)
def test_dynamic_of_gptq(dynamic, wanted, tmp_path):
    src = gptq(tmp_path, dynamic=dynamic)
    said = {f.code for f in qbridge.check(src, "gptq").findings if f.severity == "error"}
    assert derived(src) == wanted or said


# AWQ: any part of a name


def test_a_router_s_name_within_a_gated_mlp_s(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm")
    edit_quantization(src, lambda block: block.update(modules_to_not_convert=["mlp.gate"]))
    found = derived(src)
    assert found.keys() == {"QB281"} and all(re.search(r"mlp\.(gate|up)_proj$", name) for name in found["QB281"])
    edit_quantization(src, lambda block: block.update(modules_to_not_convert=None))
    assert not derived(src)


def test_a_quantized_linear_that_awq_lists(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm")
    edit_quantization(src, lambda block: block.update(modules_to_not_convert=["down_proj"]))
    assert derived(src).keys() == {"QB281"}


# Towers, by the names that vLLM gives them


def with_tower(tmp_path, case, entries, key, name="Mistral3ForConditionalGeneration"):
    src = copy_fixture(tmp_path, case)
    below(src, "language_model.")
    planted(src, *TOWER)
    of_class(src, name)
    edit_quantization(src, lambda block: block.update({key: entries}))
    return src


TOWER = [f"vision_tower.transformer.layers.0.attention.{leaf}_proj" for leaf in "qkvo"]


@pytest.mark.parametrize(
    ("entries", "missed"),
    [
        (["model.vision_tower", "lm_head"], True),
        (["vision_tower"], True),
        ([f"model.{name}" for name in TOWER], False),
        (TOWER, False),
    ],
)
def test_a_tower_that_the_list_of_fp8_misses(entries, missed, tmp_path):
    src = with_tower(tmp_path, "fp8/llama_blocks", entries, "modules_to_not_convert")
    assert derived(src) == ({"QB280": set(TOWER)} if missed else {})


@pytest.mark.parametrize(
    ("entries", "missed"),
    [
        (["re:.*vision_tower.*", "re:.*lm_head"], False),
        (["re:model.vision_tower.*", "lm_head"], True),
        ([f"model.language_model.{name}" for name in TOWER], True),
    ],
)
def test_a_tower_that_the_list_of_compressed_tensors_misses(entries, missed, tmp_path):
    src = with_tower(tmp_path, "compressed_tensors/llama_fp8_dynamic", entries, "ignore")
    done = qbridge.check(src, "vllm")  # what the format itself says of them comes first
    wrong = {f.code for f in done.findings if f.severity == "error" and not set(TOWER).isdisjoint(f.where)}
    assert bool(wrong) is missed and done.ok is not missed


def test_a_tower_of_a_class_that_was_not_read_is_a_warning(tmp_path):
    name = "InternVLForConditionalGeneration"
    src = with_tower(tmp_path, "fp8/llama_blocks", ["lm_head"], "modules_to_not_convert", name)
    assert derived(src) == {"QB285": set(TOWER)}
    assert qbridge.Severity.WARNING in {f.severity for f in qbridge.check(src, "vllm").findings if f.code == "QB285"}


def test_drafts_are_loaded_apart(tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    planted(src, "mtp.layers.0.mlp.down_proj", "model.layers.2.mlp.down_proj")
    assert not derived(src)


# Where the block lies, and what it lacks


@pytest.mark.parametrize(
    ("place", "seen"),
    [("text_config", True), ("llm_config", False), ("language_config", False)],
)
def test_a_block_within_another_config(place, seen, tmp_path):
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    edit_json(
        src / "config.json", lambda c: c.update({place: {**c, "quantization_config": c.pop("quantization_config")}})
    )
    found = derived(src)
    assert ("QB283" in found) is not seen
    assert seen or found["QB283"] == {f"{place}.quantization_config"}


def test_an_older_key_is_read(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_fp8_dynamic")
    edit_json(src / "config.json", lambda c: c.update(compression_config=c.pop("quantization_config")))
    assert not derived(src)


def test_a_block_without_a_method_is_none(tmp_path):
    src = copy_fixture(tmp_path, "compressed_tensors/llama_fp8_dynamic")
    edit_quantization(src, lambda block: block.pop("quant_method") and None)
    assert derived(src) == {"QB284": {"quantization_config.quant_method"}}


@pytest.mark.parametrize("name", ["MotifForCausalLM", "GritLM"])
def test_classes_that_vllm_removed(name, tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm")
    of_class(src, name)
    assert derived(src)["QB286"] == {name} and "QB286" not in derived(src, "vllm@0.23.0")
    with pytest.raises(qbridge.QBridgeError, match="QB286"):
        qbridge.convert(src, tmp_path / "dst", "vllm")


def test_a_removed_class_whose_attention_is_its_own_is_an_error(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm")
    of_class(src, "MptForCausalLM")
    assert {f.severity for f in qbridge.check(src, "vllm").findings if f.code == "QB286"} == {qbridge.Severity.ERROR}


def test_a_removed_class_that_transformers_has_is_a_warning(tmp_path):
    src = copy_fixture(tmp_path, "awq/llama_gemm")
    of_class(src, "FuyuForCausalLM")
    assert {f.severity for f in qbridge.check(src, "vllm").findings if f.code == "QB286"} == {
        qbridge.Severity.WARNING
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("name", "method", "entries", "missed"),
    [
        ("GemmaForCausalLM", "modelopt", [], True),
        ("SmolLM3ForCausalLM", "modelopt", ["*mlp.gate*"], True),
        ("GemmaForCausalLM", "modelopt", ["lm_head"], False),
        ("Gemma2ForCausalLM", "modelopt", [], False),
        ("GemmaForCausalLM", "fp8", [], False),
        ("GemmaForCausalLM", "compressed-tensors", [], False),
    ],
)
def test_a_tied_head_that_is_built_from_the_block_must_be_left_out(name, method, entries, missed, tied):
    key = "modules_to_not_convert" if method == "fp8" else "ignore"
    block = {"quant_method": method, "quant_algo": "FP8", "activation_scheme": "dynamic", key: entries}
    block["config_groups"] = {"group_0": {"targets": ["Linear"]}}
    config = {"architectures": [name], "num_hidden_layers": 1, "tie_word_embeddings": tied}
    model = Model(method, config, {}, {"": {}}, {})
    said = {code: set(p.where) for code, p in DERIVATION.check({**config, "quantization_config": block}, model)}
    assert said == ({"QB280": {"lm_head"}} if missed and tied else {})


def said_of(name, block, quantized=(), plain=(), **config):
    """{code: places} of what is derived from a block for linears of a class that are quantized on disk, or not."""
    config = {"architectures": [name], "num_hidden_layers": 2, **config}
    slots = {module: {"code": Slot(f"{module}.weight", DType.F8_E4M3, (64, 64), PLAIN)} for module in quantized}
    tensors = {f"{module}.weight": TensorInfo(DType.BF16, (64, 64), f"{module}.weight") for module in plain}
    model = Model(block["quant_method"], config, {}, slots or {"": {}}, tensors)
    return {c: set(p.where) for c, p in DERIVATION.check({**config, "quantization_config": block}, model)}


@pytest.mark.parametrize(("entries", "missed"), [(["lm_head"], True), (["proj_out"], False)])
def test_a_tied_head_of_another_name_must_be_left_out(entries, missed):
    block = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": entries}
    found = said_of("WhisperForConditionalGeneration", block, model_type="whisper")
    assert found == ({"QB280": {"proj_out"}} if missed else {})


@pytest.mark.parametrize(("entries", "missed"), [(["embed_out"], True), (["lm_head"], False)])
def test_a_head_that_has_another_name_in_memory_is_listed_by_that(entries, missed):
    groups = {"group_0": {"targets": ["Linear"]}, "group_1": {"targets": ["re:.*lm_head"]}}
    block = {"quant_method": "compressed-tensors", "ignore": entries, "config_groups": groups}
    found = said_of("GPTNeoXForCausalLM", block, plain=["embed_out"])
    assert found == ({"QB280": {"embed_out"}} if missed else {})


@pytest.mark.parametrize("name", ["AfmoeForCausalLM", "ExaoneMoeForCausalLM"])
def test_a_head_that_is_built_without_its_name_is_in_no_list(name):
    block = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
    assert said_of(name, block, plain=["lm_head"]) == {"QB280": {"lm_head"}}
    groups = {"group_0": {"targets": ["Linear"]}}
    assert said_of(name, {"quant_method": "compressed-tensors", "config_groups": groups}, plain=["lm_head"]) == {}


@pytest.mark.parametrize(("part", "missed"), [("mamba", True), ("mixer", False)])
def test_mixers_of_granite_are_listed_by_their_name_in_memory(part, missed):
    groups = {"group_0": {"targets": ["Linear"]}}
    ignore = [f"model.layers.0.{part}.in_proj"]
    block = {"quant_method": "compressed-tensors", "ignore": ignore, "config_groups": groups}
    mixer = "model.layers.0.mamba.in_proj"
    found = said_of("GraniteMoeHybridForCausalLM", block, plain=[mixer])
    assert found == ({"QB280": {mixer}} if missed else {})


@pytest.mark.parametrize(("entry", "missed"), [("block_sparse_moe.gate", True), ("mlp.router", False)])
def test_a_router_that_is_a_linear_in_memory_is_listed_by_its_name_there(entry, missed):
    block = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": [f"model.layers.0.{entry}"]}
    router = "model.layers.0.block_sparse_moe.gate"
    assert said_of("PhimoeForCausalLM", block, plain=[router]) == ({"QB280": {router}} if missed else {})


@pytest.mark.parametrize("leaf", ["per_layer_model_projection", "altup_projections.0"])
@pytest.mark.parametrize("part", ["", "self_decoder."])
def test_linears_of_gemma3n_that_lie_in_another_module_in_memory(leaf, part):
    groups = {"group_0": {"targets": ["Linear"]}}
    block = {"quant_method": "compressed-tensors", "ignore": [f"model.{part}{leaf}"], "config_groups": groups}
    found = said_of("Gemma3nForCausalLM", block, plain=[f"model.{leaf}"])
    assert found == ({} if part else {"QB280": {f"model.{leaf}"}})


PLAIN_HEADS = [
    "BloomForCausalLM",
    "FalconH1ForCausalLM",
    "JambaForCausalLM",
    "OPTForCausalLM",
    "Qwen3NextForCausalLM",
]


@pytest.mark.parametrize("name", PLAIN_HEADS)
def test_classes_that_build_the_head_unquantized_whatever_the_block_says(name):
    block = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": []}
    assert said_of(name, block, ["lm_head"], tie_word_embeddings=False) == {"QB281": {"lm_head"}}
    assert said_of(name, block, tie_word_embeddings=True) == {}


@pytest.mark.parametrize(
    ("name", "module", "missed"),
    [
        ("SmolVLMForConditionalGeneration", "model.connector.modality_projection.proj", True),
        ("Idefics3ForConditionalGeneration", "model.vision_model.encoder.layers.0.mlp.fc1", True),
        ("LlavaNextVideoForConditionalGeneration", "model.multi_modal_projector.linear_1", False),
        ("Cohere2VisionForConditionalGeneration", "model.multi_modal_projector.linear_1", False),
        ("PaliGemmaForConditionalGeneration", "model.vision_tower.encoder.layers.0.mlp.fc1", True),
    ],
)
def test_connectors_and_towers_that_a_list_misses(name, module, missed):
    block = {"quant_method": "auto-round", "extra_config": {}}
    assert said_of(name, block, plain=[module]) == ({"QB280": {module}} if missed else {})


def test_a_tower_built_before_the_text_model_is_listed_by_what_it_is_built_into():
    tower = [f"model.vision_tower.encoder.layers.0.self_attn.{leaf}_proj" for leaf in "qkv"]
    block = {"quant_method": "fp8", "modules_to_not_convert": tower}
    assert said_of("LlavaOnevisionForConditionalGeneration", block, plain=tower) == {"QB280": set(tower)}
    assert said_of("LlavaNextVideoForConditionalGeneration", block, plain=tower) == {}


@pytest.mark.parametrize(("leaf", "missed"), [("q_a_proj", True), ("kv_a_proj_with_mqa", False)])
@pytest.mark.parametrize("method", ["gptq", "compressed-tensors"])
def test_a_linear_that_is_built_without_its_name_is_in_no_list_of_gptq(leaf, missed, method):
    names = [f"model.layers.{n}.self_attn.{leaf}" for n in (0, 1)]
    block = {"quant_method": method, "config_groups": {"group_0": {"targets": ["Linear"]}}}
    block |= {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    config = {"architectures": ["MiniCPM3ForCausalLM"], "num_hidden_layers": 2}
    slots = {name: {"code": Slot(f"{name}.qweight", DType.I32, (8, 64), PLAIN)} for name in names}
    model = Model(method, config, {}, slots, {})
    said = {code: set(p.where) for code, p in DERIVATION.check({**config, "quantization_config": block}, model)}
    assert said == ({"QB281": set(names)} if missed and method == "gptq" else {})


@pytest.mark.parametrize("name", ["Qwen3VLForConditionalGeneration", "Gemma3ForConditionalGeneration"])
@pytest.mark.parametrize(("prefix", "missed"), [("language_model[.]model", False), ("model[.]language_model", True)])
def test_the_text_model_of_a_multimodal_class_has_another_prefix_in_memory(name, prefix, missed):
    stored = "model.language_model.layers.0.mlp.down_proj"
    block = {"quant_method": "compressed-tensors", "ignore": [rf"re:{prefix}[.]layers[.]0[.].*"]}
    block["config_groups"] = {"group_0": {"targets": ["Linear"]}}
    config = {"architectures": [name], "text_config": {"num_hidden_layers": 1}}
    tensors = {f"{stored}.weight": TensorInfo(DType.BF16, (64, 64), f"{stored}.weight")}
    model = Model("compressed-tensors", config, {}, {"": {}}, tensors)
    said = {code: set(p.where) for code, p in DERIVATION.check({**config, "quantization_config": block}, model)}
    assert said == ({"QB280": {stored}} if missed else {})


@pytest.mark.parametrize(
    ("entry", "missed"), [("model.layers.0.moe.up_proj", True), ("model.layers.0.moe.experts", False)]
)
def test_stacks_of_experts_beside_a_shared_one_are_asked_about_by_their_block(entry, missed):
    stored = "model.layers.0.moe.up_proj"
    config = {"architectures": ["Step3p5ForCausalLM"], "num_hidden_layers": 1}
    tensors = {f"{stored}.weight": TensorInfo(DType.BF16, (4, 64, 64), f"{stored}.weight")}
    block = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [entry]}
    model = Model("modelopt", config, {}, {"": {}}, tensors)
    said = {code: set(p.where) for code, p in DERIVATION.check({**config, "quantization_config": block}, model)}
    assert said == ({"QB280": {stored}} if missed else {})


def test_the_tables_agree():
    assert CLASSES.keys().isdisjoint(REMOVED) and PLACES[0] == "quantization_config"


# Experts


def mixture(entries, stored, stacked=False, **block):
    """A model of one layer's experts: two of them quantized, or a stack that is not."""
    names = [f"model.layers.0.mlp.experts.{e}.{p}_proj" for e in (0, 1) for p in ("gate", "up", "down")]
    shape = (2, 64, 64) if stacked else (64, 64)
    tensors = {f"{name}.weight": TensorInfo(DType.BF16, shape, f"{name}.weight") for name in stored or names}
    config = {"architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 1}
    model = Model("fp8", config, {}, {"": {}}, tensors)
    return {code: set(p.where) for code, p in DERIVATION.check({**config, "quantization_config": block}, model)}


@pytest.mark.parametrize(
    ("entries", "missed"), [([], True), (["model.layers.0.mlp.experts"], False), (["re:.*experts.*"], False)]
)
def test_unquantized_experts_must_be_listed_by_name(entries, missed):
    block = {"quant_method": "compressed-tensors", "ignore": entries}
    block["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}
    stored = ["model.layers.0.mlp.experts.gate_up_proj"]
    found = mixture(entries, stored, True, **block)
    assert ("QB280" in found) is (missed or entries == ["model.layers.0.mlp.experts"])


# AutoRound as it is


@pytest.mark.parametrize(
    ("case", "packing", "ok"),
    [
        ("llama_gptq_sym", None, True),
        ("llama_8bit_sym", None, True),
        ("llama_awq_asym", None, True),
        ("llama_gptq_asym", None, False),
        ("llama_3bit_asym", None, False),  # its packing_format is none of vLLM's
        ("llama_3bit_asym", "auto_round:auto_gptq", False),  # Humming would take zero-points less one
        ("llama_odd_bits_sym", None, True),  # Humming
        ("llama_awq_6bit_sym", None, False),
        ("llama_gptqmodel_sym", None, False),
    ],
)
def test_autoround_is_taken_as_it_is_where_a_kernel_is(case, packing, ok, tmp_path):
    src = copy_fixture(tmp_path, f"auto_round/{case}")
    if packing:
        edit_quantization(src, lambda block: block.update(packing_format=packing))
    done = qbridge.check(src, "vllm")
    said = {f.code for f in done.findings if f.severity == "error"}
    assert "QB260" not in said and done.ok is ok, said


def test_an_autoround_backend_that_vllm_does_not_know(tmp_path):
    src = copy_fixture(tmp_path, "auto_round/llama_gptq_sym")
    edit_quantization(src, lambda block: block.update(backend="auto_round:gptq:exllamav2"))
    assert derived(src) == {"QB284": {"quantization_config.backend"}}


@pytest.mark.parametrize(
    ("bits", "symmetric", "size", "packing", "ok"),
    [
        (4, True, 128, "auto_gptq", True),
        (4, True, None, "auto_gptq", True),
        (4, True, 16, "auto_gptq", False),  # Marlin's groups
        (3, True, 16, "auto_gptq", True),  # Humming has any
        (3, True, None, "auto_gptq", False),
        (3, True, 8, "auto_gptq", False),  # Humming's start at 16
        (7, True, 64, "auto_gptq", True),
        (2, False, 64, "auto_gptq", False),
        (4, False, 16, "auto_awq", True),  # Triton has any
        (4, True, 128, "auto_awq", True),
        (4, False, 96, "auto_awq", False),
        (3, True, 64, "auto_awq", False),
    ],
)
def test_widths_and_groups_of_autoround(bits, symmetric, size, packing, ok):
    granularity = Granularity.GROUP if size else Granularity.CHANNEL
    weight = WeightScheme(bits, granularity, symmetric, group_size=size)
    dialect = (("packing_format", f"auto_round:{packing}"),)
    spec = Spec("model.layers.0.mlp.down_proj", 256, 256, weight, DType.F16, dialect=dialect)
    model = Model("auto-round", {"architectures": ["LlamaForCausalLM"]}, {spec.name: spec}, {}, {})
    rules = find_target("vllm").choice_of("auto-round").rules
    said = [rule for rule in rules if rule.code == "QB224" and rule.check(spec, model)]
    assert (not said) is ok


# Words of the block

WORDS = [
    ("gptq/llama_g128", {"desc_act": True}, "desc_act"),
    ("gptq/llama_g128", {"desc_act": None}, "desc_act"),
    ("gptq/llama_g128", {"dynamic": {"+:.*down.*": {"desc_act": True}}}, "dynamic"),
    ("gptq/llama_static_groups", {}, "desc_act"),
    ("gptq/llama_g128", {"sym": False}, "sym"),
    ("gptq/llama_g128", {"sym": None}, "sym"),
    ("gptq/llama_g128", {"group_size": None}, "group_size"),
    ("awq/llama_gemm_g128", {"zero_point": None}, "zero_point"),
    ("awq/llama_gemm_g128", {"version": None}, ""),
    ("awq/llama_gemm_g128", {"version": "GEMM"}, ""),
    ("awq/llama_gemv", {}, "version"),
    ("fp8/llama_blocks", {"activation_scheme": None}, "activation_scheme"),
    ("fp8/llama_blocks", {"fmt": "float8_e4m3fn"}, ""),
]


@pytest.mark.parametrize(("case", "words", "key"), WORDS)
def test_words_that_vllm_does_not_find_or_take_and_convert_writes(case, words, key, tmp_path):
    src = copy_fixture(tmp_path, case)

    def edit(block):
        for name, value in words.items():
            block.pop(name, None)
            block.update({} if value is None else {name: value})

    edit_quantization(src, edit)
    (src / "quantize_config.json").unlink(missing_ok=True)
    assert derived(src) == ({"QB284": {f"quantization_config.{key}"}} if key else {})
    qbridge.convert(src, tmp_path / "dst", "vllm", allow=["rounded"])
    assert derived(tmp_path / "dst") == {}


def test_act_order_per_channel_orders_nothing(tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_channel")
    edit_quantization(src, lambda block: block.update(desc_act=True))
    assert derived(src) == {}


@pytest.mark.parametrize(("target", "codes"), [("vllm", {"QB224"}), ("vllm@0.23", set())])
def test_act_order_is_served_before_0_30(target, codes, tmp_path):
    src = copy_fixture(tmp_path, "gptq/llama_desc_act")
    said = qbridge.check(src, target).findings
    assert {f.code for f in said if f.severity == "error"} == codes
