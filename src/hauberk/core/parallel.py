"""Local parallel execution: tasks in fresh processes; a task that dies is reported, the others are kept."""

from __future__ import annotations

import concurrent.futures.process
import dataclasses
import multiprocessing
import pickle
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
            yield attempt(function, index, item)
        return
    left = dict(enumerate(items))
    try:
        with _pool(workers) as pool:
            futures = {pool.submit(_remote, function, index, item): index for index, item in left.items()}
            try:
                for future in concurrent.futures.as_completed(futures):
                    outcome = _outcome(future, futures[future])
                    del left[outcome.index]
                    yield outcome
            except KeyboardInterrupt:
                # What is half done is lost anyhow: who interrupts is not made to wait for it.
                for process in list(pool._processes.values()):
                    process.terminate()
                raise
            finally:
                # Who stops listening does not wait for tasks that have not begun.
                pool.shutdown(wait=False, cancel_futures=True)
    except concurrent.futures.process.BrokenProcessPool:
        yield from _one_by_one(function, left)


def _one_by_one(function: Callable[[In], Out], left: dict[int, In]) -> Iterator[Outcome[Out]]:
    while left:
        index = next(iter(left))
        with _pool(1) as pool:
            try:
                while left:
                    index = next(iter(left))
                    outcome = _outcome(pool.submit(_remote, function, index, left[index]), index)
                    del left[index]
                    yield outcome
            except concurrent.futures.process.BrokenProcessPool as error:
                del left[index]
                yield Outcome(index, error=error)


def _outcome(future: concurrent.futures.Future[Outcome[Out]], index: int) -> Outcome[Out]:
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise
    except Exception as error:  # the item could not be sent
        return Outcome(index, error=error)


def _remote(function: Callable[[In], Out], index: int, item: In) -> Outcome[Out]:
    """Attempt the task, and make sure that its outcome survives the way back."""
    outcome = attempt(function, index, item)
    try:
        pickle.loads(pickle.dumps(outcome))  # noqa: S301  (made one line above)
    except Exception as error:
        told = outcome.error if outcome.error is not None else error
        return Outcome(index, error=RuntimeError(f"{type(told).__name__}: {told}"))
    return outcome


def attempt(function: Callable[[In], Out], index: int, item: In) -> Outcome[Out]:
    """Return what becomes of the function of an item."""
    try:
        return Outcome(index, function(item))
    except (Exception, SystemExit) as error:
        return Outcome(index, error=error)


def _pool(workers: int) -> concurrent.futures.ProcessPoolExecutor:
    # Spawned, not forked: a fork after torch has started its threads can hang.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_share, initargs=(workers,))


def _share(workers: int) -> None:
    import os

    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
