"""What a shell completes after an option: targets, formats, words of --allow, codes, GPUs, with what each means."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from qbridge.commands.names import format_names, target_names
from qbridge.findings.catalogue.code import ALLOW
from qbridge.targets.gpus import known_gpus
from qbridge.targets.registry import codes
from qbridge.targets.registry import targets as targets_of_registry

Completer = Callable[[str], list[tuple[str, str]]]  # of what is typed so far: words, and what each means

_AT = "@"


def _beginning(words: Iterable[tuple[str, str]], typed: str) -> list[tuple[str, str]]:
    """The words that begin as what is typed, in letters of any case; the letters that are typed stay."""
    begun = ((word, meaning) for word, meaning in words if word.lower().startswith(typed.lower()))
    return [(typed + word[len(typed) :], meaning) for word, meaning in begun]


@contextmanager
def joined_words(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Put together again what bash takes apart at `@`, as in vllm@0.33, and print the piece that it completes."""
    words, place = environment.get("COMP_WORDS", "").split("\n"), int(environment.get("COMP_CWORD") or 0)
    if not 1 <= place < len(words) or _AT not in words[place - 1 : place + 1]:
        yield
        return
    begin = place - 1 if words[place] == _AT else place - 2
    whole = "".join(words[begin : place + 1])
    environment.update(COMP_WORDS="\n".join((*words[:begin], whole)), COMP_CWORD=str(begin))
    answers = StringIO()
    try:
        with redirect_stdout(answers):
            yield
    finally:
        there = whole.index(_AT) + (words[place] != _AT)  # letters that bash keeps by itself
        sys.stdout.write("".join(f"{line[there:]}\n" for line in answers.getvalue().split()))


def one_of(*words: str) -> Completer:
    """Complete one of a few words."""
    return lambda incomplete: _beginning(((word, "") for word in words), incomplete)


def targets(incomplete: str) -> list[tuple[str, str]]:
    """Targets: each engine by its name, which means its newest version, and at each version; then formats."""
    return _beginning(_targets(), incomplete)


def _targets() -> Iterator[tuple[str, str]]:
    seen = set()
    for entry in target_names().entries:
        engine = entry["name"].partition("@")[0]
        if engine not in seen and engine != entry["name"]:
            yield engine, f"the newest, {entry['name']}"
        seen.add(engine)
        yield entry["name"], entry["summary"]


def provers(incomplete: str) -> list[tuple[str, str]]:
    """Engines that have a prover, each by its name."""
    engines = {target.engine: target.name for target in targets_of_registry() if target.prover is not None}
    return _beginning(engines.items(), incomplete)


def formats(incomplete: str) -> list[tuple[str, str]]:
    """Formats and their aliases."""
    entries = format_names().entries
    names = ((name, entry["summary"]) for entry in entries for name in (entry["name"], *entry["aliases"]))
    return _beginning(names, incomplete)


def allowed(incomplete: str) -> list[tuple[str, str]]:
    """Words of --allow, after a comma those that are not there yet."""
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [
        (f"{before}{comma}{word}", meaning) for word, meaning in _beginning(ALLOW.items(), last) if word not in given
    ]


def known_codes(incomplete: str) -> list[tuple[str, str]]:
    """Codes of findings, with their titles."""
    return _beginning(((entry.code, entry.title) for entry in codes().values()), incomplete)


def gpus(incomplete: str) -> list[tuple[str, str]]:
    """GPUs by name, in one word, and compute capabilities."""
    return _beginning(((gpu.name.replace(" ", "-"), str(gpu)) for gpu in known_gpus()), incomplete)
