"""Attribute inference: the one column of a record that the adversary does not know, read off the model's answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.errors import DataError
from hauberk.core.kinds import reconstruction
from hauberk.core.target import Target, as_target
from hauberk.privacy.inference.learners import Learner, fitted
from hauberk.privacy.inference.sensitive import Guesses, Sensitive
from hauberk.privacy.membership.signals import log_probabilities

TAGS = ("aisec:information-leakage", "atlas:AML.T0024.001", "owasp:ML03", "nist:NISTAML.032")


@reconstruction(
    question="Does the model's confidence give away an attribute of a record whose other columns and label are known?",
    paper="Mehnaz et al. 2022, USENIX Security (CSMIA)", tags=TAGS, preset="thorough", sees="records", access=Access.SCORE,
)
def csmia(target: Target | nn.Module, x: Tensor, y: Tensor, *, sensitive: Sensitive) -> Guesses:
    """Guess the value with which the model is right and surest; where it is never right, the one with which it is least sure.

    Arguments:
        target: with SCORE access; asked once per record and value.
        x: records, shape (n, features); what they hold in the sensitive columns is never looked at.
        y: their labels, shape (n,).
        sensitive: the columns and the values they may hold.

    Returns:
        Guesses; scores are -log(1 - confidence) where the model is right and log(1 - confidence) where it is not: on that scale
        values stay ordered where the confidence itself rounds to 1.

    Raises:
        AccessDenied: below SCORE access.
        DataError: for records that are no table.
    """
    log_p = candidates(as_target(target), x, y, sensitive, "csmia")  # (n, values, classes)
    top, said = log_p.max(2)
    doubt = (-torch.expm1(top)).log().clamp(min=-800)
    right = said == y[:, None].to(said.device)
    return Guesses.made(x, y, sensitive, torch.where(right, -doubt, doubt))


@reconstruction(
    question="Does the likelihood of a record's label give away one of its attributes?",
    paper="Fredrikson et al. 2015, CCS; Yeom et al. 2018, arXiv:1709.01604", tags=TAGS, preset="thorough", sees="records",
    access=Access.SCORE,
)
def likelihood_attribute(
    target: Target | nn.Module, x: Tensor, y: Tensor, *, sensitive: Sensitive, prior: Tensor | None = None
) -> Guesses:
    """Guess the value with the highest prior times the model's probability of the record's label.

    Arguments:
        target: with SCORE access; asked once per record and value.
        x: records, shape (n, features); what they hold in the sensitive columns is never looked at.
        y: their labels, shape (n,).
        sensitive: the columns and the values they may hold.
        prior: probability of each value, shape (values,), or of each value for each record, (n, values), such as an imputation's;
            None holds all alike.

    Returns:
        Guesses; scores are log-posteriors up to a constant.

    Raises:
        AccessDenied: below SCORE access.
        DataError: for records that are no table, or a prior of another shape.
    """
    log_p = candidates(as_target(target), x, y, sensitive, "likelihood-attribute")
    own = log_p.gather(2, y.to(log_p.device)[:, None, None].expand(-1, len(sensitive), 1))[..., 0]  # (n, values)
    before = torch.ones(len(sensitive)) if prior is None else prior
    if before.shape not in ((len(sensitive),), tuple(own.shape)):
        raise DataError(f"the prior has shape {tuple(before.shape)}", want=f"({len(sensitive)},) or {tuple(own.shape)}")
    return Guesses.made(x, y, sensitive, own + before.to(own).clamp_min(1e-12).log())


@reconstruction(
    question="What does one learn of an attribute from the model's answers, who knows it of some other records?",
    paper="Jayaraman and Evans 2022, arXiv:2209.01292", tags=TAGS, preset="thorough", sees="records", access=Access.SCORE,
)
def learned_attribute(
    target: Target | nn.Module, x: Tensor, y: Tensor, *, sensitive: Sensitive, known: tuple[Tensor, Tensor],
    learner: Learner = "forest", seed: int = 0,
) -> Guesses:
    """Train a classifier of the attribute on the other columns, the label, and the model's answer to every value of it.

    Arguments:
        target: with SCORE access; asked once per record and value, of the known ones as well.
        x: records, shape (n, features); what they hold in the sensitive columns is never looked at.
        y: their labels, shape (n,).
        sensitive: the columns and the values they may hold.
        known: other records of which the adversary knows everything, shapes (m, features) and (m,).
        learner: `forest`, `boosting` or `logistic`.
        seed: of the learner.

    Returns:
        Guesses; scores are log-probabilities.

    Raises:
        AccessDenied: below SCORE access.
        DataError: for records that are no table, or known ones that are of one value alone.
    """
    view = as_target(target)
    sides = []
    for records, labels in (known, (x, y)):
        answers = candidates(view, records, labels, sensitive, "learned-attribute").clamp_min(-30).flatten(1)
        sides.append(torch.cat([_blind(records, labels, sensitive), answers.cpu()], 1))
    return Guesses.made(x, y, sensitive, fitted(learner, sides[0], sensitive.codes(known[0]), sides[1], len(sensitive), seed))


def imputation(
    x: Tensor, y: Tensor, *, sensitive: Sensitive, known: tuple[Tensor, Tensor], learner: Learner = "forest", seed: int = 0
) -> Guesses:
    """Guess the attribute from the other columns and the label alone: what anybody can tell who never saw the model.

    The baseline of every attribute inference. Arguments as of `learned_attribute`.
    """
    _table(x, y, sensitive)
    rows, asked = _blind(*known, sensitive), _blind(x, y, sensitive)
    return Guesses.made(x, y, sensitive, fitted(learner, rows, sensitive.codes(known[0]), asked, len(sensitive), seed))


def candidates(target: Target, x: Tensor, y: Tensor, sensitive: Sensitive, who: str) -> Tensor:
    """Return the model's log-probabilities with each value in place, shape (n, values, classes), float64."""
    target.need(Access.SCORE, who)
    _table(x, y, sensitive)
    answers = [log_probabilities(target.logits(sensitive.put(x, code)).double())[0] for code in range(len(sensitive))]
    return torch.stack(answers, 1)


def _blind(x: Tensor, y: Tensor, sensitive: Sensitive) -> Tensor:
    return torch.cat([sensitive.without(x).double().cpu(), y[:, None].double().cpu()], 1)


def _table(x: Tensor, y: Tensor, sensitive: Sensitive) -> None:
    if x.ndim != 2 or x.shape[1] <= max(sensitive.columns) or y.shape != x.shape[:1]:
        raise DataError(
            f"records of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}",
            want=f"a table (n, features) with the columns {sensitive.columns}, and a label per record",
        )
