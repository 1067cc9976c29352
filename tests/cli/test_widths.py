"""What every command shows on terminals of 60 and 100 columns; `pytest --accept` writes tests/cli/widths anew."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import threading
from contextlib import suppress
from io import StringIO

import pytest
from rich.console import Console

import qbridge
from qbridge import display, render
from qbridge.commands.explanation import listing
from qbridge.commands.names import format_names, target_names
from support import ROOT

WIDTHS = (60, 100)
W8A8, GPTQ = "fixtures/compressed_tensors/llama_w8a8/model", "fixtures/gptq/llama_desc_act/model"
SEED = "KeyError: 'model.layers.30.mlp.down_proj.weight_scale'"
ASKED = {
    "formats": format_names,
    "targets": target_names,
    "inspect": lambda: qbridge.inspect(W8A8),
    "check": lambda: qbridge.check(W8A8, "lmdeploy"),
    "check of several sizes": lambda: qbridge.check("fixtures/gptq/llama_g128/model", "vllm", [1, 2, 4]),
    "check that says no": lambda: qbridge.check(GPTQ, "vllm", 2),
    "what": lambda: qbridge.what(W8A8),
    "convert": lambda: qbridge.convert(W8A8, "dst", "lmdeploy"),
    "convert for a library": lambda: qbridge.convert(W8A8, "loaded", "transformers"),
    "convert that is refused": lambda: qbridge.convert(GPTQ, "refused", "vllm"),
    "convert with a wrong name": lambda: qbridge.convert(W8A8, "refused", "lmdeply"),
    "plan": lambda: qbridge.plan_parts(W8A8, "parts", "lmdeploy"),
    "convert a part": lambda: qbridge.convert_part(W8A8, "parts", "lmdeploy", 1, 1),
    "finish": lambda: qbridge.finish("parts"),
    "verify": lambda: qbridge.verify(W8A8, "dst"),
    "prove": lambda: qbridge.prove("dst", "vllm"),
    "restore": lambda: qbridge.restore("dst", "back"),
    "clean": lambda: qbridge.clean("dst"),
    "explain a message": lambda: qbridge.explain(SEED, W8A8),
    "explain what is unknown": lambda: qbridge.explain("hello"),
    "explain a code": lambda: qbridge.explain("QB202"),
}
BARE = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
# Lines that stay whole: what is pasted, and places, which are names.
WHOLE = re.compile(
    r"^ *(?:help: )?(?:qbridge|lmdeploy|vllm|model = |from |\w+(?: \d+)? +(?:qbridge|lmdeploy|vllm|from )|-->)"
)


def shown(ask, width):
    """What a terminal shows of an answer or a refusal, without colour."""
    console = Console(file=StringIO(), force_terminal=True, width=width, color_system=None, soft_wrap=True)
    console.highlighter = None
    try:
        display.answer(ask(), console, console)
    except qbridge.QBridgeError as fault:
        render.findings(console, fault.findings)
    text = re.sub(r"(?m)^(time +)[\d.]+ s$", r"\g<1>0.0 s", console.file.getvalue())
    text = re.sub(r"(?m)^(python +)\S*$", r"\g<1>PYTHON", text)
    return re.sub(r"(?m)^(plan +)[0-9a-f]{64}$", r"\g<1>DIGEST", text)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_command_reads_well(width, tmp_path, monkeypatch, accept):
    (tmp_path / "fixtures").symlink_to(ROOT / "fixtures")
    monkeypatch.chdir(tmp_path)
    text = "".join(f"# {name}\n\n{shown(ask, width)}\n" for name, ask in ASKED.items())
    page = ROOT / f"tests/cli/widths/{width}.txt"
    if accept:
        page.parent.mkdir(exist_ok=True)
        page.write_text(text)
    assert text == page.read_text()


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal_but_what_is_pasted(width):
    lines = (ROOT / f"tests/cli/widths/{width}.txt").read_text().splitlines()
    assert not [line for line in lines if len(line) > width and not WHOLE.match(line)]
    listed = shown(listing, width).splitlines()
    assert not [line for line in listed if len(line) > width and " " in line.strip()[:width]]


def test_every_command_is_there():
    from qbridge.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names - {"config"} <= {name.split()[0] for name in ASKED}


def on_a_terminal(width, *words):
    """What a person sees of a command on a terminal that is so wide."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    seen: list[bytes] = []

    def read():
        with suppress(OSError):  # the end of a pseudo-terminal
            while part := os.read(master, 1 << 16):
                seen.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    words = [sys.executable, "-m", "qbridge", *words]
    subprocess.run(words, stdin=slave, stdout=slave, stderr=slave, env={**BARE, "TERM": "xterm", "NO_COLOR": "1"})
    os.close(slave)
    reader.join()
    os.close(master)
    return b"".join(seen).decode().replace("\r\n", "\n")


def test_a_real_terminal_gets_the_same_lines():
    seen = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(60, "targets"))
    assert seen == shown(target_names, 60)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux")
def test_in_tmux_no_line_runs_over_the_edge(tmp_path):
    out = tmp_path / "out"
    server = ["tmux", "-f", "/dev/null", "-S", str(tmp_path / "socket")]
    command = shlex.join([sys.executable, "-m", "qbridge", "formats"])
    script = f"{command}; {shlex.join([*server, 'capture-pane', '-p', '-S', '-'])} > {shlex.quote(str(out))}"
    start = [*server, "new-session", "-d", "-x", "60", "-y", "50", script]
    done = subprocess.run(start, cwd=ROOT, timeout=60, env=BARE)
    if done.returncode:
        pytest.skip("tmux does not start here")
    for _ in range(600):
        if out.exists() and subprocess.run([*server, "has-session"], capture_output=True).returncode:
            break
        threading.Event().wait(0.1)
    lines = [line.rstrip() for line in out.read_text().splitlines() if line.strip()]
    assert lines == [line for line in shown(format_names, 60).splitlines() if line]
