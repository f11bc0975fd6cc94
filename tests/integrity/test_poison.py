"""Poisons, and the audits that should find them: known masks, known success."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from hauberk import Data, Schedule, Split, fit
from hauberk.core.errors import DataError, UsageError
from hauberk.core.roc import roc
from hauberk.integrity.backdoor import badnets, spectral_signatures
from hauberk.integrity.backdoor.badnets import success_rate_inputs
from hauberk.integrity.poison import knn_disagreement, label_flip
from hauberk.integrity.poison.neighbours import nearest, neighbour_votes


def auroc(scores: torch.Tensor, mask: torch.Tensor) -> float:
    return roc(scores[mask].numpy(), scores[~mask].numpy()).auc


def test_flipped_labels_are_wrong_and_evenly_spread(digits: Data) -> None:
    poisoned = label_flip(digits, rate=1.0)
    shift = (poisoned.train.y - digits.train.y) % 10
    assert bool((shift != 0).all())
    assert stats.chisquare(torch.bincount(shift, minlength=10)[1:].numpy()).pvalue > 1e-3
    one_way = label_flip(digits, rate=0.02, source=4, target_label=9)
    assert set(digits.train.y[one_way.mask].tolist()) == {4}
    assert set(one_way.train.y[one_way.mask].tolist()) == {9}
    with pytest.raises(DataError, match="can be poisoned"):
        label_flip(digits, rate=0.5, source=4)


@pytest.mark.parametrize(("rate", "least"), [(0.05, 0.995), (0.2, 0.99)])
def test_neighbours_find_flipped_labels(digits: Data, rate: float, least: float) -> None:
    """The published figure for neighbours on digits is .998 and .996."""
    poisoned = label_flip(digits, rate=rate, seed=1)
    assert auroc(knn_disagreement(poisoned.train), poisoned.mask) > least


def test_a_patch_buys_the_answer_and_neighbours_find_it(digits: Data, fresh_cnn: Callable[..., nn.Module]) -> None:
    poisoned = badnets(digits, rate=0.05, target_label=0)
    model = fresh_cnn()
    fit(model, poisoned.train, schedule=Schedule(epochs=20, batch_size=64))
    x, wanted = success_rate_inputs(poisoned)
    assert len(x) == int((digits.test.y != 0).sum())
    with torch.no_grad():
        bought = float((model(x).argmax(1) == wanted).double().mean())
        clean_x, clean_y = digits.test.tensors()
        clean = float((model(clean_x).argmax(1) == clean_y).double().mean())
    assert bought >= 0.9  # a detector is judged only where there is something to detect
    assert clean > 0.9
    assert auroc(knn_disagreement(poisoned.train), poisoned.mask) > 0.9


def test_the_patch_is_where_it_should_be(digits: Data) -> None:
    poisoned = badnets(digits, rate=0.05, target_label=3, size=2, margin=1)
    x = torch.zeros(1, 1, 8, 8)
    assert poisoned.trigger is not None
    assert (poisoned.trigger(x)[0, 0] == 1).nonzero().tolist() == [[5, 5], [5, 6], [6, 5], [6, 6]]
    wide = Data(digits.test, digits.train, bounds=(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 2.0)), classes=10)
    trigger = badnets(wide, rate=0.05).trigger
    assert trigger is not None
    assert float(trigger(x).max()) == 2
    assert not bool((digits.train.y[poisoned.mask] == 3).any())
    with pytest.raises(UsageError, match="do not fit"):
        badnets(digits, size=8, margin=1)


def test_nearest_equals_brute_force(digits: Data) -> None:
    points = digits.train.first(300)[0].flatten(1)
    distances, index = nearest(points, 5)
    exact = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")
    exact.fill_diagonal_(torch.inf)
    torch.testing.assert_close(distances, exact.topk(5, largest=False).values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.gather(1, index), distances, rtol=1e-9, atol=1e-9)


def test_votes_equal_those_of_scikit_learn(digits: Data) -> None:
    """Leave-one-out class probabilities of the distance-weighted classifier; no digits are so near that the floor counts."""
    x, y = digits.train.first(200)
    points = x.flatten(1).double().numpy()
    votes = neighbour_votes(Split(x, y), neighbours=7)
    assert torch.equal(1 - votes[torch.arange(200), y], knn_disagreement(Split(x, y), neighbours=7))
    for i in range(0, 200, 20):
        others = np.delete(np.arange(200), i)
        peer = KNeighborsClassifier(7, weights="distance", algorithm="brute").fit(points[others], y[others].numpy())
        expected = np.zeros(10)
        expected[peer.classes_] = peer.predict_proba(points[i : i + 1])[0]
        np.testing.assert_allclose(votes[i], expected, atol=1e-6)


def test_copies_do_not_make_infinite_votes() -> None:
    x = torch.cat([torch.zeros(3, 2), torch.ones(3, 2), torch.full((1, 2), 2.0)])
    votes = neighbour_votes(Split(x, torch.tensor([0, 0, 1, 1, 1, 1, 0])), neighbours=3)
    assert bool(votes.isfinite().all())
    torch.testing.assert_close(votes.sum(1), torch.ones(7, dtype=torch.float64))
    with pytest.raises(DataError, match="at least two"):
        knn_disagreement(Split(x[:1], torch.tensor([0])))


def test_spectral_scores_are_squared_projections_on_the_first_singular_vector(digits: Data) -> None:
    x, y = digits.train.first(400)
    scores = spectral_signatures(Split(x, y))
    for label in (0, 7):
        rows = x[y == label].flatten(1).double().numpy()
        centred = rows - rows.mean(0)
        squares = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
        np.testing.assert_allclose(scores[y == label], squares / squares.mean(), rtol=1e-8)


def test_a_planted_signature_is_found() -> None:
    """Features with a shifted minority, as the paper's definition of a separable poison has it."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(600, 16, generator=draw)
    mask = torch.arange(600) < 60
    x[mask, 3] += 5
    assert auroc(spectral_signatures(Split(x, torch.zeros(600, dtype=torch.long))), mask) > 0.99
