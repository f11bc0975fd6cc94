"""Transfer from a substitute: examples made on a model of the adversary's own, trained on the target's labels."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.data import Split, TensorRows
from hauberk.core.rng import derive_seed
from hauberk.core.target import Normalize, Target
from hauberk.core.threat import Threat
from hauberk.core.train import Schedule, fit
from hauberk.robustness.attack.pgd import pgd


@attack(
    question="Do examples made on a stolen likeness of the model fool the model?",
    access=Access.LABEL,
    paper="Papernot et al. 2017, arXiv:1602.02697",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.025"),
    preset="quick",
    goals=LABEL_GOALS,
    undivided=True,
)
def transfer(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, data: Tensor | None = None, substitute: nn.Module | None = None,
    rounds: int = 2, epochs: int = 15, steps: int = 20, seed: int = 0,
) -> Tensor:
    """Train a substitute on the labels that the target gives, attack it with PGD, and send the examples to the target.

    Arguments:
        target: with LABEL access: one query per input of the adversary, per augmented input, and per example.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm, untargeted or targeted.
        data: inputs the adversary owns, shape (m, ...); None: x itself.
        substitute: the model to train, copied first; None takes a small CNN for images and a small MLP for other inputs.
        rounds: rounds of Jacobian-based augmentation, each of which doubles the inputs, up to 10,000.
        epochs: passes over the inputs in each round.
        steps: steps of PGD on the substitute.
        seed: of weights, order and start.

    Returns:
        Points in the ball, shape (n, ...); samples that reach the goal undisturbed are returned as they are.
    """
    clean = target.labels(x)
    pool = x if data is None else data.to(x)
    labels = clean if data is None else target.labels(pool)
    if not bool((labels >= 0).any()):
        return x.clone()  # nothing but NaN: there is nothing to learn, and nothing left to break
    pool, labels = pool[labels >= 0], labels[labels >= 0]  # an answer of NaN teaches nothing
    classes = int(torch.cat([clean, labels, y]).max()) + 1
    # Half types are for answering, not for training.
    pool = pool if x.dtype in (torch.float32, torch.float64) else pool.float()
    low, high = (torch.as_tensor(end).to(pool) for end in threat.bounds or (0.0, 1.0))
    reach = 0.1 * (pool.amax(0) - pool.amin(0))  # per feature
    model = _substitute(pool, max(classes, 2), substitute, seed)
    schedule = Schedule(epochs=epochs, batch_size=64, seed=derive_seed(seed, "substitute"))
    for round_ in range(rounds + 1):
        fit(model, Split(TensorRows(pool), labels), schedule=schedule)
        if round_ < rounds and len(pool) < 10_000:
            slope = _slope(model, pool, labels)
            grown = (pool + reach * slope.sign() * (1 if round_ % 2 == 0 else -1)).clamp(low, high)
            answers = target.labels(grown.to(x.dtype))
            pool, labels = torch.cat([pool, grown[answers >= 0]]), torch.cat([labels, answers[answers >= 0]])
    twin = Target(model, outputs="logits", bounds=threat.bounds)
    # No early stop: an example deep behind the substitute's boundary is likelier to lie behind the target's.
    z = pgd(twin, x, y, threat, steps=steps, early_stop=False, seed=derive_seed(seed, "pgd"))
    done = threat.reached(clean, y).reshape((-1,) + (1,) * (x.ndim - 1))
    return torch.where(done, x, z)


def _slope(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the logit of each label, the row of the Jacobian that the paper follows."""
    parts = []
    for part, label in zip(x.split(256), labels.split(256), strict=True):
        start = part.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(start).gather(1, label[:, None]).sum(), start)
        parts.append(gradient)
    return torch.cat(parts)


def _substitute(pool: Tensor, classes: int, given: nn.Module | None, seed: int) -> nn.Module:
    """Return the model to train; the default one standardises its inputs by the adversary's own."""
    if given is not None:
        return copy.deepcopy(given).to(pool.device)
    others = [axis for axis in range(pool.ndim) if axis != 1]
    mean, std = pool.mean(others), pool.std(others, correction=0)
    width = pool.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "weights"))
        if pool.ndim == 4:
            layers: list[nn.Module] = [
                nn.Conv2d(width, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
                nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, classes),
            ]
        else:
            wide = math.prod(pool.shape[1:])
            layers = [nn.Flatten(), nn.Linear(wide, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)]
    scale = Normalize(mean.tolist(), torch.where(std > 0, std, torch.ones_like(std)).tolist())
    return nn.Sequential(scale, *layers).to(pool.device, pool.dtype)
