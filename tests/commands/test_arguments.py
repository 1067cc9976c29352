"""Arguments of another type, and errors by class and by exit code."""

from __future__ import annotations

import inspect
import pickle

import pytest

import qbridge
from qbridge.findings.catalogue import CATALOGUE
from qbridge.findings.catalogue.code import IO, REFUSED, UNREADABLE, USAGE
from qbridge.findings.finding import error
from support import copy_fixture

CALLS = ["check", "clean", "convert", "explain", "inspect", "open", "prove", "restore", "stream", "verify", "what"]


class Wrong:
    """A value of a type that no argument has."""


def arguments(src, function):
    """Some value of the right type for each parameter that must be given."""
    right = {
        "src": src,
        "a": src,
        "b": src,
        "path": src,
        "dst": src.parent / "dst",
        "target": "vllm",
        "engine": "vllm",
        "text": "QB015",
    }
    return {name: right[name] for name, each in function.parameters.items() if each.default is each.empty}


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_of_every_public_call_is_checked(tmp_path, name):
    src = copy_fixture(tmp_path)
    call = getattr(qbridge, name)
    for parameter in inspect.signature(call).parameters:
        given = {**arguments(src, inspect.signature(call)), parameter: Wrong()}
        with pytest.raises(qbridge.ArgumentTypeError) as excinfo:
            call(**given)
        (finding,) = excinfo.value.findings
        assert finding.code == "QB802" and excinfo.value.exit_code == 2
        assert parameter in str(excinfo.value) or parameter == "format"
        assert isinstance(excinfo.value, TypeError)
    assert not (tmp_path / "dst").exists()


BY_EXIT = {
    REFUSED: qbridge.RefusedError,
    USAGE: qbridge.UsageError,
    UNREADABLE: qbridge.UnreadableError,
    IO: qbridge.StorageError,
}


@pytest.mark.parametrize("code", [code for code, entry in CATALOGUE.items() if entry.severity == "error"])
def test_errors_have_the_class_of_their_exit_code(code):
    raised = error(code, "model.norm.weight")
    wanted = BY_EXIT.get(raised.exit_code, qbridge.QBridgeError)
    assert type(raised) is wanted and issubclass(wanted, qbridge.QBridgeError)
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is wanted and again.findings == raised.findings


def test_errors_of_calls_can_be_told_apart(tmp_path):
    src = copy_fixture(tmp_path)
    with pytest.raises(qbridge.UnreadableError):
        qbridge.inspect(tmp_path)
    with pytest.raises(qbridge.UsageError):
        qbridge.check(src, "vlm")
    with pytest.raises(qbridge.RefusedError):
        qbridge.convert(src, tmp_path / "dst", "awq")
