"""Replicas on a real Ray cluster on loopback: they come with load, share a ledger, and one is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import serving

from negawatt.artifact import Artifact
from negawatt.database import Database
from negawatt.errors import NegawattError, UsageError
from negawatt.serve.config import ModelConfig, ServerConfig
from negawatt.serve.keys import server_secret
from negawatt.serve.launch import server_of
from negawatt.serve.ledger import ReceiptLedger
from negawatt.serve.replica import Origin
from negawatt.serve.replicas import Replicas
from ray_machines import machines

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Serve's own

CONFIG = """
replicas = "1..2"
scale_wait_s = 0.5
scale_up_s = 0.5
scale_down_s = 3.0
replica_w = 3.0

[[model]]
artifact = "smollm2-135m-instruct"
batch = 2
max_context = 192
warm_up = false
"""
NAME = "smollm2-135m-instruct"
QUICK = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.3",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.3",
    "RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR": "0.1",
}


@pytest.fixture(scope="module")
def cluster(model: Artifact) -> Iterator[str]:
    """Address of a cluster of one machine, which tells of itself more often than is usual."""
    with machines(QUICK) as made:
        yield made.address


@dataclass
class Seen:
    """What a client saw of one streamed answer."""

    replica: str
    events: list[dict[str, Any]]
    done: bool

    @property
    def error(self) -> dict[str, Any] | None:
        return self.events[-1].get("error") if self.events else None

    @property
    def receipt(self) -> dict[str, Any]:
        energy: dict[str, Any] = self.events[-1]["energy"]
        return energy


class Clients:
    """Some clients that ask for one stream after the other until they are told to stop."""

    def __init__(self, address: str, number: int, tokens: int, pause_s: float = 0.0) -> None:
        self._address, self._tokens, self._pause_s = address, tokens, pause_s
        self.seen: list[Seen] = []
        self.refused: list[httpx.Response] = []
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(n,)) for n in range(number)]
        for thread in self._threads:
            thread.start()

    def _ask_on(self, number: int) -> None:
        with httpx.Client(base_url=self._address, timeout=120) as client:
            while not self._stopping.is_set():
                self._ask(client, number)
                time.sleep(self._pause_s)

    def _ask(self, client: httpx.Client, number: int) -> None:
        with client.stream("POST", "/v1/completions", json=body(number, self._tokens, stream=True)) as answer:
            if answer.status_code != 200:
                answer.read()
                self.refused.append(answer)
                return
            found = Seen(answer.headers["x-negawatt-replica"], [], False)
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    found.done = True
                elif line:
                    found.events.append(json.loads(line.removeprefix("data: ")))
            self.seen.append(found)

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()


def body(number: int, tokens: int, **more: Any) -> dict[str, Any]:
    prompt = f"Bird number {number} is a"
    return {"model": NAME, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **more}


def until(said: str, holds: Any, most_s: float = 90.0) -> Any:
    """What `holds` gives as soon as it gives anything."""
    end = time.monotonic() + most_s
    while not (found := holds()):
        assert time.monotonic() < end, said
        time.sleep(0.1)
    return found


def replica_pids(doing: bytes = b"") -> list[int]:
    """Of Ray's processes that hold a replica, by the title that Ray gives them; what they do is in it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = file.read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::ServeReplica:negawatt-") and doing in title:
            found.append(int(file.parent.name))
    return found


def count(address: str) -> int:
    page = httpx.get(f"{address}/metrics", timeout=60).text
    match = re.search(r"^negawatt_replicas (\d+)$", page, re.MULTILINE)
    assert match is not None, page
    return int(match[1])


