"""What all commands share: where words go, and how errors end a command."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from hauberk.core.errors import HauberkError
from hauberk.core.finding import Status
from hauberk.report.report import EXIT_ERROR, EXIT_USAGE

EXIT_INTERRUPTED = 130
STYLES = {
    Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.ERROR: "bold red", Status.NOT_RUN: "dim",
}
Given = ParamSpec("Given")
Result = TypeVar("Result")


def command(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return the command with its errors as one line on stderr and an exit code; a traceback only with `-v`."""

    @functools.wraps(function)
    def run(*args: Given.args, **options: Given.kwargs) -> Result:
        verbose = bool(options.get("verbose"))
        try:
            return function(*args, **options)
        except HauberkError as error:
            complain(str(error), traceback=verbose)
            raise typer.Exit(EXIT_USAGE) from error
        except KeyboardInterrupt as error:
            complain("interrupted")
            raise typer.Exit(EXIT_INTERRUPTED) from error
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of a pipe has gone: no fault of ours
            hint = "" if verbose else " This is a fault in hauberk: -v shows where."
            complain(f"{type(error).__name__}: {error}.{hint}", traceback=verbose)
            raise typer.Exit(EXIT_ERROR) from error

    return run


def complain(problem: str, *, traceback: bool = False) -> None:
    """Write an error on stderr in one line."""
    import rich.console
    import rich.text

    console = rich.console.Console(stderr=True)
    if traceback:
        console.print_exception()
    text = rich.text.Text.assemble(("error: ", "bold red"), (_one_line(problem), "red"))
    console.print(text, soft_wrap=True)


def remark(text: str) -> None:
    """Write a remark on stderr in one line."""
    typer.echo(_one_line(text), err=True)


def say(text: str) -> None:
    """Write a result on stdout in one line, whatever characters a file's name in it has."""
    typer.echo(_one_line(text))


def _one_line(text: str) -> str:
    from hauberk.report.words import line

    return line(text)
