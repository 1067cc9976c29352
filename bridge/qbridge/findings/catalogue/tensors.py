"""QB0xx about tensors that belong to no quantized layer."""

from __future__ import annotations

from qbridge.findings.catalogue.code import UNREADABLE, Code

ENTRIES = (
    Code(
        "QB018",
        "tensors that nobody claims",
        "A tensor is part of no layer that is read here, and is codes, a scale or a zero-point by its dtype "
        "or name, or a float tensor beside a layer's codes.",
        "Engines would take codes for weights and drop scales; what lies beside codes may change the mathematics.",
        "model.layers.0.mlp.experts.gate_up_proj F8_E4M3 with gate_up_proj_scale",
        "Remove what does not belong there; a float tensor beside codes that the target wants can be carried over.",
        "qbridge.architecture.names",
        UNREADABLE,
        allow="unknown-tensors",
    ),
    Code(
        "QB350",
        "AWQ's scales of activations are stored",
        "Where no gate stands beside an MLP's activation, AWQ multiplies the next linear's weights by scales and "
        "divides the activation's output by them; the checkpoint holds these divisors.",
        "Without the division every MLP computes something else. Of the engines here only transformers with "
        "GPTQModel divides, for the classes that it lists; the others stop at the tensor, or leave it out.",
        "transformer.blocks.0.ffn.act.scales of MPT; model.layers.0.mlp.act_scales",
        "Serve it with the engine that it was made for, or quantize it without scaling activations.",
        "transformers 4.57.6, integrations/awq.py (AWQ_SCALES_MAPPINGS); autoawq 0.2.9, awq/modules/act.py",
        UNREADABLE,
    ),
    Code(
        "QB039",
        "parameters without a weight of their own are carried over",
        "Float tensors, masks and indices of modules that are not quantized: layer scales, class embeddings, gates, "
        "position tables, fused experts that nobody quantized.",
        "They are part of the architecture, so every target gets them as they are, under their own names.",
        "vision_tower.encoder.layer.0.lambda_1",
        "None needed.",
        "transformers 5.24.0, models/*/modeling_*.py",
        severity="note",
    ),
)
