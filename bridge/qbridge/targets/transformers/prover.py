"""Prove that transformers loads a checkpoint.

    PYTHON prover.py CKPT... [--json F] [--emulate sm90] [--trace]          with a Python that has transformers

Real: the parsing of config.json, the model class, the quantizer with the modules that it replaces, from_pretrained
with its report; the model lies on the CPU. With --emulate quantizers believe in a GPU, without which some dequantize
what they load. proving.py beside this folder describes the report of this prover.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSIONS = ("4.57", "5.17", "5.19", "5.23", "5.24")
STUBS = (
    "accelerate, where it is not installed: the quantizers' question for it is answered yes",
    "torch.cuda in the quantizers of float8: available, of the compute capability of --emulate",
    "forward pass: not run",
)
AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSequenceClassification",
    "AutoModel",
)
# Where a package, or a class that only remote code has, is missing on this machine.
ELSEWHERE = (
    "requires optimum",
    "requires gptqmodel",
    "requires an AutoRound",
    "requires auto-round",
    "auto-round",
    "requires `optimum`",
    "for optimum",
    "does not recognize this architecture",
    "Unrecognized configuration class",
    "No GPU",
)
SCALES = re.compile(r"(weight_scale|weight_scale_inv|_scales?|qzeros|weight_packed)$")
NUMBERED = re.compile(r"(.*\.)(\d+)(\.\D*)$")  # the last number in a name: that of an expert, else of a layer
# In repositories, and in no class of transformers: scales of the key-value cache, and draft layers.
LEFT_OUT = re.compile(r"(^|\.)mtp\.|\.[kv]_scale$|rotary_emb\.inv_freq$")


def _helper(name: str) -> Any:
    """A module beside this folder, by its path: this folder has namesakes of installed packages."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{name}", HERE.parent / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Cuda:
    """torch.cuda with a device that answers questions."""

    def __init__(self, real: Any, gpu: int) -> None:
        self._real, self._gpu = real, gpu

    def __getattr__(self, name: str) -> Any:
        answers = {"is_available": lambda: True, "get_device_capability": lambda *args: divmod(self._gpu, 10)}
        return answers[name] if name in answers else getattr(self._real, name)


