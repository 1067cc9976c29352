"""Lists of what is not quantized, as engines match them against the names that they have in memory.

Each matcher says by an engine's rules which of the modules that it builds would be quantized; those must be the ones
whose stored parts all are. Sources: vllm 0.33.0, model_executor/layers/quantization; transformers 5.24.0,
quantizers/quantizers_utils.py; compressed-tensors 0.20.0, utils/match.py; optimum 2.3.0, gptq/quantizer.py; lmdeploy
0.18.0, pytorch/config.py.
"""

import copy
import fnmatch
import re
import time
from dataclasses import dataclass, field, replace

import pytest

from qbridge.formats.registry import find
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model, TensorInfo
from qbridge.ir.scheme import ActivationScheme, Granularity, WeightScheme
from qbridge_formats._shared.unquantized import Unquantized, whole_experts

FLOAT8, TOKENS = (
    WeightScheme(8, Granularity.CHANNEL, type="e4m3fn"),
    ActivationScheme(8, Granularity.TOKEN, True, type="e4m3fn"),
)
BLOCKS = WeightScheme(8, Granularity.BLOCK, type="e4m3fn", block=(128, 128))
STATIC = ActivationScheme(8, Granularity.TENSOR, False, type="e4m3fn")
KINDS = {  # a scheme that each format holds
    "compressed-tensors": (FLOAT8, TOKENS, DType.F32),
    "fp8": (BLOCKS, ActivationScheme(8, Granularity.GROUP, True, type="e4m3fn", group_size=128), DType.F32),
    "awq": (WeightScheme(4, Granularity.GROUP, symmetric=False, group_size=128), None, DType.F16),
    "gptq": (WeightScheme(4, Granularity.GROUP, group_size=128), None, DType.F16),
    "auto-round": (WeightScheme(4, Granularity.GROUP, group_size=128), None, DType.F16),
    "modelopt": (WeightScheme(8, Granularity.TENSOR, type="e4m3fn"), STATIC, DType.F32),
}
OTHER = {  # another, where a format holds two at once
    "compressed-tensors": (FLOAT8, STATIC, DType.F32),
    "gptq": (WeightScheme(8, Granularity.GROUP, group_size=64), None, DType.F16),
    "auto-round": (WeightScheme(8, Granularity.GROUP, group_size=64), None, DType.F16),
}
QKV = ("q_proj", "k_proj", "v_proj")
PACKED = {"qkv_proj": QKV, "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class Memory:
    """An engine's modules: by name, the stored modules that it is made of; `linear` and `experts` are its classes.

    `renamed` are the prefixes of stored names that the engine maps, in lists as well if these are plain names.
    """

    modules: dict
    renamed: tuple = ()
    packed: dict = field(default_factory=lambda: PACKED)

    def mapped(self, name):
        for old, new in self.renamed:
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name


@dataclass(frozen=True)
class Case:
    """What is stored, quantized or not, experts of one tensor among it, and what engines make of it."""

    quantized: tuple
    dense: tuple
    vllm: Memory
    transformers: Memory | None = None
    experts: tuple = ()  # (tensor, shape)
    config: dict = field(default_factory=dict)
    apart: tuple = ()  # quantized in another scheme
    without: tuple = ()  # formats that do not hold it, or whose reader has no such class

    @property
    def lmdeploy(self):
        """It builds heads without asking its lists, and asks by the stored names."""
        names = [name for name in (*self.quantized, *self.dense) if not name.endswith("lm_head")]
        return Memory({name: [name] for name in names})


def layers(prefix, *leaves, count=2):
    return tuple(f"{prefix}.{n}.{leaf}" for n in range(count) for leaf in leaves)


TEXT = (*(f"self_attn.{leaf}" for leaf in (*QKV, "o_proj")), *(f"mlp.{leaf}" for leaf in ("gate_proj", "up_proj")))
TEXT += ("mlp.down_proj",)


def fused(names, move=lambda name: name, packed=PACKED):
    """Modules in memory of stored ones: those that are built as one together, the others alone."""
    found = {}
    for name in names:
        block, dot, leaf = name.rpartition(".")
        whole = next((key for key, parts in packed.items() if leaf in parts), leaf)
        found.setdefault(move(f"{block}{dot}{whole}"), []).append(name)
    return found


def prefixed(*pairs):
    return Memory({}, pairs).mapped


NESTED = {"text_config": {"num_hidden_layers": 2}, "vision_config": {}}
TOWER = layers("vision_tower.transformer.layers", *(f"attention.{leaf}" for leaf in QKV), "feed_forward.down_proj")
PROJECTOR = ("multi_modal_projector.linear_1", "multi_modal_projector.linear_2")
MISTRAL = layers("language_model.model.layers", *TEXT)
SIGLIP = layers("model.vision_tower.vision_model.encoder.layers", *(f"self_attn.{leaf}" for leaf in QKV), "mlp.fc1")
GEMMA = layers("model.language_model.layers", *TEXT)
GEMMA_IN_VLLM = (("model.language_model.", "language_model.model."), ("model.vision_tower.", "vision_tower."))
OMNI = layers("thinker.model.layers", *TEXT)
BLOCKS_OF_OMNI = layers("thinker.visual.blocks", "attn.q", "attn.k", "attn.v", "attn.proj", "mlp.down_proj")
OMNI_IN_VLLM = (("thinker.model.", "language_model.model."), ("thinker.lm_head", "language_model.lm_head"))
OMNI_IN_VLLM += (("thinker.", ""),)
GRANITE = layers("model.layers", "mamba.in_proj", "shared_mlp.input_linear")
ROUTER = layers("model.layers", "block_sparse_moe.router.layer")
FALCON = layers("model.layers", *(f"self_attn.{leaf}" for leaf in QKV), "feed_forward.down_proj")
MAMBA = layers("model.layers", "mamba.in_proj", "mamba.out_proj")
WHISPER = (*layers("model.encoder.layers", "fc1"), *layers("model.decoder.layers", "fc1"))
SHARED = layers("model.layers", "mlp.shared_expert.down_proj", "self_attn.o_proj")
GATES = layers("model.layers", "mlp.gate")
PHIMOE = layers("model.layers", "self_attn.o_proj", "block_sparse_moe.experts.0.w1")
PHIMOE_GATES = layers("model.layers", "block_sparse_moe.gate")
EXPERTS = layers("model.layers", *(f"mlp.experts.{e}.{p}" for e in range(3) for p in ("gate_proj", "up_proj")))
NEMOTRON = tuple(f"backbone.layers.1.mixer.experts.{e}.up_proj" for e in range(3))
QWEN = layers("model.language_model.layers", "mlp.down_proj", "self_attn.o_proj")
VISUAL = layers("model.visual.blocks", "attn.qkv", "mlp.linear_fc1")
DRAFT = ("mtp.fc", "mtp.layers.0.mlp.down_proj", "mtp.layers.0.self_attn.o_proj")
QWEN_IN_VLLM = (("model.visual.", "visual."), ("model.language_model.", "language_model.model."))
QWEN_IN_VLLM += (("lm_head", "language_model.lm_head"),)


def block_of(names):
    """Routed experts as one module of a layer, made of all their linears; the others as they are."""
    found = {}
    for name in names:
        block, dot, _ = name.partition(".experts.")
        found.setdefault(f"{block}.experts" if dot else name, []).append(name)
    return found


CASES = {
    "a tower under another prefix": Case(
        MISTRAL,
        (*TOWER, *PROJECTOR, "language_model.lm_head"),
        Memory(fused((*MISTRAL, *TOWER, *PROJECTOR, "language_model.lm_head"))),
        Memory(
            {
                prefixed(
                    ("language_model.model.", "model.language_model."),
                    ("language_model.", ""),
                    ("vision_tower.", "model.vision_tower."),
                    ("multi_modal_projector.", "model.multi_modal_projector."),
                )(name): [name]
                for name in (*MISTRAL, *TOWER, *PROJECTOR, "language_model.lm_head")
            }
        ),
        config=NESTED,
    ),
    "a tower that loses its prefix": Case(
        GEMMA,
        SIGLIP,
        Memory(fused((*GEMMA, *SIGLIP), prefixed(*GEMMA_IN_VLLM)), GEMMA_IN_VLLM),
        Memory({name: [name] for name in (*GEMMA, *SIGLIP)}),
        config=NESTED,
    ),
    "a tower whose parts are fused under a name of its own": Case(
        OMNI,
        (*BLOCKS_OF_OMNI, "thinker.lm_head"),
        Memory(
            fused((*OMNI, *BLOCKS_OF_OMNI, "thinker.lm_head"), prefixed(*OMNI_IN_VLLM), {**PACKED, "qkv": "qkv"}),
            OMNI_IN_VLLM,
        ),
        config={"thinker_config": {"text_config": {}}},
    ),
    "experts in one tensor, of another name in memory": Case(
        GRANITE,
        ROUTER,
        Memory(
            {
                **{name: [name] for name in (*GRANITE, *ROUTER)},
                **{name: [name] for name in layers("model.layers", "block_sparse_moe.experts")},
            }
        ),
        experts=tuple((f"{n}.weight", (4, 8, 8)) for n in layers("model.layers", "block_sparse_moe.input_linear")),
    ),
    "experts in one tensor beside a shared one": Case(
        SHARED,
        GATES,
        Memory(
            {
                **{name: [name] for name in (*SHARED, *GATES)},
                **{name: [name] for name in layers("model.layers", "mlp.experts")},
            }
        ),
        experts=tuple((f"{name}.gate_up_proj", (4, 8, 8)) for name in layers("model.layers", "mlp.experts")),
    ),
    "experts one by one": Case(SHARED, (*GATES, *EXPERTS), Memory(block_of((*SHARED, *GATES, *EXPERTS)))),
    "a mixer under another name": Case(
        FALCON,
        MAMBA,
        Memory(
            {
                **fused(layers("model.layers", "feed_forward.down_proj")),
                **{
                    f"model.{2 + n}.mixer.{leaf}": [f"model.layers.{n}.mamba.{leaf}"]
                    for n in range(2)
                    for leaf in ("in_proj", "out_proj")
                },
            }
        ),
        Memory({name: [name] for name in (*FALCON, *MAMBA)}),
        without=("fp8",),  # whose reader wants the very name, in which vLLM counts the mixers on after the layers
    ),
    "a tied head that is not called lm_head": Case(
        WHISPER,
        (),
        Memory({**{name: [name] for name in WHISPER}, "proj_out": ["model.decoder.embed_tokens"]}),
        Memory({**{name: [name] for name in WHISPER}, "proj_out": ["model.decoder.embed_tokens"]}),
        config={"model_type": "whisper"},
        without=("awq", "gptq", "auto-round"),  # which quantize no head, listed or not
    ),
    "a router of another name in memory": Case(
        PHIMOE,
        PHIMOE_GATES,
        Memory({name: [name] for name in (*PHIMOE, *PHIMOE_GATES)}),
        Memory({f"model.layers.{n}.mlp.router": [PHIMOE_GATES[n]] for n in range(2)}),
        config={"model_type": "phimoe"},
        without=("awq", "gptq"),  # in which transformers quantizes no router
    ),
    "a head of another name in memory": Case(
        layers("gpt_neox.layers", "mlp.dense_h_to_4h"),
        ("embed_out",),
        Memory({"embed_out": ["embed_out"]}),
        Memory({"lm_head": ["embed_out"]}),
        without=("awq", "gptq", "auto-round"),  # which quantize no head, listed or not
    ),
    "a quantized head of another name in memory": Case(
        (*layers("gpt_neox.layers", "mlp.dense_h_to_4h"), "embed_out"),
        (),
        Memory({"embed_out": ["embed_out"]}),
        Memory({"lm_head": ["embed_out"]}),
        without=("awq", "gptq", "auto-round", "fp8", "modelopt"),
    ),
    "a quantized head beside a tower": Case(
        (*QWEN, "lm_head"),
        (*VISUAL, *DRAFT),
        Memory({prefixed(*QWEN_IN_VLLM)(name): [name] for name in (*QWEN, "lm_head", *VISUAL)}, QWEN_IN_VLLM[:2]),
        Memory({name: [name] for name in (*QWEN, "lm_head", *VISUAL, *DRAFT)}),
        config=NESTED,
        without=("awq", "gptq", "auto-round", "fp8", "modelopt"),
    ),
    "experts without a gate in a scheme of their own": Case(
        (*layers("backbone.layers", "mixer.in_proj", count=9), *NEMOTRON),
        ("backbone.layers.1.mixer.gate",),
        Memory(block_of((*layers("backbone.layers", "mixer.in_proj", count=9), *NEMOTRON))),
        apart=NEMOTRON,
        without=("fp8", "awq", "modelopt"),
    ),
    "a linear of a nested layer in a scheme of its own": Case(
        MISTRAL,
        TOWER,
        Memory(fused((*MISTRAL, *TOWER))),
        Memory(
            {
                prefixed(
                    ("language_model.model.", "model.language_model."), ("vision_tower.", "model.vision_tower.")
                )(name): [name]
                for name in (*MISTRAL, *TOWER)
            }
        ),
        config=NESTED,
        apart=("language_model.model.layers.1.mlp.down_proj",),
        without=("fp8", "awq", "modelopt"),
    ),
}


def model_of(case, format_name, block=None):
    def spec(name):
        weight, activation, scale = (OTHER if name in case.apart else KINDS)[format_name]
        static = None if activation is None or activation.dynamic else DType.F32
        return Spec(name, 256, 256, weight, scale, activation, static)

    tensors = {f"{name}.weight": ((8, 8), name) for name in case.dense} | {
        tensor: (shape, tensor) for tensor, shape in case.experts
    }
    model = Model(
        format_name,
        {"architectures": ["Some"], **case.config},
        {name: spec(name) for name in case.quantized},
        {},
        {name: TensorInfo(DType.BF16, shape, name) for name, (shape, _) in tensors.items()},
    )
    return model if block is None else replace(model, block=block, origin=format_name)


def block_for(case, format_name, source=None):
    own = find(format_name)
    return own.config(own.settle(model_of(case, format_name, source)))


# The engines. Each says by the name of a module whether it is quantized, or by which entry of config_groups.


def _is(entry, name):
    return bool(re.match(entry[3:], name)) if entry.startswith("re:") else entry == name


def _shards(name, packed):
    block, dot, leaf = name.rpartition(".")
    return [f"{block}{dot}{part}" for part in packed[leaf]] if leaf in packed else [name]


def vllm_compressed_tensors(block, memory, name, experts):
    """should_ignore_layer, find_matched_target and get_moe_method; plain names with a dot are mapped."""

    def mapped(entry):
        return memory.mapped(entry) if "." in entry and not entry.startswith("re:") else entry

    ignore = [mapped(entry) for entry in block["ignore"]]
    targets = [
        (mapped(t), g["weights"], g["input_activations"])
        for g in block["config_groups"].values()
        for t in g["targets"]
    ]

    def scheme(name, parts, linear):
        if any(_is(entry, name) for entry in ignore):
            return None
        skipped = [any(_is(entry, part) for entry in ignore) for part in parts]
        assert all(skipped) or not any(skipped), f"some of {parts} are ignored"
        if skipped[0]:
            return None
        for one in (name, *parts):
            for target, *scheme in targets:
                if _is(target, one):
                    return scheme
        return next((scheme for target, *scheme in targets if target == "Linear" and linear), None)

    if experts:
        schemes = [scheme(f"{name}.0.{leaf}", [f"{name}.0.{leaf}"], True) for leaf in experts]
        assert all(one == schemes[0] for one in schemes)
        return schemes[0]
    return scheme(
        name, _shards(name, memory.packed), not name.endswith(("lm_head", "proj_out")) or name == "proj_out"
    )


def transformers_compressed_tensors(block, memory, name, experts):
    """match_named_modules: every module of the model is a Linear here."""
    if any(_is(entry, name) or entry == "Linear" for entry in block["ignore"]):
        return None
    groups = [
        (t, [g["weights"], g["input_activations"]]) for g in block["config_groups"].values() for t in g["targets"]
    ]
    named = [scheme for target, scheme in groups if _is(target, name)]
    return (named or [scheme for target, scheme in groups if target == "Linear"] or [None])[0]


def vllm_skipped(entries, memory, name, experts, within):
    """is_layer_skipped; `within` for entries that may be a part of the name."""
    entries = [memory.mapped(entry) for entry in entries]

    def holds(one):
        return any(entry in one for entry in entries) if within else one in entries

    shards = _shards(name, memory.packed)
    if shards != [name]:
        skipped = [holds(shard) for shard in shards]
        if holds(name):
            return True
        assert all(skipped) or not any(skipped), f"some of {shards} are skipped"
        return skipped[0]
    if "experts" in name and not within:
        return any(name in entry for entry in entries if "experts" in entry)
    return holds(name)


def vllm_fp8(block, memory, name, experts):
    return None if vllm_skipped(block["modules_to_not_convert"], memory, name, experts, False) else "fp8"


def vllm_awq(block, memory, name, experts):
    """Heads are quantized where `lm_head` says so alone."""
    if name.endswith("lm_head") and not block.get("lm_head"):
        return None
    return None if vllm_skipped(block["modules_to_not_convert"] or [], memory, name, experts, True) else "awq"


def transformers_listed(block, memory, name, experts):
    """should_convert_module; the head of the model is added."""
    entries = [*(block["modules_to_not_convert"] or []), "lm_head"]
    skipped = any(re.match(entry, name) or name.endswith(entry) for entry in entries)
    return None if skipped else "listed"


def lmdeploy_listed(block, memory, name, experts):
    """get_quant_method: the name is a part of an entry."""
    return None if any(name in entry for entry in block["modules_to_not_convert"] or []) else "listed"


def vllm_gptq(block, memory, name, experts):
    """get_dynamic_override and is_layer_gptq_quantized; dynamic is not mapped, the list is."""
    if name.endswith("lm_head") and not block["lm_head"]:
        return None
    scheme = {key: block[key] for key in ("bits", "group_size", "sym")}
    for key, changed in block.get("dynamic", {}).items():
        if re.match(key[2:], name):
            if key.startswith("-:"):
                return None
            scheme = changed
            break
    parts = [memory.mapped(part) for leaves in block.get("modules_in_block_to_quantize", []) for part in leaves]
    if experts or not parts:
        return scheme
    quantized = [any(part in shard for part in parts) for shard in _shards(name, memory.packed)]
    assert all(quantized) or not any(quantized)
    return scheme if quantized[0] else None


def optimum_gptq(block, memory, name, experts):
    """Of linears within the layers of the text model, those that end as the list says."""
    blocks = ("model.layers.", "model.language_model.layers.", "backbone.layers.")
    listed = [part for leaves in block.get("modules_in_block_to_quantize", []) for part in leaves]
    return "gptq" if name.startswith(blocks) and (not listed or name.endswith(tuple(listed))) else None


def vllm_modelopt(block, memory, name, experts):
    """is_layer_excluded, its wildcards taken apart before they are mapped."""
    entries = []
    for entry in block["ignore"]:
        whole = len(entry) >= 2 and entry.endswith("*") and entry[-2] != "."
        entries += [entry[:-1], f"{entry[:-1]}.*"] if whole else [entry]
    entries = [memory.mapped(entry) for entry in entries]
    excluded = (
        vllm_skipped(entries, Memory({}, (), memory.packed), name, experts, False)
        or any(entry != name and entry in name for entry in entries)
        or any(fnmatch.fnmatch(name, entry) for entry in entries)
    )
    return None if excluded else "modelopt"


def vllm_auto_round(block, memory, name, experts):
    """INCConfigParser: names, endings, then regexes; nothing outside of the layers."""
    extra = {memory.mapped(key): value for key, value in block.get("extra_config", {}).items()}
    scheme = {key: block[key] for key in ("bits", "group_size", "sym")}

    def one(name, inside):
        if name in extra:
            return extra[name]
        found = next(
            (value for key, value in extra.items() if set(key) & set("*+?^$()[]{}|\\") and re.search(key, name)), None
        )
        return found or (scheme if inside else {"bits": 16})

    inside = name.startswith(tuple(map(memory.mapped, (block["block_name_to_quantize"] or "").split(","))))
    found = [one(shard, inside) for shard in _shards(name, memory.packed)]
    assert all(value == found[0] for value in found)
    return found[0] if found[0]["bits"] < 16 else None


ENGINES = {
    "compressed-tensors": {"vllm": vllm_compressed_tensors, "transformers": transformers_compressed_tensors},
    "fp8": {"vllm": vllm_fp8, "lmdeploy": lmdeploy_listed},
    "awq": {"vllm": vllm_awq, "transformers": transformers_listed, "lmdeploy": lmdeploy_listed},
    "gptq": {"vllm": vllm_gptq, "transformers": optimum_gptq},
    "modelopt": {"vllm": vllm_modelopt},
    "auto-round": {"vllm": vllm_auto_round},
}


def built(case, format_name, block, engine):
    """What an engine builds otherwise than the model is: unquantized, quantized or in another scheme."""
    memory, wrong, schemes = getattr(case, engine), {}, {}
    for name, parts in memory.modules.items():
        experts = ("gate_proj", "up_proj", "down_proj") if name.endswith(".experts") else ()
        if experts and engine == "vllm" and case.apart:
            experts = ("", "up_proj")  # no gate
        found = ENGINES[format_name][engine](block, memory, name, experts)
        quantized = all(part in case.quantized for part in parts)
        if quantized != (found is not None):
            wrong[name] = found
        elif quantized:
            schemes.setdefault(parts[0] in case.apart, []).append(repr(found))
    for number, found in schemes.items():
        if ENGINES[format_name][engine] is optimum_gptq:  # which has one scheme
            continue
        if len(set(found)) > 1 or any(set(found) & set(other) for key, other in schemes.items() if key != number):
            wrong[f"schemes {number}"] = set(found)
    return wrong


PAIRS = [
    pytest.param(name, format_name, engine, id=f"{name}-{format_name}-{engine}")
    for name, case in CASES.items()
    for format_name in ENGINES
    if format_name not in case.without
    for engine in ENGINES[format_name]
    if getattr(case, engine)
]


@pytest.mark.parametrize(("name", "format_name", "engine"), PAIRS)
def test_an_engine_builds_quantized_what_is(name, format_name, engine):
    assert built(CASES[name], format_name, block_for(CASES[name], format_name), engine) == {}


def without(block, *words):
    """The block, nothing that holds one of these words listed in it."""
    block = copy.deepcopy(block)
    for key in ("ignore", "modules_to_not_convert"):
        if block.get(key):
            block[key] = [entry for entry in block[key] if not any(word in entry for word in words)]
    for key in ("dynamic", "extra_config"):
        if block.get(key):
            block[key] = {k: v for k, v in block[key].items() if not any(word in k for word in words)}
    return block


def anchored(block):
    """The block, its patterns held against whole names."""
    found = copy.deepcopy(block)
    for key in ("ignore", "modules_to_not_convert"):
        if found.get(key):
            found[key] = [entry.replace(r"(.*\.)?", "") for entry in found[key]]
    if found.get("dynamic"):
        found["dynamic"] = {key.replace(r"(.*\.)?", ""): value for key, value in found["dynamic"].items()}
    return found


# By mutant: the case, the change, and formats whose other lists or names say it as well.
MUTANTS = {
    "a tower's pattern dropped": ("a tower under another prefix", lambda b: without(b, "vision_tower"), ()),
    "another tower's dropped": ("a tower that loses its prefix", lambda b: without(b, "vision_tower"), ()),
    "what is fused dropped": (
        "a tower whose parts are fused under a name of its own",
        lambda b: without(b, "visual", "attn.qkv"),
        (),
    ),
    "experts' entries lost": (
        "experts in one tensor, of another name in memory",
        lambda b: without(b, "block_sparse_moe"),
        (),
    ),
    "experts' entries lost beside a shared one": (
        "experts in one tensor beside a shared one",
        lambda b: without(b, "experts"),
        (),
    ),
    "a mixer's pattern dropped": (
        "a mixer under another name",
        lambda b: without(b, "mamba", "mixer"),
        ("fp8", "gptq"),
    ),
    "a tied head dropped": ("a tied head that is not called lm_head", lambda b: without(b, "proj_out"), ()),
    "a router's other name dropped": (
        "a router of another name in memory",
        lambda b: without(b, "router"),
        ("fp8", "modelopt"),
    ),
    "prefixes changed": ("a tower that loses its prefix", anchored, ("fp8", "awq", "gptq", "modelopt")),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_an_entry_that_is_lost_or_changed_is_seen(mutant):
    name, change, blind = MUTANTS[mutant]
    case = CASES[name]
    for format_name in ENGINES.keys() - {*case.without, *blind, "auto-round"}:  # which quantizes layers alone
        block = change(block_for(case, format_name))
        assert any(built(case, format_name, block, e) for e in ENGINES[format_name] if getattr(case, e)), format_name


def kept(case, format_name, **source):
    """The block that is written for a source of the same format."""
    methods = {"awq": "awq", "gptq": "gptq", "fp8": "fp8", "modelopt": "modelopt"}
    return block_for(case, format_name, {"quant_method": methods.get(format_name, format_name), **source})


def test_patterns_of_the_source_stay_and_nothing_is_added_to_what_they_cover():
    case = CASES["a tower under another prefix"]
    listed = ["re:.*lm_head", "re:.*multi_modal_projector.*", "re:.*vision_tower.*", "proj_of_nothing"]
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}
    assert kept(case, "compressed-tensors", config_groups={"any": group}, ignore=listed)["ignore"] == listed
    experts = CASES["experts in one tensor, of another name in memory"]
    listed = ["lm_head", "re:.*block_sparse_moe.*"]
    assert kept(experts, "compressed-tensors", config_groups={"any": group}, ignore=listed)["ignore"] == listed


@pytest.mark.parametrize("format_name", ENGINES)
def test_entries_of_the_source_that_contradict_its_tensors_or_miss_some_are_mended(format_name):
    case = CASES["a tower that loses its prefix"]
    layer = "model.language_model.layers.0.mlp.down_proj"
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}
    source = {
        "compressed-tensors": {
            "config_groups": {"g": group},
            "ignore": [f"re:.*{layer[-19:]}", "model.vision_tower"],
        },
        "fp8": {"modules_to_not_convert": [layer, "model.vision_tower"]},
        "awq": {"modules_to_not_convert": ["down_proj", "model.vision_tower."]},
        "gptq": {"dynamic": {f"-:.*{layer[-19:]}": {}}},
        "modelopt": {"ignore": ["*down_proj*", "model.vision_tower.vision_model.encoder.layers.0*"]},
        "auto-round": {"extra_config": {layer: {"bits": 16}, ".*down_proj": {"bits": 16}}},
    }[format_name]
    block = kept(case, format_name, **source)
    for engine in ENGINES[format_name]:
        assert built(case, format_name, block, engine) == {}
    assert "down_proj" not in str(
        {key: block.get(key) for key in ("ignore", "modules_to_not_convert", "dynamic", "extra_config")}
    )


