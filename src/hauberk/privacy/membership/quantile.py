"""Quantile regression: how high is a record's log-odds for one that looks like it, had it not been trained on?"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.adam import FusedAdam
from hauberk.core.errors import DataError
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.overlap import fingerprints
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.evidence import REACH, beyond
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.signals import Records

LEVELS = (0.5, 0.9)


@inference(
    question="Can members be told without any reference model, by how sure the target ought to be of a record?",
    access=Access.SCORE, paper="Bertran et al. 2023, arXiv:2307.03694", tags=TAGS, references=True,
)
def quantile_regression(
    target: Target | nn.Module, members: Records, non_members: Records, *, public: Records | None = None, epochs: int = 20,
    seed: int = 0,
) -> MembershipScores:
    """Score each record by how far its log-odds lies above the quantile that a regression expects of such a record.

    A perceptron learns the median and the 90 % quantile of the target's log-odds from the inputs and labels of public records;
    the score is (s - median) / (90 % quantile - median). No other model of the task is trained.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        public: other records that were not trained on, none of them among those to be scored. None: each half of the records at
            hand is judged by what the other half teaches, members and others mixed, as who they are is not known; that is weaker.
            Copies of a record are in one half.
        epochs: passes over the public records.
        seed: of the regression.

    Returns:
        The scores of both sides.

    Raises:
        AccessDenied: below SCORE access.
        DataError: for labels that are not classes, public records of another shape, or a record to be scored among them.
    """
    view = as_target(target)
    view.need(Access.SCORE, "quantile-regression")
    sides = (members, non_members)
    told = torch.cat([_signal(view, side) for side in sides])
    own, lost = _finite(told), told.isnan()
    x, y = torch.cat([one[0].detach().cpu().float().flatten(1) for one in sides]), torch.cat([one[1].cpu() for one in sides])
    width = int(y.max()) + 1 if len(y) else 1
    x = torch.where(x.isfinite(), x, 0.0)  # one record must not spoil the scale of all
    scores = torch.zeros(len(own), dtype=torch.float64)
    if public is not None:
        z, labels = public[0].detach().cpu().float().flatten(1), public[1].cpu()
        z = torch.where(z.isfinite(), z, 0.0)
        shared = int(torch.isin(fingerprints(x), fingerprints(z)).sum()) if z.shape[1] == x.shape[1] else 0
        if shared or len(z) < 2 or z.shape[1] != x.shape[1]:
            raise DataError(
                f"there are {len(z)} public records of {z.shape[1]} inputs, and {shared} to be scored are among them",
                want=f"other records than those, of {x.shape[1]} inputs, at least 2",
            )
        width = max(width, int(labels.max()) + 1)
        scores = _above(own, _quantiles((z, labels), _finite(_signal(view, public)), (x, y), width, epochs, seed))
    elif len(own) >= 4:
        # Halves by what the records hold: neither the order nor the side they came from decides, and copies stay together.
        keys = fingerprints(x) * 1_000_003 + y
        order, even = keys.argsort(stable=True), torch.unique(keys, return_inverse=True)[1] % 2 == 0
        first, second = order[even[order]], order[~even[order]]
        for fit, judged in ((first, second), (second, first)) if min(len(first), len(second)) > 1 else ():
            expected = _quantiles((x[fit], y[fit]), own[fit], (x[judged], y[judged]), width, epochs, seed)
            scores[judged] = _above(own[judged], expected)
    scores = torch.where(lost, -torch.inf, scores)
    return signals.both_sides(scores[: len(members[0])], scores[len(members[0]) :])


def pinball(predicted: Tensor, s: Tensor, levels: Tensor) -> Tensor:
    """Return the mean pinball loss of quantiles (n, levels) of values s (n,); the true quantiles are its optimum."""
    gap = s[:, None] - predicted
    return torch.maximum(levels * gap, (levels - 1) * gap).mean()


def _signal(view: Target, side: Records) -> Tensor:
    found = signals.log_odds(*signals.answers(view, side)).cpu()
    return found.clamp(-REACH, REACH) if view.outputs == "probabilities" else found


def _finite(s: Tensor) -> Tensor:
    far = beyond(s)
    return torch.nan_to_num(s, nan=-REACH, posinf=far, neginf=-far)


def _above(s: Tensor, quantiles: Tensor) -> Tensor:
    middle, high = quantiles.unbind(1)
    return (s - middle) / (high - middle)


def _quantiles(fit: Records, s: Tensor, asked: Records, width: int, epochs: int, seed: int) -> Tensor:
    """Return the quantiles of `LEVELS` at the asked records, shape (n, 2), rising, from a regression on the others."""
    mean, spread = fit[0].mean(0), fit[0].std(0).clamp(min=1e-3)
    centre, unit = s.median(), s.std().clamp(min=1e-6)

    def rows(records: Records) -> Tensor:
        return torch.cat([(records[0] - mean) / spread, functional.one_hot(records[1].long(), width).float()], 1)

    inputs, goal, levels = rows(fit), ((s - centre) / unit).float(), torch.tensor(LEVELS)
    with rng.isolated(rng.derive_seed(seed, "quantile regression")):
        net = nn.Sequential(nn.Linear(inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, 2))
        optimizer = FusedAdam(list(net.parameters()), lr=2e-3, weight_decay=1e-3)
        steps = max(1, -(-len(goal) // 256))
        for _ in range(max(epochs, -(-100 // steps))):
            for part in torch.randperm(len(goal)).split(256):
                loss = pinball(_rising(net(inputs[part])), goal[part], levels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            return _rising(net(rows(asked))).double() * unit + centre


def _rising(raw: Tensor) -> Tensor:
    return torch.stack([raw[:, 0], raw[:, 0] + functional.softplus(raw[:, 1]) + 1e-3], 1)
