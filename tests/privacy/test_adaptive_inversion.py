"""Who knows the defence: what is left of a match, what can be read off, and what comes back that the naive adversary misses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import isolated
from hauberk.privacy.inversion import ClientUpdate, LocalSteps, client_update, dlg, guided, inverting_gradients
from hauberk.privacy.inversion.defences import (
    DEFENCES,
    Bottleneck,
    gaussian_noise,
    insert_bottleneck,
    mixup,
    precode,
    quantise,
    soteria,
)
from hauberk.privacy.inversion.defences.precode import drawing
from hauberk.privacy.inversion.defences.seen_through import seen_through, unmixed
from hauberk.privacy.inversion.known import Known
from hauberk.privacy.inversion.matching import Distance, Matcher, angles, cosine, squared
from hauberk.privacy.inversion.priors import weight_of
from hauberk.privacy.inversion.trial import attempt


def network() -> nn.Module:
    with isolated(1):
        made = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 6, bias=False), nn.Tanh(),
            nn.Linear(6, 3),
        )
    return made.double()


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cut(model: nn.Module, x: Tensor, y: Tensor, name: str, strength: float) -> tuple[ClientUpdate, ClientUpdate]:
    """Return a defended update as the naive adversary sees it, and as the adaptive one does."""
    plain = client_update(model, x, y)
    if name == "soteria":
        sent = soteria(plain.gradients, strength, module=model, x=x)
    else:
        sent = DEFENCES[name][0](plain.gradients, strength, generator=torch.Generator().manual_seed(0))
    naive = dataclasses.replace(plain, gradients=sent)
    return naive, dataclasses.replace(naive, known=seen_through(name, strength, naive, model))


def told(model: nn.Module, update: ClientUpdate, x: Tensor, y: Tensor, distance: Distance) -> float:
    matcher = Matcher(model, [update], distance)
    with matcher.ready():
        return float(matcher(x, y)[0])


@pytest.mark.parametrize("distance", [cosine, angles, squared], ids=lambda one: one.__name__)
@pytest.mark.parametrize(("name", "strength"), [("prune", 0.9), ("top-k", 0.8), ("soteria", 0.5)])
def test_the_truth_has_distance_zero_for_who_knows_the_cut(name: str, strength: float, distance: Distance) -> None:
    model, x, y = network(), images(2), torch.tensor([0, 2])
    naive, adaptive = cut(model, x, y, name, strength)
    assert told(model, naive, x, y, distance) > 1e-3
    assert told(model, adaptive, x, y, distance) < 1e-12
    assert told(model, adaptive, images(2, 9), y, distance) > 1e-3


@pytest.mark.parametrize("local", [None, LocalSteps(2, 0.1)], ids=["gradient", "steps"])
@pytest.mark.parametrize("distance", [cosine, angles, squared], ids=lambda one: one.__name__)
def test_a_masked_match_is_that_of_its_definition(distance: Distance, local: LocalSteps | None) -> None:
    model, x, y, z = network(), images(2), torch.tensor([0, 2]), images(2, 5)
    sent = []
    for k in range(2):
        plain = client_update(model, x[k : k + 1], y[k : k + 1], local=local)
        changed = dataclasses.replace(plain, gradients=DEFENCES["prune"][0](plain.gradients, 0.5 + 0.3 * k))
        sent.append(dataclasses.replace(changed, known=seen_through("prune", 0.5 + 0.3 * k, changed, model)))
    matcher = Matcher(model, sent, distance)
    with matcher.ready():
        value, slope, _ = matcher(z, y)
        assert (matcher._quick is not None) == (local is None)
    for k, one in enumerate(sent):
        mine = z[k : k + 1].clone().requires_grad_()
        weights = [part.detach().requires_grad_() for part in model.parameters()]
        own = weights
        for _ in range(local.steps if local else 1):
            logits = torch.func.functional_call(model, dict(zip(one.gradients, own, strict=True)), (mine,))
            slopes = torch.autograd.grad(functional.cross_entropy(logits, y[k : k + 1]), own, create_graph=True)
            own = [a - local.lr * b for a, b in zip(own, slopes, strict=True)] if local else list(slopes)
        if local:
            own = [a - b for a, b in zip(own, weights, strict=True)]
        assert one.known is not None
        pairs = [(a * (t != 0), t) for a, t in zip(own, one.gradients.values(), strict=True)]
        a, b = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))
        whole = 1 - functional.cosine_similarity(a, b, dim=0)
        each = torch.stack([1 - functional.cosine_similarity(p.flatten(), q.flatten(), dim=0) for p, q in pairs if q.any()])
        wanted = {
            "cosine": whole, "angles": (whole + each.mean()) / 2, "squared": (a - b).square().sum() / b.square().sum()
        }[distance.__name__]
        torch.testing.assert_close(value[k], wanted.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(slope[k : k + 1], torch.autograd.grad(wanted, mine)[0], rtol=1e-7, atol=1e-11)


def test_more_zeros_than_were_cut_are_no_cut() -> None:
    model = network()
    gradients = {"a": torch.tensor([0.0, 0, 0, 1, 2, 3]), "b": torch.tensor([0.0, 0, 3, 4, 5, 6])}
    known = seen_through("prune", 0.34, ClientUpdate(gradients, (1,)), model)
    assert known is not None and list(known.kept) == ["b"] and known.kept["b"].tolist() == [False] * 2 + [True] * 4
    assert all(seen_through(name, 0.0, ClientUpdate(gradients, (1,)), model) is None for name in ("prune", "top-k", "quantise"))


@pytest.mark.parametrize("defence", ["prune=0", "top-k=0", "soteria=0", "gaussian-noise=0", "quantise=0", "clip=1"])
def test_a_defence_that_hides_nothing_is_attacked_as_none(defence: str) -> None:
    model, x, y = network(), images(2), torch.tensor([0, 2])
    plain, found = (attempt(model, x, y, inverting_gradients, defence=name, options={"steps": 3}) for name in ("", defence))
    assert found.adversary == "any" and found.naive is None
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if defence == "clip=1" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found.found.x, plain.found.x, **tolerance)


def smooth() -> nn.Module:
    with isolated(3):
        made = nn.Sequential(nn.Linear(12, 24), nn.Sigmoid(), nn.Linear(24, 16), nn.Sigmoid(), nn.Linear(16, 4))
        for one in made.parameters():
            nn.init.uniform_(one, -1, 1)
    return made.double()


@pytest.mark.parametrize("defence", ["prune=0.6", "top-k=0.6", "soteria=0.5", "clip=1000"])
def test_the_adaptive_adversary_wins_back_what_the_naive_one_misses(defence: str) -> None:
    x = torch.rand(1, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    trial = attempt(smooth(), x, torch.tensor([1]), dlg, defence=defence, options={"restarts": 2, "steps": 60})
    assert trial.adversary == "adaptive" and trial.naive is not None and trial.naive.adversary == "naive"
    assert float(trial.close.psnr.min()) > 50 and float(trial.naive.close.psnr.max()) < 30
    assert trial.stronger is trial


def test_noise_is_known_by_its_size() -> None:
    model, draw = network(), torch.Generator().manual_seed(0)
    true = {"a": torch.randn(300, 300, generator=draw), "b": 5 * torch.randn(100, 300, generator=draw)}
    for strength in (0.1, 1.0, 3.0):
        sent = ClientUpdate(gaussian_noise(true, strength, generator=draw), (1,))
        known = seen_through("gaussian-noise", strength, sent, model)
        assert known is not None
        sizes = [float((sent.gradients[key] - true[key]).std()) for key in true]
        assert [known.noise[key] for key in true] == pytest.approx(sizes, rel=0.03)
    level = {"a": torch.rand(300, 300, generator=draw) - 0.5}
    sent = ClientUpdate(quantise(level, 0.1, generator=draw), (1,))
    known = seen_through("quantise", 0.1, sent, model)
    assert known is not None and known.noise["a"] == pytest.approx(float((sent.gradients["a"] - level["a"]).std()), rel=0.05)


def test_the_prior_weighs_more_the_more_noise_there_is() -> None:
    update = ClientUpdate({"a": torch.ones(100), "b": torch.ones(50)}, (1,))
    weights = [weight_of(0.001, dataclasses.replace(update, known=Known(noise={"a": s, "b": s}))) for s in (0.0, 0.5**0.5, 1.0)]
    assert weights == pytest.approx([0.001, 0.031, 1.001])  # no noise, as much noise as signal, nothing but noise
    assert weight_of(0.0, dataclasses.replace(update, known=Known(noise={"a": 1.0}))) == 0 and weight_of(0.5, update) == 0.5


def bottlenecked(strength: float) -> nn.Module:
    with isolated(2):
        made = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    return precode(made, size=5, strength=strength)


def test_what_a_bottleneck_drew_is_read_off_the_gradient_of_one_sample() -> None:
    model, x, y = bottlenecked(2.0), images(1), torch.tensor([1])
    (name,) = (name for name, part in model.named_modules() if isinstance(part, Bottleneck))
    draw = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with drawing(model, {name: draw}):
        sent = client_update(model, x, y)
    known = seen_through("precode", 2.0, sent, model)
    assert known is not None and not known.kept
    torch.testing.assert_close(known.draws[name], draw, rtol=1e-8, atol=1e-8)
    assert told(model, dataclasses.replace(sent, known=known), x, y, angles) < 1e-9 < 1e-3 < told(model, sent, x, y, angles)
    assert model.get_submodule(name).draw is None
    assert seen_through("precode", 2.0, client_update(bottlenecked(0.0), x, y), bottlenecked(0.0)) is None


def test_of_a_batch_the_gradients_behind_the_draw_are_left_out() -> None:
    model, x, y = bottlenecked(1.0), images(3), torch.tensor([1, 0, 2])
    known = seen_through("precode", 1.0, client_update(model, x, y), model)
    assert known is not None and not any(bool(one.any()) for one in known.kept.values())
    assert set(known.kept) == {name for name, _ in model.named_parameters() if not name.startswith("1.")}
    trial = attempt(model, x, y, inverting_gradients, defence="precode=1", group=3, options={"steps": 2})
    assert trial.adversary == "adaptive" and trial.found.x.shape == x.shape


def test_an_inserted_bottleneck_answers_and_leaves_the_rest_as_it_was() -> None:
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(3, (600,), generator=draw)
    x = functional.one_hot(y, 3).float().repeat(1, 4) + 0.1 * torch.randn(600, 12, generator=draw)
    with isolated(0):
        model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    made = insert_bottleneck(model, Split(x[:500], y[:500]))
    kept = dict(model.named_parameters())
    for name, one in made.named_parameters():
        assert "2.0." in name or torch.equal(one, kept[name.replace("2.1.", "2.")])
    with isolated(1):
        assert float((made(x[500:]).argmax(1) == y[500:]).double().mean()) > 0.9
        assert float((precode(model)(x[500:]).argmax(1) == y[500:]).double().mean()) < 0.7


def test_blends_are_solved_for_their_samples_where_labels_differ() -> None:
    x, y = images(4), torch.tensor([3, 0, 2, 4])
    blend, soft = mixup(x, y, 5, strength=0.4, generator=torch.Generator().manual_seed(0))
    order = torch.argsort(y)
    assert float((blend - x).abs().max()) > 0.05
    torch.testing.assert_close(unmixed(blend, soft), x[order])
    same = mixup(x, torch.tensor([3, 0, 2, 0]), 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unmixed(*same), same[0])


@pytest.mark.parametrize("attack", [inverting_gradients, dlg, guided.guided])
def test_known_label_probabilities_are_matched_as_such(attack: Callable[..., object]) -> None:
    model, x, y = network(), images(2), torch.tensor([0, 2])
    blend, soft = mixup(x, y, 3, generator=torch.Generator().manual_seed(0))
    sent = dataclasses.replace(client_update(model, blend, soft), labels=soft)
    matched = soft.clamp_min(torch.finfo(soft.dtype).tiny).log()
    assert told(model, sent, blend, matched, squared) < 1e-12
    if attack is guided.guided:
        found = guided.guided(model, sent, guided.Weights(tv=1e-3), seeds=2, steps=2, lr=0.05, seed=0, label="two steps")
    else:
        found = attack(model, sent, steps=2, restarts=1)  # type: ignore[assignment]
    assert torch.equal(found.y, soft.argmax(1)) and found.x.shape == x.shape


def test_what_does_not_fit_a_defence_is_refused() -> None:
    model, x, y = network(), images(2), torch.tensor([0, 2])
    refused = (("mixup", "at least 2"), ("precode", "no bottleneck"), ("mid=0.1", "no bottleneck"), ("prune=-1", "0 or more"))
    for defence, said in refused:
        with pytest.raises(UsageError, match=said):
            attempt(model, x, y, inverting_gradients, defence=defence)
    sent = client_update(model, x, y)
    with pytest.raises(DataError, match="draws nothing"):
        inverting_gradients(model, dataclasses.replace(sent, known=Known(draws={"0": torch.ones(2, 3)})))
    with pytest.raises(DataError, match="kept entries"):
        inverting_gradients(model, dataclasses.replace(sent, known=Known(kept={"0.weight": torch.ones(3) > 0})))


def test_samples_the_model_does_not_take_are_refused_at_the_door() -> None:
    model, y = network(), torch.tensor([0, 2])
    with pytest.raises(DataError, match=r"refuses samples of shape \(1, 5, 5\)"):
        attempt(model, torch.rand(2, 1, 5, 5, dtype=torch.float64), y, inverting_gradients)
    sent = client_update(model, images(2), y)
    for attack in (inverting_gradients, dlg):
        with pytest.raises(DataError, match=r"refuses samples of shape \(36,\)"):
            attack(model, dataclasses.replace(sent, shape=(36,)), steps=1)
        with pytest.raises(DataError, match="reach 7"):
            attack(model, dataclasses.replace(sent, labels=y + 5), steps=1)
