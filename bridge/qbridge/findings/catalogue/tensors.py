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
