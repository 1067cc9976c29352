"""What a rank holds of the weights: all that is stored at size 1, and of each tensor its share beyond.

The shares of a Llama are worked out here by hand, from the dims of its config.json.
"""

from __future__ import annotations

import pytest

import qbridge
from qbridge.ir.dtypes import DType, nbytes
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.targets.rank_weights import rank_weights
from qbridge.targets.registry import find_target
from support import ROOT

VLLM = find_target("vllm").parallel
FIXTURES = [str(path.parent.relative_to(ROOT / "fixtures")) for path in sorted(ROOT.glob("fixtures/*/*/model"))]


def model_of(case):
    with qbridge.open(ROOT / "fixtures" / case / "model") as opened:
        stored = {name: tensor.end - tensor.begin for name, tensor in opened.source.tensors.items()}
        return opened.model, stored


@pytest.mark.parametrize("case", FIXTURES)
def test_one_rank_holds_all_that_is_stored(case):
    try:
        model, stored = model_of(case)
    except qbridge.QBridgeError:
        pytest.skip("it cannot be read")
    wide = {name: info for name, info in model.tensors.items() if info.dtype.is_float and info.dtype.itemsize > 2}
    weights = rank_weights(model, VLLM, 1)
    claimed = {slot.tensor for slots in model.slots.values() for slot in slots.values()}
    claimed |= {info.stored for info in model.tensors.values()}
    cast = sum(nbytes(info.dtype, info.shape) // 2 for info in wide.values())
    slack = cast if wide else 0  # what is stored in float32 takes half of that in a model dtype of 16 bits
    held = sum(size for name, size in stored.items() if name in claimed)
    assert held - slack <= weights.bytes <= held and weights.exact


@pytest.mark.parametrize("tp", [2, 4])
def test_shares_of_a_llama_are_those_of_its_dims(tp):
    model, _ = model_of("gptq/llama_g128")
    half = 2  # bytes of a float16
    expected = 0
    for name, spec in model.specs.items():
        groups = spec.in_features // 128
        row = name.endswith(("o_proj", "down_proj"))
        codes = spec.out_features * spec.in_features // 2
        zeros = groups * spec.out_features // 2
        scales = groups * spec.out_features * half
        g_idx = spec.in_features * 4
        expected += (codes + zeros + scales) / tp + (g_idx / tp if row else g_idx)
    for name, info in model.tensors.items():
        size = nbytes(info.dtype, info.shape)
        if "norm" in name:
            expected += size
        else:  # embeddings and head, rows in multiples of 64
            rows = -(-info.shape[0] // 64) * 64
            expected += size * rows / info.shape[0] / tp
    assert rank_weights(model, VLLM, tp).bytes == expected and rank_weights(model, VLLM, tp).exact


def test_kv_heads_that_are_fewer_than_ranks_are_repeated():
    config = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 4, "num_key_value_heads": 2}
    weight = WeightScheme(4, Granularity.GROUP, group_size=128)
    k_proj = Spec("model.layers.0.self_attn.k_proj", 128, 256, weight, DType.F16)
    model = Model("gptq", config, {k_proj.name: k_proj}, {}, {})
    held = [rank_weights(model, VLLM, tp).bytes for tp in (1, 2, 4)]
    assert held[1] == held[2] == held[0] // 2


def test_what_cannot_be_split_has_no_weights_and_what_is_not_known_is_a_bound():
    model, _ = model_of("gptq/llama_g128")
    assert rank_weights(model, VLLM, 3) is None
    unknown = find_target("lmdeploy").parallel  # whose classes differ in how they build the embedding
    assert not rank_weights(model, unknown, 2).exact
    assert rank_weights(model, unknown, 2).bytes > rank_weights(model, VLLM, 2).bytes


def test_experts_are_split_within_each_expert():
    model, _ = model_of("compressed_tensors/qwen3_moe_w8a8")
    one, two = (rank_weights(model, VLLM, tp) for tp in (1, 2))
    experts = sum(spec.out_features * spec.in_features for name, spec in model.specs.items() if ".experts." in name)
    assert one.bytes - two.bytes >= experts / 2 and two.exact
