"""What LMDeploy's PyTorch engine takes of W8A8 and AWQ, and what it would silently load as garbage.

Sources: lmdeploy 0.18.0 and 0.6.2, pytorch/models/module_map.py, pytorch/models/llama.py and qwen2.py,
pytorch/nn/linear/w8a8.py; transformers 4.57.6, which both run on.
"""

from __future__ import annotations

from collections.abc import Iterator

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.config import Reader, rope, unsaid_keys, unsaid_rope
from qbridge.architecture.names import (
    dense_linears,
    is_decoder_linear,
    is_embedding,
    is_head,
    natural,
)
from qbridge.formats.common_rules import drop_kv_scales, stored_kv_scales
from qbridge.formats.registry import named
from qbridge.formats.rules import ModelRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.model import Model
from qbridge.targets import float32
from qbridge.targets.choice import Choice, Serve
from qbridge.targets.common import unquantized_tensors
from qbridge.targets.lmdeploy import awq
from qbridge.targets.lmdeploy import float8 as lmdeploy_float8
from qbridge.targets.lmdeploy.classes import (
    ARCHITECTURES,
    NEWER,
    PREFIXED,
    REMOVED,
    WITHOUT_BLOCK,
    class_names,
    classes,
)
from qbridge.targets.lmdeploy.fusion import LMDEPLOY as LMDEPLOY_FUSION
from qbridge.targets.lmdeploy.parallel import OLD_AWQ
from qbridge.targets.lmdeploy.towers import turbomind_builds
from qbridge.targets.remote_code import needs_remote_code

_FORCED = {"awq": DType.F16}  # pytorch/config.py: AWQ computes in float16 only

