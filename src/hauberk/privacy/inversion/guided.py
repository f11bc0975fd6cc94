"""Gradient matching under what else is known of the inputs: they look like images, fit the batch statistics, and each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hauberk.core.errors import ModelError, UsageError
from hauberk.core.kinds import Reconstruction
from hauberk.privacy.inversion.client import ClientUpdate, as_updates, widened
from hauberk.privacy.inversion.labels import hard, labels_of
from hauberk.privacy.inversion.matching import Matcher, angles
from hauberk.privacy.inversion.priors import size, total_variation, weight_of
from hauberk.privacy.inversion.search import begin, box, signed_adam


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the penalties, each of which is about 1 for an input of noise, whatever the range of inputs.

    Arguments:
        tv: total variation.
        l2: mean square of the input.
        statistics: distance of the batch-norm statistics.
        group: distance from what the seeds agree on.
    """

    tv: float = 0.0
    l2: float = 0.0
    statistics: float = 0.0
    group: float = 0.0


def guided(
    module: nn.Module, update: ClientUpdate | Sequence[ClientUpdate], weights: Weights, *, seeds: int, steps: int, lr: float,
    seed: int, label: str,
) -> Reconstruction:
    """Search each client's inputs from several seeds side by side; the seed of the least objective is returned.

    Arguments:
        module: the model, never changed.
        update: what a client sent, or several.
        weights: of the penalties.
        seeds: starts that are searched for together and, with `weights.group`, drawn towards each other.
        steps, lr: of Adam on the sign of the slope.
        seed: of the starts.
        label: of the progress.

    Raises:
        UsageError: for seeds or steps below 1, or a weight below 0.
        ModelError: when batch-norm statistics are to be matched and there are none.
    """
    if seeds < 1 or min(dataclasses.astuple(weights)) < 0:
        raise UsageError(f"seeds is {seeds} and weights are {weights}", want="at least 1 seed, weights of 0 or more")
    updates, given, module = as_updates(update, module), next(module.parameters()), widened(module)
    like, n, wide = next(module.parameters()), updates[0].n, box(updates[0].bounds)[2]
    found = []
    for client, one in enumerate(updates):
        labels = labels_of(module, one).to(like.device)
        wanted = statistics_of(module, one) if weights.statistics else {}
        # A client of several steps shares the statistics of its first batch.
        seen = next(one.local.batches(n)) if one.statistics and one.local is not None else slice(None)
        starts = [begin((n, *one.shape), like, one.bounds, seed, label, client, k) for k in range(seeds)]
        matcher, y, spent = Matcher(module, [one], angles, repeats=seeds), torch.cat([labels] * seeds), [0]

        def objective(
            x: Tensor, matcher: Matcher = matcher, y: Tensor = y, spent: list[int] = spent,
            wanted: dict[str, tuple[Tensor, Tensor]] = wanted, seen: slice = seen,
            rough: float = weight_of(weights.tv, one) / wide,
        ) -> tuple[Tensor, Tensor]:
            value, slope, _ = matcher(x, y)
            for weight, prior in ((rough, total_variation), (weights.l2 / wide**2, size)):
                if weight:
                    penalty, push = prior(x)
                    value, slope = value + weight * penalty.reshape(-1, n).mean(1), slope + weight / n * push
            if weights.statistics:
                rows = x.reshape(seeds, n, *x.shape[1:])[:, seen]
                penalty, push = statistics_gap(module, rows.flatten(0, 1), seeds, wanted, apart=matcher.update.training)
                value = value + weights.statistics * penalty
                slope.view(seeds, n, *x.shape[1:])[:, seen] += weights.statistics * push.reshape(rows.shape)
            spent[0] += 1
            if weights.group:  # it counts from the first step on, so that iterates are judged alike
                penalty, push = size(x - consensus(x, seeds))
                weight = weights.group / wide**2
                value = value + weight * penalty.reshape(-1, n).mean(1)
                if spent[0] > steps // 4:  # before that the seeds have nothing to agree on
                    slope = slope + weight / n * push
            return value, slope

        with matcher.ready():
            x, least = signed_adam(
                objective, torch.cat(starts), candidates=seeds, steps=steps, lr=lr, bounds=one.bounds, label=label
            )
        chosen = int(least.argmin())
        found.append((x[chosen * n : chosen * n + n], hard(labels), least[chosen].expand(n)))
    x, y, loss = (torch.cat(rows) for rows in zip(*found, strict=True))
    return Reconstruction(x.to(given), y, loss)


