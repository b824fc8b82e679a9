"""The whole server behind keys: budgets, batches, the ledger, and logs that hold no prompt and no secret."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from otlp_collector import collecting

from negawatt.artifact import Artifact
from negawatt.database import Database
from negawatt.serve.account import Account
from negawatt.serve.budget import Budget, Period, Step
from negawatt.serve.keys import Keys, server_secret
from negawatt.serve.ledger import ReceiptLedger

CLI = [sys.executable, "-c", "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"]
SECRETS = [
    f"planted-{place}-{number}"
    for number in range(3)
    for place in ("prompt", "header", "tool", "error", "key", "metadata", "crash")
]


WATCHED = """
import os, socket, sys
with open(os.environ["CONNECTIONS"] + ".watched", "a") as out:
    print(os.getpid(), file=out)
def watched(name):
    real = getattr(socket.socket, name)
    def connect(self, address, *rest):
        if self.family != socket.AF_UNIX and address != ("127.0.0.1", int(os.environ["COLLECTOR_PORT"])):
            with open(os.environ["CONNECTIONS"], "a") as out:
                print(address, sys.argv, file=out)
            raise OSError("a connection was asked for")
        return real(self, address, *rest)
    setattr(socket.socket, name, connect)
watched("connect"), watched("connect_ex")
real = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if host not in (None, "127.0.0.1"):
        with open(os.environ["CONNECTIONS"], "a") as out:
            print(host, sys.argv, file=out)
    return real(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""
"""Python runs it first in the server and its worker: it notes every connection but the one asked for."""


class Running:
    """A server of the real model in a process of its own, and what its database holds."""

    def __init__(self, folder: Path, model: Artifact, collector: str) -> None:
        self.folder = folder
        self.database = Database(str(folder / "serve.db"))
        secret = server_secret(folder / "secret")
        self.keys = Keys(self.database, secret)
        self.ledger = ReceiptLedger(self.database, secret)
        self.account = Account(self.database, self.ledger)
        self.red, red_text = self.keys.create("red", team="red")
        self.blue, blue_text = self.keys.create("blue", team="blue")
        _, self.operator_text = self.keys.create("prometheus", team="operators")
        self.log = (folder / "log").open("w+")
        (folder / "sitecustomize.py").write_text(WATCHED)
        self.process = subprocess.Popen(
            [
                *(*CLI, "serve", str(model.path), "--port", "0", "--keys", "--json", "--batch", "4"),
                *("--max-context", "512", "--threads", "1", "--redact", "--intensity", "DE"),
                *("--traces", collector),
                *("--database", str(folder / "serve.db"), "--secret-file", str(folder / "secret")),
            ],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ
            | {
                "NEGAWATT_SERVE_FILES": str(folder / "files"),
                "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
                "COLLECTOR_PORT": collector.rpartition(":")[2],
                "CONNECTIONS": str(folder / "connections"),
            },
        )
        assert self.process.stdout is not None
        lines = []
        while not (lines and lines[-1].startswith("}")):
            line = self.process.stdout.readline()
            assert line, self.said()
            lines.append(line)
        self.address = json.loads("".join(lines))["address"]
        self.red_client, self.blue_client = (
            openai.OpenAI(base_url=f"{self.address}/v1", api_key=text, max_retries=0)
            for text in (red_text, blue_text)
        )
        self.texts = {"red": red_text, "blue": blue_text}
        self.model = self.red_client.models.list().data[0].id

    def said(self) -> str:
        self.log.flush()
        return (self.folder / "log").read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(30)
        self.log.close()


@pytest.fixture(scope="module")
def spans() -> Iterator[tuple[str, list[bytes]]]:
    """A collector on loopback: its address, and what it was sent, as it came."""
    bodies: list[bytes] = []
    with collecting(lambda path, body: bodies.append(body)) as address:
        yield address, bodies


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, model: Artifact, spans: tuple[str, list[bytes]]
) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("guarded"), model, spans[0])
    yield server
    server.close()


def chat(
    client: openai.OpenAI, model: str, text: str = "Count to five.", tokens: int = 4
) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(
        model=model, max_tokens=tokens, messages=[{"role": "user", "content": text}], seed=1
    )


def test_no_path_but_two_answers_without_a_key(running: Running) -> None:
    document = httpx.get(
        f"{running.address}/openapi.json", headers={"authorization": f"Bearer {running.texts['red']}"}
    ).json()
    paths = [
        *document["paths"],
        "/v1/files",
        "/v1/files/x/content",
        "/v1/batches",
        "/v1/batches/x/cancel",
        "/metrics",
    ]
    with httpx.Client(base_url=running.address) as client:
        for path in {re.sub(r"{.*?}", "x", path) for path in paths} - {"/health", "/ready"}:
            for method in ("GET", "POST", "DELETE", "OPTIONS", "PUT"):
                assert client.request(method, path).status_code == 401, (method, path)
    assert httpx.get(f"{running.address}/health").status_code == 200


