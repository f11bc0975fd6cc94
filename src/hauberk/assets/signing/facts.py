"""What a signer states beside the digests: when, until when, which version, and what is known of the model."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hauberk.core.errors import UsageError
from hauberk.io.refused import refused

VERSION = r"^\d{1,9}(\.\d{1,9}){0,5}$"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=2000)]
_SHA256 = "a SHA-256: 64 digits, 0 to 9 and a to f"
_WANTED = {
    "digest": _SHA256, "commitment": _SHA256, "key": _SHA256, "report": _SHA256, "version": "numbers and dots, such as 1.10.2",
    "signed": "a time in UTC, such as 2026-01-31T12:00:00Z", "expires": "a time in UTC, such as 2026-01-31T12:00:00Z",
    "epsilon": "a finite number of at least 0, or None where there is no bound", "delta": "a probability from 0 to 1",
    "count": "a whole number of at least 0", "files": "a whole number of files",
    "tensors": "what semantic_digest returns", "scan": "what scan_claim returns", "training_data": "what data_claim returns",
    "privacy": "digest, epsilon, delta and unit of a privacy statement", "watermark": "what watermark_claim returns",
}


def _moment(text: str) -> str:
    parse_moment(text)
    return text


def parse_moment(text: str) -> datetime.datetime:
    """Return the time of `2026-01-31T12:00:00Z`. Raises ValueError for any other way of writing it."""
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.UTC)


def moment(time: datetime.datetime) -> str:
    """Return a time as text, in whole seconds of UTC."""
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(text: str) -> datetime.timedelta:
    """Return the duration of `90d`, `12h`, `8w` or `1y` (365 days)."""
    found = re.fullmatch(r"(\d{1,6})\s*([hdwy])", text.strip())
    if not found or not int(found[1]):
        raise UsageError(f"the duration is '{text}'", want="a number of hours, days, weeks or years, such as 12h, 90d or 1y")
    hours = int(found[1]) * {"h": 1, "d": 24, "w": 168, "y": 8760}[found[2]]
    if hours > 8760 * 200:
        raise UsageError(f"the duration is '{text}'", want="at most 200 years")
    return datetime.timedelta(hours=hours)


def version_key(text: str) -> tuple[int, ...]:
    """Return what orders versions such as 1.10.2; zeros at the end count for nothing.

    Raises:
        UsageError: for a version that is not numbers and dots.
    """
    if not re.fullmatch(VERSION, text):
        raise UsageError(f"the version is '{text[:60]}'", want="numbers and dots, such as 1.10.2")
    numbers = [int(part) for part in text.split(".")]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


Moment = Annotated[str, AfterValidator(_moment)]


class Claim(BaseModel):
    """A part of a statement: unknown fields are refused, so that nobody believes a claim he does not understand."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TensorsClaim(Claim):
    """The semantic digest: the same weights in any format have it."""

    method: Literal["hauberk-tensors/1"] = "hauberk-tensors/1"
    digest: Digest
    count: Annotated[int, Field(ge=0)]


class ScanClaim(Claim):
    """What a scan for code found."""

    verdict: Literal["safe", "unknown code", "cannot be verified", "dangerous"]
    files: Annotated[int, Field(ge=0)]
    scanner: Text = ""
    report: Digest | None = None


class DataClaim(Claim):
    """What the model was trained on: the digest of a file, or over the digests of a folder's files."""

    digest: Digest
    files: Annotated[int, Field(ge=1)]
    name: Text = ""


class PrivacyClaim(Claim):
    """The privacy statement that belongs to the model."""

    digest: Digest
    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    delta: Annotated[float, Field(ge=0, le=1)] | None = None
    unit: Text = ""


class WatermarkClaim(Claim):
    """A commitment to the secret of a watermark: SHA-256 of it, which binds the owner before any dispute."""

    commitment: Digest


class Facts(Claim):
    """All that is stated beside the digests of the files.

    Arguments:
        algorithm, key: of the signer, so that a signature cannot be passed off as another key's.
        signed, expires: times in UTC.
        version: of the model; a verifier may refuse lower ones than it has seen.
    """

    format: Literal["hauberk-signature/1"] = "hauberk-signature/1"
    algorithm: Text
    key: Digest
    signed: Moment
    expires: Moment | None = None
    version: Annotated[str, Field(pattern=VERSION)] | None = None
    tensors: TensorsClaim | None = None
    scan: ScanClaim | None = None
    training_data: DataClaim | None = None
    privacy: PrivacyClaim | None = None
    watermark: WatermarkClaim | None = None

    def claims(self) -> dict[str, Any]:
        """Return the claims that were made, by name, as plain values."""
        named = {"tensors": self.tensors, "scan": self.scan, "training-data": self.training_data, "privacy": self.privacy,
                 "watermark": self.watermark}
        return {name: claim.model_dump(exclude_none=True) for name, claim in named.items() if claim is not None}


def unstatable(error: ValidationError) -> UsageError:
    """Return the error for facts that cannot be stated: which one, its value, what it should be, and what to do."""
    first = min(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")  # as `refused` does
    last = next((part for part in reversed(first["loc"]) if isinstance(part, str)), "")
    found = refused(error, Facts, "this cannot be stated", fix="")
    want = found.want if first["type"] in ("literal_error", "extra_forbidden") else _WANTED.get(last, found.want)
    fix = "Correct it in the Label given to sign, or leave it out"
    return UsageError(found.problem, want=want, fix=". ".join(one for one in (found.fix, fix) if one))
