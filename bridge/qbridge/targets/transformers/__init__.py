"""What transformers takes of compressed-tensors, of its own fine-grained FP8, of gpt-oss, and of GPTQ and AWQ.

Source: transformers 5.24.0 with compressed-tensors 0.20.0, quantizers/ and integrations/ (finegrained_fp8.py,
compressed_tensors.py) and conversion_mapping.py; tried in 5.17.0 and 5.24.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qbridge.architecture.config import Reader
from qbridge.architecture.experts import FUSED, SEPARATE, SINGLE, as_transformers
from qbridge.architecture.names import dense_linears, is_routed
from qbridge.findings.catalogue.code import Code
from qbridge.formats.registry import named
from qbridge.formats.rules import LayerRule, ModelRule, Problem
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.scheme import Granularity
from qbridge.targets import gptqmodel
from qbridge.targets.choice import Choice, python_path
from qbridge.targets.common import stacked, unquantized_tensors, weight_scales
from qbridge.targets.denied import biases_rule
from qbridge.targets.remote_code import needs_remote_code
from qbridge.targets.stored_names import one_by_one_rule, text_model_rule, usual_text_models
from qbridge.targets.target import Target
from qbridge.targets.transformers import gptq, matching, messages, routers

_LOADING = "transformers 5.17.0, core_model_loading.py"


def _experts(model: Model) -> Iterator[Problem]:
    """Experts are one fused tensor in memory, and the converter of names knows packed and float8 codes only.

    It forgets global scales and takes exponents for scales (integrations/compressed_tensors.py, DecompressExperts).
    """
    yield from _quantized_in_part(model)
    found = tuple(name for name, spec in model.specs.items() if ".experts." in name and not _is_converted(spec))
    if found:
        yield Problem((f"{len(found)} expert linears",), where=found)
        return
    experts, kind = tuple(name for name in model.specs if ".experts." in name), model.config.get("model_type")
    if experts and kind in _UNKNOWN_TYPES:
        yield Problem((f"{len(experts)} expert linears: it fuses none of model_type {kind!r}",), where=experts)


def _quantized_in_part(model: Model) -> Iterator[Problem]:
    """Experts of a layer are merged into one tensor (core_model_loading.py), from codes all or from plain weights."""
    quantized = {name.partition(".experts.")[0] for name in model.specs if is_routed(name)}
    plain = (name for name in dense_linears(model.tensors) if is_routed(name))
    where = tuple(name for name in plain if name.partition(".experts.")[0] in quantized)
    if where:
        yield Problem((f"{len(where)} expert linears are not quantized, others of their layers are",), where=where)


def _stacks(spec: Spec, model: Model) -> Problem | None:
    lies = stacked(spec)
    return Problem((f"experts share a tensor by {lies}: it knows quantized ones one by one",)) if lies else None


def _packed(spec: Spec, model: Model) -> Problem | None:
    """Linears of another class than Linear are initialized by the model's class, which asks for their weight."""
    packed = spec.weight.bits < 8 or (spec.weight.type == "int" and spec.activation is None)
    if model.architecture not in _INITIALIZES or not packed:
        return None
    return Problem((f"{model.architecture} initializes weight, and packed codes are weight_packed",))


# Classes that have linears of their own kind and initialize those (models/falcon/modeling_falcon.py, _init_weights).
_INITIALIZES = frozenset({"FalconForCausalLM"})
# A name of the hub for a class that transformers knows by another; classes of which it knows fused ones alone.
_UNKNOWN_TYPES = frozenset({"kimi_k2", "step3p5", "step3p7"})


def _is_converted(spec: Spec) -> bool:
    if spec.weight.type == "int":  # symmetric ones alone: "Asymmetric quant requires zero-point values"
        return spec.activation is None and spec.weight.symmetric
    one = spec.weight.granularity in (Granularity.TENSOR, Granularity.CHANNEL)
    return spec.weight.type == "e4m3fn" and one and spec.scale_dtype.is_float


def _scales(spec: Spec, model: Model) -> Problem | None:
    """It reads weight_scale_inv, of blocks or one per tensor, and activation_scale; others are left aside."""
    if spec.weight.type == "e2m1":
        return Problem((f"{spec.scheme}: it knows MXFP4",)) if spec.weight.global_scale else None
    dialect, one = dict(spec.dialect), spec.weight.granularity is Granularity.TENSOR
    scale = dialect.get("scale", "weight_scale_inv" if spec.weight.block else "weight_scale")
    if not spec.weight.block and not one:
        return Problem((f"weights {spec.weight}: it has scales per tensor or block",))
    if scale not in ("weight_scale_inv", "scale"):
        return Problem(
            (f"the scale is stored as {scale}: it reads weight_scale_inv, and takes the codes for weights",)
        )
    if spec.input_scale_dtype is not None and dialect.get("input_scale", "input_scale") != "activation_scale":
        return Problem(("the scale of inputs is stored as input_scale: it reads activation_scale",))
    return None


