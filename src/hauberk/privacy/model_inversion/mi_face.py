"""MI-FACE: the input that a model is surest of, class by class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.target import evaluating
from hauberk.core.train import class_logits
from hauberk.privacy.membership.signals import cross_entropy
from hauberk.privacy.model_inversion.descent import TAGS, classes_of, falling, keep, refuse_labels, refuse_steps, variation


@reconstruction(
    question="What does the model hold to be the typical input of a class?", paper="Fredrikson et al. 2015, CCS (MI-FACE)",
    tags=TAGS, preset="thorough", sees="model",
    access=Access.GRADIENT,
)
def mi_face(
    module: nn.Module, labels: Tensor, *, shape: tuple[int, ...], steps: int = 300, rate: float = 0.01,
    tv: float | None = None, bounds: tuple[float, float] = (0.0, 1.0), start: Tensor | None = None,
) -> Reconstruction:
    """Descend on 1 - p_y, all classes at once, each from its own start; the best iterate of each is returned, not the last.

    The steps follow the gradient of log p_y: it points where that of p_y does, and does not vanish with it. Each is of a length
    given beforehand, so that a sure model is searched as fast as an unsure one.

    Arguments:
        module: the model, which returns logits; differentiated, never changed.
        labels: the class to invert, one per input to be made, shape (n,).
        shape: of one input.
        steps: gradient steps.
        rate: length of the first step as a share of the distance between the ends of all bounds; the last is of length zero.
        tv: weight of the total variation of images, in units of the distance between the bounds: smoother images, less sure
            answers. None takes 10 for images, (channels, height, width), which others recognise far better; 0 for other inputs.
        bounds: lowest and highest input.
        start: where to start, shape (n, *shape), such as a public mean image; None starts in the middle of the bounds.

    Returns:
        `x` of shape (n, *shape); `y`, the labels; `loss` of shape (n,), float64: 1 - p_y.

    Raises:
        DataError: for labels that are no classes of the model, or a shape that it does not take.
        UsageError: for a number of steps below 1, or bounds in the wrong order.
    """
    refuse_steps(steps, bounds)
    low, high = bounds
    tv = (10.0 if len(shape) == 3 else 0.0) if tv is None else tv
    place = next(module.parameters(), torch.zeros(()))
    x = torch.full((len(labels), *shape), (low + high) / 2, dtype=place.dtype, device=place.device)
    x = x if start is None else start.detach().to(x).expand_as(x).clone()
    with evaluating(module):
        refuse_labels(labels, classes_of(module, x[:1]))
    y = labels.to(place.device)
    best, least = x.clone(), torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    length = (high - low) * math.sqrt(math.prod(shape))
    with evaluating(module), torch.enable_grad():
        for step in range(steps + 1):
            x.requires_grad_(True)
            loss = cross_entropy(class_logits(module(x)).double(), y) + tv / (high - low) ** 2 * variation(x)  # (n,)
            (slope,) = torch.autograd.grad(loss.sum(), x)
            x = x.detach()
            keep(best, least, x, loss)
            size = slope.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny).view(-1, *[1] * len(shape))
            x = (x - falling(rate, step, steps) * length * slope / size).clamp(low, high)
        with torch.no_grad():
            unsure = -torch.expm1(-cross_entropy(class_logits(module(best)).double(), y))
    return Reconstruction(best, y=labels, loss=unsure)
