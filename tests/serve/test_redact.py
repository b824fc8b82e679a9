"""Personal data is struck out where its check holds, and other numbers are left alone; logs hold neither."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import time
from typing import Any

import pytest

from negawatt.errors import UsageError
from negawatt.serve.log import JsonFormatter
from negawatt.serve.redact import KINDS, PatternRedactor, luhn, redact

FOUND = {
    "EMAIL": ["jane.doe+news@mail.example.co.uk", "müller@büro.example"],
    "PHONE": ["+49 30 1234567", "+1 (415) 555-0132", "(415) 555-0132", "415-555-0132", "+33 6 12 34 56 78"],
    "IBAN": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "fr1420041010050500013m02606"],
    "CARD": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005", "3782 822463 10005"],
    "IP": ["192.168.10.254", "2001:db8::8a2e:370:7334", "fe80::1"],
    "NATIONAL_ID": [
        *("219-09-9999", "86095742719", "44051401359", "85.07.30-033.28", "12345678Z", "X1234567L"),
        *("131052-308T", "RSSMRA85T10A562S", "2 55 08 14 168 025 38"),
    ],
}
LEFT = [
    "it costs 1,234.56 euros, order 4111111111111112",  # fails Luhn
    "DE89 3704 0044 0532 0130 01 is no account",
    "version 1.2.3.4.5 of 2026-03-14 15:09:26",
    "999.1.1.1, and 12:30:45 on the clock",
    "000-12-3456 and 666-12-3456",
    "12345678A",
    "131052-308U",
    "86095742718 and 12345678901",
    "f(x)::y a::b std::vector",
    "user@localhost, @handle, a@b",
    "1234567890123456789012345",
]


@pytest.mark.parametrize(("kind", "text"), [(k, t) for k, texts in FOUND.items() for t in texts])
def test_what_is_personal_is_struck_out(kind: str, text: str) -> None:
    redacted, found = PatternRedactor().text(f"Reach me: {text}, please.")
    assert redacted == f"Reach me: [{kind}], please."
    assert dict(found) == {kind: 1}


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_it_is_left(text: str) -> None:
    assert PatternRedactor().text(text) == (text, {})


def test_kinds_can_be_chosen() -> None:
    text = "jane@example.org at 192.0.2.1"
    assert PatternRedactor(("IP",)).text(text)[0] == "jane@example.org at [IP]"
    with pytest.raises(UsageError, match="NAME"):
        PatternRedactor(("NAME",))
    assert set(FOUND) == set(KINDS)


def test_luhn_is_the_standard_s() -> None:
    assert [n for n in range(10) if luhn(f"7992739871{n}")] == [3]


REQUEST: dict[str, Any] = {
    "model": "jane@example.org",
    "messages": [
        {"role": "user", "content": "I am jane@example.org"},
        {"role": "user", "content": [{"type": "text", "text": "or jane@example.org"}]},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": '{"to": "jane@example.org"}'}}]},
    ],
    "max_tokens": 5,
    "stop": None,
}


def test_a_request_is_redacted_wherever_a_text_is() -> None:
    redacted = redact(REQUEST, PatternRedactor())
    assert redacted.found == {"EMAIL": 3}
    assert redacted.value["model"] == REQUEST["model"], "it steers, and names a model"
    assert "jane" not in json.dumps(redacted.value["messages"])
    assert json.loads(redacted.value["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {
        "to": "[EMAIL]"
    }
    assert redacted.value["max_tokens"] == 5


@pytest.mark.parametrize(
    "text",
    [
        "1" * 50_000,
        "+1 " * 20_000,
        "a." * 30_000 + "@",
        "A1 " * 20_000,
        "::" * 20_000,
        "1-" * 30_000,
        "a@" + "b." * 30_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    begun = time.thread_time()
    PatternRedactor().text(text)
    assert time.thread_time() - begun < 3


PRESIDIO = """
import socket, sys
sys.modules |= {"torch": None, "transformers": None}  # an installation without them: neither is needed
def forbidden(*_, **__):
    raise AssertionError("a connection was asked for")
socket.socket.connect = socket.getaddrinfo = forbidden
from negawatt.serve.redact import PresidioRedactor
print(*PresidioRedactor().text("Card 4111 1111 1111 1111 of jane@example.org, from 192.0.2.1."))
"""


def test_presidio_finds_patterns_without_a_model_or_the_network() -> None:
    done = subprocess.run([sys.executable, "-c", PRESIDIO], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Card [CREDIT_CARD] of [EMAIL], from [IP_ADDRESS]."), done.stderr
    assert "'CREDIT_CARD': 1" in done.stdout


# -- logs ----------------------------------------------------------------------------------------------


def logged(logger: str = "negawatt.test", **record: Any) -> dict[str, Any]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    teller = logging.Logger(logger)
    teller.addHandler(handler)
    teller.error(**record)
    [line] = stream.getvalue().splitlines()
    return dict(json.loads(line))


def test_a_line_is_json_with_the_fields_it_may_have() -> None:
    line = logged(msg="done", extra={"model": "small", "output_tokens": 3, "prompt": "my diary"})
    assert (line["message"], line["model"], line["output_tokens"], line["level"]) == (
        "done",
        "small",
        3,
        "error",
    )
    assert "diary" not in json.dumps(line)


@pytest.mark.parametrize(
    "secret",
    [
        "nw-0123456789ab-" + "s3cr3t" * 8,
        "Bearer s3cr3t",
        "sk-s3cr3t-s3cr3t",
        "postgresql://me:s3cr3t@host/name",
        "https://host/?api_key=s3cr3t&x=1",
        "password=s3cr3t",
    ],
)
def test_secrets_are_struck_out_of_messages_fields_and_errors(secret: str) -> None:
    line = logged(msg=f"got {secret} here\nand more", extra={"path": secret})
    assert "s3cr3t" not in json.dumps(line)
    assert line["message"].startswith("got ") and line["message"].endswith("more")


def test_an_error_is_told_by_kind_and_place_not_by_its_words() -> None:
    try:
        json.loads('{"my diary": ')
    except ValueError as exc:
        line = logged(msg="failed", exc_info=exc)
    assert "diary" not in json.dumps(line)
    assert line["exception"]["kind"] == "JSONDecodeError"
    assert "test_redact.py" in line["exception"]["at"][0]
    assert logged(msg="failed", exc_info=UsageError("n is 1"))["exception"]["message"] == "n is 1"


def test_a_library_is_told_of_without_its_words() -> None:
    line = logged("python_multipart.multipart", msg="expected boundary, got my diary")
    assert "diary" not in json.dumps(line)
    assert line["logger"] == "python_multipart.multipart"
    assert "test_redact" in line["message"]
