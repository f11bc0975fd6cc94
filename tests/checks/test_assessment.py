"""assess: an argument that is not what its name asks for is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import hauberk
from hauberk import Data, Linf
from hauberk.core.errors import UsageError


def never(x: Any) -> Any:
    raise AssertionError("the model was asked")


@pytest.mark.parametrize(("given", "problem", "fix"), [
    ({"preset": "fast"}, "preset is 'fast'", ""),
    ({"preset": "quik"}, "preset is 'quik'", "Did you mean 'quick'?"),
    ({"threat": 0.05}, "threat is 0.05", "Give threat=hauberk.Linf(0.05), or leave it out"),
    ({"threat": ()}, "threat is a tuple", "Give threat=hauberk.Linf(0.1), or leave it out"),
    ({"threat": [Linf(0.1), "l2"]}, "threat is a list", "Give threat=hauberk.Linf(0.1), or leave it out"),
    ({"data": "sklearn:wine"}, "data is 'sklearn:wine'", "Make one: hauberk.load_data('sklearn:wine')"),
    ({"data": None}, "data is None", "Make one: hauberk.load_data(test, bounds=(0, 1))"),
    ({"select": ["robustnes"]}, "no check is named by 'robustnes'", "Did you mean 'robustness'?"),
    ({"ignore": "robustnes"}, "no check is named by 'robustnes'", "Did you mean 'robustness'?"),
    ({"seed": -1}, "seed is -1", ""), ({"seed": 0.5}, "seed is 0.5", ""),
])
def test_wrong_arguments_are_refused_in_words(
    digits: Data, tmp_path: Path, given: dict[str, Any], problem: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        hauberk.assess(never, output=tmp_path / "run", **{"data": digits, **given})
    assert (caught.value.problem, caught.value.fix) == (problem, fix)
    assert caught.value.want or problem.startswith("no check")
    assert not (tmp_path / "run").exists()


def test_one_check_may_be_named_without_a_list(digits: Data, digits_model: nn.Module) -> None:
    report = hauberk.assess(digits_model, digits, select="robustness/clean-accuracy")
    assert [one.id for one in report.findings] == ["robustness/clean-accuracy"]
    status = report.findings[0].status.value
    assert repr(report) == f"Report(1 finding: 1 {status})"
