"""One POST, bounded in time, size and retries. Follows no redirect and knows no scheme but http and https."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import http.client
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from hauberk.core.errors import ModelError, UsageError

_AGAIN = (429, 503)
# A content type outside this list is not repeated: the endpoint writes it, and may write a secret into it.
_KINDS = (
    "application/json", "application/octet-stream", "application/problem+json", "application/xml", "text/csv", "text/html",
    "text/plain", "text/xml",
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back: status, body, content type, and the headers that a refusal may carry."""

    status: int
    content: bytes
    kind: str
    after: str
    location: str


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may take.

    Arguments:
        seconds: for a request as a whole, however slowly the answer drips.
        retries: after the answers 429 and 503.
        wait: the longest wait before a retry in seconds, whatever Retry-After says.
        size: the most bytes of an answer.
    """

    seconds: float = 30.0
    retries: int = 4
    wait: float = 10.0
    size: int = 64 << 20

    def __post_init__(self) -> None:
        finite = math.isfinite(self.seconds) and math.isfinite(self.wait)
        if not (finite and self.seconds > 0 and self.retries >= 0 and self.wait >= 0 and self.size > 0):
            want = "finite numbers: seconds and size above 0, retries and wait not below 0"
            raise UsageError(f"the limits of a request are {self}", want=want)


def post(url: str, body: bytes, headers: Mapping[str, str], limits: Limits) -> Answer:
    """Send JSON and return the answer, of status 200.

    Raises:
        ModelError: when there is no answer in time, or one that is no answer to a prediction. Where headers are set, nothing that
            the endpoint wrote is quoted.
    """
    for attempt in range(limits.retries + 1):
        answer = _once(url, body, headers, limits)
        if answer.status not in _AGAIN:
            with unquoted(answer, url, headers):
                _accept(url, answer)
            return answer
        if attempt < limits.retries:
            time.sleep(min(_asked_wait(answer.after, 0.5 * 2**attempt), limits.wait))
    raise ModelError(
        f"{_place(url)} answered {answer.status} {limits.retries + 1} times in a row", want="an answer",
        fix="Ask for a higher rate, or assess with fewer queries",
    )


def _once(url: str, body: bytes, headers: Mapping[str, str], limits: Limits) -> Answer:
    parts = urlsplit(url)
    port, place = parts.port, parts.hostname or ""
    connection: http.client.HTTPConnection = (
        http.client.HTTPSConnection(place, port, timeout=limits.seconds, context=ssl.create_default_context())
        if parts.scheme == "https" else http.client.HTTPConnection(place, port, timeout=limits.seconds)
    )
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    sent = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close", **headers}
    expired = threading.Event()
    try:
        connection.connect()
        with _deadline(connection.sock, limits.seconds, expired):
            connection.request("POST", target, body, sent)
            answer = connection.getresponse()
            content = answer.read(limits.size + 1)
        if expired.is_set():
            raise TimeoutError
        if len(content) > limits.size:
            problem = f"{_place(url)} answered more than {limits.size} bytes"
            raise ModelError(problem, want="a smaller answer", fix="Send smaller batches")
        kind, after, location = (answer.getheader(name) or "" for name in ("Content-Type", "Retry-After", "Location"))
        return Answer(answer.status, content, kind.partition(";")[0].strip().lower(), after, location)
    except ModelError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if expired.is_set() or isinstance(error, TimeoutError):
            raise ModelError(
                f"{_place(url)} gave no whole answer within {limits.seconds:g} s", want="an endpoint that answers in time",
                fix="See that it runs, or raise the seconds of its limits",
            ) from None
        # The cause may quote what was sent, secrets among it: only its kind is told.
        why = error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
        problem = f"{_place(url)} cannot be reached or broke off ({why})"
        raise ModelError(problem, want="a running endpoint", fix="Check the address") from None
    finally:
        connection.close()


@contextlib.contextmanager
def unquoted(answer: Answer, url: str, headers: Mapping[str, str]) -> Iterator[None]:
    """Keep errors of the block from quoting the answer where the request held a secret: in a header, or in the address.

    An endpoint can repeat a key whole, in part, escaped or encoded, in its body, its keys or a redirect. There is no way to find
    all of these in an answer, so none of it is quoted.
    """
    try:
        yield
    except ModelError:
        cause = "headers are set" if headers else "the address has a query" if urlsplit(url).query else ""
        if not cause:
            raise
        kind = answer.kind if answer.kind in _KINDS else "another type" if answer.kind else "no type"
        raise ModelError(
            f"{_place(url)} answered {answer.status} with {len(answer.content)} bytes ({kind}) that are no predictions; "
            f"the answer is not quoted because {cause}",
            want="200 with predictions", fix="Check the address, the headers, the request template and the response path",
        ) from None


@contextlib.contextmanager
def _deadline(sock: socket.socket, seconds: float, expired: threading.Event) -> Iterator[None]:
    """Cut the connection when the time is up: a socket's own timeout starts anew with every byte."""

    def cut() -> None:
        expired.set()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _accept(url: str, answer: Answer) -> None:
    if answer.status == 200:
        return
    if 300 <= answer.status < 400:
        try:
            host = urlsplit(answer.location).hostname or "another place"
        except ValueError:
            host = "another place"
        raise ModelError(f"{_place(url)} redirects to {host} ({answer.status})", want="an answer", fix="Give the final address")
    start = " ".join(answer.content[:120].decode("utf-8", "replace").split())
    raise ModelError(
        f"{_place(url)} answered {answer.status}: {start!r}", want="200 with predictions",
        fix="Check the address, the headers and the template",
    )


def _asked_wait(after: str, otherwise: float) -> float:
    """Return the seconds that Retry-After names, as a number or a date; `otherwise` where it names none."""
    try:
        asked = float(after)
    except ValueError:
        try:
            asked = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError, OSError):
            return otherwise
    return otherwise if math.isnan(asked) else max(asked, 0.0)


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
