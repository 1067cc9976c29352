from __future__ import annotations

import pytest

import goldens
import qbridge
from qbridge.testing.laws import check_format
from support import codes, contents, copy_fixture, edit_json


@pytest.mark.parametrize("case", goldens.cases("auto_round"))
def test_values_are_those_of_the_tool(case):
    goldens.check("auto_round", case)


def test_laws():
    check_format("auto-round")


FLOAT8 = {
    **{"quant_method": "auto-round", "bits": 8, "group_size": [128, 128], "sym": True, "data_type": "fp"},
    **{"packing_format": "auto_round:fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "act_bits": 8},
    **{"act_group_size": 128, "act_data_type": "fp", "act_sym": True, "act_dynamic": True},
    "block_name_to_quantize": "model.layers",
}


def float8(tmp_path, **keys):
    """A checkpoint of float8 blocks as AutoRound writes it, whose block says `keys` otherwise."""
    src = copy_fixture(tmp_path, "fp8/llama_blocks")
    block = {key: value for key, value in {**FLOAT8, **keys}.items() if value is not None}
    edit_json(src / "config.json", lambda config: config.update(quantization_config=block))
    return src


@pytest.mark.parametrize("keys", [{}, {"packing_format": None}, {"data_type": "fp8"}])
def test_float8_in_blocks_is_read_and_rewritten(keys, tmp_path):
    src = float8(tmp_path, **keys)
    assert qbridge.check(src, "vllm").ok and qbridge.open(src).format == "auto-round"
    for target in ("vllm", "sglang", "lmdeploy", "transformers"):
        out = tmp_path / target
        qbridge.convert(src, out, target)
        assert qbridge.verify(src, out).same and qbridge.check(out, target).ok
    qbridge.restore(tmp_path / "vllm", tmp_path / "back")
    assert contents(tmp_path / "back")["model.safetensors"] == contents(src)["model.safetensors"]


@pytest.mark.parametrize("target", ["transformers", "sglang", "lmdeploy"])
def test_float8_in_blocks_is_loaded_by_vllm_alone(target, tmp_path):
    assert not qbridge.check(float8(tmp_path), target).ok


@pytest.mark.parametrize(
    "keys", [{"act_dynamic": False}, {"fmt": "e5m2"}, {"group_size": [64, 64]}, {"act_bits": 16}]
)
def test_float8_of_another_kind_is_not_read(keys, tmp_path):
    with pytest.raises(qbridge.QBridgeError) as refused:
        qbridge.inspect(float8(tmp_path, **keys))
    assert codes(refused) == {"QB101"}