def statistics_of(module: nn.Module, update: ClientUpdate) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the mean and variance to match by layer: those the client shared, else the model's running ones."""
    if update.statistics:
        return {name: (mean.detach(), variance.detach()) for name, (mean, variance) in update.statistics.items()}
    found = {
        name: (part.running_mean.detach(), part.running_var.detach())
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None
    }
    if not found:
        raise ModelError("the model has no batch normalisation", want="a layer with running statistics, or shared ones")
    return found


def statistics_gap(
    module: nn.Module, x: Tensor, candidates: int, wanted: dict[str, tuple[Tensor, Tensor]], *, apart: bool = False
) -> tuple[Tensor, Tensor]:
    """Return how far the statistics of each candidate batch are from the wanted ones, (candidates,), and the slope of the sum.

    The squared differences of means and of variances, relative to the wanted variance and its square, averaged over channels and
    layers.

    Arguments:
        module: in the mode that the client used.
        x: shape (candidates * n, ...).
        candidates: batches in x.
        wanted: mean and variance by layer.
        apart: run the batches one by one, for a model whose normalisation uses the statistics of its batch.
    """
    if apart and candidates > 1:
        rows = [statistics_gap(module, part, 1, wanted) for part in x.chunk(candidates)]
        return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])
    x = x.detach().requires_grad_()
    total: list[Tensor] = []

    def hook(name: str) -> object:
        mean, variance = wanted[name]

        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].reshape(candidates, -1, *inputs[0].shape[1:]).transpose(1, 2).flatten(2)  # (candidates, channels, …)
            own_variance, own_mean = torch.var_mean(rows, 2, correction=0)
            size = variance.to(rows).clamp_min(1e-5)
            gap = (own_mean - mean.to(rows)).square() / size + ((own_variance - variance.to(rows)) / size).square()
            total.append(gap.mean(1))

        return look

    parts = dict(module.named_modules())
    kept = [(part, part.running_mean, part.running_var, part.num_batches_tracked) for part in parts.values()
            if isinstance(part, _BatchNorm) and part.training]
    handles = [parts[name].register_forward_pre_hook(hook(name)) for name in wanted]
    try:
        for part, *_ in kept:  # what it learns goes nowhere
            part.running_mean = part.running_var = part.num_batches_tracked = None
        with torch.enable_grad():
            module(x)
            value = torch.stack(total).mean(0)
        (slope,) = torch.autograd.grad(value.sum(), x)
    finally:
        for part, mean, variance, count in kept:
            part.running_mean, part.running_var, part.num_batches_tracked = mean, variance, count
        for handle in handles:
            handle.remove()
    return value.detach(), slope


def consensus(x: Tensor, seeds: int) -> Tensor:
    """Return what the seeds agree on, in the shape of x: the mean of each input over the seeds, moved onto each other first.

    Images are moved by whole pixels, to where they fit the plain mean best (the largest circular cross-correlation).

    Arguments:
        x: shape (seeds * n, ...), seed by seed.
        seeds: how many.
    """
    rows = x.detach().reshape(seeds, -1, *x.shape[1:])
    mean = rows.mean(0)
    if x.ndim == 4 and seeds > 1:
        moved = torch.stack([register(one, mean) for one in rows])
        mean = moved.mean(0)
    return mean.expand_as(rows).reshape(x.shape)


def register(x: Tensor, onto: Tensor) -> Tensor:
    """Return images (n, channels, height, width), each shifted round by whole pixels to where it fits `onto` best."""
    spectrum = torch.fft.rfft2(onto) * torch.fft.rfft2(x).conj()
    fit = torch.fft.irfft2(spectrum, s=x.shape[-2:]).sum(1).flatten(1).argmax(1)
    width = x.shape[-1]
    shifts = [(int(place) // width, int(place) % width) for place in fit]
    return torch.stack([one.roll(shift, (-2, -1)) for one, shift in zip(x, shifts, strict=True)])