def test_replicas_come_with_load_and_go_without_and_one_may_die(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text(CONFIG)
    ledger_file, secret = tmp_path / "serve.db", tmp_path / "secret"
    shared = ("--database", f"sqlite:///{ledger_file}", "--secret-file", str(secret))
    options = ("--config", str(tmp_path / "server.toml"), "--ray", cluster, *shared)
    with serving(tmp_path, *options) as (address, process):
        charged = ask_as_of_one(address)

        clients = Clients(address, 8, 24)
        try:
            until("a second replica comes", lambda: len({s.replica for s in clients.seen}) == 2)
            before = len(clients.seen)
            working = until("one is at work", lambda: replica_pids(b".handle_request"))
            os.kill(working[0], signal.SIGKILL)
            until("somebody is told", lambda: any(not s.done for s in clients.seen) or clients.refused)
            until("the others go on", lambda: sum(s.done for s in clients.seen[before:]) > 8)
        finally:
            clients.stop()
        lost = [seen for seen in clients.seen if not seen.done]
        assert lost or clients.refused, "one was killed while it had work"
        assert len({seen.replica for seen in lost}) <= 1, "only what it had begun"
        for seen in lost:
            assert seen.error is not None and seen.error["code"] == "replica_unavailable", seen
        for refusal in clients.refused:
            assert refusal.status_code in (429, 503) and refusal.headers["retry-after"]
            assert refusal.json()["error"]["code"] in ("replica_unavailable", "queue_full", "overloaded")

        patient = Clients(address, 1, 2, 0.3)  # asks on while replicas are taken away
        try:
            until("one is enough again", lambda: count(address) == 1 and len(replica_pids()) == 1)
        finally:
            patient.stop()
        assert patient.seen and all(seen.done for seen in patient.seen) and not patient.refused
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    until("the replicas end with the server", lambda: not replica_pids())

    answered = [seen for seen in (*clients.seen, *patient.seen) if seen.done]
    charged |= {seen.receipt["receipt"]["id"]: seen.receipt["value_j"] for seen in answered}
    opened = Database(f"sqlite:///{ledger_file}")
    ledger = ReceiptLedger(opened, server_secret(secret))
    assert not ledger.verify().faults
    kept = {receipt.id: receipt.energy.value_j for receipt in ledger.receipts()}
    opened.close()
    assert len({seen.replica for seen in answered}) >= 2
    assert {id: kept[id] for id in charged} == pytest.approx(charged), "receipts of all are in one ledger"


def ask_as_of_one(address: str) -> dict[str, float]:
    """What a client notices is what it would notice of a server alone; joules by receipt."""
    with httpx.Client(base_url=address, timeout=120) as client:
        answer = client.post("/v1/completions", json=body(0, 4))
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-negawatt-replica"]
        energy = answer.json()["usage"]["energy"]
        wrong = client.post("/v1/completions", json={**body(0, 4), "model": "none"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
        large = client.post("/v1/completions", content=b" " * (2 << 20))
        assert large.status_code == 413 and large.json()["error"]["message"]
        assert client.get("/nothing").status_code == 404
        assert client.get("/ready").json()["status"] == client.get("/health").json()["status"] == "ok"
        page = client.get("/metrics").text
        assert re.search(r'^vllm:num_requests_running\{replica="\w+",model_name="', page, re.MULTILINE)
        with client.stream("POST", "/v1/completions", json=body(1, 150, stream=True)) as leaving:
            next(leaving.iter_lines())
        until("one who leaves frees its slot", lambda: not running(client))
    return {energy["receipt"]["id"]: energy["value_j"]}


def running(client: httpx.Client) -> float:
    page = client.get("/metrics").text
    return sum(map(float, re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", page, re.MULTILINE)))


def config(address: str, folder: Path, **more: Any) -> ServerConfig:
    return ServerConfig(
        (ModelConfig(NAME, threads=1),), ray=address, database=f"sqlite:///{folder / 'serve.db'}",
        secret_file=str(folder / "secret"), **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "nothing answers"),
        ("ray://127.0.0.1:1", "on a machine of the cluster"),
        ("http://x", "a Ray cluster is"),
    ],
)
def test_what_is_no_cluster_is_said_at_once(model: Artifact, tmp_path: Path, address: str, said: str) -> None:
    asked = config(address, tmp_path)
    server = server_of(asked)
    with pytest.raises(NegawattError, match=said):
        Replicas(server, asked)


def test_a_replica_refuses_to_be_another_server(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "a", tmp_path / "b"
    ours, theirs = config("auto", here), config("auto", elsewhere)
    origin = Origin.of(ours, shares_database=False)
    origin.check(ours)
    with pytest.raises(NegawattError, match=r"secret on .* is another one"):
        origin.check(theirs)
    far = Origin(origin.folder, "another machine", False, origin.seal)
    with pytest.raises(NegawattError, match="cannot be shared"):
        far.check(ours)
    Origin(origin.folder, "another machine", True, origin.seal).check(ours)
    assert server_secret(here / "secret").hex() not in repr(origin)
    with pytest.raises(UsageError, match="such as 2"):
        config("auto", here, replicas="many").check()
