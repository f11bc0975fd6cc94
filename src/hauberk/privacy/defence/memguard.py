"""MemGuard: noise on the scores that a membership classifier cannot read, with the label kept and the distortion bounded."""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.target import Target, as_target
from hauberk.privacy.defence.outputs import behind
from hauberk.privacy.membership.signals import Records

Bound = Literal["expected", "each"]
WEIGHTS = (0.1, 1.0, 10.0, 100.0)  # of the distortion, tried in turn; the largest that still works gives the least noise


def memguard(
    target: Target | nn.Module, members: Records, non_members: Records, *, distortion: float = 0.5, bound: Bound = "expected",
    steps: int = 100, key: bytes | None = None, seed: int = 0,
) -> Target:
    """Return a target whose scores carry noise against membership classifiers (Jia et al. 2019, arXiv:1909.10594).

    For each answer the smallest change is searched at which a classifier of the owner's own, trained on members and non-members,
    is undecided; the label stays. The same question always gets the same answer: the coin that decides whether the noise is
    added is tossed by a keyed hash of the question, so that repeating it averages nothing out.

    Arguments:
        target: with SCORE access.
        members, non_members: records that the owner trains the classifier on, (x, y) each.
        distortion: limit of the L1 distance between true and given scores, at most 2.
        bound: `expected` (the paper's) adds the whole noise with the probability that keeps the mean distance at the limit;
            `each` shortens every answer's noise to the limit.
        steps: of the search, for each of four weights of the distortion.
        key: of the hash; None draws one. Whoever knows it can tell which answers carry noise.
        seed: of the classifier.

    Raises:
        UsageError: for a distortion outside 0 to 2, or an unknown bound.
        AccessDenied: below SCORE access.
    """
    if not 0 <= distortion <= 2 or bound not in get_args(Bound):
        raise UsageError(f"distortion is {distortion} and bound is '{bound}'", want="0 to 2, and expected or each")
    inner = as_target(target)
    inner.need(Access.SCORE, "memguard")
    with torch.no_grad():
        sides = [inner.scores(one[0]).double().cpu() for one in (members, non_members)]
    judge = membership_classifier(*sides, seed=seed)
    secret = secrets.token_bytes(32) if key is None else key

    def change(scores: Tensor, x: Tensor) -> Tensor:
        exact = scores.double().cpu()
        noisy = noise_for(judge, exact, steps)
        apart = (noisy - exact).abs().sum(1)
        share = (distortion / apart.clamp_min(1e-12)).clamp(max=1.0)
        if bound == "each":
            given = exact + share[:, None] * (noisy - exact)
        else:
            given = torch.where((coins(x, secret) < share)[:, None], noisy, exact)
        # A given answer sums to 1 and has the label of the true one; where rounding would break that, it stays as it is.
        kept = given.to(scores.dtype).argmax(1) == scores.cpu().argmax(1)
        return torch.where(kept[:, None], given, exact).to(scores)

    def again(other: Target, inside: Records, outside: Records) -> Target:
        return memguard(other, inside, outside, distortion=distortion, bound=bound, steps=steps, seed=seed)

    return behind(inner, "MemGuard", change, again, same_labels=True)


def membership_classifier(members: Tensor, non_members: Tensor, *, seed: int = 0, steps: int = 400) -> nn.Module:
    """Return a net that tells members from others by their scores in falling order: logits, (n, classes) -> (n,), float64."""
    with rng.isolated(rng.derive_seed(seed, "memguard")):
        judge = nn.Sequential(
            nn.Linear(members.shape[1], 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0)
        ).double()
    rows = torch.cat([members, non_members]).sort(1, descending=True).values
    side = torch.cat([torch.ones(len(members)), torch.zeros(len(non_members))]).double()
    weight = torch.where(side > 0, 0.5 / max(len(members), 1), 0.5 / max(len(non_members), 1))
    learn = torch.optim.Adam(judge.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(steps):
            loss = (weight * functional.binary_cross_entropy_with_logits(judge(rows), side, reduction="none")).sum()
            learn.zero_grad(set_to_none=True)
            loss.backward()
            learn.step()
    return judge.requires_grad_(False)


def noise_for(judge: nn.Module, scores: Tensor, steps: int) -> Tensor:
    """Return changed scores, shape (n, classes), float64, that leave the classifier as undecided as it gets, with labels kept.

    Where no change of its mind is found, or none makes it less sure, the scores come back as they were.
    """
    label = scores.argmax(1)
    start = scores.clamp_min(1e-9).log()
    before = _verdict(judge, scores)
    best, least = scores.clone(), torch.full((len(scores),), torch.inf, dtype=scores.dtype)
    side = before.sign()
    open_ = torch.ones(len(scores), dtype=torch.bool)
    for weight in WEIGHTS:
        if not bool(open_.any()):
            break
        found, apart = _search(judge, scores[open_], start[open_], label[open_], side[open_], weight, steps)
        places = open_.nonzero()[:, 0]
        better = apart < least[places]
        best[places[better]], least[places[better]] = found[better], apart[better]
        open_[places[apart.isinf()]] = False  # with more weight on the distortion it will not be found either
    surer = _verdict(judge, best).abs() >= before.abs()
    best[surer] = scores[surer]
    return best


def _search(
    judge: nn.Module, scores: Tensor, start: Tensor, label: Tensor, side: Tensor, weight: float, steps: int
) -> tuple[Tensor, Tensor]:
    """Return the nearest changed scores that turn the classifier's verdict, and their L1 distance; infinite where none does."""
    logits = start.clone()
    best, least = scores.clone(), torch.full((len(scores),), torch.inf, dtype=scores.dtype)
    mean, power = torch.zeros_like(logits), torch.zeros_like(logits)
    with torch.enable_grad():
        for step in range(steps):
            logits.requires_grad_(True)
            noisy = logits.softmax(1)
            verdict, apart = _verdict(judge, noisy), (noisy - scores).abs().sum(1)
            own = logits.gather(1, label[:, None])[:, 0]
            other = logits.scatter(1, label[:, None], -torch.inf).max(1).values
            loss = verdict.abs() + 10 * (other - own).relu() + weight * apart
            (slope,) = torch.autograd.grad(loss.sum(), logits)
            logits = logits.detach()
            with torch.no_grad():
                turned = (verdict.sign() != side) & (noisy.argmax(1) == label) & (apart < least)
                best[turned], least[turned] = noisy[turned].detach(), apart[turned].detach()
            mean, power = 0.9 * mean + 0.1 * slope, 0.99 * power + 0.01 * slope.square()
            ahead = (mean / (1 - 0.9 ** (step + 1))) / (power / (1 - 0.99 ** (step + 1))).sqrt().clamp_min(1e-30)
            logits = logits - 0.1 * ahead
    return best, least


def _verdict(judge: nn.Module, scores: Tensor) -> Tensor:
    verdict: Tensor = judge(scores.sort(1, descending=True).values)
    return verdict


def coins(x: Tensor, key: bytes) -> Tensor:
    """Return a number in [0, 1) for each input, shape (n,), float64: a keyed hash of its bytes, the same whenever it is asked."""
    rows = [row.contiguous().numpy().tobytes() for row in x.detach().cpu().reshape(len(x), -1)]
    found = [hashlib.blake2b(row, key=key[:64], digest_size=6).digest() for row in rows]
    return torch.tensor([int.from_bytes(one, "little") / 2.0**48 for one in found], dtype=torch.float64)
