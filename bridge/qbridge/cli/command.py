"""What every command has: its options, how its result is printed, what errors become, and its exit code."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from itertools import takewhile
from shutil import get_terminal_size
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from qbridge import display, render
from qbridge.cli.logs import shown_logs
from qbridge.cli.options import Json, Quiet, Verbose
from qbridge.commands.results import SCHEMA, Result
from qbridge.commands.settings import settings
from qbridge.findings.catalogue.code import INTERRUPTED, USAGE
from qbridge.findings.finding import Finding, QBridgeError, Severity, error

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # the one that typer exports is of this class

_NOTHING = "nothing was written"
_TABLES = 80  # columns of a terminal, at which no table cuts a name


def stdout() -> Console:
    """Where data goes."""
    return Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    """Where findings and progress go."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class _Flags:
    """A command or group in whose help flags stand without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Every parameter; a flag takes no value, so its help names none."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
        return params


class Command(_Flags, TyperCommand):
    """A command whose options of one value are given at most once: the last of two would win in silence."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help: in tables, or plainly where their columns would cut the names of options."""
        if get_terminal_size().columns < _TABLES:
            self.rich_markup_mode = None
            shown: list[Any] = self.params
            for row in shown:
                row.help = Text.from_markup(row.help or "").plain
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; a usage error for an option that is given twice."""
        names = [word.partition("=")[0] for word in takewhile(lambda word: word != "--", args)]
        for option in self.params:
            repeatable = getattr(option, "multiple", True) or getattr(option, "is_flag", False)
            if not repeatable and sum(name in option.opts for name in names) > 1:
                ctx.fail(f"{option.opts[0]} is given more than once")
        return super().parse_args(ctx, args)


class Program(_Flags, TyperGroup):
    """The program, whose usage errors are JSON where JSON was asked for."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Parse what stands before the command."""
        with _usage_as_json(list(args)):
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Parse and run the command."""
        args = [*ctx._protected_args, *ctx.args]
        with _usage_as_json(args), _answering(next(iter(args), ""), "--json" in args, ""):
            ctx.default_map = self._default_map()
            return super().invoke(ctx)

    def defaults(self) -> dict[str, dict[str, str]]:
        """The defaults of the options, by option and command."""
        found: dict[str, dict[str, str]] = {}
        for name, command in self.commands.items():
            for param in command.params:
                if param.param_type_name == "option":
                    default = "" if param.default is None else str(param.default)
                    found.setdefault(param.opts[0].lstrip("-"), {})[name] = default
        return found

    def _default_map(self) -> dict[str, dict[str, str]]:
        """What is set, by command and parameter, as it takes the place of the defaults."""
        found: dict[str, dict[str, str]] = {}
        for each in settings(self.defaults()).settings:
            for command in each.commands if each.origin != "default" else ():
                found.setdefault(command, {})[each.name.replace("-", "_")] = each.value
        return found


@contextmanager
def _usage_as_json(args: list[str]) -> Iterator[None]:
    try:
        yield
    except UsageError as fault:
        if "--json" not in args:
            raise
        command = next((word for word in args if not word.startswith("-")), "")
        print_errors(command, error("QB801", facts=(fault.format_message(),)).findings)  # type: ignore[attr-defined]
        raise typer.Exit(USAGE) from None


def print_json(value: Mapping[str, Any]) -> None:
    """Print a JSON object."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_errors(command: str, findings: tuple[Finding, ...]) -> None:
    """Print why a command came to nothing, as the JSON object that stands in place of its result."""
    print_json({"schema": SCHEMA, "command": command, "findings": [finding.as_dict() for finding in findings]})


def add(app: typer.Typer, function: Callable[..., Result], epilog: str | None = None, writes: bool = False) -> None:
    """Make a command of a function that gives a result: its name, parameters and docstring are those of the function.

    The command prints the result, or with --json its object, and exits with 1 where the answer is no. `writes` says
    that an error leaves nothing written, which is said below it.
    """

    @wraps(function)
    def run(*, as_json: bool, quiet: bool, verbose: int, **arguments: Any) -> None:
        least = Severity.ERROR if quiet else Severity.NOTE
        with shown_logs(verbose, quiet), _answering(function.__name__, as_json, _NOTHING if writes else ""):
            if quiet and "progress" in arguments:
                arguments["progress"] = "none"
            result = function(**arguments)
            if as_json:
                print_json(result.as_dict())
            else:
                display.answer(result, stdout(), stderr(), least)
            if result.exit_code:
                raise typer.Exit(result.exit_code)

    del run.__wrapped__
    signature = inspect.signature(function, eval_str=True)
    shared = inspect.signature(_shared, eval_str=True).parameters.values()
    parameters = [*signature.parameters.values(), *shared]
    run.__signature__ = signature.replace(parameters=parameters, return_annotation=None)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(cls=Command, epilog=epilog)(run)


def _shared(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> None:
    """The options of every command."""


@contextmanager
def _answering(command: str, as_json: bool, outcome: str) -> Iterator[None]:
    """Turn what the library raises into findings on stderr (or JSON on stdout) and the exit code."""
    try:
        yield
    except QBridgeError as fault:
        if as_json:
            print_errors(command, fault.findings)
        else:
            render.findings(stderr(), fault.findings, outcome)
        raise typer.Exit(fault.exit_code) from None
    except KeyboardInterrupt:
        again = "; the same command goes on where it stopped" if outcome else ""
        stderr().print(f"interrupted{again}")
        raise typer.Exit(INTERRUPTED) from None
