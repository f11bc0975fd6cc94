"""The six errors of Hauberk. Each message names the value got, the value wanted and the next step."""

from __future__ import annotations

from typing import Any


class HauberkError(Exception):
    """Base of every error raised on purpose.

    Arguments:
        problem: what was found, with the value.
        want: what was expected in its place.
        fix: the next step for the reader.
    """

    def __init__(self, problem: str, *, want: str = "", fix: str = "") -> None:
        self.problem, self.want, self.fix = problem, want, fix
        parts = [_sentence(problem), _sentence(f"Expected {want}" if want else ""), _sentence(fix)]
        super().__init__(" ".join(part for part in parts if part))

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling of exceptions between processes.
        return (_rebuild, (type(self), self.problem, self.want, self.fix))


class UsageError(HauberkError):
    """A plan, an option or an argument cannot be used as given (exit code 2)."""


class DataError(HauberkError):
    """The data is missing, broken or does not fit the model."""


class ModelError(HauberkError):
    """The model cannot be loaded, does not answer, or answers nonsense."""


class AccessDenied(HauberkError):
    """A method asked for more access than the target grants."""


class BudgetExceeded(HauberkError):
    """The queries, gradients or seconds granted are spent.

    `partial` holds what an attack had reached until then: points in the ball, shape (n, ...), the clean inputs where nothing was
    found. It is None where there is no such thing.
    """

    partial: Any = None

    def keeping(self, partial: Any) -> BudgetExceeded:
        """Return the error with what was reached, and a word about it."""
        told = "What was reached until then is kept in error.partial"
        fix = self.fix if told in self.fix else f"{self.fix.rstrip('.')}. {told}"  # an attack may run another
        made = BudgetExceeded(self.problem, want=self.want, fix=fix)
        made.partial = partial
        return made


class UnsafeFile(HauberkError):
    """A file would run code, or is larger or deeper than the limits, and was not opened."""


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return a hint that names the known word nearest to `word`, or the first few when none is near."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    listed = ", ".join(sorted(known)[:12])
    return f"Known: {listed}{', …' if len(known) > 12 else ''}."


def require(module: str, extra: str, purpose: str) -> object:
    """Import an optional library where it is used, or say which extra installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{purpose} needs the library '{module}', which cannot be imported ({error})",
            want=f"the extra '{extra}' to be installed",
            fix=f"Run: pip install 'hauberk[{extra}]'",
        ) from error


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text.endswith((".", "?", "!", "…")) else text + "."


def _rebuild(kind: type[HauberkError], problem: str, want: str, fix: str) -> HauberkError:
    return kind(problem, want=want, fix=fix)
