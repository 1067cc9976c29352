"""What the transformers of this environment makes of a checkpoint's tokenizer and of the files beside it.

    tokenized.py CKPT... --strings F [--json F]

F is a JSON list of strings. Report, for each folder:

    transformers    version
    error           null, or what AutoTokenizer raises; without one, also:
    ids             [[token id]] of every string, special tokens added
    plain           [[token id]] of every string, none added
    decoded         [string] of `ids`, special tokens left in
    special         {name: [token, id]} of bos, eos, pad, unk and the like, and of all added tokens
    chat            [token id] of a conversation by the chat template, null without one
    generation      what GenerationConfig reads, null without generation_config.json
    processor       class of the image processor, null without preprocessor_config.json; or {type, message}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import reporting

CONVERSATION = [
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "What is 12 * 34?\nThink <b>first</b>."},
    {"role": "assistant", "content": "408"},
    {"role": "user", "content": "Why?"},
]
# Which transformers wrote a config, and what a later one leaves out as it is the default.
LEFT_OUT = ("transformers_version", "_from_model_config")


def tokenizer_report(path: str, strings: list[str]) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = [tokenizer(text)["input_ids"] for text in strings]
    names = {name: getattr(tokenizer, f"{name}_token", None) for name in ("bos", "eos", "pad", "unk", "sep", "cls")}
    special = {
        name: [str(token), tokenizer.convert_tokens_to_ids(str(token))] for name, token in names.items() if token
    }
    special |= {str(token): [str(token), index] for index, token in tokenizer.added_tokens_decoder.items()}
    chat = None
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
        chat = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {
        "ids": ids,
        "plain": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in strings],
        "decoded": [tokenizer.decode(one) for one in ids],
        "special": special,
        "chat": chat,
    }


def files_report(path: str) -> dict[str, Any]:
    from transformers import GenerationConfig

    report: dict[str, Any] = {"generation": None, "processor": None}
    if (Path(path) / "generation_config.json").exists():
        read = GenerationConfig.from_pretrained(path).to_diff_dict()
        report["generation"] = {key: value for key, value in read.items() if key not in LEFT_OUT}
    if (Path(path) / "preprocessor_config.json").exists():
        try:
            from transformers import AutoImageProcessor

            report["processor"] = type(AutoImageProcessor.from_pretrained(path, use_fast=False)).__name__
        except Exception as error:
            report["processor"] = reporting.describe(error)
    return report


def main() -> None:
    parser = reporting.parser(__doc__)
    parser.add_argument("more", nargs="*", metavar="CKPT")
    parser.add_argument("--strings", type=Path, required=True)
    args = parser.parse_args()
    reporting.use_offline_cpu()
    import transformers

    strings, reports = json.loads(args.strings.read_text()), {}
    for path in (args.checkpoint, *args.more):
        report: reporting.Report = {"transformers": transformers.__version__}
        with reporting.refusal_recorded(report):
            report |= tokenizer_report(path, strings)
        reports[path] = report | files_report(path)
    reporting.write(reports, args.json)


if __name__ == "__main__":
    main()
