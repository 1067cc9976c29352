"""Prove that LMDeploy loads a checkpoint on a GPU, on a machine without one.

    PYTHON prover.py CKPT... --emulate sm90 [--json F] [--backend pytorch|turbomind|either]
                                                                                 with the Python of LMDeploy 0.18

Real: the parsing of config.json, the model class with its linears and experts, the checkpoint reader, the weight
loaders; of TurboMind all of its Python. proving.py beside this folder describes the report. `backend` in it is the
engine that loaded the checkpoint: with "either" the one that LMDeploy picks by itself, or the other if that refuses.
`picked` is the one that LMDeploy picks.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSIONS = ("0.18",)
STUBS = (
    "torch.cuda: the compute capability of --emulate, bfloat16, streams and events without function",
    "attention, convolution and delta-rule operators of the PyTorch engine, and packages of kernels: absent",
    "process groups: one rank, nothing is communicated",
    "native extension of TurboMind: records what it is given; limits of shapes from a table",
    "repacking of loaded weights for the kernels and the forward pass: not run",
)
# Computed from kv_b_proj after loading.
DERIVED = (".kc", ".vc", ".kc.weight", ".vc.weight")
QUANTIZED = ("scale", "qweight", "weight_scale_inv", "weight_scale")
ELSEWHERE = ("does not recognize this architecture", "requires flash_mla", "flash_mla", "trust_remote_code")
KERNELS = ("fla", "flash_mla")  # packages of GPU kernels that some classes import
TOWERS = {"visual", "vision_tower", "vision_model", "multi_modal_projector", "audio_tower"}
# What TurboMind knows without reading it.
UNREAD = (".weight_shape", ".inv_freq", "g_idx")


def _helper(path: Path) -> Any:
    """A module by its path: this folder has namesakes of installed packages."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Inert:
    """Stands in for a stream, an event or an operator that is never run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class LMDeploy:
    """LMDeploy, imported once, and its proof of one checkpoint."""

    def __init__(self, backend: str, gpu: int, proving: Any, trace: Any) -> None:
        """Import the engine and put the stubs in."""
        self.backend, self.gpu, self.proving, self.trace = backend, gpu, proving, trace
        self.native = _helper(HERE / "turbomind_native.py")
        self.native.stub_native(1)
        absent = [name for name in KERNELS if importlib.util.find_spec(name) is None]
        sys.meta_path.insert(0, _helper(HERE.parent / "absent_packages.py").AbsentPackages(absent))
        import lmdeploy
        import torch
        from lmdeploy.utils import get_logger

        get_logger("lmdeploy").setLevel("ERROR")
        self.torch, self.version = torch, lmdeploy.__version__
        torch.set_num_threads(1)
        self._stub_cuda()
        import lmdeploy.pytorch.models.patch
        import lmdeploy.turbomind.turbomind

    def _stub_cuda(self) -> None:
        """Answer the questions to a CUDA device; leave out what mixes tokens, whose operators exist for CUDA only."""
        from lmdeploy.pytorch import config
        from lmdeploy.pytorch.backends import attention, causal_conv1d, gated_delta_rule
        from lmdeploy.pytorch.backends.cuda.op_backend import CudaOpsBackend
        from lmdeploy.pytorch.nn import gated_delta

        build_op, cuda = CudaOpsBackend.build_op, self.torch.cuda

        mixers = (
            attention.PagedAttentionBuildSpec,
            causal_conv1d.CausalConv1dBuildSpec,
            gated_delta_rule.GatedDeltaMetaBuildSpec,
            gated_delta_rule.GatedDeltaRuleBuildSpec,
        )

        def build_op_on_cpu(spec: Any, **options: Any) -> Any:
            return _Inert() if isinstance(spec, mixers) else build_op(spec, **options)

        CudaOpsBackend.build_op = build_op_on_cpu
        gated_delta.build_rmsnorm_gated = self._norm
        config.is_bf16_supported = lambda *args: True
        cuda.get_device_capability = lambda *args: divmod(self.gpu, 10)
        cuda.current_device = lambda: "cpu"
        cuda.current_stream = lambda *args, **kwargs: None
        cuda.Stream = cuda.Event = _Inert
        properties = types.SimpleNamespace(
            multi_processor_count=132,
            major=self.gpu // 10,
            minor=self.gpu % 10,
            name="no device",
            total_memory=80 << 30,
        )
        cuda.get_device_properties = lambda *args: properties

    def _norm(self, size: int, eps: float = 1e-6, device: Any = None, dtype: Any = None, **more: Any) -> Any:
        """Stands in for fla's gated norm: the same parameter."""
        return self.torch.nn.RMSNorm(size, eps, device=device, dtype=dtype)

    def prove(self, path: str, report: dict[str, Any]) -> None:
        """Load one checkpoint and complete its report."""
        from lmdeploy.archs import autoget_backend

        ways = {"pytorch": self._pytorch, "turbomind": self._turbomind}
        report["picked"] = autoget_backend(path)
        names = [self.backend] if self.backend in ways else sorted(ways, key=lambda name: name != report["picked"])
        refusals = {}
        for name in names:
            attempt = dict(report)
            try:
                with self.torch.inference_mode():
                    ways[name](path, attempt)
            except Exception as error:
                refusals[name] = error
                continue
            report.update(attempt, backend=name)
            report["refusals"] = {name: self.proving.described(error) for name, error in refusals.items()}
            return
        if any(text in str(error) for error in refusals.values() for text in ELSEWHERE):
            raise self.proving.Unproved(self._said(refusals))
        report["refusals"] = {name: self.proving.described(error) for name, error in refusals.items()}
        refusal: Any = RuntimeError(self._said(refusals))
        given = (getattr(error, "tensor_given_last", None) for error in refusals.values())
        refusal.tensor_given_last = next((name for name in given if name), None)
        raise refusal

    @staticmethod
    def _said(refusals: dict[str, Exception]) -> str:
        return "; ".join(f"{name}: {type(error).__name__}: {error}" for name, error in refusals.items())

    def _pytorch(self, path: str, report: dict[str, Any]) -> None:
        from lmdeploy.pytorch.config import DistConfig, ModelConfig
        from lmdeploy.pytorch.distributed import DistContext, DistGroup, get_dist_manager
        from lmdeploy.pytorch.model_inputs import BuildModelContext
        from lmdeploy.pytorch.models.patch import build_patched_model
        from lmdeploy.pytorch.weight_loader.model_weight_loader import ModelWeightLoader

        dist = DistConfig(tp=1)
        config = ModelConfig.from_pretrained(path, dist_config=dist)
        quantization = config.quant_config
        report["config"] = {
            "class": type(config.hf_config).__name__,
            "method": quantization.quant_method,
            "quantization": {key: str(value) for key, value in vars(quantization).items()},
            "dtype": str(config.dtype).removeprefix("torch."),
        }
        group = DistGroup(rank=0)
        groups = dict.fromkeys(("tp_group", "attn_tp_group", "mlp_tp_group", "moe_tp_group"), group)
        get_dist_manager().set_context(DistContext(rank=0, dist_config=dist, **groups))
        options = BuildModelContext(quant_config=quantization, tie_word_embeddings=config.tie_word_embeddings)
        model = build_patched_model(config, device=self.torch.device("cpu"), build_model_ctx=options)
        report["model"], report["modules"] = type(model).__name__, _methods(model)
        trace = self.trace.WeightTrace(model)
        loader = ModelWeightLoader(path)
        read = loader._get_weights_iterator
        loader._get_weights_iterator = lambda shard: trace.follow(read(shard))
        with trace:
            loader.load_model_weights(model)
        tied = ("lm_head.weight",) if config.tie_word_embeddings else ()
        missing, report["unfilled"] = trace.finish()
        report["missing"] = [name for name in missing if not name.endswith((*DERIVED, *tied))]
        report["quantized"] = self.proving.by_module(trace.origins, report["modules"])
        text = config.llm_config or config.hf_config
        self._sort_unread(path, trace.taken, text, ("inv_freq", *tied), report, trace.zeros)

    def _sort_unread(
        self, path: str, read: Any, text: Any, endings: tuple[str, ...], report: dict[str, Any], others: Any = ()
    ) -> None:
        """Say of each tensor that was not read whether the engine leaves it out by design.

        So it does with those of some `endings`, of draft layers, of towers that are a model apart, and with `others`.
        """
        drafts = (*(f".layers.{number}." for number in self.proving.draft_layers(vars(text))), "mtp.")
        unread = sorted(self.proving.stored_shapes(path).keys() - read)
        apart = {*_of_vision_model(path, unread, read), *others}
        for name in unread:
            by_design = name.endswith(endings) or any(part in name for part in drafts) or name in apart
            report["left_out" if by_design else "unexpected"].append(name)

    def _turbomind(self, path: str, report: dict[str, Any]) -> None:
        from lmdeploy.messages import TurbomindEngineConfig
        from lmdeploy.turbomind import TurboMind, model_loader, turbomind
        from lmdeploy.turbomind.weight_format import WeightFormatResolver

        formats: dict[str, Any] = {}
        read: set[str] = set()
        create, resolve = model_loader.create_checkpoint, WeightFormatResolver.resolve

        def watched(*args: Any, **kwargs: Any) -> Any:
            checkpoint = create(*args, **kwargs)
            for way in ("get", "pop"):
                setattr(checkpoint, way, _noting(getattr(checkpoint, way), read))
            return checkpoint

        def resolving(resolver: Any, prefix: Any, **options: Any) -> Any:
            resolved = resolve(resolver, prefix, **options)
            if resolved is not None:
                formats[prefix.prefix] = resolved[0].name
            return resolved

        model_loader.create_checkpoint, WeightFormatResolver.resolve = watched, resolving
        config = TurbomindEngineConfig(tp=1, max_batch_size=1)
        turbomind.update_parallel_config(config)
        engine = TurboMind.__new__(TurboMind)
        engine.gpu_count, engine.devices = len(config.devices), config.devices
        _, loader = engine._from_hf(path, config)
        text = getattr(loader.model, "text_model", loader.model).cfg
        report["config"] = {
            "class": type(text).__name__,
            "method": config.model_format,
            "quantization": None,
            "dtype": config.dtype,
        }
        loader.export()
        report["model"] = type(loader.model).__name__
        report["modules"] = {
            name: {"class": "Linear", "method": None if kind == "trivial" else kind} for name, kind in formats.items()
        }
        report["quantized"] = {name: kind != "trivial" for name, kind in sorted(formats.items())}
        tied = ("lm_head.weight",) if getattr(text, "tie_word_embeddings", False) else ()
        self._sort_unread(path, read, text, (*UNREAD, *tied), report)


