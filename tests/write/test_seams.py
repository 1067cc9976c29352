"""Outputs and executors: the shipped laws hold, tell what breaks them, and either kind makes the same bytes."""

from __future__ import annotations

import pytest

import qbridge
from qbridge.testing import Inline, MemoryOutput, check_executor, check_output
from qbridge.write import writer
from qbridge.write.executor import Threads
from qbridge.write.output import FileOutput


def test_files_and_memory_keep_the_laws_of_outputs(tmp_path):
    check_output(FileOutput.new(tmp_path / "file"))
    check_output(MemoryOutput())


def test_threads_and_inline_keep_the_laws_of_executors():
    check_executor(Inline())
    check_executor(Threads(1))
    check_executor(Threads(3))


class Shifting(MemoryOutput):
    def write(self, data, offset):
        super().write(data, max(0, offset - 1))


class Endless(MemoryOutput):
    def read_into(self, offset, buffer):
        super().read_into(offset, buffer)
        return True


class Shortening(MemoryOutput):
    def extend(self, size):
        super().extend(size)
        del self.data[size:]


class Losing(MemoryOutput):
    def flush(self, whole):
        if not whole:
            self.data.clear()


@pytest.mark.parametrize("broken", [Shifting, Endless, Shortening, Losing])
def test_an_output_that_breaks_a_law_is_told(broken):
    with pytest.raises(AssertionError):
        check_output(broken())


class Hurried:
    def run(self, tasks, work):
        for task in tasks:
            yield task
            work(task)


class Greedy:
    def run(self, tasks, work):
        for task in list(tasks):
            work(task)
            yield task


class Twice:
    def run(self, tasks, work):
        for task in tasks:
            work(task)
            work(task)
            yield task


class Deaf:
    def run(self, tasks, work):
        for task in tasks:
            try:
                work(task)
            except ValueError:
                continue
            yield task


class Backwards:
    def run(self, tasks, work):
        for task in reversed(list(tasks)):
            work(task)
            yield task


@pytest.mark.parametrize("broken", [Hurried, Greedy, Twice, Deaf, Backwards])
def test_an_executor_that_breaks_a_law_is_told(broken):
    with pytest.raises(AssertionError):
        check_executor(broken())


def test_inline_writes_what_threads_write(fixtures, tmp_path, monkeypatch):
    model = fixtures / "gptq/llama_g128/model"
    qbridge.convert(model, tmp_path / "threads", "compressed-tensors", max_shard_size=100_000)
    monkeypatch.setattr(writer, "Threads", lambda count: Inline())
    qbridge.convert(model, tmp_path / "inline", "compressed-tensors", max_shard_size=100_000)
    names = sorted(path.name for path in (tmp_path / "threads").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "inline").iterdir())
    for name in names:
        assert (tmp_path / "threads" / name).read_bytes() == (tmp_path / "inline" / name).read_bytes()


def test_a_job_writes_into_memory_what_it_writes_into_a_file(fixtures, tmp_path):
    from qbridge.commands.checkpoint import open_checkpoint
    from qbridge.commands.output_contents import files_of
    from qbridge.commands.planning import prepare
    from qbridge.targets.registry import find_target
    from qbridge.write.jobs import jobs_of
    from qbridge.write.workspace import Workspace

    model = fixtures / "gptq/llama_g128/model"
    with open_checkpoint(model, plans=True) as opened:
        plan = prepare(opened, find_target("compressed-tensors"))
        (shard,) = files_of(plan, opened, False)
        output, workspace = MemoryOutput(), Workspace()
        output.write(shard.header, 0)
        for job in jobs_of(opened.source, plan, shard, 1 << 16):
            job.run(opened.source, output, workspace)
            assert job.prove(opened.source, output, workspace) == ""
    qbridge.convert(model, tmp_path / "dst", "compressed-tensors")
    assert output.data == (tmp_path / "dst" / shard.name).read_bytes()
