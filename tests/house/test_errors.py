"""Errors cross processes as they were raised."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import qbridge


def raised():
    with pytest.raises(qbridge.QBridgeError) as caught:
        qbridge.inspect("/nowhere/at/all")
    return caught.value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_unpickles_with_every_finding(protocol):
    error = raised()
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error) is qbridge.UnreadableError
    assert (again.findings, again.exit_code, str(again)) == (error.findings, error.exit_code, str(error))
    assert copy.deepcopy(error).findings == error.findings


def test_an_error_reaches_the_process_that_asked():
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        pytest.raises(qbridge.QBridgeError, match=r"QB001|QB401"),
    ):
        pool.submit(qbridge.inspect, "/nowhere/at/all").result()
