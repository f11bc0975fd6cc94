"""hauberk study: trains models, measures them all alike, and says what the data support."""

from __future__ import annotations

import contextlib
import enum
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from hauberk.cli import options
from hauberk.cli.console import EXIT_INTERRUPTED, command, complain

EXIT_TERMINATED = 128 + signal.SIGTERM


class Name(enum.StrEnum):
    """The studies there are."""

    ROBUSTNESS_PRIVACY = "robustness-privacy"


class ScaleName(enum.StrEnum):
    """How large a study is."""

    SMOKE = "smoke"
    SCALED = "scaled"
    FULL = "full"


@command
def study(
    name: Annotated[Name, typer.Argument(metavar="NAME", help="robustness-privacy: do robust models leak more, and why?")],
    *,
    data: Annotated[str, typer.Option(
        "--data", help="Images: mnist.npz, CIFAR-10, a folder of pictures, or sklearn:digits.")] = "sklearn:digits",
    scale: Annotated[ScaleName, typer.Option(help="smoke: minutes. scaled: hours on a CPU. full: a GPU.")] = ScaleName.SMOKE,
    network: Annotated[str, typer.Option(
        help="small-cnn, resnet18, preact-resnet18 or wrn-34-10; left out, what fits the images.")] = "",
    output: Annotated[Path, typer.Option(help="The folder of the report and of all that is finished.")] = Path("study"),
    seed: options.Seed = None, device: options.Device = None, quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Reproduce the study of what adversarial training costs in privacy, and say what the data support.

    Models are trained at growing radii and the gradients of the same images inverted on each. A run that was broken off goes on
    with the same command.
    """
    from hauberk.cli.watch import Watcher
    from hauberk.study import run_study

    try:
        with _stopped_in_order(), Watcher(quiet=quiet, verbose=verbose).watching():
            report = run_study(
                data, output, scale=scale.value, network=network, seed=seed or 0, device=device or "cpu"
            )
    except KeyboardInterrupt as error:
        complain(f"interrupted; what is finished is kept in {output}: the same command goes on from there")
        raise typer.Exit(EXIT_TERMINATED if error.args else EXIT_INTERRUPTED) from error
    for finding in report.findings:
        typer.echo(f"{finding.question}\n  {finding.summary}.\n")
    typer.echo(f"{'report':<8} {output / 'index.html'}")


@contextlib.contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Let SIGTERM end the block as an interrupt from the keyboard does, so that it too says what is kept."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
