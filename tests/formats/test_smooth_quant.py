from __future__ import annotations

import pytest

import goldens
from qbridge.testing.laws import check_format


@pytest.mark.parametrize("case", goldens.cases("smooth_quant"))
def test_values_are_those_of_lmdeploy_lite(case):
    goldens.check("smooth_quant", case)


def test_laws():
    check_format("smooth-quant")
