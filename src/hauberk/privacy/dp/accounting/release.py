"""Release: what was let out, in the numbers that an accountant needs."""

from __future__ import annotations

import dataclasses
import math

from hauberk.core.errors import UsageError, nearest

MECHANISMS = (
    "gaussian", "laplace", "discrete-gaussian", "discrete-laplace", "randomized-response", "tree", "pure",
)
SAMPLINGS = ("full", "poisson", "without-replacement", "shuffled", "any")
RELATIONS = ("add-remove", "replace-one")
ACCOUNTANTS = ("pld", "rdp", "zcdp", "analytic", "gdp")
LEAST_NOISE = 1e-5  # less counts as none: its ε is beyond 10^9
MOST = 10**12  # releases that one entry may stand for


@dataclasses.dataclass(frozen=True)
class Release:
    """One release of a mechanism, composed `count` times.

    The unit of noise is C, the most that one record adds to what is released (the clipping norm; L1 for Laplace). Adding or
    removing a record then moves it by C, replacing one by 2C: accountants double the distance for replace-one themselves.

    Arguments:
        mechanism: `gaussian`, `laplace`, `discrete-gaussian`, `discrete-laplace`, `randomized-response`, `tree` (DP-FTRL), or
            `pure` (a plain ε).
        noise: standard deviation (Gaussians, each node of a tree) or scale (Laplace) over C. For `pure` it is
            the ε of one answer when a record is added or removed (replacing one costs twice that), for `randomized-response`
            the ε of one answer when a label is replaced.
        sampling: how the records of a step are chosen. `poisson`: each with probability `rate` on its own.
            `without-replacement`: a fixed number of them, drawn afresh at every step. `shuffled`: dealt out once per pass,
            in any order, as an ordinary loader does; nothing is known to be amplified there. `full`: all of them. `any`: some
            of a fixed number, chosen in a way that is not known; every record may be in every release.
        rate: the sampling probability, or batch / population.
        count: releases of this kind; for `tree` the trees, in each of which a record has one leaf.
        population: records in all, where known; for `tree` the leaves (steps) of one tree.

    Raises:
        UsageError: for a name or number that cannot be.
    """

    mechanism: str
    noise: float
    sampling: str = "full"
    rate: float = 1.0
    count: int = 1
    population: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (("mechanism", self.mechanism, MECHANISMS), ("sampling", self.sampling, SAMPLINGS)):
            if value not in known:
                raise UsageError(f"the {name} is '{value}'", want=" | ".join(known), fix=nearest(str(value), known))
        for field in ("noise", "rate"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value) or value < 0:
                raise UsageError(f"the {field} of a release is {value}", want="a number of 0 or more")
            object.__setattr__(self, field, float(value))
        if self.rate > 1:
            raise UsageError(f"the sampling rate is {self.rate:g}", want="a probability from 0 to 1")
        if not isinstance(self.count, int) or isinstance(self.count, bool) or not 0 <= self.count <= MOST:
            raise UsageError(f"the count of a release is {self.count}", want=f"a whole number from 0 to {MOST}")
        if self.population is not None and (not isinstance(self.population, int) or self.population < 1):
            raise UsageError(f"the population is {self.population}", want="a whole number of 1 or more, or None")
        self._refuse_pairs()

    def _refuse_pairs(self) -> None:
        if self.sampling in ("full", "any") and self.rate != 1:
            raise UsageError(
                f"the sampling is '{self.sampling}' with a rate of {self.rate:g}", want="a rate of 1",
                fix="Name how records are chosen: poisson, without-replacement or shuffled",
            )
        sampled: dict[str, tuple[str, ...]] = dict.fromkeys(
            ("laplace", "discrete-laplace", "discrete-gaussian", "pure"), ("full", "poisson", "any")
        )
        sampled["gaussian"] = SAMPLINGS
        if self.sampling not in sampled.get(self.mechanism, ("full",)):
            raise UsageError(
                f"the mechanism '{self.mechanism}' has the sampling '{self.sampling}', which no accountant here covers",
                want=" | ".join(sampled.get(self.mechanism, ("full",))), fix="Account for it with sampling='full', a bound",
            )
        if self.mechanism == "tree" and self.population is None:
            raise UsageError("a tree is released without its size", want="population: the leaves (steps) of one tree")

    @property
    def private(self) -> bool:
        """Whether anything bounds what it gives away."""
        return math.isfinite(self.noise) if self.is_pure else self.noise >= LEAST_NOISE

    @property
    def is_pure(self) -> bool:
        """Whether `noise` is an ε."""
        return self.mechanism in ("pure", "randomized-response")

    @property
    def empty(self) -> bool:
        """Whether it gives nothing away: no release, no record in it, or noise without end."""
        if self.is_pure:
            return self.count == 0 or self.rate == 0 or self.noise == 0
        return self.count == 0 or self.rate == 0 or math.isinf(self.noise)

    @property
    def needs_replace(self) -> bool:
        """Whether only replace-one has a meaning for it: the number of records is fixed."""
        return self.sampling in ("without-replacement", "shuffled", "any") or self.mechanism == "randomized-response"

    @property
    def participations(self) -> int:
        """The most releases of a shuffled run that one record is part of: one per pass begun."""
        return -(-self.count // max(1, math.floor(1 / self.rate + 1e-9)))


@dataclasses.dataclass(frozen=True)
class Spent:
    """A privacy loss: no adversary gains more, where it is a bound.

    Arguments:
        epsilon: infinite where nothing bounds the loss.
        delta: the probability it is given at.
        accountant: `pld`, `rdp`, `zcdp`, `analytic` or `gdp`.
        relation: `add-remove` or `replace-one`: what neighbouring data sets differ in.
        bound: False for an estimate, which the true loss may exceed.
        notes: what the figure rests on.
    """

    epsilon: float
    delta: float
    accountant: str
    relation: str
    bound: bool = True
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the figure in one line."""
        sign = "≤" if self.bound else "≈"
        kind = self.accountant.upper() + ("" if self.bound else ", an estimate, not a bound")
        return f"ε {sign} {self.epsilon:.4g} at δ = {self.delta:g} ({kind}, {self.relation})"


def relation_for(releases: list[Release], relation: str | None) -> str:
    """Return the relation to account under: the one asked for, or the one that the releases have a meaning under.

    Raises:
        UsageError: for an unknown relation, or add-remove where the number of records is fixed.
    """
    fixed = [one for one in releases if one.needs_replace and not one.empty]
    if relation is None:
        return "replace-one" if fixed else "add-remove"
    if relation not in RELATIONS:
        raise UsageError(f"the relation is '{relation}'", want=" | ".join(RELATIONS), fix=nearest(str(relation), RELATIONS))
    if relation == "add-remove" and fixed:
        one = fixed[0]
        what = one.mechanism if one.mechanism == "randomized-response" else f"sampling '{one.sampling}'"
        raise UsageError(
            f"the relation is add-remove, but the number of records is fixed ({what})", want="replace-one",
            fix="Leave the relation out, or sample with 'poisson'",
        )
    return relation
