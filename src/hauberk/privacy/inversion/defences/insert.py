"""A bottleneck put into a model that was trained without one, and trained until the model answers again."""

from __future__ import annotations

import torch
from torch import Tensor, nn, optim

from hauberk.core.data import Split
from hauberk.core.errors import DataError, ModelError
from hauberk.core.rng import isolated
from hauberk.core.target import evaluating
from hauberk.core.train import Schedule, fit
from hauberk.privacy.inversion.defences.mid import information_loss
from hauberk.privacy.inversion.defences.precode import Bottleneck, precode

MOST, RATE = 4096, 3e-3
LOSS = 1e-3  # of a nat that passes the bottleneck of PRECODE (Scheliga et al. 2022, arXiv:2108.04725)


def insert_bottleneck(
    module: nn.Module, split: Split, *, strength: float = 1.0, nats: float = LOSS, epochs: int = 10, seed: int = 0
) -> nn.Module:
    """Return a copy of a trained model with a bottleneck before its last linear layer, in evaluation mode.

    As it is inserted the bottleneck passes on noise. It is trained alone, on at most 4,096 samples, with the rest of the weights
    held: the model of a client in the midst of joint training, not one that was trained with it from the first.

    Arguments:
        module: the model; returns logits.
        split: samples to train on: none that are to be won back.
        strength: factor of the spread of what is drawn; 0 draws nothing.
        nats: what the loss adds for each nat that passes the bottleneck: the strength of `mid`.
        epochs: over the samples.
        seed: of the weights, the order and the draws.

    Raises:
        ModelError: for a model without a linear layer, or that is one.
        DataError: for a split without samples.
    """
    if not len(split):
        raise DataError("there are no samples to train the bottleneck on", want="at least one")
    made = precode(module, strength=strength, seed=seed).eval()
    name = next(name for name, part in made.named_modules() if isinstance(part, Bottleneck))
    head = made.get_submodule(name.rpartition(".")[0])  # the bottleneck and the layer behind it
    x, y = split.sample(min(MOST, len(split)), seed, "bottleneck")
    place = next(made.parameters()).device
    features = torch.cat([_entering(made, head, part.to(place)) for part in x.split(256)])
    part = made.get_submodule(name)
    optimizer = optim.Adam(part.parameters(), lr=RATE)
    schedule = Schedule(epochs=epochs, batch_size=64, seed=seed)
    fit(head, Split(features, y.to(place)), loss=information_loss(nats), optimizer=optimizer, schedule=schedule)
    for one in made.parameters():
        one.grad = None
    return made.eval()


@torch.no_grad()
def agreement(module: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy of a model on samples x, (n, ...); one that draws draws alike at every call."""
    place = next(module.parameters()).device
    with evaluating(module), isolated(0, place):
        answers = torch.cat([module(part.to(place)).argmax(1).cpu() for part in x.split(256)])
    return float((answers == y.cpu()).double().mean())


def _entering(module: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
    """Return what enters the head for samples x, shape (n, features)."""
    kept: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        with isolated(0, x.device), torch.no_grad():
            module(x)
    finally:
        handle.remove()
    if kept[0].ndim != 2:
        raise ModelError(f"what enters the last linear layer has shape {tuple(kept[0].shape)}", want="(n, features)")
    return kept[0]
