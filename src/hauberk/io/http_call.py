"""One POST, bounded in time, size and retries. Follows no redirect and knows no scheme but http and https."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from hauberk.core.errors import ModelError, UsageError

_AGAIN = (429, 503)


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
        if not (self.seconds > 0 and self.retries >= 0 and self.wait >= 0 and self.size > 0):
            raise UsageError(f"the limits of a request are {self}", want="seconds and size above 0, retries and wait not below 0")


def post(url: str, body: bytes, headers: Mapping[str, str], limits: Limits) -> bytes:
    """Send JSON and return the body of the answer.

    Raises:
        ModelError: when there is no answer in time, or one that is no answer to a prediction. Header values are not shown.
    """
    for attempt in range(limits.retries + 1):
        status, answer, after = _once(url, body, headers, limits)
        if status not in _AGAIN:
            with unquoted(answer, headers, _place(url)):
                return _accepted(url, status, answer, after)
        if attempt < limits.retries:
            time.sleep(min(_asked_wait(after, 0.5 * 2**attempt), limits.wait))
    raise ModelError(
        f"{_place(url)} answered {status} {limits.retries + 1} times in a row", want="an answer",
        fix="Ask for a higher rate, or assess with fewer queries",
    )


def _once(url: str, body: bytes, headers: Mapping[str, str], limits: Limits) -> tuple[int, bytes, str]:
    """Return status, body, and the header that a refusal carries: Retry-After, or Location."""
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
        return answer.status, content, answer.getheader("Retry-After") or answer.getheader("Location") or ""
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
def unquoted(answer: bytes, headers: Mapping[str, str], place: str) -> Iterator[None]:
    """Keep errors of the block from quoting an answer that repeats the value of a header: it may be a secret."""
    try:
        yield
    except ModelError:
        plain = answer.replace(b"\\/", b"/")
        if any(len(value) > 3 and value.encode() in plain for value in headers.values()):
            raise ModelError(
                f"{place} gave an answer that is of no use and repeats a header of the request, so it is not shown",
                want="predictions", fix="Check the address, the headers and the template",
            ) from None
        raise


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


def _accepted(url: str, status: int, answer: bytes, location: str) -> bytes:
    if status == 200:
        return answer
    if 300 <= status < 400:
        host = urlsplit(location).hostname or "another place"
        raise ModelError(f"{_place(url)} redirects to {host} ({status})", want="an answer", fix="Give the final address")
    start = " ".join(answer[:120].decode("utf-8", "replace").split())
    raise ModelError(
        f"{_place(url)} answered {status}: {start!r}", want="200 with predictions",
        fix="Check the address, the headers and the template",
    )


def _asked_wait(after: str, otherwise: float) -> float:
    """Return the seconds that Retry-After names, as a number or a date."""
    try:
        return max(float(after), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(after).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return otherwise


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
