"""The privacy statement: a claim of ε that another can check, as JSON beside the model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hauberk.core.errors import DataError, UnsafeFile, UsageError
from hauberk.core.files import write_whole
from hauberk.privacy.dp.accounting.account import epsilon
from hauberk.privacy.dp.accounting.pld import thinned
from hauberk.privacy.dp.accounting.release import MOST, Release, Spent, relation_for

LARGEST = 4 << 20  # bytes of a statement
MOST_RELEASES = 20_000
TOLERANCE = 1e-3  # by how much, relative, another version or machine may compute less
NAME = "privacy.json"
SOFTWARE = ("hauberk", "dp-accounting", "numpy", "scipy")
SEEDED = "the noise came from a seeded generator: whoever knows the seed can take it off again; meant for tests"
TUNING = "runs that chose hyper-parameters on the same data are not accounted for"

Text = Annotated[str, Field(max_length=2000)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ReleaseEntry(_Strict):
    """One kind of release."""

    mechanism: Literal[
        "gaussian", "laplace", "discrete-gaussian", "discrete-laplace", "randomized-response", "tree", "pure"
    ] = Field(description="what noise")
    noise: Number = Field(description="standard deviation or scale over what one record adds; the ε of one answer for pure kinds")
    sampling: Literal["full", "poisson", "without-replacement", "shuffled", "any"] = Field(description="how records are chosen")
    rate: Annotated[float, Field(ge=0, le=1)] = Field(description="sampling probability, or batch / population")
    count: Annotated[int, Field(ge=0, le=MOST)] = Field(description="releases of this kind")
    population: Annotated[int, Field(ge=1)] | None = Field(default=None, description="records, or the leaves of a tree")


class PrivacyStatement(_Strict):
    """What is claimed of a trained model's privacy, with all that is needed to compute it again."""

    format: Literal["hauberk-privacy-statement/1"] = "hauberk-privacy-statement/1"
    epsilon: Number | None = Field(description="the loss claimed; null where nothing bounds it")
    delta: Annotated[float, Field(ge=0, lt=1)] = Field(description="the probability it is claimed at")
    relation: Literal["add-remove", "replace-one"] = Field(description="what neighbouring data sets differ in")
    unit: Text = Field(default="example", description="what is protected: an example, a user, a group ...")
    accountant: Literal["pld", "rdp", "zcdp", "analytic", "gdp"] = Field(description="how ε was computed")
    bound: bool = Field(description="false for an estimate, which the true loss may exceed")
    releases: Annotated[list[ReleaseEntry], Field(max_length=MOST_RELEASES)] = Field(description="in the order they were made")
    notes: Annotated[list[Text], Field(max_length=100)] = Field(default_factory=list, description="what the figure rests on")
    warnings: Annotated[list[Text], Field(max_length=100)] = Field(default_factory=list, description="what it leaves out")
    versions: Annotated[dict[Text, Text], Field(max_length=50)] = Field(default_factory=dict, description="of the software")

    @property
    def steps(self) -> int:
        """How many releases there were."""
        return sum(one.count for one in self.releases)

    def recompute(self) -> Spent:
        """Return ε computed again from the releases, at the stated δ, relation and accountant: always a bound.

        What is no bound, whatever the statement calls it, and what the accountant named does not cover are computed by PLD.
        """
        made = [Release(**one.model_dump()) for one in self.releases]
        if self.bound and self.accountant != "gdp":
            with contextlib.suppress(UsageError):  # zcdp and analytic know no sampling, rdp no replacement of sampled records
                return epsilon(made, self.delta, accountant=self.accountant, relation=self.relation)
        return epsilon(made, self.delta, relation=self.relation)

    def holds(self, again: Spent | None = None) -> bool:
        """Return whether the claim is no lower than what the releases give; `again` is what `recompute` returned."""
        found = (again or self.recompute()).epsilon
        return self.epsilon is None or self.epsilon >= found * (1 - TOLERANCE)

    def write(self, path: str | Path) -> None:
        """Write the statement as JSON."""
        write_whole(Path(path), self.model_dump_json(indent=1) + "\n")

    def describe(self) -> str:
        """Return the statement in words, a few lines."""
        claimed = Spent(
            math.inf if self.epsilon is None else self.epsilon, self.delta, self.accountant, self.relation, self.bound
        )
        changed = {"add-remove": "added or removed", "replace-one": "replaced by another"}[self.relation]
        lines = [claimed.describe(), f"protects one {self.unit}: neighbouring data sets differ in one that is {changed}"]
        lines += [f"{one.count:,} × {_words(one)}" for one in self.releases[:8]]
        if len(self.releases) > 8:
            rest = self.releases[8:]
            lines.append(f"{sum(one.count for one in rest):,} × {len(rest)} further kinds of release")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, *(f"warning: {one}" for one in self.warnings)])


