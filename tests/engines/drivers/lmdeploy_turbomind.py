"""Load a checkpoint with the TurboMind engine of LMDeploy 0.18.0, on the CPU and for all ranks at once.

    lmdeploy_turbomind.py CKPT [--tp N] [--json F] [--out effective.safetensors]

Real is all of LMDeploy's Python: the parallel config, the gates on config.json, the choice of the dtype, the
checkpoint reader, the resolver of weight formats, unpacking, rotary reordering, fusion of q, k, v and of gate, up,
padding, the checks of shapes and of tensor-parallel splits, repacking and the copy of each rank's shard. Stubbed is
the native extension, by turbomind_native.py of the target lmdeploy, which says what it assumes. Nothing is computed.
Report:

    lmdeploy, tp    version of LMDeploy; tensor-parallel size
    backend         "turbomind" or "pytorch": the engine that LMDeploy picks for the checkpoint if it is not told;
                    it asks for the architecture and for smooth_quant and does not try the gates
    error           null, or TurboMind's refusal; without one, also:
    dtype           "float16" or "bfloat16": what TurboMind computes in
    model_format    "awq", "gptq", "compressed-tensors", ... or null
    formats         {format: number of linears}, as resolved from the tensors; "trivial" is not quantized
    missing         [name]: parameters of the model that the checkpoint does not give: biases, which TurboMind then
                    leaves out; anything else that is missing is a refusal
    unexpected      [tensor]: never read, but for weight_shape, inv_freq, the lm_head of tied embeddings and g_idx
    act_order       [tensor]: g_idx that are not in natural order; TurboMind never reads them and computes nonsense
    assumed_zeros   number of quantized linears without zero points: TurboMind takes 8
    lossy_casts     [{tensor, given, stored}]: values of linears changed by a silent cast
    padded          {module: {shape: [N, K], zero: bool}}: linears that TurboMind made larger; whether the values of
                    what it added are all 0; null for a model with experts

--out: float32 weights under checkpoint names, out of the recorded shards of all ranks: of 4-bit linears
(code - zero point) * scale, both widened to float32 first; biases, norms, embeddings. Joined, put back in order, and
padding and repeated heads cropped. It knows the dense Llama, Qwen2 and Qwen3. Nothing is written after a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import reporting

reporting.use_offline_cpu()

import torch  # noqa: E402

native = reporting.module_of_target("lmdeploy/turbomind_native.py")
DataType, Module = native.DataType, native.Module
PACKED_SUFFIXES = (".qweight", ".weight_packed")
HARMLESS_SUFFIXES = (".weight_shape", ".inv_freq")


class Watch:
    """What LMDeploy reads of the checkpoint, and what it makes of it."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        self.read: set[str] = set()
        self.orders: dict[str, torch.Tensor] = {}
        self.linears: dict[str, str] = {}
        self.casts: list[dict[str, str]] = []
        self.assumed_zeros = 0
        self.dtype = torch.float16

    def install(self) -> None:
        """Stand between LMDeploy's loader, its reader and its resolver."""
        from lmdeploy.turbomind import model_loader
        from lmdeploy.turbomind.weight_format import WeightFormatResolver

        create, resolve = model_loader.create_checkpoint, WeightFormatResolver.resolve
        model_loader.create_checkpoint = lambda *args, **options: self._watched(create(*args, **options))

        def watched_resolve(resolver: Any, prefix: Any, **options: Any) -> Any:
            resolved = resolve(resolver, prefix, **options)
            if resolved is not None:
                self._note(prefix.prefix, *resolved)
            return resolved

        WeightFormatResolver.resolve = watched_resolve

    def _watched(self, checkpoint: Any) -> Any:
        self.stored = sorted(checkpoint.keys())
        self.orders = {name: checkpoint.get(name) for name in self.stored if name.endswith("g_idx")}
        for way in ("get", "pop"):
            setattr(checkpoint, way, self._noting(getattr(checkpoint, way)))
        return checkpoint

    def _noting(self, read: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def noting(name: str, **options: Any) -> torch.Tensor:
            tensor = read(name, **options)
            self.read.add(name)
            return tensor

        return noting

    def _note(self, prefix: str, chosen: Any, tensors: dict[str, torch.Tensor]) -> None:
        self.linears[prefix] = chosen.name
        has_zeros = any(chosen.suffix_map[suffix] == "zeros" for suffix in tensors)
        self.assumed_zeros += chosen.zeros_dtype != DataType.TYPE_INVALID and not has_zeros
        for suffix, tensor in tensors.items():
            if tensor.dtype in (torch.float16, torch.bfloat16, torch.float32):
                cast = tensor.to(self.dtype)
                if not torch.equal(cast.double(), tensor.double()):
                    dtypes = {"given": _name(tensor.dtype), "stored": _name(self.dtype)}
                    self.casts.append({"tensor": prefix + suffix, **dtypes})

    def findings(self, path: str, tied: bool) -> reporting.Report:
        """The part of the report about a whole load."""
        kinds = list(self.linears.values())
        harmless = (*HARMLESS_SUFFIXES, "g_idx", *(["lm_head.weight"] if tied else []))
        unread = [name for name in self.stored if name not in self.read]
        return {
            "formats": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "missing": self._missing(path),
            "unexpected": [name for name in unread if not name.endswith(harmless)],
            "act_order": [name for name, order in self.orders.items() if not torch.equal(order, order.sort().values)],
            "assumed_zeros": self.assumed_zeros,
            "lossy_casts": self.casts,
        }

    def _missing(self, path: str) -> list[str]:
        """Parameters of transformers' model of the unquantized architecture that no tensor was read for."""
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        model.tie_weights()
        packed = {f"{name.rpartition('.')[0]}.weight" for name in self.read if name.endswith(PACKED_SUFFIXES)}
        # fused experts: LMDeploy renames X_blocks to X.blocks and X_bias to X.bias, transformers has X and X_bias
        packed |= {name.removesuffix(".blocks") for name in self.read if name.endswith(".blocks")}
        packed |= {f"{name.removesuffix('.bias')}_bias" for name in self.read if name.endswith("_proj.bias")}
        return [name for name, _ in model.named_parameters() if name not in self.read | packed]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load(path: str, tp: int, watch: Watch, report: reporting.Report) -> tuple[Any, list[Module]]:
    """(config of the model, recorded modules of each rank), by TurboMind's own steps short of the tokenizer."""
    from lmdeploy.messages import TurbomindEngineConfig
    from lmdeploy.turbomind import TurboMind, turbomind

    config = TurbomindEngineConfig(tp=tp, max_batch_size=1)
    turbomind.update_parallel_config(config)
    engine = TurboMind.__new__(TurboMind)
    engine.gpu_count, engine.devices = len(config.devices), config.devices
    communicator, loader = engine._from_hf(path, config)
    report["dtype"], report["model_format"] = config.dtype, config.model_format
    watch.dtype = getattr(torch, config.dtype)
    loader.export()
    return loader.model.cfg, [root.children["text_model"] for root in communicator.roots]


class Model:
    """The recorded shards of all ranks as the tensors of a checkpoint."""

    def __init__(self, config: Any, ranks: list[Module]) -> None:
        self.config, self.ranks = config, ranks
        self.padded: dict[str, dict[str, Any]] = {}

    @property
    def is_dense(self) -> bool:
        """Whether it has no experts, whose weights are not put together."""
        return self.ranks[0].at("layers.0.feed_forward.w1w3") is not None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(checkpoint name, whole tensor)."""
        shards = [rank.slots["tok_embeddings"].tensor for rank in self.ranks]
        yield "model.embed_tokens.weight", torch.cat(shards, -1)
        yield from self._norm("norm", "model.norm")
        if not self.config.tie_word_embeddings:
            yield from self._cropped("lm_head", self._split("output", along=0), rows=self.config.vocab_size)
        for index in range(self.config.num_hidden_layers):
            yield from self._layer(f"layers.{index}", f"model.layers.{index}")

    def _layer(self, path: str, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._norm(f"{path}.attention_norm", f"{name}.input_layernorm")
        yield from self._norm(f"{path}.ffn_norm", f"{name}.post_attention_layernorm")
        yield from self._attention(f"{path}.attention", f"{name}.self_attn")
        inner = self.config.intermediate_size
        gate_up = self._linear_shards(f"{path}.feed_forward.w1w3")
        for half, leaf in enumerate(("gate_proj", "up_proj")):
            parts = [{kind: tensor.chunk(2)[half] for kind, tensor in shard.items()} for shard in gate_up]
            yield from self._cropped(f"{name}.mlp.{leaf}", _joined(parts, 0), rows=inner)
        yield from self._cropped(f"{name}.mlp.down_proj", self._split(f"{path}.feed_forward.w2", 1), columns=inner)

    def _attention(self, path: str, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        first = self.ranks[0].at(path)
        size, keys, queries = first.config.head_dim, first.config.kv_head_num, first.config.head_num
        sizes = [heads * size // len(self.ranks) for heads in (queries, keys, keys)]
        fused = self._linear_shards(f"{path}.w_qkv")
        repeated = keys // self.config.num_key_value_heads
        for at, leaf in enumerate(("q_proj", "k_proj", "v_proj")):
            parts = [{kind: tensor.split(sizes)[at] for kind, tensor in shard.items()} for shard in fused]
            whole = _joined(parts, 0)
            for kind, tensor in whole.items():
                rows = tensor.unflatten(0, (-1, size))[:: repeated if at else 1].flatten(0, 1)
                yield f"{name}.{leaf}.{kind}", rows if leaf == "v_proj" else _halves(rows, size)
        for kind, tensor in self._split(f"{path}.wo", 1).items():
            yield f"{name}.o_proj.{kind}", tensor
        for leaf in ("q_norm", "k_norm"):
            for norm, tensor in self._norm(f"{path}.{leaf}", f"{name}.{leaf}"):
                yield norm, _halves(tensor, size)

    def _norm(self, path: str, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        module = self.ranks[0].at(path)
        if module is not None:
            yield f"{name}.weight", module.slots["weight"].tensor

    def _linear_shards(self, path: str) -> list[dict[str, torch.Tensor]]:
        """{weight: float32 [N, K] of a rank, bias: [N]} of every rank."""
        return [_effective(rank.at(path)) for rank in self.ranks]

    def _split(self, path: str, along: int) -> dict[str, torch.Tensor]:
        return _joined(self._linear_shards(path), along)

    def _cropped(
        self, name: str, linear: dict[str, torch.Tensor], rows: int | None = None, columns: int | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Cut off what TurboMind added at the end of N or K."""
        weight = linear["weight"]
        kept = weight[:rows, :columns]
        if kept.shape != weight.shape:
            rest = weight.clone()
            rest[:rows, :columns] = 0
            self.padded[name] = {"shape": list(weight.shape), "zero": not bool(rest.any())}
        yield f"{name}.weight", kept
        if "bias" in linear:
            yield f"{name}.bias", linear["bias"][:rows]


def _joined(parts: list[dict[str, torch.Tensor]], along: int) -> dict[str, torch.Tensor]:
    """Shards of a linear put together; the bias of one that is split along K is whole on every rank."""
    joined = {"weight": torch.cat([part["weight"] for part in parts], along)}
    if "bias" in parts[0]:
        joined["bias"] = parts[0]["bias"] if along else torch.cat([part["bias"] for part in parts])
    return joined


def _effective(linear: Module) -> dict[str, torch.Tensor]:
    """What a kernel multiplies with: {weight: float32 [N, K], bias: [N]}."""
    kinds = {kind: slot.tensor for kind, slot in linear.slots.items()}
    weight = kinds["weight"]
    if linear.slots["weight"].type == DataType.TYPE_UINT4:
        group = linear.config.format.blocks[0]
        nibbles = torch.stack([weight >> shift & 15 for shift in range(0, 32, 4)], -1).flatten(-2)
        scales, zeros = (kinds[kind].float().repeat_interleave(group, 0) for kind in ("scales", "zeros"))
        weight = (nibbles - zeros) * scales
    elif "scales" in kinds:
        raise NotImplementedError(f"effective weights of {linear.slots['weight'].type.name}")
    return {"weight": weight.float().T, **({"bias": kinds["bias"]} if "bias" in kinds else {})}


def _halves(rows: torch.Tensor, head: int) -> torch.Tensor:
    """Put rotary pairs, which are neighbours in TurboMind, half a head apart again."""
    return rows.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    native.stub_native(args.tp)
    import lmdeploy
    from lmdeploy.archs import autoget_backend
    from lmdeploy.utils import get_logger

    get_logger("lmdeploy").setLevel("ERROR")  # it logs to standard output
    report: reporting.Report = {"lmdeploy": lmdeploy.__version__, "tp": args.tp}
    watch, loaded = Watch(), None
    watch.install()
    with reporting.refusal_recorded(report), torch.inference_mode():
        report["backend"] = autoget_backend(args.checkpoint)
        loaded = load(args.checkpoint, args.tp, watch, report)
    if loaded is not None:
        model = Model(*loaded)
        report |= watch.findings(args.checkpoint, model.config.tie_word_embeddings)
        tensors = dict(model.tensors()) if model.is_dense else {}
        report["padded"] = model.padded if model.is_dense else None
        if args.out and tensors:
            reporting.save_float32(tensors, args.out)
    reporting.write(report, args.json)


if __name__ == "__main__":
    main()
