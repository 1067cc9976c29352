"""Entries about what was asked: the command line, the arguments of a call, the settings of a user."""

from qbridge.findings.catalogue.code import USAGE, Code

ENTRIES = (
    Code(
        "QB801",
        "the command line is not understood",
        "An option, an argument or a command that there is not, or a value that means nothing.",
        "Nothing was done.",
        "qbridge convert model out --json",
        "Look at `qbridge COMMAND --help`.",
        "qbridge.cli.command",
        USAGE,
    ),
    Code(
        "QB802",
        "an argument has another type",
        "A function of the library was given a value of a type that the argument cannot have (a TypeError, too).",
        "A value that is taken for another one would change what is converted.",
        'qbridge.check("model", "vllm", tp="2")',
        "Give a value of the type that the finding names.",
        "qbridge.findings.arguments",
        USAGE,
    ),
    Code(
        "QB803",
        "a setting cannot be used",
        "The user's config file or an environment variable QBRIDGE_* has a setting that there is not, one that no "
        "default may be given for, or a value that means nothing.",
        "A default that does nothing would be missed in silence; one for --allow or --overwrite would weaken "
        "every later promise, so these are typed each time.",
        'config.toml with: allow = "rounded"',
        "Mend or remove the setting; there are gpu, jobs, max-shard-size, memory, progress and tp.",
        "qbridge.commands.settings",
        USAGE,
    ),
    Code(
        "QB804",
        "no page can be written there",
        "The file of --report lies in no folder, or is there already and is no page.",
        "Nothing was done, so that no file is replaced by mistake.",
        "qbridge inspect model --report model/config.json",
        "Name a file that ends in .html (or in .png, for the map of the layers), in a folder that is there.",
        "qbridge.commands.reporting",
        USAGE,
    ),
)
