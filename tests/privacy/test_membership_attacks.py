"""Membership attacks that bring a rule or a classifier of their own: against closed forms, loops and what they must refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Schedule, Split, fit
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.rng import isolated
from hauberk.core.roc import roc
from hauberk.core.target import Target
from hauberk.privacy.membership import (
    augmentation_membership,
    boundary_membership,
    gap_membership,
    gradient_norm_membership,
    learned_membership,
    lira,
    quantile_regression,
    shadow_membership,
    train_references,
    white_box_membership,
)
from hauberk.privacy.membership.label_only import usual_change
from hauberk.privacy.membership.matching import matched_schedule, operations
from hauberk.privacy.membership.quantile import pinball
from hauberk.privacy.membership.references import halves, redrawn
from hauberk.privacy.membership.white_box import gradient_norms

Pair = tuple[Tensor, Tensor]


def noise(n: int, seed: int, classes: int = 3) -> Pair:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(n, 10, generator=draw), torch.randint(0, classes, (n,), generator=draw)


@pytest.fixture(scope="module")
def learnt() -> tuple[nn.Module, Pair, Pair]:
    """A model that learnt 100 records of noise by heart, and 100 others."""
    with isolated(1):
        model = nn.Sequential(nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 3))
    members, others = noise(100, 0), noise(100, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    fit(model, Split(*members), optimizer=optimizer, schedule=Schedule(epochs=120, batch_size=50))
    return model, members, others


def area(scores: object) -> float:
    return roc(scores.members, scores.non_members).auc  # type: ignore[attr-defined]


def half(pair: Pair, first: bool) -> Pair:
    return (pair[0][:50], pair[1][:50]) if first else (pair[0][50:], pair[1][50:])


def test_the_gap_is_one_half_and_half_the_difference_of_accuracies(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    scores = gap_membership(model, members, others)
    with torch.no_grad():
        rates = [float((model(x).argmax(1) == y).double().mean()) for x, y in (members, others)]
    assert area(scores) == pytest.approx((1 + rates[0] - rates[1]) / 2)


@pytest.mark.parametrize("classifier", ["logistic", "neighbours", "perceptron", "forest"])
def test_a_classifier_of_known_records_finds_others(classifier: str, learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    known, scored = (half(members, True), half(others, True)), (half(members, False), half(others, False))
    scores = learned_membership(model, *scored, classifier=classifier, known=known)
    assert area(scores) > 0.8
    again = learned_membership(model, *scored, classifier=classifier, known=known)
    assert torch.equal(scores.members, again.members)


def test_a_classifier_is_never_asked_about_what_it_was_fitted_to(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    with pytest.raises(DataError, match="50 records to be scored are among those whose membership is known"):
        learned_membership(model, members, others, known=(half(members, True), noise(50, 7)))
    references = train_references(nn.Linear(10, 3), members, count=2, schedule=Schedule(epochs=1))
    with pytest.raises(UsageError, match="references and known are both given"):
        learned_membership(
            model, half(members, True), others, known=(half(members, False), noise(50, 7)), references=references
        )


def test_a_grid_chooses_and_a_wrong_one_is_refused(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    known, scored = (half(members, True), half(others, True)), (half(members, False), half(others, False))
    weak = learned_membership(model, *scored, known=known, grid={"C": [1e-6]})
    chosen = learned_membership(model, *scored, known=known, grid={"C": [1e-6, 1.0]})
    plain = learned_membership(model, *scored, known=known)
    assert float(weak.members.std()) < 1e-2
    torch.testing.assert_close(chosen.members, plain.members)
    for grid, match in (({"depth": [1]}, "has no option 'depth'"), ({"C": [-1.0]}, "cannot be fitted")):
        with pytest.raises(UsageError, match=match):
            learned_membership(model, *scored, known=known, grid=grid)
    with pytest.raises(UsageError, match="there is no classifier 'tree'"):
        learned_membership(model, *scored, known=known, classifier="tree")
    with pytest.raises(UsageError, match="there is no classifier 'tree'"):
        shadow_membership(model, *scored, classifier="tree")


def test_the_quantile_is_the_optimum_of_the_pinball_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    s = torch.randn(101, generator=draw).double().exp()
    levels = torch.tensor([0.5, 0.9]).double()
    grid = torch.linspace(0.01, 8, 4000).double()
    for place, level in enumerate((0.5, 0.9)):
        losses = torch.tensor([float(pinball(value.expand(101, 1), s, levels[place : place + 1])) for value in grid])
        assert float(grid[losses.argmin()]) == pytest.approx(float(s.quantile(level)), abs=2e-3)


def test_quantile_regression_with_public_records_knows_what_is_usual() -> None:
    """The log-odds of a record is its first feature; members lie 2 above. Only who knows the feature sees that."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 3, generator=draw) * 5
    lift = torch.zeros(3000)
    lift[1000:2000] = 2.0
    table = torch.cat([x, lift[:, None]], 1)

    def odds(z: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(z)), z[:, 0] + z[:, 3] + 0.5 * torch.sin(37 * z[:, 1])], 1)

    # The lift must not be seen by the regression: it is looked up.
    where = {tuple(row[:3].tolist()): row for row in table}

    def model(z: Tensor) -> Tensor:
        return odds(torch.stack([where[tuple(row.tolist())] for row in z]))

    y = torch.ones(1000, dtype=torch.long)
    target = Target(model, outputs="logits", batch_size=4000)
    scores = quantile_regression(target, (x[1000:2000], y), (x[2000:], y), public=(x[:1000], y), epochs=60)
    plain = roc(x[1000:2000, 0] + 2, x[2000:, 0]).auc
    assert plain < 0.65 and area(scores) > 0.9


