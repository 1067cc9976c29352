"""What the reports of one case come to: a cell of the table for each target, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import judges

LOADED = ("clean", "faulty")
JUDGES = {
    "vllm": "vllm",
    "lmdeploy": "lmdeploy",
    "sglang": "sglang",
    "transformers": "transformers",
    "dense": "transformers",
}


def errors(done: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in done["answer"].get("findings", ()) if finding["severity"] == "error"]


def codes(done: dict[str, Any]) -> str:
    return " ".join(sorted({finding["code"] for finding in errors(done)})) or f"exit {done.get('exit')}"


def faults(case: Path, target: str, entry: dict[str, Any], source: dict[str, Any] | None) -> list[str]:
    """What is wrong with one output."""
    wrong = []
    output = entry.get("judged")
    if output and output["verdict"] in ("refused", "faulty"):
        wrong.append(judges.short(output))
    if output and output["verdict"] in LOADED and target != "dense":
        wrong += changes(case, output, source)
    rounded = "rounded" in entry["convert"]["allowed"] and codes(entry.get("verify", {"answer": {}})) == "QB501"
    steps = ("restore",) if rounded else ("verify", "restore")  # what was rounded, as a person allowed, is another
    if "drop-kv-scales" in entry["convert"]["allowed"]:  # and so is what lacks them
        lost = codes(entry.get("verify", {"answer": {}})), codes(entry.get("restore", {"answer": {}}))
        steps = () if lost == ("QB502", "QB037") else steps
    wrong += [f"{step} {codes(entry[step])}" for step in steps if entry.get(step, {}).get("exit")]
    if entry.get("not_restored"):
        wrong.append(f"restore is not identical ({entry['not_restored'][0]})")
    if entry.get("unlike"):
        wrong.append(f"{len(entry['unlike'])} dense weights are not the reference ({entry['unlike'][0]})")
    return wrong


def changes(case: Path, output: dict[str, Any], source: dict[str, Any] | None) -> list[str]:
    """What an engine makes otherwise of an output that it loads: than of the source, or than its tensors say."""
    if not source or source["verdict"] != "clean":
        unlike = judges.otherwise(judges.packed_modules(case / "model"), output["quantized"])
        return [f"{len(unlike)} modules unlike the tensors ({next(iter(unlike.items()))})"] if unlike else []
    wrong = []
    if unlike := judges.otherwise(source["quantized"], output["quantized"]):
        wrong.append(f"{len(unlike)} modules quantized otherwise ({next(iter(unlike.items()))})")
    if unlike := judges.config_otherwise(source, output):
        wrong.append(f"parsed otherwise: {unlike}")
    return wrong


def disagreement(entry: dict[str, Any], source: dict[str, Any] | None) -> str | None:
    """Where `check` and the engine differ about the source."""
    if "check" not in entry or not source or source["verdict"] == "unproved":
        return None
    yes, loads = entry["check"]["exit"] == 0, source["verdict"] == "clean"
    other_angles = codes(entry["check"]) == "QB265"  # it loads, and rotates by its default: no loader sees that
    if yes == loads or (loads and other_angles):
        return None
    return (
        f"check says yes, the engine {judges.short(source)}"
        if yes
        else f"check says no ({codes(entry['check'])}), the engine loads it"
    )


def cell(case: Path, target: str, entry: dict[str, Any], source: dict[str, Any] | None) -> str:
    done = entry["convert"]
    if "path" not in entry:
        loads = source and source["verdict"] == "clean" and target != "dense"
        return f"refused {codes(done)}" + (" though it loads as it is" if loads else "")
    judged = entry.get("judged")
    if judged and source and judges.alike(judged, source):
        return f"ALIKE: source and output {judges.short(judged)}"
    if wrong := faults(case, target, entry, source):
        return "WRONG: " + " | ".join(wrong)
    words = f" ({' '.join(done['allowed'])})" if done["allowed"] else ""
    return ("?" if judged and judged["verdict"] == "unproved" else "ok") + words


def complete(case: Path, result: dict[str, Any]) -> None:
    """Put the cell of each target into the result of a case, and where `check` and the engine disagree."""
    for target, entry in result["targets"].items():
        source = result["sources"].get(JUDGES[target])
        entry["cell"] = cell(case, target, entry, source)
        entry["disagreement"] = disagreement(entry, source)


def lines_of(name: str, result: Mapping[str, Any]) -> list[str]:
    """The rows of one case."""
    lines = [name + ("" if result["inspect"]["exit"] == 0 else f"   inspect {codes(result['inspect'])}")]
    for target, entry in result["targets"].items():
        lines.append(f"    {target:13}{entry['cell']}")
        if entry["disagreement"]:
            lines.append(f"    {'':13}check: {entry['disagreement']}")
    return lines


def totals(results: Iterable[Mapping[str, Any]]) -> str:
    """How many cells of each target begin with each word."""
    counts: dict[str, dict[str, int]] = {}
    for result in results:
        for target, entry in result["targets"].items():
            of_target = counts.setdefault(target, {"ok": 0, "refused": 0, "WRONG": 0, "ALIKE": 0, "?": 0, "check": 0})
            of_target[entry["cell"].split()[0].strip(":")] += 1
            of_target["check"] += entry["disagreement"] is not None
    return "\n".join(
        f"{target:13}" + "  ".join(f"{k} {v}" for k, v in count.items()) for target, count in counts.items()
    )
