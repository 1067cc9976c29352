"""What a shell completes after an option: targets, formats, words of --allow, codes, GPUs, with what each means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from qbridge.commands.names import format_names, target_names
from qbridge.findings.catalogue.code import ALLOW
from qbridge.targets.gpus import known_gpus
from qbridge.targets.registry import codes

Completer = Callable[[str], list[tuple[str, str]]]  # of what is typed so far: words, and what each means


def _beginning(words: Iterable[tuple[str, str]], typed: str) -> list[tuple[str, str]]:
    """The words that begin as what is typed, in letters of any case; the letters that are typed stay."""
    begun = ((word, meaning) for word, meaning in words if word.lower().startswith(typed.lower()))
    return [(typed + word[len(typed) :], meaning) for word, meaning in begun]


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
