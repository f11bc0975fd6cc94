"""Shadow models: for each class, a classifier of the scores that models give to their own training records and to others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.stats import Floats
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import features, signals
from hauberk.privacy.membership.learned import CLASSIFIERS, fitted, judged
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.references import References, own_references
from hauberk.privacy.membership.signals import Records

MOST = 10  # log-odds of an answer that are looked at
FEW = 40  # answers of a class and side below which the class is judged by the classifier of all classes


@inference(
    question="What do shadow models, each class by itself, teach about the answers to training records?", access=Access.SCORE,
    paper="Shokri et al. 2017, arXiv:1610.05820", tags=TAGS, references=True,
)
def shadow_membership(
    target: Target | nn.Module, members: Records, non_members: Records, *, references: References | None = None,
    classifier: str = "logistic", seed: int = 0,
) -> MembershipScores:
    """Score each record by the classifier of its class, fitted to the scores of shadow models.

    As in the paper, an attack model sees the vector of scores, and the label chooses the attack model. The scores are log-odds:
    that of the label, then those of all classes from the likeliest down, so that shadows may have other classes than the target.
    A class with few answers is judged by one attack model of all classes.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        references: the shadow models, from `train_references`; None trains four small perceptrons on all records.
        classifier: `logistic`, `neighbours`, `perceptron` or `forest`, of scikit-learn.
        seed: of the classifiers.

    Returns:
        The scores of both sides.

    Raises:
        AccessDenied: below SCORE access.
        UsageError: for another classifier.
    """
    if classifier not in CLASSIFIERS:
        raise UsageError(f"there is no classifier '{classifier}'", want=", ".join(CLASSIFIERS))
    view = as_target(target)
    view.need(Access.SCORE, "shadow-membership")
    sides = (members, non_members)
    asked = [signals.answers(view, side) for side in sides]
    if references is None:
        if sum(len(one[1]) for one in asked) < 4:
            return signals.both_sides(*(torch.zeros(len(one[1]), dtype=torch.float64) for one in asked))
        references = own_references(sides)
    k, n, width = references.logits.shape
    chosen = features.drawn(k, n, seed, 4 * features.MOST)
    wide = min(width, MOST)
    own_y = references.y.cpu().long()[chosen % n]
    rows = vectors(references.logits.reshape(k * n, width)[chosen], own_y, wide)
    side = references.inside.reshape(-1)[chosen].numpy().astype(float)
    label = own_y.numpy()
    general = fitted(classifier, *features.thinned(rows, side, seed), grid=None, seed=seed)
    seen = [vectors(*one, wide) for one in asked]
    scores = [judged(general, one) for one in seen]
    for one in np.unique(label):
        own = label == one
        if min(side[own].sum(), (1 - side[own]).sum()) < FEW:
            continue
        model = None
        for (_, y), vector, score in zip(asked, seen, scores, strict=True):
            mine = (y == int(one)).cpu().numpy()
            if mine.any():
                model = model or fitted(classifier, *features.thinned(rows[own], side[own], seed), grid=None, seed=seed)
                score[torch.from_numpy(mine)] = judged(model, vector[mine])
    return signals.both_sides(*(
        signals.unless_nan(score, logits) for score, (logits, _) in zip(scores, asked, strict=True)
    ))


def vectors(logits: Tensor, y: Tensor, width: int) -> Floats:
    """Return the log-odds of the label, and of the classes from the likeliest down, the first `width`: shape (n, 1 + width).

    What is missing of fewer classes is filled up with the lowest: shadows need not have as many as the target.
    """
    log_p, log_rest = signals.log_probabilities(logits.double())
    odds = torch.nan_to_num(log_p - log_rest, nan=-50.0).clamp(-50, 50)
    own = odds.gather(1, y[:, None])
    odds = odds.sort(1, descending=True).values[:, :width]
    padded = torch.nn.functional.pad(odds, (0, width - odds.shape[1]), value=-50.0)
    made: Floats = torch.cat([own, padded], 1).cpu().numpy()
    return made
