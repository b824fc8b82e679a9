"""Cascades and ecos: who answers, what both tries cost, and what a calibration may claim."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from negawatt.carbon import CsvIntensity
from negawatt.energy import Energy
from negawatt.errors import Infeasible, UsageError
from negawatt.serve import Caller, OpenGate, Receipt
from negawatt.serve.budget import Budget, Period, Step
from negawatt.serve.calibration import Answered, calibrate, choose, proved
from negawatt.serve.cascade import CascadeConfig
from negawatt.serve.config import ModelConfig, ServerConfig
from negawatt.serve.eco import Eco, Level, intensity_of
from negawatt.serve.footprint import Footprint
from negawatt.serve.gate import KeyGate
from negawatt.serve.grid import Grid
from negawatt.serve.launch import name_more, served, server_of
from negawatt.serve.server import Server
from negawatt.workload import GenerateItem, Workload

FRANCE = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, model: str, **changes: Any) -> Any:
    options = {"messages": FRANCE, "max_tokens": 12, "temperature": 0}
    return client.chat.completions.create(model=model, **{**options, **changes})


def test_a_sure_answer_is_the_small_model_s(client: openai.OpenAI) -> None:
    answer = ask(client, "trusting")
    assert answer.model == "small" and "attempts" not in answer.usage.energy
    assert answer.choices[0].message.content == ask(client, "small").choices[0].message.content
    assert answer.choices[0].logprobs is None


def test_an_unsure_one_is_a_line_of_the_receipt(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="doubting", messages=FRANCE, max_tokens=12, temperature=0
    )
    answer = raw.parse()
    energy = answer.usage.to_dict()["energy"]
    own, (attempt,) = Receipt.from_json(energy), map(Receipt.from_json, energy["attempts"])
    assert answer.model == own.model == "large" and own.outcome == "completed"
    assert attempt.model == "small" and attempt.outcome == "escalated" and attempt.energy.value_j
    parts = [energy[part]["value_j"] for part in ("prefill", "decode", "idle")]
    assert energy["value_j"] == pytest.approx(sum(parts) + attempt.energy.value_j)
    assert energy["cpu_s"] > attempt.cpu_s > 0 and attempt.carbon is not None
    assert energy["carbon"]["value"] > attempt.carbon.value > 0
    assert float(raw.headers["x-negawatt-energy-j"]) == pytest.approx(energy["value_j"], rel=1e-4)


def test_both_ways_stream(client: openai.OpenAI) -> None:
    for name, model in (("trusting", "small"), ("doubting", "large")):
        pieces = list(ask(client, name, stream=True, stream_options={"include_usage": True}))
        text = "".join(p.choices[0].delta.content or "" for p in pieces if p.choices)
        assert text == ask(client, model).choices[0].message.content and pieces[0].model == model
        assert ("attempts" in pieces[-1].usage.energy) == (name == "doubting")


def test_what_the_small_model_cannot_do_goes_to_the_large_one(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "Kettles and boats. " * 100}]
    answer = ask(client, "trusting", messages=long, max_tokens=2)
    assert answer.model == "large" and "attempts" not in answer.usage.energy


def test_names_are_listed_and_the_grid_chooses(client: openai.OpenAI, address: str) -> None:
    listed = {entry["id"]: entry for entry in httpx.get(f"{address}/v1/models").json()["data"]}
    assert listed["doubting"]["cascade"] == {"small": "small", "large": "large", "threshold": 0.0}
    assert listed["thrifty"]["eco"]["levels"][0] == {"above": 20.0, "model": "small"}
    assert listed["minilm"]["embeds"] and not listed["small"]["embeds"]
    assert ask(client, "thrifty").model == "small"  # Germany's year lies between the two levels


def test_eco_follows_an_hourly_signal(tmp_path: Path) -> None:
    file = tmp_path / "grid.csv"
    hours = [(0, 100.0), (1, 250.0), (2, 450.0)]
    file.write_text("start,g_per_kwh\n" + "".join(f"2026-03-01T0{h}:00:00Z,{g}\n" for h, g in hours))
    grid = Grid(CsvIntensity(file))
    eco = Eco("thrifty", "full", (Level(200, "lean"), Level(400, "least")))
    noon = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    chosen = [eco.choice(intensity_of(grid, noon + 3600 * h + 60)) for h in range(3)]
    assert chosen == ["full", "lean", "least"]
    assert eco.choice(intensity_of(Grid(None), noon)) == eco.choice(None) == "full"
    for wrong in ({"name": "a", "model": "b", "levels": []}, {"name": "a", "model": "b"},
                  {"name": "a", "model": "b", "levels": [{"above": 1, "model": "c", "colour": "red"}]},
                  {"name": "a", "model": "b", "levels": [{"above": 2, "model": "c"}] * 2}):  # fmt: skip
        with pytest.raises(UsageError):
            Eco.of_toml(wrong, "server.toml [[eco]]")


# -- calibration -----------------------------------------------------------------------------------------


def answers(scores: Sequence[float], confidences: Sequence[float]) -> list[Answered]:
    return [Answered(s, c, Energy.measured(1.0, 0.1)) for s, c in zip(scores, confidences, strict=True)]


def test_a_threshold_lets_the_small_model_answer_what_it_knows() -> None:
    """It is right where it is sure, wrong elsewhere: half of the items are its own."""
    n = 400
    small = answers([1.0] * 200 + [0.0] * 200, [-0.1 - i / n for i in range(n)])
    large = answers([1.0] * n, [-0.1] * n)
    found = choose(small, large, 0.02, 0.95)
    assert found is not None and sum(found.alone) == 200 and found.difference.upper_one_sided <= 0.02
    assert found.threshold == small[199].confidence
    assert choose(small[200:], large[200:], 0.02, 0.95) is None
    with pytest.raises(Infeasible, match=r"at least 1\d\d"):
        proved("auto", small[200:], large[200:], 0.02, 0.95)


def test_a_wrong_proof_is_as_rare_as_it_says() -> None:
    """The small model loses a little more than is allowed wherever it answers; confidence tells nothing."""
    drawn = np.random.default_rng(7)
    n, limit, wrong = 300, 0.05, 0
    for _ in range(300):
        lost = drawn.random(n) < 1.02 * limit
        small = answers([0.0 if bad else 1.0 for bad in lost], list(-drawn.random(n)))
        found = choose(small, answers([1.0] * n, [0.0] * n), limit, 0.95)
        wrong += found is not None and sum(found.alone) == n
    assert wrong <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def questions(n: int) -> Workload:
    items = tuple(
        GenerateItem(f"q{k}", f"One, two, three, four, five. Item {k % 7}: one, two, three,", (" four,",), 2)
        for k in range(n)
    )
    return Workload("count", "", "", "", (), items, {"generate": "token_f1"})


CONFIG = """
[[model]]
artifact = "smollm2-135m-instruct"
name = "quick"
weights = "f16"
batch = 4
threads = 1
max_context = 128
warm_up = false

