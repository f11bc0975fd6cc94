"""Property inference: what is true of the training data as a whole, read off the weights by a classifier of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.finding import Interval
from hauberk.core.stats import clopper_pearson, wilson
from hauberk.core.train import fit
from hauberk.privacy.inference.neurons import DeepSets, Layers, layers_of, sorted_neurons, stacked

Meta = Literal["deepsets", "sorted"]


@dataclasses.dataclass(frozen=True)
class PropertyVerdict:
    """How well a property is told from a guess.

    Arguments:
        n: models judged.
        accuracy, interval: share told right (Wilson).
        p: that a guess does as well (exact, one-sided).
        chance: share that is right by always saying the commoner of the two: one half where as many models have the property.
    """

    n: int
    accuracy: float
    interval: Interval
    p: float
    chance: float = 0.5

    @property
    def leaks(self) -> bool:
        """Whether the accuracy is surely above chance."""
        return clopper_pearson(round(self.accuracy * self.n), self.n).low > self.chance


def property_inference(
    victims: Sequence[nn.Module], shadows: Sequence[nn.Module], holds: Tensor, *, meta: Meta = "deepsets", steps: int = 400,
    seed: int = 0,
) -> Tensor:
    """Return how likely each victim's training data has a property, shape (victims,), from shadows with and without it.

    The order of a layer's neurons means nothing, so the classifier must not see it: `deepsets` sums a learnt summary of each
    neuron over the layer (Ganju et al. 2018, CCS); `sorted` brings all neurons into one order and fits a ridge classifier.

    Arguments:
        victims: models to judge, of one layout: linear and convolution layers, one after the other.
        shadows: models that the adversary trained, of the same layout.
        holds: whether each shadow's data has the property, shape (shadows,), bool.
        meta: `deepsets` or `sorted`.
        steps: of the training of `deepsets`.
        seed: of its weights.

    Returns:
        Probabilities, float64 (of `sorted`: the score pushed through a sigmoid).

    Raises:
        ModelError: for models of another layout.
        DataError: for fewer than 2 shadows with or without the property.
    """
    holds = holds.bool()
    _refuse_few(len(shadows), holds)
    if meta == "sorted":
        return _sorted(victims, shadows, holds)
    if meta != "deepsets":
        raise UsageError(f"meta is '{meta}'", want="deepsets | sorted")
    return _deepsets(victims, shadows, holds, steps, seed)


def judge_property(scores: Tensor, truth: Tensor) -> PropertyVerdict:
    """Return how often scores above one half tell the truth, shape (n,) each.

    Raises:
        DataError: for no models, or other numbers of scores and truths.
    """
    from scipy.stats import binomtest

    n = len(truth)
    if not n or len(scores) != n:
        raise DataError(f"there are {len(scores)} scores and {n} truths", want="one each, at least one")
    right = int(((scores > 0.5) == truth.bool()).sum())
    held = int(truth.bool().sum())
    chance = max(held, n - held) / n
    p = float(binomtest(right, n, chance, alternative="greater").pvalue)
    return PropertyVerdict(n, right / n, wilson(right, n), p, chance)


def shadow_models(
    build: Callable[[], nn.Module], without: Split, having: Split, *, count: int, size: int,
    train: Callable[[nn.Module, Split], Any] = fit, seed: int = 0,
) -> tuple[list[nn.Module], Tensor]:
    """Return models trained by turns on draws of data without and with the property, and which have it, shape (count,), bool.

    Arguments:
        build: returns a new, untrained model.
        without, having: pools to draw from.
        count: models to train.
        size: records each is trained on.
        train: trains a model in place: `fit`, or a call of it with options of your own.
        seed: of weights and draws.
    """
    models = []
    for index in range(count):
        pool = having if index % 2 else without
        with rng.isolated(rng.derive_seed(seed, "property shadow", index)):
            model = build()
            train(model, Split(*pool.sample(size, rng.derive_seed(seed, "draw", index), "property")))
        models.append(model.eval())
    return models, torch.arange(count) % 2 == 1


def property_by_answers(victims: Tensor, shadows: Tensor, holds: Tensor) -> Tensor:
    """Return how likely each victim's training data has a property, shape (victims,), from answers to the same inputs alone.

    A ridge classifier of the log-probabilities: what is left to an adversary who may ask a model and not open it.

    Arguments:
        victims: logits of the models to judge, shape (victims, inputs, classes).
        shadows: logits of models that the adversary trained, on the same inputs, shape (shadows, inputs, classes).
        holds: whether each shadow's data has the property, shape (shadows,), bool.

    Raises:
        DataError: for answers to other inputs, or fewer than 2 shadows with or without the property.
    """
    holds = holds.bool()
    if victims.ndim != 3 or victims.shape[1:] != shadows.shape[1:]:
        raise DataError(
            f"the answers have shapes {tuple(victims.shape)} and {tuple(shadows.shape)}", want="(models, inputs, classes) each"
        )
    _refuse_few(len(shadows), holds)
    rows, asked = (one.double().log_softmax(2).clamp_min(-16).flatten(1) for one in (shadows, victims))  # -inf is a 0
    return _ridge(rows, asked, holds)


def _refuse_few(shadows: int, holds: Tensor) -> None:
    if len(holds) != shadows or min(int(holds.sum()), int((~holds).sum())) < 2:
        raise DataError(
            f"there are {shadows} shadows, {int(holds.sum())} of {len(holds)} with the property", want="at least 2 of each"
        )


def _sorted(victims: Sequence[nn.Module], shadows: Sequence[nn.Module], holds: Tensor) -> Tensor:
    stacked([layers_of(one) for one in (*shadows, *victims)])  # refuses models of another layout
    rows = torch.stack([sorted_neurons(one) for one in shadows])
    return _ridge(rows, torch.stack([sorted_neurons(one) for one in victims]), holds)


def _ridge(rows: Tensor, asked: Tensor, holds: Tensor) -> Tensor:
    middle, spread = rows.mean(0), rows.std(0)
    spread = torch.where(spread > 1e-12, spread, torch.inf)
    rows, asked = (rows - middle) / spread, (asked - middle) / spread
    side = holds.to(rows) * 2 - 1
    side = side - side.mean()
    # More weights than models: solved among the models, with a penalty of one tenth of the mean size.
    gram = rows @ rows.T
    slack = 0.1 * gram.diagonal().mean() * torch.eye(len(rows)).to(gram)
    weight = torch.linalg.solve(gram + slack, side)
    return (asked @ (rows.T @ weight) * 4).sigmoid()


def _deepsets(victims: Sequence[nn.Module], shadows: Sequence[nn.Module], holds: Tensor, steps: int, seed: int) -> Tensor:
    both = stacked([layers_of(one) for one in (*shadows, *victims)])
    seen = [(weight[: len(shadows)], bias[: len(shadows)]) for weight, bias in both]
    known, asked = _scaled(seen, seen), _scaled([(weight[len(shadows) :], bias[len(shadows) :]) for weight, bias in both], seen)
    with rng.isolated(rng.derive_seed(seed, "property classifier")):
        judge = DeepSets(known).double()
    learn = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-2)
    with torch.enable_grad():
        for _ in range(steps):
            loss = functional.binary_cross_entropy_with_logits(judge(known), holds.double())
            learn.zero_grad(set_to_none=True)
            loss.backward()
            learn.step()
    with torch.no_grad():
        return judge(asked).sigmoid()


def _scaled(layers: Layers, by: Layers) -> Layers:
    """Bring each layer's weights and biases to mean 0 and deviation 1 over the shadows, all neurons alike."""
    found: Layers = []
    for (weight, bias), (base, shift) in zip(layers, by, strict=True):
        # The first layer's inputs have an order, so that each is scaled by itself; later ones have none.
        axes = (0, 1) if not found else (0, 1, 2)
        size, level = base.std(axes, keepdim=True).clamp_min(1e-9), base.mean(axes, keepdim=True)
        spread = float(shift.std()) if shift.numel() > 1 else 0.0
        found.append(((weight - level) / size, (bias - shift.mean()) / max(spread, 1e-9)))
    return found