def test_targets_of_the_source_stay_while_they_tell_the_schemes_apart():
    case = CASES["a linear of a nested layer in a scheme of its own"]
    weights = {"num_bits": 8, "type": "float"}
    groups = {
        "odd": {"targets": ["re:.*layers.1.mlp.down_proj"], "weights": weights},
        "all": {"targets": ["re:.*"], "weights": weights},
    }
    lone = {**groups, "all": {"targets": ["Linear"], "weights": weights}}
    written = [
        [group["targets"] for group in kept(case, "compressed-tensors", config_groups=said)["config_groups"].values()]
        for said in (lone, groups)
    ]
    assert written[0] == [["Linear"], ["re:.*layers.1.mlp.down_proj"]]
    assert written[1][0] == ["Linear"] and "re:.*" not in written[1][1]  # two patterns matched the odd one alike


def test_overrides_of_the_source_stay_with_the_scheme_that_their_modules_have():
    case = CASES["a linear of a nested layer in a scheme of its own"]
    odd = r"+:.*layers\.1\.mlp\.down_proj"
    said = {odd: {"bits": 4, "desc_act": False}, r"+:.*mlp.*": {"bits": 3}, r"-:.*vision_tower.*": {}}
    block = kept(case, "gptq", dynamic=said)
    assert list(block["dynamic"]) == [r"-:.*vision_tower.*", odd, r"+:.*mlp.*"]
    assert block["dynamic"][odd] == {"bits": 8, "desc_act": False, "group_size": 64, "sym": True}
    assert built(case, "gptq", block, "vllm") == {}


