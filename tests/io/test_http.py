"""HttpModel against a server on the loopback: what is sent, what is read, and every way an endpoint can fail."""

from __future__ import annotations

import base64
import email.utils
import json
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

import hauberk
from hauberk import Access
from hauberk.core.errors import ModelError, UsageError
from hauberk.io.answer_path import follow, parse_path
from hauberk.io.http import HttpModel
from hauberk.io.http_call import Limits

Answer = tuple[int, dict[str, str], bytes]
WEIGHT = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, -1.0]])
X = torch.tensor([[0.25, 0.5], [1.0, 0.0], [0.0, 1.0]])


class Server:
    """Answers by `self.script`, and keeps what it was asked."""

    def __init__(self) -> None:
        self.script: Callable[[Any], Answer | None] = scored
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.requests.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                answer = owner.script(body)
                if answer is None:
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/predict"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def scored(body: Any) -> Answer:
    rows = (torch.tensor(body["instances"], dtype=torch.float64) @ WEIGHT.double()).tolist()
    return replied({"predictions": rows})


def replied(value: Any, status: int = 200, **headers: str) -> Answer:
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return status, {name.replace("_", "-"): one for name, one in headers.items()}, content


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(one_server: Server) -> Server:
    one_server.script, one_server.requests = scored, []
    return one_server


QUICK = Limits(seconds=5, retries=2, wait=0.01)


def test_scores_are_those_of_the_endpoint(server: Server) -> None:
    target = hauberk.load_model(server.url)
    assert torch.allclose(target.logits(X).float(), X @ WEIGHT) and target.access is Access.SCORE
    assert server.requests[0][2] == {"instances": X.tolist()}
    assert target.ledger.queries == 3 and target.name == server.url.removeprefix("http://")


def test_template_and_path_reach_any_layout(server: Server) -> None:
    server.script = lambda body: replied(
        {"outputs": [{"scores": [0.1 * row[0], 0.2]} for row in body["data"]["rows"]], "model": "m"}
    )
    model = HttpModel(server.url, '{"data": {"rows": $INPUT}, "n": 3}', "$.outputs[*].scores")
    assert torch.allclose(model(X), torch.tensor([[0.025, 0.2], [0.1, 0.2], [0.0, 0.2]], dtype=torch.float64))
    assert server.requests[0][2] == {"data": {"rows": X.tolist()}, "n": 3}


def test_one_sample_per_request_where_the_endpoint_wants_that(server: Server) -> None:
    server.script = lambda body: replied({"scores": [body["x"][0], body["x"][1], 7]})
    model = HttpModel(server.url, '{"x": "$SAMPLE"}', "scores")
    assert model(X).tolist() == [[0.25, 0.5, 7], [1, 0, 7], [0, 1, 7]]
    assert [request[2] for request in server.requests] == [{"x": row} for row in X.tolist()]


def test_requests_hold_at_most_the_batch(server: Server) -> None:
    model = HttpModel(server.url, batch=2)
    assert torch.allclose(model(X).float(), X @ WEIGHT)
    assert [len(request[2]["instances"]) for request in server.requests] == [2, 1]
    assert model(X[:0]).shape == (0, 1) and len(server.requests) == 2


def test_labels_by_number_and_by_name(server: Server) -> None:
    server.script = lambda body: replied({"predictions": [2, 0, 1]})
    for outputs in ("labels", "auto"):
        target = hauberk.load_model(HttpModel(server.url), outputs=outputs)
        assert target.labels(X).tolist() == [2, 0, 1] and target.access is Access.LABEL
    server.script = lambda body: replied({"predictions": ["dog", "cat", "dog"]})
    named = hauberk.load_model(HttpModel(server.url, classes=("cat", "dog")))
    assert named.labels(X).tolist() == [1, 0, 1] and named.access is Access.LABEL
    server.script = lambda body: replied({"predictions": ["dog", "bird", "dog"]})
    with pytest.raises(ModelError, match=r"the label 'bird'\. Expected one of cat, dog"):
        named.labels(X)


def test_headers_come_from_the_environment_and_are_never_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "Bearer s3cr3t-t0ken"
    monkeypatch.setenv("SHOP_TOKEN", secret)
    model = HttpModel(server.url, headers={"Authorization": "SHOP_TOKEN"}, limits=QUICK)
    model(X)
    assert server.requests[0][1]["authorization"] == secret
    assert secret not in repr(model) and secret.encode() not in pickle.dumps(model)
    monkeypatch.setenv("SHOP_TOKEN", "two\nlines")
    with pytest.raises(UsageError, match="characters that a header cannot carry") as refused:
        model(X)
    assert "lines" not in str(refused.value).replace("characters", "")
    monkeypatch.delenv("SHOP_TOKEN")
    with pytest.raises(UsageError, match="the environment variable SHOP_TOKEN, for the header Authorization, is not set"):
        model(X)


