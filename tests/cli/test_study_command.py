"""hauberk study: what it tells off a terminal, and how it ends when it is stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from typer.testing import Result

from hauberk.core import progress

Run = Callable[..., Result]


def test_stages_are_told_off_a_terminal_and_a_stopped_study_says_what_is_kept(
    hauberk: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):

        def stopped(*_: object, number: int = number, **__: object) -> None:
            progress.say("going on: 2 finished parts")
            progress.update("epoch 1/2", 1, 2)
            progress.finished("training of standard")
            if number == signal.SIGINT:
                raise KeyboardInterrupt  # as Ctrl-C does; processes that a shell put in the background do not hear the signal
            os.kill(os.getpid(), number)
            raise AssertionError("the signal was not heard")

        monkeypatch.setattr("hauberk.study.run_study", stopped)
        kept = signal.getsignal(signal.SIGTERM)
        run = hauberk("study", "robustness-privacy", "--output", "study")
        assert run.exit_code == code and signal.getsignal(signal.SIGTERM) is kept
        lines = run.stderr.splitlines()
        assert lines[:2] == ["going on: 2 finished parts", "finished: training of standard"]
        assert lines[2:] == ["error: interrupted; what is finished is kept in study: the same command goes on from there"]
        assert not hauberk("study", "robustness-privacy", "--quiet").stderr.startswith("going on")
