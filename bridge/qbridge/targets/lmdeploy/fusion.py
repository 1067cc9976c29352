"""The linears that LMDeploy's engines build as one.

Sources: lmdeploy 0.18.0, pytorch/models (packed_modules_mapping, stacked_params_mapping) and turbomind/builders.
"""

from __future__ import annotations

from qbridge.architecture.names import FUSED
from qbridge.targets.fusion import Fusion

_W13 = {"w13": ("w1", "w3")}
LMDEPLOY = Fusion(
    FUSED,
    (
        # pytorch/models/internlm2.py; the shared experts of deepseek_v4.py
        (frozenset({"InternLM2ForCausalLM", "DeepseekV4ForCausalLM"}), _W13),
        # pytorch/models/qwen3_5.py, qwen3_5_moe.py, meta_moe.py, interns2_mobius.py
        (
            frozenset(
                {
                    "Qwen3_5ForConditionalGeneration",
                    "Qwen3_5MoeForConditionalGeneration",
                    "InternS2PreviewForConditionalGeneration",
                    "InternS2PreviewForCausalLM",
                    "InternS2MobiusForConditionalGeneration",
                    "InternS2MobiusForCausalLM",
                    "MetaMoeForConditionalGeneration",
                }
            ),
            {"in_proj_ba": ("in_proj_b", "in_proj_a")},
        ),
    ),
)
TURBOMIND = Fusion({**FUSED, **_W13})  # turbomind/builders/ffn.py; models/mixtral.py, internlm2.py
