"""GPTQ, as GPTQModel, AutoGPTQ and AutoRound write it, with zero-points of version 1 (stored minus 1) and 2.

tensor         dtype    shape              meaning (N = out_features, K = in_features, G = groups, b = bits)
<L>.qweight    int32    [K b / 32, N]      codes + 2^(b-1), a bit stream down each column
<L>.qzeros     int32    [G, N b / 32]      zero-points + 2^(b-1), minus 1 in version 1; also for symmetric weights
<L>.scales     float16  [G, N]             (bfloat16 in some files)
<L>.g_idx      int32    [K]                group of each input; i // group_size unless the order is act-order
<L>.bias       float16  [N]                AutoGPTQ also stores all-zero ones for linears without a bias

W = (code - zero) * scale.  GPTQModel makes version 1 from 2 by one subtraction per 32-bit word, so a zero-point of 0
borrows from its neighbour; its own files are read the same way. It also writes words of 16 and 8 bits (pack_dtype),
and bit planes for 3, 5, 6 and 7 bits (checkpoint_format gptq_p, zero-points of version 2). Sources: gptqmodel 7.7.0,
nn_modules/qlinear, quantization/config.py and utils/model.py; auto-gptq 0.7.1, nn_modules/qlinear/qlinear_cuda.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_head
from qbridge.architecture.quantization_block import Block, find_block, without_quantization
from qbridge.findings.finding import Findings
from qbridge.formats.assembly import assemble
from qbridge.formats.assumed import Assumed
from qbridge.formats.common_rules import (
    first_of,
    multiples,
    no_blocks,
    no_kv_scales,
    scales_per_row,
    stored_scales,
    widths,
    zeros_fit,
)
from qbridge.formats.protocol import Match
from qbridge.formats.rules import LayerRule, Problem, Rule
from qbridge.ir.dtypes import DType
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.ir.slots import Slot
from qbridge.source.reader import Source
from qbridge_formats._shared import gptq_linear as layers
from qbridge_formats._shared.assumed_integers import assumed_linear, require
from qbridge_formats._shared.config_block import renamed, says_marlin
from qbridge_formats._shared.gptq_config import ALIASES as KEYS
from qbridge_formats._shared.gptq_config import CONFIG_FILES as CONFIG_FILES
from qbridge_formats._shared.gptq_config import find_config, parse
from qbridge_formats._shared.gptq_linear import ONES, Scheme, Zeros, is_gptq_shaped, modules_of, zero_biases
from qbridge_formats._shared.gptq_lists import dynamic, in_blocks, listed
from qbridge_formats._shared.stacked_experts import as_stored, under_name_of_class

NAME = "gptq"
SUMMARY = "GPTQ of GPTQModel, AutoGPTQ, AutoRound: 2, 3, 4 and 8 bits, zero-points of version 1 and 2"
ALIASES: tuple[str, ...] = ()

WIDTHS = (2, 3, 4, 8)
CONFIG_SAYS_HEAD = True  # lm_head of its block


def sniff(source: Source) -> Match | str:
    """Evidence: the method in config.json or quantize_config.json, and tensors packed along in_features."""
    raw = find_config(source).raw
    method = str(raw["quant_method"]).lower() if raw.get("quant_method") else None
    packed = modules_of(source)
    if packed and not any(is_gptq_shaped(source, module) for module in packed):
        return "its modules are not packed as GPTQ packs them"
    if method == "gptq" and packed:
        return Match(2, f"quant_method is 'gptq' and {len(packed)} modules have a qweight")
    if method is None and "bits" in raw and packed and any(name.endswith(".g_idx") for name in source.tensors):
        return Match(1, "no quant_method, but modules with qweight and g_idx")
    return f"quant_method is {method!r}" if packed else "no module has a qweight"


def read(source: Source, findings: Findings) -> Model:
    """Every module with a qweight is a layer; its zero-points and g_idx are judged by content."""
    modules = modules_of(source)
    parsed = parse(find_config(source), modules, findings)
    if parsed is None:
        return assemble(NAME, source, {}, {}, Findings())
    zeros = Zeros(
        "v1" if parsed.checkpoint_format == "gptq" else "v2",
        borrowed="gptqmodel" in parsed.producer,
        planar=parsed.checkpoint_format == "gptq_p",
    )
    found: dict[str, tuple[Spec, Mapping[str, Slot]]] = {}
    refused: set[str] = set()
    empty, architecture = zero_biases(source, modules), Architecture.of(source.config)
    for module in modules:
        try:
            spec = layers.read_spec(source, module, parsed.scheme_of(module), zeros, module in empty, findings)
            spec = under_name_of_class(spec, modules, architecture)
            found[spec.name] = (spec, layout(spec))
            if parsed.skips(module):
                findings.add("QB019", module, ("dynamic leaves it unquantized, and it has a qweight",))
        except ValueError as fault:
            findings.add("QB016", module, (str(fault),))
            refused.add(module)
    config = without_quantization(source.config)
    return assemble(NAME, source, config, found, findings, refused=refused)


def assumed(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Assumed] | None:
    """From config.json alone: what `dynamic` and modules_in_block_to_quantize leave, with the overrides of `dynamic`.

    Symmetric linears are those that it calls so; act-order is what desc_act says. ValueError for a block that `read`
    refuses.
    """
    block = find_block(config)
    if block is None or block.method != NAME or says_marlin(block.raw):
        return None
    findings, raw = Findings(), renamed(block.raw, KEYS)
    parsed = parse(Block(block.key, raw), names, findings)
    require(raw, findings)
    if parsed is None:
        return None
    act_order, words = parsed.raw.get("desc_act") is True, _words(str(parsed.raw.get("pack_dtype", "int32")))
    dialect = {"packing": "planar"} if parsed.checkpoint_format == "gptq_p" else {}
    dialect |= {"words": words} if words != "I32" else {}
    if parsed.checkpoint_format == "gptq" and "gptqmodel" not in parsed.producer:
        dialect["zeros"] = "v1"
    inside = [name for name in listed(parsed.raw, names) if not parsed.skips(name)]
    inside = [name for name in inside if not is_head(name) or parsed.raw.get("lm_head") is True]
    return {name: assumed_linear(parsed.scheme_of(name), act_order, tuple(dialect.items())) for name in inside}


layout = as_stored(layers.layout)


def settle(model: Model) -> Model:
    """One version of zero-points for the model: 1 if every layer is symmetric, else 2."""
    return replace(model, specs=layers.with_zeros(model.specs))


def config(model: Model) -> dict[str, Any]:
    """The commonest scheme for the model, `dynamic` for what differs, and what transformers needs to skip modules."""
    schemes_of = {name: _scheme_of(spec) for name, spec in model.specs.items()}
    schemes = Counter(schemes_of.values())
    base = schemes.most_common(1)[0][0]
    kept = [dict(spec.dialect) for spec in model.specs.values()]
    versions = {dialect.get("zeros", "v1") for dialect in kept} - {"absent"}
    borrowed = "v1-words" in versions or ("v1-wraps" in versions and base.bits not in ONES)
    named = "gptq_v2" if "v2" in versions else "gptq"
    overrides = dynamic(model, schemes_of, base)
    inside = in_blocks(model)
    return {
        "quant_method": "gptq",
        "bits": base.bits,
        "group_size": base.group_size,
        "sym": base.sym,
        "desc_act": any(spec.g_idx for spec in model.specs.values()),
        "checkpoint_format": "gptq_p" if any(dialect.get("packing") == "planar" for dialect in kept) else named,
        "pack_dtype": _PACK_DTYPES[next((dialect["words"] for dialect in kept if "words" in dialect), "I32")],
        "lm_head": "lm_head" in model.specs,
        **({"dynamic": overrides} if overrides else {}),
        **({"modules_in_block_to_quantize": inside} if inside else {}),
        **({"meta": {"quantizer": ["gptqmodel:7.7.0"]}} if borrowed else {}),
    }


_PACK_DTYPES = {"I32": "int32", "I16": "int16", "I8": "int8"}


def _words(pack_dtype: str) -> str:
    """The dtype of the words that a config names so."""
    return next(dtype for dtype, name in _PACK_DTYPES.items() if name == pack_dtype)


def _scheme_of(spec: Spec) -> Scheme:
    return Scheme(spec.weight.bits, spec.weight.group_size or -1, spec.weight.symmetric)


def _unwritable(spec: Spec, model: Model) -> Problem | None:
    """Act-order is GPTQ's own, so that `weights_only` is not what it has."""
    if spec.weight.type != "int":
        return Problem((f"weights {spec.weight}: GPTQ has integer codes",))
    if spec.activation is not None:
        return Problem((f"activations {spec.activation}: GPTQ quantizes weights only",))
    return None


def _is_planar(spec: Spec) -> bool:
    return dict(spec.dialect).get("packing") == "planar"


def _lowest_zero(spec: Spec) -> int:
    """Version 1 stores zero-points minus 1."""
    return 1 if dict(spec.dialect).get("zeros") == "v1" else 0


_SOURCE = "gptqmodel 7.7.0, nn_modules/qlinear/__init__.py"
RULES: tuple[Rule, ...] = (
    LayerRule("QB110", first_of(_unwritable, no_blocks("GPTQ"), multiples("GPTQ", 32, 32)), _SOURCE),
    widths("GPTQ", WIDTHS, _SOURCE, unless=_is_planar),
    scales_per_row("GPTQ", _SOURCE),
    stored_scales("GPTQ", DType.F16, _SOURCE, (DType.BF16,)),
    zeros_fit(_SOURCE, _lowest_zero),
    no_kv_scales(_SOURCE),
)
