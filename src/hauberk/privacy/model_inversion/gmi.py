"""Inversion under a prior: the latent point whose input the model assigns to a class (generative model inversion)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.target import evaluating
from hauberk.core.train import class_logits
from hauberk.privacy.membership.signals import cross_entropy
from hauberk.privacy.model_inversion.descent import TAGS, adam, classes_of, refuse_labels, refuse_steps
from hauberk.privacy.model_inversion.gan import Generator
from hauberk.privacy.model_inversion.prior import Prior


@reconstruction(
    question="Which likely inputs does the model hold to be of a class, for one who has public inputs of the same sort?",
    paper="Zhang et al. 2020, arXiv:1911.07135 (GMI)", tags=TAGS, preset="thorough", sees="model and prior",
    access=Access.GRADIENT,
)
def gmi(
    module: nn.Module, labels: Tensor, *, prior: Prior, steps: int = 300, rate: float = 0.1, realism: float = 0.01,
    restarts: int = 4, seed: int = 0,
) -> Reconstruction:
    """Descend over latent points on the cross-entropy of a class plus a weight times how unlikely the input is.

    An input is unlikely where a generator's own critic says so; for other priors, where its latent point is far from the middle.

    Arguments:
        module: the model, which returns logits; differentiated, never changed.
        labels: the class to invert, one per input to be made, shape (n,).
        prior: turns latent points into inputs: `train_gan(auxiliary)` or `GaussianPrior(auxiliary)`.
        steps: gradient steps.
        rate: of Adam, on the latent points.
        realism: weight of the prior.
        restarts: searches per input, all at once; the one with the lowest sum is kept.
        seed: of the latent starts.

    Returns:
        `x` of shape (n, ...); `y`, the labels; `loss` of shape (n,), float64: 1 - p_y.

    Raises:
        DataError: for labels that are no classes of the model, or a prior whose inputs it does not take.
        UsageError: for fewer than one step or restart.
    """
    refuse_steps(steps)
    if restarts < 1:
        raise UsageError(f"restarts is {restarts}", want="at least 1")
    place = next(module.parameters(), torch.zeros(()))
    many = labels.repeat_interleave(restarts).to(place.device)  # (n restarts,)
    start = torch.randn(len(many), prior.width, generator=rng.generator(seed, "gmi")).to(place)

    def objective(z: Tensor) -> tuple[Tensor, Tensor]:
        x = prior(z)
        far = -prior.realism(x) if isinstance(prior, Generator) else z.square().sum(1) / 2
        loss = cross_entropy(class_logits(module(x)).double(), many) + realism * far
        return loss, loss

    with evaluating(module):
        with torch.no_grad():
            refuse_labels(labels, classes_of(module, prior(start[:1])))
        z, least = adam(start, objective, steps=steps, rate=rate)
        first = least.view(-1, restarts).argmin(1)
        chosen = z.view(-1, restarts, prior.width)[torch.arange(len(labels), device=z.device), first]
        with torch.no_grad():
            x = prior(chosen)
            unsure = -torch.expm1(-cross_entropy(class_logits(module(x)).double(), labels.to(place.device)))
    return Reconstruction(x, y=labels, loss=unsure)
