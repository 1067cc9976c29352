"""What loaders of some model classes cannot take in some formats, though the method itself could.

Each was seen with small checkpoints in SGLang's own loaders. Source: sglang 0.5.23, srt/models (load_weights).
"""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.architecture.names import is_routed
from qbridge.formats.rules import ModelRule, Problem, Rule
from qbridge.ir.model import Model
from qbridge.targets.blocks import is_static, per_tensor
from qbridge.targets.sglang.fusion import SGLANG, words

_MODELS = "sglang 0.5.23, srt/models"
# Their loaders ask every method for the name of a scale of the cache, and compressed-tensors alone answers.
_ASK_FOR_SCALES = words("DeciLMForCausalLM GPTJForCausalLM GraniteMoeHybridForCausalLM")
# Their layers ask the method which activations it scales, which GPTQ and AutoRound do not answer.
_ASK_FOR_ACTIVATIONS = words("VoxtralForConditionalGeneration WhisperForConditionalGeneration")
# What they load is put together with q_a_proj: srt/models/deepseek_common/deepseek_weight_loader.py.
_LATENT = "kv_a_proj_with_mqa"


def _stops(classes: frozenset[str], words: str) -> ModelRule:
    def check(model: Model) -> Iterator[Problem]:
        if model.architecture in classes and model.specs:
            yield Problem((f"the loader of {model.architecture} stops: {words}",), where=("config.json",))

    return ModelRule("QB298", check, f"{_MODELS} (load_weights)")


def _raw_weights(packed: bool) -> ModelRule:
    """Linears whose loader takes `weight` by itself, so that codes have none or lose their scales."""

    def check(model: Model) -> Iterator[Problem]:
        experts = tuple(filter(is_routed, model.specs)) if model.architecture == "AfmoeForCausalLM" else ()
        if experts:
            yield Problem((f"{model.architecture} packs the weights of its experts, without scales",), where=experts)
        latent = tuple(name for name in model.specs if name.endswith(".kv_b_proj"))
        if latent and model.architecture == "MiniCPM3ForCausalLM":
            yield Problem((f"{model.architecture} takes the weight of kv_b_proj, without scales",), where=latent)
        if latent and packed and _LATENT in SGLANG.parts(model.architecture or ""):
            fact = "kv_b_proj is decoded by a module that the wheel does not have: sglang.kernel_api_logging"
            yield Problem((fact,), where=latent)

    return ModelRule("QB298", check, f"{_MODELS}: afmoe.py, minicpm3.py, deepseek_common/utils.py")


def _joined(format_name: str) -> ModelRule:
    """q_a_proj and kv_a_proj_with_mqa: every tensor of one is put below that of the other, whatever it holds."""

    def check(model: Model) -> Iterator[Problem]:
        joined = {name for names in SGLANG.siblings(model, model.specs) for name in names}
        where = tuple(name for name in model.specs if name.endswith(_LATENT) and name in joined)
        where = tuple(name for name in where if _has_more(format_name, model, name))
        if where:
            fact = f"{_LATENT} and q_a_proj are put together tensor by tensor, scales of the whole and g_idx too"
            yield Problem((fact,), where=where)

    return ModelRule("QB298", check, f"{_MODELS}/deepseek_common/deepseek_weight_loader.py (cached_a_proj)")


def _has_more(format_name: str, model: Model, name: str) -> bool:
    """Whether a linear has tensors in a format that do not lie by outputs."""
    spec = model.specs[name]
    if spec.weight.type == "int" and spec.activation is None:
        return format_name != "awq"
    return bool(per_tensor(spec) or spec.weight.global_scale or is_static(spec))


def rules(format_name: str) -> tuple[Rule, ...]:
    """What no loader takes in one format."""
    found: list[Rule] = [_raw_weights(packed=format_name in ("awq", "gptq", "auto-round")), _joined(format_name)]
    if format_name != "compressed-tensors":
        found.append(_stops(_ASK_FOR_SCALES, "the method has no attribute get_cache_scale"))
    if format_name in ("gptq", "auto-round"):
        found.append(_stops(_ASK_FOR_ACTIVATIONS, "NotImplementedError (get_scaled_act_names)"))
    return tuple(found)
