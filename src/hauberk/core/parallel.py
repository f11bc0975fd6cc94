"""Local parallel execution: tasks in fresh processes; a task that dies is reported, the others are kept."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


@dataclasses.dataclass
class Outcome(Generic[Out]):
    """What became of one task: its value, or the error it ended in."""

    index: int
    value: Out | None = None
    error: BaseException | None = None


def run_tasks(
    function: Callable[[In], Out], items: Sequence[In], *, workers: int = 1
) -> Iterator[Outcome[Out]]:
    """Run `function` on every item and yield the outcomes as they come.

    Arguments:
        function: importable by name when `workers` > 1.
        items: picklable when `workers` > 1.
        workers: processes; 1 runs in this one. Each worker gets its share of the torch threads.

    Returns:
        An iterator of outcomes, in order of completion. An exception in a task is its outcome, never raised here; a worker
        that is killed ends the tasks it held, which are then run again one by one, so that only the deadly one is lost.
    """
    if workers <= 1 or len(items) <= 1:
        for index, item in enumerate(items):
            yield _attempt(function, index, item)
        return
    left = dict(enumerate(items))
    try:
        with _pool(workers) as pool:
            futures = {pool.submit(_attempt, function, index, item): index for index, item in left.items()}
            for future in concurrent.futures.as_completed(futures):
                outcome = future.result()
                del left[outcome.index]
                yield outcome
    except concurrent.futures.process.BrokenProcessPool:
        for index, item in list(left.items()):
            try:
                with _pool(1) as pool:
                    yield pool.submit(_attempt, function, index, item).result()
            except concurrent.futures.process.BrokenProcessPool as error:
                yield Outcome(index, error=error)


def _attempt(function: Callable[[In], Out], index: int, item: In) -> Outcome[Out]:
    try:
        return Outcome(index, function(item))
    except Exception as error:
        return Outcome(index, error=error)


def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    # Spawned, not forked: a fork after torch has started its threads can hang.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_share, initargs=(workers,))


def _share(workers: int) -> None:
    import os

    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
