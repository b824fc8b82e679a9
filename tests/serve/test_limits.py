"""Limits on bodies, depth, headers, fields and slow clients, on a real web server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from negawatt.serve import Refused
from negawatt.serve.ask import chat_ask
from negawatt.serve.connection import Connection
from negawatt.serve.limits import (
    Limits,
    LimitsMiddleware,
    Receive,
    Scope,
    Send,
    json_depth,
    read_json,
)

LIMITS = Limits(
    body_bytes=1000,
    upload_bytes=5000,
    header_count=20,
    header_bytes=2000,
    json_depth=5,
    body_s=0.5,
    write_s=0.5,
)


class Application:
    """Tells how long the body was; ``/flood`` writes until the client is gone."""

    def __init__(self) -> None:
        self.left = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        message = await receive()
        assert message["more_body"] is False
        told = str(len(message["body"])).encode()
        head = {"type": "http.response.start", "status": 200, "headers": []}
        if scope["path"] != "/flood":
            await send(head | {"headers": [(b"content-length", str(len(told)).encode())]})
            await send({"type": "http.response.body", "body": told})
            return
        await send(head)
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        assert gone.result()["type"] == "http.disconnect"
        self.left.set()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, Application]]:
    application = Application()

    class Impatient(Connection):
        head_s = 0.5

    config = uvicorn.Config(
        LimitsMiddleware(application, LIMITS),
        host="127.0.0.1",
        port=0,
        http=Impatient,
        log_level="critical",
        lifespan="off",
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield running.servers[0].sockets[0].getsockname()[1], application
    running.should_exit = True
    thread.join()


def talk(port: int, head: str, body: bytes = b"", path: str = "/") -> tuple[int, Any]:
    """Status and body of an answer to a request as it is written."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{head}\r\n\r\n".encode() + body
        )
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    status, _, rest = answer.partition(b"\r\n")
    text = rest.partition(b"\r\n\r\n")[2]
    return int(status.split()[1]), text


def refused(answer: tuple[int, bytes]) -> int:
    """Status of an answer that is an error in OpenAI's form."""
    error = json.loads(answer[1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return answer[0]


def test_a_body_within_the_limits_arrives_whole(server: tuple[int, Application]) -> None:
    assert talk(server[0], "Content-Length: 7", b'{"a":1}') == (200, b"7")


@pytest.mark.parametrize(
    ("head", "body", "path", "status"),
    [
        ("Content-Length: 1001", b"", "/", 413),
        ("Content-Length: " + "9" * 19, b"", "/", 413),
        ("Transfer-Encoding: chunked", b"500\r\n" + b"1" * 0x500 + b"\r\n0\r\n\r\n", "/", 413),
        ("Content-Length: 12", b"[" * 6 + b"]" * 6, "/", 400),
        ("Content-Length: 10", b"123", "/", 408),
        ("Content-Length: 0\r\nX: " + "y" * 2000, b"", "/", 431),
        ("Content-Length: 0\r\n" + "\r\n".join(f"X-{i}: y" for i in range(20)), b"", "/", 431),
        ("Content-Length: 5001", b"", "/v1/files", 413),
    ],
    ids=["long", "absurd", "chunked", "deep", "slow", "headers", "many headers", "upload"],
)
def test_what_is_beyond_them_is_told_so_in_openai_s_form(
    server: tuple[int, Application], head: str, body: bytes, path: str, status: int
) -> None:
    begun = time.monotonic()
    assert refused(talk(server[0], head, body, path)) == status
    assert time.monotonic() - begun < 5


def test_uploads_may_be_longer_and_are_no_json(server: tuple[int, Application]) -> None:
    assert talk(server[0], "Content-Length: 4000", b"[" * 4000, "/v1/files") == (200, b"4000")


def test_a_client_that_does_not_read_counts_as_one_that_left(server: tuple[int, Application]) -> None:
    port, application = server
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /flood HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert application.left.wait(10), "the application still writes to nobody"


@pytest.mark.parametrize("sent", [b"", b"POST / HT", b"POST / HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_head_that_does_not_come_ends_the_connection(server: tuple[int, Application], sent: bytes) -> None:
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server[0]), timeout=10) as client:
        client.sendall(sent)
        while client.recv(1000):
            pass
    assert 0.3 < time.monotonic() - begun < 5


def test_a_head_drop_by_drop_is_one_that_does_not_come(server: tuple[int, Application]) -> None:
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", server[0]), timeout=10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 5:
                client.sendall(b"X: y\r\n")
                time.sleep(0.05)
    assert time.monotonic() - begun < 5


def test_a_head_without_end_is_cut_off(server: tuple[int, Application]) -> None:
    with socket.create_connection(("127.0.0.1", server[0]), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 66_000)
        assert client.recv(1000).startswith(b"HTTP/1.1 431")


def test_a_connection_is_good_for_many_requests(server: tuple[int, Application]) -> None:
    with socket.create_connection(("127.0.0.1", server[0]), timeout=10) as client:
        for _ in range(4):
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n123")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            time.sleep(0.2)


json_values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\[]{}', max_size=6),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.text(alphabet='k"\\[{', max_size=3), children, max_size=3)
    ),
    max_leaves=12,
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(json_values)
def test_depth_is_told_without_parsing(value: Any) -> None:
    assert json_depth(json.dumps(value).encode()) == depth_of(value)


def test_a_deep_text_takes_no_long_time() -> None:
    begun = time.thread_time()
    assert json_depth(b"[" * 1_000_000) == 1_000_000
    json_depth(b'"' + b"\\" * 1_000_000)
    json_depth(b'"\\' * 300_000)
    assert time.thread_time() - begun < 5


@pytest.mark.parametrize("body", [b"", b"[]", b'{"a":', b'{"a": NaN}', b'{"a": Infinity}', b"\xff{}", b"1"])
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read_json(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(("stop", "fits"), [("ä" * 128, True), ("ä" * 129, False), (["a"] * 17, False)])
def test_stop_strings_are_bounded(stop: object, fits: bool) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stop": stop}
    if fits:
        assert chat_ask(asked).sampling.stop == (stop,)
        return
    with pytest.raises(Refused) as caught:
        chat_ask(asked)
    assert (caught.value.status, caught.value.param) == (400, "stop")
