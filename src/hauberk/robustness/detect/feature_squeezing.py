"""Feature squeezing: an adversarial example is one whose answer changes when its needless detail is taken away."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.errors import UsageError
from hauberk.core.kinds import detector
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Bounds
from hauberk.robustness.detect.threshold import Threshold


@detector(
    name="feature-squeezing", access=Access.SCORE,
    question="Does the answer change when bits and fine detail are taken away?",
    paper="Xu et al. 2018, arXiv:1704.01155",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.M0015", "owasp:ML01", "nist:NISTAML.022"),
)
class FeatureSqueezing:
    """Flag inputs whose class probabilities move far when colour depth is reduced or a median filter is applied.

    Arguments:
        bits: colour depths to try.
        windows: sides of the median windows to try, in pixels; only for images. None tries 2 on images of at least 16 pixels:
            on smaller ones every median changes the answer.
        fpr: the false-positive rate that flags may have on clean inputs.
        bounds: lowest and highest input; None takes those of the target, else (0, 1).

    Raises:
        UsageError: for no squeezer at all, or figures that make no sense.
    """

    def __init__(
        self, *, bits: tuple[int, ...] = (3,), windows: tuple[int, ...] | None = None, fpr: float = 0.05,
        bounds: Bounds | None = None,
    ) -> None:
        if not bits and not windows:
            raise UsageError("no squeezer was named", want="a colour depth or a median window")
        if any(not 1 <= depth <= 16 for depth in bits) or any(side < 2 for side in windows or ()):
            raise UsageError(f"bits are {bits} and windows {windows}", want="depths of 1 to 16 and windows of 2 or more")
        self.bits, self.windows, self.bounds = bits, windows, bounds
        self._threshold = Threshold(fpr)
        self._target: Target | None = None

    @property
    def fpr(self) -> float:
        """The false-positive rate stated."""
        return self._threshold.fpr

    @property
    def threshold(self) -> float:
        """The score above which an input is flagged; set by `fit`."""
        return self._threshold.value

    def fit(self, data: Split, target: Target | nn.Module) -> FeatureSqueezing:
        """Set the threshold on clean samples and return the detector.

        Arguments:
            data: clean samples that neither trained the model nor will be used to judge the detector; at least 1 / fpr - 1.
            target: the model to guard, with SCORE access.

        Raises:
            DataError: when there are too few samples for the rate stated.
        """
        self._target = as_target(target)
        scores = [self.score(x) for x, _ in data.batches(self._target.batch_size)]
        self._threshold.set(torch.cat(scores) if scores else torch.zeros(0))
        return self

    def score(self, x: Tensor) -> Tensor:
        """Return how far the answer to each input moves, shape (n,), from 0 to 2: the largest L1 distance over the squeezers.

        Each score depends on its own sample alone.

        Raises:
            UsageError: before `fit`.
        """
        if self._target is None:
            raise UsageError("the detector has no model yet", fix="Call fit(clean, target) first")
        x = x.detach()
        if not len(x):
            return x.new_zeros(0)
        plain = self._target.scores(x)  # (n, classes)
        moved = [(self._target.scores(squeezed) - plain).abs().sum(1) for squeezed in self.squeezed(x)]
        return torch.stack(moved).amax(0)

    def flag(self, x: Tensor) -> Tensor:
        """Return which inputs look adversarial, shape (n,), bool; of clean ones at most the stated rate, on average."""
        return self.score(x) > self.threshold

    def squeezed(self, x: Tensor) -> list[Tensor]:
        """Return x, shape (n, ...), through each squeezer."""
        given = self.bounds if self.bounds is not None else self._target.bounds if self._target is not None else None
        low, high = (torch.as_tensor(end).to(x) for end in (given or (0.0, 1.0)))
        found = [reduce_depth(x, bits, low, high) for bits in self.bits]
        if x.ndim == 4:
            windows = self.windows if self.windows is not None else (2,) if min(x.shape[2:]) >= 16 else ()
            found += [median_filter(x, side) for side in windows]
        if not found:
            raise UsageError(f"median windows need images, x has shape {tuple(x.shape)}", want="(n, channels, height, width)")
        return found


def reduce_depth(x: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    """Return x rounded to 2**bits levels between `low` and `high`, ends included."""
    steps = 2**bits - 1
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return low + ((x - low) / span * steps).round() / steps * (high - low)


def median_filter(x: Tensor, side: int) -> Tensor:
    """Return x, shape (n, c, h, w), with each pixel replaced by the median of the window that ends half a side after it.

    An even window has no middle: the upper of the two middle values is taken, as SciPy does. The border is repeated.
    """
    before, after = side // 2, (side - 1) // 2
    padded = functional.pad(x, (before, after, before, after), mode="replicate")
    windows = padded.unfold(2, side, 1).unfold(3, side, 1).flatten(4)  # (n, c, h, w, side * side)
    return windows.kthvalue(math.floor(side * side / 2) + 1, dim=4).values
