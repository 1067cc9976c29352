"""QB7xx: what an engine's own loader makes of a checkpoint (`qbridge prove`)."""

from __future__ import annotations

from qbridge.findings.catalogue.code import Code

_PROVERS = "qbridge.targets.proving, and prover.py of each engine"
ENTRIES = (
    Code(
        "QB701",
        "the engine is not installed in this Python",
        "The proof is the engine's own: it runs in the Python that has the engine.",
        "Nothing was loaded, so nothing is known.",
        "qbridge prove OUT --in vllm, in an environment without vLLM",
        "Name the Python that has it: --python /path/to/its/environment/bin/python.",
        _PROVERS,
    ),
    Code(
        "QB702",
        "the prover does not know this version of the engine",
        "A prover watches the loader from inside; nobody has tried it with this version.",
        "It might miss a parameter that nothing fills, and call that a yes.",
        "vllm 0.24.0, where the prover knows 0.32 and 0.33",
        "Prove it in a version that is named. --allow assumed-version tries this one.",
        _PROVERS,
        allow="assumed-version",
    ),
    Code(
        "QB703",
        "no prover loads a checkpoint in this engine",
        "Only engines that have a prover can be asked; a format is no engine.",
        "Nothing was loaded, so nothing is known.",
        "--in awq, --in lmdeploy@0.6.2",
        "Take an engine that has one; `qbridge check` says what is known of the others.",
        "qbridge.targets.registry",
        exit=2,
    ),
    Code(
        "QB704",
        "this engine cannot be proved here",
        "The engine, or its prover, needs something that this machine does not have: a GPU, a package, remote code.",
        "Nothing was loaded, so nothing is known.",
        "LMDeploy without a GPU; a model class that the repository's own code has",
        "Prove it where that is, or with --emulate sm90, whose stubs stand in for a GPU.",
        _PROVERS,
    ),
    Code(
        "QB705",
        "the engine refuses the checkpoint",
        "Its own loader raised this while it read the config, built the model or filled it.",
        "It would not start.",
        "ValueError: The input size is not aligned with the quantized weight shape",
        "`qbridge explain` knows many of these messages; `qbridge check` says which conversion helps.",
        _PROVERS,
    ),
    Code(
        "QB706",
        "the engine fills these parameters with nothing, or in part",
        "No tensor of the checkpoint was written to them; they are what memory held.",
        "Most engines start all the same, and talk garbage.",
        "a scale that is not there; one expert of 128",
        "Write the checkpoint anew; `qbridge verify SRC DST` names what differs from its source.",
        _PROVERS,
    ),
    Code(
        "QB707",
        "the engine has no parameter for these tensors",
        "The checkpoint has them, and the loader takes them for nothing that the model has.",
        "They are dropped: what they hold is missing from the model, or another module was meant.",
        "model.layers.0.mlp.gate_proj.weight of a module that config.json calls quantized",
        "Write the checkpoint anew; `qbridge verify SRC DST` names what differs from its source.",
        _PROVERS,
    ),
    Code(
        "QB708",
        "these tensors have another shape than the engine's parameters",
        "The loader was given a tensor that does not fit.",
        "It stops, or leaves the parameter as it was.",
        "scales of blocks that are stored transposed",
        "Write the checkpoint anew; `qbridge verify SRC DST` names what differs from its source.",
        _PROVERS,
    ),
    Code(
        "QB709",
        "the engine has these modules quantized otherwise than the source",
        "A module is quantized in one of the two and not in the other.",
        "Codes are read as weights, or a module that was to be small is not.",
        "a module that was left unquantized, and is listed as such in config.json",
        "Write the checkpoint anew; `qbridge verify SRC DST` names what differs from its source.",
        _PROVERS,
    ),
    Code(
        "QB710",
        "stubs stood in for a GPU",
        "The engine's config, classes and loaders are real; the device, its kernels and what follows loading are "
        "not.",
        "What only a kernel refuses is not found here.",
        "--emulate sm90 on a laptop",
        "Leave --emulate out where the GPU is.",
        _PROVERS,
        severity="note",
    ),
)
