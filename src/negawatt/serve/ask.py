"""`Ask`: a body of ``/v1/chat/completions`` or ``/v1/completions``, understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.artifact import Tokenizer
from negawatt.errors import ArtifactError
from negawatt.serve.fields import Fields, wrong
from negawatt.serve.messages import messages_of, speaks_of_tools
from negawatt.serve.structured import grammar_of_format
from negawatt.serve.task import Sampling
from negawatt.serve.tools import Tools, tools_of

MOST_CHOICES, MOST_STOPS, MOST_TOP, MOST_PROMPTS = 16, 16, 20, 64
DEFAULT_COMPLETION_TOKENS = 16
"""Of ``/v1/completions`` without ``max_tokens``, as OpenAI has it; a chat may fill its context."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a client wants.

    Attributes:
        model: name.
        chat: whether it came to ``/v1/chat/completions``.
        messages: of a chat, as its template takes them.
        tools: of a chat, what the model may call.
        prompts: of a completion: texts or token ids.
        n: answers to each prompt.
        max_tokens: most tokens of each; None: as many as fit.
        stream, include_usage: how it wants to be told.
        echo: of a completion: repeat the prompt before the answer.
        sampling: the rest; its ``max_tokens`` is set by `sampling_for`.
    """

    model: str
    chat: bool
    messages: list[dict[str, Any]]
    tools: Tools | None
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
            offered = [tool.to_json() for tool in self.tools.offered] if self.tools else []
            if (offered or speaks_of_tools(self.messages)) and not tokenizer.takes_tools:
                why = f"the chat template of {self.model} has no place for tools"
                raise wrong("tools" if offered else "messages", why, "unsupported_parameter")
            try:
                return [tokenizer.chat(self.messages, tools=offered)]
            except ArtifactError as exc:
                raise wrong("messages", str(exc)) from exc
        found = []
        for prompt in self.prompts:
            if isinstance(prompt, str):
                found.append(tokenizer.encode(prompt, add_special=True))
                continue
            found.append(known_tokens(prompt, tokenizer, "prompt"))
        return found

    def limit(self, prompts: Sequence[Sequence[int]], most: int) -> int:
        """Most tokens of an answer, where a sequence may hold `most`."""
        if self.max_tokens is not None:
            return self.max_tokens
        if not self.chat:
            return DEFAULT_COMPLETION_TOKENS
        return max(1, most - max(map(len, prompts)))


def is_tokens(entry: Any) -> bool:
    """Whether a field holds token ids, at least one."""
    return isinstance(entry, list) and all(type(i) is int for i in entry) and bool(entry)


def known_tokens(ids: Sequence[int], tokenizer: Tokenizer, param: str) -> list[int]:
    """
    Raises:
        Refused: one of the ids is no token of the model.
    """
    if max(ids, default=0) >= tokenizer.vocab_size or min(ids, default=0) < 0:
        raise wrong(param, f"token ids of this model are from 0 to {tokenizer.vocab_size - 1}")
    return list(ids)


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
    messages = messages_of(fields)
    wants = fields.flag("logprobs")
    top = fields.whole("top_logprobs", None, 0, MOST_TOP)
    if top is not None and not wants:
        raise wrong("top_logprobs", "top_logprobs needs logprobs to be true")
    limit = fields.whole("max_completion_tokens", None, 1, 2**31)
    older = fields.whole("max_tokens", None, 1, 2**31)
    grammar = grammar_of_format(fields.take("response_format"))
    tools = tools_of(fields)
    if tools is not None and grammar is not None:
        raise wrong("response_format", "response_format does not go with tools; ask for one of them")
    if tools is not None and wants:
        raise wrong("logprobs", "logprobs do not go with tools")
    for name in ("functions", "function_call"):
        fields.refuse(name, ([], "none", "auto"), "give tools")
    fields.refuse("modalities", (["text"],), "answers are text")
    fields.refuse("reasoning_effort", ("none",), "the models served here have no such switch")
    log_probs = (top or 0) if wants else None
    most = limit if limit is not None else older
    return _ask(fields, model, most, log_probs, grammar, messages=messages, tools=tools, chat=True)


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
    return _ask(fields, model, limit, log_probs, None, prompts=prompts, echo=echo)


def _ask(
    fields: Fields, model: str, limit: int | None, log_probs: int | None, grammar: str | None, **own: Any
) -> Ask:
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
        grammar=grammar,
    )
    fields.refuse_rest()
    told: dict[str, Any] = {"chat": False, "messages": [], "tools": None, "prompts": (), "echo": False, **own}
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


def _prompts(value: Any) -> list[str | list[int]]:
    if value is None:
        raise wrong("prompt", "you must provide prompt", "missing_required_parameter")
    if isinstance(value, str) or is_tokens(value):
        return [value]
    if isinstance(value, list) and value and all(isinstance(p, str) or is_tokens(p) for p in value):
        if len(value) > MOST_PROMPTS:
            raise wrong("prompt", f"prompt may hold {MOST_PROMPTS} prompts, not {len(value)}")
        return value
    raise wrong("prompt", "prompt must be a string, a list of strings, or of token ids")
