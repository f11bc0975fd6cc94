"""Negative controls: models whose robustness is an illusion, each with one known flaw, to try an evaluation on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.data import Split
from hauberk.core.train import Schedule, fit


class Around(nn.Module):
    """A net with one part before it and one after it.

    Arguments:
        net: the net, (n, ...) -> (n, classes).
        before, after: None leaves the part out.
    """

    def __init__(self, net: nn.Module, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.before = before if before is not None else nn.Identity()
        self.net = net
        self.after = after if after is not None else nn.Identity()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the parts make of x, shape (n, classes)."""
        return self.after(self.net(self.before(x)))


class Times(nn.Module):
    """Multiplies by a number: logits grow, labels stay, and the softmax of the loss saturates."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the factor."""
        return x * self.factor


class Steps(nn.Module):
    """Rounds to evenly spaced levels in [0, 1]: the derivative is zero."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Return x rounded."""
        return (x * (self.levels - 1)).round() / (self.levels - 1)


class Noise(nn.Module):
    """Adds Gaussian noise, anew at every question."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """Return x with noise."""
        return x + self.sigma * torch.randn_like(x)


class Ripple(nn.Module):
    """Adds a fine, small sine: values hardly change, the derivative does in size and sign."""

    def __init__(self, height: float, pitch: float) -> None:
        super().__init__()
        self.height, self.pitch = height, pitch

    def forward(self, x: Tensor) -> Tensor:
        """Return x with the ripple."""
        return x + self.height * torch.sin(self.pitch * x)


class Thermometer(nn.Module):
    """Codes every feature as the row of the levels it exceeds (Buckman et al. 2018): a row of steps, one axis more."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        """Return the code of x, shape (n, ..., levels)."""
        cuts = (torch.arange(self.levels, device=x.device, dtype=x.dtype) + 0.5) / self.levels
        return (x[..., None] > cuts).to(x.dtype)


class Level(nn.Module):
    """Reads a thermometer code: the share of levels exceeded."""

    def forward(self, code: Tensor) -> Tensor:
        """Return (n, ...) of a code (n, ..., levels)."""
        return code.mean(-1)


class Cut(nn.Module):
    """A net whose input is detached in plain code, so that no module shows the cut."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the net's answer without a graph to x."""
        return self.net(x.detach())


def left_in_training(net: nn.Module) -> nn.Module:
    """Return a copy of the net in evaluation mode whose dropout and batch normalisation were left in training mode.

    Arguments:
        net: where it has neither, a dropout of 30 % of the features is put before it.
    """
    made = copy.deepcopy(net).eval()
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    parts: list[nn.Module] = [part for part in made.modules() if isinstance(part, kinds)]
    if not parts:
        made = Around(made, before=nn.Dropout(0.3))
        parts = [made.before]
    for part in parts:
        part.train()
    return made


def distilled(
    net: nn.Module, teacher: nn.Module, data: Split, *, temperature: float = 50.0, epochs: int = 12, seed: int = 0
) -> nn.Module:
    """Train `net` by defensive distillation (Papernot et al. 2016, arXiv:1511.04508) and return it as it is deployed.

    Arguments:
        net: untrained; trained in place on the teacher's softened answers.
        teacher: gives the softened answers: what it returns is its logits over the temperature.
        data: inputs; the labels are not used.
        temperature: of both softmaxes while training. In use it is 1, so that the logits are that many times larger.
        epochs, seed: of the training.
    """

    def imitate(student: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            soft = teacher(x).softmax(1)
        return functional.cross_entropy(student(x), soft)

    fit(net, data, loss=imitate, schedule=Schedule(epochs=epochs, batch_size=64, seed=seed))
    return Around(net, after=Times(temperature))


def flawed(net: nn.Module) -> dict[str, nn.Module]:
    """Return the flawed twins of a sound net by name; all share the net, and none is better defended than it.

    Arguments:
        net: of inputs in [0, 1].
    """
    return {
        "logits x 10": Around(net, after=Times(10)),
        "logits x 100": Around(net, after=Times(100)),
        "input in 17 steps": Around(net, before=Steps(17)),
        "input noise": Around(net, before=Noise(0.2)),
        "softmax, saturated": Around(net, after=nn.Sequential(Times(100), nn.Softmax(1))),
        "graph cut": Cut(net),
        "shattered by a sine": Around(net, before=Ripple(0.03, 400)),
        "thermometer": Around(net, before=nn.Sequential(Thermometer(16), Level())),
        "dropout in training mode": left_in_training(net),
    }
