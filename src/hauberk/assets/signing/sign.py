"""Signing a model: digests of its files, what is stated of it, one signature over both."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hauberk.assets.signing.bundle import Bundle
from hauberk.assets.signing.digest import hash_files, list_files
from hauberk.assets.signing.dsse import PAYLOAD_TYPE, pae
from hauberk.assets.signing.facts import Facts, moment, unstatable
from hauberk.assets.signing.keys import SigningKey
from hauberk.assets.signing.statement import GIT, Statement
from hauberk.core.errors import UsageError

LONGEST_NAME = 4096
SMALLEST_SHARD = 1 << 16


@dataclasses.dataclass(frozen=True)
class Label:
    """What the signer says of the model.

    Arguments:
        name: of the model; empty takes the name of its file or folder.
        version: numbers and dots; verifiers can refuse an older one.
        expires: from now, the time the signature is good for; None has no end.
        claims: fields of `Facts`: tensors, scan, training_data, privacy, watermark.
    """

    name: str = ""
    version: str | None = None
    expires: datetime.timedelta | None = None
    claims: dict[str, Any] = dataclasses.field(default_factory=dict)


def signature_path(model: str | Path) -> Path:
    """Return where the signature of a model lies unless another place is named: beside it, its name with `.sig`."""
    place = Path(model).absolute()
    return place.with_name(f"{place.name}.sig")


def sign(
    path: str | Path, key: SigningKey, label: Label | None = None, *, output: str | Path | None = None,
    ignored: Collection[str] = (), shard: int | None = None, now: datetime.datetime | None = None,
) -> Bundle:
    """Return the signature of a model: a file, or a folder with all that is in it.

    Arguments:
        path: the model. Links in it are refused; files of git are left out, as the OpenSSF's verifier does.
        key: from `read_private`.
        label: name, version, end, claims.
        output: where the signature will lie: left out when that is inside the folder.
        ignored: names in the folder to leave out; the statement says so, and so does every verification.
        shard: bytes of a stretch: hashes a large file on several cores; None hashes whole files.
        now: the time of signing.

    Raises:
        UsageError: when there is nothing to sign, or what is said of it cannot be.
        UnsafeFile: for links, devices, and files that change meanwhile.
    """
    label, place, time = label or Label(), Path(path), now or datetime.datetime.now(datetime.UTC)
    if shard is not None and shard < SMALLEST_SHARD:
        raise UsageError(f"stretches of {shard} bytes", want=f"at least {SMALLEST_SHARD}")
    left_out = [*GIT, *(_relative(one) for one in ignored)]
    inside = _inside(place, Path(output)) if output is not None and place.is_dir() else None
    if inside is not None:
        left_out.append(inside)
    files = list_files(place, left_out)
    if not files:
        raise UsageError(f"{place} holds no file", want="a model")
    resources = hash_files(files, shard=shard)
    public = key.public
    try:
        facts = Facts.model_validate({
            "algorithm": public.algorithm, "key": public.id, "signed": moment(time), "version": label.version,
            "expires": moment(time + label.expires) if label.expires is not None else None, **label.claims,
        })
    except ValidationError as error:
        raise unstatable(error) from error
    name = label.name or place.resolve().name
    if not name or len(name) > LONGEST_NAME:
        raise UsageError(f"a name of {len(name)} characters", want="a name for the model")
    payload = Statement(name, resources, shard, tuple(dict.fromkeys(left_out)), facts).to_json()
    return Bundle(payload, key.sign(pae(PAYLOAD_TYPE, payload)), public.id, public.id)


def _inside(folder: Path, file: Path) -> str | None:
    """Return the name of a file relative to a folder that it lies in; None where it lies elsewhere."""
    file = file.absolute().parent.resolve() / file.name
    root = folder.resolve()
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else None


def _relative(name: str) -> str:
    plain = Path(name).as_posix()
    if plain in (".", "") or Path(name).is_absolute() or ".." in Path(name).parts:
        raise UsageError(f"'{name}' cannot be left out", want="a name inside the model's folder")
    return plain
