"""Spectral signatures: poisoned samples of a class lie far out along one direction of the features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.core.data import Split
from hauberk.core.errors import DataError
from hauberk.core.kinds import audit
from hauberk.integrity.poison.neighbours import embedded


@audit(
    question="Which samples of a class are unlike the rest of it along one direction of the features?",
    paper="Tran et al. 2018, arXiv:1811.00636",
    tags=("aisec:data-backdoor-attack", "atlas:AML.M0007", "owasp:ML02", "nist:NISTAML.023"),
)
def spectral_signatures(data: Split, model: nn.Module | None = None) -> Tensor:
    """Return how far each sample lies out along the main direction of its class, squared, over the mean of its class.

    Arguments:
        data: the labelled samples to audit.
        model: trained on them, for its features, the input of its last linear layer; None takes the samples as they are.

    Returns:
        Suspicion, shape (n,), float64; the mean of each class is 1. The signature needs poison that makes up a fair part of its
        class: with little of it the main direction is an honest one.

    Raises:
        DataError: for labels that are not classes.
    """
    if data.y.is_floating_point():
        raise DataError("the labels are not classes", want="integer labels")
    points = embedded(data, model).double()
    scores = torch.zeros(len(points), dtype=torch.float64)
    for label in data.y.unique():
        members = (data.y == label).nonzero()[:, 0]
        centred = points[members] - points[members].mean(0)  # (m, width)
        # The main direction of the class: the eigenvector of its scatter with the largest eigenvalue.
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        squares = (centred @ vectors[:, -1]).square()
        scores[members] = squares / squares.mean().clamp(min=torch.finfo(torch.float64).tiny)
    return scores
