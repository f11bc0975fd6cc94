"""Transfer from a substitute: examples made on a model of the adversary's own, trained on the target's labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.card import registry
from hauberk.core.rng import derive_seed
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.core.train import Schedule
from hauberk.robustness.attack.substitute import taught


@attack(
    question="Do examples made on a stolen likeness of the model fool the model?",
    access=Access.LABEL,
    paper="Papernot et al. 2017, arXiv:1602.02697",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.025"),
    preset="quick",
    goals=LABEL_GOALS,
    undivided=True,
    classes_alone=True,
)
def transfer(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, data: Tensor | None = None, substitute: nn.Module | None = None,
    method: str = "pgd", rounds: int = 2, epochs: int = 15, steps: int = 20, seed: int = 0,
) -> Tensor:
    """Train a substitute on the labels that the target gives, attack it, and send the examples to the target.

    Arguments:
        target: with LABEL access: one query per input of the adversary, per augmented input, and per example.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm, untargeted or targeted.
        data: inputs the adversary owns, shape (m, ...); None: x itself.
        substitute: the model to train, copied first; None takes a small CNN for images and a small MLP for other inputs.
        method: the attack on the substitute, by name: any that runs under the threat, such as `pgd`, `mi-fgsm`, `sia`.
        rounds: rounds of Jacobian-based augmentation, each of which doubles the inputs, up to 10,000.
        epochs: passes over the inputs in each round; 0, with no rounds, takes the substitute given as it is.
        steps: steps of the attack on the substitute.
        seed: of weights, order and start.

    Returns:
        Points in the ball, shape (n, ...); samples that reach the goal undisturbed are returned as they are.
    """
    card = registry.get(method, "attack")
    clean = target.labels(x)
    pool = x if data is None else data.to(x)
    labels = clean if data is None else target.labels(pool)
    if not bool((labels >= 0).any()):
        return x.clone()  # nothing but NaN: there is nothing to learn, and nothing left to break
    model = taught(
        target.labels, pool, labels, model=substitute, classes=max(int(torch.cat([clean, labels, y]).max()) + 1, 2),
        bounds=threat.bounds or (0.0, 1.0), rounds=rounds,
        schedule=Schedule(epochs=epochs, batch_size=64, seed=derive_seed(seed, "substitute")),
    )
    twin = Target(model, outputs="logits", bounds=threat.bounds)
    # No early stop: an example deep behind the substitute's boundary is likelier to lie behind the target's.
    options = {"steps": steps, "early_stop": False, "seed": derive_seed(seed, method)}
    z = card.function(twin, x, y, threat, **{name: value for name, value in options.items() if name in card.options})
    done = threat.reached(clean, y).reshape((-1,) + (1,) * (x.ndim - 1))
    return torch.where(done, x, z)
