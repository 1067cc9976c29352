from __future__ import annotations

import pytest

import goldens
from qbridge.testing.laws import check_format


@pytest.mark.parametrize("case", goldens.cases("awq"))
def test_values_are_those_of_the_tool(case):
    goldens.check("awq", case)


def test_laws():
    check_format("awq")
