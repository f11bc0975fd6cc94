"""Verifying a model against its signature. Whatever cannot be verified is not good: every doubt is a problem, none a pass."""

from __future__ import annotations

import dataclasses
import datetime
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hauberk.assets.signing.bundle import Bundle, Refused, read_bundle
from hauberk.assets.signing.digest import hash_files, list_files
from hauberk.assets.signing.dsse import PAYLOAD_TYPE, pae
from hauberk.assets.signing.facts import TensorsClaim, parse_moment, version_key
from hauberk.assets.signing.keys import VerifyingKey, chosen
from hauberk.assets.signing.policy import Policy
from hauberk.assets.signing.sign import signature_path
from hauberk.assets.signing.statement import GIT, Statement, parse_statement
from hauberk.core.errors import HauberkError, UnsafeFile, UsageError

SKEW = datetime.timedelta(minutes=5)  # by how much clocks may differ


@dataclasses.dataclass(frozen=True)
class Expect:
    """What a verifier asks of a statement beyond a policy.

    Arguments:
        name: the model's name; empty takes any.
        minimum_version: versions below are refused, and so are signatures without one; empty takes any.
        content: `files` compares every byte of every file; `tensors` compares names, types, shapes and values of the weights, in
            whatever format they are, and nothing else.
    """

    name: str = ""
    minimum_version: str = ""
    content: Literal["files", "tensors"] = "files"


@dataclasses.dataclass
class Verification:
    """What came of it.

    Arguments:
        path, signature: what was verified against what.
        problems: why it is not verified; empty when it is.
        key: id of the key whose signature it is; empty while that is not known.
        signer: name of the key in the policy.
        statement: what was signed; None unless the signature itself is good.
        uncovered: names in the folder that the signature leaves out and that are there.
    """

    path: str
    signature: str
    problems: list[str] = dataclasses.field(default_factory=list)
    key: str = ""
    algorithm: str = ""
    signer: str = ""
    statement: Statement | None = None
    content: str = "files"
    uncovered: list[str] = dataclasses.field(default_factory=list)
    finished: bool = False

    @property
    def ok(self) -> bool:
        """Whether all of it was verified."""
        return self.finished and not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def require(self) -> Statement:
        """Return the statement, or raise UnsafeFile where the model is not verified."""
        if not self.ok or self.statement is None:
            raise UnsafeFile(
                f"{self.path} is not verified: {'; '.join(self.problems) or 'the verification did not end'}",
                want="the model as it was signed", fix="Take it from its maker again",
            )
        return self.statement

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        plain = ("path", "signature", "ok", "problems", "key", "algorithm", "signer", "content", "uncovered")
        made = {key: getattr(self, key) for key in plain}
        if self.statement is not None:
            facts = self.statement.facts
            made["model"] = {"name": self.statement.name, "sha256": self.statement.sha256}
            made["facts"] = facts.model_dump(exclude_none=True) if facts is not None else {}
        return made


def verify(
    path: str | Path, signature: str | Path | None = None, *, keys: Sequence[VerifyingKey] = (), policy: Policy | None = None,
    expect: Expect | None = None, now: datetime.datetime | None = None,
) -> Verification:
    """Return whether a model is the one that was signed, by whom, and what was stated of it.

    Arguments:
        path: the model, a file or a folder.
        signature: its bundle; None takes the one beside it.
        keys: public keys to trust with any model, for want of a policy.
        policy: who may sign what.
        expect: name, least version, and whether files or tensors are compared.
        now: the time to judge by.

    Raises:
        UsageError: when neither keys nor a policy are given, or both, or there is no model. All else is a problem in the result.
    """
    if bool(keys) == (policy is not None):
        raise UsageError("nobody is trusted" if not keys else "keys and a policy are given", want="keys, or a policy")
    place, wanted, time = Path(path), expect or Expect(), now or datetime.datetime.now(datetime.UTC)
    if not place.exists() and not place.is_symlink():
        raise UsageError(f"{place} does not exist", want="a model: a file or a folder")
    if time.tzinfo is None:
        raise UsageError("the time to judge by has no zone", want="an aware datetime, such as datetime.now(UTC)")
    if wanted.minimum_version:
        version_key(wanted.minimum_version)
    file = Path(signature) if signature is not None else signature_path(place)
    result = Verification(str(place), str(file), content=wanted.content)
    try:
        bundle = read_bundle(file)
        key = _signer(bundle, [*keys, *(policy.trusted() if policy else ())])
        statement = parse_statement(bundle.payload)
        result.key, result.algorithm, result.statement = key.id, key.algorithm, statement
        result.problems += _stated(statement, bundle, key, wanted, time)
        if policy is not None:
            result.signer = policy.name_of(key)
            result.problems += policy.judge(statement, key, place, time)
        if wanted.content == "tensors":
            result.problems += _tensors(place, statement)
        else:
            _files(place, file, statement, result)
            if policy is not None and result.uncovered and not policy.uncovered:
                result.problems.append(f"the signature leaves out what is there: {', '.join(result.uncovered[:5])}")
        result.finished = True
    except Refused as error:
        result.problems.append(str(error))
    except HauberkError as error:
        result.problems.append(error.problem)
    except OSError as error:
        result.problems.append(f"the model cannot be read ({error.strerror or error})")
    return result


