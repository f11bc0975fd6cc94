"""Calibration: the noise, steps or epochs with which a budget is kept. What is returned is always inside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting.account import check_delta, epsilon
from hauberk.privacy.dp.accounting.gaussian import smallest
from hauberk.privacy.dp.accounting.release import MOST, Release

LARGEST_NOISE = 1e6
PRECISION = 1e-4  # of a noise, relative
AHEAD = 4096  # differing steps that are looked at ahead
LOOK = 8


class Endless(UsageError):
    """A release may be made without end: no number of steps is the last one inside the budget."""


def noise_for(
    budget: float, delta: float, *, rate: float = 1.0, count: int = 1, sampling: str | None = None,
    mechanism: str = "gaussian", accountant: str = "pld", relation: str | None = None,
) -> float:
    """Return the least noise with which `count` releases stay within an ε, to a ten-thousandth and rounded upward.

    Arguments:
        budget: the ε that must not be passed.
        delta: the δ it is meant at.
        rate: sampling probability, or batch / population.
        count: releases (training steps).
        sampling: `poisson`, `without-replacement`, `shuffled` or `full`; None takes `poisson` for a rate below 1.
        mechanism: `gaussian`, `laplace` or another with noise.
        accountant, relation: as for `epsilon`.

    Raises:
        UsageError: for a budget that no noise keeps, or arguments that `epsilon` refuses.
    """
    check_budget(budget, delta)
    sampling = sampling or ("full" if rate == 1 else "poisson")
    if mechanism in ("pure", "randomized-response"):
        raise UsageError(f"the mechanism is '{mechanism}', whose noise is its ε", want="a mechanism with noise of its own")

    def lost(noise: float, by: str) -> float:
        release = Release(mechanism, noise, sampling, rate, count, count if mechanism == "tree" else None)
        return epsilon([release], delta, accountant=by, relation=relation).epsilon

    guess = 1.0
    if accountant == "pld" and lost(guess, "pld") < math.inf:
        guess = _rough(lost, budget)
    found = _least(lambda noise: lost(noise, accountant), budget, guess)
    if math.isinf(found):
        raise UsageError(f"no noise up to {LARGEST_NOISE:g} keeps ε at {budget:g} at δ = {delta:g}", want="a larger ε or δ")
    return found


def steps_for(
    budget: float, delta: float, release: Release, *, before: Iterable[Release] = (), accountant: str = "pld",
    relation: str | None = None,
) -> int:
    """Return how many times a release may be made within an ε: the last one that is still inside.

    Arguments:
        budget: the ε that must not be passed.
        delta: the δ it is meant at.
        release: of one step; its count is not looked at.
        before: what was released already.
        accountant, relation: as for `epsilon`.

    Raises:
        UsageError: for a release that may be made without end, or arguments that `epsilon` refuses.
    """
    check_budget(budget, delta)
    earlier = list(before)

    def spent(count: int, by: str = accountant) -> float:
        made = _in_rows([*earlier, dataclasses.replace(release, count=count)])
        return epsilon(made, delta, accountant=by, relation=relation).epsilon

    start = 1
    if accountant == "pld" and release.mechanism == "gaussian" and relation != "replace-one":
        start = max(1, _most(lambda count: spent(count, "rdp"), budget, 1))  # cheap, and inside what the tighter one allows
    return _most(spent, budget, start)


def most_steps(
    budget: float, delta: float, following: Release | Callable[[int], Release], *, before: Iterable[Release] = (),
    begin: int = 0, accountant: str = "pld", relation: str | None = None,
) -> float:
    """Return how many steps may follow within an ε, at most `AHEAD` at once where they differ; infinite where none passes it.

    Arguments:
        budget, delta, before, accountant, relation: as for `steps_for`.
        following: what a step releases, or `(step) -> Release`.
        begin: the number of the first of these steps.
    """
    if not callable(following):
        try:
            return steps_for(budget, delta, following, before=before, accountant=accountant, relation=relation)
        except Endless:
            return math.inf
    earlier = list(before)

    def fits(count: int, by: str) -> bool:
        made = _in_rows([*earlier, *(dataclasses.replace(following(begin + k), count=1) for k in range(count))])
        return epsilon(made, delta, accountant=by, relation=relation).epsilon <= budget

    # The cheap bound first: while it holds, the tight one need not be asked.
    quick = next((by for by in ("rdp", accountant) if _answers(fits, by)), accountant)
    reached = 0
    for by in dict.fromkeys((quick, accountant)):
        count = max(1, reached)
        while count <= AHEAD and fits(count, by):
            reached, count = count, 2 * count
        if by == quick and reached >= LOOK:
            break
    return reached


def epochs_for(
    budget: float, delta: float, release: Release, *, before: Iterable[Release] = (), accountant: str = "pld",
    relation: str | None = None,
) -> int:
    """Return how many whole passes over the data stay within an ε; see `steps_for`. A pass has 1 / rate steps, rounded up."""
    if release.rate == 0:
        raise UsageError("the sampling rate is 0, and a pass has no end", want="a rate above 0")
    steps = steps_for(budget, delta, release, before=before, accountant=accountant, relation=relation)
    return steps // steps_per_epoch(release.rate)


def steps_per_epoch(rate: float) -> int:
    """Return the steps that pass over all records once, in expectation."""
    return max(1, math.ceil(1 / rate - 1e-9))


def check_budget(budget: float, delta: float) -> None:
    """Raise UsageError for an ε that is no budget."""
    check_delta(delta)
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < math.inf:
        raise UsageError(f"the budget is ε = {budget}", want="a number above 0")


def _in_rows(releases: Iterable[Release]) -> list[Release]:
    """Return equal releases in a row as one, as a ledger holds them: the steps of a pass go on where it was left."""
    made: list[Release] = []
    for one in releases:
        if made and dataclasses.replace(made[-1], count=one.count) == one:
            made[-1] = dataclasses.replace(one, count=made[-1].count + one.count)
        else:
            made.append(one)
    return made


def _rough(lost: Callable[[float, str], float], budget: float) -> float:
    """Return the noise that Rényi accounting asks for: a little more than needed, found in no time."""
    try:
        found = smallest(lambda noise: lost(noise, "rdp") <= budget, 0.0, 1.0, LARGEST_NOISE, relative=1e-3)
    except UsageError:
        return 1.0
    return found if math.isfinite(found) else 1.0


def _answers(fits: Callable[[int, str], bool], by: str) -> bool:
    try:
        fits(1, by)
    except UsageError:
        return False
    return True


def _least(lost: Callable[[float], float], budget: float, guess: float) -> float:
    """Return a noise that keeps the budget, at most `PRECISION` above one that does not; infinity where none does."""

    def gap(noise: float) -> float:
        spent = lost(noise)
        return math.log(spent / budget) if 0 < spent < math.inf else math.copysign(50.0, spent - budget)

    at, value, ratio = guess, gap(guess), 1.05
    kept, broken = ((at, value), (0.0, 0.0)) if value <= 0 else ((0.0, 0.0), (at, value))
    while not (kept[0] and broken[0]):
        at = kept[0] / ratio if kept[0] else broken[0] * ratio
        if not 1e-9 < at < LARGEST_NOISE:
            return kept[0] or math.inf
        value, ratio = gap(at), ratio**2
        kept, broken = ((at, value), broken) if value <= 0 else (kept, (at, value))
    for turn in range(200):
        if kept[0] <= broken[0] * (1 + PRECISION):
            break
        share = kept[1] / (kept[1] - broken[1])
        # Where the line through both ends meets the budget, and a little to either side in turn, so that both ends close in.
        side = (1 + PRECISION / 3) if turn % 2 == 0 else (1 - PRECISION / 3)
        at = kept[0] * (broken[0] / kept[0]) ** share * side if turn < 10 else math.sqrt(kept[0] * broken[0])
        at = at if broken[0] < at < kept[0] else math.sqrt(kept[0] * broken[0])
        value = gap(at)
        kept, broken = ((at, value), broken) if value <= 0 else (kept, (at, value))
    return kept[0]


def _most(spent: Callable[[int], float], budget: float, start: int) -> int:
    """Return the greatest count that keeps the budget, or 0; ε grows about as its square root, which tells where to look."""
    kept, broken, at, asked = (0, 0.0), (0, math.inf), start, 0
    while not broken[0] or broken[0] - kept[0] > 1:
        value = spent(at)
        if value <= budget:
            kept = (at, value)
            if at >= MOST:
                raise Endless(
                    f"the release may be made more than {at:,} times", want="a budget that ends", fix="Check rate and noise"
                )
        else:
            broken = (at, value)
        if not broken[0]:
            grown = at * (budget / value) ** 2 if value > 0 else math.inf
            at = min(MOST, max(at + 1, math.ceil(min(grown, 16 * at) * 1.01)))
            continue
        asked += 1
        known = math.isfinite(broken[1]) and asked < 12
        share = (budget**2 - kept[1] ** 2) / (broken[1] ** 2 - kept[1] ** 2) if known else 0.5
        middle = kept[0] + round(share * (broken[0] - kept[0]))
        # Beside the point expected, towards the end that has not moved, so that both ends close in.
        at = min(max(middle + (1 if at == kept[0] else 0), kept[0] + 1), broken[0] - 1)
    return kept[0]
