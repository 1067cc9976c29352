"""The weights that SGLang would compute with after it has loaded checkpoints, as digests of their exact values.

    PYTHON sglang_weights.py CKPT... --emulate sm90 --json F [--tp 1]     with the Python of SGLang 0.5.23

For each checkpoint the line that the prover prints, and of the same load
    weights     {linear: digest}
    undecoded   [module]: of a layout that is not known here
    reached     {module of the checkpoint: [linear]}: whose parameters its tensors were written to
A linear is float64 [out_features, in_features], reassembled over the ranks; those that SGLang builds as one, and
those of its experts, are told apart again under their own names, or as NAME[0], NAME[1]. A code times its scale has
53 significant bits at most, so that every value is exact; a quotient by a global scale is rounded once, as in
qbridge.ir.values.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGETS = Path(__file__).resolve().parents[3] / "bridge/qbridge/targets"
PARTS = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
# Parameters of a quantized matrix, by method.
CODES = frozenset({"weight", "weight_packed", "qweight"})


def by_path(path: Path) -> Any:
    """A module by its path."""
    spec = importlib.util.spec_from_file_location(f"qbridge_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpacked(words: Any, bits: int, axis: int, order: tuple[int, ...] = ()) -> Any:
    """Codes of int32 words along an axis; `order` says at which place of a word each code lies."""
    import torch

    places = order or range(32 // bits)
    codes = torch.stack([(words.long() >> (bits * place)) & (2**bits - 1) for place in places], axis + 1)
    return codes.flatten(axis, axis + 1).double()


def float4(packed: Any) -> Any:
    """Values of e2m1 codes, two in a byte, the lower four bits first."""
    import torch

    table = torch.tensor([*E2M1, *(-value for value in E2M1)], dtype=torch.float64)
    return torch.stack([table[(packed & 15).long()], table[(packed >> 4).long()]], -1).flatten(-2)


def columns_of(values: Any, count: int, index: Any = None) -> Any:
    """[rows, groups] as [rows, count]: one for each column, by its group."""
    import torch

    groups = index.long() if index is not None else torch.arange(count) // (count // values.shape[1])
    return values[:, groups]


def is_ordered(index: Any) -> bool:
    """Whether a g_idx was given, and is not the usual order."""
    return index is not None and index.numel() > 0 and bool((index >= 0).all()) and bool((index > 0).any())


def integers(p: dict[str, Any], columns: int, desc_act: bool) -> Any:
    """Packed integers as compressed-tensors, GPTQ or AWQ has them, [out, in]."""
    if "weight_packed" in p:
        words, scale, zeros, index = p["weight_packed"], p["weight_scale"], p.get("weight_zero_point"), "weight_g_idx"
        bits = 32 * words.shape[1] // columns
        codes = unpacked(words, bits, 1)
        zeros = None if zeros is None else unpacked(zeros, bits, 0)
    elif p["qweight"].shape[0] == columns:
        codes, zeros = unpacked(p["qweight"], 4, 1, AWQ_ORDER).t(), unpacked(p["qzeros"], 4, 1, AWQ_ORDER).t()
        scale, index, bits = p["scales"].t(), "", 4
    else:  # symmetric: the kernel looks at no zero-points
        words, scale, zeros, index = p["qweight"], p["scales"].t(), None, "g_idx"
        bits = 32 * words.shape[0] // columns
        codes = unpacked(words, bits, 0).t()
    order = p.get(index)
    order = order if is_ordered(order) and (desc_act or index == "weight_g_idx") else None
    zeros = 2 ** (bits - 1) if zeros is None else columns_of(zeros, columns, order)
    return (codes - zeros) * columns_of(scale.double(), columns, order)


def outer(scale: Any, rows: int, sizes: list[int]) -> Any:
    """A scale of a whole tensor, of each part, or of each row, as [rows or 1, 1]."""
    import torch

    scale = scale.double().flatten()
    if len(scale) in (1, rows):
        return scale[:, None]
    return torch.repeat_interleave(scale, torch.tensor(sizes))[:, None]


def decoded(p: dict[str, Any], sizes: list[int], columns: int, block: Any, desc_act: bool) -> Any:
    """The parameters of a linear as float64 [out, in]; None for a layout that is not known here."""
    import torch

    codes = p.get("weight", p.get("weight_packed", p.get("qweight")))
    if codes.dtype == torch.int32:
        return integers(p, columns, desc_act)
    if codes.is_floating_point() and codes.element_size() > 1:
        return codes.double()
    scale = p.get("weight_scale", p.get("weight_scale_inv"))
    if scale is None:
        return None
    if codes.dtype == torch.uint8 and scale.dtype == torch.uint8:  # MXFP4
        return float4(codes) * columns_of(torch.ldexp(torch.ones(()), scale.int() - 127).double(), columns)
    if codes.dtype == torch.uint8:
        inner = float4(codes) * columns_of(scale.double(), columns)
        if "weight_global_scale" in p:
            return inner / outer(p["weight_global_scale"], len(inner), sizes)
        return inner * outer(p["weight_scale_2"], len(inner), sizes)
    if scale.dim() == 2 and scale.shape == tuple(-(-side // of) for side, of in zip(codes.shape, block, strict=True)):
        wide = scale.double().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
        return codes.double() * wide[: codes.shape[0], : codes.shape[1]]
    return codes.double() * outer(scale, len(codes), sizes)


class Shares:
    """What a rank holds of the linears of a model: {name: (matrix, axis that ranks share, copies of it)}."""

    def __init__(self, model: Any, quantization: Any) -> None:
        """Decode every linear and every expert."""
        self.found: dict[str, tuple[Any, int, int]] = {}
        self.owners: dict[str, str] = {}  # {linear: the module that holds it}
        self.undecoded: list[str] = []
        self.block = getattr(quantization, "weight_block_size", None) or (128, 128)
        self.desc_act = getattr(quantization, "desc_act", True)
        for name, module in model.named_modules():
            p = {key: value.data for key, value in module.named_parameters(recurse=False)}
            before = set(self.found)
            try:
                if any(key.startswith("w13_") for key in p):
                    self._experts(name, module, p)
                elif getattr(module, "quant_method", None) is not None and CODES & set(p):
                    self._linear(name, module, p)
            except (ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
                self.undecoded.append(f"{name}: {type(error).__name__}: {error}"[:200])
            self.owners |= dict.fromkeys(self.found.keys() - before, name)

    def _linear(self, name: str, module: Any, p: dict[str, Any]) -> None:
        head = hasattr(module, "num_embeddings_per_partition")
        columns = module.embedding_dim if head else getattr(module, "input_size_per_partition", module.input_size)
        whole = [module.num_embeddings_per_partition if head else module.output_size]
        sizes = list(getattr(module, "output_partition_sizes", whole))
        matrix = decoded(p, sizes, columns, self.block, self.desc_act)
        if matrix is None:
            self.undecoded.append(name)
            return
        if head:
            self.found[name] = matrix[: module.num_embeddings], 0, 1
            return
        axis = int(columns != module.input_size or type(module).__name__ == "RowParallelLinear")
        parent, _, leaf = name.rpartition(".")
        parts = PARTS.get(leaf, ())
        copies = getattr(module, "num_kv_head_replicas", 1)
        for number, part in enumerate(matrix.split(sizes)):
            label = f"{parent}.{parts[number]}" if len(parts) == len(sizes) else f"{name}[{number}]"
            repeated = copies if number and leaf == "qkv_proj" else 1
            self.found[name if len(sizes) == 1 else label] = part, axis, repeated

    def _experts(self, name: str, module: Any, p: dict[str, Any]) -> None:
        width, hidden = module.intermediate_size_per_partition, module.hidden_size
        mixtral = ".block_sparse_moe" in name
        for stack, parts, columns in (
            ("w13", ("w1", "w3") if mixtral else ("gate_proj", "up_proj"), hidden),
            ("w2", ("w2",) if mixtral else ("down_proj",), width),
        ):
            own = {key.removeprefix(f"{stack}_"): value for key, value in p.items() if key.startswith(f"{stack}_")}
            sizes = [width, width] if stack == "w13" else [hidden]
            for expert in range(module.num_local_experts):
                one = {key: value[expert] for key, value in own.items() if "input" not in key and "shape" not in key}
                if one.get("weight_packed") is not None and one["weight_packed"].dtype.itemsize == 4:  # [in, out]
                    one = {key: value.t() if value.dim() == 2 else value for key, value in one.items()}
                if "weight_bias" in one:
                    del one["weight_bias"]
                matrix = decoded(one, sizes, columns, self.block, self.desc_act)
                if matrix is None:
                    self.undecoded.append(f"{name}.{expert}.{stack}")
                    continue
                interleaved = "MXFP4" in type(module.quant_method).__name__.upper() and stack == "w13"
                halves = (matrix[0::2], matrix[1::2]) if interleaved else matrix[: sum(sizes)].split(sizes)
                for part, rows in zip(parts, halves, strict=True):
                    self.found[f"{name}.{expert}.{part}"] = rows, int(stack == "w2"), 1


def held_by(engine: Any, proving: Any, path: str, rank: int) -> dict[str, Any]:
    """What a rank reports and holds, from a process of its own: the engine keeps global state."""
    import torch

    with tempfile.NamedTemporaryFile(dir="/dev/shm") as answer:
        child = os.fork()
        if child == 0:
            quiet = os.open(os.devnull, os.O_WRONLY)
            for stream in (1, 2):
                os.dup2(quiet, stream)
            torch.save(loaded(engine, proving, path, rank), answer.name)
            os._exit(0)
        os.waitpid(child, 0)
        if os.path.getsize(answer.name):
            held: dict[str, Any] = torch.load(answer.name, weights_only=False)
            return held
    error = {"type": "Died", "message": f"rank {rank} of {path} died", "at": [], "tensor": None}
    report = proving.empty_report("sglang", engine.version, path, ()) | {"verdict": "refused", "exit": 1}
    return {"report": report | {"error": error}, "found": {}, "undecoded": [], "reached": {}}


def loaded(engine: Any, proving: Any, path: str, rank: int) -> dict[str, Any]:
    """The prover's report of a rank, and the linears of the model that it loaded."""
    import torch

    model, trace = None, None

    def prove(path: str, report: dict[str, Any]) -> None:
        nonlocal model, trace
        model, config, trace = engine.load(path, report, rank)
        engine.conclude(model, path, config, trace, report)

    report = proving.attempted(prove, path, proving.empty_report("sglang", engine.version, path, ()))
    if trace is None:
        return {"report": report, "found": {}, "undecoded": [], "reached": {}}
    with torch.no_grad():
        shares = Shares(model, getattr(model, "quant_config", None))
    return {
        "report": report,
        "found": shares.found,
        "undecoded": shares.undecoded,
        "reached": reached(trace.origins, shares.owners),
    }