def test_distance_to_the_boundary_of_a_line_is_its_margin() -> None:
    """One feature: the label turns at 0, so that each way up or down meets it at |x|, or never."""
    x = torch.tensor([[0.5], [1.0], [2.0], [3.0], [-1.0]])
    y = torch.tensor([1, 1, 1, 1, 1])
    target = Target(lambda z: (z[:, 0] > 0).long(), outputs="labels")
    scores = boundary_membership(target, (x[:2], y[:2]), (x[2:], y[2:]), directions=12)
    far = torch.cat([scores.members, scores.non_members])
    assert float(far[4]) == 0  # wrong from the start
    spread = float(x.double().std())
    downwards = (far[:4] - far[0]).diff() / torch.tensor([0.5, 1.0, 1.0]) * spread  # the share of the ways that lead to it
    torch.testing.assert_close(downwards, downwards[:1].expand(3), rtol=1e-2, atol=1e-3)
    share = float(downwards[0])
    ups = (float(far[0]) - share * 0.5 / spread) / 128  # those that never meet it count as 128
    assert share + ups == pytest.approx(1, abs=0.02) and 0 < share < 1
    given = boundary_membership(target, (x[:2], y[:2]), (x[2:], y[2:]), distance=lambda _, z, __: z[:, 0].abs())
    assert given.members.tolist() == [0.5, 1.0] and given.non_members.tolist() == [2.0, 3.0, 0.0]
    with pytest.raises(UsageError, match="directions is 0"):
        boundary_membership(target, (x, y), (x, y), directions=0)


def test_augmented_copies_are_counted() -> None:
    x, y = torch.tensor([[0.5], [0.05], [-0.5]]), torch.tensor([1, 1, 1])
    target = Target(lambda z: (z[:, 0] > 0).long(), outputs="labels")
    steps = iter([-0.1, 0.1, -0.1, 0.1])
    scores = augmentation_membership(target, (x[:2], y[:2]), (x[2:], y[2:]), change=lambda z, _: z + next(steps), views=2)
    assert scores.members.tolist() == [1.0, pytest.approx(2 / 3)] and scores.non_members.tolist() == [0.0]


def test_the_usual_change_suits_the_records() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 8, 8, generator=draw)
    moved = usual_change(images)(images, draw)
    assert moved.shape == images.shape and set(moved[0].flatten().tolist()) <= set(images[0].flatten().tolist())
    bits = (torch.rand(50, 200, generator=draw) < 0.5).float()
    turned = usual_change(bits)(bits, draw)
    changed = (turned != bits).float()
    assert set(turned.unique().tolist()) == {0.0, 1.0} and bool((changed == changed[:1]).all())
    assert 0 < float(changed.mean()) < 0.15
    numbers = torch.randn(500, 2, generator=draw) * torch.tensor([1.0, 100.0])
    shift = (usual_change(numbers)(numbers, draw) - numbers).abs()
    assert bool((shift[:, 1] > 3 * shift[:, 0]).any()) and shift.shape == (500, 2)


