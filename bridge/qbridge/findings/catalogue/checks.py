"""QB227 to QB229, QB237, QB238 and QB26x: what `check` says of kernels, and of a checkpoint whatever the engine."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

ENTRIES = (
    Code(
        "QB227",
        "no kernel of this vLLM serves these layers rightly",
        "Every kernel refuses the layer on this GPU, or the one that takes it fails or misreads it later.",
        "vLLM stops while it loads (Failed to find a kernel that can implement the WNA16 linear layer), or at the "
        "first tokens.",
        "AWQ of 8 bits; a bfloat16 model on a kernel that computes in float16 only (Exllama, awq_gemm)",
        "Serve it in another dtype, choose another GPU or a newer vLLM, or convert it for this target.",
        "vllm 0.33.0, 0.23.0 and 0.5.4, model_executor/kernels/linear and layers/quantization "
        "(qbridge.targets.vllm.kernels)",
    ),
    Code(
        "QB228",
        "vLLM halves the groups of these experts itself, for a slower kernel",
        "A rank's share of the experts is no whole number of groups; Marlin refuses, and the fallback MoeWNA16 "
        "repeats scales until groups fit.",
        "The values are right; the kernel is slower than Marlin.",
        "moe_intermediate_size 1536 at tp 8 in groups of 128: 192 = 3 groups of 64",
        "None needed; --regroup with the smaller size writes it so that Marlin takes it.",
        "vllm 0.33.0, model_executor/layers/quantization/moe_wna16.py and auto_gptq.py (get_quant_method)",
        severity="note",
    ),
    Code(
        "QB229",
        "vLLM splits the blocks of these experts itself, for its Triton kernels",
        "A rank's share of the experts is no whole number of float8 blocks; vLLM repeats scales for smaller ones.",
        "The values are right. Only Triton kernels take such blocks, on a GPU of compute capability 8.9 or newer; on "
        "an older one vLLM stops: No FP8 MoE backend supports the deployment configuration.",
        "moe_intermediate_size 768 at tp 4 in blocks of 128 x 128: 192 = 3 blocks of 64",
        "None needed on such a GPU; --pad makes whole blocks, which other kernels take as well.",
        "vllm 0.33.0, model_executor/layers/fused_moe/oracle/fp8.py (refine_fp8_moe_block_shape)",
        severity="warning",
    ),
    Code(
        "QB237",
        "there is no table of this version, and the releases around it differ on this model",
        "What changed between the two releases touches the model, and nobody has read in which version it changed.",
        "It is not known whether this version serves it.",
        "vllm@0.28 for GPTQ whose linears fit no tile: 0.23 refuses it, 0.33 pads it",
        "Take one of the two releases. --allow assumed-version takes the answer of the nearer one.",
        "qbridge.targets.registry",
        allow="assumed-version",
    ),
    Code(
        "QB238",
        "there is no table of this version; it is assumed to do what the releases around it do",
        "Both releases find the same of this model, so a version between them is taken to do so, too.",
        "It is an assumption: nobody has read this version.",
        "vllm@0.28, from 0.23 and 0.33",
        "Prove it by loading the model, or take one of the two releases.",
        "qbridge.targets.registry",
        severity="warning",
    ),
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
        "qbridge.architecture.from_config",
        severity="warning",
    ),
    Code(
        "QB262",
        "config.json alone says too little",
        "There are no weights, and config.json does not name an architecture, dims and scheme that qbridge knows.",
        "Nothing can be said about shapes.",
        "an architecture that is not in qbridge's table",
        "Check the checkpoint with its weights (headers are enough).",
        "qbridge.architecture.from_config",
    ),
    Code(
        "QB265",
        "the engine's transformers does not know these words of config.json, or misses them",
        "transformers 5 writes rope_parameters, dtype and for some experts num_local_experts; transformers 4 reads "
        "rope_theta and rope_scaling, before 4.56 torch_dtype, and num_experts. Some engines ask for keys that it no "
        "longer writes: moe_layer_freq, full_attention_interval.",
        "The engine stops while it builds the model (TypeError, KeyError, AttributeError), or takes its default "
        "angles or sizes.",
        "a checkpoint saved by transformers 5 for LMDeploy 0.18, which brings transformers 4",
        "Convert it: the same is said in the engine's own words.",
        "lmdeploy 0.18.0 with transformers 4.57.6, tried there; models/*/configuration_*.py of 4.57.6 and 5.24.0",
    ),
)