def test_budgets_hold_a_real_client(running: Running) -> None:
    running.account.put(
        Budget("team:blue", Period("day"), tokens=150, steps=(Step(0.2, "shorten", tokens=2),))
    )
    answers = []

    def use_it_up() -> None:
        for _ in range(10):
            answers.append(chat(running.blue_client, running.model, tokens=8))  # noqa: PERF401

    with pytest.raises(openai.RateLimitError) as caught:
        use_it_up()
    assert caught.value.code == "budget_exhausted"
    assert int(caught.value.response.headers["retry-after"]) > 0
    lengths = [answer.usage.completion_tokens for answer in answers if answer.usage]
    assert lengths[0] == 8 and lengths[-1] == 2
    end = time.monotonic() + 10
    while (use := running.account.uses(["team:blue"])[0]).held.requests:
        assert time.monotonic() < end, "a hold was left behind"
        time.sleep(0.02)
    assert use.spent.tokens == sum(answer.usage.total_tokens for answer in answers if answer.usage)
    assert use.spent.tokens <= 150 and use.held.tokens == 0
    chat(running.red_client, running.model)


def test_a_batch_of_the_official_client(running: Running) -> None:
    client = running.red_client
    lines = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": running.model,
                "max_tokens": 3,
                "messages": [{"role": "user", "content": "Hi"}],
            },
        }
        for number in range(6)
    ]
    lines[2]["body"] = {"model": "no-such-model", "messages": [{"role": "user", "content": "Hi"}]}
    content = io.BytesIO("\n".join(map(json.dumps, lines)).encode())
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    with pytest.raises(openai.NotFoundError):
        running.blue_client.batches.retrieve(batch.id)
    with pytest.raises(openai.NotFoundError):
        running.blue_client.files.content(file.id)
    end = time.monotonic() + 60
    while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed", "expired"):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert batch.status == "completed" and batch.metadata == {"a": "b"}
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (
        6,
        5,
        1,
    )
    assert batch.output_file_id and batch.error_file_id
    output = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert {line["custom_id"] for line in output} == {"c0", "c1", "c3", "c4", "c5"}
    energy = output[0]["response"]["body"]["usage"]["energy"]
    assert energy["value_j"] > 0 and energy["carbon"]["value"] > 0
    [error] = [json.loads(line) for line in client.files.content(batch.error_file_id).text.splitlines()]
    assert error["response"]["status_code"] == 404
    told = batch.to_dict()["energy"]
    assert told["energy"]["value_j"] > 0 and told["grams"] == pytest.approx(told["grams_at_once"])  # type: ignore[index]
    assert [b.id for b in client.batches.list()] == [batch.id]
    client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"completion_window": "soon"}, "completion_window"),
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"input_file_id": "file-nobody"}, "input_file_id"),
        ({"metadata": {"a": "b" * 600}}, "metadata"),
    ],
)
def test_batches_that_cannot_be_are_refused_by_field(
    running: Running, fields: dict[str, object], param: str
) -> None:
    asked = {"input_file_id": "x", "endpoint": "/v1/completions", "completion_window": "24h"} | fields
    with pytest.raises(openai.BadRequestError) as caught:
        running.red_client.post("/batches", body=asked, cast_to=object)
    assert caught.value.param == param


def test_uploads_that_cannot_be_are_refused(running: Running) -> None:
    headers = {"authorization": f"Bearer {running.texts['red']}"}
    url = f"{running.address}/v1/files"
    file = {"file": ("a.jsonl", b"{}")}
    assert httpx.post(url, headers=headers, files=file, data={"purpose": "fun"}).status_code == 400
    assert httpx.post(url, headers=headers, data={"purpose": "batch"}).status_code == 400
    broken = headers | {"content-type": "multipart/form-data; boundary=x"}
    assert httpx.post(url, headers=broken, content=b"--y nonsense").status_code == 400
    assert httpx.get(f"{url}/..%2Fsecret/content", headers=headers).status_code == 404


