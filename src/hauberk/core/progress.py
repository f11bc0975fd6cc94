"""Progress: long loops say where they are; who listens (a terminal, a log, nobody) is chosen once, at the top."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Listener(Protocol):
    """Is told of each step of a long loop."""

    def update(self, label: str, done: int, total: int | None) -> None:
        """Take note that `done` of `total` steps of `label` are finished."""
        ...


_listener: contextvars.ContextVar[Listener | None] = contextvars.ContextVar("hauberk_progress", default=None)


@contextlib.contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Send the progress of the block to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def update(label: str, done: int, total: int | None = None) -> None:
    """Report one step."""
    listener = _listener.get()
    if listener is not None:
        listener.update(label, done, total)


def say(text: str) -> None:
    """Tell whoever listens a remark, such as a figure that changes during a loop; a listener without `say` does not hear it."""
    tell = getattr(_listener.get(), "say", None)
    if tell is not None:
        tell(text)


def finished(text: str) -> None:
    """Tell whoever listens that a stage of a long piece of work is done; a listener without `stage` does not hear it."""
    tell = getattr(_listener.get(), "stage", None)
    if tell is not None:
        tell(text)


def track(items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items and report each as done when the next is asked for."""
    size = total if total is not None else (len(items) if isinstance(items, Sized) else None)
    for done, item in enumerate(items):
        update(label, done, size)
        yield item
    update(label, size if size is not None else 1, size)