def _of_vision_model(path: str, unread: list[str], taken: Any) -> set[str]:
    """Tensors of a model apart, which LMDeploy builds for images of the classes that have one (lmdeploy.vl)."""
    from lmdeploy.archs import check_vl_llm
    from transformers import PretrainedConfig

    config, _ = PretrainedConfig.get_config_dict(path)
    if not config.get("architectures") or not check_vl_llm("pytorch", config):
        return set()
    loaded = {name.partition(".")[0] for name in taken}
    return {name for name in unread if name.partition(".")[0] not in loaded or TOWERS & set(name.split(".")[:2])}


def _noting(read: Any, names: set[str]) -> Any:
    def noting(name: str, **options: Any) -> Any:
        tensor = read(name, **options)
        names.add(name)
        return tensor

    return noting


def _methods(model: Any) -> dict[str, Any]:
    """{module: {class, method}} of every module that holds parameters."""
    found = {}
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        label = type(module).__name__
        tensors = {leaf for leaf, _ in module.named_parameters(recurse=False)}
        quantized = bool(tensors & set(QUANTIZED))
        found[name] = {"class": label, "method": label if quantized else None}
    return found


def main() -> int:
    """Prove the checkpoints of the command line; the exit status."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    proving = _helper(HERE.parent / "proving.py")
    parser = proving.arguments(__doc__)
    parser.add_argument("--backend", default="either", choices=("pytorch", "turbomind", "either"))
    args = parser.parse_args()
    proving.settle(args.emulate)

    def begin(args: Any) -> Any:
        proving.stubs_alone(args, "LMDeploy")
        proving.one_rank(args, "LMDeploy")
        trace = _helper(HERE.parent / "weight_trace.py")
        engine = LMDeploy(args.backend, proving.capability(args.emulate), proving, trace)
        return proving.Proofs(engine.version, [engine.prove], STUBS)

    return int(proving.main("lmdeploy", "lmdeploy", VERSIONS, args, begin))


if __name__ == "__main__":
    sys.exit(main())
