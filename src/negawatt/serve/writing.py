"""`Writing`: one answer's tokens turned into text, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from negawatt.artifact import Tokenizer
from negawatt.engine.picker import Picked


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token of an answer with its log-probability in nats, and those of the likeliest in its place."""

    text: str
    raw: bytes
    log_prob: float
    top: tuple[tuple[str, bytes, float], ...]


class Pieces:
    """What single tokens look like; text is U+FFFD where a token is no whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, bytes]] = {}

    def info(self, picked: Picked) -> TokenInfo:
        """A token that was picked with its probabilities."""
        assert picked.log_prob is not None
        top = tuple((*self._piece(token), log_prob) for token, log_prob in picked.top)
        return TokenInfo(*self._piece(picked.token), picked.log_prob, top)

    def _piece(self, token: int) -> tuple[str, bytes]:
        if token not in self._known:
            raw = self._tokenizer.token_bytes(token)
            self._known[token] = raw.decode(errors="replace"), raw
        return self._known[token]


class Writing:
    """Text that is certain is handed out at once; what may still become a stop string is held back.

    Attributes:
        text: all that was handed out.
        stopped: whether a stop string was met, which is not part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._stream = tokenizer.stream()
        self._stop = tuple(stop)
        self._held = ""
        self._parts: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now, which may be empty."""
        if self.stopped:
            return ""
        return self._hand_out(self._held + self._stream.push(token))

    def finish(self) -> str:
        """The answer has ended: what was held back."""
        if self.stopped:
            return ""
        rest = self._hand_out(self._held + self._stream.finish())
        if not self.stopped:
            rest += self._held
            self._parts.append(self._held)
            self._held = ""
        return rest

    def _hand_out(self, text: str) -> str:
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            certain = text[: min(places)]
        else:
            held = max((_overlap(text, stop) for stop in self._stop), default=0)
            certain, self._held = text[: len(text) - held], text[len(text) - held :]
        if certain:
            self._parts.append(certain)
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
