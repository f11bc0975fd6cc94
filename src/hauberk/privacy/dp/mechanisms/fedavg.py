"""DP-FedAvg: a mean of client updates that hides whether any one client took part."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.noise import Gaussian, SecureSource, Source

Update = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round lets out.

    Arguments:
        update: the noised mean by name, to be added to the shared model.
        releases: what the ledger records; the unit is a client (a user with all that is theirs), not an example.
        clipped: the share of the round's clients whose update was longer than the clip; not noised, for the server alone.
    """

    update: dict[str, Tensor]
    releases: tuple[Release, ...]
    clipped: float


def dp_fedavg(
    updates: Sequence[Update], like: Update, *, clip: float, noise_multiplier: float, rate: float, population: int,
    source: Source | None = None,
) -> Round:
    """Clip each client's update as a whole, add up, add Gaussian noise, divide by the expected number of clients.

    The divisor is `rate` x `population`, whoever came: the number that did come would tell of one client. An empty round is noise
    alone, and counts. An update that is not finite adds nothing.

    Arguments:
        updates: by name, the change that each sampled client proposes.
        like: names and shapes of an update, the model's parameters for example.
        clip: longest an update may be, in L2 over all its tensors.
        noise_multiplier: standard deviation of the noise on the sum over the clip.
        rate: the probability with which each client was drawn, by itself (Poisson sampling).
        population: clients that could have been drawn.
        source: of randomness; None takes a secure one.

    Raises:
        DataError: for an update with other names or shapes.
        UsageError: for numbers that cannot be.

    Paper: McMahan, Ramage, Talwar and Zhang 2018, arXiv:1710.06963.
    """
    if not 0 < clip < math.inf or not 0 < rate <= 1 or population < 1:
        raise UsageError(f"clip is {clip}, rate {rate}, population {population}",
                         want="a finite clip above 0, a rate above 0 and at most 1, at least 1 client")
    if len(updates) > population:
        raise DataError(f"there are {len(updates)} updates of {population} clients", want="at most one of each client",
                        fix="Add the updates of one client up: what is hidden is a client")
    noise, drawn = Gaussian(noise_multiplier), source or SecureSource()
    total = {name: torch.zeros(one.shape, dtype=torch.float64, device=one.device) for name, one in like.items()}
    clipped = 0
    for number, update in enumerate(updates):
        parts = _checked(update, like, number)
        length = math.sqrt(math.fsum(float(one.square().sum()) for one in parts.values()))
        if not math.isfinite(length):
            continue
        clipped += length > clip
        for name, one in parts.items():
            total[name] += one * min(1.0, clip / length if length else 1.0)
    expected = rate * population
    made = {name: (noise.add_(one, clip, drawn) / expected).to(like[name].dtype) for name, one in total.items()}
    release = Release("gaussian", noise_multiplier, "poisson", rate, population=population) if rate < 1 else Release(
        "gaussian", noise_multiplier, population=population)
    return Round(made, (release,), clipped / max(1, len(updates)))


def _checked(update: Update, like: Update, number: int) -> dict[str, Tensor]:
    if update.keys() != like.keys():
        odd = sorted(update.keys() ^ like.keys())
        raise DataError(f"update {number} lacks or adds {', '.join(odd[:5])}", want="the names of the shared model")
    for name, one in update.items():
        if one.shape != like[name].shape:
            raise DataError(f"'{name}' of update {number} has shape {tuple(one.shape)}", want=f"{tuple(like[name].shape)}")
    return {name: one.detach().to(like[name].device, torch.float64) for name, one in update.items()}
