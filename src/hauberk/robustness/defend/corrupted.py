"""Training on corrupted images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.card import registry
from hauberk.core.errors import UsageError
from hauberk.core.kinds import recipe
from hauberk.core.threat import Bounds
from hauberk.core.train import Loss, class_logits
from hauberk.robustness import natural


@recipe(
    question="How does a model learn to see through noise, blur, glare and compression?",
    paper="Rusak et al. 2020, arXiv:2001.06057 (training on noise)",
    tags=("aisec:model-misjudgment", "atlas:AML.M0003"),
)
def corrupted(names: Sequence[str] = (), *, severity: int = 5, clean: float = 0.5, bounds: Bounds = (0.0, 1.0)) -> Loss:
    """Return a loss on images of which a part is corrupted at random: `fit(model, data.train, loss=corrupted())`.

    Arguments:
        names: of corruptions, such as `gaussian-noise`; empty takes those of the quick preset. Robustness to corruptions left
            out of training is the honest measure.
        severity: the highest; each batch draws one corruption and one severity from 1 to it.
        clean: share of each batch left as it is.
        bounds: lowest and highest input.

    Returns:
        `(model, x, y) -> loss`: the mean cross-entropy. All draws come from the global stream, which `fit` seeds.

    Raises:
        UsageError: for an unknown name, a severity outside 1 to 5, or a share outside 0 to 1.
    """
    assert natural  # its import fills the registry
    if not 1 <= severity <= 5 or not 0 <= clean <= 1:
        raise UsageError(f"severity is {severity} and clean is {clean}", want="a severity of 1 to 5 and a share of 0 to 1")
    known = [card for card in registry.cards("corruption") if card.runs_at("quick")]
    cards = [registry.get(name, "corruption") for name in names] or known

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        seed = int(torch.randint(2**62, (), dtype=torch.int64))
        draws = rng.generator(seed, "corrupted")
        chosen = cards[int(torch.randint(len(cards), (), generator=draws))]
        level = int(torch.randint(1, severity + 1, (), generator=draws))
        first = round(clean * len(x))
        # Batches come in random order: their first part is as good as any.
        changed = chosen.function(x[first:], level, generator=draws, bounds=bounds)
        return functional.cross_entropy(class_logits(model(torch.cat([x[:first], changed]))), y)

    return loss
