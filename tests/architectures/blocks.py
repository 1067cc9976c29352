"""Quantization blocks as the tools write them; each puts its own into config.json and gives the other files.

llm-compressor 0.8 lists every Linear that it left, by its name; AutoAWQ and AutoRound name what was not converted;
GPTQModel says nothing of what it does not know; ModelOpt writes hf_quant_config.json, with patterns for towers.
"""

from __future__ import annotations

PRODUCER = {"name": "modelopt", "version": "0.35.0"}
INT4 = {"bits": 4, "group_size": 128}


def holder(config):
    """Where the block lies: in the text model's own config where the repository has it there (Kimi-K2.5)."""
    return config["text_config"] if config["architectures"] == ["KimiK25ForConditionalGeneration"] else config


def put(config, block, dtype):
    holder(config)["quantization_config"] = block
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    config[key] = dtype
    return {}


def scheme(bits, kind, strategy, dynamic=False, **more):
    return {
        **{"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": dynamic},
        **{
            "group_size": None,
            "actorder": None,
            "block_structure": None,
            "observer": "minmax",
            "observer_kwargs": {},
        },
        **more,
    }


def compressed(layout, weights, inputs, dense, config, dtype):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    block = {
        **{"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed"},
        **{"config_groups": {"group_0": group}, "ignore": below_text(dense, config), "kv_cache_scheme": None},
        "global_compression_ratio": None,
    }
    return put(config, block, dtype)


def below_text(names, config):
    """The names as the block's own model has them."""
    if holder(config) is config:
        return names
    return [name.removeprefix("language_model.") for name in names if name.startswith("language_model.")]


def w4a16(_, dense, config, dtype):
    return compressed("pack-quantized", scheme(4, "int", "group", group_size=128), None, dense, config, dtype)


def fp8_dynamic(_, dense, config, dtype):
    inputs = scheme(8, "float", "token", True, observer=None)
    return compressed("float-quantized", scheme(8, "float", "channel"), inputs, dense, config, dtype)


def w8a8(_, dense, config, dtype):
    inputs = scheme(8, "int", "token", True, observer=None)
    return compressed("int-quantized", scheme(8, "int", "channel"), inputs, dense, config, dtype)


def nvfp4(_, dense, config, dtype):
    weights = scheme(4, "float", "tensor_group", group_size=16)
    inputs = scheme(4, "float", "tensor_group", "local", group_size=16)
    return compressed("nvfp4-pack-quantized", weights, inputs, dense, config, dtype)


def fp8(_, dense, config, dtype):
    block = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    return put(config, {**block, "modules_to_not_convert": below_text(dense, config)}, dtype)


def gptq(_, dense, config, dtype):
    block = {"quant_method": "gptq", **INT4, "sym": True, "desc_act": False, "checkpoint_format": "gptq"}
    block |= {"lm_head": False, "damp_percent": 0.01, "static_groups": False, "true_sequential": True}
    return put(config, block, dtype)


def awq(_, dense, config, dtype):
    names = [name for name in dense if not name.endswith(("lm_head", "embed_out", "output", "output_layer"))]
    block = {"quant_method": "awq", **INT4, "version": "gemm", "zero_point": True}
    return put(config, {**block, "modules_to_not_convert": below_text(names, config) or None}, dtype)


def auto_round(_, dense, config, dtype):
    left = {name: {"bits": 16, "data_type": "float"} for name in dense if "layers." in name}
    block = {"quant_method": "auto-round", **INT4, "sym": True, "data_type": "int", "autoround_version": "0.8.0"}
    block |= {"packing_format": "auto_round:auto_gptq", "extra_config": left, "iters": 200}
    return put(config, block, dtype)


def modelopt(algorithm, cache, dense, config, dtype, **more):
    quantization = {"quant_algo": algorithm, "kv_cache_quant_algo": cache, **more, "exclude_modules": dense}
    put(config, {}, dtype)
    bits = 4 if more else 8
    kind = {"dynamic": False, "num_bits": bits, "type": "float", **more}
    group = {"input_activations": dict(kind), "weights": dict(kind), "targets": ["Linear"]}
    holder(config)["quantization_config"] = {
        **{"config_groups": {"group_0": group}, "ignore": dense, "quant_algo": algorithm, "producer": PRODUCER},
        "quant_method": "modelopt",
    }
    return {"hf_quant_config.json": {"producer": PRODUCER, "quantization": quantization}}


def modelopt_fp8(_, dense, config, dtype):
    return modelopt("FP8", None, dense, config, dtype)


def modelopt_nvfp4(_, dense, config, dtype):
    return modelopt("NVFP4", None, dense, config, dtype, group_size=16)


def mxfp4(_, dense, config, dtype):
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return put(config, {"quant_method": "mxfp4", "modules_to_not_convert": kept}, dtype)
