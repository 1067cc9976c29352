"""MLX against what mlx_lm.convert wrote, and what is written as MLX."""

from __future__ import annotations

import pytest

import goldens
from qbridge.testing import check_format


@pytest.mark.parametrize("case", goldens.cases("mlx"))
def test_values_are_those_of_mlx(case):
    goldens.check("mlx", case)


def test_laws():
    check_format("mlx")
