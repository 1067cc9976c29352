"""The program: its commands in the order of the help, signals, and what a bug looks like."""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType

import typer

import qbridge
from qbridge import render
from qbridge.cli import asking, converting
from qbridge.cli.command import Program, add, stderr
from qbridge.cli.completion import joined_words
from qbridge.cli.options import Version
from qbridge.findings.catalogue import CATALOGUE
from qbridge.findings.catalogue.code import BUG, INTERRUPTED
from qbridge.findings.finding import Findings, QBridgeError
from qbridge.plan.distribution import namesake, qbridge_version

app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Convert quantized LLM checkpoints between layouts, losslessly or not at all.",
    epilog="Example: qbridge convert model-W8A8 model-lmdeploy --to lmdeploy",
)
_EXAMPLE = "Example: qbridge"
add(
    app, converting.convert, f"{_EXAMPLE} convert model-W8A8 model-lmdeploy --from llm-compressor --to lmdeploy", True
)
add(app, converting.plan, f"{_EXAMPLE} plan model-W8A8 model-lmdeploy --to lmdeploy")
add(app, converting.finish, f"{_EXAMPLE} finish model-lmdeploy")
add(app, converting.restore, writes=True)
add(app, asking.check, f"{_EXAMPLE} check Qwen2-72B-GPTQ-Int4 --for vllm --tp 2 --gpu sm90")
add(app, asking.what, f"{_EXAMPLE} what Qwen2-72B-GPTQ-Int4 --tp 2")
add(app, asking.prove, f"{_EXAMPLE} prove Qwen2-72B-vllm --in vllm --python ~/vllm/bin/python")
add(app, asking.inspect)
add(app, asking.verify)
add(app, converting.clean)
add(app, asking.formats)
add(app, asking.targets)
add(app, asking.explain)
add(app, asking.config)


@app.callback()
def _main(version: Version = False) -> None:
    """Convert quantized LLM checkpoints between layouts, losslessly or not at all."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _warn_of_namesake() -> None:
    """Say where the files of PyPI's other qbridge lie among these; exit where they have replaced one of them."""
    version = namesake()
    if not version:
        return
    replaced = not hasattr(qbridge, "list_formats")
    findings = Findings()
    package = str(Path(__file__).parent.parent)
    findings.add("QB602" if replaced else "QB601", package, (f"qbridge {version} of PyPI",))
    render.findings(stderr(), tuple(findings))
    if replaced:
        sys.exit(QBridgeError(findings).exit_code)


def main() -> None:
    """Run the program; a bug in qbridge exits with 70 and says what to report."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        _warn_of_namesake()
        with joined_words(os.environ) if "_QBRIDGE_COMPLETE" in os.environ else nullcontext():
            app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception:
        traceback.print_exc()
        versions = f"qbridge {qbridge_version()}, Python {platform.python_version()}"
        sys.stderr.write(f"\nbug[QB900]: {CATALOGUE['QB900'].title} ({versions}); arguments: {sys.argv[1:]}\n")
        sys.exit(BUG)
    finally:
        gc.freeze()  # the process ends: to look through all of it for garbage would take a tenth of a second
