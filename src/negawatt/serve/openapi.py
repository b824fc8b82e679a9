"""The server's description as an OpenAPI document."""

from __future__ import annotations

from typing import Any

from negawatt import __version__
from negawatt.serve.ask import MOST_CHOICES, MOST_PROMPTS, MOST_STOPS, MOST_TOP
from negawatt.serve.embed import MOST_INPUTS
from negawatt.serve.messages import MOST_CALLS, ROLES
from negawatt.serve.tools import MOST_TOOLS

_INTEGER, _TEXT, _FLAG = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


_COMMON: dict[str, Any] = {
    "model": {**_TEXT, "description": "A name from /v1/models."},
    "stream": _nullable(_FLAG),
    "stream_options": {
        "type": ["object", "null"],
        "properties": {"include_usage": _nullable(_FLAG), "include_obfuscation": _nullable(_FLAG)},
        "additionalProperties": False,
    },
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MOST_CHOICES},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_p": {"type": ["number", "null"], "minimum": 1e-6, "maximum": 1},
    "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
    "stop": {
        "oneOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MOST_STOPS},
            {"type": "null"},
        ]
    },
    "max_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31},
    "ignore_eos": {**_nullable(_FLAG), "description": "Write on to max_tokens whatever comes."},
}
_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": _TEXT},
}
_CALL = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": _TEXT,
        "type": {"const": "function"},
        "function": {
            "type": "object", "required": ["name"], "properties": {"name": _TEXT, "arguments": _TEXT},
        },
    },
}  # fmt: skip
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {"oneOf": [_TEXT, {"type": "array", "items": _PART}, {"type": "null"}]},
        "tool_calls": {"type": "array", "items": _CALL, "minItems": 1, "maxItems": MOST_CALLS},
        "tool_call_id": {**_TEXT, "description": "Of a message of the role tool."},
    },
}
_SCHEMA = {"type": "object", "description": "A JSON schema."}
_FORMAT = {
    "oneOf": [
        {"type": "null"},
        {
            "type": "object", "properties": {"type": {"enum": ["text", "json_object"]}}, "required": ["type"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "additionalProperties": False,
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        "name": _TEXT, "description": _TEXT, "strict": _nullable(_FLAG), "schema": _SCHEMA,
                    },
                },
            },
        },
    ]
}  # fmt: skip
_TOOL = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                "description": _TEXT, "parameters": _SCHEMA, "strict": _nullable(_FLAG),
            },
        },
    },
}  # fmt: skip
_TOOL_CHOICE = {
    "oneOf": [
        {"enum": ["none", "auto", "required", None]},
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": {"const": "function"},
                "function": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}},
            },
        },
    ]
}
_CHAT = {
    "type": "object",
    "required": ["model", "messages"],
    "additionalProperties": False,
    "properties": {
        **_COMMON,
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31},
        "logprobs": _nullable(_FLAG),
        "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": MOST_TOP},
        "response_format": _FORMAT,
        "tools": {"type": ["array", "null"], "items": _TOOL, "maxItems": MOST_TOOLS},
        "tool_choice": _TOOL_CHOICE,
        "parallel_tool_calls": _nullable(_FLAG),
    },
}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_COMPLETION = {
    "type": "object",
    "required": ["model", "prompt"],
    "additionalProperties": False,
    "properties": {
        **_COMMON,
        "prompt": {
            "anyOf": [
                _TEXT,
                _TOKENS,
                {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MOST_PROMPTS},
                {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": MOST_PROMPTS},
            ]
        },
        "logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": MOST_TOP},
        "echo": _nullable(_FLAG),
    },
}
_EMBEDDING = {
    "type": "object",
    "required": ["model", "input"],
    "additionalProperties": False,
    "properties": {
        "model": _COMMON["model"],
        "input": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                _TOKENS,
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1,
                 "maxItems": MOST_INPUTS},
                {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": MOST_INPUTS},
            ]
        },
        "encoding_format": {"enum": ["float", "base64", None]},
        "dimensions": {
            "type": ["integer", "null"], "minimum": 1, "maximum": 2**20,
            "description": "Only for models that were trained for it.",
        },
        "user": _nullable(_TEXT),
    },
}  # fmt: skip
_ENERGY = {
    "type": "object",
    "required": ["value_j", "low_j", "high_j", "provenance", "reason"],
    "properties": {
        "value_j": {"type": ["number", "null"], "description": "Joules; null where they are missing."},
        "low_j": {"type": ["number", "null"]},
        "high_j": {"type": ["number", "null"]},
        "provenance": {"enum": ["measured", "derived", "estimated", "missing"]},
        "reason": {"type": ["string", "null"]},
    },
}
_ONE = {"$ref": "#/components/schemas/Energy"}
_RECEIPT = {
    "allOf": [_ONE],
    "properties": {
        "prefill": _ONE, "decode": _ONE, "idle": _ONE,
        "boundary": {"enum": ["chip", "host", "wall", "facility"]},
        "cpu_s": {"type": "number"},
        "carbon": {"type": ["object", "null"]}, "water": {"type": ["object", "null"]},
        "cost": {"type": ["object", "null"]}, "receipt": {"type": "object"},
    },
}  # fmt: skip
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens", "energy"],
    "properties": {
        "prompt_tokens": _INTEGER, "completion_tokens": _INTEGER, "total_tokens": _INTEGER,
        "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": _INTEGER}},
        "energy": {"$ref": "#/components/schemas/Receipt"},
    },
}  # fmt: skip
_ANSWER = {
    "type": "object",
    "required": ["id", "object", "created", "model", "choices", "usage"],
    "properties": {
        "id": _TEXT, "object": _TEXT, "created": _INTEGER, "model": _TEXT,
        "choices": {"type": "array", "items": {"type": "object"}},
        "usage": {"$ref": "#/components/schemas/Usage"},
    },
}  # fmt: skip
_VECTORS = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": _TEXT, "model": _TEXT,
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": _TEXT, "index": _INTEGER,
                    "embedding": {"oneOf": [{"type": "array", "items": {"type": "number"}}, _TEXT]},
                },
            },
        },
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "total_tokens", "energy"],
            "properties": {
                "prompt_tokens": _INTEGER, "total_tokens": _INTEGER,
                "energy": {"$ref": "#/components/schemas/Receipt"},
            },
        },
    },
}  # fmt: skip
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT, "type": _TEXT, "param": _nullable(_TEXT), "code": _nullable(_TEXT),
            },
        }
    },
}  # fmt: skip