# 0.18.0 wants transformers 4.56 or newer, 5 included, which reads what is written for 4; 0.6.2 is older than 5.
# rope_parameters beside no rope_scaling end in a TypeError (pytorch/nn/rotary_embedding.py, _get_fope_parameters),
# and of those of two kinds of layers it takes theta 10000 (get_rope_theta there).
# Of these classes it reads keys that transformers 5 does not save: pytorch/models and configurations.
_ASKED = frozenset({"deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "hy_v3", "qwen3_next"})
# No transformers 4 has a class for Qwen3.5 (QB248), and rope_parameters are what transformers 5 reads of it.
_NEWER_TYPES = frozenset({"qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"})
READER = Reader((4,), old_dtype=False, plain_rope=False, implied=_ASKED, newer=_NEWER_TYPES)
OLD_READER = Reader((4,))

# Classes of 0.6.2 that do not take hidden_size / num_attention_heads for the dims they rotate.
_OWN_ROPE_DIM = classes("GemmaForCausalLM Gemma2ForCausalLM DeepseekV2ForCausalLM MiniCPM3ForCausalLM")
_OLD_ROPE_TYPES = frozenset({"dynamic", "linear", "llama3"})


def choices(version: str, alone: bool = False) -> tuple[Choice, ...]:
    """W8A8 as smooth-quant, in 0.18.0 also as fp8; 4-bit weights as AWQ, which its other engine loads as well.

    Those of the engine `alone` are what it loads where the server names it.
    """
    eight_bits = Choice(named("smooth-quant"), rules(version, "smooth-quant"), serve=served_by("pytorch", version))
    if version == "0.6.2":
        old = Choice(
            named("awq"),
            (*awq.OLD_RULES, *rules(version, "awq")),
            dtype="float16",
            parallel=OLD_AWQ,
            serve=served_by("pytorch", version),
        )
        return eight_bits, old
    blocks = Choice(named("fp8"), (*lmdeploy_float8.LMDEPLOY, *rules(version, "fp8")), serve=served_by("pytorch"))
    own, serve = (awq.PYTORCH_RULES, served_by("pytorch")) if alone else (awq.RULES, _served_awq)
    four_bits = Choice(named("awq"), (*own, *rules(version, "awq")), dtype="float16", serve=serve)
    return eight_bits, blocks, four_bits


def served_by(engine: str, version: str = "0.18.0") -> Serve:
    """LMDeploy's server with one of its engines, `pytorch` or `turbomind`; 0.6.2 runs a repository's code unasked."""

    def serve(model: Model, path: str, tp: int) -> str:
        ranks = f" --tp {tp}" if tp > 1 else ""
        code = " --trust-remote-code" if version != "0.6.2" and needs_remote_code(model.config) else ""
        return f"lmdeploy serve api_server {path} --backend {engine}{ranks}{code}"

    return serve


def _served_awq(model: Model, path: str, tp: int) -> str:
    """TurboMind has groups of 128 only, the PyTorch engine no experts."""
    groups = {spec.weight.group_size for spec in model.specs.values()}
    known = groups == {128} and turbomind_builds(model)
    return served_by("turbomind" if known else "pytorch")(model, path, tp)


def rules(version: str, format_name: str) -> tuple[Rule, ...]:
    """The engine's limits on a format at a version of the table."""

    def known_class(model: Model) -> Iterator[Problem]:
        names = class_names(model.config)
        if version != "0.6.2" and (removed := [name for name in names if name in REMOVED]):
            yield Problem((f"LMDeploy {version} stops: support has been removed",), where=tuple(removed))
        elif ARCHITECTURES[version].isdisjoint(names):
            fact = f"LMDeploy {version} has no such class: Can not found rewrite for architectures"
            yield Problem((fact,), where=names or ("config.json names no architecture",))

    def dense_linears_in_decoder(model: Model) -> Iterator[Problem]:
        tried = format_name in ("smooth-quant", "fp8")  # how its AWQ loader reads the list was not tried
        if version == "0.6.2" or model.architecture not in PREFIXED or not tried:
            yield from _dense_decoder_linears(model)
        else:
            yield from _partly_dense(model)

    old = (
        ModelRule("QB214", _experts, "lmdeploy 0.6.2, pytorch/models/mixtral.py (experts without quantization)"),
        ModelRule("QB213", _float8, "lmdeploy 0.6.2, pytorch/models/q_modules.py"),
        ModelRule("QB206", _old_rope, "lmdeploy 0.6.2, pytorch/models/llama.py"),
    )
    newest = (
        ModelRule("QB245", _without_block, "lmdeploy 0.18.0, pytorch/models/gemma3_vl.py and llava.py"),
        ModelRule("QB247", _unsaid_keys, "lmdeploy 0.18.0, pytorch/models/deepseek_v2.py and configurations"),
    )
    return (
        *(old if version == "0.6.2" else newest),
        ModelRule("QB201", dense_linears_in_decoder, f"lmdeploy {version}, pytorch/models/llama.py"),
        ModelRule("QB208", kv_scales, f"lmdeploy {version}, pytorch/models/llama.py", drop_kv_scales),
        ModelRule("QB202", quantized_head, f"lmdeploy {version}, pytorch/models/llama.py"),
        unquantized_tensors(
            DType.F16,
            f"lmdeploy {version}, pytorch/config.py and weight_loader",
            _FORCED.get(format_name),
            float32=() if version == "0.6.2" else float32.LMDEPLOY,
        ),
        ModelRule("QB204", known_class, f"lmdeploy {version}, pytorch/models/module_map.py"),
        *PARSING,
    )


def _without_block(model: Model) -> Iterator[Problem]:
    if found := tuple(name for name in class_names(model.config) if name in WITHOUT_BLOCK):
        fact = "its text model is built from text_config, where the engine has no quantization_config"
        yield Problem((fact,), where=found)


def _unsaid_keys(model: Model) -> Iterator[Problem]:
    if keys := unsaid_keys(model.config, READER):
        yield Problem(("layers are mixed in a way that these keys cannot say",), where=tuple(keys))


def _float8(model: Model) -> Iterator[Problem]:
    found = tuple(name for name, spec in model.specs.items() if spec.weight.type != "int")
    if found:
        yield Problem((f"codes are {model.specs[found[0]].weight.type}",), where=found)


def _experts(model: Model) -> Iterator[Problem]:
    found = tuple(name for name in model.specs if ".experts." in name)
    if found:
        yield Problem((f"{len(found)} linears of experts",), where=found)


def _dense_decoder_linears(model: Model) -> Iterator[Problem]:
    found = tuple(_unquantized_decoder(model))
    if found:
        total = len(found) + len(model.specs)
        yield Problem((f"{len(found)} of {total} linears are not quantized",), where=found)


def _unquantized_decoder(model: Model) -> Iterator[str]:
    """Dense linears that it builds from the quantization config.

    Layers after the last and towers are none, and the weights of DeepSeek's indexer are no quantized linear
    (pytorch/models/deepseek_v32.py).
    """
    architecture = Architecture.of_model(model)
    for module in dense_linears(model.tensors):
        if is_decoder_linear(module) and architecture.is_decoder(module) and ".indexer." not in module:
            yield module


def _partly_dense(model: Model) -> Iterator[Problem]:
    """q, k, v and gate, up are built as one linear, a layer's experts as one tensor: quantized as a whole or not."""
    dense = set(_unquantized_decoder(model))
    for names in LMDEPLOY_FUSION.siblings(model, [*model.specs, *dense]):
        where = tuple(name for name in names if name in dense)
        if where and len(where) < len(names):
            yield Problem(("only a part of q, k, v or of gate, up is quantized, which are one linear",), where=where)
    quantized_blocks = {m.partition(".experts.")[0] for m in model.specs if ".experts." in m}
    experts = tuple(m for m in natural(dense) if m.partition(".experts.")[0] in quantized_blocks and ".experts." in m)
    if experts:
        yield Problem(("only some experts of a layer are quantized, which are one tensor",), where=experts)


def kv_scales(model: Model) -> Iterator[Problem]:
    """Stored scales of the kv cache."""
    found = stored_kv_scales(model)
    if found:
        yield Problem((f"{len(found)} scales of the kv cache",), where=found)


def quantized_head(model: Model) -> Iterator[Problem]:
    """lm_head or an embedding that is quantized."""
    found = tuple(name for name in model.specs if is_head(name) or is_embedding(name))
    if found:
        yield Problem(where=found)


def _rope_per_layer(model: Model) -> Iterator[Problem]:
    if unsaid_rope(model.config):
        yield Problem(("rope_parameters has one entry per kind of layer",), where=("config.json",))


def _old_rope(model: Model) -> Iterator[Problem]:
    """What 0.6.2 takes no notice of when it builds the rotary embedding of a Llama or Qwen2."""
    config = model.config
    hidden, heads, head_dim = (config.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    _, scaling, _ = rope(config)
    if isinstance(hidden, int) and isinstance(heads, int) and heads and model.architecture not in _OWN_ROPE_DIM:
        rotated = hidden // heads
        if head_dim not in (None, rotated):
            fact = f"head_dim is {head_dim}, it rotates hidden_size / num_attention_heads = {rotated}"
            yield Problem((fact,), where=("head_dim",))
    if scaling is None:
        return
    if model.architecture == "Qwen2ForCausalLM":
        yield Problem((f"rope scaling {scaling['rope_type']} is not applied to a Qwen2",), where=("rope_scaling",))
    elif str(scaling["rope_type"]) not in _OLD_ROPE_TYPES:
        yield Problem((f"rope type {scaling['rope_type']} is not known",), where=("rope_scaling",))
    elif scaling["rope_type"] == "llama3" and scaling.get("original_max_position_embeddings") != 8192:
        given = scaling.get("original_max_position_embeddings")
        fact = f"original_max_position_embeddings is {given}, it always takes 8194"
        yield Problem((fact,), where=("rope_scaling",))


def _newer(model: Model) -> Iterator[Problem]:
    if found := tuple(name for name in class_names(model.config) if name in NEWER):
        yield Problem(where=found)


PARSING: tuple[Rule, ...] = (
    ModelRule("QB207", _rope_per_layer, "transformers 4.57.6, modeling_rope_utils.py"),
    ModelRule("QB248", _newer, "transformers 4.57.6, models/auto/configuration_auto.py"),
)
