"""What every fixture becomes for every target, as digests: to compare two versions of the code.

python tests/outcomes.py write FILE          what this code writes, and what it refuses with which findings
python tests/outcomes.py compare BEFORE AFTER

A refactoring changes nothing here; another change is explained by what `compare` prints.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import qbridge

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def cases():
    return sorted(str(model.parent.relative_to(FIXTURES)) for model in FIXTURES.glob("*/*/model"))


def told(findings):
    """Code, severity and places of each finding; paths below the fixtures, wherever the checkout lies."""
    return sorted(
        [finding.code, str(finding.severity), sorted(place.replace(f"{FIXTURES}/", "") for place in finding.where)]
        for finding in findings
    )


def outcomes(case):
    """Target to what comes of a fixture: files by digest, and findings; `check` answers beside it."""
    with tempfile.TemporaryDirectory() as folder:
        return {target.name: outcome(case, target.name, Path(folder)) for target in qbridge.list_targets()}


def outcome(case, target, folder):
    source, out, found = FIXTURES / case / "model", folder / "out", {}
    try:
        report = qbridge.convert(source, out, target, jobs=1)
    except qbridge.QBridgeError as error:
        found["convert"] = {"exit": error.exit_code, "findings": told(error.findings)}
    else:
        files = {file.name: digest(file) for file in sorted(out.iterdir())}
        found["convert"] = {"exit": 0, "findings": told(report.findings), "files": files}
        shutil.rmtree(out)
    try:
        answer = qbridge.check(source, target)
    except qbridge.QBridgeError as error:
        found["check"] = {"exit": error.exit_code, "findings": told(error.findings)}
    else:
        found["check"] = {"exit": int(not answer.ok), "findings": told(answer.findings)}
    return found


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write(file):
    with ProcessPoolExecutor(2) as pool:
        found = dict(zip(cases(), pool.map(outcomes, cases()), strict=True))
    Path(file).write_text(json.dumps(found, indent=0, sort_keys=True))


def compare(before, after):
    """The differences of each kind, with how many there are and the first few."""
    old, new = (json.loads(Path(file).read_text()) for file in (before, after))
    kinds: dict[str, list[str]] = {}
    for case in sorted(old.keys() & new.keys()):
        for target in sorted(old[case].keys() & new[case].keys()):
            for kind in differences(old[case][target], new[case][target]):
                kinds.setdefault(kind, []).append(f"{case} -> {target}")
    totals = Counter({kind: len(places) for kind, places in kinds.items()})
    for kind, count in totals.most_common():
        print(f"{count:5} {kind}: {', '.join(kinds[kind][:3])}")
    print(f"{sum(totals.values())} differences in {len(old)} fixtures")
    return int(bool(totals))


def differences(old, new):
    for verb in ("convert", "check"):
        first, second = old[verb], new[verb]
        if first["exit"] != second["exit"]:
            yield f"{verb}: exit {first['exit']} became {second['exit']}"
        files = first.get("files", {}), second.get("files", {})
        if all(files):
            for name in sorted(files[0].keys() | files[1].keys()):
                if files[0].get(name) != files[1].get(name):
                    yield f"{verb}: another {name}"
        lost = [entry for entry in first["findings"] if entry not in second["findings"]]
        more = [entry for entry in second["findings"] if entry not in first["findings"]]
        for sign, entries in (("-", lost), ("+", more)):
            for code, severity, _ in entries:
                yield f"{verb}: {sign} {severity}[{code}]"


if __name__ == "__main__":
    sys.exit(write(sys.argv[2]) if sys.argv[1] == "write" else compare(*sys.argv[2:]))
