"""`Ask`: a body of ``/v1/chat/completions`` or ``/v1/completions``, understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.artifact import Tokenizer
from negawatt.errors import ArtifactError
from negawatt.serve.fields import Fields, wrong
from negawatt.serve.task import Sampling

ROLES = ("system", "developer", "user", "assistant")
MOST_CHOICES, MOST_STOPS, MOST_TOP, MOST_PROMPTS = 16, 16, 20, 64
DEFAULT_COMPLETION_TOKENS = 16
"""Of ``/v1/completions`` without ``max_tokens``, as OpenAI has it; a chat may fill its context."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants.

    Attributes:
        model: name.
        chat: whether it came to ``/v1/chat/completions``.
        messages: of a chat, with plain text as content.
        prompts: of a completion: texts or token ids.
        n: answers to each prompt.
        max_tokens: most tokens of each; None: as many as fit.
        stream, include_usage: how it wants to be told.
        echo: of a completion: repeat the prompt before the answer.
        sampling: the rest; its ``max_tokens`` is set by `sampling_for`.
    """

    model: str
    chat: bool
    messages: Sequence[dict[str, str]]
    prompts: Sequence[str | list[int]]
    n: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    echo: bool
    sampling: Sampling

    def tokens(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The prompts as token ids.

        Raises:
            Refused: the model has no template for these messages, or no such token.
        """
        if self.chat:
            try:
                return [tokenizer.chat(self.messages)]
            except ArtifactError as exc:
                raise wrong("messages", str(exc)) from exc
        found = []
        for prompt in self.prompts:
            if isinstance(prompt, str):
                found.append(tokenizer.encode(prompt, add_special=True))
                continue
            if max(prompt, default=0) >= tokenizer.vocab_size or min(prompt, default=0) < 0:
                raise wrong("prompt", f"token ids of this model are from 0 to {tokenizer.vocab_size - 1}")
            found.append(list(prompt))
        return found

    def limit(self, prompts: Sequence[Sequence[int]], most: int) -> int:
        """Most tokens of an answer, where a sequence may hold `most`."""
        if self.max_tokens is not None:
            return self.max_tokens
        if not self.chat:
            return DEFAULT_COMPLETION_TOKENS
        return max(1, most - max(map(len, prompts)))


def check_length(prompts: Sequence[Sequence[int]], max_tokens: int, most: int) -> None:
    """
    Raises:
        Refused: a prompt is empty, or with its answer longer than the `most` tokens of a sequence.
    """
    for prompt in prompts:
        if not prompt:
            raise wrong("prompt", "the prompt holds no tokens")
        if len(prompt) + max_tokens > most:
            raise wrong(
                "messages",
                f"this model's maximum context length is {most} tokens, but {len(prompt)} tokens of prompt "
                f"and {max_tokens} of answer were asked for; shorten one of them",
                "context_length_exceeded",
            )


def chat_ask(body: Any) -> Ask:
    """Read a body of ``/v1/chat/completions``.

    Raises:
        Refused: something is wrong or not supported, by name.
    """
    fields = Fields(body)
    model = fields.text("model")
    messages = [_message(number, entry) for number, entry in enumerate(_messages(fields))]
    wants = fields.flag("logprobs")
    top = fields.whole("top_logprobs", None, 0, MOST_TOP)
    if top is not None and not wants:
        raise wrong("top_logprobs", "top_logprobs needs logprobs to be true")
    limit = fields.whole("max_completion_tokens", None, 1, 2**31)
    older = fields.whole("max_tokens", None, 1, 2**31)
    response_format = fields.take("response_format")
    if response_format not in (None, {"type": "text"}):
        raise wrong(
            "response_format",
            "this engine cannot hold an answer to a schema; only the response_format text is supported",
            "unsupported_parameter",
        )
    for name in ("tools", "functions"):
        fields.refuse(name, ([],), "the models served here call no tools")
    for name in ("tool_choice", "function_call"):
        fields.refuse(name, ("none", "auto"), "the models served here call no tools")
    fields.refuse("parallel_tool_calls", (True, False), "")
    fields.refuse("modalities", (["text"],), "answers are text")
    fields.refuse("reasoning_effort", ("none",), "the models served here have no such switch")
    log_probs = (top or 0) if wants else None
    return _ask(fields, model, limit if limit is not None else older, log_probs, messages=messages, chat=True)