SECRET = "Bearer s3cr3t-t0ken"
PART = "s3cr3t-t0ken"
ECHOES = [
    replied(f"no: {SECRET}".encode(), 403),
    replied(f"no: {PART}".encode(), 401, Content_Type="text/plain; charset=utf-8"),
    replied(base64.b64encode(SECRET.encode()), 500),
    replied(f"<html>{PART}".encode()),
    replied(json.dumps({"error": SECRET}).replace("s", "\\u0073").encode()),
    replied({"predictions": [PART] * 3}),
    replied({"predictions": PART}),
    replied({PART: 1}),
    replied(b"", 302, Location=f"https://{PART}.example/"),
    replied(b"", 302, Location="http://[s3cr3t"),
    replied(b"no", 500, Content_Type=f"text/{PART}"),
]


@pytest.mark.parametrize("secret_in", ["header", "query"])
@pytest.mark.parametrize("answer", ECHOES)
def test_no_error_quotes_an_answer_to_a_request_with_a_secret(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: Answer, secret_in: str
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", SECRET)
    headers = {"Authorization": "SHOP_TOKEN"} if secret_in == "header" else {}
    url = server.url if headers else f"{server.url}?key={PART}"
    server.script = lambda _: answer
    with pytest.raises(ModelError) as caught:
        HttpModel(url, headers=headers, limits=QUICK)(X)
    told = "".join(traceback.format_exception(caught.value))
    assert not any(form in told for form in ("s3cr3t", "t0ken", "u0073", base64.b64encode(SECRET.encode()).decode()[:12]))
    cause = "headers are set" if headers else "the address has a query"
    assert f"answered {answer[0]} with {len(answer[2])} bytes (" in told and f"is not quoted because {cause}" in told
    assert ("text/plain" in told) == (answer[0] == 401)


def test_a_redirect_that_cannot_be_read_is_refused(server: Server) -> None:
    server.script = lambda _: replied(b"", 302, Location="http://[bad")
    with pytest.raises(ModelError, match=r"redirects to another place \(302\)"):
        HttpModel(server.url, limits=QUICK)(X)


@pytest.mark.parametrize("status", [429, 503])
def test_too_many_requests_are_tried_again(server: Server, status: int) -> None:
    server.script = lambda body: replied(b"slow down", status, Retry_After="0") if len(server.requests) < 3 else scored(body)
    assert torch.allclose(HttpModel(server.url, limits=QUICK)(X).float(), X @ WEIGHT)
    assert len(server.requests) == 3


def test_retries_end(server: Server) -> None:
    server.script = lambda body: replied(b"", 429)
    with pytest.raises(ModelError, match="answered 429 3 times in a row"):
        HttpModel(server.url, limits=QUICK)(X)
    assert len(server.requests) == 3


def test_retry_after_is_honoured_and_capped(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("hauberk.io.http_call.time.sleep", waits.append)
    later = email.utils.formatdate(time.time() + 500, usegmt=True)
    headers = iter(["2.5", "3600", later, "soon", "-4", "nan", "inf", "-inf", "1e400", "Fri, 31 Dec 99999 23:59:59 GMT"])
    server.script = lambda body: replied(b"", 429, Retry_After=next(headers)) if len(server.requests) < 11 else scored(body)
    HttpModel(server.url, limits=Limits(retries=10, wait=20))(X)
    # One that names no time waits 0.5 s, doubled each time.
    assert waits == [2.5, 20, 20, 4.0, 0.0, 16.0, 20, 0.0, 20, 20]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (replied(b"<html>hello</html>"), "18 bytes that are not JSON, beginning '<html>hello</html>'"),
        (replied(b""), "0 bytes that are not JSON"),
        (replied(b"[" * 100_000), "not JSON"),
        (replied(b"\xff\xfe"), "not JSON"),
        (replied({"outputs": []}), "no 'predictions' of the response path 'predictions': there is an object with outputs"),
        (replied([1, 2]), "there is a list of 2"),
        (replied({"predictions": {"a": 1}}), "answered dict"),
        (replied({"predictions": [[1.0, 2.0]]}), "answered 1 rows to 3 samples. Expected one row for each sample"),
        (replied({"predictions": [[1.0, 2.0], [1.0], [1.0, 2.0]]}), "rows of 1 and 2 scores"),
        (replied({"predictions": [[1.0, float("nan")]] * 3}), "answered the score nan"),
        (replied({"predictions": [[1.0, float("-inf")]] * 3}), "answered the score -inf"),
        (replied({"predictions": [[1.0, "high"]] * 3}), "answered str 'high' where a score belongs"),
        (replied({"predictions": [[1.0, None]] * 3}), "answered NoneType"),
        (replied({"predictions": [[1.0, True]] * 3}), "answered bool"),
        (replied({"predictions": [[], [], []]}), "an empty row"),
        (replied({"predictions": [[[1.0]]] * 3}), "answered list"),
        (replied(b'{"predictions": [[1' + b"0" * 400 + b"], [1], [1]]}"), "beyond all floating point"),
        (replied(b"no such model", 404), "answered 404: 'no such model'. Expected 200"),
        (replied(b"oops", 500), "answered 500: 'oops'"),
        (replied(b"", 302, Location="http://elsewhere.example/steal"), "redirects to elsewhere.example .302."),
        (replied(b"", 307, Location="/v2"), "redirects to another place"),
        (replied(b" " * 2000), "more than 1000 bytes"),
        (None, "cannot be reached or broke off"),
    ],
)
def test_nonsense_is_called_by_its_name(server: Server, answer: Answer | None, message: str) -> None:
    server.script = lambda body: answer
    size = 1000 if message.startswith("more than") else 1 << 20
    with pytest.raises(ModelError, match=message):
        HttpModel(server.url, outputs="logits", limits=Limits(seconds=5, retries=0, size=size))(X)
    assert len(server.requests) == 1


