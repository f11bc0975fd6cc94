"""What every attack on a client's update promises, over the registry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hauberk.core.card import Card
from hauberk.core.errors import HauberkError
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import isolated
from hauberk.methods import load_methods
from hauberk.privacy.inversion import client_update

CARDS = [card for card in load_methods().cards("reconstruction") if card.facts.get("sees") == "update"]


def setting(n: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a smooth net with a normalisation, samples and their labels, all different."""
    with isolated(7):
        model = nn.Sequential(nn.Linear(9, 20), nn.BatchNorm1d(20), nn.Sigmoid(), nn.Linear(20, 4)).double()
    x = torch.rand(n, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return model, x, torch.arange(n)


def few(card: Card, steps: int = 8) -> dict[str, Any]:
    return {"steps": steps} | ({"restarts": 1} if "restarts" in card.options else {})


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
class TestEveryGradientAttack:
    def test_it_gets_nearer_to_the_sample_than_a_guess(self, card: Card) -> None:
        model, x, y = setting()
        found = card.function(model, client_update(model, x, y), **few(card, 100))
        assert isinstance(found, Reconstruction) and found.x.shape == x.shape and found.x.dtype == x.dtype
        assert float((found.x - x).square().mean()) < 0.25 * float((0.5 - x).square().mean())
        assert found.y is not None and found.y.tolist() == y.tolist()
        assert found.loss is not None and found.loss.shape == (1,) and float(found.loss) < 0.1

    def test_the_seed_decides_and_clients_are_apart(self, card: Card) -> None:
        model, x, y = setting(2)
        sent = [client_update(model, x[k : k + 1], y[k : k + 1]) for k in range(2)]
        whole = card.function(model, sent, **few(card), seed=3)
        assert torch.equal(whole.x, card.function(model, sent, **few(card), seed=3).x)
        assert not torch.equal(whole.x, card.function(model, sent, **few(card), seed=4).x)
        torch.testing.assert_close(card.function(model, sent[:1], **few(card), seed=3).x, whole.x[:1])

    def test_labels_that_are_not_known_are_found(self, card: Card) -> None:
        model, x, y = setting()
        found = card.function(model, client_update(model, x, y, know_labels=False), **few(card))
        assert found.y is not None and found.y.tolist() == y.tolist()

    def test_nothing_given_is_changed(self, card: Card) -> None:
        model, x, y = setting(2)
        model.train()
        sent = client_update(model, x, y, training=True)
        kept = {key: one.clone() for key, one in model.state_dict().items()}
        given, state = {key: one.clone() for key, one in sent.gradients.items()}, torch.get_rng_state()
        card.function(model, sent, **few(card, 3))
        assert torch.equal(state, torch.get_rng_state()) and all(part.training for part in model.modules())
        assert all(torch.equal(one, kept[key]) for key, one in model.state_dict().items())
        assert all(one.grad is None and one.requires_grad for one in model.parameters())
        assert all(torch.equal(one, given[key]) for key, one in sent.gradients.items())

    def test_what_cannot_be_used_is_refused(self, card: Card) -> None:
        model, x, y = setting()
        with pytest.raises(HauberkError, match="missing"):
            card.function(model, {})
        with pytest.raises(HauberkError, match="steps"):
            card.function(model, client_update(model, x, y), steps=0)
        silent = client_update(model, x, y)
        for one in silent.gradients.values():
            one.zero_()
        with pytest.raises(HauberkError, match="zero"):
            card.function(model, silent)


def test_there_are_all_kinds() -> None:
    assert {"dlg", "inverting-gradients", "batch-norm-matching", "group-consistency", "see-through"} <= {c.name for c in CARDS}
