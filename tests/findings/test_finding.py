"""A finding as one line of text."""

from __future__ import annotations

import pytest

from qbridge.findings.finding import Finding, error


@pytest.mark.parametrize(
    ("where", "shown"), [((), ": f"), (("a",), " (a): f"), (("a", "b", "c"), " (a and 2 more): f")]
)
def test_a_finding_names_its_first_place_if_it_has_one(where, shown):
    assert str(Finding("QB326", where, ("f",))) == f"error[QB326]: no file can be linked{shown}"


def test_an_error_without_a_place_is_raised_like_any_other():
    assert str(error("QB326", (), ("f",))) == "error[QB326]: no file can be linked: f"
