"""The active test: a task with a known answer is put into the model, and the same attack has to find that answer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError
from hauberk.core.rng import derive_seed, generator, normal
from hauberk.core.stats import wilson
from hauberk.core.taps import first_input, penultimate
from hauberk.robustness.diagnose.alarm import Alarm, not_run
from hauberk.robustness.diagnose.case import Case, owners

NAME, LIMIT = "the attack misses what is there", 0.05
REMEDY = "Use a stronger attack, or one that goes around the masking part, before quoting a figure"
INNER, SHARE, CUT, LEAST = 24, 0.95, 0.9, 8
_FAR = -1e4
_ELEMENTS = 2**24


@dataclasses.dataclass(frozen=True)
class Heads:
    """One linear head per sample, that tells the one boundary point from the inner points.

    Arguments:
        x: the samples, shape (m, ...): a point belongs to the one it lies nearest to.
        weight: shape (m, d).
        bias: shape (m,).
    """

    x: Tensor
    weight: Tensor
    bias: Tensor

    def score(self, features: Tensor, owner: Tensor) -> Tensor:
        """Return how much each row of features, shape (n, d), looks like the boundary point of its owner, shape (n,)."""
        return (features * self.weight[owner].to(features)).sum(1) + self.bias[owner].to(features)


def missed(case: Case) -> Alarm:
    """Put a head on the model that one known point of each ball crosses, and see whether the plain attack crosses it.

    The binarisation test of Zimmermann et al. 2022 (arXiv:2206.13991): the features of the last linear layer of points well
    inside the ball are told from those of one point at its border, and the answer of that layer is replaced. An adversarial
    point then exists for every sample by construction, so that an attack worth its name finds one for all but a few. Samples
    where random points of the border do as well are left out: there the task is too easy to tell anything.

    Arguments:
        case: a few dozen distinct samples.
    """
    try:
        layer = _head(case)
        hidden = _Hidden(case, layer)
        # Dozens of points per sample are held at once: a few samples at a time where inputs are large.
        portion = max(_ELEMENTS // (2 * (INNER + 1) * max(case.x[0].numel(), 1)), 1)
        parts = [_heads(case.at(index), hidden) for index in torch.arange(len(case), device=case.x.device).split(portion)]
    except _Unfit as error:
        return not_run(NAME, LIMIT, str(error), REMEDY)
    heads = Heads(case.x, torch.cat([one.weight for one, _ in parts]), torch.cat([one.bias for one, _ in parts]))
    kept = (~torch.cat([easy for _, easy in parts])).nonzero()[:, 0]
    if len(kept) < LEAST:
        reason = f"random points solve the task, or no head does, for all but {len(kept)} of {len(case)} samples"
        return not_run(NAME, LIMIT, reason, REMEDY)
    inside = dataclasses.replace(case.at(kept), y=torch.zeros_like(case.y[kept]), seed=derive_seed(case.seed, "active"))
    with hidden.replaced_by(heads):
        found = inside.broken(inside.plain())
    misses, n = int((~found).sum()), len(kept)
    interval = wilson(misses, n)
    level = "raised" if interval.low > LIMIT else "warn" if misses >= 3 and misses / n > LIMIT else "quiet"
    return Alarm(
        NAME, misses / n, LIMIT, level,
        "adversarial points were put where they are known to be, and the attack does not find them: where it finds none in the "
        "model itself, that proves nothing", REMEDY, n, interval,
    )


class _Unfit(Exception):
    """The test cannot be put into this model."""


def _head(case: Case) -> nn.Module:
    """Return the last linear layer where it gives the class scores, else the whole model."""
    module = case.view.module
    classes = case.view.probe(case.x[:1])
    try:
        layer = dict(module.named_modules())[penultimate(module)]
    except ModelError:
        return module
    return layer if getattr(layer, "out_features", None) in (classes, 1 if classes == 2 else classes) else module


class _Hidden:
    """The layer whose answer is replaced; the samples that its rows belong to are found at the input of the model."""

    def __init__(self, case: Case, layer: nn.Module) -> None:
        self.case, self.layer, self.module = case, layer, case.view.module
        self.whole = layer is self.module
        self.owner = torch.zeros(0, dtype=torch.long)

    def _features(self, inputs: tuple[Any, ...], named: dict[str, Any], output: object) -> Tensor:
        found = output if self.whole else first_input(self.layer, inputs, named)[1]
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise _Unfit("the last linear layer does not see one row of features per sample")
        return found

    def read(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (n, d) and the layer's own answers (n, classes) for points z, shape (n, ...)."""
        kept: list[tuple[Tensor, Tensor]] = []

        def keep(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            kept.append((self._features(inputs, named, output).detach().double(), output.detach().double()))

        handle = self.layer.register_forward_hook(keep, with_kwargs=True)
        try:
            self.case.view.labels(z)
        finally:
            handle.remove()
        if sum(len(rows) for rows, _ in kept) != len(z):
            raise _Unfit("the last linear layer is not asked once per sample")
        return torch.cat([rows for rows, _ in kept]), torch.cat([answers for _, answers in kept])

    @contextlib.contextmanager
    def replaced_by(self, heads: Heads) -> Iterator[None]:
        """Let class 0 mean inside and class 1 mean boundary, for the block."""

        def arrive(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.owner = owners(inputs[0].detach().to(heads.x), heads.x)

        def answer(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
            score = heads.score(self._features(inputs, named, output), self.owner.to(output.device))
            if output.ndim == 1 or output.shape[1] == 1:
                return score.view_as(output)
            rest = output.new_full((len(score), output.shape[1] - 2), _FAR)
            return torch.cat([torch.zeros_like(score)[:, None], score[:, None], rest], 1)

        handles = [self.module.register_forward_pre_hook(arrive), self.layer.register_forward_hook(answer, with_kwargs=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _heads(case: Case, hidden: _Hidden) -> tuple[Heads, Tensor]:
    """Return the heads, and for which samples they are no task: random points solve it, or nothing tells the points apart."""
    x, m, noise = case.x, len(case), generator(case.seed, "binarisation", device=case.x.device)
    ball, many = case.threat.around(x), case.repeated(INNER)
    size = torch.as_tensor(ball.size, device=x.device)
    # Inner points lie on a border of their own: else what tells them apart is the distance, which random points have as well.
    within = case.threat.with_eps((SHARE * size).repeat(INNER)).around(many.x).maximise(normal(many.x, noise))
    border = torch.cat([ball.maximise(normal(x, noise)) for _ in range(INNER + 1)])
    rows, answers = hidden.read(torch.cat([x, within, border]))
    inner = rows[m : m + len(within)].view(INNER, m, -1).transpose(0, 1)  # (m, inner, d)
    edge = rows[m + len(within) :].view(INNER + 1, m, -1).transpose(0, 1)  # (m, inner + 1, d)
    middle = inner.mean(1, keepdim=True)
    inner, edge = inner - middle, edge - middle
    goal = edge[:, 0]  # (m, d): the boundary point
    # What of the boundary point the inner points do not span tells them apart best; a ridge keeps that stable.
    gram = inner @ inner.transpose(1, 2)
    ridge = 0.1 * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)
    eye = torch.eye(INNER, dtype=gram.dtype, device=gram.device)
    part = torch.linalg.solve(gram + ridge[:, None, None] * eye, (inner @ goal[:, :, None]))
    weight = goal - (inner.transpose(1, 2) @ part)[:, :, 0]  # (m, d)
    own = (weight * goal).sum(1)
    highest = (inner @ weight[:, :, None])[:, :, 0].amax(1).clamp(min=0)
    cut = highest + CUT * (own - highest)
    easy = (own <= 1.01 * highest) | (own <= 1e-20) | ((edge[:, 1:] @ weight[:, :, None])[:, :, 0] > cut[:, None]).any(1)
    # Inside, the new answer is as sure as the model's own: what a large scale hides, it hides here as well.
    top = answers[:m].topk(2, dim=1).values if answers.ndim == 2 and answers.shape[1] > 1 else answers[:m].view(m, 1).abs()
    sure = (top[:, 0] - top[:, 1]).median() if top.shape[1] > 1 else top.median()
    scale = sure / cut.clamp(min=1e-30)
    bias = -scale * (cut + (weight * middle[:, 0]).sum(1))
    return Heads(x, weight * scale[:, None], bias), easy
