"""Which layers of a hybrid model have attention and which linear attention, as its tensors say.

Where config.json has no `layer_types` a class builds every fourth layer with attention, or what
`full_attention_interval` says. A checkpoint of other layers is loaded by nobody until config.json names them.
Source: transformers 5.17.0, models/qwen3_5/configuration_qwen3_5.py (__post_init__).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qbridge.architecture.architecture import Architecture
from qbridge.architecture.implied import default_layer_types
from qbridge.architecture.quantization_block import text_holders
from qbridge.ir.model import Model

_MIXERS = {"self_attn": "full_attention", "linear_attn": "linear_attention"}


@dataclass(frozen=True, slots=True)
class LayerKinds:
    """The kinds of all layers that the class builds and that are stored, and the modules in which they differ.

    `clear` says that no layer has a mixer of both kinds.
    """

    built: tuple[str, ...]
    stored: tuple[str, ...]
    where: tuple[str, ...]
    clear: bool


def stored_modules(model: Model) -> list[str]:
    """The modules of a model as they are called on disk, each once."""
    coded = (str(dict(spec.dialect).get("stored_as") or name) for name, spec in model.specs.items())
    plain = (info.stored.rpartition(".")[0] for info in model.tensors.values())
    return list(dict.fromkeys((*coded, *plain)))


def unnamed_layers(model: Model) -> LayerKinds | None:
    """The layers that a class without `layer_types` builds otherwise than they are stored; None if there are none."""
    architecture = Architecture.of_model(model)
    kinds = default_layer_types(architecture.text, architecture.layers or 0)
    if kinds is None:
        return None
    mixers: dict[int, dict[str, str]] = {}  # by layer, the module of each kind
    for module in stored_modules(model):
        parts = module.split(".")
        at = next((i for i, part in enumerate(parts) if part in _MIXERS), 0)
        if at and parts[at - 1].isdecimal() and architecture.is_decoder(module):
            mixers.setdefault(int(parts[at - 1]), {})[_MIXERS[parts[at]]] = ".".join(parts[: at + 1])
    stored, where = list(kinds), list[str]()
    for layer, modules in mixers.items():
        for kind, module in modules.items():
            if layer < len(kinds) and kind != kinds[layer]:
                stored[layer] = kind
                where.append(module)
    clear = all(len(modules) == 1 for modules in mixers.values())
    return LayerKinds(tuple(kinds), tuple(stored), tuple(where), clear) if where else None


def with_layer_types(model: Model) -> tuple[Model, str]:
    """(the model whose config names the layers that the class would build otherwise, the path of that key).

    The path is empty, and the model is as it was, where the class builds what is stored or a layer has both mixers.
    """
    kinds = unnamed_layers(model)
    if kinds is None or not kinds.clear:
        return model, ""
    *_, (path, holder) = text_holders(model.config)
    named = {**holder, "layer_types": list(kinds.stored)}
    config = {**model.config, path.removesuffix("."): named} if path else named
    return replace(model, config=config), f"{path}layer_types"
