"""``response_format`` as clients see it: every answer parses and fits, streamed or not."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

SEA = [{"role": "user", "content": "Which bird stands on the harbour wall, and how many of them?"}]


class Sighting(BaseModel):
    """A bird that somebody saw."""

    bird: Literal["gull", "puffin", "tern"]
    count: int = Field(ge=0, le=999)
    words: list[Literal["grey", "loud"]] = Field(max_length=2)


def asked(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "sighting", "schema": schema, "strict": True}}


FORMAT = asked({**Sighting.model_json_schema(), "additionalProperties": False})


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    options = {"model": "small", "messages": SEA, "max_tokens": 200, "temperature": 0}
    return client.chat.completions.create(**{**options, **changes})


def test_answers_fit_the_schema_greedy_drawn_and_streamed(client: openai.OpenAI) -> None:
    whole = ask(client, response_format=FORMAT)
    Sighting.model_validate_json(whole.choices[0].message.content)
    assert whole.choices[0].finish_reason == "stop"
    drawn = ask(client, response_format=FORMAT, temperature=1.6, seed=5, n=4)
    for choice in drawn.choices:
        Sighting.model_validate_json(choice.message.content)
    assert {choice.finish_reason for choice in drawn.choices} == {"stop"}
    pieces = list(ask(client, response_format=FORMAT, stream=True))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content


def test_json_objects_and_what_runs_out_of_tokens(client: openai.OpenAI) -> None:
    answer = ask(client, response_format={"type": "json_object"}, max_tokens=60).choices[0]
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    assert answer.message.content.startswith("{")
    short = ask(client, response_format=FORMAT, max_tokens=3).choices[0]
    assert short.finish_reason == "length" and short.message.content.startswith("{")


def test_the_clients_own_helpers(client: openai.OpenAI, address: str) -> None:
    parsed = client.chat.completions.parse(
        model="small", messages=SEA, response_format=Sighting, max_tokens=200, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Sighting)
    chat = ChatOpenAI(model="small", base_url=f"{address}/v1", api_key="none", temperature=0, max_tokens=200)
    found = chat.with_structured_output(Sighting, method="json_schema").invoke("Which bird is it?")
    assert isinstance(found, Sighting)


def test_free_answers_beside_held_ones_stay_free(client: openai.OpenAI) -> None:
    alone = ask(client, max_tokens=12).choices[0].message.content
    assert not alone.startswith("{")
    held = ask(client, response_format=FORMAT)
    assert held.usage.energy["decode"]["value_j"] > 0
    assert ask(client, max_tokens=12).choices[0].message.content == alone


@pytest.mark.parametrize(
    ("response_format", "said"),
    [
        ({"type": "yaml"}, "json_schema"),
        ("json", "object"),
        ({"type": "json_schema"}, "object"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "name"),
        (asked({"type": "objec"}), "objec"),
        (asked({"type": "string", "pattern": "(("}), "regex"),
        ({"type": "json_object", "colour": "red"}, "colour"),
    ],
)
def test_a_bad_schema_is_a_bad_request(client: openai.OpenAI, response_format: Any, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, extra_body={"response_format": response_format})
    assert said in caught.value.body["message"] and caught.value.body["type"] == "invalid_request_error"
