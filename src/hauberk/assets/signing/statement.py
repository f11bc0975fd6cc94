"""The in-toto statement about a model: as the OpenSSF's model signing v1.0 has it, with facts of ours that it ignores."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hauberk.assets.signing.bundle import Refused, parse_json
from hauberk.assets.signing.digest import Resource, root_digest
from hauberk.assets.signing.facts import Digest, Facts

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
GIT = (".git", ".gitattributes", ".github", ".gitignore")  # never part of a model for the OpenSSF's verifier


@dataclasses.dataclass(frozen=True)
class Statement:
    """What is stated about a model.

    Arguments:
        name: of the model.
        resources: digests of its files, or of stretches of them, in order.
        shard: bytes of a stretch; None where whole files were hashed.
        ignored: names in the folder that the signature does not cover.
        facts: what else is stated; None in a bundle of another maker.
    """

    name: str
    resources: tuple[Resource, ...]
    shard: int | None = None
    ignored: tuple[str, ...] = ()
    facts: Facts | None = None

    @property
    def root(self) -> str:
        """SHA-256 over all digests."""
        return root_digest(self.resources)

    @property
    def sha256(self) -> str:
        """SHA-256 of the one file, as every tool gives it, or over the digests of many."""
        one = self.resources[0] if len(self.resources) == 1 and self.shard is None else None
        return one.digest.hex() if one is not None else self.root

    def to_json(self) -> bytes:
        """Return the payload that is signed."""
        algorithm = "sha256" if self.shard is None else f"sha256-sharded-{self.shard}"
        serialization: dict[str, Any] = {
            "method": "files" if self.shard is None else "shards", "hash_type": "sha256", "allow_symlinks": False,
        }
        if self.shard is not None:
            serialization["shard_size"] = self.shard
        if self.ignored:
            serialization["ignore_paths"] = list(self.ignored)
        resources = [
            {"name": one.name if one.span is None else f"{one.name}:{one.span[0]}:{one.span[1]}", "algorithm": algorithm,
             "digest": one.digest.hex()}
            for one in self.resources
        ]
        predicate: dict[str, Any] = {"serialization": serialization, "resources": resources}
        if self.facts is not None:
            predicate["hauberk"] = self.facts.model_dump(exclude_none=True)
        return json.dumps({
            "_type": STATEMENT_TYPE, "subject": [{"name": self.name, "digest": {"sha256": self.root}}],
            "predicateType": PREDICATE_TYPE, "predicate": predicate,
        }).encode("utf-8")


class _Open(BaseModel):
    # in-toto has verifiers ignore fields that they do not know; what is here is signed, whatever it is.
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Root(_Open):
    sha256: Digest


class _Subject(_Open):
    name: Annotated[str, Field(max_length=4096)]
    digest: _Root


class _Serialization(_Open):
    method: Literal["files", "shards"]
    hash_type: Literal["sha256"]
    allow_symlinks: bool
    shard_size: Annotated[float, Field(ge=1)] | None = None
    ignore_paths: list[str] = Field(default_factory=list, max_length=10_000)


class _Resource(_Open):
    name: str
    algorithm: str
    digest: Digest


class _Predicate(_Open):
    serialization: _Serialization
    resources: list[_Resource]
    hauberk: Facts | None = None


class _Whole(_Open):
    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    predicateType: Literal["https://model_signing/signature/v1.0"]
    subject: Annotated[list[_Subject], Field(min_length=1, max_length=1)]
    predicate: _Predicate


def parse_statement(payload: bytes) -> Statement:
    """Return the statement of a payload whose signature has been verified.

    Raises:
        Refused: when it is not of the kind above, or its parts do not agree.
    """
    try:
        whole = _Whole.model_validate(parse_json(payload))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Refused(f"the statement is not one about a model that is known here: {place}: {first['msg']}"[:300]) from error
    how, predicate = whole.predicate.serialization, whole.predicate
    shard = None
    if how.method == "shards":
        if how.shard_size is None or not how.shard_size.is_integer():
            raise Refused("the statement hashes stretches of files and does not say how long they are")
        shard = int(how.shard_size)
    resources = tuple(_resource(one, shard) for one in predicate.resources)
    if len({(one.name, one.span) for one in resources}) != len(resources):
        raise Refused("the statement names a file twice")
    subject = whole.subject[0]
    made = Statement(subject.name, resources, shard, tuple(how.ignore_paths), predicate.hauberk)
    if made.root != subject.digest.sha256:
        raise Refused("the statement's digest of the whole is not that of its parts")
    return made


def _resource(one: _Resource, shard: int | None) -> Resource:
    wanted = "sha256" if shard is None else "sha256-sharded-"
    if one.algorithm != wanted and not (shard is not None and re.fullmatch(rf"sha256-sharded-{shard}(\.0)?", one.algorithm)):
        raise Refused(f"the digest of {one.name[:80]!r} is made with {one.algorithm[:40]!r}, not {wanted}")
    name, span = one.name, None
    if shard is not None:
        found = re.fullmatch(r"(.+):(\d{1,19}):(\d{1,19})", one.name, re.DOTALL)
        if found is None:
            raise Refused(f"the stretch {one.name[:80]!r} has no first and last byte")
        name, span = found[1], (int(found[2]), int(found[3]))
    path = PurePosixPath(name)
    if str(path) != name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise Refused(f"the statement names a place outside the model: {name[:80]!r}")
    return Resource(name, bytes.fromhex(one.digest), span)
