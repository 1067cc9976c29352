"""Verdicts of a version between two releases of our tables: theirs, where they agree on what touched the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from qbridge.commands.judging import Verdict
from qbridge.findings.finding import Finding, Findings, in_order
from qbridge.targets.serving import Served
from qbridge.targets.target import Target


def between(
    name: str, releases: Sequence[Target], verdicts: Sequence[Verdict], nearer: Target, allow: frozenset[str]
) -> Verdict:
    """The verdict of a version `name` from those of the releases around it, older first.

    Rules agree where they find the same of the same layers, kernels where both serve them rightly or neither does.
    Where all agree that is the verdict, marked as assumed (QB238). Where not, it is not known (QB237), unless
    --allow assumed-version takes the `nearer` one's. What the two find alike is in either case.
    """
    judged = verdicts[list(releases).index(nearer)]
    differing = list(_differing(releases, verdicts))
    extra = Findings(allow)
    names = f"{releases[0].name} and {releases[1].name}"
    if not differing:
        extra.add("QB238", name, (f"{names} agree on all that they find here",))
        return replace(judged, findings=in_order((*judged.findings, *extra)), kernels=_alike(verdicts))
    extra.add("QB237", name, (f"judged by {names}", *differing))
    if extra.errors:
        shared = _keys(verdicts[0]) & _keys(verdicts[1])
        agreed = [finding for finding in judged.findings if _key(finding) in shared]
        return Verdict(judged.tp, in_order((*agreed, *extra)), _alike(verdicts))
    return replace(judged, findings=in_order((*judged.findings, *extra)))


_Key = tuple[str, str, tuple[str, ...]]


def _key(finding: Finding) -> _Key:
    return finding.code, str(finding.severity), finding.where


def _keys(verdict: Verdict) -> set[_Key]:
    return set(map(_key, verdict.findings))


def _differing(releases: Sequence[Target], verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The rules that one release alone finds broken, or breaks elsewhere, in words."""
    keys = [_keys(verdict) for verdict in verdicts]
    for release, verdict, others in zip(releases, verdicts, reversed(keys), strict=True):
        for finding in verdict.findings:
            if _key(finding) not in others:
                yield f"{release.name} alone: {finding.code}, {finding.message}"


def _alike(verdicts: Sequence[Verdict]) -> list[Served]:
    """The kernels that both releases take."""
    names = [[(kind.names, kind.kernel, kind.legal) for kind in verdict.kernels] for verdict in verdicts]
    return list(verdicts[-1].kernels) if names[0] == names[1] else []
