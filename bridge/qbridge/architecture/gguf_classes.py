"""The model classes that have names in GGUF here: what llama.cpp calls their modules, and how its files differ.

Sources: gguf 0.19.0, constants.py (MODEL_ARCH_NAMES, TENSOR_NAMES) and tensor_mapping.py; llama.cpp b10359,
conversion/llama.py (LlamaModel.permute), qwen.py, gemma.py, gpt_oss.py and deepseek.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qbridge.architecture.gguf_experts import deepseek_numbers, gpt_oss_numbers, mixtral_numbers, qwen3_moe_numbers
from qbridge.architecture.gguf_gemma import gemma3_numbers
from qbridge.architecture.gguf_rope import Number, rope_numbers

Numbers = Callable[[Mapping[str, Any], int], dict[str, Number]]

TOP: Mapping[str, str] = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
_LATENT: Mapping[str, str] = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
ROUTER = "ffn_gate_inp"


@dataclass(frozen=True, slots=True)
class GgufClass:
    """What llama.cpp calls a class, and how its files differ from those of transformers.

    `layer` has the names of modules of a layer that are called otherwise than in most classes, `tensors` those of
    tensors that are no weight or bias of a module. `experts` is their block, `leaves` what their gate, up and
    down are called. The rows of q and k of each head take turns (`pairs_rows`); the weights of norms are those plus 1
    (`adds_one`); kv_b_proj is two tensors (`splits_heads`). `activation` is what llama.cpp computes between gate and
    down, `numbers` gives the metadata of the class beyond those that all have.
    """

    name: str
    layer: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    experts: str = "mlp.experts"
    leaves: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    pairs_rows: bool = False
    adds_one: bool = False
    splits_heads: bool = False
    activation: tuple[str, ...] = ("silu", "swish")
    numbers: Numbers = rope_numbers

    @property
    def modules(self) -> Mapping[str, str]:
        """Names of the modules of a layer."""
        return {**_LAYER, **self.layer}

    @property
    def stacks(self) -> Mapping[str, str]:
        """Names of the stacks of experts, by what a linear of one expert is called."""
        return dict(zip(self.leaves, STACKS, strict=True))


_DEEPSEEK = GgufClass(
    "deepseek2",
    layer=_LATENT,
    tensors={"mlp.gate.e_score_correction_bias": "exp_probs_b.bias"},
    splits_heads=True,
    numbers=deepseek_numbers,
)
CLASSES: Mapping[str, GgufClass] = {
    "LlamaForCausalLM": GgufClass("llama", pairs_rows=True),
    "MistralForCausalLM": GgufClass("llama", pairs_rows=True),
    "MixtralForCausalLM": GgufClass(
        "llama",
        layer={"block_sparse_moe.gate": ROUTER},
        experts="block_sparse_moe.experts",
        leaves=("w1", "w3", "w2"),
        pairs_rows=True,
        numbers=mixtral_numbers,
    ),
    "Qwen2ForCausalLM": GgufClass("qwen2"),
    "Qwen3ForCausalLM": GgufClass("qwen3"),
    "Qwen3MoeForCausalLM": GgufClass("qwen3moe", numbers=qwen3_moe_numbers),
    "Gemma3ForCausalLM": GgufClass(
        "gemma3",
        adds_one=True,
        layer={
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        activation=("gelu_pytorch_tanh",),
        numbers=gemma3_numbers,
    ),
    "GptOssForCausalLM": GgufClass(
        "gpt-oss",
        layer={"post_attention_layernorm": "post_attention_norm", "mlp.router": ROUTER},
        tensors={"self_attn.sinks": "attn_sinks.weight"},
        numbers=gpt_oss_numbers,
    ),
    "DeepseekV2ForCausalLM": _DEEPSEEK,
    "DeepseekV3ForCausalLM": _DEEPSEEK,
}
