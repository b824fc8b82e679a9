"""Tools as clients see them: forced calls whose arguments fit, and free ones read from what was written."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from negawatt.serve.admission import Refused
from negawatt.serve.calls import CallForm, Calls, CallStream, form_of
from negawatt.serve.fields import Fields
from negawatt.serve.messages import messages_of
from negawatt.serve.tools import tools_of

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"enum": [1, 3, 7]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "description": "What time it is."}}
ROME = [{"role": "user", "content": "What will the weather be in Rome?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **changes: Any) -> Any:
    options = {"model": "large", "messages": ROME, "max_tokens": 80, "temperature": 0}
    return client.chat.completions.create(**{**options, "tools": [WEATHER, CLOCK], **changes})


def is_weather(arguments: str) -> bool:
    told = json.loads(arguments)
    return set(told) == {"city", "days"} and isinstance(told["city"], str) and told["days"] in (1, 3, 7)


def test_a_named_function_is_called_with_arguments_that_fit(client: openai.OpenAI) -> None:
    answer = ask(client, tool_choice=NAMED)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather"
    assert call.id.startswith("call_") and is_weather(call.function.arguments)
    pieces = list(ask(client, tool_choice=NAMED, stream=True))
    deltas = [p.choices[0].delta.tool_calls[0] for p in pieces if p.choices[0].delta.tool_calls]
    assert deltas[0].function.name == "get_weather" and deltas[0].id and len(deltas) > 3
    assert "".join(d.function.arguments for d in deltas) == call.function.arguments
    assert pieces[-1].choices[0].finish_reason == "tool_calls"
    assert not any(p.choices[0].delta.content for p in pieces)


def test_a_required_call_is_one_of_those_offered(client: openai.OpenAI) -> None:
    for seed in range(3):
        answer = ask(client, tool_choice="required", temperature=1.5, seed=seed, max_tokens=120)
        if answer.choices[0].finish_reason == "length":
            continue
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name in ("get_weather", "get_time")
        assert call.function.arguments == "{}" or is_weather(call.function.arguments)
    short = ask(client, tool_choice=NAMED, max_tokens=16).choices[0]
    assert short.finish_reason == "length"


def test_what_the_model_writes_by_itself_is_read(client: openai.OpenAI) -> None:
    """Shown how in the conversation, it does as before."""
    shown: list[Any] = []
    for city in ("Oslo", "Bern", "Cairo"):
        call = {"id": f"call_{city}", "type": "function"}
        function = {"name": "get_weather", "arguments": json.dumps({"city": city, "days": 3})}
        shown += [
            {"role": "user", "content": f"What will the weather be in {city}?"},
            {"role": "assistant", "content": None, "tool_calls": [{**call, "function": function}]},
            {"role": "tool", "tool_call_id": f"call_{city}", "content": "sun"},
            {"role": "assistant", "content": f"Sun in {city}."},
        ]
    answer = ask(client, messages=[*shown, *ROME]).choices[0]
    assert answer.finish_reason == "tool_calls", answer.message
    (call,) = answer.message.tool_calls
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] == "Rome"
    pieces = list(ask(client, messages=[*shown, *ROME], stream=True))
    deltas = [c for p in pieces for c in p.choices[0].delta.tool_calls or []]
    assert [d.function.arguments for d in deltas] == [call.function.arguments]
    plain = ask(client, tool_choice="none").choices[0]
    assert plain.message.tool_calls is None and plain.message.content


def test_langchain_binds_tools(address: str) -> None:
    @tool
    def get_weather(city: str, unit: Literal["C", "F"]) -> str:
        """The weather at a place."""
        return f"{city} {unit}"

    chat = ChatOpenAI(model="large", base_url=f"{address}/v1", api_key="none", temperature=0, max_tokens=120)
    answer = chat.bind_tools([get_weather], tool_choice="get_weather").invoke("What is it like in Rome?")
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather" and call["args"]["unit"] in ("C", "F")
    assert get_weather.invoke(call["args"]).endswith(call["args"]["unit"])


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"model": "small"}, "tools"),  # its own template has no place for them
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [{"role": "tool", "content": "sun"}]}, "messages[0].tool_call_id"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    client: openai.OpenAI, changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **changes)
    assert caught.value.body["param"] == param


def test_arguments_that_nothing_fits_are_a_bad_request(client: openai.OpenAI) -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"not": {"type": "object"}}}}
    with pytest.raises(openai.BadRequestError, match="not"):
        ask(client, tools=[odd], tool_choice="required")


# -- reading what was written --------------------------------------------------------------------------


def calls(form: CallForm, **changes: Any) -> Calls:
    tools = tools_of(Fields({"tools": [WEATHER, CLOCK], **changes}))
    assert tools is not None
    return Calls(tools, form)


HERMES = form_of("… <tool_call> …")
CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("form", "text", "content", "names"),
    [
        (HERMES, CALL, None, ["get_time"]),
        (HERMES, f"Let me see. {CALL}\n{CALL}", "Let me see.", ["get_time", "get_time"]),
        (HERMES, CALL.removesuffix("</tool_call>"), None, ["get_time"]),
        (HERMES, '<tool_call>[{"name": "get_time"}]</tool_call>', None, ["get_time"]),
        (HERMES, "<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        (HERMES, '<tool_call>{"name": "unknown"}</tool_call>', None, []),
        (HERMES, "Nothing to call.", "Nothing to call.", []),
        (CallForm(), ' {"name": "get_time", "arguments": {}} ', None, ["get_time"]),
        (CallForm(), '{"answer": 5}', '{"answer": 5}', []),
        (
            CallForm(arguments="parameters"),
            '{"name": "get_time", "parameters": {"a": 1}}',
            None,
            ["get_time"],
        ),
    ],
)
def test_calls_are_told_from_text(form: CallForm, text: str, content: str | None, names: list[str]) -> None:
    said, found = calls(form).read(text)
    assert [call.name for call in found] == names and said == (content if names or content else text)
    alone = calls(form, parallel_tool_calls=False).read(text)[1]
    assert [call.name for call in alone] == names[:1]


@given(
    pieces=st.lists(
        st.sampled_from(["Sun ", "<", "<tool", "{", '"a"', "\n", CALL, "<tool_call>"]), max_size=7
    ),
    form=st.sampled_from([HERMES, CallForm()]),
    cut=st.integers(1, 9),
)
def test_a_stream_says_what_the_whole_says(pieces: list[str], form: CallForm, cut: int) -> None:
    text = "".join(pieces)
    stream = CallStream(calls(form))
    deltas = [d for at in range(0, len(text), cut) for d in stream.push(text[at : at + cut])]
    deltas += list(stream.finish())
    content, found = calls(form).read(text)
    told = [call["function"] for d in deltas for call in d.get("tool_calls", [])]
    assert told == [call.to_json()["function"] for call in found] and stream.called == bool(found)
    streamed = "".join(d.get("content", "") for d in deltas)
    assert streamed.strip() == (content or "").strip() if found else streamed == text


@given(
    arguments=st.sampled_from(["{}", '{"city": "Rome}", "days": 3}', '{"city": "<']), cut=st.integers(1, 60)
)
def test_a_forced_call_is_streamed_without_its_frame(arguments: str, cut: int) -> None:
    """Whole, or cut off within its arguments."""
    forced = calls(HERMES, tool_choice="required")
    text = forced.prefix("get_weather") + arguments + (forced.suffix if arguments.endswith("}") else "")
    stream = CallStream(forced)
    deltas = [d for at in range(0, len(text), cut) for d in stream.push(text[at : at + cut])]
    deltas += list(stream.finish())
    functions = [d["tool_calls"][0]["function"] for d in deltas]
    assert functions[0]["name"] == "get_weather" and "".join(f["arguments"] for f in functions) == arguments
    assert [call.arguments for call in forced.read(text)[1]] == [arguments]


def test_earlier_calls_come_to_the_template_as_objects() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}
    (message,) = messages_of(Fields({"messages": [{"role": "assistant", "tool_calls": [call]}]}))
    assert message["content"] == "" and message["tool_calls"][0]["function"]["arguments"] == {"x": [1]}
    call["function"] = {"name": "f", "arguments": "{"}
    with pytest.raises(Refused, match="must be JSON"):
        messages_of(Fields({"messages": [{"role": "assistant", "tool_calls": [call]}]}))
