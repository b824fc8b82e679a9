"""``/v1/embeddings`` as its clients see it, against vectors that transformers computes, and what it costs."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from numpy.typing import NDArray

from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine import Settings
from negawatt.engine.batching import Job
from negawatt.engine.encoding import Encoding
from negawatt.engine.transformers import TransformersBackend
from negawatt.serve import Caller, OpenGate, Receipt, Refused
from negawatt.serve.budget import Budget, Period, Spending, Step, Use, decide
from negawatt.serve.model import ServedModel
from negawatt.serve.options import ModelOptions
from negawatt.serve.server import Server
from negawatt.testing.small_models import TEXT, small_model

TEXTS = [sentence.strip() for sentence in TEXT.replace("\n", " ").split(".") if sentence.strip()]


@pytest.fixture(scope="module")
def minilm() -> Artifact:
    return Artifact.open("minilm-l6")


@pytest.fixture(scope="module")
def expected(minilm: Artifact) -> NDArray[np.float64]:
    """By definition: the mean of a text's last hidden states, to length 1."""
    import torch
    import transformers

    encoder = transformers.AutoModel.from_pretrained(minilm.path).eval()
    spell = transformers.AutoTokenizer.from_pretrained(minilm.path)
    found = []
    for text in TEXTS:
        with torch.inference_mode():
            states = encoder(**spell(text, return_tensors="pt")).last_hidden_state[0].double().numpy()
        found.append(states.mean(axis=0) / np.linalg.norm(states.mean(axis=0)))
    return np.array(found)


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_the_official_client_gets_the_library_s_vectors(
    client: openai.OpenAI, expected: NDArray[np.float64]
) -> None:
    answer = client.embeddings.create(model="minilm", input=TEXTS)  # the client asks for base64
    np.testing.assert_allclose([entry.embedding for entry in answer.data], expected, atol=1e-5)
    assert [entry.index for entry in answer.data] == list(range(len(TEXTS)))
    plain = client.embeddings.create(model="minilm", input=TEXTS[2], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, expected[2], atol=1e-5)


def test_token_ids_and_texts_say_the_same(
    address: str, minilm: Artifact, expected: NDArray[np.float64]
) -> None:
    ids = [minilm.tokenizer.encode(text, add_special=True) for text in TEXTS[:2]]
    body = {"model": "minilm", "input": ids, "encoding_format": "base64"}
    told = httpx.post(f"{address}/v1/embeddings", json=body).json()
    raw = [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in told["data"]]
    np.testing.assert_allclose(raw, expected[:2], atol=1e-5)
    assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] == sum(map(len, ids))


def test_all_joules_of_a_receipt_are_prefill(client: openai.OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(model="minilm", input=TEXTS)
    receipt = Receipt.from_json(raw.parse().usage.to_dict()["energy"])
    assert receipt.outcome == "completed" and receipt.output_tokens == 0 and receipt.cpu_s > 0
    assert receipt.prefill.value_j and receipt.prefill.value_j > 0 and receipt.decode == Energy.zero()
    assert receipt.first_token_s is None and receipt.carbon is not None and receipt.carbon.value
    assert float(raw.headers["x-negawatt-energy-j"]) == pytest.approx(receipt.energy.value_j, rel=1e-4)
    assert raw.headers["x-request-id"] == receipt.id


def test_many_at_once_get_their_own(address: str, expected: NDArray[np.float64]) -> None:
    async def together() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as many:
            asked = [TEXTS[n % len(TEXTS) :] for n in range(20)]
            return await asyncio.gather(*(many.embeddings.create(model="minilm", input=a) for a in asked))

    for number, answer in enumerate(asyncio.run(together())):
        found = [entry.embedding for entry in answer.data]
        np.testing.assert_allclose(found, expected[number % len(TEXTS) :], atol=1e-5)


def test_langchain_embeds_documents(address: str, expected: NDArray[np.float64]) -> None:
    maker = OpenAIEmbeddings(
        model="minilm", base_url=f"{address}/v1", api_key="none", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(maker.embed_documents(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"input": ""}, "input", "empty"),
        ({"input": []}, "input", "must be a string"),
        ({"input": ["a", 5]}, "input", "must be a string"),
        ({"input": [[10**6]]}, "input", "token ids of this model"),
        ({"input": "word " * 300}, "input", "maximum context length is 256"),
        ({"input": ["a"] * 2049}, "input", "2048"),
        ({"dimensions": 64}, "dimensions", "not trained"),
        ({"encoding_format": "int8"}, "encoding_format", "base64"),
        ({"colour": "red"}, "colour", "unrecognized"),
        ({"model": "small"}, "model", "writes text"),
    ],
)
def test_errors_come_in_openais_form(address: str, changes: dict[str, Any], param: str, said: str) -> None:
    answer = httpx.post(f"{address}/v1/embeddings", json={"model": "minilm", "input": "a", **changes})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and said in error["message"]
    words = {"model": "minilm", "messages": [{"role": "user", "content": "Hello"}]}
    assert httpx.post(f"{address}/v1/chat/completions", json=words).json()["error"]["param"] == "model"