def completion_ask(body: Any) -> Ask:
    """Read a body of ``/v1/completions``.

    Raises:
        Refused: something is wrong or not supported, by name.
    """
    fields = Fields(body)
    model = fields.text("model")
    prompts = _prompts(fields.take("prompt"))
    log_probs = fields.whole("logprobs", None, 0, MOST_TOP)
    limit = fields.whole("max_tokens", None, 1, 2**31)
    echo = fields.flag("echo")
    if echo and log_probs is not None:
        raise wrong("echo", "echo does not go with logprobs: those of the prompt are not computed")
    fields.refuse("suffix", ("",), "the models served here write forward only")
    fields.refuse("best_of", (1,), "ask for n answers and choose")
    return _ask(fields, model, limit, log_probs, prompts=prompts, echo=echo)


def _ask(fields: Fields, model: str, limit: int | None, log_probs: int | None, **own: Any) -> Ask:
    """The fields that both kinds have."""
    stream = fields.flag("stream")
    options = Fields(fields.take("stream_options", {}))
    include_usage = options.flag("include_usage")
    options.take("include_obfuscation")  # padding against traffic analysis: nothing to pad here
    options.refuse_rest()
    if include_usage and not stream:
        raise wrong("stream_options", "stream_options needs stream to be true")
    for name in ("presence_penalty", "frequency_penalty"):
        fields.refuse(name, (0, 0.0), "tokens are drawn by their probability alone")
    fields.refuse("logit_bias", ({},), "tokens are drawn by their probability alone")
    for name in ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"):
        fields.take(name)  # of OpenAI's own accounts
    n = fields.whole("n", 1, 1, MOST_CHOICES)
    sampling = Sampling(
        max_tokens=0,
        temperature=fields.number("temperature", 1.0, 0.0, 2.0),
        top_p=fields.number("top_p", 1.0, 1e-6, 1.0),
        seed=fields.whole("seed", None, -(2**63), 2**63 - 1),
        stop=fields.strings("stop", MOST_STOPS),
        log_probs=log_probs,
        ignore_eos=fields.flag("ignore_eos"),
    )
    fields.refuse_rest()
    told: dict[str, Any] = {"chat": False, "messages": (), "prompts": (), "echo": False, **own}
    assert n is not None
    return Ask(
        model=model,
        n=n,
        max_tokens=limit,
        stream=stream,
        include_usage=include_usage,
        sampling=sampling,
        **told,
    )


def _messages(fields: Fields) -> list[Any]:
    messages = fields.take("messages")
    if messages is None:
        raise wrong("messages", "you must provide messages", "missing_required_parameter")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "messages must be a list of at least one message")
    return messages


def _message(number: int, entry: Any) -> dict[str, str]:
    where = f"messages[{number}]"
    if not isinstance(entry, dict):
        raise wrong(where, f"{where} must be an object with role and content")
    role = entry.get("role")
    if role not in ROLES:
        raise wrong(f"{where}.role", f"{where}.role must be one of {', '.join(ROLES)}")
    content = entry.get("content")
    if isinstance(content, list):
        parts = []
        for part in content:
            if not (
                isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            ):
                raise wrong(f"{where}.content", f"{where}.content may hold parts of the type text only")
            parts.append(part["text"])
        content = "".join(parts)
    if not isinstance(content, str):
        raise wrong(f"{where}.content", f"{where}.content must be a string or a list of text parts")
    return {"role": "system" if role == "developer" else role, "content": content}


def _prompts(value: Any) -> list[str | list[int]]:
    if value is None:
        raise wrong("prompt", "you must provide prompt", "missing_required_parameter")

    def is_tokens(entry: Any) -> bool:
        return isinstance(entry, list) and all(type(i) is int for i in entry) and bool(entry)

    if isinstance(value, str) or is_tokens(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(p, str) or is_tokens(p) for p in value):
        if len(value) > MOST_PROMPTS:
            raise wrong("prompt", f"prompt may hold {MOST_PROMPTS} prompts, not {len(value)}")
        return value
    raise wrong("prompt", "prompt must be a string, a list of strings, or of token ids")