[[model]]
artifact = "smollm2-135m-instruct"
name = "slow"
batch = 4
threads = 1
max_context = 128
warm_up = false

[[cascade]]
name = "auto"
small = "quick"
large = "slow"
calibration = "FILE"
"""


def test_what_was_calibrated_is_served(model: object, tmp_path: Path, fresh_database: str) -> None:
    file = tmp_path / "auto.json"
    (tmp_path / "server.toml").write_text(CONFIG.replace("FILE", str(file)))
    config = ServerConfig.read(tmp_path / "server.toml", {"NEGAWATT_SERVE_DATABASE": fresh_database})
    with pytest.raises(UsageError, match="no calibration"):
        server_of(config)
    found = asyncio.run(calibrate(config, "auto", questions(24), most_drop=0.2)).to_json()
    assert found["drop"]["at_most"] <= found["drop"]["allowed"] == 0.2 and found["n"] == 24
    assert 0 < found["share_small"] <= 1 and found["threshold"] < 0
    small, large, both = (found[name] for name in ("small", "large", "both"))
    assert (
        0 < small["energy_per_item"]["value_j"] < both["energy_per_item"]["value_j"]
        or found["share_small"] == 1
    )
    assert large["quality"]["low"] <= large["quality"]["value"] <= large["quality"]["high"]
    file.write_text(json.dumps(found))
    server = server_of(config)
    assert server.cascades["auto"].threshold == found["threshold"]
    file.write_text(json.dumps({**found, "small": {**small, "model": large["model"]}}))
    with pytest.raises(UsageError, match="calibrate the cascade again"):
        server_of(config)
    server.gate.close()  # type: ignore[attr-defined]


@pytest.fixture
def fresh_database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'serve.db'}"


@pytest.mark.parametrize(
    ("cascade", "said"),
    [
        (CascadeConfig("auto", "a", "b"), "needs a calibration"),
        (CascadeConfig("auto", "a", "c", -1.0), "names c"),
        (CascadeConfig("a", "a", "b", -1.0), "two things are called a"),
        (CascadeConfig("auto", "a", "a", -1.0), "two models"),
        (CascadeConfig("auto", "a", "b", 2.0), "log-probability"),
    ],
)
def test_a_cascade_that_cannot_be_is_refused(pair: Server, cascade: CascadeConfig, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        name_more(pair, ServerConfig(cascades=(cascade,)))


@pytest.fixture(scope="module")
def pair(model: object) -> Server:
    """Two models that are not loaded."""
    named = [ModelConfig("smollm2-135m-instruct", name=name) for name in "ab"]
    return Server([served(config, lambda receipt: None, Footprint()) for config in named], OpenGate())


def test_near_a_budget_s_end_there_is_no_second_try(model: object, fresh_database: str) -> None:
    """What both may cost is held before; the large one's place is given back when it is not asked."""
    models = tuple(
        ModelConfig("smollm2-135m-instruct", name=n, batch=2, threads=1, max_context=256, warm_up=False)
        for n in ("quick", "slow")
    )
    cascades = (
        CascadeConfig("doubting", "quick", "slow", 0.0),
        CascadeConfig("trusting", "quick", "slow", -1e3),
    )
    server = server_of(ServerConfig(models, cascades, database=fresh_database))
    gate = server.gate
    assert isinstance(gate, KeyGate)
    steps = (Step(0.9, "smaller", model="quick"),)
    gate.account.put(Budget("server", Period("day"), tokens=300.0, requests=50.0, steps=steps))

    async def spend(server: Server) -> list[dict[str, Any]]:
        await server.start()
        try:
            body = {"messages": FRANCE, "max_tokens": 20, "temperature": 0}
            told = []
            for name in ("trusting", "doubting", "doubting", "doubting"):
                try:
                    answer = await server.answer(Caller(), "/v1/chat/completions", {"model": name, **body})
                    told.append(answer)
                except Exception as exc:  # noqa: BLE001 - what refuses is looked at
                    told.append({"model": str(exc)})
                gate.clerk.flush(5.0)
                (use,) = gate.account.uses()
                assert use.held.tokens == 0
            return told
        finally:
            await server.stop()

    told = asyncio.run(spend(server))
    assert [answer["model"] for answer in told[:2]] == ["quick", "slow"]
    (use,) = gate.account.uses()
    assert use.spent.requests == len([a for a in told if "usage" in a])
    assert use.spent.tokens <= 300 and "budget" in told[-1]["model"]
    gate.close()
