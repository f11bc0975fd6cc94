"""Policies: who may sign what, with which algorithms, how long it counts, and what must be stated. Written in TOML."""

from __future__ import annotations

import dataclasses
import datetime
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hauberk.assets.signing.facts import VERSION, duration, parse_moment, version_key
from hauberk.assets.signing.keys import ALGORITHMS, VerifyingKey, parse_public, read_public
from hauberk.assets.signing.statement import Statement
from hauberk.core.errors import UsageError
from hauberk.io.refused import refused

LARGEST = 1 << 20


def _algorithms(names: list[str]) -> list[str]:
    for name in names:
        if name not in ALGORITHMS:
            raise ValueError(f"a list of {', '.join(ALGORITHMS)}")
    return names


def _age(text: str) -> str:
    try:
        duration(text)
    except UsageError as error:
        raise ValueError(error.want) from error
    return text


Algorithms = Annotated[list[str], AfterValidator(_algorithms)]
Age = Annotated[str, AfterValidator(_age)]
Stated = Literal["expiry", "version", "tensors", "scan", "training-data", "privacy", "watermark"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Key(_Table):
    path: str = ""
    pem: str = ""
    until: datetime.date | None = None
    revoked: bool = False

    @model_validator(mode="after")
    def _one(self) -> _Key:
        if bool(self.path) == bool(self.pem):
            raise ValueError("either path or pem, not both")
        return self


class _Rule(_Table):
    models: list[str] = Field(default=["*"], min_length=1)
    paths: list[str] = Field(default=["**"], min_length=1)
    keys: list[str] = Field(min_length=1)
    algorithms: Algorithms | None = None
    max_age: Age | None = None
    minimum_version: Annotated[str, Field(pattern=VERSION)] | None = None
    require: list[Stated] = Field(default_factory=list)
    scan: list[Literal["safe", "unknown code", "cannot be verified", "dangerous"]] = Field(default_factory=list)
    max_epsilon: float | None = None


class _File(_Table):
    format: Literal[1]
    algorithms: Algorithms = Field(default=["p256", "p384", "p521", "ed25519", "ml-dsa-65", "ml-dsa-87"])
    max_age: Age | None = None
    uncovered: bool = False
    keys: dict[str, _Key] = Field(min_length=1)
    rule: list[_Rule] = Field(min_length=1)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Who may sign what.

    Arguments:
        base: the folder that the paths of rules start from: that of the policy file.
    """

    base: Path
    _file: _File
    _keys: dict[str, VerifyingKey]

    @property
    def uncovered(self) -> bool:
        """Whether names that a signature leaves out may be there."""
        return self._file.uncovered

    def trusted(self) -> list[VerifyingKey]:
        """Return the keys that any rule could trust."""
        return list(self._keys.values())

    def name_of(self, key: VerifyingKey) -> str:
        """Return the name of a key here; empty for a stranger."""
        return next((name for name, one in self._keys.items() if one.id == key.id), "")

    def judge(self, statement: Statement, key: VerifyingKey, path: Path, now: datetime.datetime) -> list[str]:
        """Return why the policy does not accept a statement that `key` signed about the model at `path`; empty when it does.

        The first rule decides whose model names and paths both fit. Where none fits, nobody may sign.
        """
        name = self.name_of(key)
        known = self._file.keys.get(name)
        if known is None:
            return ["the policy does not know the key"]
        problems = []
        if known.revoked:
            problems.append(f"the key '{name}' is revoked")
        if known.until is not None and now.date() > known.until:
            problems.append(f"the key '{name}' was good until {known.until}")
        where = _relative(path, self.base)
        rule = next((one for one in self._file.rule if _fits(one, statement.name, where)), None)
        if rule is None:
            return [*problems, f"no rule of the policy lets anybody sign '{statement.name[:80]}' at {where}"]
        if name not in rule.keys:
            some = ", ".join(rule.keys)
            problems.append(f"the policy does not let '{name}' sign '{statement.name[:80]}' at {where}, only {some}")
        allowed = self._file.algorithms if rule.algorithms is None else rule.algorithms
        if key.algorithm not in allowed:
            problems.append(f"the policy does not allow {key.algorithm}, only {', '.join(allowed)}")
        return problems + _age_problems(rule.max_age or self._file.max_age, statement, now) + _claim_problems(rule, statement)


def read_policy(path: str | Path) -> Policy:
    """Return the policy of a TOML file.

    Raises:
        UsageError: when it cannot be read, says what it cannot say, or names a key that is not there.
    """
    place = Path(path)
    try:
        if place.stat().st_size > LARGEST:
            raise UsageError(f"the policy {place} has more than {LARGEST} bytes", want="a policy")
        content = tomllib.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the policy {place} cannot be read ({error.strerror or error})", want="a policy in TOML") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the policy {place} is no TOML ({error})", want="a policy in TOML") from error
    return make_policy(content, place.absolute().parent, place.name)


def make_policy(content: dict[str, Any], base: Path, name: str = "policy") -> Policy:
    """Return the policy of a table, as `read_policy` does; `base` is where its paths start."""
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise refused(error, _File, name, fix="The page on signing lists all that a policy says") from error
    keys = {
        label: parse_public(one.pem.encode(), f"{name}: keys.{label}") if one.pem else read_public(base / one.path)
        for label, one in file.keys.items()
    }
    if len({key.id for key in keys.values()}) != len(keys):
        raise UsageError(f"{name}: two names stand for one key", want="one name for each key")
    for rule in file.rule:
        strangers = [one for one in rule.keys if one not in keys]
        if strangers:
            raise UsageError(f"{name}: a rule names the key '{strangers[0]}'", want=f"one of {', '.join(keys)}")
    return Policy(base, file, keys)


def _fits(rule: _Rule, name: str, where: str) -> bool:
    return any(glob(pattern, name) for pattern in rule.models) and any(glob(pattern, where) for pattern in rule.paths)


def glob(pattern: str, text: str) -> bool:
    """Return whether the text fits a pattern: `*` and `?` within one part of a path, `**` across parts. Case counts."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    rules = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    return re.fullmatch("".join(rules.get(part, re.escape(part)) for part in parts), text, re.DOTALL) is not None


def _relative(path: Path, base: Path) -> str:
    """Return a path as seen from the policy's folder; an absolute one outside it."""
    full, root = path.resolve(), base.resolve()
    return full.relative_to(root).as_posix() if full.is_relative_to(root) else full.as_posix()


def _age_problems(limit: str | None, statement: Statement, now: datetime.datetime) -> list[str]:
    if limit is None:
        return []
    if statement.facts is None:
        return [f"the policy asks for an age of at most {limit}, and the signature does not say when it was made"]
    if now - parse_moment(statement.facts.signed) > duration(limit):
        return [f"it was signed on {statement.facts.signed}, and the policy asks for an age of at most {limit}"]
    return []


def _claim_problems(rule: _Rule, statement: Statement) -> list[str]:
    facts, problems = statement.facts, []
    stated: set[str] = set() if facts is None else set(facts.claims())
    if facts is not None:
        stated |= {name for name, value in (("expiry", facts.expires), ("version", facts.version)) if value is not None}
    needed = [*rule.require, *(["scan"] if rule.scan else []), *(["version"] if rule.minimum_version else [])]
    if rule.max_epsilon is not None:
        needed.append("privacy")
    lacking = sorted(set(needed) - stated)
    if lacking:
        problems.append(f"the policy asks for statements that are not there: {', '.join(lacking)}")
    if facts is None:
        return problems
    if rule.scan and facts.scan is not None and facts.scan.verdict not in rule.scan:
        problems.append(f"the scan's verdict is '{facts.scan.verdict}', and the policy takes {', '.join(rule.scan)}")
    low = rule.minimum_version is not None and facts.version is not None
    if low and version_key(facts.version or "") < version_key(rule.minimum_version or ""):
        problems.append(f"its version is {facts.version}, and {rule.minimum_version} is the policy's least")
    if rule.max_epsilon is not None and facts.privacy is not None:
        epsilon = facts.privacy.epsilon
        if epsilon is None or not epsilon <= rule.max_epsilon:
            told = "none" if epsilon is None else f"ε = {epsilon:.4g}"
            problems.append(f"its privacy statement claims {told}, and the policy takes {rule.max_epsilon} at most")
    return problems