def _signer(bundle: Bundle, trusted: Sequence[VerifyingKey]) -> VerifyingKey:
    """Return the key whose signature it is. Nothing of the payload is believed before this."""
    fitting = chosen(trusted, bundle.hint)
    if not fitting:
        raise Refused(f"it is signed with the key {bundle.hint[:16]}…, which is not trusted here")
    message = pae(PAYLOAD_TYPE, bundle.payload)
    for key in fitting:
        if key.verifies(bundle.signature, message):
            return key
    raise Refused("the signature is not that of the key over this statement: one of them was changed")


def _stated(statement: Statement, bundle: Bundle, key: VerifyingKey, wanted: Expect, now: datetime.datetime) -> list[str]:
    facts, problems = statement.facts, []
    if wanted.name and statement.name != wanted.name:
        problems.append(f"it is the signature of '{statement.name[:80]}', not of '{wanted.name}'")
    version = facts.version if facts is not None else None
    if wanted.minimum_version and (version is None or version_key(version) < version_key(wanted.minimum_version)):
        problems.append(f"its version is {version or 'not stated'}, and {wanted.minimum_version} is the least")
    if bundle.key_id and not _same(bundle.key_id, key.id):
        problems.append("the envelope names another key than the one that signed")
    if facts is None:
        return problems
    # What we sign says twice who signed; a bundle that says it once has been changed.
    ids = (bundle.hint, bundle.key_id, facts.key)
    if not all(_same(one, key.id) for one in ids) or facts.algorithm != key.algorithm:
        problems.append("the statement names another key than the one that signed")
    if parse_moment(facts.signed) > now + SKEW:
        problems.append(f"it was signed on {facts.signed}, which is still to come")
    if facts.expires is not None and parse_moment(facts.expires) <= now:
        problems.append(f"the signature expired on {facts.expires}")
    return problems


def _same(one: str, other: str) -> bool:
    """Return whether two texts are one. Text out of JSON may hold half a pair of surrogates, which UTF-8 does not write."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def _files(place: Path, signature: Path, statement: Statement, result: Verification) -> None:
    """Compare every file: none missing, none more, none changed."""
    ignored = [name.rstrip("/") for name in statement.ignored]
    if place.is_dir():
        result.uncovered = sorted({name for name in ignored if name not in GIT and _there(place, name, signature)})
    listed = list_files(place, ignored)
    signed = {(one.name, one.span): one.digest for one in statement.resources}
    names = {one.name for one in statement.resources}
    for what, odd in (("missing", names - set(listed)), ("not signed", set(listed) - names)):
        if odd:
            result.problems.append(f"{what}: {_some(place, odd)}")
    common = {name: file for name, file in listed.items() if name in names}
    found = {(one.name, one.span): one.digest for one in hash_files(common, shard=statement.shard)}
    expected = {place: digest for place, digest in signed.items() if place[0] in common}
    changed = {
        name for name, span in expected.keys() | found.keys()
        if not hmac.compare_digest(expected.get((name, span), b""), found.get((name, span), b"-"))
    }
    if changed:
        result.problems.append(f"changed: {_some(place, changed)}")


def _some(place: Path, names: set[str]) -> str:
    shown = ", ".join(place.name if name == "." else name[:200] for name in sorted(names)[:5])
    return f"{shown} and {len(names) - 5} more files" if len(names) > 5 else shown


def _there(place: Path, name: str, signature: Path) -> bool:
    """Return whether something is at a name that is left out, other than the signature that is being verified."""
    there = place / name
    if not there.exists() and not there.is_symlink():
        return False
    same = there.is_file() and not there.is_symlink() and signature.exists() and there.samefile(signature)
    return not same


def _tensors(place: Path, statement: Statement) -> list[str]:
    """Compare the weights alone, in whatever format they are."""
    claim: TensorsClaim | None = statement.facts.tensors if statement.facts is not None else None
    if claim is None:
        return ["the signature states no digest of the tensors: only files can be compared"]
    from hauberk.assets.signing.semantic import semantic_digest

    found = semantic_digest(place)
    if hmac.compare_digest(found.digest, claim.digest):
        return []
    return [f"the tensors are not those that were signed ({found.count} here, {claim.count} there)"]
