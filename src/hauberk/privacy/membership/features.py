"""What a learned attack looks at: the answer to a record, in a form that does not depend on the number of classes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hauberk.core.rng import numpy_generator
from hauberk.core.stats import Floats
from hauberk.privacy.membership import signals

MOST = 10_000  # rows that an attack model is fitted to: more add seconds, not accuracy
TOP = 3


def features(logits: Tensor, y: Tensor) -> Floats:
    """Return the features of answers, shape (n, 8), from logits (n, classes) and labels (n,)."""
    log_p, log_rest = signals.log_probabilities(logits.double())
    odds = (log_p - log_rest).clamp(-50, 50).sort(1, descending=True).values[:, :TOP]
    odds = torch.nn.functional.pad(odds, (0, TOP - odds.shape[1]), value=-50.0)
    small = torch.finfo(torch.float64).tiny
    columns = [
        signals.log_odds(logits.double(), y).clamp(-50, 50), signals.cross_entropy(logits.double(), y).clamp(min=small).log(),
        signals.entropy(logits.double()).clamp(min=small).log(), signals.label_entropy(logits.double(), y).clamp(min=small).log(),
        (logits.argmax(1) == y).double(),
    ]
    rows = torch.cat([torch.stack([one.clamp(-50, 50) for one in columns], 1), odds], 1)
    made: Floats = torch.nan_to_num(rows, nan=0.0).cpu().numpy()
    return made


def thinned(rows: Floats, side: Floats, seed: int, most: int = MOST) -> tuple[Floats, Floats]:
    """Return at most `most` of the rows, drawn by seed."""
    if len(rows) <= most:
        return rows, side
    chosen = numpy_generator(seed, "thinned").choice(len(rows), most, replace=False)
    return rows[chosen], side[chosen]


def drawn(k: int, n: int, seed: int, most: int = MOST) -> Tensor:
    """Return at most `most` of the positions of k x n answers, sorted."""
    chosen = numpy_generator(seed, "drawn").choice(k * n, min(most, k * n), replace=False)
    return torch.from_numpy(np.sort(chosen))


def blocks(logits: Tensor, inside: Tensor, y: Tensor, seed: int) -> tuple[Floats, Floats]:
    """Return features and membership of some of what k references answer, from (k, n, classes), (k, n) and (n,)."""
    k, n, width = logits.shape
    chosen = drawn(k, n, seed)
    rows = features(logits.reshape(k * n, width)[chosen], y.cpu().long()[chosen % n])
    return rows, inside.reshape(-1)[chosen].numpy().astype(np.float64)
