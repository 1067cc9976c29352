"""Prove that SGLang loads a checkpoint on a GPU, on a machine without one.

    PYTHON prover.py CKPT... --emulate sm90 [--json F] [--tp 1] [--trace]     with the Python of SGLang 0.5.23

Real: server arguments and what follows from them, the parsing of config.json, the choice of the quantization method,
the model class, the scheme of every linear and mixture of experts with its checks of shapes, all parameters, the
iterator over the weights, the weight loaders with their shares, of each rank in turn, and Marlin's check of shapes,
whose answer compressed-tensors does not look at. proving.py beside this folder describes the report. SGLang logs the
name of a tensor that it has no parameter for, and leaves a parameter that nothing is given for as it is: which bytes
are written is followed, whatever it says.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSIONS = ("0.5.23",)
STUBS = (
    "torch.cuda: 64 devices of the compute capability of --emulate, 80 GiB; what is made for one is made on the CPU",
    "kernels: packages that are not installed, and sglang.kernels.ops, are there by name only",
    "threads: what is submitted to a pool runs at once",
    "process_weights_after_loading, but for Marlin's check of shapes, and the forward pass: not run",
    "of more ranks than one each is proved by itself; collectives give back what they are given",
)
# What no checkpoint needs to give.
OPTIONAL = re.compile(
    r"\.(k|v)_scale$"  # of the key-value cache: 1.0 unless given
    r"|g_idx$|g_idx_sort_indices$"  # only act-order has one
    r"|\.(w13|w2)_(qzeros|bias)$"  # of symmetric experts; of experts without biases
    r"|\.(w13|w2)_weight_shape$|\.weight_shape$|rotary_emb\.|_weights_scaling_factor$"
    r"|_blockscale_swizzled$"  # computed after loading
    r"|layers\.\d+\.[qk]_norm\.weight$"  # Falcon-H1 has them in a layer, and its forward pass does not
)
LEFT_OUT = re.compile(
    r"linear_attn\.norm\.weight$"  # of a module in SGLang's kernels, which are there by name only
    r"|rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.[kv]_scale$|\.(k|v)_proj\.output_scale$|g_idx$|\.weight_shape$"
)
# This SGLang, or the transformers beside it, has no class for the config and no remote code may run.
ELSEWHERE = (
    "does not recognize this architecture",
    "contains custom code",
    "trust_remote_code",
    "does not appear to have a file named",
    "entries must be in",
)


def _helper(path: Path) -> Any:
    """A module by its path: this folder has namesakes of installed packages."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _join(torch: Any, size: int, rank: int) -> None:
    """Become a rank of a group whose other ranks are not there: collectives give back what they are given."""
    import torch.testing._internal.distributed.fake_pg as absent
    from sglang.srt.distributed.device_communicators.shm_broadcast import MessageQueue

    group = torch.distributed.new_group
    torch.distributed.new_group = lambda ranks=None, *args, **more: group(ranks, backend="fake")
    torch.distributed.init_process_group("fake", store=absent.FakeStore(), rank=rank, world_size=size)
    MessageQueue.create_from_process_group = staticmethod(lambda *args, **more: None)


