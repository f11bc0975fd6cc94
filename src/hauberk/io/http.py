"""HttpModel: an endpoint that answers over HTTP, as a model of SCORE or LABEL access."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.errors import ModelError, UsageError
from hauberk.io.answer_path import follow, parse_path
from hauberk.io.http_call import Limits, post, unquoted

BATCH, SAMPLE = "$INPUT", "$SAMPLE"


@dataclasses.dataclass(frozen=True)
class HttpModel:
    """An endpoint described: how it is asked, and where in its answer the scores or labels are.

    Arguments:
        url: `https://host/path`; credentials belong in headers, not here.
        template: JSON of a request; `"$INPUT"` stands for the batch as nested lists, or `"$SAMPLE"` for one sample, which
            sends a request per sample.
        response: the place of the answers, such as `outputs.0.scores` or `$.predictions[*].scores`; empty for the whole answer.
        headers: by header, the environment variable that holds its value; the values are never kept, shown or logged. Where
            headers are set, errors tell the status, length and type of an answer and quote nothing of it: it may repeat a value.
        outputs: logits, probabilities, labels or auto.
        classes: names of the labels in order, for an endpoint that answers labels by name.
        batch: the most samples in one request.
        limits: seconds, retries and bytes.

    Raises:
        UsageError: for an address, template, path or header that cannot be used.
    """

    url: str
    template: str = '{"instances": "$INPUT"}'
    response: str = "predictions"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    outputs: str = "auto"
    classes: Sequence[str] = ()
    batch: int = 256
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        parts = _address(self.url)
        if parts.username is not None or parts.password is not None:
            problem = "the address of the endpoint holds a user name or password"
            raise UsageError(problem, want="them in a header from the environment")
        if self.batch < 1:
            raise UsageError(f"batch is {self.batch}", want="1 or more samples in a request")
        parse_path(self.response)
        _parse_template(self.template)

    @property
    def access(self) -> Access:
        """SCORE, or LABEL where labels alone come back."""
        return Access.LABEL if self.outputs == "labels" or self.classes else Access.SCORE

    @property
    def name(self) -> str:
        """Host and path: what reports may show. The query may hold a key and is left out."""
        parts = _address(self.url)
        return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"

    def __call__(self, x: Tensor) -> Tensor:
        """Return scores, shape (n, classes), float64, or labels, shape (n,), int64.

        Raises:
            ModelError: when the endpoint hangs, refuses, or answers anything but one finite row per sample.
            UsageError: when an environment variable that a header names is not set.
        """
        template, single = _parse_template(self.template)
        headers = {header: _secret(header, variable) for header, variable in self.headers.items()}
        steps = parse_path(self.response)
        rows: list[Any] = []
        for part in x.detach().cpu().double().split(1 if single else self.batch) if len(x) else ():
            given = part[0].tolist() if single else part.tolist()
            body = json.dumps(_filled(template, given), allow_nan=False).encode()
            answer = post(self.url, body, headers, self.limits)
            with unquoted(answer, self.url, headers):
                found = follow(_decoded(answer.content, self.name), steps, self.response)
                rows += self._checked(_rows([found] if single and not _is_batch_of_one(found) else found, len(part), self.name))
        return self._tensor(rows).to(x.device)

    def _checked(self, rows: list[Any]) -> list[Any]:
        """Return one list of scores, or one label, for each row."""
        if self.classes:
            return [self._label(row) for row in rows]
        if self.outputs == "labels" or (self.outputs == "auto" and all(type(row) is int for row in rows)):
            return [_index(row, self.name) for row in rows]
        return [_numbers(row, self.name) for row in rows]

    def _tensor(self, rows: list[Any]) -> Tensor:
        if (not rows and self.access is Access.LABEL) or (rows and all(isinstance(row, int) for row in rows)):
            return torch.tensor(rows, dtype=torch.long)  # where labels come unannounced, the target finds out by the type
        widths = {len(row) if isinstance(row, list) else 0 for row in rows}
        if len(widths) > 1:
            problem = f"{self.name} answered rows of {' and '.join(map(str, sorted(widths)[:4]))} scores"
            raise ModelError(problem, want="the same number of scores for each sample", fix="Correct the response path")
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), max(widths, default=1))

    def _label(self, row: Any) -> int:
        row = row[0] if isinstance(row, list) and len(row) == 1 else row
        if row in self.classes:
            return list(self.classes).index(row)
        raise ModelError(f"{self.name} answered the label {str(row)[:40]!r}", want=f"one of {', '.join(list(self.classes)[:8])}")


def _address(url: str) -> Any:
    try:
        parts = urlsplit(url)
        assert parts.port is None or parts.port > 0
    except (ValueError, AssertionError):
        raise UsageError("the address of the endpoint cannot be read", want="https://host/path") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"the endpoint's scheme is '{parts.scheme}'", want="http://host/path or https://host/path")
    return parts


def _parse_template(text: str) -> tuple[Any, bool]:
    """Return the template as plain JSON values, and whether it takes one sample at a time."""
    error: Exception | None = None
    for form in (text, *(text.replace(mark, f'"{mark}"') for mark in (BATCH, SAMPLE) if mark in text)):
        try:
            made = json.loads(form)
        except (ValueError, RecursionError) as one:
            error = error or one
            continue
        marks = [mark for mark in (BATCH, SAMPLE) for _ in range(_count(made, mark))]
        if len(marks) == 1:
            return made, marks[0] == SAMPLE
        raise UsageError(
            f"the request template holds {len(marks)} places for the input",
            want='one, "$INPUT" for a batch or "$SAMPLE" for a sample',
            fix='Write it as a value of its own, such as {"inputs": "$INPUT"}',
        )
    raise UsageError(f"the request template is not JSON ({error})", want='such as {"inputs": "$INPUT"}')


def _count(value: Any, mark: str) -> int:
    if isinstance(value, dict):
        return sum(_count(one, mark) for one in value.values())
    return sum(_count(one, mark) for one in value) if isinstance(value, list) else int(value == mark)


def _filled(value: Any, given: Any) -> Any:
    if isinstance(value, dict):
        return {key: _filled(one, given) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, given) for one in value]
    return given if value in (BATCH, SAMPLE) else value


def _secret(header: str, variable: str) -> str:
    value = os.environ.get(variable)
    if value is None:
        raise UsageError(
            f"the environment variable {variable}, for the header {header}, is not set", want="the header's whole value in it",
            fix=f"Set it before the run: export {variable}=…",
        )
    if not value.isascii() or not value.isprintable():
        problem = f"the environment variable {variable} holds characters that a header cannot carry"
        raise UsageError(problem, want="printable ASCII")
    return value


def _decoded(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        start = content[:40].decode("utf-8", "replace")
        raise ModelError(
            f"{name} answered {len(content)} bytes that are not JSON, beginning {start!r}", want="a JSON answer",
            fix="Check the address and the request template",
        ) from error


def _is_batch_of_one(found: Any) -> bool:
    return isinstance(found, list) and len(found) == 1 and isinstance(found[0], list)


def _rows(found: Any, n: int, name: str) -> list[Any]:
    if not isinstance(found, list):
        problem = f"{name} answered {type(found).__name__} {str(found)[:40]!r} to {n} samples"
        raise ModelError(problem, want="a list with a row for each", fix="Correct the response path")
    if len(found) != n:
        problem = f"{name} answered {len(found)} rows to {n} samples"
        raise ModelError(problem, want="one row for each sample", fix="Correct the response path")
    return found


def _numbers(row: Any, name: str) -> list[float]:
    values = row if isinstance(row, list) else [row]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ModelError(
                f"{name} answered {type(value).__name__} {str(value)[:40]!r} where a score belongs", want="numbers",
                fix="Correct the response path; for labels by name, give classes",
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{name} answered the score {value}", want="finite numbers", fix="Mend the endpoint")
    if not values:
        raise ModelError(f"{name} answered an empty row", want="a score for each class")
    try:
        return [float(value) for value in values]
    except OverflowError:
        raise ModelError(f"{name} answered a score beyond all floating point numbers", want="finite numbers") from None


def _index(row: Any, name: str) -> int:
    value = row[0] if isinstance(row, list) and len(row) == 1 else row
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value == int(value)
    if not whole or not 0 <= value < 2**31:
        raise ModelError(
            f"{name} answered {str(value)[:40]!r} where a label belongs", want="0, 1, 2, …",
            fix="Correct the response path; for labels by name, give classes",
        )
    return int(value)