def test_layers_of_any_name_have_a_list_of_blocks():
    case = Case(layers("transformer.h", "mlp.dense"), layers("transformer.h", "attn.out"), Memory({}))
    assert block_for(case, "gptq")["modules_in_block_to_quantize"] == [["dense"]]
    assert block_for(case, "auto-round")["block_name_to_quantize"] == "transformer.h"


def test_a_quantized_head_is_in_the_list_of_blocks():
    case = Case((*layers("model.layers", "a"), "lm_head"), layers("model.layers", "b"), Memory({}))
    assert "lm_head" in block_for(case, "gptq")["modules_in_block_to_quantize"][0]


@pytest.mark.parametrize("nested", [False, True])
def test_a_quantized_embedding_keeps_a_target_of_its_own(nested):
    name = "model.language_model.embed_tokens" if nested else "model.embed_tokens"
    case = Case((*layers("model.layers", "mlp.down_proj"), name), (), Memory({}), config=NESTED if nested else {})
    (group,) = block_for(case, "compressed-tensors")["config_groups"].values()
    assert group["targets"][:2] == ["Linear", name]
    assert nested == any(_is(target, "language_model.model.embed_tokens") for target in group["targets"])
    said = {"any": {"targets": ["Linear", "Embedding"], "weights": {"num_bits": 8, "type": "float"}}}
    (group,) = kept(case, "compressed-tensors", config_groups=said)["config_groups"].values()
    assert group["targets"] == ["Linear", "Embedding"]


