"""Compiled kernels: kept where the user may write, done without where not, and never in the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

from qbridge.codecs import compiling
from qbridge.codecs.bit_kernels import kernels
from support import ROOT, contents, copy_fixture

NOBODY, NO_USER = 65534, 54321
as_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root may be another user")


@pytest.fixture
def install():
    """A copy of the package in a folder that only root may write, and a place in which anybody may."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        yield installed(Path(folder))


def installed(tmp_path):
    tmp_path.chmod(0o755)
    for folder in (ROOT / "bridge/qbridge", ROOT / "formats/qbridge_formats"):
        shutil.copytree(folder, tmp_path / "install" / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    src = copy_fixture(tmp_path, "awq/llama_gemm")
    for path in (src, *src.iterdir()):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o777)
    reachable = subprocess.run(["setpriv", f"--reuid={NOBODY}", "--clear-groups", "ls", str(tmp_path)])
    if reachable.returncode:
        pytest.skip("the temporary folder is root's alone")
    return tmp_path


def run(install, dst, user, **environment):
    """Convert as another user from the read-only install; how many kernels were compiled."""
    code = """
import sys
import numba
from numba.core.dispatcher import Dispatcher
compiled, compile_core = [], numba.core.dispatcher._FunctionCompiler.compile
def counted(self, *a):
    compiled.append(1)
    return compile_core(self, *a)
numba.core.dispatcher._FunctionCompiler.compile = counted
import qbridge
assert qbridge.__file__.startswith(sys.argv[1]), qbridge.__file__
qbridge.convert(sys.argv[2], sys.argv[3], "compressed-tensors")
print(len(compiled))
"""
    package = install / "install"
    words = [sys.executable, "-c", code, str(package), str(install / "src"), str(install / "work" / dst)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package), **environment}
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=install / "work")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@as_root
@pytest.mark.parametrize(("user", "home"), [(NOBODY, "read-only"), (NO_USER, "unset")])
def test_without_a_place_for_the_cache_kernels_are_compiled_each_time(install, user, home):
    places = {"HOME": str(install / "install")} if home == "read-only" else {}
    assert run(install, "one", user, **places) > 0
    assert [entry.name for entry in (install / "work").iterdir()] == ["one"]
    assert not list((install / "install").rglob("*.nbi"))


@as_root
def test_with_a_home_the_second_run_compiles_nothing(install):
    home = install / "work" / "home"
    home.mkdir()
    home.chmod(0o777)
    assert run(install, "one", NOBODY, HOME=str(home)) > 0
    assert run(install, "two", NOBODY, HOME=str(home)) == 0
    assert contents(install / "work" / "one") == contents(install / "work" / "two")
    assert list(home.rglob("*.nbi")) and not list((install / "install").rglob("*.nbi"))


def doubled():
    """A kernel, its cache and what it doubles, each time as in a new process."""

    def kernel(array):
        for index in range(array.size):
            array[index] *= 2

    compiling._kernels.clear()
    found = compiling.compiled(kernel)
    array = np.arange(5)
    found(array)
    assert array.tolist() == [0, 2, 4, 6, 8]
    return sum(found.stats.cache_hits.values())


@pytest.mark.parametrize("damage", ["none", "index", "data", "both", "empty"])
def test_damaged_cache_is_compiled_anew(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert doubled() == 0
    index, data = list(tmp_path.rglob("*.nbi")), list(tmp_path.rglob("*.nbc"))
    assert index and data
    for file in {"none": [], "index": index, "data": data}.get(damage, index + data):
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[: file.stat().st_size // 2])
    assert doubled() == (damage == "none")
    assert doubled() == 1


@pytest.mark.parametrize("size", ["4k", "8k"])
def test_cache_on_a_full_disk_is_done_without(tmp_path, monkeypatch, size):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("mounting is not permitted")
    try:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert doubled() == doubled() == 0
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_relative_cache_folder_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert doubled() == 0 and doubled() == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]


def test_kernels_of_one_function_share_no_file_of_the_cache():
    places = [Path(kernel._cache.cache_path) for bits in (2, 3) for kernel in kernels(bits, 32, True, (), ())]
    assert len(set(places)) == 4


def test_threads_that_ask_for_a_kernel_at_once_share_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = numba.config.CACHE_DIR
    compiling._kernels.clear()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda bits: kernels.__wrapped__(bits % 4 + 1, 32, True, (), ()), range(64)))
    assert len({id(kernel) for pair in found for kernel in pair}) == 8
    assert {path.name for path in tmp_path.glob("qbridge/*/*")} == {Path(found[0][0]._cache.cache_path).name}
    assert given == numba.config.CACHE_DIR
