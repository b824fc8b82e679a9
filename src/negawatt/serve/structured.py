"""What an answer has to look like: ``response_format`` as a grammar."""

from __future__ import annotations

from typing import Any

from negawatt.engine.grammar import json_grammar
from negawatt.errors import MissingDependency, UsageError
from negawatt.serve.admission import Refused
from negawatt.serve.fields import Fields, wrong

_FIELD = "response_format"


def grammar_of_format(response_format: Any) -> str | None:
    """The grammar of a ``response_format``; None where the answer is free.

    Raises:
        Refused: its form is wrong, or its schema cannot be held to; the sentence says what.
    """
    if response_format is None:
        return None
    fields = _object(response_format, _FIELD)
    kind = fields.text("type")
    if kind in ("text", "json_object"):
        fields.refuse_rest()
        return None if kind == "text" else grammar_of_schema({"type": "object"}, _FIELD)
    if kind != "json_schema":
        raise wrong(_FIELD, "response_format.type must be text, json_object or json_schema")
    named = _object(fields.take("json_schema"), f"{_FIELD}.json_schema")
    fields.refuse_rest()
    named.text("name")
    named.text("description", "")
    named.flag("strict")  # it is held to either way
    schema = named.take("schema", {})
    named.refuse_rest()
    return grammar_of_schema(schema, _FIELD)


def grammar_of_schema(schema: Any, param: str) -> str:
    """The grammar of a JSON schema that came in a field.

    Raises:
        Refused: it is none, or says what cannot be held to.
    """
    if not isinstance(schema, dict):
        raise wrong(param, f"the schema in {param} must be an object")
    try:
        return json_grammar(schema)
    except UsageError as exc:
        raise wrong(
            param, f"no answer can be held to the schema in {param}: {exc}", "invalid_json_schema"
        ) from exc
    except MissingDependency as exc:
        raise wrong(param, str(exc), "unsupported_parameter") from exc


def unfit(why: str) -> Refused:
    """The error of an answer that turned out not to be holdable to its grammar."""
    return wrong(_FIELD, f"the answer cannot be held to its schema: {why}", "invalid_json_schema")


def _object(value: Any, param: str) -> Fields:
    if not isinstance(value, dict):
        raise wrong(param, f"{param} must be an object")
    return Fields(value)
