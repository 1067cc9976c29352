"""Names under which the classes of an engine look for the text model, and linears that they look for one by one.

Source: vllm 0.33.0, model_executor/models/*.py (hf_to_vllm_mapper) and utils.py (AutoWeightsLoader); transformers
5.24.0, conversion_mapping.py; lmdeploy 0.18.0, pytorch/models/*.py (load_weights) and turbomind/text_model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.expected import decoder_of
from qbridge.architecture.names import FUSED, dense_linears
from qbridge.architecture.prefixes import Prefix, known_pairs, text_models
from qbridge.formats.rules import ModelRule, Problem
from qbridge.ir.model import Model

Taken = Callable[[Model], tuple[str, ...]]  # what the text model may be called; empty where that is not known


def usual_text_models(model: Model) -> tuple[str, ...]:
    """The names that any reader of the model's class takes."""
    return text_models(Architecture.of_model(model))


def text_model_rule(source: str, taken: Taken = usual_text_models) -> ModelRule:
    """The text model must lie under a name that the class takes (QB338)."""

    def check(model: Model) -> Iterator[Problem]:
        names = taken(model)
        here = _text_model(model) if names else ""
        if not names or here in names:
            return
        known = next((name for name in names if here.endswith(f".{name}")), "")
        # what lies around the whole model is left out, and lm_head with it
        old, new = (here.removesuffix(f".{known}"), "") if known else (here, names[0])
        fact = f"the text model lies under {here}: {model.architecture} takes {' or '.join(filter(None, names))}"
        flags = " ".join(f"--rename-prefix {old}={new}" for old, new in ((old, new), *_other_pairs(model, new)))
        yield Problem((fact,), (f"convert it with {flags}",), (f"{here}.layers",))

    return ModelRule("QB338", check, source)


def _other_pairs(model: Model, new: str) -> list[Prefix]:
    """What the head and the towers beside a text model of that name are called, where they have a former name."""
    if new != "model.language_model":
        return []
    stored = [*(f"{name}.weight" for name in model.specs), *(info.stored for info in model.tensors.values())]
    pairs = known_pairs(model.config, stored)
    return [(old, other) for old, other in pairs if other == "lm_head" or f"model.{old}" == other]


def _text_model(model: Model) -> str:
    """What the decoder's layers lie under."""

    def find() -> str:
        names = (*(f"{name}.weight" for name in model.specs), *model.tensors)
        return decoder_of(Architecture.of_model(model), names).rpartition(".")[0]

    return model.once("name of the text model", find)


def one_by_one_rule(source: str) -> ModelRule:
    """Linears that the class has one by one are not stored as one (QB339)."""

    def check(model: Model) -> Iterator[Problem]:
        architecture = Architecture.of_model(model)
        columns = architecture.split.columns
        for leaf, parts in FUSED.items():
            if leaf in columns or not columns.issuperset(parts):
                continue
            where = tuple(name for name in _decoder_linears(model, architecture) if name.rpartition(".")[2] == leaf)
            if where:
                fact = f"{leaf} is stored as one: the class looks for {', '.join(parts)}"
                yield Problem(
                    (fact,), (f"store {' and '.join(parts)} one by one; vLLM loads them as they are",), where
                )

    return ModelRule("QB339", check, source)


def _decoder_linears(model: Model, architecture: Architecture) -> Iterator[str]:
    """Linears of the decoder, experts left out where the class has them in tensors that they share."""
    for module in (*model.specs, *dense_linears(model.tensors)):
        shared = architecture.fused_experts is not None and ".experts." in module
        if architecture.is_decoder(module) and not shared:
            yield module
