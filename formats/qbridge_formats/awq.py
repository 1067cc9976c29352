"""AWQ in the layouts of AutoAWQ, lmdeploy.lite, GPTQModel and llm-awq.

Version gemm, in which everything is written (N = out_features, K = in_features, G = groups):

tensor         dtype    shape          meaning
<L>.qweight    int32    [K, N / 8]     codes + 8, eight output features to a word
<L>.qzeros     int32    [G, N / 8]     zero-points + 8, the same way; also for symmetric weights
<L>.scales     float16  [G, N]
<L>.bias       float16  [N]            not quantized

W = (code - zero) * scale.  The nibble at bits 4i of a word holds its output feature 0, 2, 4, 6, 1, 3, 5, 7 for
i = 0 .. 7.  GPTQModel writes other widths b as a stream across out_features, [K, N b / 32].  Versions that are read,
and written on the way back to them (W = words of zero-points, padded for the kernel):

version    qweight           zero-points                            scales
gemv       int32 [N, K/8]    qzeros int32 [N, W]                    float16 [N, 8W]
gemv_fast  int16 [N/4, K]    qzeros float16 [8W, N], -(z * s)       float16 [8W, N]
llm-awq    int16 [N/4, K]    scaled_zeros, as in gemv_fast          float16 [8W, N]

Sources: autoawq 0.2.9, awq/modules/linear and awq/utils/packing_utils.py; lmdeploy 0.18.0,
pytorch/backends/default/awq_modules.py; gptqmodel 7.7.0, nn_modules/qlinear/gemm_awq.py; llm-awq's layout by
transformers 4.51.3, integrations/awq.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.quantization_block import find_block, without_quantization
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.assumed import Assumed
from qbridge.formats.common_rules import (
    first_of,
    group_sizes,
    multiples,
    no_blocks,
    no_kv_scales,
    stored_scales,
    weights_only,
    widths,
    zeros_fit,
)
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.slots import Slot
from qbridge.source.reader import Source
from qbridge_formats._shared import awq_linear as layers
from qbridge_formats._shared.assumed_integers import assumed_linear
from qbridge_formats._shared.awq_linear import FAST, GEMM, LLM_AWQ, STREAM, VERSIONS, is_awq_shaped
from qbridge_formats._shared.config_block import merged_config, renamed, says_marlin
from qbridge_formats._shared.gptq_linear import Scheme
from qbridge_formats._shared.skip_lists import source_entries, substring_entries
from qbridge_formats._shared.stacked_experts import as_stored, under_name_of_class

NAME = "awq"
SUMMARY = "AWQ: AutoAWQ's GEMM layout is written, its GEMV layouts, llm-awq's and GPTQModel's are read"
ALIASES: tuple[str, ...] = ()

CONFIG_FILES = ("quant_config.json", "quantize_config.json")
_ALIASES = {"w_bit": "bits", "q_group_size": "group_size", "format": "version", "checkpoint_format": "version"}
_DEFAULT_GROUP = 128  # transformers 4.51.3, AwqConfig; llm-awq's own checkpoints name none


@dataclass(frozen=True, slots=True)
class _Config:
    key: str
    method: str
    version: str
    bits: Any
    group_size: Any


def _config(source: Source) -> _Config:
    """The keys that say what the tensors are, from config.json and from the side files that may repeat it."""
    block = merged_config(source, CONFIG_FILES, _ALIASES)
    known = block.raw
    version = _version_of(known)
    method = str(known.get("quant_method", known.get("method", ""))).lower()
    if method != NAME and version not in VERSIONS:
        version = GEMM  # the label is wrong as a whole; `sniff` has looked at the shapes
    return _Config(block.key, method, version, known.get("bits", 4), known.get("group_size", _DEFAULT_GROUP))


def _version_of(block: Mapping[str, Any]) -> str:
    """The layout that a block names, under `version` or as its backend."""
    return LLM_AWQ if block.get("backend") == LLM_AWQ else str(block.get("version", GEMM)).lower()


def _modules(source: Source) -> list[str]:
    return [name.removesuffix(".qweight") for name in source.tensors if name.endswith(".qweight")]


def sniff(source: Source) -> Match | str:
    """Evidence: modules with a qweight, and the method, or the shapes under GPTQ's name (GPTQModel does that)."""
    config, packed = _config(source), _modules(source)
    if not packed:
        return "no module has a qweight"
    if config.method == "awq" and config.version != "marlin":
        return Match(2, f"quant_method is 'awq' and {len(packed)} modules have a qweight")
    if config.method in ("gptq", "") and all(is_awq_shaped(source, module) for module in packed):
        named = f"quant_method is {config.method!r}" if config.method else "there is no quant_method"
        return Match(2, f"{named}, but {len(packed)} modules are packed as AWQ packs them")
    return f"quant_method is {config.method!r}, version {config.version!r}"


