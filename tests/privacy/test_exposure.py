"""What membership scores are worth, against enumeration and closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import beta

from hauberk.core.kinds import MembershipScores
from hauberk.privacy.membership.measure import blind_auc, chance_of, exposure, shuffled_auc


@pytest.mark.parametrize(
    ("members", "others", "alarms", "hits"), [(3, 4, 0, 1), (3, 4, 0, 2), (4, 3, 1, 2), (5, 5, 1, 4), (4, 4, 2, 0)]
)
def test_chance_equals_the_share_of_all_orders(members: int, others: int, alarms: int, hits: int) -> None:
    beyond = total = 0
    for places in itertools.combinations(range(members + others), members):
        order = [place in places for place in range(members + others)]  # best score first; True is a member
        false = seen = 0
        for is_member in order:
            if is_member:
                seen += 1
            elif false == alarms:
                break
            else:
                false += 1
        beyond += seen >= hits
        total += 1
    assert chance_of(hits, alarms, members, others) == pytest.approx(beyond / total)


def test_exposure_counts_members_above_the_best_non_members() -> None:
    others = torch.arange(2000).double()
    members = torch.cat([torch.full((300,), 3000.0).double(), torch.full((700,), -1.0).double()])
    found = exposure(MembershipScores(members, others))
    assert (found.fpr, found.tpr) == (1e-3, 0.3)
    # All thresholds near that rate lie between -1 and 3000: Clopper-Pearson for 300 of 1000, .0125 beyond each end.
    assert found.tpr_interval.high == pytest.approx(beta.ppf(0.9875, 301, 700))
    # Of 2000 non-members none may lie beyond the true threshold (.999^2000 = .135), so it may lie beyond every member.
    assert found.tpr_interval.low == 0
    assert found.roc.tpr_interval(0.01).low == pytest.approx(beta.ppf(0.0125, 300, 701))
    # Surely .2717 of the members (R: binom.test(300, 1000)$conf.int), and .00361 of the others, for 2 of 2000.
    assert found.ahead == pytest.approx(0.2717211 / beta.ppf(0.975, 3, 1998), rel=1e-5)
    assert found.chance < 1e-40


def test_few_non_members_move_the_rate_to_what_they_resolve() -> None:
    scores = MembershipScores(torch.tensor([5.0, 3.0, 1.0, 1.0]), torch.tensor([4.0, 2.0, 0.0, 0.0, 0.0]))
    found = exposure(scores)
    assert found.fpr == 0.2
    assert found.tpr == 0.5  # one false alarm (4.0) lets 5.0 and 3.0 through
    assert found.roc.tpr_at(1e-3) == 0.25


def test_equal_scores_reveal_nothing() -> None:
    same = MembershipScores(torch.zeros(50), torch.zeros(60))
    found = exposure(same)
    assert (found.roc.auc, found.tpr, found.chance) == (0.5, 0.0, 1.0)
    mean, span = shuffled_auc(same, seed=0)
    assert (mean, span.low, span.high) == (0.5, 0.5, 0.5)


def test_membership_dealt_at_random_gives_one_half_even_for_telling_scores() -> None:
    draw = torch.Generator().manual_seed(0)
    telling = MembershipScores(torch.randn(200, generator=draw) + 3, torch.randn(200, generator=draw))
    mean, span = shuffled_auc(telling, seed=1)
    # The area of a random deal has standard deviation sqrt((m + k + 1) / 12 m k) = .0289; the mean of 200 a fourteenth of it.
    assert mean == pytest.approx(0.5, abs=4 * 0.0289 / 200**0.5)
    assert span.low == pytest.approx(0.5 - 1.96 * 0.0289, abs=0.015)
    assert span.high == pytest.approx(0.5 + 1.96 * 0.0289, abs=0.015)


def test_the_blind_control_sees_a_shift_of_the_inputs_and_nothing_else() -> None:
    draw = torch.Generator().manual_seed(0)
    x, z = torch.randn(400, 1, 10, 10, generator=draw), torch.randn(400, 1, 10, 10, generator=draw)
    _, alike, _ = blind_auc(x, z, seed=0)
    assert alike.low <= 0.5 <= alike.high
    area, shifted, curve = blind_auc(x + 0.5, z, seed=0)
    assert area == curve.auc > 0.95 and shifted.low > 0.9


@pytest.mark.parametrize("classes", [2, 100])
def test_the_blind_control_sees_that_labels_are_mixed_otherwise(classes: int) -> None:
    draw = torch.Generator().manual_seed(1)
    x, z = torch.randn(500, 3, generator=draw), torch.randn(500, 3, generator=draw)
    y = [torch.randint(0, classes // 2, (500,), generator=draw) + part * (torch.rand(500, generator=draw) < 0.7)
         * (classes // 2) for part in (torch.tensor(0), torch.tensor(1))]
    assert blind_auc(x, z, seed=0)[1].low <= 0.5
    assert blind_auc(x, z, seed=0, labels=(y[0], y[1]))[1].low > 0.7
    assert blind_auc(x, z, seed=0, labels=(y[0], y[0].roll(1)))[1].low <= 0.5