def test_labels_that_are_none_are_refused(server: Server) -> None:
    for bad in ([0, 1, -1], [0, 1, 1.5], [0, 1, "2"], [0, 1, True], [0, 1, float("inf")], [0, 1, 1e300]):
        server.script = lambda _, bad=bad: replied({"predictions": bad})
        with pytest.raises(ModelError, match="where a label belongs"):
            HttpModel(server.url, outputs="labels")(X)


def test_an_endpoint_that_hangs_is_left(server: Server) -> None:
    release = threading.Event()

    def hang(_: Any) -> None:
        release.wait(20)

    server.script = hang
    try:
        with pytest.raises(ModelError, match=r"gave no whole answer within 0.2 s"):
            HttpModel(server.url, limits=Limits(seconds=0.2))(X)
        assert not release.is_set()
    finally:
        release.set()


def test_an_endpoint_that_drips_is_left(one_server: Server) -> None:
    """Each byte arrives within a socket's own timeout; the deadline is for the whole answer."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        with pytest.raises(ModelError, match=r"within 0\.4 s"):
            HttpModel(f"http://127.0.0.1:{listener.getsockname()[1]}/", limits=Limits(seconds=0.4))(X)
    finally:
        stop.set()
        thread.join()
        listener.close()


def test_nobody_listens() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ModelError, match=rf"127.0.0.1:{port}/x cannot be reached or broke off \(Connection refused\)"):
        HttpModel(f"http://127.0.0.1:{port}/x?key=hidden", limits=QUICK)(X)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"url": "file:///etc/passwd"}, "scheme is 'file'"),
        ({"url": "ftp://host/x"}, "scheme is 'ftp'"),
        ({"url": "http:///x"}, "scheme is 'http'"),
        ({"url": "http://host:99999/"}, "cannot be read"),
        ({"url": "http://me:pw@host/"}, "holds a user name or password"),
        ({"url": "http://host/", "template": "{"}, "not JSON"),
        ({"url": "http://host/", "template": "{}"}, "0 places for the input"),
        ({"url": "http://host/", "template": '["$INPUT", "$INPUT"]'}, "2 places"),
        ({"url": "http://host/", "response": "a..b"}, "cannot be read from"),
        ({"url": "http://host/", "response": "a[b"}, "cannot be read from"),
        ({"url": "http://host/", "batch": 0}, "batch is 0"),
    ],
)
def test_a_description_that_cannot_work_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        HttpModel(**given)
    assert "pw" not in str(caught.value)
    for bad in ({"seconds": 0}, {"seconds": float("inf")}, {"wait": float("inf")}, {"wait": float("nan")}, {"retries": -1}):
        with pytest.raises(UsageError, match="limits of a request"):
            Limits(**bad)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", {"a": [{"b": [1, 2]}, {"b": [3]}], "x y": {"0": 5}}), ("$", {"a": [{"b": [1, 2]}, {"b": [3]}], "x y": {"0": 5}}),
        ("a.0.b", [1, 2]), ("$.a[1].b", [3]), ("a[*].b", [[1, 2], [3]]), ("a.*.b.0", [1, 3]),
        ("$['x y'].0", 5), ('["x y"]["0"]', 5),
    ],
)
def test_the_path_language(path: str, found: Any) -> None:
    answer = {"a": [{"b": [1, 2]}, {"b": [3]}], "x y": {"0": 5}}
    assert follow(answer, parse_path(path), path) == found


@pytest.mark.parametrize("path", ["b", "a.2", "a.b", "a.0.b.0.c", "*", "a.-1", "a.__class__"])
def test_a_path_that_leads_nowhere_says_what_is_there(path: str) -> None:
    with pytest.raises(ModelError, match="there is"):
        follow({"a": [{"b": [1, 2]}, {"b": [3]}]}, parse_path(path), path)