def make_statement(
    releases: Sequence[Release], delta: float, *, accountant: str = "pld", relation: str | None = None, unit: str = "example",
    seeded: bool = False, tuned: bool = True, warnings: Sequence[str] = (),
) -> PrivacyStatement:
    """Return the statement about releases.

    Arguments:
        releases: in the order they were made.
        delta, accountant, relation: as for `epsilon`.
        unit: what one record stands for.
        seeded: whether the noise came from a seeded generator.
        tuned: whether hyper-parameters may have been chosen on the same data without being accounted for.
        warnings: further sentences that belong to the claim.
    """
    spent = epsilon(releases, delta, accountant=accountant, relation=relation)
    said = [*([SEEDED] if seeded else []), *([TUNING] if tuned else []), *warnings]
    versions = {"python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in SOFTWARE if _known(name)}
    if len(releases) > MOST_RELEASES:  # a noise that decays over a long run: fewer kinds that lose at least as much
        releases = thinned(releases, most=MOST_RELEASES // 20)
    table = {
        "epsilon": spent.epsilon if math.isfinite(spent.epsilon) else None, "delta": float(delta), "relation": spent.relation,
        "unit": unit, "accountant": accountant, "bound": spent.bound, "notes": list(spent.notes), "warnings": said,
        "versions": versions,
        "releases": [{name: getattr(one, name) for name in ReleaseEntry.model_fields} for one in releases],
    }
    return _validated(table, "the statement", UsageError)


def read_statement(path: str | Path) -> PrivacyStatement:
    """Read a statement, as a stranger's file.

    Raises:
        DataError: when it is missing or no statement; the first key that is wrong is named.
        UnsafeFile: above 4 MiB.
    """
    place = Path(path)
    try:
        if not place.is_file():
            what = "is a folder" if place.is_dir() else "is not there"
            raise DataError(f"{place} {what}", want="a privacy statement", fix="Write one: hauberk account --output")
        size = place.stat().st_size
        if size > LARGEST:
            raise UnsafeFile(f"{place} has {size} bytes", want=f"a privacy statement of at most {LARGEST}")
        with place.open("rb") as file:
            table = json.loads(file.read(LARGEST + 1).decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_once)
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error.strerror})", want="a privacy statement as JSON") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({str(error)[:200]})", want="a privacy statement") from error
    made = _validated(table, str(place), DataError)
    try:
        relation_for([Release(**one.model_dump()) for one in made.releases], made.relation)
    except UsageError as error:
        raise DataError(f"{place}: {error.problem}", want=error.want, fix=error.fix) from error
    if made.accountant == "gdp" and made.bound:
        raise DataError(
            f"{place} calls a central-limit estimate a bound (accountant 'gdp', bound true)",
            want="bound false, or another accountant",
            fix="Write the statement anew: hauberk account --accountant pld --output",
        )
    return made


def statement_schema() -> dict[str, Any]:
    """Return the JSON schema of a statement."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **PrivacyStatement.model_json_schema()}


def _validated(table: object, name: str, kind: type[DataError] | type[UsageError]) -> PrivacyStatement:
    try:
        # JSON has one kind of number, so that 1 is a rate too; as Python values they are told apart strictly.
        return PrivacyStatement.model_validate_json(json.dumps(table))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise kind(f"{name}: {where} is wrong ({first['msg']})", want="a privacy statement of format 1") from error


def _words(one: ReleaseEntry) -> str:
    kind = {"pure": "answer", "randomized-response": "randomised response"}.get(one.mechanism)
    head = f"{kind} with ε {one.noise:g}" if kind else f"{one.mechanism} noise of {one.noise:g}"
    return f"{head}, {one.sampling} sampling" + (f" at a rate of {one.rate:.6g}" if one.rate < 1 else "")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the table, where no key is given twice: which of the two a reader takes would be anybody's guess."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is given twice")
    return table


def _known(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
