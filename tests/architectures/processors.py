"""Files of a processor and a tokenizer, for classes that vLLM builds with their processor."""

TOKENS = ["<unk>", "<s>", "</s>", "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>"]
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": number, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for number, token in enumerate(TOKENS)
    ],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": dict(zip(TOKENS, range(len(TOKENS)), strict=True)), "unk_token": "<unk>"},
}
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "</s>",
    "unk_token": "<unk>",
    "image_token": "<|image|>",
    "image_break_token": "<|video|>",
    "image_end_token": "<|end_of_image|>",
}
PROCESSORS = {
    "Glm46VForConditionalGeneration": {
        "preprocessor_config.json": {"image_processor_type": "Glm46VImageProcessor"},
        "processor_config.json": {"processor_class": "Glm46VProcessor"},
        "video_preprocessor_config.json": {"video_processor_type": "Glm46VVideoProcessor"},
    },
    "LightOnOcrForConditionalGeneration": {
        "preprocessor_config.json": {"image_processor_type": "PixtralImageProcessor", "patch_size": 14},
        "processor_config.json": {
            "processor_class": "LightOnOcrProcessor",
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
    },
}


def files(architecture):
    """{name: content} of what lies beside the weights of a class; nothing for most."""
    own = PROCESSORS.get(architecture)
    return {"tokenizer.json": TOKENIZER, "tokenizer_config.json": SETTINGS, **own} if own else {}