def read(source: Source, findings: Findings) -> Model:
    """Every module with a qweight is a layer; a symmetric one is known by its zero-points."""
    config = _config(source)
    if config.version not in VERSIONS or (config.bits != 4 and config.version != GEMM):
        findings.add("QB101", config.key, (f"AWQ {config.version}, {config.bits} bits",))
        return assemble(NAME, source, {}, {}, Findings())
    if type(config.bits) is not int or type(config.group_size) is not int or config.group_size == 0:
        findings.add("QB013", config.key, (f"bits {config.bits!r}, group_size {config.group_size!r}",))
        return assemble(NAME, source, {}, {}, Findings())
    found: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused: set[str] = set()
    modules, architecture = _modules(source), Architecture.of(source.config)
    for module in modules:
        try:
            spec = layers.read_spec(source, module, config.version, config.bits, config.group_size)
            spec = under_name_of_class(spec, modules, architecture)
            found[spec.name] = (spec, layout(spec))
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
    if config.version in (FAST, LLM_AWQ) and found:
        findings.add("QB026", list(found))
    plain = without_quantization(source.config)
    return assemble(NAME, source, plain, found, findings, refused=refused)


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: one scheme, for every linear whose name holds no entry of modules_to_not_convert."""
    block = find_block(config)
    if block is None or block.method != NAME or says_marlin(block.raw):
        return None
    raw = renamed(block.raw, _ALIASES)
    entries = raw.get("modules_to_not_convert")
    skipped = [str(entry) for entry in entries] if isinstance(entries, list) else []
    scheme = Scheme(raw.get("bits", 4), raw.get("group_size", _DEFAULT_GROUP), raw.get("zero_point") is False)
    version = layers.stored_version(_version_of(raw), scheme.bits)
    linear = assumed_linear(scheme, dialect=() if version == GEMM else (("version", version),))
    return {name: linear for name in names if not any(entry in name for entry in skipped)}


layout = as_stored(layers.layout)


def settle(model: Model) -> Model:
    """Every layer stands for itself."""
    return model


def config(model: Model) -> dict[str, Any]:
    """The block that AutoAWQ, LMDeploy, vLLM and transformers read; zero-points are stored in any case."""
    entries = substring_entries(model, source_entries(model, NAME, ("modules_to_not_convert",)))
    skipped = [entry for entry in entries if entry != "lm_head"]  # `lm_head` says it of the head
    first = next(iter(model.specs.values()))
    version = _version(first)
    return {
        "quant_method": "awq",
        "version": GEMM if version == STREAM else version,
        "bits": first.weight.bits,
        "group_size": first.weight.group_size or -1,
        "zero_point": True,
        "modules_to_not_convert": skipped or None,
        **({"lm_head": True} if "lm_head" in model.specs else {}),
        **({"backend": LLM_AWQ} if version == LLM_AWQ else {}),
    }


def _version(spec: Spec) -> str:
    """The version that the way back asks for, else GEMM."""
    return dict(spec.dialect).get("version", GEMM)


def _is_stream(spec: Spec) -> bool:
    return _version(spec) == STREAM


def group_size(model: Model) -> int | None:
    """The largest group size that divides that of every layer, and its in_features; None if all are per channel."""

    def find() -> int | None:
        sizes = {(spec.weight.group_size, spec.in_features) for spec in model.specs.values()}
        if {size for size, _ in sizes} <= {None}:
            return None
        return gcd(*(gcd(size or features, features) for size, features in sizes))

    return model.once("awq group size", find)


_SOURCE = "autoawq 0.2.9, awq/modules/linear/gemm.py"
RULES: tuple[Rule, ...] = (
    LayerRule(
        "QB110",
        first_of(weights_only("AWQ", "4-bit", 4, unless=_is_stream), no_blocks("AWQ"), multiples("AWQ", 8, 1)),
        _SOURCE,
    ),
    widths("AWQ", (4,), _SOURCE, unless=_is_stream),
    group_sizes("AWQ", group_size, _SOURCE, "one group size for the whole model, whole groups only"),
    stored_scales("AWQ", DType.F16, _SOURCE),
    zeros_fit(_SOURCE),
    no_kv_scales(_SOURCE),
)
