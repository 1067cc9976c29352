"""Lines as engines print them, their own f-strings with values in them, in the order of the targets' messages."""

LMDEPLOY = [
    "KeyError: 'model.layers.30.mlp.down_proj.weight_scale'",
    "KeyError: 'model.layers.0.self_attn.o_proj.weight_packed'",
    "KeyError: 'model.layers.3.mlp.gate_up_proj.weight_scale_inv'",
    "KeyError: 'model.layers.17.self_attn.k_proj.k_scale'",
    "KeyError: 'language_model.model.layers.2.mlp.down_proj.input_scale'",
    "KeyError: 'model.layers.1.self_attn.qkv_proj.qweight'",
    "KeyError: 'lm_head.weight_scale'",
    "ValueError: Only compressed-tensors `pack-quantized` format is supported.",
    "ValueError: Compressed-tensors activation quantization is not supported.",
    "ValueError: Unsupported compressed-tensors `group_size`: expected 32, got 128.",
    "ValueError: Compressed-tensors config must contain exactly `config_groups.group_0`.",
    "ValueError: compressed-tensors dispatch requires a non-empty canonical module prefix",
    "ValueError: Only compressed-tensors INT4 group-size 32 is supported, got bits=8, group_size=128",
    "TypeError: Unsupported quant method: gptq",
    'ValueError: Invalid quant dtype "fp8" resolved from model config; expected a torch.dtype attribute on torch.',
    "AssertionError: Attempted to load weight (torch.Size([192, 64])) into parameter (torch.Size([256, 64]))",
    "AssertionError: unsupported quant config: {'bits': 4, 'desc_act': True, 'quant_method': 'gptq', 'sym': True}",
    "AssertionError: unsupported quant_config: {'quant_method': 'smooth_quant', 'quant_dtype': 'int8'}",
    'ValueError: Unsupported group_size=64 for model_format="awq". Supported group_size values: 128.',
    'AssertionError: model format is "gptq" but group_size is 32. Currently, only 128 is supported',
    "AssertionError: compressed-tensors only supports pack-quantized format, but got int-quantized",
    "AssertionError: pack-quantized requires 4-bit int, but got 8-bit int",
    'AssertionError: mismatched quant method: user input "gptq" vs model quant_config "awq"',
    "ValueError: no weight format accepts tensors at 'model.layers.0.mlp.down_proj': got ['.qweight', '.scales'], "
    "tried ['awq', 'trivial']",
    "KeyError: \"no checkpoint tensors found at prefix 'model.layers.5.mlp.up_proj' (candidate suffixes: "
    "['.bias'])\"",
    "RuntimeError: w2: sm80_16816 requires K >= 128, K % 256 == 0, N >= 8, and N % 8 == 0; got K=18944 N=3584",
    "AssertionError: TP split: w2.zeros dim 0 has size 37, not divisible by tp=2.",
]
VLLM = [
    "ValueError: There is no module or parameter named 'model.layers.0.mlp.gate.qweight' in Qwen3MoeForCausalLM. The "
    "available parameters belonging to model.layers.0.mlp.gate (ReplicatedLinear) are: {'weight'}",
    "KeyError: 'layers.3.mlp.gate.qweight'",
    "KeyError: 'vision_tower.encoder.layers.0.mlp.fc1.weight_packed'",
    "KeyError: 'layers.0.self_attn.qkv_proj.weight_scale'",
    "KeyError: 'layers.61.mlp.experts.w2_weight'",
    "ValueError: Following weights were not initialized from checkpoint: {'model.layers.0.mlp.down_proj.weight'}",
    "FileNotFoundError: Weight files referenced in index but missing: {'/m/model-00002-of-00003.safetensors'}",
    '  File "/opt/venv/lib/python3.12/site-packages/vllm/model_executor/model_loader/weight_utils.py", line 1538\n'
    "AssertionError: Attempted to load weight (torch.Size([512, 96])) into parameter (torch.Size([512, 768]))",
    "AssertionError: Tried to load weights of size torch.Size([8, 4])to a parameter of size torch.Size([8, 32])",
    "RuntimeError: NVFP4 weight_scale for layer 'model.layers.0.mlp.gate' was never loaded (still NaN). The "
    "checkpoint likely stores this layer as BF16 (not FP4).",
    "ValueError: Detected some but not all shards of model.layers.0.linear_attn.in_proj_qkvz are quantized. All "
    "shards of fused layers to have the same precision.",
    "ValueError: Found different quantization schemes for the shards of model.layers.1.self_attn.qkv_proj. vLLM "
    "requires all to use the same scheme.",
    "ValueError: Found a different quantization schemes for ['q_proj', 'k_proj', 'v_proj'] in "
    "model.layers.1.self_attn.qkv_proj. vLLM requires all to use the same scheme.",
    "ValueError: Fused module 'model.layers.0.self_attn.qkv_proj' requires consistent quant config for ['q_proj']",
    "ValueError: Mixed quant_algo within fused layer model.layers.2.self_attn.qkv_proj: {'FP8', 'NVFP4'}. All shards "
    "must use the same quantization.",
    "ValueError: All MoE projections need to have same quantization scheme but found multiple",
    "NotImplementedError: No compressed-tensors compatible scheme was found for layer_name='model.layers.0.mlp', "
    "weight_quant=QuantizationArgs(num_bits=3), input_quant=None, output_quant=None, format='int-quantized'",
    "ValueError: Compressed-tensors group/dynamic activation ordering (actorder=<ActivationOrdering.GROUP: 'group'>) "
    "is no longer supported. Use a checkpoint with static/weight activation ordering or without activation ordering.",
    "ValueError: GPTQ group activation ordering (desc_act=True) is no longer supported. Use a checkpoint with static "
    "activation ordering or desc_act=False.",
    "DeprecationWarning: Sparsity support has been removed from compressed-tensors. Please use a model without "
    "sparsity configuration.",
    "NotImplementedError: Currently supported kv cache quantization is num_bits=8, type=float, however received "
    "num_bits=4, type=int",
    "NotImplementedError: Invalid strategy for compressed-tensors KV cache. Expected strategies: ['tensor'], found "
    "strategy: channel",
    "NotImplementedError: Only support symmetric scaling factor for compressed-tensors KV cache. However found "
    "symmetric: False",
    "ValueError: For Fused MoE layers, only format: pack-quantized and bits: [4, 8] is supported but got format: "
    "pack-quantized and bits: 3",
    "RuntimeError: Unsupported FusedMoe scheme: num_bits=4 type='float', num_bits=8 type='int'",
    "ValueError: For INT8 Fused MoE layers, we require channelwise, dynamic per token quantization. Found "
    "num_bits=8 strategy='tensor', None",
    "ValueError: For FP8 Fused MoE layer, we require either per tensor or channelwise, dynamic per token "
    "quantization.",
    "ValueError: ModelOpt currently only supports: ['FP8', 'NVFP4'] quantizations in vLLM. Please check the "
    "`hf_quant_config.json` file for your model's quant configuration.",
    "ValueError: Unsupported ModelOpt FP8 quant_algo for vLLM: FP8_X. Supported: FP8 / FP8_PB_WO.",
    "ValueError: Unsupported ModelOpt NVFP4 quant_algo: NVFP4_AWQ. Supported: NVFP4 / W4A16_NVFP4.",
    "ValueError: Unsupported backend: auto_round:gptq:exllamav2, currently only support ['auto', 'gptq', 'marlin'].",
    "ValueError: Unsupported weight_bits: 6, currently only support [2, 3, 4, 8].",
    "ValueError: moe_wna16 only support gptq and awq.",
    "ValueError: Weight input_size_per_partition = 14784 is not divisible by min_thread_k = 128. Consider reducing "
    "tensor_parallel_size or running with --quantization gptq.",
    "ValueError: Weight output_size_per_partition = 1184 is not divisible by  min_thread_n = 64. Consider reducing "
    "tensor_parallel_size or running with --quantization gptq.",
    "ValueError: Weight input_size_per_partition = 14784 is not divisible by group_size = 128.Consider reducing "
    "tensor_parallel_size or running with --quantization gptq.",
    " MarlinLinearKernel cannot implement due to: in_features per partition 7392 is not divisible by group_size = "
    "128.",
    "ValueError: Weight input_size_per_partition=14784 is not divisible by group_size=128. This happens when "
    "tensor_parallel_size splits the layer input into shards that are not a whole number of quant groups.",
    "ValueError: Weight input_size_per_partition=320 for layer 'model.layers.0.mlp.down_proj' is not divisible by "
    "group_size=128. This happens when tensor_parallel_size splits the layer input into shards that are not a whole",
    "ValueError: The input size is not aligned with the quantized weight shape. This can be caused by too large "
    "tensor parallel size.",
    "ValueError: The output size is not aligned with the quantized weight shape. This can be caused by too large "
    "tensor parallel size.",
    "ValueError: Marlin does not support group_size = 256. Only group_sizes = [-1, 32, 64, 128] are supported.",
    "ValueError: Marlin does not support weight_bits = uint3b4. Only types = [ScalarType.uint4b8] are supported (for "
    "group_size = 128, device_capability = 80, zp = False).",
    "ValueError: Failed to find a kernel that can implement the WNA16 linear layer. Reasons: \n MacheteLinearKernel "
    "requires capability 90, current compute capability is 80",
    "ValueError: Failed to find a kernel that can implement the ScaledMM linear layer. Reasons: \n",
    "ValueError: Failed to find a kernel that can implement the NVFP4 linear layer. Reasons: \n",
    "NotImplementedError: No WNA16 MoE backend supports the deployment configuration.",
    "ValueError: Weight input_size_per_partition = 2784 is not divisible by weight quantization block_k = 64.",
    "ValueError: Weight output_partition_size = 96 is not divisible by weight quantization block_n = 128.",
    "ValueError: The output_size of gate's and up's weight = 192 is not divisible by weight quantization block_n = "
    "128.",
    "ValueError: The input_size of down's weight = 192 is not divisible by weight quantization block_k = 64.",
    "ValueError: CompressedTensors WNA16 MoE with static group scales requires the MoE intermediate size per "
    "tensor-parallel partition (192) to be divisible by group_size (128). Scale groups would otherwise cross TP",
    "ValueError: CompressedTensors WNA16 MoE requires hidden_size (2880) to be divisible by group_size (128).",
    "ValueError: Asymmetric quantization not supported for num_bits = 3. Supported: [4, 8]",
    "ValueError: Pack-quantized format requires group quantization or channelwise quantization, but found no group "
    "size and strategy is not channelwise.",
    "ValueError: Unsupported quantization config: bits=4, sym=False",
    "ValueError: Unsupported num_bits = 8. Supported: dict_keys([4]). For 8-bit AWQ, use Marlin backend by setting "
    "backend='awq:marlin' or backend='marlin'.",
    "ValueError: Currently, only 4-bit weight quantization is supported for AWQ, but got 8 bits.",
    "ValueError: Currently, only 2/3/4/8-bit weight quantization is supported for GPTQ, but got 5 bits.",
    "ValueError: The block-wise quantization only supports dynamic activation scheme for now, but got static "
    "activation scheme.",
    "ValueError: Quantization method specified in the model config (compressed-tensors) does not match the "
    "quantization method specified in the `quantization` argument (gptq).",
    "ValueError: Unknown quantization method: marlin. Must be one of ['awq', 'fp8'].",
    "ValueError: Cannot find any of ['desc_act'] in the model's quantization config.",
    "ValueError: Cannot find the config file for awq",
    "ValueError: Missing 'quant_algo' in quantization config",
    'ValueError: ("The quantization method %s is deprecated and will be removed in future versions of vLLM. To '
    "bypass, set `--allow-deprecated-quantization`.\", 'fbgemm_fp8')",
    "ValueError: torch.bfloat16 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
    "ValueError: The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. Current "
    "capability: 75.",
    "RuntimeError: Quantization scheme is not supported for the current GPU. Min capability: 90. Current "
    "capability: 86.",
]
_TORCH = "<class 'gptqmodel.nn_modules.qlinear.torch.TorchLinear'>"
GPTQMODEL = [
    f"NotImplementedError: {_TORCH} only supports `[4, 8]` bits: actual bits = `3`",
    f"NotImplementedError: {_TORCH} only supports `[-1, 32, 64, 128]` group_size: actual group_size = `8`",
    f"NotImplementedError: {_TORCH} only supports symmetric `[True]` quantization: actual sym = `False`",
    f"NotImplementedError: {_TORCH}: `in_features`: 4100 must be divisible by [8].",
    f"NotImplementedError: {_TORCH}: `out_features`: 4100 must be divisible by [8].",
    "ValueError: Format: Loading of a sym=False model with format=FORMAT.GPTQ is only supported if produced by "
    "gptqmodel version >= 0.9.0",
    "ValueError: QuantizeConfig: `is_marlin_format` is no longer supported. Replace it with an explicit `format` "
    "field.",
    "ValueError: GPT-QModel currently does not support loading of activation quantized models. Detected unsupported "
    "metadata: compressed-tensors input_activations.",
    "ValueError: QuantizeConfig: Unknown quantization format: `marlin_24`.",
    "ValueError: QuantizeConfig: Unknown quantization method: `aqlm`.",
    "ValueError: Missing required quantized weights in checkpoint '/models/x': model.layers.0.mlp.gate_proj.qweight",
    "ValueError: Loading of .bin files are not allowed due to safety. Please convert your model to safetensor or "
    "pytorch format.",
]
TRANSFORMERS = [
    "ValueError: Unknown quantization type, got modelopt - supported types are: ['awq', 'bitsandbytes_4bit']",
    "ImportError: Loading a GPTQ quantized model requires gptqmodel (`pip install gptqmodel`) library.",
    "ImportError: Loading a GPTQ quantized model requires optimum (`pip install optimum`)",
    "ImportError: Loading an AWQ quantized model requires gptqmodel. Please install it with `pip install gptqmodel`",
    "ImportError: Loading an AutoRound quantized model requires auto-round library (`pip install 'auto-round>=0.5'`)",
    "ImportError: Using `compressed_tensors` quantized models requires compressed-tensors>=0.15.0: `pip install ...`",
    "ValueError: Only support quantization to [2,3,4,8] bits but found 5",
    "AttributeError: 'FalconLinear' object has no attribute 'weight'",
    "ValueError: actorder='group' has been removed. Consider using actorder='weight' or actorder=None instead.",
    "ValueError: Support for compression config of type <class 'dict'> is no longer supported. If you are attempting "
    "to use a Sparse24 model, note that the Sparse24 format is not longer supported by as of "
    "`compressed-tensors>0.14.0`",
    "AssertionError: Asymmetric quant requires zero-point values",
    "ValueError: Invalid group size 0. Use group_size > 0 for strategy='group' and group_size = -1 for 'channel'",
    "ValueError: group_size requires strategy to be set to 'group'",
    "ValueError: Cannot perform static token quantization, please use `dynamic=True`",
    "ValueError: Weight shape (4100, 4096) not divisible by scale grid (33, 32).",
]
_SGLANG = '  File "/opt/venv/lib/python3.12/site-packages/sglang/srt/model_loader/loader.py", line 9\n'
SGLANG = [
    "NotImplementedError: No compressed-tensors compatible scheme was found.",
    "ImportError: Other method (CompressedTensorsW4A16Sparse24) is not supported now",
    "NotImplementedError: The W8A8Int8 Fused MoE scheme is implemented only for NPU for now.",
    "Parameter model.layers.0.mlp.gate_up_proj.weight_scale not found in params_dict",
    f"{_SGLANG}Weight input_size_per_partition = 1152 is not divisible by weight quantization block_k = 64.",
    f"{_SGLANG}ValueError: Weight input_size_per_partition = 336 is not divisible by min_thread_k = 128. Consider",
    f"{_SGLANG}ValueError: Weight output_size_per_partition = 1 is not divisible by  min_thread_n = 64. Consider",
    f"{_SGLANG}ValueError: Weight input_size_per_partition = 336 is not divisible by group_size = 64. Consider",
    "ValueError: Unsupported packing_format: auto_round:llm_compressor, currently only support  ['auto_round']",
    f"{_SGLANG}ValueError: Detected some but not all shards of model.layers.0.mlp.gate_up_proj are quantized. All",
]
MLX = [
    "ValueError: Received 21 parameters not in model: ",
    "ValueError: Missing 7 parameters: ",
    "ValueError: Expected shape (256, 32) but received shape (256, 64) for parameter layers.0.up_proj.weight",
    "ValueError: Found model.layers.0.mlp.up_proj.g_idx in weights. Models with non-contiguous group indices (g_idx) "
    "are not currently supported. Please use a model without g_idx or re-quantize the model using mlx_lm.convert.",
    "ValueError: Only bits=8 is supported for AutoAWQ/GPTQ models.",
    "ValueError: unsupported compressed-tensors format 'int-quantized'; dequantize to bf16 before converting",
    "ValueError: Unsupported modelopt quant_algo: FP8",
    "ValueError: Model type mpt not supported.",
    "ValueError: Cannot infer the quantization mode of model.layers.0.mlp.up_proj: 7 bits with group size 16.",
    "ValueError: [quantize] The requested group size 256 is not supported. The supported group sizes are 32, 64, and "
    "128.",
]
LINES = [*LMDEPLOY, *VLLM, *SGLANG, *GPTQMODEL, *TRANSFORMERS, *MLX]