@pytest.mark.parametrize("nested", [False, True])
def test_a_quantized_head_gets_a_name_where_targets_of_the_source_hold_it_by_its_class_alone(nested):
    head = "language_model.lm_head" if nested else "lm_head"
    case = Case((*layers("model.layers", "mlp.down_proj"), head), (), Memory({}), config=NESTED if nested else {})
    weights = {"num_bits": 8, "type": "float"}

    def written(*targets):
        said = {"any": {"targets": list(targets), "weights": weights}}
        (group,) = kept(case, "compressed-tensors", config_groups=said)["config_groups"].values()
        return group["targets"]

    assert written("Linear")[:2] == ["Linear", head]
    assert nested == any(target.startswith("re:") and _is(target, "lm_head") for target in written("Linear"))
    assert written("Linear", "re:.*lm_head") == ["Linear", "re:.*lm_head"]
    named = written("Linear", r"re:language_model\.lm_head|lm_head")
    assert named[:2] == ["Linear", r"re:language_model\.lm_head|lm_head"]
    assert nested == any(_is(target, "model.lm_head") for target in named)


def test_a_quantized_head_of_another_name_is_named_as_engines_call_it():
    case = Case((*layers("gpt_neox.layers", "mlp.dense"), "embed_out"), (), Memory({}))
    said = {"any": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}
    (group,) = kept(case, "compressed-tensors", config_groups=said)["config_groups"].values()
    assert group["targets"] == ["Linear", "embed_out", "lm_head"]


