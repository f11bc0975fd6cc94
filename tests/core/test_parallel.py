"""Local processes: outcomes for everything, whatever a task does."""

from __future__ import annotations

import os

import pytest
import torch

from hauberk.core.errors import DataError
from hauberk.core.parallel import run_tasks


class Stubborn(Exception):
    """Can be pickled but not unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def work(item):
    if item == "die":
        os._exit(3)
    if item == "refuse":
        raise DataError("nothing there", want="something", fix="look again")
    if item == "stubborn":
        raise Stubborn(1, 2)
    if item == "leave":
        raise SystemExit(4)
    if item == "unsendable":
        return lambda: None
    return item * 2, os.getpid(), torch.get_num_threads()


def test_one_worker_runs_here_and_in_order():
    outcomes = list(run_tasks(work, [1, 2, "refuse", "leave", 3]))
    assert [one.index for one in outcomes] == [0, 1, 2, 3, 4]
    assert [one.value[0] for one in outcomes if one.value] == [2, 4, 6]
    assert {one.value[1] for one in outcomes if one.value} == {os.getpid()}
    assert isinstance(outcomes[2].error, DataError) and outcomes[2].error.fix == "look again"
    assert isinstance(outcomes[3].error, SystemExit)


@pytest.fixture(scope="module")
def rough():
    items = [1, "refuse", 2, "stubborn", 3, "die", "unsendable", 4, "leave", 5]
    return items, {one.index: one for one in run_tasks(work, items, workers=2)}


def test_a_worker_that_dies_loses_only_its_own_task(rough):
    items, outcomes = rough
    assert sorted(outcomes) == list(range(len(items)))
    assert {index: one.value[0] for index, one in outcomes.items() if one.value} == {0: 2, 2: 4, 4: 6, 7: 8, 9: 10}
    assert "terminated abruptly" in str(outcomes[5].error)


def test_errors_come_back_as_outcomes_with_their_text(rough):
    _, outcomes = rough
    assert isinstance(outcomes[1].error, DataError)
    assert (outcomes[1].error.problem, outcomes[1].error.want) == ("nothing there", "something")
    assert str(outcomes[3].error) == "Stubborn: 1 and 2"
    assert "lambda" in str(outcomes[6].error)
    assert isinstance(outcomes[8].error, SystemExit)


def test_items_that_cannot_be_sent_are_outcomes():
    outcomes = {one.index: one for one in run_tasks(work, [1, lambda: None, 3], workers=2)}
    assert {index: one.value[0] for index, one in outcomes.items() if one.value} == {0: 2, 2: 6}
    assert outcomes[1].error is not None
    values = [one.value for one in outcomes.values() if one.value]
    assert os.getpid() not in {value[1] for value in values}
    assert {value[2] for value in values} == {max(1, (os.cpu_count() or 1) // 2)}
