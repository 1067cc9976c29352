"""The tokenizer, and the files beside it, say to the target's transformers what they say to the source's."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import judges
import pytest
from engine import HERE, ROOT

import qbridge

pytestmark = pytest.mark.engine

SOURCE = ROOT / "fixtures/compressed_tensors/llama_w8a8/model"
TARGETS = ("lmdeploy", "vllm", "transformers")
ADDED = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|vision_start|>"]
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = ["The quick brown fox jumps over 13 lazy dogs.", "def f(x):\n    return x ** 2  # squared", "naïve café"] * 9
CORPUS += ["Здравствуй, мир! 你好\uff0c世界。こんにちは", "a\tb\r\n c", "0123456789 3.14159 1e-5"] * 9
# Processors and generation as repositories have them; neither is about weights.
BESIDE: dict[str, dict[str, Any]] = {
    "generation_config.json": {
        "bos_token_id": 1,
        "eos_token_id": [2, 5],
        "pad_token_id": 0,
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
    },
    "preprocessor_config.json": {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": 28, "width": 28},
        "size": {"shortest_edge": 28},
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    },
    "processor_config.json": {"processor_class": "LlavaProcessor", "patch_size": 14},
}


def strings() -> list[str]:
    """200 strings: text, code, scripts, spaces, special tokens in the middle, and characters out of the corpus."""
    generator = random.Random(7)
    words = (
        [word for line in CORPUS[::9] for word in line.split(" ")]
        + ADDED
        + ["", " ", "\n\n", "\U0001d518", "🦊", "́", "\u200b"]
    )
    ranges = [(0x20, 0x7F), (0xA0, 0x17F), (0x400, 0x45F), (0x4E00, 0x4F00), (0x1F600, 0x1F640)]
    made = [
        generator.choice(["", " "]).join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(120)
    ]
    for _ in range(80):
        first, last = generator.choice(ranges)
        made.append("".join(chr(generator.randint(first, last - 1)) for _ in range(generator.randint(1, 20))))
    return made


def bytes_of_text() -> Any:
    """Byte-level BPE that splits digits, as Llama 3 and Qwen have it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    pattern = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    return made


def bytes_to_fall_back() -> Any:
    """BPE over spaces made visible, unknown characters as bytes, a token at the start: as Llama 2 has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    made.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return made


def pieces() -> Any:
    """Unigram with spaces made visible, as T5 and XLNet have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return made


KINDS = {"bytes": bytes_of_text, "fallback": bytes_to_fall_back, "pieces": pieces}


def checkpoint(folder: Path, kind: str, template: str) -> Path:
    """A quantized model with a tokenizer saved by the newest transformers, and the files of BESIDE."""
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("tokenizer*", "generation_config.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    unknown = {} if kind == "bytes" else {"unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), **named, **unknown)
    made.add_special_tokens({"additional_special_tokens": ADDED})
    made.chat_template = CHAT
    made.save_pretrained(folder)
    if template == "in tokenizer_config.json":
        (folder / "chat_template.jinja").unlink()
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": CHAT}))
    for name, content in BESIDE.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def read(python: str, paths: list[Path], tmp_path: Path) -> list[dict[str, Any]]:
    """The driver's reports, in some environment."""
    texts, report = tmp_path / "strings.json", tmp_path / "report.json"
    texts.write_text(json.dumps(strings()))
    words = [python, HERE / "drivers/tokenized.py", *paths, "--strings", texts, "--json", report]
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=600)
    answer = json.loads(report.read_text())
    return [answer[str(path)] for path in paths]


TEXT_KEYS = ("ids", "plain", "decoded", "special", "chat")


def test_every_target_reads_the_same_ids(tmp_path):
    templates = {"bytes": "beside it", "fallback": "beside it", "pieces": "in tokenizer_config.json"}
    sources = [checkpoint(tmp_path / kind, kind, template) for kind, template in templates.items()]
    wrong, read_by = {}, set()
    befores = read(sys.executable, sources, tmp_path)
    for before in befores:
        assert before["error"] is None and before["chat"] and len(before["ids"]) == 200
    for target in TARGETS:
        outputs = [source.with_name(f"{source.name}-{target}") for source in sources]
        for source, output in zip(sources, outputs, strict=True):
            qbridge.convert(source, output, target)
            for name, content in BESIDE.items():
                assert json.loads((output / name).read_text()) == content
        reports = read(judges.interpreter(target, {}), [*outputs, *sources], tmp_path)
        for kind, before, after, there in zip(KINDS, befores, reports[:3], reports[3:], strict=True):
            assert after["generation"] == there["generation"] == before["generation"]
            assert after["processor"] == there["processor"]
            read_by |= {target} if "CLIPImageProcessor" in after["processor"] else set()
            unlike = after["error"] or [key for key in TEXT_KEYS if before[key] != after[key]]
            if unlike:
                wrong[f"{kind}, {target}, transformers {after['transformers']}"] = unlike
    assert wrong == {}
    assert "lmdeploy" in read_by  # others ask for torchvision before they read anything
