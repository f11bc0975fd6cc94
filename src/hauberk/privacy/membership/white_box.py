"""Membership seen from inside: the gradients that a record would still cause."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.predictors import evaluating
from hauberk.core.stats import Floats
from hauberk.core.target import Target, as_target
from hauberk.core.train import class_logits
from hauberk.privacy.dp.engine import record
from hauberk.privacy.membership import features, signals
from hauberk.privacy.membership.learned import fitted, judged
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.references import References, own_references
from hauberk.privacy.membership.signals import Records

PAPER = "Nasr et al. 2019, arXiv:1812.00910"
PART = 64
SMALL = 1e-300


@inference(
    question="Does a small gradient give away that a record was trained on?", access=Access.GRADIENT, paper=PAPER, tags=TAGS,
)
def gradient_norm_membership(target: Target | nn.Module, members: Records, non_members: Records) -> MembershipScores:
    """Score each record by minus the log of the L2 norm of its loss's gradient towards all weights.

    Arguments:
        target: with GRADIENT access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.

    Returns:
        The scores of both sides.

    Raises:
        AccessDenied: below GRADIENT access.
        ModelError: for a model whose examples cannot be told apart, such as one that normalises over its batch.
    """
    view = as_target(target)
    view.need(Access.GRADIENT, "gradient-norm-membership")
    sides = []
    for side in (members, non_members):
        norms, logits = gradient_norms(view, side)
        sides.append(signals.unless_nan(-_log(norms.square().sum(1).sqrt()), logits))
    return signals.both_sides(*sides)


@inference(
    question="What does an adversary with the weights learn from gradients and answers together?", access=Access.GRADIENT,
    paper=PAPER, tags=TAGS, preset="thorough", references=True,
)
def white_box_membership(
    target: Target | nn.Module, members: Records, non_members: Records, *, references: References | None = None,
    classifier: str = "logistic", seed: int = 0,
) -> MembershipScores:
    """Score each record by a classifier of gradient norms and answers, fitted to references whose records are known.

    The features are the log-norms of the gradient over all weights, over those of the first and over those of the last layer,
    and what learned attacks see of the answer; none depends on the architecture, so that references may have another.

    Arguments:
        target: with GRADIENT access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        references: torch modules from `train_references`; None trains four small perceptrons on all records.
        classifier: `logistic`, `neighbours`, `perceptron` or `forest`, of scikit-learn.
        seed: of the classifier.

    Returns:
        The scores of both sides.

    Raises:
        AccessDenied: below GRADIENT access, of the target or of a reference.
        ModelError: for a model whose examples cannot be told apart.
    """
    view = as_target(target)
    view.need(Access.GRADIENT, "white-box-membership")
    sides = (members, non_members)
    told = [gradient_norms(view, side) for side in sides]
    asked = [inside_features(view.module, *one, side[1]) for one, side in zip(told, sides, strict=True)]
    if references is None:
        if sum(map(len, asked)) < 4:
            return signals.both_sides(*(torch.zeros(len(one), dtype=torch.float64) for one in asked))
        references = own_references(sides)
    pool, side = (references.x, references.y), references.inside.numpy().astype(float)
    rows = np.concatenate([inside_features(one.module, *gradient_norms(one, pool), pool[1]) for one in references.models])
    model = fitted(classifier, *features.thinned(rows, side.reshape(-1), seed), grid=None, seed=seed)
    return signals.both_sides(*(
        signals.unless_nan(judged(model, one), logits) for one, (_, logits) in zip(asked, told, strict=True)
    ))


def inside_features(module: nn.Module, norms: Tensor, logits: Tensor, y: Tensor) -> Floats:
    """Return log-norms of the gradient (all, first, last layer) beside the features of the answer, shape (n, 11)."""
    owners = [name.rpartition(".")[0] for name, _ in module.named_parameters()]
    layers = [torch.tensor([one == end for one in owners]) for end in (owners[0], owners[-1])]
    told = torch.stack([norms.square()[:, part].sum(1).sqrt() for part in (torch.ones(len(owners)).bool(), *layers)], 1)
    rows = features.features(logits, y.cpu().long())
    made: Floats = np.concatenate([torch.nan_to_num(_log(told), nan=0.0).clamp(-700, 700).numpy(), rows], 1)
    return made


def gradient_norms(view: Target, side: Records) -> tuple[Tensor, Tensor]:
    """Return the norm of each record's gradient by parameter, (n, parameters), float64, and the logits, (n, classes).

    The adversary works on a copy of the weights. Each record is charged as one query and one gradient of the target.
    """
    x, y = signals.paired(side)
    if len(y) and int(y.min()) < 0:
        raise signals.foreign(y)
    own = copy.deepcopy(view.module).requires_grad_(True)  # weights that are frozen take part as well
    # As the model is asked in any case: whole numbers have no gradient.
    x = x if x.is_floating_point() else x.to(next(own.parameters()).dtype)
    norms, answers = [], []
    for part, labels in zip(x.detach().split(PART), y.split(PART), strict=True):
        if not len(part):
            continue
        leaf = part.clone().requires_grad_()
        told = view.logits(leaf)
        if told.requires_grad:
            held_back = [one for one in view.module.parameters() if one.requires_grad] or [leaf]  # none, of a model only served
            torch.autograd.grad(told.sum(), held_back, allow_unused=True)
        answers.append(told.detach().double().cpu())
        with evaluating(own), record(own) as tape:
            held = next(own.parameters())
            logits = class_logits(own(part.to(held.device, held.dtype)))
            if int(labels.max()) >= logits.shape[1]:
                raise signals.foreign(y, logits.shape[1])
            # In float64 from the logits on: a float32 softmax of a sure model has no gradient left.
            loss = signals.cross_entropy(logits.double(), labels.to(logits.device).long()).sum()
        tape.backward(loss, reduction="sum")
        found = tape.norms()
        tape.release()
        norms.append(torch.stack([found[one].detach().double().cpu() for one in own.parameters()], 1))
    if not norms:
        return torch.zeros(0, len(list(own.parameters())), dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64)
    return torch.cat(norms), torch.cat(answers)


def _log(value: Tensor) -> Tensor:
    return value.clamp(min=SMALL).log()
