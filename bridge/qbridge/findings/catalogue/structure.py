"""QB32x: tensors that are grafted, renamed or linked; what a checkpoint holds, not how it is quantized."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

ENTRIES = (
    Code(
        "QB320",
        "no tensor's name begins with the prefix",
        "--rename-prefix OLD=NEW names whole modules at the beginning of names, and no tensor lies in OLD.",
        "Nothing would be renamed, and an engine that looks for NEW would not find it.",
        "--rename-prefix model.language_model=model where names begin with language_model.model",
        "Name a prefix that the checkpoint has; `qbridge inspect` and the index show its names.",
        "transformers 5.24.0, conversion_mapping.py; vllm 0.33.0, model_executor/models/*.py (hf_to_vllm_mapper)",
    ),
    Code(
        "QB321",
        "what is to be grafted is quantized in the original",
        "--graft copies unquantized tensors as they are, and what SRC lacks has codes and scales in ORIGINAL, or "
        "ORIGINAL is SRC itself. A quantized ORIGINAL is taken where all that SRC lacks is unquantized in it.",
        "A quantized tensor without the scales and the block that it belongs to is garbage.",
        "the MTP layer of DeepSeek-V3, whose linears are float8; its norms alone are not",
        "Name the bfloat16, float16 or float32 checkpoint that SRC was quantized from, or convert the quantized one "
        "to dense and name that.",
        "qbridge.plan.graft",
    ),
    Code(
        "QB322",
        "there is nothing to graft",
        "SRC has all that ORIGINAL has: each tensor of ORIGINAL is in SRC, by itself or as a quantized layer.",
        "What SRC may lack for an engine, ORIGINAL lacks as well.",
        "an MTP head that neither of the two has",
        "Leave --graft out, or name an original that has what is missing.",
        "qbridge.plan.graft",
    ),
    Code(
        "QB323",
        "it is not proved that SRC was quantized from the original",
        "Every unquantized tensor of both must have the same bytes, and among them must be one norm of each "
        "quantized layer and one matrix. The facts have the first difference, or what could not be compared.",
        "Tensors of a fine-tune, or of another revision, make a model that nobody has trained: an MTP head of the "
        "base model drafts badly for a fine-tune. Tools that fold scales into norms (AWQ, SmoothQuant) or cast all "
        "floats change what is compared, so that nothing can be proved.",
        "model.layers.0.input_layernorm.weight: its values differ from byte 0 on",
        "Name the very revision that SRC was quantized from; accept it only where you know that it is the original.",
        "qbridge.plan.graft",
        allow="unproved-graft",
    ),
    Code(
        "QB324",
        "config.json speaks of the grafted layers again",
        "The number of layers for multi-token prediction was lost with the layers, and is copied from the original.",
        "An engine builds no draft model where config.json counts no such layers.",
        "num_nextn_predict_layers 1",
        "None needed.",
        "vllm 0.33.0, config/speculative.py (n_predict)",
        severity="note",
    ),
    Code(
        "QB345",
        "config.json names the kinds of layers",
        "Without layer_types a class builds attention in every fourth layer; the tensors are of other layers, and "
        "the key is written as they say.",
        "No loader takes the checkpoint otherwise.",
        "layer_types [full_attention, full_attention]",
        "None needed.",
        "transformers 5.17.0, models/qwen3_5/configuration_qwen3_5.py (__post_init__)",
        severity="note",
    ),
    Code(
        "QB325",
        "files change, and are written",
        "--link links a file of SRC whose every tensor is carried over under its name. Tensors of the other files "
        "change, or are joined by others.",
        "They take time and room on the disk.",
        "model-00001-of-00004.safetensors: model.layers.0.mlp.down_proj.qweight is written anew",
        "None needed; the facts say what changes.",
        "qbridge.plan.links",
        severity="warning",
    ),
    Code(
        "QB326",
        "no file can be linked",
        "--link was asked for, and no file of SRC has only tensors that are carried over under their names, or its "
        "weights lie in no safetensors file, or the file system of DST has no links.",
        "The whole checkpoint would be written, which is what --link is to avoid.",
        "--link --to awq of a GPTQ checkpoint",
        "Leave --link out to have all files written.",
        "qbridge.plan.links; qbridge.write.links",
    ),
    Code(
        "QB327",
        "DST needs SRC: its files are symbolic links",
        "DST lies on another file system than SRC, or hard links are not allowed there, and blocks cannot be shared.",
        "Where SRC is moved, changed or removed, DST is broken, or another model.",
        "SRC on one disk, DST on another",
        "Keep SRC as it is; name a DST on the disk of SRC to have hard links. qbridge reads such a checkpoint with "
        "--allow outside-links.",
        "qbridge.write.links",
        severity="warning",
    ),
    Code(
        "QB335",
        "experts cannot be stored as --experts asks",
        "Unquantized experts are stored fused, as the model class has them in transformers, or one by one, where "
        "both are known of the class. Quantized ones lie as their format stores them.",
        "An engine that knows experts under other names, or in another order, computes something else, or leaves "
        "them uninitialised.",
        "--experts separate for gpt-oss, of which every reader knows fused experts alone",
        "Leave --experts out: they stay as they are, or become what the target needs.",
        "transformers 5.24.0, conversion_mapping.py; vllm 0.33.0, model_executor/layers/fused_moe/routed_experts.py",
    ),
    Code(
        "QB336",
        "unquantized experts are stored as the engine does not take them",
        "Experts of a layer are stored one by one or in tensors that all of them share, by rows or by columns; the "
        "loader of the model's class does not know all of these ways.",
        "It stops, or leaves the experts uninitialised and says so in a line of its log.",
        "block_sparse_moe.experts.gate_up_proj of Mixtral for vLLM, whose loader calls it w13",
        "Convert it: experts are stored as the target takes them, exactly, and restore undoes it.",
        "vllm 0.33.0, model_executor/layers/fused_moe/routed_experts.py (build_expert_params_mapping); "
        "transformers 5.24.0, conversion_mapping.py and quantizers/base.py",
    ),
    Code(
        "QB337",
        "experts are stored under names that the engine does not have",
        "Linears of experts are gate_proj, up_proj and down_proj, or w1, w3 and w2, as the model's class has them, "
        "after the number of their expert and in the block of the class.",
        "The loader finds no parameter of that name: it stops, or leaves the experts uninitialised.",
        "model.layers.1.feed_forward.experts.0.gate_proj of LFM2, which calls it w1",
        "Convert it: experts are written under the names of the class, and restore gives them back theirs.",
        "vllm 0.33.0, model_executor/models/*.py (ckpt_gate_proj_name); transformers 5.24.0, conversion_mapping.py",
    ),
    Code(
        "QB338",
        "the text model lies under a name that the engine's class does not take",
        "The layers' names begin otherwise than those of the model's class and than what its loader renames: an "
        "adapter's or another class's names around them, or those of a multimodal model for a text model alone.",
        "It stops: There is no module or parameter named ..., or KeyError; transformers leaves every weight as it "
        "was initialized and says so in its log.",
        "model.language_model.layers in a Qwen3MoeForCausalLM; base_model.model.model.layers",
        "Rename the beginning; restore gives the names back.",
        "vllm 0.33.0, model_executor/models/utils.py; transformers 5.24.0, conversion_mapping.py; "
        "lmdeploy 0.18.0, pytorch/models/llama.py (load_weights)",
    ),
    Code(
        "QB339",
        "linears are stored as one that the engine's class has one by one",
        "vLLM writes and loads q, k and v, or gate and up, as one linear; the class of this engine looks for each of "
        "them by its name.",
        "It finds none of them: KeyError, or weights that stay as they were initialized.",
        "self_attn.qkv_proj in a Qwen3ForCausalLM for transformers",
        "Store the linears one by one, or serve the checkpoint with vLLM (--to vllm).",
        "transformers 5.24.0, models/*/modeling_*.py; lmdeploy 0.18.0, pytorch/models/llama.py (load_weights) and "
        "turbomind/text_model.py",
    ),
    Code(
        "QB328",
        "grafted tensors were held against their digests alone",
        "The original that qbridge.json names is not there, or cannot be read, so the tensors were compared with the "
        "digests that were taken when they were grafted.",
        "The digests say that nothing has changed since; not that it was the original's.",
        "a graft from ./GLM-4.5, verified in another folder",
        "Name the original: `qbridge verify A B --graft ORIGINAL`.",
        "qbridge.commands.verification",
        severity="warning",
    ),
)
