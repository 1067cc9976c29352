from __future__ import annotations

from qbridge.testing.laws import check_format


def test_laws():
    check_format("w8a8")