def reached(origins: dict[str, set[str]], owners: dict[str, str]) -> dict[str, list[str]]:
    """{module of the checkpoint: linears of the modules whose parameters its tensors were written to}."""
    linears: dict[str, list[str]] = {}
    for linear, owner in owners.items():
        linears.setdefault(owner, []).append(linear)
    found: dict[str, set[str]] = {}
    for parameter, tensors in origins.items():
        for tensor in tensors:
            found.setdefault(tensor.rpartition(".")[0], set()).update(linears.get(parameter.rpartition(".")[0], ()))
    return {module: sorted(names) for module, names in sorted(found.items())}


def reassembled(ranks: list[dict[str, Any]]) -> dict[str, str]:
    """{linear: digest} of all ranks together."""
    import torch

    weights = {}
    for name, (matrix, axis, copies) in ranks[0]["found"].items():
        shared = [rank["found"][name][0] for rank in ranks[::copies]]
        whole = torch.cat(shared, axis) if len(ranks) > 1 else matrix
        shape = "x".join(map(str, whole.shape))
        weights[name] = f"{shape} {hashlib.sha256(whole.contiguous().numpy().tobytes()).hexdigest()}"
    return weights


def main() -> None:
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    proving, prover = by_path(TARGETS / "proving.py"), by_path(TARGETS / "sglang/prover.py")
    args = proving.arguments(__doc__).parse_args()
    proving.settle(args.emulate, SGLANG_USE_CPU_ENGINE="0")
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    gpu = proving.capability(args.emulate)
    engine = prover.SGLang(gpu, args.tp, proving, by_path(TARGETS / "weight_trace.py"))
    with args.json.open("w") as sink:
        for path in args.checkpoints:
            ranks = [held_by(engine, proving, os.path.abspath(path), rank) for rank in range(args.tp)]
            line = proving.merged([rank["report"] for rank in ranks]) | {
                "weights": {},
                "undecoded": [],
                "reached": {},
            }
            if all(rank["found"] for rank in ranks):
                line |= {"weights": reassembled(ranks), "undecoded": ranks[0]["undecoded"]}
                line["reached"] = ranks[0]["reached"]
            sink.write(json.dumps(line, default=str) + "\n")
            sink.flush()


if __name__ == "__main__":
    main()