def test_what_is_planted_in_requests_is_in_no_log_no_metric_and_no_ledger(running: Running) -> None:
    prompt, header, tool, error, key, metadata, crash = (
        [s for s in SECRETS if f"-{kind}-" in s]
        for kind in ("prompt", "header", "tool", "error", "key", "metadata", "crash")
    )
    client = running.red_client
    for text in prompt:
        chat(client, running.model, f"My word is {text}.")
    for text in header:
        httpx.get(f"{running.address}/v1/models?api_key={text}", headers={"x-secret": text, "cookie": text})
    for text in tool:
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model=running.model,
                messages=[{"role": "user", "content": "Hi"}],
                tools=[{"type": "function", "function": {"name": text, "parameters": {"x": text}}}],
            )
    for text in error:
        with pytest.raises(openai.APIStatusError):
            client.post("/chat/completions", body={"model": running.model, "messages": text}, cast_to=object)
        httpx.post(
            f"{running.address}/v1/{text}",
            headers={"authorization": f"Bearer {running.texts['red']}"},
            content=text,
        )
    for text in key:
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(
                base_url=f"{running.address}/v1", api_key=f"nw-0123456789ab-{text}", max_retries=0
            ).models.list()
    for text in metadata:
        client.chat.completions.create(
            model=running.model, max_tokens=2, messages=[{"role": "user", "content": "Hi"}], user=text,
            metadata={"note": text}, safety_identifier=text,
        )  # fmt: skip
    for text in crash:
        told_of_crash = crashed_at(running, text)
        assert "engine_failed" in told_of_crash and text not in told_of_crash
    kept = running.said() + "".join(json.dumps(row, default=str) for row in running.ledger.rows())
    with running.database.read() as session:
        for table in ("keys", "spending", "reservations"):
            kept += json.dumps(session.execute(f"SELECT * FROM {table}"))
    headers = {"authorization": f"Bearer {running.texts['red']}"}
    told = httpx.get(f"{running.address}/metrics", headers=headers)
    assert told.status_code == 403 and "team:blue" not in told.text, (
        "other teams' budgets are not for everybody"
    )
    headers = {"authorization": f"Bearer {running.operator_text}"}
    metrics = httpx.get(f"{running.address}/metrics", headers=headers).text
    assert 'vllm:generation_tokens_total{model_name="' in metrics
    assert 'negawatt_budget_spent{kind="tokens",owner="team:blue",period="day"}' in metrics
    kept += metrics
    assert [s for s in (*SECRETS, *running.texts.values()) if s in kept] == []
    for line in running.said().splitlines():
        json.loads(line)


def crashed_at(running: Running, text: str) -> str:
    """What a client is told whose worker aborts, as at a failed assertion in C, while it writes to a text."""
    with httpx.stream(
        "POST",
        f"{running.address}/v1/chat/completions",
        headers={"authorization": f"Bearer {running.texts['red']}"},
        json={
            "model": running.model, "stream": True, "max_tokens": 400, "ignore_eos": True,
            "messages": [{"role": "user", "content": f"Tell a story of {text}."}],
        },
        timeout=60,
    ) as answer:  # fmt: skip
        pieces = answer.iter_text()
        said = ""
        while not re.search('"content":"[^"]', said):  # before, it would only wait for another worker
            said += next(pieces)
        children = Path(f"/proc/{running.process.pid}/task").glob("*/children")
        for worker in {pid for file in children for pid in file.read_text().split()}:
            limits = Path(f"/proc/{worker}/limits").read_text()
            assert re.search(r"Max core file size +0 ", limits), "it would leave an image of what it knows"
            os.kill(int(worker), signal.SIGABRT)
        said += "".join(pieces)
    chat(running.red_client, running.model)  # waits until there is a worker again
    return said.rpartition("data: ")[2]


def test_a_revoked_key_is_refused_within_a_second(running: Running) -> None:
    key, text = running.keys.create("gone")
    headers = {"authorization": f"Bearer {text}"}
    url = f"{running.address}/v1/models"
    assert httpx.get(url, headers=headers).status_code == 200
    running.keys.revoke(key.id)
    revoked = asked = time.monotonic()
    while httpx.get(url, headers=headers).status_code != 401:
        assert asked - revoked < 1.0, "who asked a second later was let in"
        time.sleep(0.02)
        asked = time.monotonic()


def test_clients_that_leave_hold_nothing_and_the_ledger_is_whole(running: Running) -> None:
    running.account.put(Budget("team:red", Period("day"), requests=10_000))

    def leave() -> None:
        with httpx.stream(
            "POST",
            f"{running.address}/v1/chat/completions",
            headers={"authorization": f"Bearer {running.texts['red']}"},
            json={
                "model": running.model,
                "stream": True,
                "max_tokens": 400,
                "ignore_eos": True,
                "messages": [{"role": "user", "content": "Tell a long story."}],
            },
        ) as answer:
            next(answer.iter_raw())

    threads = [threading.Thread(target=leave) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    end = time.monotonic() + 20
    while running.account.uses(["team:red"])[0].held.requests:
        assert time.monotonic() < end, "a hold was left behind"
        time.sleep(0.05)
    assert running.ledger.verify().faults == ()
    outcomes = {receipt.outcome for receipt in running.ledger.receipts()}
    assert {"completed", "aborted", "warm-up"} <= outcomes
    for kind in ("red", "blue"):
        [use] = running.account.uses([f"team:{kind}"])
        charged = sum(r.energy.value_j or 0.0 for r in running.ledger.receipts() if r.team == kind)
        assert use.spent.joules == pytest.approx(charged)


def test_told_to_end_it_drains_and_what_it_sent_holds_no_prompt(
    running: Running, spans: tuple[str, list[bytes]]
) -> None:
    """The last test: it ends the server."""
    running.close()
    assert running.process.returncode == 0
    sent = b"".join(spans[1])
    assert b"gen_ai.usage.output_tokens" in sent
    assert [s for s in (*SECRETS, *running.texts.values()) if s.encode() in sent] == []
    assert running.account.uses(["team:red"])[0].held.requests == 0
    with running.database.read() as session:
        assert session.execute("SELECT id FROM servers") == []
    connections = running.folder / "connections"
    assert len(connections.with_suffix(".watched").read_text().split()) >= 2, "server and worker"
    assert not connections.exists(), connections.read_text()