class SGLang:
    """SGLang, imported once, and its proof of one checkpoint."""

    def __init__(self, gpu: int, tp: int, proving: Any, trace: Any) -> None:
        """Put the stubs in and import the engine."""
        self.proving, self.trace, self.tp = proving, trace, tp
        self.torch = _helper(HERE / "absent.py").stand_in(gpu, _helper(HERE.parent / "absent_packages.py"))
        import sglang
        from sglang.srt import server_args  # noqa: F401  all that a proof needs
        from sglang.srt.model_loader import loader  # noqa: F401
        from sglang.srt.models import registry  # noqa: F401

        self.version = sglang.__version__
        logging.getLogger("sglang").setLevel(logging.ERROR)

    def prove(self, path: str, report: dict[str, Any], rank: int = 0) -> None:
        """Load one checkpoint as a rank does and complete its report."""
        model, config, trace = self.load(path, report, rank)
        self.conclude(model, path, config, trace, report)

    def load(self, path: str, report: dict[str, Any], rank: int = 0) -> tuple[Any, Any, Any]:
        """(the model, its configuration, what was written where) as a rank has loaded a checkpoint."""
        from sglang.srt.configs.load_config import LoadConfig
        from sglang.srt.model_loader import loader
        from sglang.srt.model_loader.utils import set_default_torch_dtype

        config = self._configure(path, rank)
        load_config = LoadConfig()
        quantization = loader._get_quantization_config(config, load_config)
        report["config"] = {
            "class": type(config.hf_config).__name__,
            "method": config.quantization,
            "quantization": type(quantization).__name__ if quantization else None,
            "dtype": str(config.dtype).removeprefix("torch."),
        }
        with self.torch.no_grad():
            with set_default_torch_dtype(config.dtype):
                model = loader._initialize_model(config, load_config, quantization)
            report["model"], report["modules"] = type(model).__name__, _methods(model)
            trace = self.trace.WeightTrace(model)
            weights = trace.follow(loader.DefaultModelLoader(load_config)._get_all_weights(config, model))
            with trace:
                model.load_weights(weights)
        return model, config, trace

    def _configure(self, path: str, rank: int) -> Any:
        from sglang.srt.configs.model_config import ModelConfig
        from sglang.srt.distributed import parallel_state
        from sglang.srt.runtime_context import SpawnRanks, publish
        from sglang.srt.server_args import ServerArgs

        try:
            arguments = ServerArgs(
                model_path=path,
                device="cuda",
                tp_size=self.tp,
                skip_tokenizer_init=True,
                disable_cuda_graph=True,
                enable_multimodal=True if "vision_config" in self.proving.config_of(path) else None,
            )
            publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=rank))
            _join(self.torch, self.tp, rank)
            parallel_state.init_distributed_environment(
                world_size=self.tp, rank=rank, local_rank=rank, backend="gloo"
            )
            parallel_state.initialize_model_parallel(backend="gloo")
            return ModelConfig.from_server_args(arguments)
        except Exception as error:
            if any(text in str(error) for text in ELSEWHERE):
                raise self.proving.Unproved(f"{type(error).__name__}: {error}") from error
            raise

    def conclude(self, model: Any, path: str, config: Any, trace: Any, report: dict[str, Any]) -> None:
        """Complete the report of a model that was loaded: Marlin's check, and what was written where."""
        with self.torch.no_grad():
            _check_marlin(model)
        missing, unfilled = trace.finish()
        report["missing"] = [name for name in missing if not OPTIONAL.search(name)]
        padding = _padding_rows(trace.model)
        report["unfilled"] = [
            entry
            for entry in unfilled
            if not OPTIONAL.search(entry["parameter"]) and padding.get(entry["parameter"]) != entry["empty"]
        ]
        report["quantized"] = self.proving.by_module(trace.origins, report["modules"])
        drafts = self.proving.draft_layers(vars(config.hf_text_config))
        apart = (*(f".layers.{number}." for number in drafts), "mtp.")
        tied = getattr(config.hf_config, "tie_word_embeddings", False)
        for name in sorted(self.proving.stored_shapes(path).keys() - trace.taken):
            by_design = (
                LEFT_OUT.search(name)
                or any(part in name for part in apart)
                or name in trace.zeros
                or (tied and "lm_head" in name)
            )
            report["left_out" if by_design else "unexpected"].append(name)


def _methods(model: Any) -> dict[str, Any]:
    """{module: {class, method}} of every linear, mixture of experts, embedding and head."""
    found = {}
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if "KVCache" in type(method).__name__:
            continue
        if method is None and not any(True for _ in module.parameters(recurse=False)):
            continue
        parts = (method, getattr(module, "scheme", None))
        label = ":".join(type(part).__name__ for part in parts if part is not None)
        quantized = method is not None and not type(method).__name__.startswith("Unquantized")
        found[name] = {"class": type(module).__name__, "method": label if quantized else None}
    return found


def _check_marlin(model: Any) -> None:
    """Ask Marlin about the shapes of each linear that it will serve; ValueError where they do not fit."""
    from sglang.srt.layers.quantization.marlin_utils import verify_marlin_supports_shape

    for module in model.modules():
        scheme = getattr(module, "scheme", None)
        config: Any = getattr(scheme, "kernel_config", None)
        if config is None:
            config = getattr(getattr(scheme, "kernel", None), "kernel_config", None)
        if type(config).__name__ == "MarlinLinearLayerConfig":
            (inputs, outputs), whole = config.partition_weight_shape, config.full_weight_shape[0]
            verify_marlin_supports_shape(outputs, inputs, whole, config.group_size)


def _padding_rows(model: Any) -> dict[str, str]:
    """{parameter: the rows with which an embedding or a head is filled up to a multiple, as "[515:576]"}."""
    found = {}
    for name, module in model.named_modules():
        share = getattr(module, "shard_indices", None)
        if share is not None:
            found[f"{name}.weight"] = f"[{share.num_org_elements}:{share.num_elements_padded}]"
    return found


def main() -> int:
    """Prove the checkpoints of the command line; the exit status."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    proving = _helper(HERE.parent / "proving.py")
    args = proving.arguments(__doc__).parse_args()
    proving.settle(args.emulate, SGLANG_USE_CPU_ENGINE="0")
    if args.emulate:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # SGLang asks for the number of devices in it

    def begin(args: Any) -> Any:
        proving.stubs_alone(args, "SGLang")
        trace = _helper(HERE.parent / "weight_trace.py")
        engine = SGLang(proving.capability(args.emulate), args.tp, proving, trace)
        proofs = [functools.partial(engine.prove, rank=rank) for rank in range(args.tp)]
        return proving.Proofs(engine.version, proofs, (*STUBS, f"compute capability {args.emulate}"))

    return int(proving.main("sglang", "sglang", VERSIONS, args, begin))


if __name__ == "__main__":
    sys.exit(main())