# Classes of which it has no converter that makes fused float8 experts of single ones (conversion_mapping.py).
_SINGLE = frozenset({"Qwen3VLMoeForConditionalGeneration", "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"})


def _float8_experts(model: Model) -> Iterator[Problem]:
    yield from _quantized_in_part(model)
    plain = ((name, spec) for name, spec in model.specs.items() if ".experts." in name and spec.weight.type != "e2m1")
    found = tuple(name for name, spec in plain if spec.weight.block is None)
    if found:
        yield Problem((f"{len(found)} expert linears of float8 without blocks",), where=found)
    single = tuple(name for name in model.specs if ".experts." in name and model.architecture in _SINGLE)
    if single:
        yield Problem(
            (f"{len(single)} expert linears: it knows no float8 experts of {model.architecture}",), where=single
        )


def _needs(package: str) -> ModelRule:
    """A format that transformers loads through another package."""

    def check(model: Model) -> Iterator[Problem]:
        yield Problem((f"transformers loads it with {package}",), (f"pip install {package}",), ("config.json",))

    return ModelRule("QB288", check, f"{_NEWEST}, quantizers/auto.py")


def _auto_round_float8(model: Model) -> Iterator[Problem]:
    """AutoRound's package has no linear for its float8 with a scale per block."""
    where = tuple(name for name, spec in model.specs.items() if spec.weight.type != "int")
    if where:
        yield Problem(
            (f"auto-round 0.16.1 has no backend for {len(where)} linears of float8 in blocks",), where=where
        )


def _serve(model: Model, path: str, tp: int) -> str:
    """Two lines of Python, for transformers alone has no server; `device_map` shares layers among GPUs."""
    images = model.architecture.endswith("ForConditionalGeneration")
    auto = "AutoModelForImageTextToText" if images else "AutoModelForCausalLM"
    code = ", trust_remote_code=True" if needs_remote_code(model.config) else ""
    loaded = f'{auto}.from_pretrained({python_path(path)}, dtype="auto", device_map="auto"{code})'
    return f"from transformers import {auto}\nmodel = {loaded}"


# Classes whose fused experts it replaces by single linears beside a block of compressed-tensors (quantizers/base.py,
# MODULES_TO_PATCH_FOR_QUANTIZATION: SequentialLlama4TextExperts).
_TAKEN_APART = frozenset({"Llama4ForCausalLM", "Llama4ForConditionalGeneration"})


def _arrange(model: Model, lies: str) -> str:
    if model.architecture in _TAKEN_APART:
        return "" if lies == SINGLE else SEPARATE
    if lies == SINGLE and any(spec.weight.type != "e4m3fn" for spec in model.specs.values()):
        return FUSED  # beside packed codes its converters look for weight_packed alone (update_weight_conversions)
    return as_transformers(model, lies)


