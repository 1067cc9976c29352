"""load: a model of transformers out of a conversion, each tensor made when its parameter is filled.

transformers 5 gives every parameter the value of `tensor[...]`, where a tensor may be a slice of a safetensors file
that is read then (core_model_loading.py, _materialize_copy). A tensor of a conversion answers the same questions.
Source: transformers 5.17.0 and 5.24.0, modeling_utils.py (from_pretrained with config and state_dict).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qbridge.commands.checkpoint import PathLike
from qbridge.commands.streaming import Stream, stream
from qbridge.findings.arguments import checked
from qbridge.findings.extras import imported
from qbridge.findings.finding import error
from qbridge.plan.options import MEMORY

_OLDEST = 5  # the first transformers that takes tensors which are not there yet
_AUTO = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel")


class _Unmade:
    """A tensor of a stream before it is made: what transformers asks of a slice of a safetensors file."""

    def __init__(self, tensors: Stream, name: str) -> None:
        self._tensors, self._name = tensors, name

    def get_dtype(self) -> str:
        """The dtype as safetensors names it."""
        return self._tensors.shapes[self._name][0]

    def get_shape(self) -> list[int]:
        """The shape."""
        return list(self._tensors.shapes[self._name][1])

    def __getitem__(self, index: Any) -> Any:
        return self._tensors.tensor(self._name)[index]


@checked
def load(
    src: PathLike,
    source: str | None = None,
    *,
    allow: Iterable[str] = (),
    memory: int = MEMORY,
    **options: Any,
) -> Any:
    """A model of transformers, loaded by transformers itself as from the folder that `convert` would write for it.

    No second copy is written: a tensor is converted when transformers fills the parameter, so that memory holds the
    model, and `memory` bytes besides it. `options` are those of `from_pretrained`: device_map, dtype (by default what
    config.json says). Raises QBridgeError: what `convert` refuses, QB603 without transformers,
    QB711 for one that is older than 5, or has no class for the model.
    """
    transformers: Any = imported("transformers", "transformers", "it builds the model and fills it")
    if int(transformers.__version__.partition(".")[0]) < _OLDEST:
        raise error("QB711", str(src), (f"transformers {transformers.__version__} is installed",))
    with stream(src, "transformers", source, allow=allow, memory=memory) as tensors:
        config = _config(transformers, tensors.config, str(src))
        unmade = {name: _Unmade(tensors, name) for name in tensors.shapes}
        options.setdefault("dtype", "auto" if getattr(config, "dtype", None) else _first_float(tensors))
        kind = _model_class(transformers, config, str(src))
        try:
            model = kind.from_pretrained(None, config=config, state_dict=unmade, **options)
        except ImportError as fault:
            raise error("QB711", str(src), (str(fault),)) from fault
        if settings := tensors.side_file("generation_config.json"):
            model.generation_config = transformers.GenerationConfig.from_dict(settings)
    return model


def _config(transformers: Any, written: Mapping[str, Any], src: str) -> Any:
    """The config as transformers parses it; QB711 for a model_type that it does not know."""
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    kind = str(written.get("model_type", ""))
    if kind not in known:
        raise error("QB711", src, (f"transformers {transformers.__version__} has no model_type {kind!r}",))
    return known[kind].from_dict(dict(written))


def _model_class(transformers: Any, config: Any, src: str) -> Any:
    """The class that config.json names, or the one that an auto class picks for the config."""
    for name in config.architectures or ():
        if hasattr(transformers, name):
            return getattr(transformers, name)
    for name in _AUTO:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise error("QB711", src, (f"transformers {transformers.__version__} has no class {config.architectures}",))


def _first_float(tensors: Stream) -> str:
    """The dtype of the first plain floats, by torch's name."""
    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    return next((names[dtype] for dtype, _ in tensors.shapes.values() if dtype in names), "float32")
