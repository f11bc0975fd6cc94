"""Feature squeezing: squeezers against NumPy and SciPy, scores against the formula, the threshold against its law."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from hauberk import Split, Target
from hauberk.core.errors import DataError, UsageError
from hauberk.robustness.detect import FeatureSqueezing
from hauberk.robustness.detect.feature_squeezing import median_filter, reduce_depth
from hauberk.robustness.detect.threshold import Threshold


def test_depth_reduction_is_the_papers_formula() -> None:
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    low, high = torch.tensor(0.0).double(), torch.tensor(1.0).double()
    for bits in (1, 3, 8):
        steps = 2**bits - 1
        np.testing.assert_allclose(reduce_depth(x, bits, low, high), np.rint(x.numpy() * steps) / steps, atol=1e-12)
    assert reduce_depth(x, 2, low, high).unique().numel() == 4
    shifted = reduce_depth(x * 4 - 2, 3, low * 4 - 2, high * 4 - 2)
    np.testing.assert_allclose(shifted, reduce_depth(x, 3, low, high).numpy() * 4 - 2, atol=1e-12)


@pytest.mark.parametrize("side", [2, 3, 4, 5])
def test_median_equals_scipy(side: int) -> None:
    x = torch.rand(2, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = [[ndimage.median_filter(one.numpy(), size=side, mode="nearest") for one in image] for image in x]
    np.testing.assert_array_equal(median_filter(x, side), np.array(expected))


def test_the_score_is_the_largest_l1_distance() -> None:
    """With logits (a x, 0), depth 1 turns .4 into 0: the distance is 2 |p(.4) - p(0)|, p a sigmoid."""
    model = nn.Linear(1, 2, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[5.0], [0.0]]))
        model.bias.zero_()
    detector = FeatureSqueezing(bits=(1, 8), fpr=0.5)
    detector.fit(Split(torch.rand(9, 1).double(), torch.zeros(9)), Target(model))
    found = detector.score(torch.tensor([[0.4], [0.0], [1.0]], dtype=torch.float64))
    expected = 2 * (1 / (1 + np.exp(-2.0)) - 0.5)
    assert found.tolist() == pytest.approx([expected, 0.0, 0.0], abs=1e-12)


def test_the_threshold_is_the_conformal_quantile() -> None:
    for n, fpr, rank in ((99, 0.05, 95), (100, 0.05, 96), (19, 0.05, 19), (10, 0.5, 6)):
        threshold = Threshold(fpr)
        threshold.set(torch.randperm(n, generator=torch.Generator().manual_seed(n)).double() + 1)
        assert threshold.value == rank
    with pytest.raises(DataError, match="at least 19"):
        Threshold(0.05).set(torch.zeros(18))
    with pytest.raises(DataError, match="NaN"):
        Threshold(0.5).set(torch.full((9,), torch.nan))


def test_the_rate_holds_for_any_law_of_scores() -> None:
    """Exchangeable scores of a heavy tail, and with many ties: the mean false-positive rate is at most 10 %."""
    draw = torch.Generator().manual_seed(3)
    for ties in (False, True):
        alarms = []
        for _ in range(2000):
            scores = torch.rand(60, generator=draw).reciprocal()
            scores = scores.floor() if ties else scores
            threshold = Threshold(0.1)
            threshold.set(scores[:40])
            alarms.append(float((scores[40:] > threshold.value).double().mean()))
        mean = float(np.mean(alarms))
        assert mean <= 0.1 + 3 * float(np.std(alarms)) / 2000**0.5
        assert ties or mean > 0.08  # and it is not needlessly low


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="no squeezer"):
        FeatureSqueezing(bits=(), windows=())
    with pytest.raises(UsageError, match="depths"):
        FeatureSqueezing(bits=(0,))
    detector = FeatureSqueezing(bits=(), windows=(2,), fpr=0.5)
    with pytest.raises(UsageError, match="need images"):
        detector.fit(Split(torch.rand(9, 4), torch.zeros(9)), nn.Linear(4, 2))
