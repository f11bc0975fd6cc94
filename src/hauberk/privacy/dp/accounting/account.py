"""epsilon: the privacy loss of a list of releases, never under-reported."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Sequence

from hauberk.core.errors import UsageError, nearest
from hauberk.privacy.dp.accounting import pld, renyi
from hauberk.privacy.dp.accounting.gaussian import clt_mu, gaussian_delta, gaussian_epsilon, smallest
from hauberk.privacy.dp.accounting.losses import Unsound
from hauberk.privacy.dp.accounting.release import ACCOUNTANTS, Release, Spent, relation_for

LEAST_RATE = 1e-9  # smaller rates are rounded up to it: they cost next to nothing, and e^ε / rate stays a number
LARGE_DELTA = 1e-2  # said to be large whatever the number of records: few data sets worth protecting have under a hundred
MOST_NOISE = 1e15  # greater ones are rounded down to it
ROUNDING = 1 + 1e-6  # more than what transforms in double precision lose at any δ they are used for


def epsilon(
    releases: Iterable[Release], delta: float, *, accountant: str = "pld", relation: str | None = None
) -> Spent:
    """Return the ε at δ of releases made one after the other, each chosen in view of those before.

    Arguments:
        releases: of any kinds together.
        delta: from 0 up to 1; well below 1 / records.
        accountant: `pld` (the tightest), `rdp`, `zcdp` (no sampling), `analytic` (plain Gaussians, exact), or `gdp` (the
            central-limit estimate, which is no bound).
        relation: `add-remove` or `replace-one`; None takes the one that the releases have a meaning under.

    Returns:
        What was spent; infinite where a release has no noise.

    Raises:
        UsageError: for an unknown accountant or relation, a δ out of range, or releases that the accountant does not cover.
    """
    listed = [_sampled_enough(one) for one in releases if not one.empty]
    check_delta(delta)
    if accountant not in ACCOUNTANTS:
        raise UsageError(
            f"the accountant is '{accountant}'", want=" | ".join(ACCOUNTANTS), fix=nearest(str(accountant), ACCOUNTANTS)
        )
    relation = relation_for(listed, relation)
    notes = [*_notes(listed, accountant, relation), *large_delta(listed, delta)]
    if not all(one.private for one in listed):
        notes.append("a release without noise was made: nothing bounds the loss")
        return Spent(math.inf, delta, accountant, relation, accountant != "gdp", tuple(notes))
    found = _FOUND[accountant](listed, delta, relation, notes) if listed else 0.0
    return Spent(found, delta, accountant, relation, accountant != "gdp", tuple(notes))


def delta_for(
    releases: Iterable[Release], epsilon: float, *, accountant: str = "pld", relation: str | None = None
) -> float:
    """Return the δ at which the releases are (ε, δ)-private, rounded upward; 1 where nothing bounds the loss."""
    listed = [_sampled_enough(one) for one in releases if not one.empty]
    if not isinstance(epsilon, (int, float)) or not epsilon >= 0:
        raise UsageError(f"ε is {epsilon}", want="a number of 0 or more")
    under = relation_for(listed, relation)
    if not listed:
        return 0.0
    if not all(one.private for one in listed):
        return 1.0
    if accountant == "pld" and not any(one.mechanism == "discrete-gaussian" for one in listed):
        try:
            return pld.composed(listed, under).delta(float(epsilon))
        except Unsound:
            accountant = "rdp" if _covered(listed, under) else accountant
    spent = globals()["epsilon"]
    exponent = smallest(
        lambda power: spent(listed, math.exp(-1 / power), accountant=accountant, relation=under).epsilon <= epsilon,
        0.0, 1 / 700, 1e6, relative=1e-9,
    )
    return 1.0 if math.isinf(exponent) else math.exp(-1 / exponent)


def _covered(listed: Sequence[Release], relation: str) -> bool:
    """Whether the Rényi accountant covers the releases."""
    try:
        renyi.rdp_epsilon(listed, 0.1, relation, quick=True)
    except UsageError:
        return False
    return True


def group_epsilon(
    releases: Iterable[Release], delta: float, size: int, *, accountant: str = "pld", relation: str | None = None
) -> Spent:
    """Return the ε at δ for a group of `size` records that stand or fall together (the household, the patient).

    Arguments:
        releases, delta, accountant, relation: as for `epsilon`.
        size: records of the group.

    Raises:
        UsageError: as `epsilon`, and for a size below 1.
    """
    if not isinstance(size, int) or size < 1:
        raise UsageError(f"the group has {size} records", want="a whole number of 1 or more")
    listed = [one for one in releases if not one.empty]
    check_delta(delta)
    note = f"for groups of {size} records"
    if all(one.mechanism in ("gaussian", "tree") and (one.sampling == "full" or one.rate == 1) for one in listed):
        # A group moves plain Gaussian answers by so many times as much: exact, where the general rule is not.
        nearer = [Release(one.mechanism, one.noise / size, one.sampling, one.rate, one.count, one.population) for one in listed]
        found = epsilon(nearer, delta, accountant=accountant, relation=relation)
        return Spent(found.epsilon, delta, accountant, found.relation, found.bound, (*found.notes, note))
    # (ε, δ) for one record is (kε, δ (e^{kε} − 1)/(e^ε − 1)) for k: the δ of one is made as small as that needs.
    share = delta / size
    for _ in range(60):
        one = epsilon(listed, share, accountant=accountant, relation=relation)
        grown = share * _factor(one.epsilon, size)
        if grown <= delta or share == 0:
            break
        share = delta / _factor(one.epsilon, size) / 1.05
        share = share if share > 1e-280 else 0.0
    worst = one.epsilon * size if grown <= delta else math.inf
    return Spent(worst, delta, accountant, one.relation, one.bound, (*one.notes, note))


def check_delta(delta: float) -> None:
    """Raise UsageError for a δ that is no probability below 1."""
    if isinstance(delta, bool) or not isinstance(delta, (int, float)) or not 0 <= delta < 1:
        raise UsageError(f"δ is {delta}", want="a probability from 0 up to 1", fix="A usual one is 1e-5, well below 1 / records")


def large_delta(releases: Iterable[Release], delta: float) -> list[str]:
    """Return what to say of a δ that lets records be published outright, where it is one."""
    known = [one.population for one in releases if one.population is not None and one.mechanism != "tree"]
    if known and delta > 1 / min(known):
        return [f"δ = {delta:g} is above 1 / {min(known)} records: it allows that one is published outright"]
    return [f"δ = {delta:g} is large: with that probability nothing is promised"] if delta > LARGE_DELTA else []


def _sampled_enough(release: Release) -> Release:
    """Return a release that loses at least as much, of numbers that can be squared."""
    if release.rate < LEAST_RATE:
        release = dataclasses.replace(release, rate=LEAST_RATE)
    if release.is_pure and release.noise < 1 / MOST_NOISE:
        return dataclasses.replace(release, noise=1 / MOST_NOISE)
    return release if release.is_pure or release.noise <= MOST_NOISE else dataclasses.replace(release, noise=MOST_NOISE)


def _factor(epsilon: float, size: int) -> float:
    if size * epsilon > 600:
        return math.inf
    return size if epsilon == 0 else math.expm1(size * epsilon) / math.expm1(epsilon)


def _pld(listed: Sequence[Release], delta: float, relation: str, notes: list[str]) -> float:
    plain = sum(one.count * pld.pure_epsilon(one, relation) for one in listed)  # basic composition, which needs no δ
    if delta == 0 or plain == 0:
        return plain
    bound = plain
    with contextlib.suppress(UsageError):  # there are kinds that the Rényi accountant does not know
        bound = min(bound, renyi.rdp_epsilon(listed, delta, relation, quick=True))
    if any(one.mechanism == "discrete-gaussian" for one in listed):
        notes.append("discrete Gaussian noise on vectors has no exact distribution of losses: Rényi bound")
        return min(plain, renyi.rdp_epsilon(listed, delta, relation))
    if delta < pld.LEAST_DELTA:
        notes.append(f"δ is too small for privacy loss distributions in double precision ({pld.LEAST_DELTA:g}): Rényi bound")
        return _by_renyi(listed, delta, relation, plain)
    if all(pld.gathers(one) for one in listed):
        return gaussian_epsilon(delta, _mu(listed, relation)) * ROUNDING  # one Gaussian: exact
    gauge = min(bound, _gauge(listed, delta, relation))
    if gauge > pld.LARGEST:
        bound = _by_renyi(listed, delta, relation, plain)
        if all(one.mechanism in ("gaussian", "tree") for one in listed):
            bound = min(bound, gaussian_epsilon(delta, _mu(listed, relation)))  # sampling never adds to the loss
        gauge = min(gauge, bound)
        if math.isfinite(bound) and gauge > pld.LARGEST:
            notes.append("ε is so large that it was left at the Rényi bound")
            return bound
    found = math.inf
    with contextlib.suppress(Unsound):
        found = pld.composed(listed, relation, delta).epsilon(delta)
    if 0 <= found * ROUNDING <= bound:
        return found * ROUNDING
    # So many releases that each moves the loss by less than the grid: rounding outweighs it, and the Rényi bound is the tighter.
    found = min(bound, _by_renyi(listed, delta, relation, plain))
    if math.isinf(found):
        notes.append("so many releases that double precision does not hold their composition")
    return found


def _gauge(listed: Sequence[Release], delta: float, relation: str) -> float:
    """Return about how large ε is where no Rényi bound is known, to choose a grid by: replacing a record moves twice as far."""
    if relation != "replace-one":
        return math.inf
    near = [dataclasses.replace(one, noise=one.noise * 2 if one.is_pure else one.noise / 2) for one in listed]
    return renyi.rdp_epsilon(near, delta, "add-remove", quick=True)


def _by_renyi(listed: Sequence[Release], delta: float, relation: str, plain: float) -> float:
    with contextlib.suppress(UsageError):
        return min(plain, renyi.rdp_epsilon(listed, delta, relation))
    return plain


def _rdp(listed: Sequence[Release], delta: float, relation: str, _: list[str]) -> float:
    return renyi.rdp_epsilon(listed, delta, relation)


def _zcdp(listed: Sequence[Release], delta: float, relation: str, _: list[str]) -> float:
    return renyi.zcdp_epsilon(renyi.zcdp_rho(listed, relation), delta)


def _analytic(listed: Sequence[Release], delta: float, relation: str, _: list[str]) -> float:
    wrong = [one for one in listed if one.mechanism not in ("gaussian", "tree") or (
        one.sampling in ("poisson", "without-replacement") and one.rate < 1)]
    if wrong:
        raise UsageError(
            f"the analytic accountant was asked about {wrong[0].mechanism} noise with sampling '{wrong[0].sampling}'",
            want="Gaussian releases that use all records", fix="Use the accountant 'pld'",
        )
    return gaussian_epsilon(delta, _mu(listed, relation))


def _mu(listed: Sequence[Release], relation: str) -> float:
    """Return the μ of Gaussian releases together, were each to use all records."""
    return pld.distance(relation) * math.sqrt(sum(pld.spread(one) / one.noise**2 for one in listed))


def _gdp(listed: Sequence[Release], delta: float, relation: str, _: list[str]) -> float:
    wrong = [one for one in listed if one.mechanism not in ("gaussian", "tree")]
    if wrong:
        raise UsageError(f"the central-limit estimate was asked about {wrong[0].mechanism} noise", want="Gaussian releases")
    away, power = pld.distance(relation), 0.0
    for one in listed:
        count = one.count if one.sampling in ("poisson", "without-replacement") else pld.spread(one)
        rate = one.rate if one.sampling in ("poisson", "without-replacement") else 1.0
        power += clt_mu(rate, one.noise / away, int(count)) ** 2
    mu = math.sqrt(power)
    return math.inf if math.isinf(mu) or gaussian_delta(1e6, mu) > delta else gaussian_epsilon(delta, mu)


def _notes(listed: Sequence[Release], accountant: str, relation: str) -> list[str]:
    notes = []
    samplings = {one.sampling for one in listed if one.rate < 1}
    if "poisson" in samplings:
        notes.append("amplified by Poisson sampling: holds where every record is drawn on its own at every step, not for a "
                     "shuffled loader")
    if "without-replacement" in samplings:
        notes.append("amplified by sampling without replacement: holds where every batch is drawn afresh; for a loader that "
                     "deals all records out once per pass no amplification is proven (sampling 'shuffled')")
    if "shuffled" in samplings:
        notes.append("not amplified: one release per record and pass, whatever the order")
    if any(one.sampling == "any" for one in listed):
        notes.append("not amplified: how records came into batches is not known, and every release is counted for every record")
    if relation == "replace-one" and any(one.mechanism != "randomized-response" for one in listed):
        notes.append("a replaced record moves the answer by twice what one adds")
    if accountant == "gdp":
        notes.append("a central-limit estimate: the true loss may be several times as large")
    return notes


_FOUND = {"pld": _pld, "rdp": _rdp, "zcdp": _zcdp, "analytic": _analytic, "gdp": _gdp}
