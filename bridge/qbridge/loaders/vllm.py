"""A plugin of vLLM: it serves a checkpoint that it cannot read as if it were converted, and nothing is written.

    vllm serve SRC --load-format qbridge --config-format qbridge

vLLM calls `register` in each of its processes (entry-point group vllm.general_plugins). The config is that of the
plan that `convert SRC --to vllm --tp N` would carry out, N the tensor-parallel size that it is started with; weights
come from its stream: of each tensor, the share that vLLM's weight loaders cut out for a rank is read and converted
when they copy it into a parameter. What would be refused is refused in the same words while
vLLM reads the config, before it touches a GPU. Source: vllm 0.32.0 and 0.33.0, transformers_utils/config.py
(register_config_parser), model_executor/model_loader/__init__.py (register_model_loader) and default_loader.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

from qbridge.commands.streaming import Stream, stream
from qbridge.findings.finding import error
from qbridge.plan.options import MEMORY

NAME = "qbridge"  # of the load format and the config format
_PLACES = frozenset(  # options of transformers that say where config.json lies
    ["cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"]
)
_SIZE = [1]  # the tensor-parallel size that the engine which is being configured is for


def register() -> None:
    """Make the two formats known to vLLM, once in each of its processes."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.transformers_utils.config import register_config_parser

    _hide_special_names()
    _note_sizes(EngineArgs)
    register_config_parser(NAME)(_parser())
    register_model_loader(NAME)(_loader())


def _hide_special_names() -> None:
    """Let llvmlite's library have no attribute such as __dict__, for it takes every name for a C function's.

    vLLM for the CPU asks all that is imported for its __dict__ (0.32.0, triton_utils/dispatcher.py), and would stop.
    """
    from llvmlite.binding import ffi

    library: Any = type(ffi.lib)
    look_up = library.__getattr__

    def named(self: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return look_up(self, name)

    library.__getattr__ = named


def _note_sizes(arguments: Any) -> None:
    """Let the parser of the config know for how many ranks it is: vLLM does not tell it."""
    configure = arguments.create_model_config
    if getattr(configure, "notes_sizes", False):
        return

    def configuring(self: Any, *args: Any, **options: Any) -> Any:
        _SIZE[0] = self.tensor_parallel_size
        if self.load_format == NAME:
            self.config_format = NAME  # either alone would read weights of one format by the config of another
        elif self.config_format == NAME:
            self.load_format = NAME
        return configure(self, *args, **options)

    configuring.notes_sizes = True  # type: ignore[attr-defined]
    arguments.create_model_config = configuring


def _source(model: Any, revision: str | None) -> str:
    """The checkpoint as qbridge names it: a repository's revision stands behind @."""
    return f"{model}@{revision}" if revision and revision != "main" else str(model)


def converted(model: Any, revision: str | None, tp: int, memory: int = MEMORY) -> Stream:
    """The stream of a checkpoint for so many ranks; QBridgeError with what convert would refuse."""
    return stream(_source(model, revision), "vllm", tp=tp, memory=memory)


@contextmanager
def _planned(config: Mapping[str, Any]) -> Iterator[None]:
    """Let transformers take a planned config for that of config.json."""
    from transformers import PretrainedConfig

    read = PretrainedConfig.__dict__["get_config_dict"]

    def planned(cls: Any, path: Any, /, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return dict(config), {name: value for name, value in options.items() if name not in _PLACES}

    PretrainedConfig.get_config_dict = classmethod(planned)
    try:
        yield
    finally:
        PretrainedConfig.get_config_dict = read


def _parser() -> type:
    """The parser of the config: vLLM's own, on the config of the plan."""
    from vllm.transformers_utils.config import HFConfigParser

    class PlannedConfigParser(HFConfigParser):  # type: ignore[misc]
        """Gives vLLM the config of the output that is never written."""

        def parse(self, model: Any, trust_remote_code: bool, revision: str | None = None, **options: Any) -> Any:
            """(the config as a dict, the same as transformers parses it)."""
            with converted(model, revision, _SIZE[0]) as tensors:
                config = dict(tensors.config)
            with _planned(config):
                return super().parse(model, trust_remote_code, revision=revision, **options)

    return PlannedConfigParser


def _loader() -> type:
    """The loader of the weights: vLLM's own, on the tensors of the stream."""
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    class StreamedModelLoader(DefaultModelLoader):  # type: ignore[misc]
        """Gives vLLM the tensors of the output that is never written."""

        def __init__(self, load_config: Any) -> None:
            """Take what is ours out of --model-loader-extra-config: `memory`, in bytes."""
            options = dict(load_config.model_loader_extra_config or {})
            self.memory = int(options.pop("memory", MEMORY))
            theirs = copy(load_config)
            theirs.model_loader_extra_config = options
            super().__init__(theirs)

        def download_model(self, model_config: Any) -> None:
            """Nothing: ranges of files are read when their tensors are asked for."""

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Any]]:
            """Every tensor; the share of it that is copied is read and converted then."""
            from qbridge.loaders.unmade import UnmadeTensor

            if getattr(model, "secondary_weights", ()):
                raise error("QB712", model_config.model, (f"{type(model).__name__} reads a second checkpoint",))
            self.counter_before_loading_weights = time.perf_counter()  # vLLM logs the time that it took
            tp = get_current_vllm_config().parallel_config.tensor_parallel_size
            with converted(model_config.model, model_config.revision, tp, self.memory) as tensors:
                for name in tensors.names:
                    yield name, UnmadeTensor.whole(tensors, name)

    return StreamedModelLoader