class _Torch:
    """torch as a quantizer sees it on a machine with a GPU."""

    def __init__(self, real: Any, gpu: int) -> None:
        self._real, self.cuda = real, _Cuda(real.cuda, gpu)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Transformers:
    """transformers, imported once, and its proof of one checkpoint."""

    def __init__(self, gpu: int | None, proving: Any) -> None:
        """Import the engine, and put the stubs in where they stand in for a GPU."""
        import torch
        import transformers

        self.proving, self.transformers = proving, transformers
        self.version = transformers.__version__
        torch.set_num_threads(1)
        transformers.utils.logging.disable_progress_bar()
        if gpu is not None:
            self._stub(torch, gpu)
        self.renamed: dict[str, str] = {}
        self.plain: dict[str, str] = {}
        self.built: dict[str, list[int]] = {}
        self.found: dict[str, Any] = {}
        self._watch()

    def _stub(self, torch: Any, gpu: int) -> None:
        """Let quantizers believe in a GPU."""
        from transformers.quantizers import auto  # noqa: F401  brings all of them

        for module in [m for name, m in sys.modules.items() if name.startswith("transformers.quantizers.")]:
            if hasattr(module, "is_accelerate_available"):
                vars(module)["is_accelerate_available"] = lambda *args: True
        fp8 = sys.modules["transformers.quantizers.quantizer_finegrained_fp8"]
        vars(fp8)["torch"] = _Torch(torch, gpu)

    def _watch(self) -> None:
        """Note under which name of the model each tensor is loaded, and the report that is made before it raises."""
        try:
            from transformers import core_model_loading as loading
            from transformers import modeling_utils
        except ImportError:
            self._watch_of_4()
            return
        rename, log = loading.rename_source_key, modeling_utils.log_state_dict_report

        def renaming(source_key: str, *args: Any, **kwargs: Any) -> Any:
            answer = rename(source_key, *args, **kwargs)
            self.renamed[source_key] = answer[0]
            if answer[1] is None:  # nothing is made of it: it is the parameter
                self.plain[source_key] = answer[0]
            return answer

        def logging(*args: Any, loading_info: Any, **kwargs: Any) -> Any:
            self.found = {name: getattr(loading_info, name) for name in loading_info.__dataclass_fields__}
            return log(*args, loading_info=loading_info, **kwargs)

        fill = modeling_utils.convert_and_load_state_dict_in_model

        def filling(model: Any, *args: Any, **kwargs: Any) -> Any:
            self.built = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
            return fill(model, *args, **kwargs)

        modeling_utils.convert_and_load_state_dict_in_model = filling
        loading.rename_source_key, modeling_utils.log_state_dict_report = renaming, logging

    def _watch_of_4(self) -> None:
        """The same for transformers 4, which renames all tensors in one step."""
        base = self.transformers.PreTrainedModel
        rename = base._get_key_renaming_mapping

        def renaming(model: Any, *args: Any, **kwargs: Any) -> Any:
            names = rename(model, *args, **kwargs)
            self.renamed.update(names)
            return names

        base._get_key_renaming_mapping = renaming

    def model_class(self, raw: dict[str, Any], path: str) -> Any:
        """The class that config.json names, or the one that an auto class picks for its model_type."""
        for name in raw.get("architectures") or ():
            if hasattr(self.transformers, name):
                return getattr(self.transformers, name)
        if raw.get("auto_map"):
            raise self.proving.Unproved(f"{raw.get('architectures')} is remote code, which is never run here")
        config = self.transformers.AutoConfig.from_pretrained(path)
        for name in AUTO_CLASSES:
            auto = getattr(self.transformers, name, None)
            if auto is not None and type(config) in auto._model_mapping:
                return auto._model_mapping[type(config)]
        raise self.proving.Unproved(f"transformers {self.version} has no class for {raw.get('architectures')}")

    def prove(self, path: str, report: dict[str, Any]) -> None:
        """Load one checkpoint and complete its report."""
        raw = self.proving.config_of(path)
        try:
            cls = self.model_class(raw, path)
            model, info = cls.from_pretrained(path, output_loading_info=True, dtype="auto")
        except Exception as error:
            if isinstance(error, ImportError) or any(text in str(error) for text in ELSEWHERE):
                raise self.proving.Unproved(f"{type(error).__name__}: {error}") from error
            self._sort(self.found, raw, report)
            raise
        self._sort(info, raw, report)
        quantizer = getattr(model, "hf_quantizer", None)
        method = getattr(quantizer.quantization_config, "quant_method", None) if quantizer else None
        report["config"] = {
            "class": type(model.config).__name__,
            "method": getattr(method, "value", method),
            "quantization": type(quantizer).__name__ if quantizer else None,
            "dtype": str(model.dtype).removeprefix("torch."),
        }
        report["model"] = type(model).__name__
        report["modules"] = _methods(model)
        origins: dict[str, list[str]] = {}
        names = self.renamed or {name: name for name in self.proving.stored_shapes(path)}
        for source, target in names.items():
            origins.setdefault(target, []).append(source)
        report["unfilled"] = _uneven(origins)
        report["misshapen"] += self._unlike(path, report["misshapen"])
        for target, tensors in origins.items():
            owner = self.proving.owner_of(target, report["modules"])
            if owner and report["modules"][owner]["method"] is None and any(map(SCALES.search, tensors)):
                report["modules"][owner]["method"] = "dequantized while loading"
        report["quantized"] = self.proving.by_module(origins, report["modules"])

    def _unlike(self, path: str, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Tensors of another shape than the parameter that they become; a quantizer may decompress them as is."""
        stored, seen = self.proving.stored_shapes(path), {entry["parameter"] for entry in known}
        both = sorted(self.plain.items())
        pairs = [(name, target) for name, target in both if name in stored and target in self.built]
        unlike = [
            (name, target)
            for name, target in pairs
            if target not in seen and not _taken(stored[name], self.built[target])
        ]
        return [
            {"tensor": name, "parameter": target, "given": stored[name][1], "wanted": self.built[target]}
            for name, target in unlike
        ]

    def _sort(self, info: dict[str, Any], raw: dict[str, Any], report: dict[str, Any]) -> None:
        """Put what from_pretrained has found into the report."""
        numbers = self.proving.draft_layers(raw.get("text_config") or raw)
        left_out = re.compile(rf"{LEFT_OUT.pattern}|(^|\.)layers\.({'|'.join(map(str, numbers)) or 'none'})\.")
        report["missing"] = sorted(info.get("missing_keys") or ())
        for key in sorted(info.get("unexpected_keys") or ()):
            report["left_out" if left_out.search(key) else "unexpected"].append(key)
        for entry in sorted(info.get("mismatched_keys") or (), key=str):
            name, *shapes = entry if isinstance(entry, tuple) else (entry,)
            given, wanted = (list(map(int, shape)) for shape in shapes) if len(shapes) == 2 else (None, None)
            report["misshapen"].append({"tensor": name, "parameter": name, "given": given, "wanted": wanted})
        for name in (*(info.get("conversion_errors") or ()), *(info.get("error_msgs") or ())):
            report["misshapen"].append({"tensor": str(name), "parameter": None, "given": None, "wanted": None})


def _taken(stored: tuple[str, list[int]], wanted: list[int]) -> bool:
    """Whether a parameter takes a stored tensor as it is: of its shape, a single value, or words.

    compressed-tensors builds zero-points one by one, and takes those of pack-quantized in words of 32 bits, along the
    rows, as they are stored (compressed-tensors 0.20.0, compressors/pack_quantized/base.py).
    """
    dtype, given = stored
    if given == wanted or (given in ([], [1]) and wanted in ([], [1])):
        return True
    words = len(given) == len(wanted) and given[1:] == wanted[1:] and given[0] < wanted[0] <= 32 * given[0]
    return dtype == "I32" and words


def _uneven(origins: dict[str, list[str]]) -> list[dict[str, str]]:
    """Parameters fused from experts, of which some expert lacks a tensor that the others have.

    transformers fuses, or decompresses, what it is given, and says nothing of what it is not.
    """
    uneven = []
    for target, tensors in sorted(origins.items()):
        numbers: dict[str, set[int]] = {}
        for tensor in tensors:
            if match := NUMBERED.match(tensor):
                numbers.setdefault(f"{match[1]}*{match[3]}", set()).add(int(match[2]))
        every = set().union(*numbers.values()) if numbers else set()
        for kind, present in sorted(numbers.items()):
            if lost := sorted(every - present):
                uneven.append({"parameter": target, "empty": f"{kind} of {', '.join(map(str, lost))}"})
    return uneven


def _methods(model: Any) -> dict[str, Any]:
    """{module: {class, method}} of every module with parameters or a quantization scheme."""
    found = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        kind = type(module)
        if scheme is None and not any(True for _ in module.parameters(recurse=False)):
            continue
        method = None
        if scheme is not None and getattr(scheme, "weights", None) is not None:
            method = f"{scheme.weights.type}{scheme.weights.num_bits}:{scheme.format}"
        elif kind.__module__.startswith(
            ("transformers.integrations", "gptqmodel", "optimum", "auto_round", "compressed")
        ):
            method = kind.__name__
        found[name] = {"class": kind.__name__, "method": method}
    return found


def main() -> int:
    """Prove the checkpoints of the command line; the exit status."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    proving = _helper("proving")
    args = proving.arguments(__doc__).parse_args()
    proving.settle(args.emulate)

    def begin(args: Any) -> Any:
        proving.one_rank(args, "transformers")
        engine = Transformers(proving.capability(args.emulate) if args.emulate else None, proving)
        return proving.Proofs(engine.version, [engine.prove], STUBS if args.emulate else ())

    return int(proving.main("transformers", "transformers", VERSIONS, args, begin))


if __name__ == "__main__":
    sys.exit(main())
