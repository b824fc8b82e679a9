"""The API as its clients see it: the official one, LangChain's, and curl, on the real model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI
from running_server import NEGAWATT, serving

from negawatt.artifact import Artifact
from negawatt.serve import Receipt
from negawatt.serve.openapi import document

NAME = "smollm2-135m-instruct"
FRANCE = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
COUNT = [{"role": "user", "content": "Count from one to twenty, in words."}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def address(model: Artifact, place: Path) -> Iterator[str]:
    options = (
        "--batch",
        "6",
        "--max-context",
        "512",
        "--no-warm-up",
        "--intensity",
        "DE",
        "--price",
        "EUR:0.3",
    )
    with serving(place, NAME, *options) as (where, _):
        yield where


@pytest.fixture(scope="module")
def log(address: str, place: Path) -> Path:
    """What the server says on standard error."""
    return place / "log"


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    options = {"model": NAME, "messages": FRANCE, "max_tokens": 12, "temperature": 0}
    return client.chat.completions.create(**{**options, **changes})


def test_an_answer_carries_its_receipt(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=NAME, messages=FRANCE, max_tokens=12, temperature=0
    )
    answer = raw.parse()
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    usage = answer.usage.to_dict()
    receipt = Receipt.from_json(usage["energy"])
    assert receipt.id == answer.id and receipt.outcome == "completed" and receipt.boundary == "chip"
    assert usage["prompt_tokens"] == receipt.input_tokens > 20
    assert usage["completion_tokens"] == receipt.output_tokens <= 12
    assert receipt.cpu_s > 0 and receipt.energy.value_j is not None and receipt.energy.value_j > 0
    parts = [receipt.prefill.value_j, receipt.decode.value_j, receipt.idle.value_j]
    assert sum(part or 0 for part in parts) == pytest.approx(usage["energy"]["value_j"])
    assert all(part and part > 0 for part in parts)
    assert receipt.carbon is not None and receipt.carbon.unit == "gCO2e" and receipt.carbon.value
    assert receipt.cost is not None and receipt.cost.unit == "EUR" and receipt.water is None
    assert float(raw.headers["x-negawatt-energy-j"]) == pytest.approx(receipt.energy.value_j, rel=1e-4)
    assert raw.headers["x-request-id"] == answer.id


def test_a_stream_says_the_same_and_ends_with_the_receipt(client: openai.OpenAI) -> None:
    whole = ask(client, messages=COUNT)
    chunks = list(ask(client, messages=COUNT, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == [] and all(c.usage is None for c in chunks[:-1])
    assert Receipt.from_json(chunks[-1].usage.to_dict()["energy"]).output_tokens == 12
    assert len({c.id for c in chunks}) == 1
    plain = list(ask(client, messages=COUNT, stream=True))
    assert plain[-1].choices[0].finish_reason == "length"
    assert Receipt.from_json(plain[-1].to_dict()["energy"]).output_tokens == 12


def test_many_at_once_get_what_they_get_alone(address: str, client: openai.OpenAI) -> None:
    questions = [[{"role": "user", "content": f"Write the number {n} in words."}] for n in range(15)]
    asked = [ask(client, messages=question, max_tokens=6) for question in questions]
    alone = [answer.choices[0].message.content for answer in asked]
    assert len(set(alone)) >= 8, "answers that are alike could be mixed up unseen"

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as many:

            async def one(number: int) -> str:
                options: Any = {"model": NAME, "messages": questions[number], "max_tokens": 6}
                if number % 2:
                    found = await many.chat.completions.create(**options, temperature=0)
                    return str(found.choices[0].message.content)
                text = ""
                async for chunk in await many.chat.completions.create(**options, temperature=0, stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text

            return await asyncio.gather(*map(one, range(15)))

    # Sums in another order may turn a near tie, though seldom; a mixed-up answer would agree with none.
    agree = sum(a == b for a, b in zip(asyncio.run(together()), alone, strict=True))
    assert agree >= 13


def test_seeds_choices_and_probabilities(client: openai.OpenAI) -> None:
    drawn = {"temperature": 1.5, "seed": 11, "n": 3, "logprobs": True, "top_logprobs": 2, "max_tokens": 6}
    one, two = ask(client, **drawn), ask(client, **drawn)
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in two.choices]
    assert len(set(texts)) > 1 and [choice.index for choice in one.choices] == [0, 1, 2]
    assert one.usage.completion_tokens == sum(len(c.logprobs.content) for c in one.choices)
    for choice in one.choices:
        pieces = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
        assert pieces.decode(errors="replace") == choice.message.content
        assert all(len(e.top_logprobs) == 2 and e.logprob <= 0 for e in choice.logprobs.content)
        assert all(e.top_logprobs[0].logprob >= e.logprob - 1e-6 for e in choice.logprobs.content)
    other = ask(client, **{**drawn, "seed": 12})
    assert texts != [choice.message.content for choice in other.choices]


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    whole = ask(client, messages=COUNT, max_tokens=24).choices[0].message.content
    stop = whole[8:12]
    cut = ask(client, messages=COUNT, max_tokens=24, stop=[stop, "never this"])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 24
    chunks = list(ask(client, messages=COUNT, max_tokens=24, stop=stop, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole[: whole.index(stop)]


def test_completions_take_texts_and_tokens(client: openai.OpenAI, model: Artifact) -> None:
    text = "One, two, three, four, five,"
    options: Any = {"model": NAME, "max_tokens": 6, "temperature": 0}
    first = client.completions.create(prompt=text, **options)
    tokens = client.completions.create(prompt=model.tokenizer.encode(text), **options)
    assert first.choices[0].text == tokens.choices[0].text and " six" in first.choices[0].text
    several = client.completions.create(prompt=[text, "A, B, C,"], n=2, echo=True, **options)
    assert [c.text.startswith(p) for c, p in zip(several.choices, [text] * 2 + ["A, B, C,"] * 2, strict=True)]
    assert [c.index for c in several.choices] == [0, 1, 2, 3]
    told = client.completions.create(prompt=text, logprobs=2, **options).choices[0]
    assert told.logprobs.tokens and "".join(told.logprobs.tokens) == told.text
    assert told.logprobs.text_offset[1] == len(told.logprobs.tokens[0])


def test_a_prompt_that_was_read_before_costs_less(client: openai.OpenAI) -> None:
    text = [{"role": "user", "content": "Kettles, boats and gulls by the harbour wall. " * 12}]
    first, again = (ask(client, messages=text, max_tokens=2).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens < 40
    assert again.prompt_tokens_details.cached_tokens == again.prompt_tokens - 1
    assert again.energy["prefill"]["value_j"] < 0.3 * first.energy["prefill"]["value_j"]


@pytest.mark.parametrize(
    ("changes", "kind", "param"),
    [
        ({"model": "nothing"}, openai.NotFoundError, "model"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"n": 0}, openai.BadRequestError, "n"),
        ({"max_tokens": 600}, openai.BadRequestError, "messages"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools"),
        ({"response_format": {"type": "yaml"}}, openai.BadRequestError, "response_format"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "logit_bias"),
        ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour"),
        ({"stop": [""]}, openai.BadRequestError, "stop"),
    ],
)
def test_errors_come_in_openais_form(
    client: openai.OpenAI, changes: dict[str, Any], kind: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        ask(client, **changes)
    assert caught.value.param == param and caught.value.body["message"]


def test_bodies_that_are_none_are_refused(address: str) -> None:
    url = f"{address}/v1/chat/completions"
    for body, status in ((b"{", 400), (b"[]", 400), (b"x" * (9 << 20), 413), (b"[" * 5000, 400)):
        answer = httpx.post(url, content=body)
        assert answer.status_code == status and answer.json()["error"]["message"]
    assert httpx.get(url).status_code == 405 and "allow" in httpx.get(url).headers
    assert httpx.get(f"{address}/nothing").json()["error"]["type"] == "invalid_request_error"
    vectors = httpx.post(f"{address}/v1/embeddings", json={"model": NAME, "input": "x"})
    assert vectors.status_code == 400 and vectors.json()["error"]["code"] == "unsupported_model"


def test_models_health_and_description(address: str, client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).to_dict()["max_model_len"] == 512
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert httpx.get(f"{address}/ready").json() == {"status": "ok", "reason": None}
    assert httpx.get(f"{address}/openapi.json").json() == json.loads(json.dumps(document()))


def test_curl(address: str) -> None:
    body = json.dumps({"model": NAME, "messages": FRANCE, "max_tokens": 4, "stream": True})
    done = subprocess.run(
        ["curl", "-sN", f"{address}/v1/chat/completions", "-H", "content-type: application/json", "-d", body],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    events = [line for line in done.stdout.splitlines() if line]
    assert all(event.startswith("data: ") for event in events) and events[-1] == "data: [DONE]"
    assert "energy" in json.loads(events[-2].removeprefix("data: "))


def test_langchain(address: str) -> None:
    chat = ChatOpenAI(model=NAME, base_url=f"{address}/v1", api_key="none", max_tokens=6, temperature=0)
    answer = chat.invoke("What is the capital of France?")
    assert answer.content and answer.response_metadata["token_usage"]["energy"]["value_j"] > 0
    pieces = list(chat.stream("What is the capital of France?"))
    assert "".join(str(piece.content) for piece in pieces) == answer.content


def test_a_client_that_leaves_is_not_written_for(address: str, client: openai.OpenAI, log: Path) -> None:
    stream = ask(client, messages=COUNT, max_tokens=400, stream=True, extra_body={"ignore_eos": True})
    while not next(iter(stream)).choices[0].delta.content:
        pass
    stream.close()
    body: Any = {"model": NAME, "messages": COUNT, "max_tokens": 400, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):  # this one leaves without a stream
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.5)
    assert ask(client, max_tokens=1).usage.completion_tokens == 1  # later than both, and served at once
    receipts = [json.loads(line) for line in log.read_text().splitlines() if '"receipt"' in line]
    aborted = [r["output_tokens"] for r in receipts if r["outcome"] == "aborted"]
    assert 1 <= len(aborted) <= 2 and max(aborted) < 400  # one that left the queue has no receipt


def test_told_to_end_it_finishes_what_is_under_way(model: Artifact, tmp_path: Path) -> None:
    with serving(tmp_path, NAME, "--no-warm-up", "--max-context", "512") as (address, process):
        worker = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = ask(worker, messages=COUNT, max_tokens=120, stream=True, extra_body={"ignore_eos": True})
        chunks = [next(iter(stream))]
        with standing_still(process.pid):
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 60
            while httpx.get(f"{address}/ready").status_code != 503:
                assert time.monotonic() < deadline
            with pytest.raises(openai.InternalServerError) as caught:
                ask(worker)
        assert caught.value.status_code == 503 and caught.value.code == "shutting_down"
        chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert Receipt.from_json(chunks[-1].to_dict()["energy"]).output_tokens == 120
        assert process.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    receipts = [line for line in lines if line["message"] == "receipt"]
    assert {line["outcome"] for line in receipts} == {"warm-up", "completed", "idle"}


def test_it_ends_though_its_database_is_broken(model: Artifact, tmp_path: Path) -> None:
    database = tmp_path / "serve.db"
    options = ("--no-warm-up", "--max-context", "512", "--database", str(database))
    with serving(tmp_path, NAME, *options) as (address, process):
        assert httpx.get(f"{address}/ready").status_code == 200
        with closing(sqlite3.connect(database, isolation_level=None)) as broken:
            broken.execute("DROP TABLE batches")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    log = (tmp_path / "log").read_text()
    assert "batches cannot be left to others now" in log and "Traceback" not in log


def test_told_to_end_while_it_loads_it_ends(model: Artifact, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NEGAWATT, "serve", NAME, "--threads", "1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 60
    while not _workers(process.pid):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    workers = _workers(process.pid)
    with standing_still(process.pid):
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "serving" not in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Its workers get no further meanwhile, however long what happens beside them takes."""
    workers = [int(worker) for worker in _workers(pid)]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    yield
    for worker in workers:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)


def _workers(pid: int) -> set[str]:
    """Engines' processes that it has started from any of its threads, and that run their own program.

    One stopped before it does would hold up the thread that starts it, which waits for that (``vfork``).
    """
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return {child for file in files for child in file.read_text().split() if _runs_engine(child)}


def _runs_engine(pid: str) -> bool:
    try:
        return b"negawatt.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0", "--no-keys"], "without keys"),
        (["--host", "0.0.0.0", "--keys"], "without TLS"),
        (["--engine", "nonesuch"], "no engine is called"),
        (["--intensity", "british"], "asks nobody on the network"),
    ],
)
def test_what_must_not_start_says_why(model: Artifact, options: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEGAWATT, "serve", NAME, *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_port_in_use_is_a_sentence(address: str) -> None:
    port = address.rsplit(":", 1)[1]
    with urllib.request.urlopen(f"{address}/health") as up:
        assert up.status == 200
    done = subprocess.run(
        [sys.executable, "-c", NEGAWATT, "serve", NAME, "--port", port],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ},
    )
    assert done.returncode == 1 and "choose another --port" in done.stderr