def _json(name: str, said: str) -> dict[str, Any]:
    return {
        "description": said,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
    }


_FAILED = {"default": _json("Error", "Refused or failed; the status says how.")}


def _generate(name: str, summary: str) -> dict[str, Any]:
    answer = _json("Answer", "The answer with its receipt; with stream, server-sent events.")
    answer["content"]["text/event-stream"] = {"schema": _TEXT}
    body = {"content": _json(name, "")["content"], "required": True}
    return {"post": {"summary": summary, "requestBody": body, "responses": {"200": answer, **_FAILED}}}


def _embed(summary: str) -> dict[str, Any]:
    body = {"content": _json("EmbeddingRequest", "")["content"], "required": True}
    answer = _json("Embeddings", "The vectors, with their receipt.")
    return {"post": {"summary": summary, "requestBody": body, "responses": {"200": answer, **_FAILED}}}


def _get(summary: str, kind: str = "application/json", **parts: Any) -> dict[str, Any]:
    schema = {"type": "object"} if kind == "application/json" else _TEXT
    said = {"description": summary, "content": {kind: {"schema": schema}}}
    return {"get": {"summary": summary, "responses": {"200": said, **_FAILED}, **parts}}


def _post(summary: str, body: str | None, **parts: Any) -> dict[str, Any]:
    said = _get(summary)["get"]["responses"]
    asked = {} if body is None else {"requestBody": {"content": {body: {"schema": {"type": "object"}}}}}
    return {"post": {"summary": summary, "responses": said, **asked, **parts}}


def _delete(summary: str, *parameters: dict[str, Any]) -> dict[str, Any]:
    said = _get(summary)["get"]["responses"]
    return {"delete": {"summary": summary, "responses": said, "parameters": list(parameters)}}


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of the routes in `negawatt.serve.app`."""
    name = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
    identity = {"name": "id", "in": "path", "required": True, "schema": _TEXT}
    public: dict[str, Any] = {"security": []}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Negawatt", "version": __version__},
        "security": [{"key": []}],
        "paths": {
            "/v1/chat/completions": _generate("ChatRequest", "Go on with a conversation."),
            "/v1/completions": _generate("CompletionRequest", "Go on with a text."),
            "/v1/embeddings": _embed("Turn texts into vectors."),
            "/v1/models": _get("The models."),
            "/v1/models/{name}": _get("One model.", parameters=[name]),
            "/v1/files": {**_get("The files."), **_post("Upload a file of requests.", "multipart/form-data")},
            "/v1/files/{id}": {**_get("One file.", parameters=[identity]), **_delete("Delete it.", identity)},
            "/v1/files/{id}/content": _get("What is in it.", "application/jsonl", parameters=[identity]),
            "/v1/batches": {**_get("The batches."), **_post("Run a file of requests.", "application/json")},
            "/v1/batches/{id}": _get("One batch, and what waiting was worth.", parameters=[identity]),
            "/v1/batches/{id}/cancel": _post("End it early.", None, parameters=[identity]),
            "/metrics": _get("For Prometheus.", "text/plain"),
            "/openapi.json": _get("This document."),
            "/health": _get("Whether the process answers.", **public),
            "/ready": _get("Whether it should get requests.", **public),
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "ChatRequest": _CHAT, "CompletionRequest": _COMPLETION, "Answer": _ANSWER,
                "EmbeddingRequest": _EMBEDDING, "Embeddings": _VECTORS,
                "Usage": _USAGE, "Energy": _ENERGY, "Receipt": _RECEIPT, "Error": _ERROR,
            },
        },
    }  # fmt: skip
