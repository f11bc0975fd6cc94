"""A small generative adversarial network as a prior: some hundred thousand weights, trained on auxiliary inputs in seconds."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from hauberk.core import progress, rng
from hauberk.core.errors import DataError, UsageError


class Generator(nn.Module):
    """Latent points to inputs within bounds, with the critic it was trained against.

    Arguments:
        shape: of one input.
        width: of a latent point.
        hidden: channels (images) or units.
        bounds: lowest and highest input, reached by a sigmoid.
    """

    def __init__(
        self, shape: tuple[int, ...], *, width: int = 32, hidden: int = 32, bounds: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        super().__init__()
        self.shape, self.width, self.bounds = shape, width, bounds
        if len(shape) == 3:
            channels, height, across = shape
            small = (max(1, math.ceil(height / 4)), max(1, math.ceil(across / 4)))
            self.net = nn.Sequential(
                nn.Linear(width, hidden * small[0] * small[1]), nn.LeakyReLU(0.2), nn.Unflatten(1, (hidden, *small)),
                nn.Upsample(size=(math.ceil(height / 2), math.ceil(across / 2))), nn.Conv2d(hidden, hidden, 3, padding=1),
                nn.LeakyReLU(0.2), nn.Upsample(size=(height, across)), nn.Conv2d(hidden, hidden // 2, 3, padding=1),
                nn.LeakyReLU(0.2), nn.Conv2d(hidden // 2, channels, 3, padding=1),
            )
        else:
            self.net = nn.Sequential(
                nn.Linear(width, 4 * hidden), nn.LeakyReLU(0.2), nn.Linear(4 * hidden, 4 * hidden), nn.LeakyReLU(0.2),
                nn.Linear(4 * hidden, math.prod(shape)), nn.Unflatten(1, shape),
            )
        self.critic = _critic(shape, hidden)

    def forward(self, z: Tensor) -> Tensor:
        """Return inputs, shape (n, ...), of latent points, shape (n, width)."""
        low, high = self.bounds
        made: Tensor = low + (high - low) * self.net(z).sigmoid()
        return made

    def realism(self, x: Tensor) -> Tensor:
        """Return the critic's log-odds that an input is a real one, shape (n,)."""
        low, high = self.bounds
        odds: Tensor = self.critic((x - low) / (high - low))[:, 0]
        return odds


def train_gan(
    auxiliary: Tensor, *, width: int = 32, hidden: int = 32, steps: int = 1500, batch_size: int = 64, rate: float = 1e-3,
    bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0,
) -> Generator:
    """Train a generator against a critic with spectral norms on the hinge loss (Miyato et al. 2018, arXiv:1802.05957).

    Arguments:
        auxiliary: inputs like the private ones, shape (m, ...).
        width: of a latent point.
        hidden: channels (images) or a quarter of the units of both nets.
        steps: of both nets.
        batch_size: real and made inputs per step.
        rate: learning rate.
        bounds: lowest and highest input.
        seed: of weights, batches and latent draws.

    Returns:
        The generator in evaluation mode: a `Prior`.

    Raises:
        DataError: for fewer than 2 inputs.
        UsageError: for a number of steps below 1.
    """
    if len(auxiliary) < 2 or not auxiliary.is_floating_point():
        raise DataError(f"there are {len(auxiliary)} auxiliary inputs", want="at least 2 inputs like the private ones, floats")
    if steps < 1:
        raise UsageError(f"steps is {steps}", want="at least 1")
    with rng.isolated(rng.derive_seed(seed, "gan")):
        made = Generator(tuple(auxiliary.shape[1:]), width=width, hidden=hidden, bounds=bounds).to(auxiliary)
    draw = rng.generator(seed, "gan draws")
    judge = torch.optim.Adam(made.critic.parameters(), lr=2 * rate, betas=(0.5, 0.9))
    maker = torch.optim.Adam(made.net.parameters(), lr=rate, betas=(0.5, 0.9))

    def latent() -> Tensor:
        return torch.randn(batch_size, width, generator=draw).to(auxiliary)

    with torch.enable_grad():
        for _ in progress.track(range(steps), "gan"):
            real = auxiliary[torch.randint(len(auxiliary), (batch_size,), generator=draw)]
            with torch.no_grad():
                fake = made(latent())
            loss = functional.relu(1 - made.realism(real)).mean() + functional.relu(1 + made.realism(fake)).mean()
            judge.zero_grad(set_to_none=True)
            loss.backward()
            judge.step()
            maker.zero_grad(set_to_none=True)
            (-made.realism(made(latent())).mean()).backward()
            maker.step()
    for one in made.parameters():
        one.grad = None
    return made.eval()


def _critic(shape: tuple[int, ...], hidden: int) -> nn.Sequential:
    if len(shape) == 3:
        channels, height, across = shape
        rest = math.ceil(height / 4) * math.ceil(across / 4)
        return nn.Sequential(
            spectral_norm(nn.Conv2d(channels, hidden // 2, 3, stride=2, padding=1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(hidden // 2, hidden, 3, stride=2, padding=1)), nn.LeakyReLU(0.2),
            nn.Flatten(), spectral_norm(nn.Linear(hidden * rest, 1)),
        )
    return nn.Sequential(
        nn.Flatten(), spectral_norm(nn.Linear(math.prod(shape), 4 * hidden)), nn.LeakyReLU(0.2),
        spectral_norm(nn.Linear(4 * hidden, 4 * hidden)), nn.LeakyReLU(0.2), spectral_norm(nn.Linear(4 * hidden, 1)),
    )
