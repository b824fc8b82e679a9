"""Answers in OpenAI's form, whole or in the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from negawatt.serve.ask import Ask
from negawatt.serve.calls import CallStream, calls_finish
from negawatt.serve.receipt import bill
from negawatt.serve.task import Choice, Delta, Task
from negawatt.serve.writing import TokenInfo


def usage_of(task: Task) -> dict[str, Any]:
    """The ``usage`` of a settled request, with its receipt as ``energy``."""
    assert task.receipt is not None
    receipt = task.receipt
    return {
        "prompt_tokens": receipt.input_tokens,
        "completion_tokens": receipt.output_tokens,
        "total_tokens": receipt.input_tokens + receipt.output_tokens,
        "prompt_tokens_details": {"cached_tokens": receipt.cached_tokens},
        "energy": bill(receipt, task.attempts),
    }


def whole(ask: Ask, task: Task) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    choices = []
    for choice in task.choices:
        entry: dict[str, Any] = {"index": choice.index, "finish_reason": choice.finish_reason}
        text = choice.writing.text
        if ask.chat:
            entry["message"] = {"role": "assistant", "content": text, "refusal": None}
            if task.calls is not None:
                content, calls = task.calls.read(text)
                entry["finish_reason"] = calls_finish(choice.finish_reason, calls)
                entry["message"]["content"] = content
                if calls:
                    entry["message"]["tool_calls"] = [call.to_json() for call in calls]
            entry["logprobs"] = (
                _chat_log_probs(choice.log_probs) if ask.sampling.log_probs is not None else None
            )
        else:
            entry["text"] = _prompt_text(ask, choice) + text
            entry["logprobs"] = (
                _log_probs(choice.log_probs, 0) if ask.sampling.log_probs is not None else None
            )
        choices.append(entry)
    kind = "chat.completion" if ask.chat else "text_completion"
    return {**_head(ask, task, kind), "choices": choices, "usage": usage_of(task)}


class Chunks:
    """The chunks of one streamed answer, as JSON objects."""

    def __init__(self, ask: Ask, task: Task) -> None:
        self._ask, self._task = ask, task
        self._head = _head(ask, task, "chat.completion.chunk" if ask.chat else "text_completion")
        self._lengths = [0] * len(task.choices)
        self._calling = [CallStream(task.calls) for _ in task.choices] if task.calls is not None else []

    def first(self) -> Iterator[dict[str, Any]]:
        """What comes before the first token."""
        for choice in self._task.choices:
            if self._ask.chat:
                yield self._chunk(choice, {"delta": {"role": "assistant", "content": ""}})
            elif self._ask.echo:
                yield self._chunk(choice, {"text": _prompt_text(self._ask, choice)})

    def of(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """A piece of text, as far as it is certain what it is."""
        if self._calling:
            for found in self._calling[delta.choice.index].push(delta.text):
                yield self._chunk(delta.choice, {"delta": found})
            return
        wants = self._ask.sampling.log_probs is not None
        if self._ask.chat:
            own: dict[str, Any] = {"delta": {"content": delta.text}}
            own["logprobs"] = _chat_log_probs(delta.log_probs) if wants else None
        else:
            place = self._lengths[delta.choice.index]
            self._lengths[delta.choice.index] += len(delta.text)
            own = {"text": delta.text, "logprobs": _log_probs(delta.log_probs, place) if wants else None}
        yield self._chunk(delta.choice, own)

    def last(self) -> Iterator[dict[str, Any]]:
        """What comes after the last token: how each choice ended, and the receipt in the last chunk."""
        for choice in self._task.choices:
            reason = choice.finish_reason
            if self._calling:
                stream = self._calling[choice.index]
                for found in stream.finish():
                    yield self._chunk(choice, {"delta": found})
                reason = calls_finish(reason, stream.called)
            own: dict[str, Any] = {"delta": {}} if self._ask.chat else {"text": ""}
            chunk = self._chunk(choice, {**own, "finish_reason": reason})
            if choice is self._task.choices[-1] and not self._ask.include_usage:
                chunk["energy"] = usage_of(self._task)["energy"]
            yield chunk
        if self._ask.include_usage:
            yield {**self._head, "choices": [], "usage": usage_of(self._task)}

    def _chunk(self, choice: Choice, own: dict[str, Any]) -> dict[str, Any]:
        entry = {"index": choice.index, "logprobs": None, "finish_reason": None, **own}
        usage = {"usage": None} if self._ask.include_usage else {}
        return {**self._head, "choices": [entry], **usage}


def _head(ask: Ask, task: Task, kind: str) -> dict[str, Any]:
    return {"id": task.id, "object": kind, "created": int(task.created_s), "model": task.reservation.model}


def _prompt_text(ask: Ask, choice: Choice) -> str:
    if not ask.echo:
        return ""
    prompt = ask.prompts[choice.index // ask.n]
    return prompt if isinstance(prompt, str) else ""


def _chat_log_probs(infos: Sequence[TokenInfo]) -> dict[str, Any]:
    def entry(text: str, raw: bytes, log_prob: float) -> dict[str, Any]:
        return {"token": text, "logprob": log_prob, "bytes": list(raw)}

    return {
        "content": [
            {**entry(info.text, info.raw, info.log_prob), "top_logprobs": [entry(*each) for each in info.top]}
            for info in infos
        ],
        "refusal": None,
    }


def _log_probs(infos: Sequence[TokenInfo], place: int) -> dict[str, Any]:
    offsets = []
    for info in infos:
        offsets.append(place)
        place += len(info.text)
    return {
        "tokens": [info.text for info in infos],
        "token_logprobs": [info.log_prob for info in infos],
        "top_logprobs": [{text: log_prob for text, _, log_prob in info.top} for info in infos],
        "text_offset": offsets,
    }
