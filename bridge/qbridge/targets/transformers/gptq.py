"""What transformers makes of GPTQ: it hands GPTQModel one scheme for all linears of the layers, and none beside them.

Source: transformers 5.23.0, utils/quantization_config.py (GPTQConfig), which has no `dynamic`, `lm_head` or
`pack_dtype`; optimum 2.3.0, gptq/quantizer.py (convert_model). Tried with gptqmodel 7.7.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.names import is_routed
from qbridge.findings.catalogue.code import Code
from qbridge.formats.rules import LayerRule, ModelRule, Problem, Rule
from qbridge.ir.layer import Spec
from qbridge.ir.model import Model
from qbridge.targets.derivation import stored_linears, strings

_FILE = "transformers 5.23.0, utils/quantization_config.py (GPTQConfig)"
_OPTIMUM = "optimum 2.3.0, gptq/quantizer.py (convert_model)"
_BITS = (2, 3, 4, 8)


def _layer(spec: Spec, model: Model) -> Problem | None:
    if spec.weight.bits not in _BITS:
        return Problem((f"weights {spec.weight}: it has {', '.join(map(str, _BITS))} bits",))
    if "words" in dict(spec.dialect):
        return Problem(("codes lie in words of 16 or 8 bits: it reads none of pack_dtype",))
    architecture = Architecture.of_model(model)
    if architecture.known and not architecture.is_decoder(spec.name):
        return Problem(("it builds linears outside of the layers unquantized, whatever lm_head and dynamic say",))
    return None


def _mixed(model: Model) -> Iterator[Problem]:
    """Of several schemes it takes the block's for all, for it does not read `dynamic`."""
    schemes = {name: (spec.weight.bits, spec.weight.group_size) for name, spec in model.specs.items()}
    if len(set(schemes.values())) > 1:
        commonest = Counter(schemes.values()).most_common(1)[0][0]
        where = tuple(name for name, scheme in schemes.items() if scheme != commonest)
        yield Problem((f"{len(where)} linears have another width or group size than the rest",), where=where)


def _unquantized(model: Model) -> Iterator[Problem]:
    """It replaces every Linear of the layers but those that are the end of no entry of a list."""
    architecture, entries = Architecture.of_model(model), strings(model.block.get("modules_in_block_to_quantize"))
    where = tuple(
        name
        for name in stored_linears(model)[1]
        if architecture.known
        and architecture.is_decoder(name)
        and not (architecture.is_router(name) or is_routed(name))
        and (not entries or name.endswith(tuple(entries)))
    )
    if where:
        fact = f"{len(where)} linears of the layers are plain, and modules_in_block_to_quantize does not say so"
        yield Problem((fact,), where=where)


RULES: tuple[Rule, ...] = (
    LayerRule("QB234", _layer, _FILE),
    ModelRule("QB234", _mixed, _FILE),
    ModelRule("QB234", _unquantized, _OPTIMUM),
)
CODE = Code(
    "QB234",
    "transformers does not load this GPTQ, which GPTQModel itself may",
    "It knows 2, 3, 4 and 8 bits in words of 32 bits, one width and group size for all linears of the layers, "
    "and none outside: its config has no dynamic, lm_head or pack_dtype.",
    "It stops at the width or the shape of a tensor, or leaves a head or linears as they were initialized.",
    "GPTQ with lm_head true; dynamic with 8 bits for down_proj",
    "Load it with GPTQModel, or convert it (--to transformers): compressed-tensors has all of these.",
    f"{_FILE}; {_OPTIMUM}",
)