def test_a_quantized_head_is_named_in_the_group_of_the_source_that_it_is_in():
    weights = {"num_bits": 8, "type": "float"}
    said = {
        "odd": {"targets": ["re:.*layers.1.mlp.down_proj"], "weights": weights},
        "all": {"targets": ["Linear"], "weights": weights},
    }
    down = layers("model.layers", "mlp.down_proj", "mlp.up_proj")
    case = Case((*down, "lm_head"), (), Memory({}), apart=("model.layers.1.mlp.down_proj",))
    groups = kept(case, "compressed-tensors", config_groups=said)["config_groups"].values()
    assert [group["targets"] for group in groups] == [["Linear", "lm_head"], ["re:.*layers.1.mlp.down_proj"]]


def test_full_names_of_the_source_are_completed_where_engines_move_a_nested_model():
    case = CASES["a tower under another prefix"]
    said = {"any": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}
    block = kept(case, "compressed-tensors", config_groups=said, ignore=list(case.dense))
    assert block["ignore"][: len(case.dense)] == list(case.dense)
    assert all(built(case, "compressed-tensors", block, engine) == {} for engine in ENGINES["compressed-tensors"])


def test_entries_about_a_text_model_alone_are_completed_by_its_prefix():
    case = CASES["a tower under another prefix"]
    said = {"any": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}
    block = kept(case, "compressed-tensors", config_groups=said, ignore=["lm_head", "re:.*shared_experts.*"])
    assert block["ignore"][:2] == ["lm_head", "re:.*shared_experts.*"] and len(block["ignore"]) == 6
    assert all(built(case, "compressed-tensors", block, engine) == {} for engine in ENGINES["compressed-tensors"])