_NEWEST = "transformers 5.24.0"
_FLOAT8 = f"{_NEWEST}, integrations/finegrained_fp8.py (FP8Linear) and quantizers/quantizer_finegrained_fp8.py"
# Classes whose config has attention_bias, false by default.
_BIASED_IF_ASKED = """
    AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM Cohere2ForCausalLM CohereForCausalLM Dots1ForCausalLM
    FalconH1ForCausalLM FlexOlmoForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3ForConditionalGeneration
    GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM GlmForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
    GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM HeliumForCausalLM HyperCLOVAXForCausalLM LlamaForCausalLM
    NemotronForCausalLM Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM OlmoeForCausalLM Qwen3ForCausalLM
    Qwen3MoeForCausalLM Qwen3NextForCausalLM Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration
    SmolLM3ForCausalLM
"""
_BIASES = biases_rule(
    "transformers", _BIASED_IF_ASKED.split(), ("attention_bias",), "transformers 5.17.0, models/*/modeling_*.py"
)
# Types of which it renames no former name of the text model (conversion_mapping.py).
_UNRENAMED = frozenset({"glm4v", "glm4v_moe", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe"})


def _text_models(model: Model) -> tuple[str, ...]:
    names = usual_text_models(model)
    renamed = model.config.get("model_type") not in _UNRENAMED
    return names if renamed or not names else ("model.language_model", "language_model")


_NAMES = (
    text_model_rule(f"{_NEWEST}, conversion_mapping.py", _text_models),
    one_by_one_rule(f"{_NEWEST}, models/*/modeling_*.py"),
)
CHOICES = (
    Choice(
        named("compressed-tensors"),
        (
            *_NAMES,
            _BIASES,
            LayerRule("QB231", _stacks, f"{_NEWEST}, integrations/compressed_tensors.py (DecompressExperts)"),
            ModelRule("QB231", _experts, f"{_NEWEST}, conversion_mapping.py and integrations/compressed_tensors.py"),
            routers.RULE,
            LayerRule("QB290", _packed, f"{_NEWEST}, models/falcon/modeling_falcon.py (_init_weights)"),
            weight_scales(DType.F32, _LOADING),
            unquantized_tensors(DType.F32, _LOADING),
        ),
        serve=_serve,
        experts=_arrange,
    ),
    Choice(
        named("mxfp4"),
        (
            *_NAMES,
            unquantized_tensors(DType.F32, _LOADING),
        ),
        serve=_serve,
    ),
    Choice(
        named("fp8"),
        (
            *_NAMES,
            _BIASES,
            LayerRule("QB231", _stacks, f"{_NEWEST}, conversion_mapping.py"),
            LayerRule("QB287", _scales, _FLOAT8),
            routers.RULE,
            ModelRule("QB231", _float8_experts, f"{_NEWEST}, conversion_mapping.py"),
            unquantized_tensors(DType.F32, _LOADING),
        ),
        serve=_serve,
        spare=True,
    ),
)
AS_IS = (
    *(
        replace(choice, rules=(*choice.rules, *more, *_NAMES, _BIASES, _needs("gptqmodel")), serve=_serve)
        for choice, more in zip(gptqmodel.CHOICES, (gptq.RULES, ()), strict=True)
    ),
    Choice(
        named("auto-round"),
        (
            *_NAMES,
            _BIASES,
            _needs("auto-round"),
            ModelRule("QB284", _auto_round_float8, "auto-round 0.16.1, inference/backend.py (BackendInfos)"),
            unquantized_tensors(DType.F32, _LOADING),
        ),
        serve=_serve,
    ),
)
CODES = (
    gptq.CODE,
    Code(
        "QB231",
        "transformers cannot load experts of this scheme",
        "The checkpoint is a mixture of experts with int8 linears in them, or floats of 4 bits, of groups or blocks.",
        "transformers 5 fuses experts while it loads, and its converter knows packed integers and float8 with scales "
        "per tensor or channel: it fails, runs with uninitialised experts, or forgets the global scales of NVFP4.",
        "model.layers.0.mlp.experts.0.gate_proj",
        "Serve it with vLLM or LMDeploy.",
        "transformers 5.17.0, conversion_mapping.py and quantizers/quantizer_compressed_tensors.py",
    ),
    Code(
        "QB287",
        "transformers reads float8 scales under other names",
        "As fp8 it has weight_scale_inv, one per tensor or block, and activation_scale.",
        "It leaves weight_scale and input_scale aside as unexpected, and takes the codes for weights.",
        "model.layers.0.mlp.down_proj.weight_scale of AutoFP8",
        "Convert it (--to transformers): compressed-tensors has these scales, and transformers reads it.",
        "transformers 5.24.0, integrations/finegrained_fp8.py (FP8Linear)",
    ),
    Code(
        "QB288",
        "transformers loads this format with another package",
        "Its own code for the format is a bridge to a package that is installed apart.",
        "Without the package it raises ImportError.",
        "GPTQ and AWQ: gptqmodel",
        "Install the package, or convert it (--to transformers).",
        "transformers 5.24.0, quantizers/quantizer_gptq.py, quantizer_awq.py and quantizer_auto_round.py",
        severity="warning",
    ),
    Code(
        "QB289",
        "transformers does not know this type of model",
        "Only code in the repository has the model's class; without auto_map in config.json there is none either.",
        "transformers stops (ValueError), or runs that code with trust_remote_code; which of its linears it builds "
        "quantized is not known.",
        '"model_type": "baichuan"',
        "Serve it with an engine that has the class.",
        "transformers 5.17.0 and 5.24.0, models/auto/configuration_auto.py",
    ),
    Code(
        "QB290",
        "transformers cannot load packed weights of this model class",
        "The class has linears of its own kind, and initializes their weight while it loads; packed codes are none.",
        "It stops: AttributeError: 'FalconLinear' object has no attribute 'weight'.",
        "FalconForCausalLM in 4 bits",
        "Serve it with vLLM (--to vllm), or write it unquantized (--to dense).",
        "transformers 5.17.0 and 5.24.0, models/falcon/modeling_falcon.py (_init_weights)",
    ),
)
TARGETS = (
    Target(
        "transformers@5.17.0",
        "transformers with compressed-tensors installed",
        CHOICES,
        Reader((5,), indexed=False),
        keeps=True,
        single_first=True,
        as_is=AS_IS,
        codes=CODES,
        messages=messages.MESSAGES,
        derivation=matching.DERIVATION,
        prover=Path(__file__).with_name("prover.py"),
        experts=as_transformers,
        in_memory=True,
    ),
)
