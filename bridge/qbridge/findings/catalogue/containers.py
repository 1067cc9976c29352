"""QB049, QB117 to QB121: files of GGUF, the container of llama.cpp."""

from __future__ import annotations

from qbridge.findings.catalogue.code import UNREADABLE, Code

ENTRIES = (
    Code(
        "QB049",
        "a GGUF header does not describe its file",
        "Its counts, lengths, names, types or offsets disagree with each other or with the file's size, it is of a "
        "version that is not read, or it is big-endian.",
        "The bytes cannot be trusted; a truncated download looks just like this.",
        "tensors end at byte 4113289792, the file at 3221225472",
        "Download or write the file again.",
        "llama.cpp b10359, ggml/src/gguf.cpp (gguf_init_from_file)",
        UNREADABLE,
    ),
    Code(
        "QB117",
        "this model has no names in GGUF here",
        "Its class, one of its modules, or a number of its config has no counterpart in the table of llama.cpp's "
        "names, or experts that share a tensor there are of several types.",
        "llama.cpp builds a model from names and numbers: a wrong one loads another model, or none.",
        "FalconForCausalLM; rope of type longrope; a layer without experts among those with",
        "This model needs llama.cpp's own converter (convert_hf_to_gguf.py), which is not supported here yet.",
        "llama.cpp b10359, conversion; gguf 0.19.0, constants.py",
    ),
    Code(
        "QB118",
        "the tokenizer is not known, and GGUF holds one",
        "There is no tokenizer.model, and no tokenizer.json of byte-level BPE whose pre-tokenizer llama.cpp knows, "
        "or of SentencePiece's pieces in the order of their scores.",
        "llama.cpp reads no other file: without it, it takes and gives numbers of tokens alone, and no text.",
        "a tokenizer.json of WordPiece, or with a pattern of its own",
        "Put the original's tokenizer.model beside it if there is one, or write the model without a tokenizer where "
        "only numbers of tokens are needed.",
        "llama.cpp b10359, conversion/base.py (get_vocab_base_pre) and src/llama-vocab.cpp",
        allow="no-tokenizer",
    ),
    Code(
        "QB119",
        "blocks of these types have no exact integer form",
        "K-quants have products of two scales and float minima, Q4_1 and Q5_1 have minima: no weight is a code of so "
        "many bits times a scale that an integer format stores.",
        "Other codes would have to be chosen, and every weight would change.",
        "Q4_K_M files: Q4_K and Q6_K",
        "Write plain weights (--to dense), each rounded once from its exact value: every engine loads them. Or take "
        "a file of Q4_0, Q5_0, Q8_0 or MXFP4, or the checkpoint that the file was made from.",
        "llama.cpp b10359, ggml/src/ggml-common.h",
        allow="dequantized",
    ),
    Code(
        "QB120",
        "config.json is made from the metadata of a GGUF file, and no tokenizer is",
        "No config.json, or no tokenizer, lies beside the file. Its sizes, rope and norms are in the metadata; the "
        "tokenizer is too, in a form of llama.cpp's own, which is not turned into tokenizer.json.",
        "Engines that tokenize by themselves need tokenizer.json and tokenizer_config.json of the original.",
        "qbridge convert model-Q4_0.gguf out --to vllm",
        "Name the folder of the original (--config ORIGINAL of convert and restore), whose config.json and tokenizer "
        "are taken, or put them beside the file.",
        "llama.cpp b10359, gguf-py/gguf/constants.py (Keys)",
        severity="warning",
    ),
    Code(
        "QB121",
        "blocks of these types are not decoded here",
        "IQ types look groups of weights up in tables of llama.cpp's own, Q8_1 and Q8_K are types of its inputs.",
        "Without the tables nothing says what the weights are.",
        "IQ4_XS: 84 tensors",
        "Take a file of another type of the same model, such as Q4_K_M, or the checkpoint that it was made from.",
        "llama.cpp b10359, ggml/src/ggml-common.h (iq2xxs_grid and others)",
    ),
)
