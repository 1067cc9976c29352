"""What tests of padding share: layers, checkpoints that are edited, and what padding keeps."""

from __future__ import annotations

from dataclasses import replace

from safetensors.numpy import load_file, save_file

import qbridge
from qbridge.architecture.architecture import Architecture
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import Granularity, WeightScheme
from qbridge.ir.values import dequantize
from support import ROOT, copy_fixture, edit_json

MLP = ("gate_proj", "up_proj", "down_proj")


DOWN = "model.layers.0.mlp.down_proj"


def fixture(case):
    return ROOT / "fixtures" / case / "model"


def spec(bits=4, size=32, symmetric=False, shape=(4, 128), dtype=DType.F16, **other):
    kind = Granularity.GROUP if size else Granularity.CHANNEL
    return Spec("m", *shape, WeightScheme(bits, kind, symmetric, group_size=size), dtype, **other)


def assert_padded(after, before):
    """Old weights and biases bit for bit, all others exactly zero."""
    values, old = dequantize(after), dequantize(before)
    inner = tuple(slice(length) for length in old.shape)
    assert values[inner].tobytes() == old.tobytes()
    values[inner] = 0
    assert not values.any(), "a weight of the padding is not zero"
    if "bias" in before.arrays:
        bias, length = after.arrays["bias"], before.spec.out_features
        assert bias[:length].tobytes() == before.arrays["bias"].tobytes() and not bias[length:].any()


def assert_sizes_agree(opened):
    """Every MLP has the size that an engine reads in config.json."""
    architecture = Architecture.of_model(opened.model)
    for block in architecture.mlps(opened.specs):
        size = opened.model.config[architecture.intermediate_key(block.name)]
        size *= architecture.intermediate_copies(block.name)
        found = [opened.specs[name] for name in (block.gate, block.up, block.down)]
        assert [found[0].out_features, found[1].out_features, found[2].in_features] == [size] * 3, block.name


def mlp(name, hidden, size, group=32, leaves=MLP):
    """The specs of one gated MLP."""
    shapes = {"down_proj": (hidden, size), "gate_up_proj": (2 * size, hidden)}
    found = {}
    for leaf in leaves:
        shape = shapes.get(leaf, (size, hidden))
        found[f"{name}.{leaf}"] = replace(spec(4, group, True, shape), name=f"{name}.{leaf}")
    return found


def model(specs, dense=(), **keys):
    """A Llama of some layers; `dense` are linears that are not quantized."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_size": 256}
    others = {f"{name}.weight": TensorInfo(DType.F16, shape, f"{name}.weight") for name, shape in dense}
    settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes, "hidden_act": "silu", **keys}
    return Model("gptq", settings, specs, {}, others)


def deepseek(size, copies):
    """Two routed experts and shared ones that are one module, `copies` times as wide."""
    keys = {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "n_routed_experts": 2}
    keys |= {"moe_intermediate_size": size, "n_shared_experts": copies, "first_k_dense_replace": 0}
    specs = mlp("model.layers.0.mlp.shared_experts", 256, size * copies)
    for expert in (0, 1):
        specs |= mlp(f"model.layers.0.mlp.experts.{expert}", 256, size)
    return model(specs, **keys)


def assert_same_model_in_more_features(source, out, allow=()):
    """Every weight of `source` in `out` bit for bit, zeros beyond; how many layers grew."""
    grown = 0
    with qbridge.open(source, allow=allow) as before, qbridge.open(out, allow=allow) as after:
        assert before.specs.keys() == after.specs.keys()
        for name in before.specs:
            old, new = before.layer(name), after.layer(name)
            assert_padded(new, old)
            grown += (old.spec.out_features, old.spec.in_features) != (new.spec.out_features, new.spec.in_features)
        assert_sizes_agree(after)
    checked = qbridge.verify(source, out, allow=allow)
    assert checked.same and not [f for f in checked.findings if f.severity == "error"]
    back = qbridge.verify(out, source, allow=allow)
    assert (back.same, back.identical, back.equal) == (True, checked.identical, checked.equal)
    assert checked.equal >= grown and checked.identical + checked.equal == len(before.specs)
    return grown


def edited(folder, name, fn):
    file = folder / "model.safetensors"
    stored = load_file(file)
    fn(stored[name])
    save_file(stored, file, metadata={"format": "pt"})


def flip(place):
    def change(array):
        array[place] ^= 1

    return change


def put(place, value):
    def change(array):
        array[place] = value

    return change


def cut(tmp_path, **keys):
    source = copy_fixture(tmp_path, "gptq/llama_640")
    edit_json(source / "config.json", lambda found: found.update(keys))
    return source