def test_what_a_model_of_several_algorithms_leaves_out_is_still_said():
    case = Case(layers("model.layers", "mlp.down_proj"), DRAFT, Memory({}))
    model = model_of(case, "modelopt", {"quant_method": "modelopt", "ignore": ["mtp*", "*down_proj"]})
    last = "model.layers.1.mlp.down_proj"
    per_channel = replace(model.specs[last], weight=FLOAT8, activation=TOKENS, input_scale_dtype=None)
    block = find("modelopt").config(replace(model, specs={**model.specs, last: per_channel}))
    assert (block["quant_algo"], block["ignore"]) == ("MIXED_PRECISION", ["mtp*"])


def test_lists_of_experts_by_the_thousand_take_no_time():
    experts = tuple(f"model.layers.{n}.mlp.experts.{e}.up_proj" for n in range(20) for e in range(500))
    dense = layers("model.layers", "mlp.gate", "self_attn.o_proj", count=20)
    case = Case(experts, dense, Memory({}))
    for format_name in ENGINES:
        source = {"modules_to_not_convert": list(dense), "ignore": list(dense), "extra_config": {}}
        model = find(format_name).settle(model_of(case, format_name, source))
        start = time.process_time()
        find(format_name).config(model)
        assert time.process_time() - start < 3, format_name