def test_gradient_norms_equal_a_loop_of_single_records(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, _ = learnt
    x, y = members[0][:70], members[1][:70]
    norms, logits = gradient_norms(Target(model), (x, y))
    exact = model.double()
    try:
        for k in (0, 3, 69):
            loss = functional.cross_entropy(exact(x[k : k + 1].double()), y[k : k + 1])
            own = torch.stack([one.norm() for one in torch.autograd.grad(loss, list(exact.parameters()))])
            torch.testing.assert_close(norms[k], own, rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(logits, exact(x.double()).detach(), rtol=1e-4, atol=1e-4)
    finally:
        model.float()
    scores = gradient_norm_membership(model, (x, y), (x, y))
    torch.testing.assert_close(scores.members, -norms.square().sum(1).sqrt().log())


def test_references_come_in_complementary_halves() -> None:
    inside = halves(11, 4, seed=0)
    assert inside.sum(1).tolist() == [5, 6, 5, 6]
    assert torch.equal(inside[0], ~inside[1]) and torch.equal(inside[2], ~inside[3]) and not torch.equal(inside[0], inside[2])
    for count in (0, 3):
        with pytest.raises(UsageError, match="an even number"):
            halves(11, count, seed=0)


def test_reference_modules_learn_their_own_half_and_start_anew(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, others = learnt
    before = [one.clone() for one in model.parameters()]
    pool = torch.cat([members[0], others[0]]), torch.cat([members[1], others[1]])
    made = train_references(model, pool, count=4, schedule=Schedule(epochs=80, batch_size=50), lr=5e-3)
    right = made.logits.argmax(2) == pool[1]
    assert float(right[made.inside].double().mean()) > 0.8 and float(right[~made.inside].double().mean()) < 0.6
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert area(lira(model, members, others, references=made)) > 0.85
    assert area(white_box_membership(model, members, others, references=made)) > 0.8
    first, second = redrawn(model, 1), redrawn(model, 2)
    assert not torch.equal(first[0].weight, second[0].weight)
    torch.testing.assert_close(redrawn(model, 1).state_dict(), first.state_dict(), rtol=0, atol=0)

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ModelError, match="has weights and no reset_parameters"):
        redrawn(nn.Sequential(nn.Linear(3, 3), Raw()), 0)
    for wrong in (3, dict, lambda seed: "model"):
        with pytest.raises(UsageError):
            train_references(wrong, pool, count=2)


def test_copies_of_a_record_are_left_out_together() -> None:
    x, y = noise(20, 6)
    again = torch.tensor([3, 3, 7, 0])
    pool = torch.cat([x, x[again]]), torch.cat([y, y[again]])
    model = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 3))
    made = train_references(model, pool, count=2, schedule=Schedule(epochs=1, batch_size=8))
    assert torch.equal(made.inside[:, 20:], made.inside[:, again]) and torch.equal(made.inside[0], ~made.inside[1])
    scores = lira(model, (x[:10], y[:10]), (x[10:], y[10:]), references=made)  # each record has a model without it, and with it
    assert bool(scores.members.isfinite().all())
    with pytest.raises(DataError, match="24 copies of one record"):
        train_references(model, (x[:1].expand(24, -1), y[:1].expand(24)), count=2)


@pytest.mark.parametrize("make", [lambda: nn.Sequential(nn.Linear(10, 3)), lambda: RandomForestClassifier(2)])
def test_a_pool_that_cannot_be_learnt_is_refused_in_words(make: object) -> None:
    x, y = noise(20, 7)
    model = make()  # type: ignore[operator]
    wrong = [(x, y[:10]), (x, y - 9), (x, y.float())]
    if isinstance(model, nn.Module):
        wrong += [(x, y + 9), (x[:, :4], y)]
    for pool in wrong:
        with pytest.raises(DataError):
            train_references(model, pool, count=2)


def test_labels_that_the_model_does_not_have_are_refused_from_inside_too() -> None:
    x, y = noise(8, 8)
    for label in (-1, 3):
        with pytest.raises(DataError, match="labels span"):
            gradient_norm_membership(nn.Linear(10, 3), (x, torch.full_like(y, label)), (x, y))


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_shadows_may_have_other_classes_than_the_target(classes: int) -> None:
    x, y = noise(40, 9)
    made = train_references(nn.Linear(10, classes), (x, y % 2), count=2, schedule=Schedule(epochs=1, batch_size=8))
    scores = shadow_membership(nn.Linear(10, 4), (x[:20], y[:20]), (x[20:], y[20:]), references=made)
    assert len(scores.members) == 20 and bool(scores.members.isfinite().all())


def test_estimators_are_targets_and_references_too() -> None:
    x, y = noise(120, 3)
    members, others = (x[:60], y[:60]), (x[60:], y[60:])
    forest = RandomForestClassifier(20, random_state=0).fit(members[0].numpy(), members[1].numpy())
    made = train_references(RandomForestClassifier(20), (x, y), count=4)
    assert not torch.equal(made.logits[0], made.logits[2])
    target = Target(lambda z: forest.predict_proba(z.numpy()), outputs="probabilities")
    for attack in (lira, shadow_membership, learned_membership):
        assert area(attack(target, members, others, references=made)) > 0.9
    with pytest.raises(ModelError, match="reference model 0 could not be fitted"):
        train_references(GaussianNB(var_smoothing=-1.0), (x, y), count=2)
    spread = train_references(RandomForestClassifier(5), (x, y), count=2, spread=lambda f, items: [f(one) for one in items])
    local = train_references(RandomForestClassifier(5), (x, y), count=2)
    assert torch.equal(spread.logits, local.logits)


def test_a_half_may_lack_a_class() -> None:
    x, y = noise(40, 4)
    y[:] = y % 2
    y[0] = 4
    made = train_references(RandomForestClassifier(5), (x, y), count=2)
    assert made.logits.shape == (2, 40, 5)
    p = made.logits.exp()
    assert float(p[:, :, 2:4].max()) < 1e-6 and np.allclose(p.sum(2), 1, atol=1e-5)


def test_the_pilot_trains_as_long_as_the_target_fits(learnt: tuple[nn.Module, Pair, Pair]) -> None:
    model, members, _ = learnt
    easy, reached = matched_schedule(model, members, 0.3)
    assert easy.epochs == 5 and reached >= 0.29
    hard, fitted = matched_schedule(model, members, 1.0, lr=5e-3, longest=60)
    assert hard.epochs in (20, 40, 60) and fitted > reached
    assert operations(model, members[0]) == 2 * (10 * 256 + 256 * 3)
