"""The engine of gradient matching against plain autograd, one victim at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.rng import isolated
from hauberk.core.smallcnn import SmallCNN
from hauberk.privacy.inversion import ClientUpdate, LocalSteps, client_update
from hauberk.privacy.inversion.matching import Distance, Matcher, angles, cosine, squared


def networks() -> dict[str, nn.Module]:
    with isolated(1):
        plain = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Tanh(),
            nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(24, 5), nn.Sigmoid(), nn.Linear(5, 3),
        )
        normal = nn.Sequential(
            nn.Conv2d(2, 4, 3, dilation=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        )
        rows = nn.Sequential(nn.Flatten(2), nn.Linear(100, 6), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
        volume = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3))
    return {"plain": plain.double().eval(), "normal": normal.double().eval(), "rows": rows.double(), "volume": volume.double()}


def slow(model: nn.Module, update: ClientUpdate, x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the distance and its slope by differentiating twice, from the definitions."""
    x = x.clone().requires_grad_()
    loss = functional.cross_entropy(model(x), y)
    own = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    pairs = list(zip(own, update.gradients.values(), strict=True))
    a, b = (torch.cat([pair[k].flatten() for pair in pairs]) for k in (0, 1))
    whole = 1 - functional.cosine_similarity(a, b, dim=0)
    if name == "squared":
        value = (a - b).square().sum() / b.square().sum()
    elif name == "cosine":
        value = whole
    else:
        each = [1 - functional.cosine_similarity(one.flatten(), two.flatten(), dim=0) for one, two in pairs]
        value = (whole + torch.stack(each).mean()) / 2
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("distance", [cosine, angles, squared], ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", ["plain", "normal", "rows", "volume"])
def test_victims_together_equal_each_alone(kind: str, distance: Distance, n: int) -> None:
    model, draw = networks()[kind], torch.Generator().manual_seed(n)
    shape = (2, 10) if kind == "volume" else (2, 10, 10)
    x, z = (torch.rand(2 * n, *shape, generator=draw, dtype=torch.float64) for _ in range(2))
    y = torch.randint(3, (2 * n,), generator=draw)
    parts = [slice(k * n, k * n + n) for k in range(2)]
    sent = [client_update(model, x[part], y[part]) for part in parts]
    matcher = Matcher(model, sent, distance)
    with matcher.ready():
        value, slope, _ = matcher(z, y)
        assert matcher._quick is not None
    for k, part in enumerate(parts):
        wanted, at = slow(model, sent[k], z[part], y[part], distance.__name__)
        torch.testing.assert_close(value[k], wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(slope[part], at, rtol=1e-8, atol=1e-12)


def test_soft_labels_have_the_slope_of_finite_differences() -> None:
    model, draw = networks()["plain"], torch.Generator().manual_seed(5)
    x, z = (torch.rand(2, 2, 10, 10, generator=draw, dtype=torch.float64) for _ in range(2))
    logits = torch.randn(2, 3, generator=draw, dtype=torch.float64)
    sent = [client_update(model, x[k : k + 1], torch.tensor([k])) for k in range(2)]
    matcher = Matcher(model, sent, squared)
    with matcher.ready():
        _, slope, at = matcher(z, logits)
        assert at is not None
        push, aside = torch.randn(z.shape, generator=draw, dtype=torch.float64), torch.tensor([[0.3, -1, 0.2]] * 2)
        ahead, behind = (matcher(z + s * 1e-6 * push, logits + s * 1e-6 * aside)[0].sum() for s in (1, -1))
    torch.testing.assert_close((ahead - behind) / 2e-6, (slope * push).sum() + (at * aside).sum(), rtol=1e-5, atol=1e-8)


def test_a_layer_that_is_called_twice_falls_back_to_plain_autograd() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.last(self.same(self.same(x).tanh()))
            return answer

    with isolated(2):
        model = Twice().double()
    x = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sent = client_update(model, x[:1], torch.tensor([1]))
    matcher = Matcher(model, [sent], cosine)
    with matcher.ready():
        value, slope, _ = matcher(x[1:], torch.tensor([1]))
    wanted, at = slow(model, sent, x[1:], torch.tensor([1]), "cosine")
    torch.testing.assert_close(value[0], wanted)
    torch.testing.assert_close(slope, at)


def test_a_gradient_of_1e_minus_30_is_as_good_as_any() -> None:
    model = networks()["plain"].float()
    x = torch.rand(2, 2, 10, 10, generator=torch.Generator().manual_seed(0))
    sent = client_update(model, x[:1], torch.tensor([1]))
    faint = ClientUpdate({key: one * 1e-30 for key, one in sent.gradients.items()}, sent.shape)
    found = []
    for one in (sent, faint):
        matcher = Matcher(model, [one], angles)
        with matcher.ready():
            found.append(matcher(x[1:], torch.tensor([1]))[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_local_steps_are_those_of_sgd() -> None:
    model, draw = networks()["rows"], torch.Generator().manual_seed(3)
    x, y = torch.rand(4, 2, 10, 10, generator=draw, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    sent = client_update(model, x, y, local=LocalSteps(3, 0.1, batch_size=2))
    twin = networks()["rows"]
    search = torch.optim.SGD(twin.parameters(), lr=0.1)
    for part in (slice(0, 2), slice(2, 4), slice(0, 2)):
        search.zero_grad()
        functional.cross_entropy(twin(x[part]), y[part]).backward()
        search.step()
    for (name, new), old in zip(twin.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(sent.gradients[name], (new - old).detach())
    matcher = Matcher(model, [sent], squared)
    with matcher.ready():
        value, slope, _ = matcher(x, y)
    assert float(value) < 1e-25 and float(slope.abs().max()) < 1e-10


def test_the_small_cnn_is_that_of_trades() -> None:
    model = SmallCNN()
    assert sum(one.numel() for one in model.parameters()) == 312_202
    assert torch.equal(model(torch.rand(2, 1, 28, 28)), torch.zeros(2, 10))
    assert torch.equal(SmallCNN(seed=1).features[0].weight, SmallCNN(seed=1).features[0].weight)
