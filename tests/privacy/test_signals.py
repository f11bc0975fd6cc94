"""Membership signals against closed forms, and where a softmax would have rounded them all to one value."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import DataError
from hauberk.core.target import Target
from hauberk.privacy.membership import (
    confidence_membership,
    entropy_membership,
    loss_membership,
    modified_entropy,
    signals,
)

ROWS = st.lists(st.lists(st.floats(-8, 8), min_size=4, max_size=4), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(0, 3))
def test_signals_equal_their_textbook_formulas_where_those_are_exact(rows: list[list[float]], label: int) -> None:
    logits, y = torch.tensor(rows, dtype=torch.float64), torch.full((len(rows),), label)
    p = logits.softmax(1)
    own = p[:, label]
    modified = -(1 - own) * own.log()
    for other in range(4):
        if other != label:
            modified = modified - p[:, other] * (1 - p[:, other]).log()
    torch.testing.assert_close(signals.cross_entropy(logits, y), functional.cross_entropy(logits, y, reduction="none"))
    torch.testing.assert_close(signals.entropy(logits), -(p * p.log()).sum(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(signals.label_entropy(logits, y), modified, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("lead", [50.0, 200.0, 600.0])
def test_signals_keep_their_precision_where_a_softmax_saturates(lead: float) -> None:
    logits, y = torch.tensor([[lead, 0.0]], dtype=torch.float64), torch.tensor([0])
    tiny = math.exp(-lead)
    assert float(signals.cross_entropy(logits, y)) == pytest.approx(tiny, rel=1e-12)
    assert float(signals.entropy(logits)) == pytest.approx(tiny * (1 + lead), rel=1e-12)
    # -(1-p) log p - q log(1-q) with q = 1-p tiny: twice q squared.
    assert float(signals.label_entropy(logits, y)) == pytest.approx(2 * tiny * tiny, rel=1e-9)
    wrong = signals.label_entropy(logits, torch.tensor([1]))
    assert float(wrong) == pytest.approx(2 * lead, rel=1e-12)  # p log(1-p) of the sure class, and log p_y of the label


def test_float32_logits_with_leads_of_30_to_90_stay_ordered() -> None:
    leads = torch.linspace(30, 90, 61)
    x = torch.stack([leads, torch.zeros(61)], 1)
    assert len(x.softmax(1)[:, 0].unique()) < 10  # what a softmax leaves of them
    y = torch.zeros(61, dtype=torch.long)
    for rule in (loss_membership, entropy_membership, modified_entropy, confidence_membership):
        scores = rule(Target(lambda z: z), (x, y), (x, y)).members
        assert bool((scores.diff() > 0).all()), rule.__name__


def test_a_model_of_one_or_two_outputs_and_one_that_returns_probabilities_agree() -> None:
    z = torch.linspace(-5, 5, 11)[:, None]
    y = (torch.arange(11) % 2).long()
    both = torch.cat([torch.zeros_like(z), z], 1)

    def ask(function: object, kind: str) -> Tensor:
        return loss_membership(Target(function, outputs=kind), (z, y), (z, y)).members  # type: ignore[arg-type]

    torch.testing.assert_close(ask(lambda _: z, "logits"), ask(lambda _: both, "logits"))
    probabilities = ask(lambda _: both.softmax(1), "probabilities")
    torch.testing.assert_close(probabilities, ask(lambda _: both, "logits"), rtol=1e-4, atol=1e-6)


def test_labels_that_are_not_classes_are_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(DataError, match="labels span 0 to 2"):
        loss_membership(Target(lambda z: z), (x, torch.tensor([0, 1, 2])), (x, torch.tensor([0, 1, 0])))
    with pytest.raises(DataError, match=r"y has shape \(2,\)"):
        loss_membership(Target(lambda z: z), (x, torch.tensor([0, 1])), (x, torch.tensor([0, 1, 0])))
