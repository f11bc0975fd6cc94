"""Coverage of neurons and features. A new criterion is one file and one line in `CRITERIA`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from hauberk.core.errors import UsageError, nearest
from hauberk.robustness.fuzz.coverage.criterion import Cells as Cells
from hauberk.robustness.fuzz.coverage.criterion import Criterion as Criterion
from hauberk.robustness.fuzz.coverage.neurons import neuron_coverage as neuron_coverage
from hauberk.robustness.fuzz.coverage.nlc import LayerCovariance as LayerCovariance
from hauberk.robustness.fuzz.coverage.novelty import Novelty as Novelty
from hauberk.robustness.fuzz.coverage.reading import Profile as Profile
from hauberk.robustness.fuzz.coverage.reading import Reader as Reader
from hauberk.robustness.fuzz.coverage.reading import Reading as Reading
from hauberk.robustness.fuzz.coverage.reading import profile as profile
from hauberk.robustness.fuzz.coverage.sections import boundary_coverage as boundary_coverage
from hauberk.robustness.fuzz.coverage.sections import multisection_coverage as multisection_coverage
from hauberk.robustness.fuzz.coverage.sections import strong_activation_coverage as strong_activation_coverage
from hauberk.robustness.fuzz.coverage.sensitivity import SensitivityConvergence as SensitivityConvergence
from hauberk.robustness.fuzz.coverage.surprise import distance_surprise as distance_surprise
from hauberk.robustness.fuzz.coverage.surprise import left_out_likelihood as left_out_likelihood
from hauberk.robustness.fuzz.coverage.surprise import likelihood_surprise as likelihood_surprise
from hauberk.robustness.fuzz.coverage.surprise import likelihood_surprise_coverage as likelihood_surprise_coverage
from hauberk.robustness.fuzz.coverage.surprise import mahalanobis_surprise as mahalanobis_surprise
from hauberk.robustness.fuzz.coverage.surprise import surprise_coverage as surprise_coverage
from hauberk.robustness.fuzz.coverage.top_k import TopKPatterns as TopKPatterns
from hauberk.robustness.fuzz.coverage.top_k import top_k_coverage as top_k_coverage

CRITERIA: Mapping[str, Callable[[Profile], Criterion]] = {
    "nc": neuron_coverage, "tknc": top_k_coverage, "tknp": TopKPatterns, "kmnc": multisection_coverage, "nbc": boundary_coverage,
    "snac": strong_activation_coverage, "scc": SensitivityConvergence,
    "lsc": likelihood_surprise_coverage,
    "dsc": lambda known: surprise_coverage("dsc", known, distance_surprise(known), upper=2.0),
    "mdsc": lambda known: surprise_coverage("mdsc", known, mahalanobis_surprise(known)),
    "nlc": LayerCovariance, "novelty": Novelty,
}
COUNTS = ("tknp", "nlc", "novelty")  # figures without an upper end; the others are shares


def criterion(name: str, known: Profile) -> Criterion:
    """Return a criterion that has seen nothing yet. Raises UsageError for an unknown name.

    Arguments:
        name: one of `CRITERIA`: nc, tknc, tknp, kmnc, nbc, snac, scc, lsc, dsc, mdsc, nlc, novelty.
        known: the profile of the model on training data.
    """
    if name not in CRITERIA:
        raise UsageError(f"there is no criterion '{name}'", want=" | ".join(CRITERIA), fix=nearest(name, list(CRITERIA)))
    return CRITERIA[name](known)


def coverage(reader: Reader, known: Profile, batches: Iterable[Tensor], *, base: Tensor | None = None) -> dict[str, float]:
    """Return the coverage of test inputs by every criterion, from one forward pass.

    Coverage tells how varied tests are. It is no measure of security, nor of how many faults are left.

    Arguments:
        reader: of the model.
        known: the profile of the model on training data.
        batches: test inputs, each (n, ...).
        base: the clean input behind each test input, in the same order; without it SCC is left out.

    Returns:
        By criterion, its figure: shares but for `tknp`, `nlc` and `novelty`.
    """
    found = {name: criterion(name, known) for name in CRITERIA if name != "scc" or base is not None}
    done = 0
    for x in batches:
        seen = reader(x)
        if base is not None:
            seen.base = reader(base[done : done + len(x)]).units
        done += len(x)
        for one in found.values():
            with torch.no_grad():
                one.update(seen)
    return {name: one.value for name, one in found.items()}
