"""The models of a study: ordinary and adversarial training, kept by epoch, taken up where they were broken off."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.core.data import Split
from hauberk.core.errors import DataError
from hauberk.core.rng import derive_seed
from hauberk.core.threat import Linf
from hauberk.core.train import Callback, Loss, Schedule, State, cross_entropy, fit
from hauberk.robustness.defend import adversarial
from hauberk.study.images import Images
from hauberk.study.settings import Settings
from hauberk.study.shelf import Shelf

LEVELS = 10


class Growing(Callback):
    """Adversarial training whose radius grows in ten steps over the first half: at once, large radii teach a constant answer.

    Arguments:
        eps: the last radius.
        steps: PGD steps.
        over: batches until it is reached.
        path: how far all steps together go, at most. From a radius of one half on every image can be turned into the same gray
            one, and an adversary who goes that far teaches nothing; the talk's went 40 steps of .01.
    """

    def __init__(self, eps: float, steps: int, over: int, path: float = 0.4) -> None:
        radii = [eps * (level + 1) / LEVELS for level in range(LEVELS)]
        self.losses = [
            adversarial(Linf(radius), steps=steps, step_size=min(2.5 * radius, path) / steps) for radius in radii
        ]
        self.over, self.done = max(1, over), 0

    def before_batch(self, state: State) -> None:
        """Take note of the step, which a resumed run knows too."""
        self.done = state.step

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch at the radius of the moment."""
        return self.losses[min(LEVELS - 1, LEVELS * self.done // self.over)](model, x, y)


class Keeping(Callback):
    """Keeps the weights of chosen epochs."""

    def __init__(self, shelf: Shelf, name: str, epochs: tuple[int, ...]) -> None:
        self.shelf, self.name, self.epochs = shelf, name, epochs

    def after_epoch(self, state: State) -> None:
        """Write the weights of an epoch that was chosen."""
        if state.epoch in self.epochs:
            held = {name: value.clone() for name, value in state.model.state_dict().items()}
            self.shelf.tensors(f"{self.name}-epoch-{state.epoch}", lambda: held)


def model_name(eps: float) -> str:
    """Return how the model of a radius is called in files."""
    return "standard" if eps == 0 else f"robust-{eps:.4f}"


def chosen_epochs(epochs: int, many: int) -> tuple[int, ...]:
    """Return which epochs are inverted: the first, the last, and some between."""
    if many < 2:
        return (epochs,)
    return tuple(sorted({1 + round(at * (epochs - 1) / (many - 1)) for at in range(many)}))


def model_of(settings: Settings, shelf: Shelf, images: Images, eps: float) -> nn.Module:
    """Return the model trained at a radius, 0 for ordinary training; a run that was broken off goes on where it was."""
    scale, name = settings.scale, model_name(eps)
    data = Split(*images.train)
    # One start for all radii: what differs between two models is how they were trained.
    model = images.network(settings.network, derive_seed(settings.seed, "weights"), scale.width).to(settings.device)
    epochs = scale.epochs if eps else scale.plain_epochs
    callbacks: list[Callback] = [Keeping(shelf, name, chosen_epochs(epochs, scale.over_epochs))]
    loss: Loss = cross_entropy
    if eps:
        growing = Growing(eps, scale.attack_steps, epochs * -(-len(data) // scale.batch) // 2, settings.path)
        callbacks.append(growing)
        loss = growing.loss
    checkpoint = shelf.path(f"{name}.checkpoint")

    def train() -> None:
        plan = Schedule(epochs=epochs, batch_size=scale.batch, seed=derive_seed(settings.seed, "order"), checkpoint=checkpoint)
        fit(model, data, loss=loss, schedule=plan, callbacks=callbacks)

    trained = shelf.weights(name, model, train)
    checkpoint.unlink(missing_ok=True)
    return trained


def at_epoch(settings: Settings, shelf: Shelf, images: Images, name: str, epoch: int) -> nn.Module:
    """Return the model of that name as it was after an epoch.

    Raises:
        DataError: where its weights are gone.
    """
    module = images.network(settings.network, 0, settings.scale.width).to(settings.device)
    held = shelf.tensors(f"{name}-epoch-{epoch}", _not_kept(name, epoch))
    module.load_state_dict(held)
    return module.eval()


def _not_kept(name: str, epoch: int) -> Callable[[], dict[str, Tensor]]:
    def refuse() -> dict[str, Tensor]:
        raise DataError(
            f"the weights of {name} after epoch {epoch} are gone", want="a folder as it was written",
            fix=f"Delete {name}.safetensors there, and it is trained again",
        )

    return refuse


@torch.no_grad()
def answers(module: nn.Module, x: Tensor) -> Tensor:
    """Return the class that a model gives each sample, shape (n,)."""
    return torch.cat([module(some).argmax(1) for some in x.split(500)])


def accuracy(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which samples a model gets right, shape (n,), bool."""
    return answers(module, x) == y