CALLED = [  # what is stored, and what an engine calls it
    ("visual", "vision_tower"),
    ("vit", "vision_tower"),
    ("vision_tower", "vision_encoder"),
    ("vision_model", "visual"),
    ("vision_embedder", "embed_vision"),
    ("multi_modal_projector", "vision_language_adapter"),
    ("mlp1", "multi_modal_projector"),
    ("audio", "audio_tower"),
    ("sound_encoder", "audio_tower"),
    ("sound_projection", "embed_audio"),
]


@pytest.mark.parametrize(("stored", "memory"), CALLED)
@pytest.mark.parametrize("prefix", ["", "model.", "thinker."])
def test_a_tower_is_told_by_what_engines_call_it_as_well(stored, memory, prefix):
    linear = f"{stored}.blocks.0.fc1"
    model = Model("x", {}, {}, {}, {f"{linear}.weight": TensorInfo(DType.BF16, (64, 64), f"{linear}.weight")})
    (tower,) = Unquantized.of(model).subtrees
    assert all(re.fullmatch(tower.pattern, f"{prefix}{name}.blocks.0.fc1") for name in (stored, memory))
    assert not re.fullmatch(tower.pattern, f"{prefix}layers.0.mlp.fc1")


def test_no_expert_of_a_block_is_lost():
    names = [f"model.layers.{n}.mlp.experts.{e}.up_proj" for n in (0, 1) for e in range(12)]
    blocks = whole_experts(names, ["model.layers.1.mlp.experts.3.down_proj"])
    assert blocks == {"model.layers.0.mlp.experts": names[:12]}


def test_a_module_that_lies_in_an_unquantized_one_in_memory_is_matched_by_no_entry_for_that():
    shared, plain = "model.layers.0.share_expert.up_proj", "model.layers.0.moe.up_proj"
    scheme, inputs, scale = KINDS["modelopt"]
    spec = Spec(shared, 64, 64, scheme, scale, activation=inputs, input_scale_dtype=DType.F32)
    tensors = {f"{plain}.weight": TensorInfo(DType.BF16, (4, 64, 64), f"{plain}.weight")}
    tensors["model.layers.0.moe.gate.weight"] = TensorInfo(DType.BF16, (4, 64), "model.layers.0.moe.gate.weight")
    rest = Unquantized.of(Model("modelopt", {}, {shared: spec}, {}, tensors))
    assert {plain, "model.layers.0.moe.experts"} <= set(rest.linears)
    assert not any(re.fullmatch(tree.whole, "model.layers.0.moe.share_expert.up_proj") for tree in rest.subtrees)