UNRELATED = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB",
    "RuntimeError: CUDA error: device-side assert triggered",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "ConnectionRefusedError: [Errno 111] Connection refused",
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='huggingface.co', port=443): Max retries exceeded",
    "huggingface_hub.errors.GatedRepoError: 401 Client Error. Cannot access gated repo for url",
    "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error: Repository Not Found",
    "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
    "TypeError: forward() got an unexpected keyword argument 'cache_position'",
    "KeyError: 'prompt'",
    "KeyError: 'config.scales'",
    "KeyError: 'weight_scale'",
    "KeyError: 'messages'",
    "KeyError: 'model'",
    "KeyError: 'optimizer.state.0.exp_avg'",
    "AttributeError: 'NoneType' object has no attribute 'weight'",
    "AttributeError: 'LlamaTokenizer' object has no attribute 'chat_template'",
    "IndexError: list index out of range",
    "ValueError: too many values to unpack (expected 2)",
    "ValueError: invalid literal for int() with base 10: 'four'",
    "ValueError: Tokenizer class TokenizersBackend does not exist or is not currently imported.",
    "ValueError: The model's max seq len (131072) is larger than the maximum number of tokens that can be stored in "
    "KV cache (24560). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the "
    "engine.",
    "ValueError: Total number of attention heads (14) must be divisible by tensor parallel size (4).",
    "AssertionError: 7 is not divisible by 2",
    "AssertionError",
    "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
    "ImportError: cannot import name 'LlamaFlashAttention2' from 'transformers.models.llama.modeling_llama'",
    "ModuleNotFoundError: No module named 'flash_attn'",
    "ERROR: Could not find a version that satisfies the requirement vllm==9.9.9 (from versions: none)",
    "ERROR: pip's dependency resolver does not currently take into account all the packages that are installed.",
    "error: subprocess-exited-with-error: python setup.py bdist_wheel did not run successfully",
    "OSError: [Errno 98] Address already in use",
    "OSError: [Errno 28] No space left on device",
    "PermissionError: [Errno 13] Permission denied: '/root/.cache'",
    "FileNotFoundError: [Errno 2] No such file or directory: 'config.json'",
    "json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
    "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:2251, unhandled cuda error",
    "ray.exceptions.RaySystemError: System error: No module named 'vllm'",
    "RuntimeError: Can not found rewrite for architectures: ['FooForCausalLM']",
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x4096 and 5120x4096)",
    "RuntimeError: Error(s) in loading state_dict for Linear: size mismatch for weight",
    "jinja2.exceptions.TemplateError: Conversation roles must alternate user/assistant/user/assistant/...",
    "openai.BadRequestError: Error code: 400 - {'object': 'error', 'message': 'max_tokens is too large: 40000.'}",
    "Killed",
    "Segmentation fault (core dumped)",
    "zsh: command not found: lmdeploy",
    "lmdeploy serve api_server: error: unrecognized arguments: --tensor-parallel-size 2",
    "INFO 11-28 10:00:00 [gpu_model_runner.py:2338] Starting to load model /models/Qwen2-72B-Instruct-GPTQ-Int4...",
    "The quick brown fox jumps over the lazy dog.",
]
