"""`Server`: the models by name, the gate before them, and the way of a request between the two."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from negawatt.errors import NegawattError
from negawatt.serve.admission import Caller, Estimate, Gate, Refused, Reservation, shutting_down
from negawatt.serve.answer import whole
from negawatt.serve.ask import Ask, chat_ask, check_length, completion_ask
from negawatt.serve.calls import Calls
from negawatt.serve.cascade import Cascade, climb
from negawatt.serve.desk import Desk
from negawatt.serve.eco import Eco, intensity_of
from negawatt.serve.embed import EmbedAsk, embed_ask, embedded
from negawatt.serve.grid import Grid
from negawatt.serve.model import ServedModel
from negawatt.serve.receipt import Receipt
from negawatt.serve.redact import Redactor, redact
from negawatt.serve.task import Sampling, Task

_log = logging.getLogger("negawatt.serve")

Gone = Callable[[], Awaitable[None]]
"""Returns when the client has left."""


async def stays() -> None:
    """For requests without a client that could leave."""
    await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that has been let in and not been queued yet."""

    model: ServedModel
    prompts: list[list[int]]
    sampling: Sampling
    calls: Calls | None
    reservation: Reservation


class Server:
    """All methods are called from the event loop.

    Args:
        models: what it serves.
        gate: who may ask for how much.
        redactor: strikes personal data out of requests; None: nothing is struck out.

    Attributes:
        cascades, ecos: further names, which stand for several of the models.
        grid: by whose intensity an `Eco` chooses; None: it is not known.
        desk: where the gate is asked.
        draining: once true, new requests are refused and those under way go on.
    """

    def __init__(self, models: Iterable[ServedModel], gate: Gate, redactor: Redactor | None = None) -> None:
        self.models: dict[str, ServedModel] = {}
        self.cascades: dict[str, Cascade] = {}
        self.ecos: dict[str, Eco] = {}
        self.grid: Grid | None = None
        self.gate, self._redactor = gate, redactor
        self.desk = Desk(gate)
        self.draining = False
        self._climbing = 0
        self._asking = 0  # requests whose reservation is asked for
        for model in models:
            self.add(model)

    def add(self, model: ServedModel) -> None:
        """Serve one more model."""
        self.models[model.name] = model
        model.listeners.append(_note)

    def charge(self, receipt: Receipt) -> None:
        """Charge a receipt that nobody reserved."""
        self.gate.charge(receipt)

    async def start(self) -> None:
        """Load every model, one after the other.

        Raises:
            NegawattError: one cannot be loaded.
        """
        for model in self.models.values():
            await model.start()

    async def drain(self, most_s: float) -> None:
        """Refuse what is new, and wait until what is under way has ended, but not longer than `most_s`."""
        self.draining = True
        await while_busy(lambda: self.busy, most_s)

    async def stop(self) -> None:
        """End every worker."""
        self.draining = True
        await asyncio.gather(*(model.stop() for model in self.models.values()))
        self.desk.close()

    @property
    def busy(self) -> int:
        """Requests under way, waiting, or being let in."""
        return self._asking + self._climbing + sum(model.busy for model in self.models.values())

    @property
    def trouble(self) -> str | None:
        """Why it should get no requests at the moment; None when it should."""
        if self.draining:
            return "the server is shutting down"
        for model in self.models.values():
            if model.state == "failed":
                return f"{model.name} cannot be run: {model.failure}"
            if model.state == "loading":
                return f"{model.name} is being loaded"
            if model.stalled:
                return f"{model.name} has work and has not stepped for long"
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """By which clients can ask."""
        return *self.models, *self.cascades, *self.ecos

    def model(self, name: str) -> ServedModel:
        """
        Raises:
            Refused: there is no such model (404).
        """
        if name not in self.models:
            raise Refused(
                f"the model {name[:100]!r} does not exist; there are {', '.join(sorted(self.names))}",
                status=404, code="model_not_found", param="model",
            )  # fmt: skip
        return self.models[name]

    def parse(self, path: str, body: Any) -> Ask | EmbedAsk:
        """Read a body that was sent to a path, without what must not reach a model.

        Raises:
            Refused: the path writes no answers, or the body is wrong.
        """
        readers: dict[str, Callable[[Any], Ask | EmbedAsk]] = {
            "/v1/chat/completions": chat_ask,
            "/v1/completions": completion_ask,
            "/v1/embeddings": embed_ask,
        }
        if path not in readers:
            raise Refused(f"there is nothing to ask at {path[:100]}", status=404)
        if self._redactor is not None:
            body = redact(body, self._redactor).value
        return readers[path](body)

    async def submit(self, caller: Caller, ask: Ask | EmbedAsk) -> tuple[ServedModel, Task]:
        """Reserve what a request may cost, and queue it.

        Raises:
            Refused: it cannot be served, or not now, or not for this caller.
        """
        self.refuse_new()
        if isinstance(ask, EmbedAsk):
            return await self._embed(caller, ask)
        prepared = await self.prepare(caller, ask)
        return prepared.model, self.enter(prepared, caller, ask)

    async def begin(
        self, caller: Caller, ask: Ask | EmbedAsk, gone: Gone = stays
    ) -> tuple[ServedModel, Task]:
        """As `submit`, by any of `names`: of a cascade, when it is clear which of its models answers.

        Raises:
            Refused: it cannot be served, or not now, or not for this caller; the client has left.
        """
        if isinstance(ask, Ask) and (eco := self.ecos.get(ask.model)) is not None:
            now_s = time.time()
            known = await asyncio.to_thread(intensity_of, self.grid, now_s) if self.grid else None
            ask = replace(ask, model=eco.choice(known))
        if not isinstance(ask, Ask) or (cascade := self.cascades.get(ask.model)) is None:
            return await self.submit(caller, ask)
        self.refuse_new()
        self._climbing += 1
        try:
            return await climb(self, cascade, caller, ask, gone)
        finally:
            self._climbing -= 1

    async def prepare(self, caller: Caller, ask: Ask, *, follows: bool = False) -> Prepared:
        """Reserve what a request may cost; the reservation is to be entered or released.

        Args:
            follows: it is a further part of a request that is counted already.

        Raises:
            Refused: as `submit`.
        """
        model = self._writer(ask.model)
        prompts = ask.tokens(model.tokenizer)
        limit = ask.limit(prompts, model.most_tokens)
        count = ask.n * len(prompts)
        check_length(prompts, limit, model.most_tokens)
        energy = model.estimate(prompts, ask.n, limit)
        estimate = Estimate(ask.model, sum(map(len, prompts)), limit * count, energy, follows=follows)
        reservation = await self._reserve(caller, estimate)
        try:
            if reservation.model != ask.model:
                model = self._writer(reservation.model)
                prompts = ask.tokens(model.tokenizer)
            limit = max(1, min(limit, reservation.output_tokens // count))
            check_length(prompts, limit, model.most_tokens)
            model.check_room(sum(map(len, prompts)) + limit * count)  # others may have come meanwhile
            calls = Calls(ask.tools, model.call_form) if ask.tools is not None else None
            grammar = ask.sampling.grammar if calls is None else calls.grammar()
        except BaseException:
            reservation.release()
            raise
        sampling = replace(ask.sampling, max_tokens=limit, grammar=grammar)
        return Prepared(model, prompts, sampling, calls, reservation)

    def enter(self, prepared: Prepared, caller: Caller, ask: Ask, **how: Any) -> Task:
        """Queue what was prepared.

        Args:
            how: `Task`'s ``least_confidence`` and ``attempts``.
        """
        model, sampling = prepared.model, prepared.sampling
        id = f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}"
        choices = model.choices(prepared.prompts, ask.n, sampling)
        task = Task(
            id, caller, prepared.reservation, choices, sampling, streams=ask.stream, calls=prepared.calls,
            **how,
        )  # fmt: skip
        model.submit(task)
        return task

    def refuse_new(self) -> None:
        """
        Raises:
            Refused: the server is shutting down.
        """
        if self.draining:
            raise shutting_down()

    async def _reserve(self, caller: Caller, estimate: Estimate) -> Reservation:
        self._asking += 1
        try:
            return await self.desk.reserve(caller, estimate)
        finally:
            self._asking -= 1

    async def _embed(self, caller: Caller, ask: EmbedAsk) -> tuple[ServedModel, Task]:
        model = self.model(ask.model)
        if model.pooling is None:
            raise Refused(
                f"{model.name} writes text and makes no embeddings", status=400, param="model",
                code="unsupported_model",
            )  # fmt: skip
        model.check_room()
        ask.check(model.pooling)
        prompts = ask.tokens(model.tokenizer, model.pooling, model.most_tokens)
        energy = model.estimate(prompts, 1, 0)
        reservation = await self._reserve(
            caller, Estimate(model.name, sum(map(len, prompts)), 0, energy, fixed=True)
        )
        sampling = Sampling(max_tokens=0)
        choices = model.choices(prompts, 1, sampling)
        task = Task(f"embd-{uuid.uuid4().hex}", caller, reservation, choices, sampling, streams=False)
        model.submit(task)
        return model, task

    def _writer(self, name: str) -> ServedModel:
        """A model that writes text, and has room.

        Raises:
            Refused: there is none of this name, it makes embeddings, or too many wait for it.
        """
        model = self.model(name)
        if model.pooling is not None:
            raise Refused(
                f"{name} makes embeddings and writes no text", status=400, param="model",
                code="unsupported_model",
            )  # fmt: skip
        model.check_room()
        return model

    def told(self, model: ServedModel, ask: Ask | EmbedAsk, task: Task) -> dict[str, Any]:
        """The body of the answer to a request that was completed."""
        if isinstance(ask, EmbedAsk):
            return embedded(ask, task, normalized=model.pooling is not None and model.pooling.normalized)
        return whole(ask, task)

    async def finish(self, model: ServedModel, task: Task, gone: Gone = stays) -> None:
        """Wait until a request is settled; one whose client leaves or whose time is up is aborted.

        Raises:
            Refused: it was not completed.
        """
        settled = asyncio.ensure_future(task.settled.wait())
        left = asyncio.ensure_future(gone())
        try:
            done, _ = await asyncio.wait(
                {settled, left}, timeout=model.options.deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            if left in done:
                model.abort(task, "aborted", Refused("the client has left", status=499))
            elif not done:
                model.abort(task, "aborted", too_late(model.options.deadline_s))
            await settled
        except asyncio.CancelledError:
            model.abort(task)
            raise
        finally:
            left.cancel()
            settled.cancel()
        if (error := failure_of(task)) is not None:
            raise error

    async def answer(self, caller: Caller, path: str, body: Any) -> dict[str, Any]:
        """Answer a request that no connection waits for, such as one of a batch, as ``path`` would.

        Raises:
            Refused: as the route would refuse it.
        """
        ask = self.parse(path, body)
        if isinstance(ask, Ask):
            ask = replace(ask, stream=False, include_usage=False)
        model, task = await self.begin(caller, ask)
        await self.finish(model, task)
        return self.told(model, ask, task)


async def while_busy(busy: Callable[[], object], most_s: float) -> None:
    """Wait while `busy` says so, but not longer than `most_s`."""
    end_s = time.monotonic() + most_s
    while busy() and time.monotonic() < end_s:
        await asyncio.sleep(0.02)


def _note(receipt: Receipt) -> None:
    """A line in the log for every receipt; nothing of what was asked or answered."""
    energy = receipt.energy
    _log.info(
        "receipt",
        extra={
            "request_id": receipt.id, "key_id": receipt.key_id, "team": receipt.team, "model": receipt.model,
            "outcome": receipt.outcome, "input_tokens": receipt.input_tokens,
            "cached_tokens": receipt.cached_tokens, "output_tokens": receipt.output_tokens,
            "joules": energy.value_j, "provenance": str(energy.provenance),
            "queued_s": round(receipt.queued_s, 4), "duration_s": round(receipt.duration_s, 4),
        },
    )  # fmt: skip


def parse_json(raw: bytes) -> Any:
    """
    Raises:
        Refused: it is no JSON.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise Refused("the body is not valid JSON", status=400) from exc


def too_late(deadline_s: float) -> Refused:
    """The error of a request whose time is up."""
    return Refused(
        f"the request was not finished within {deadline_s:g} s",
        status=504,
        kind="server_error",
        code="timeout",
    )


def failure_of(task: Task) -> Refused | None:
    """Why a settled request was not completed, or None."""
    if task.outcome in (None, "completed"):
        return None
    if isinstance(task.error, Refused):
        return task.error
    # What follows a colon are a worker's last words: a path of this machine, or worse, and not for clients.
    told = isinstance(task.error, NegawattError)
    reason = str(task.error).partition(": ")[0] if told else "it was given up"
    return Refused(
        f"the request was not completed: {reason}", status=500, kind="server_error", code="engine_failed"
    )
