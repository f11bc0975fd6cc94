"""The GAN attack in federated learning: a participant grows a generator against the shared model, round after round."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.errors import DataError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.target import evaluating
from hauberk.core.train import class_logits
from hauberk.privacy.membership.signals import cross_entropy
from hauberk.privacy.model_inversion.descent import TAGS, refuse_steps
from hauberk.privacy.model_inversion.gan import Generator


@reconstruction(
    question="Can a participant of joint training draw what a class of another participant looks like?",
    paper="Hitaj et al. 2017, arXiv:1702.07464", tags=TAGS, preset="thorough", sees="rounds",
    access=Access.GRADIENT,
)
def federated_gan(
    rounds: Iterable[nn.Module], label: int, *, shape: tuple[int, ...], send: Callable[[Tensor], object] | None = None,
    steps: int = 50, images: int = 64, bounds: tuple[float, float] = (0.0, 1.0), seed: int = 0,
) -> Reconstruction:
    """Train a generator whose inputs each round's global model assigns to a class, and feed them back under a false label.

    The global model plays the critic, and the honest participants keep training it. What the generator makes is sent back after
    each round as training inputs of another class, so that the owner of the true class has to teach the model, and with it the
    adversary, ever finer details.

    Arguments:
        rounds: the global model of each round, which returns logits; used one after the other, never changed. An iterator may
            train the next round when it is asked for it.
        label: the class of the other participant.
        shape: of one input.
        send: is given what the generator makes after each round, shape (images, *shape), to be trained on under a false label
            before the next round; None only listens.
        steps: of the generator per round.
        images: made per step, sent per round, and returned.
        bounds: lowest and highest input.
        seed: of the generator and its draws.

    Returns:
        `x` of shape (images, *shape), made by the generator after the last round; `y`, the label for each; `loss`, 1 - p_label
        in the last global model.

    Raises:
        DataError: for no round, or a label that is no class of the model.
        UsageError: for a number of steps below 1.
    """
    refuse_steps(steps, bounds)
    with rng.isolated(rng.derive_seed(seed, "federated gan")):
        maker = Generator(shape, bounds=bounds)
    draw = rng.generator(seed, "federated gan draws")
    learn = torch.optim.Adam(maker.net.parameters(), lr=2e-3, betas=(0.5, 0.9))
    wanted = torch.full((images,), label)
    last: tuple[Tensor, Tensor] | None = None
    for module in rounds:
        place = next(module.parameters())
        maker.to(place)
        y = wanted.to(place.device)
        with evaluating(module), torch.enable_grad():
            for _ in range(steps):
                logits = class_logits(module(maker(torch.randn(images, maker.width, generator=draw).to(place))))
                if not 0 <= label < logits.shape[1]:
                    raise DataError(f"the label is {label}", want=f"a class 0 to {logits.shape[1] - 1} of the model")
                loss = functional.cross_entropy(logits, y)
                # Only the generator's gradients: those of the shared model are not ours to fill.
                slopes = torch.autograd.grad(loss, list(maker.net.parameters()))
                for one, slope in zip(maker.net.parameters(), slopes, strict=True):
                    one.grad = slope
                learn.step()
        with torch.no_grad(), evaluating(module):
            x = maker(torch.randn(images, maker.width, generator=draw).to(place))
            last = x, -torch.expm1(-cross_entropy(class_logits(module(x)).double(), y))
        if send is not None:
            send(x.clone())
    if last is None:
        raise DataError("there is no round", want="at least one global model")
    return Reconstruction(last[0], y=wanted, loss=last[1])
