"""Attacks with reference models against closed forms, brute force and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.core.roc import roc
from hauberk.core.target import Target
from hauberk.privacy.membership import References, lira, rmia, variance_prior
from hauberk.privacy.membership.evidence import Moments, gathered
from hauberk.privacy.membership.signals import log_odds
from hauberk.privacy.membership.variance_prior import Prior, fit_prior


def known(odds: Tensor, inside: Tensor, own: Tensor) -> tuple[Target, References, tuple[Tensor, Tensor]]:
    """A target and references with these log-odds of label 1: record j is the number j."""
    n = odds.shape[1]
    x, y = torch.arange(n).float()[:, None], torch.ones(n, dtype=torch.long)

    def model(row: Tensor) -> Target:
        return Target(lambda z: torch.stack([torch.zeros(len(z)).double(), row[z[:, 0].long()]], 1), outputs="logits")

    models = [model(row) for row in odds.double()]
    logits = torch.stack([torch.zeros_like(odds), odds], 2)
    return model(own.double()), References(models, x, y, inside, logits), (x, y)


def drawn(k: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    inside = torch.zeros(k, n, dtype=torch.bool)
    for pair in range(k // 2):
        half = torch.rand(n, generator=draw) < 0.5
        inside[2 * pair], inside[2 * pair + 1] = half, ~half
    hard = torch.randn(n, generator=draw)
    # Within and without differ in mean and in spread: 3 sd against 1 sd.
    odds = torch.where(inside, 4 + hard + 3 * torch.randn(k, n, generator=draw), hard + torch.randn(k, n, generator=draw))
    own = torch.randn(n, generator=draw) * 2 + 1
    return odds.double(), inside, own.double()


def split(records: tuple[Tensor, Tensor], cut: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, y = records
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def both(scores: object) -> np.ndarray:
    return torch.cat([scores.members, scores.non_members]).numpy()  # type: ignore[attr-defined]


@pytest.mark.parametrize("variance", ["fixed", "per-example"])
def test_lira_is_the_log_likelihood_ratio_of_gaussians(variance: str) -> None:
    odds, inside, own = drawn(8, 30)
    target, references, records = known(odds, inside, own)
    online = both(lira(target, *split(records, 11), references=references, variance=variance))
    offline = both(lira(target, *split(records, 11), references=references, variance=variance, online=False))
    every = {side: [odds[inside[:, j] == side, j].numpy() for j in range(30)] for side in (True, False)}
    sd = {
        side: [
            one.std(ddof=1) if variance == "per-example" else math.sqrt(
                sum(((row - row.mean()) ** 2).sum() for row in rows) / sum(len(row) - 1 for row in rows)
            ) for one in rows
        ]
        for side, rows in every.items()
    }
    for j in range(30):
        s, laws = float(own[j]), {side: stats.norm(rows[j].mean(), sd[side][j]) for side, rows in every.items()}
        assert online[j] == pytest.approx(laws[True].logpdf(s) - laws[False].logpdf(s), rel=1e-9, abs=1e-9)
        assert stats.norm.cdf(offline[j]) == pytest.approx(laws[False].cdf(s), rel=1e-9)  # the paper's one-sided test


def test_each_side_has_its_own_variance() -> None:
    odds, inside, own = drawn(16, 2000)
    target, references, records = known(odds, inside, own)
    found = gathered(target, "lira", split(records, 900), references, log_odds)
    within, outside = Moments.of(found.references, found.inside), Moments.of(found.references, ~found.inside)
    assert within.pooled == pytest.approx(9, rel=0.05) and outside.pooled == pytest.approx(1, rel=0.05)
    # With the other side's variance the likelihood ratio is another order, and a worse one.
    truth = torch.rand(2000, generator=torch.Generator().manual_seed(1)) < 0.5
    draw = torch.Generator().manual_seed(2)
    base = torch.from_numpy(outside.mean)
    own = torch.where(truth, base + 4 + 3 * torch.randn(2000, generator=draw), base + torch.randn(2000, generator=draw))
    target, references, records = known(odds, inside, own)
    scores = both(lira(target, *split(records, 900), references=references))
    right = roc(scores[truth.numpy()], scores[~truth.numpy()]).auc
    swapped = stats.norm.logpdf(own, within.mean, 1) - stats.norm.logpdf(own, outside.mean, 3)
    assert right > roc(swapped[truth.numpy()], swapped[~truth.numpy()]).auc + 0.02


def test_the_typical_variance_is_not_ruled_by_the_few_records_that_vary_most() -> None:
    draw = np.random.default_rng(0)
    sd = np.where(np.arange(20_000) < 400, 60.0, 3.0)  # one record in fifty varies twenty times as much
    for k, seen in ((2, 2), (8, 5), (8, 3)):  # of k references so many are on this side
        side = np.arange(k)[:, None] < np.full(20_000, seen)
        values = sd * draw.standard_normal((k, 20_000)) + draw.standard_normal(20_000)
        calm, mixed = Moments.of(values[:, 400:], side[:, 400:]), Moments.of(values, side)
        # Where all vary alike it is the pooled variance, whatever the number of references: no degree of freedom is forgotten.
        assert calm.typical == pytest.approx(9, rel=0.06) and calm.pooled == pytest.approx(9, rel=0.06)
        # Of one in fifty, log 400 each: exp(log 9 + log 400 / 50).
        assert mixed.typical == pytest.approx(9 * 400**0.02, rel=0.06) and mixed.pooled > 60
    bound = Moments(np.array([2.0, 2.0, 2.0, 1.0]), np.zeros(4), np.array([0.0, 4.0, 4.0, 0.0]))
    rate = math.exp(math.log(4) - float(special.digamma(0.5)) + math.log(0.5))
    assert bound.typical == pytest.approx(rate)  # a signal at its bound, and a lone reference, tell nothing
    lone = Moments(np.ones(3), np.array([1.0, 2.0, 3.0]), np.zeros(3))
    assert lone.typical == lone.pooled == 1.0


def test_lira_with_the_typical_variance_is_a_ratio_of_gaussians_too() -> None:
    odds, inside, own = drawn(8, 30)
    target, references, records = known(odds, inside, own)
    found = gathered(target, "lira", split(records, 11), references, log_odds)
    sides = Moments.of(found.references, found.inside), Moments.of(found.references, ~found.inside)
    laws = [stats.norm(one.mean, math.sqrt(one.typical)).logpdf(found.target) for one in sides]
    assert both(lira(target, *split(records, 11), references=references, variance="typical")) == pytest.approx(laws[0] - laws[1])
    with pytest.raises(UsageError, match="'fixed' or 'typical' or 'per-example'"):
        lira(target, *split(records, 11), references=references, variance="pooled")


def test_the_posterior_predictive_is_the_integral_over_mean_and_variance() -> None:
    seen = np.array([0.3, 1.1, 0.2])
    moments = Moments(np.array([3.0]), np.array([seen.mean()]), np.array([((seen - seen.mean()) ** 2).sum()]))
    prior = Prior(np.array([0.5]), 2.0, 1.5, 0.8)
    centre, weight, shape, scale = prior.posterior(moments)
    law = stats.invgamma(float(shape[0]), scale=float(scale[0]))
    s = 1.7
    # The mean integrated out by hand: s | variance ~ N(centre, variance (1 + 1 / weight)).
    value, _ = integrate.quad(
        lambda v: law.pdf(v) * stats.norm.pdf(s, centre[0], math.sqrt(v * (1 + 1 / weight[0]))), 0, np.inf, limit=200
    )
    assert float(prior.log_predictive(np.array([s]), moments)[0]) == pytest.approx(math.log(value), rel=1e-6)
    # The evidence by the chain rule: each value predicted from those before it.
    chain = 0.0
    for k in range(3):
        past = seen[:k]
        before = Moments(
            np.array([float(k)]), np.array([past.mean() if k else 0.0]),
            np.array([((past - past.mean()) ** 2).sum() if k else 0.0]),
        )
        chain += float(prior.log_predictive(seen[k : k + 1], before)[0])
    assert float(prior.log_evidence(moments)[0]) - 1.5 * math.log(2 * math.pi) == pytest.approx(chain, rel=1e-9)


def test_the_prior_is_found_again_from_records_drawn_by_it() -> None:
    rng = np.random.default_rng(0)
    n, weight, shape, scale = 20_000, 0.5, 3.0, 4.0
    variance = stats.invgamma(shape, scale=scale).rvs(n, random_state=rng)
    other = rng.normal(size=n)
    mean = 2 + 0.7 * other + rng.normal(size=n) * np.sqrt(variance / weight)
    values = mean + rng.normal(size=(4, n)) * np.sqrt(variance)
    found = fit_prior(Moments.of(values, np.ones((4, n), dtype=bool)), other)
    assert (found.weight, found.shape, found.scale) == (
        pytest.approx(weight, rel=0.05), pytest.approx(shape, rel=0.1), pytest.approx(scale, rel=0.1),
    )
    slope, start = np.polyfit(other, found.centre, 1)
    assert (slope, start) == (pytest.approx(0.7, abs=0.05), pytest.approx(2, abs=0.08))


def test_at_its_ends_the_prior_is_one_variance_for_all_or_one_for_each() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10_000, 5)) * np.arange(1, 6)
    moments, s = Moments.of(values, np.ones(values.shape, dtype=bool)), np.full(5, 1.5)
    shared = Prior(np.zeros(5), 1e-9, 1e9, 4e9).log_predictive(s, moments)
    np.testing.assert_allclose(shared, stats.norm.logpdf(s, values.mean(0), 2), atol=1e-3)
    own = Prior(np.zeros(5), 1e-9, 1e-9, 1e-9).log_predictive(s, moments)
    np.testing.assert_allclose(own, stats.norm.logpdf(s, values.mean(0), values.std(0, ddof=1)), atol=1e-3)


@pytest.mark.parametrize(("online", "gamma", "a"), [(True, 2.0, 0.3), (False, 1.0, 0.3), (False, 1.5, 0.0), (False, 3.0, 1.0)])
def test_rmia_equals_brute_force(online: bool, gamma: float, a: float) -> None:
    odds, inside, own = drawn(6, 25)
    target, references, records = known(odds, inside, own)
    found = both(rmia(target, *split(records, 10), references=references, online=online, gamma=gamma, a=a))
    p, target_p = torch.sigmoid(odds).numpy(), torch.sigmoid(own).numpy()
    mean = np.zeros(25)
    for j in range(25):
        out = p[~inside[:, j].numpy(), j].mean()
        mean[j] = 0.5 * (out + p[inside[:, j].numpy(), j].mean()) if online else 0.5 * ((1 + a) * out + 1 - a)
    expected = [
        np.mean([(target_p[x] / mean[x]) / (target_p[z] / mean[z]) >= gamma - 1e-12 for z in range(25)]) for x in range(25)
    ]
    np.testing.assert_allclose(found, expected)


def test_equal_scores_everywhere_give_one_half() -> None:
    n = 40
    odds, inside = torch.ones(4, n).double(), drawn(4, n)[1]
    target, references, records = known(odds, inside, torch.ones(n))
    for attack in (lira, rmia, variance_prior):
        scores = attack(target, *split(records, 15), references=references)
        assert roc(scores.members, scores.non_members).auc == 0.5


def test_records_are_found_by_what_they_hold() -> None:
    odds, inside, own = drawn(4, 12)
    _, references, (x, y) = known(odds, inside, own)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    found, seen = references.on((x[order], y[order]), log_odds)
    assert torch.equal(seen, inside[:, order]) and torch.equal(found, odds[:, order])
    some, _ = references.take([2, 0]).on((x, y), log_odds)
    assert torch.equal(some, odds[[2, 0]])
    # A label that is another, and a record that is not there, were trained on by none; the models are asked.
    new = torch.tensor([[3.0], [4.0]]), torch.tensor([0, 1])
    found, seen = references.on(new, log_odds)
    assert seen[:, 1].tolist() == inside[:, 4].tolist() and not bool(seen[:, 0].any())
    assert torch.equal(found[:, 0], -odds[:, 3])
    with pytest.raises(DataError, match="labels span 1 to 2"):
        references.on((x[:2], torch.tensor([1, 2])), log_odds)
    # Two copies of a record: a model that saw one of them saw the record.
    twice = References(
        references.models, torch.cat([x, x[:1]]), torch.cat([y, y[:1]]),
        torch.cat([inside, ~inside[:, :1]], 1), torch.cat([references.logits, references.logits[:, :1]], 1),
    )
    assert bool(twice.on((x[:1], y[:1]), log_odds)[1].all())


def test_a_record_without_references_on_a_side_is_refused() -> None:
    odds, inside, own = drawn(4, 12)
    inside[:, 5] = False
    target, references, records = known(odds, inside, own)
    for attack in (lira, variance_prior):
        with pytest.raises(DataError, match="1 of 12 records have no reference model trained with them"):
            attack(target, *split(records, 4), references=references)
    assert len(lira(target, *split(records, 4), references=references, online=False).members) == 4
    inside[:, 5] = True
    with pytest.raises(DataError, match="trained without them"):
        rmia(target, *split(records, 4), references=references)
    with pytest.raises(UsageError, match="variance is 'none'"):
        lira(target, *split(records, 4), references=references, variance="none")
    with pytest.raises(UsageError, match=r"gamma is 0\.5"):
        rmia(target, *split(records, 4), references=references, gamma=0.5)

