"""Any sequence of conversions, deaths, interrupts and failures: DST is absent, empty, complete or somebody else's."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import qbridge
from dying import DIED, die, forked, own, stepping, visible
from support import contents, small_checkpoint

COMMANDS = [
    ("one", "lmdeploy", None),
    ("one", "lmdeploy", 400),
    ("one", "compressed-tensors", None),
    ("two", "lmdeploy", 400),
]
MEMORY = Path("/dev/shm")


def interrupt():
    raise KeyboardInterrupt


def no_room():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Destination(RuleBasedStateMachine):
    """One DST, two sources, and what others put beside it and into it."""

    def __init__(self):
        super().__init__()
        self.home = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.dst = self.home / "work" / "dst"
        self.whole = {}  # what each command writes, by what its source holds
        self.foreign = {}
        self.mine = None  # what others put at DST
        self.times = 0

    @initialize()
    def sources(self):
        self.dst.parent.mkdir()
        for name in ("one", "two"):
            small_checkpoint(self.home / name)
            self.change(name)

    def change(self, name):
        self.times += 1
        shard = sorted((self.home / name).glob("*.safetensors"))[1]
        data = bytearray(shard.read_bytes())
        data[-1] = self.times % 100
        shard.write_bytes(data)
        self.touch(name)

    @rule(name=st.sampled_from(["one", "two"]))
    def changed(self, name):
        self.change(name)

    @rule(name=st.sampled_from(["one", "two"]))
    def touch(self, name):
        self.times += 1
        os.utime(sorted((self.home / name).glob("*.safetensors"))[0], (self.times, self.times))
        self.before = {name: contents(self.home / name) for name in ("one", "two") if (self.home / name).exists()}

    @rule(name=st.sampled_from([".dst", "other", ".dst.qbridge", "dst.qbridge-part"]))
    def somebody_writes_beside(self, name):
        (self.dst.parent / name).write_text(name)
        self.foreign[name] = name.encode()

    @rule(folder=st.booleans())
    def somebody_empties_the_destination(self, folder):
        shutil.rmtree(self.dst, ignore_errors=True)
        self.mine = None
        if folder:
            self.dst.mkdir()

    @rule()
    def somebody_writes_into_the_destination(self):
        if not self.dst.exists():
            self.dst.mkdir()
        if not visible(self.dst):
            (self.dst / "thesis.txt").write_text("years")
            self.mine = {"thesis.txt": b"years"}

    def wanted(self, source, target, size):
        key = (source, target, size, tuple(sorted(self.before[source].items())))
        if key not in self.whole:
            place = self.home / "whole"
            qbridge.convert(self.home / source, place, target, max_shard_size=size, jobs=1)
            self.whole[key] = contents(place)
            shutil.rmtree(place)
        return self.whole[key]

    def convert(self, command, overwrite, jobs=1):
        source, target, size = command
        try:
            qbridge.convert(self.home / source, self.dst, target, max_shard_size=size, overwrite=overwrite, jobs=jobs)
        except KeyboardInterrupt:
            return 130
        except qbridge.QBridgeError as fault:
            return fault.exit_code
        return 0

    @rule(
        command=st.sampled_from(COMMANDS),
        overwrite=st.booleans(),
        jobs=st.sampled_from([1, 2]),
        step=st.one_of(st.none(), st.integers(1, 50)),
        after=st.booleans(),
        act=st.sampled_from([die, interrupt, no_room]),
    )
    def converts(self, command, overwrite, jobs, step, after, act):
        """One command, cut at a step or not at all."""
        wanted = self.wanted(*command)
        before, were = visible(self.dst), self.kept()

        def cut():
            with stepping(step, act, after) as taken:
                code = self.convert(command, overwrite, jobs)
            return code if len(taken) < step or act is not no_room else code + 100

        code = forked(cut) if step else self.convert(command, overwrite, jobs)
        now = visible(self.dst)
        whole = now == wanted
        if code == 0 or (code == 100 and whole):
            assert whole and not own(self.dst.parent, "dst")
        elif code == 1:
            assert now == before or now in were, "refused, and yet something else stands there"
            assert self.mine or (before and not overwrite) or now != before or whole
        elif code == 3:
            raise AssertionError("the source is sound")
        elif code in (4, 104) and not whole:  # the disk was full
            assert now == before or now in were or not (self.dst / "config.json").exists()
        else:
            assert code in (DIED, 130, 4, 104, 100), code
        if before and not whole and (self.dst / "config.json").exists():
            assert now in [before, *were]
        if before and "config.json" in before and not visible(self.dst):
            assert before in self.kept(), "the old checkpoint is gone and no new one stands there"

    def kept(self):
        """What stands aside or waits inside DST to become it."""
        return [contents(path) for path in self.dst.parent.glob(".dst.qbridge-old")] + list(self.whole.values())

    @rule(command=st.sampled_from(COMMANDS))
    def converts_until_it_ends(self, command):
        """Whatever happened before, a command that may overwrite ends well, and leaves nothing."""
        if self.mine is None:
            code = self.convert(command, True)
            if code == 1 and visible(self.dst) in self.whole.values():
                code = self.convert(command, True)
            assert code == 0, code
            assert visible(self.dst) == self.wanted(*command)
            assert not own(self.dst.parent, "dst")

    @invariant()
    def destination_is_whole_or_nothing(self):
        now = visible(self.dst)
        if self.mine:
            assert now == self.mine
        elif now and "config.json" in now:
            assert now in self.whole.values(), sorted(now)

    @invariant()
    def others_are_left_alone(self):
        for name, data in self.foreign.items():
            assert (self.dst.parent / name).read_bytes() == data
        for name, files in getattr(self, "before", {}).items():
            assert contents(self.home / name) == files

    def teardown(self):
        shutil.rmtree(self.home)


TestDestination = Destination.TestCase
TestDestination.settings = settings(
    max_examples=int(os.environ.get("QBRIDGE_MACHINE", "25")),
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