# -- within one process, on small models --------------------------------------------------------------


class Till(OpenGate):
    """Lets everybody in, and keeps what nobody reserved."""

    def __init__(self) -> None:
        self.beside: list[Receipt] = []

    def charge(self, receipt: Receipt) -> None:
        self.beside.append(receipt)


@asynccontextmanager
async def embedding(folder: Path, pooling: str = "default") -> AsyncIterator[tuple[Server, Till]]:
    settings = Settings("transformers", batch=4, threads=1, weight_format="fp32", pooling=pooling)
    till = Till()
    options = ModelOptions(settings)
    server = Server([ServedModel("small", Artifact.open(folder), options, till.charge)], till)
    await server.start()
    try:
        yield server, till
    finally:
        await server.stop()


async def ask(server: Server, **body: Any) -> dict[str, Any]:
    return await server.answer(Caller(), "/v1/embeddings", {"model": "small", **body})


def test_receipts_of_a_writer_that_embeds_add_up(tmp_path: Path) -> None:
    """With its warm-up, a list given up half-way, and the rest as idle time: all that the process spent.

    Its vectors may be cut, since it says that it was trained for that.
    """
    folder = small_model(tmp_path / "llama", "llama", matryoshka_dimensions=[16, 32])

    async def spend() -> None:
        async with embedding(folder, "lasttoken") as (server, till):
            model = server.models["small"]
            receipts: list[Receipt] = []
            model.listeners.append(receipts.append)
            assert model.cost is not None and model.cost.request_cpu_s(100, 0, 1) > 0
            leaving = asyncio.create_task(ask(server, input=[f"Leaver {n}" for n in range(2000)]))
            short = await asyncio.wait_for(ask(server, input=TEXTS), 60)  # it is not waited for
            assert not leaving.done() and len(short["data"]) == len(TEXTS)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            last = await ask(server, input=TEXTS[0])
            np.testing.assert_allclose(last["data"][0]["embedding"], short["data"][0]["embedding"], atol=1e-5)
            whole = last["data"][0]["embedding"]
            part = (await ask(server, input=TEXTS[0], dimensions=16))["data"][0]["embedding"]
            np.testing.assert_allclose(part, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)
            with pytest.raises(Refused, match="16, 32"):
                await ask(server, input=TEXTS[0], dimensions=20)
            assert model._worker is not None
            spent_s = sum(map(float, process_times(model._worker.pid)))
            model.write_idle("idle")
            asked = [r for r in receipts if r.outcome not in ("idle", "warm-up")]
            assert {r.outcome for r in asked} == {"completed", "aborted"}
            told_s = sum(r.cpu_s for r in (*asked, *till.beside))
            assert told_s == pytest.approx(spent_s, abs=0.1)

    asyncio.run(spend())


def process_times(pid: int) -> list[float]:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return [int(fields[n]) / os.sysconf("SC_CLK_TCK") for n in (11, 12)]


def test_requests_take_turns(tmp_path: Path) -> None:
    """A long list does not keep a short one waiting, and texts of a step are of similar length."""
    backend = TransformersBackend(Settings("transformers", batch=4, threads=1, weight_format="fp32"))
    backend.load(small_model(tmp_path / "bert", "bert"))
    encoding = Encoding(backend, 4, step_tokens=64)
    for number in range(40):
        encoding.submit(Job(number, [5] * (1 + number % 9), 0, after=0))
    for number in (100, 101):
        encoding.submit(Job(number, [7] * 30, 0, after=100))
    first = encoding.step()
    assert [part.job >= 100 for part in first.parts] == [False, True]  # 2 × 30 tokens are all that fits
    encoding.cancel(100)
    done = [job for job, _ in first.embedded]
    while encoding.busy:
        report = encoding.step()
        longest = max(part.fed for part in report.parts)
        assert longest * len(report.parts) <= 64
        done += [job for job, _ in report.embedded]
    assert sorted(done) == [*range(40), 101]


def test_no_other_model_s_vectors_near_a_budget_s_end() -> None:
    budget = Budget("server", Period("day"), tokens=100.0, steps=(Step(0.5, "smaller", model="tiny"),))
    use = Use(budget, Spending(tokens=60.0), Spending())

    def price(model: str, tokens: int) -> Spending:
        return Spending(tokens=float(tokens))

    assert decide([use], "big", 5, price, deferred=False).model == "tiny"
    assert decide([use], "big", 5, price, deferred=False, fixed=True).model == "big"
