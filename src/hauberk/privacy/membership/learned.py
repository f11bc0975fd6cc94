"""Attacks learned from answers: a classifier tells those of members from those of others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.errors import DataError, UsageError, nearest
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.overlap import fingerprints
from hauberk.core.rng import derive_seed
from hauberk.core.stats import Floats
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import features, signals
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.references import References, own_references
from hauberk.privacy.membership.signals import Records

CLASSIFIERS = ("logistic", "neighbours", "perceptron", "forest")
Grid = Mapping[str, Sequence[Any]]
Known = tuple[Records, Records]


@inference(
    question="Can a classifier learn to tell the answers to training records from others?", access=Access.SCORE, tags=TAGS,
    paper="Salem et al. 2019, arXiv:1806.01246", references=True,
)
def learned_membership(
    target: Target | nn.Module, members: Records, non_members: Records, *, classifier: str = "logistic",
    references: References | None = None, known: Known | None = None, grid: Grid | None = None, seed: int = 0,
) -> MembershipScores:
    """Score each record by a classifier of answers, fitted where membership is known, and never on the records it scores here.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        classifier: `logistic`, `neighbours`, `perceptron` or `forest`, of scikit-learn.
        references: what it is fitted to: the answers of models whose training records are known. None trains four small
            perceptrons on all records.
        known: in place of references, records of the target itself whose membership the adversary knows: (members, others).
        grid: values to choose from by cross-validated area, by the names of scikit-learn, such as {"C": [0.01, 1]}.
        seed: of the classifier.

    Returns:
        The scores of both sides: the log-odds of membership.

    Raises:
        AccessDenied: below SCORE access.
        UsageError: for another classifier or an option it does not have, or both `references` and `known`.
        DataError: where a record to be scored is among those known.
    """
    if classifier not in CLASSIFIERS:
        raise UsageError(
            f"there is no classifier '{classifier}'", want=", ".join(CLASSIFIERS), fix=nearest(classifier, CLASSIFIERS)
        )
    view = as_target(target)
    view.need(Access.SCORE, "learned-membership")
    sides = (members, non_members)
    told = [signals.answers(view, side) for side in sides]
    asked = [features.features(*one) for one in told]
    if known is not None:
        rows, side = from_known(view, sides, known, references)
    else:
        rows, side = from_references(sides, references, seed)
    if not len(rows) or len(set(side.tolist())) < 2:
        return signals.both_sides(*(torch.zeros(len(one), dtype=torch.float64) for one in asked))
    model = fitted(classifier, *features.thinned(rows, side, seed), grid=grid, seed=seed)
    return signals.both_sides(*(
        signals.unless_nan(judged(model, rows), logits) for rows, (logits, _) in zip(asked, told, strict=True)
    ))


def from_known(view: Target, sides: Sequence[Records], known: Known, references: References | None) -> tuple[Floats, Floats]:
    """Return features and membership of records whose membership in the target is known."""
    if references is not None:
        raise UsageError("references and known are both given", want="one of them: what the classifier is fitted to")
    theirs = torch.cat([fingerprints(one[0]) for one in known])
    shared = sum(int(torch.isin(fingerprints(one[0]), theirs).sum()) for one in sides)
    if shared:
        raise DataError(
            f"{shared} records to be scored are among those whose membership is known", want="two sets apart",
            fix="Split members and non-members in halves: know one, score the other",
        )
    rows = [features.features(*signals.answers(view, one)) for one in known]
    return np.concatenate(rows), np.concatenate([np.ones(len(rows[0])), np.zeros(len(rows[1]))])


def from_references(sides: Sequence[Records], references: References | None, seed: int) -> tuple[Floats, Floats]:
    """Return features and membership of all records in the pool, by each reference."""
    if references is None:
        if sum(len(one[0]) for one in sides) < 4:
            return np.zeros((0, 8)), np.zeros(0)
        references = own_references(sides)
    return features.blocks(references.logits, references.inside, references.y, seed)


def fitted(classifier: str, rows: Floats, side: Floats, *, grid: Grid | None, seed: int) -> Any:
    """Return the classifier, fitted behind a scaling of the features."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    draw = derive_seed(seed, "classifier") % 2**32
    model = make_pipeline(StandardScaler(), _classifier(classifier, len(rows), draw))
    step = model.steps[-1][0]
    if grid:
        unknown = [key for key in grid if f"{step}__{key}" not in model.get_params()]
        if unknown:
            raise UsageError(
                f"{type(model.steps[-1][1]).__name__} has no option '{unknown[0]}'",
                fix=nearest(unknown[0], list(model.steps[-1][1].get_params())),
            )
        folds = StratifiedKFold(3, shuffle=True, random_state=draw)
        model = GridSearchCV(model, {f"{step}__{key}": list(values) for key, values in grid.items()}, scoring="roc_auc", cv=folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an attack that has not quite converged is still an attack
        try:
            return model.fit(rows, side)
        except ValueError as error:
            raise UsageError(f"the classifier cannot be fitted ({str(error).splitlines()[0]})", fix="Change its grid") from error


def _classifier(name: str, rows: int, seed: int) -> Any:
    if name == "logistic":
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=1000)
    if name == "neighbours":
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(max(1, min(100, rows // 10)))
    if name == "perceptron":
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier((32,), early_stopping=rows >= 200, max_iter=100, random_state=seed)
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(100, min_samples_leaf=max(1, min(20, rows // 50)), random_state=seed)


def judged(model: Any, rows: Floats) -> Tensor:
    """Return the log-odds that a fitted classifier gives, shape (n,)."""
    if not len(rows):
        return torch.zeros(0, dtype=torch.float64)
    if hasattr(model, "decision_function"):  # of a logistic regression the log-odds themselves: a probability ties them near 1
        return torch.from_numpy(np.asarray(model.decision_function(rows), dtype=np.float64))
    p = torch.from_numpy(np.asarray(model.predict_proba(rows)[:, 1], dtype=np.float64))
    small = 1e-12
    return p.clamp(small, 1 - small).logit()
