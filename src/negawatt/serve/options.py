"""`ModelOptions`: how a model is served."""

from __future__ import annotations

from dataclasses import dataclass

from negawatt.artifact import Artifact, Tokenizer
from negawatt.engine import Settings
from negawatt.engine.batching import STEP_TOKENS
from negawatt.engine.session import SessionOptions


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Attributes:
    settings: engine, weights, threads; ``batch`` is the most sequences at once.
    kv_tokens: tokens that the cache holds over all sequences; ``batch × max_context`` if None.
    step_tokens: most tokens of an engine step.
    prefix_cache: whether prompts that begin like earlier ones are not computed again.
    queue_limit: requests that may wait; more are refused.
    wait_s: seconds that a request may be expected to wait until it is begun; others are refused. 0 lets in
        only what a slot is free for, None lets the queue alone decide.
    deadline_s: seconds after which a request is given up.
    stall_s: seconds without a step, with work to do, after which the worker is taken for hung.
    sleep_s: seconds without work after which the worker is ended and its memory freed; None: never.
    chat_template: Jinja template in place of the model's own.
    warm_up: whether to read and write a little when the model is loaded.
    """

    settings: Settings
    kv_tokens: int | None = None
    step_tokens: int = STEP_TOKENS
    prefix_cache: bool = True
    queue_limit: int = 256
    wait_s: float | None = 60.0
    deadline_s: float = 600.0
    stall_s: float = 60.0
    sleep_s: float | None = None
    warm_up: bool = True
    chat_template: str | None = None

    def tokenizer(self, artifact: Artifact) -> Tokenizer:
        """The artifact's, with the chat template that is in use."""
        own = artifact.tokenizer
        return own if self.chat_template is None else own.with_template(self.chat_template)

    @property
    def session(self) -> SessionOptions:
        settings = self.settings
        return SessionOptions(
            batch=settings.batch,
            capacity=self.kv_tokens or settings.batch * settings.max_context,
            slots=settings.batch + max(4, settings.batch),
            step_tokens=self.step_tokens,
            prefix_cache=self.prefix_cache,
        )
