"""`Key`: who may call, for which team, how urgently and how often; and where keys are kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.database import Database, Row
from negawatt.errors import NegawattError, UsageError
from negawatt.home import home

FRESH_S = 0.5
"""A revoked key works for at most this long."""

_TABLE = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    hash TEXT NOT NULL,
    team TEXT NOT NULL,
    priority BIGINT NOT NULL,
    requests_per_minute DOUBLE PRECISION,
    tokens_per_minute DOUBLE PRECISION,
    created_s DOUBLE PRECISION NOT NULL,
    expires_s DOUBLE PRECISION,
    revoked_s DOUBLE PRECISION
)"""
_COLUMNS = (
    "id, name, team, priority, requests_per_minute, tokens_per_minute, created_s, expires_s, revoked_s, hash"
)
_FORM = re.compile(r"nw-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[\w][\w .@/-]{0,62}")


class KeyRefused(NegawattError):
    """No key, an unknown one, or one that no longer holds; the message never says which part was wrong."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret.

    Attributes:
        id: what lists, logs and receipts call it; it opens nothing.
        name: chosen by its owner.
        team: whose budget it draws on too; empty for none.
        priority: of its requests; higher goes first.
        requests_per_minute, tokens_per_minute: rate limits; None for none.
        created_s, expires_s, revoked_s: seconds since the epoch; None for never.
    """

    id: str
    name: str
    team: str = ""
    priority: int = 0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    created_s: float = 0.0
    expires_s: float | None = None
    revoked_s: float | None = None

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("team", self.team)):
            if (text or what == "name") and not _NAME.fullmatch(text):
                raise UsageError(f"a {what} has 1 to 63 letters, digits, spaces or ._@/-, unlike {text!r}")
        for rate in (self.requests_per_minute, self.tokens_per_minute):
            if rate is not None and not 0 < rate < 1e12:
                raise UsageError(f"expected a rate above 0 a minute, not {rate:g}")

    def holds(self, now_s: float) -> bool:
        """Whether it opens anything now."""
        return self.revoked_s is None and (self.expires_s is None or now_s < self.expires_s)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def server_secret(file: Path | None = None) -> bytes:
    """The server's secret of 32 bytes, which keys are hashed and the ledger is chained with.

    Made at the first call, readable by its owner alone. Without it no key is known any more.

    Args:
        file: where it is kept; by default in Negawatt's home.

    Raises:
        NegawattError: others may read the file, it is no secret of ours, or it cannot be made.
    """
    place = file or home() / "serve" / "secret"
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = place.with_name(f".{place.name}.{os.getpid()}.{secrets.token_hex(4)}")
        if not place.exists():
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as out:
                out.write(secrets.token_hex(32) + "\n")
            try:
                os.link(beside, place)  # the first of several that race for it wins
            except FileExistsError:
                pass
            finally:
                beside.unlink()
        if place.stat().st_mode & 0o077:
            raise NegawattError(f"{place} can be read by others; make it yours alone: chmod 600 {place}")
        found = bytes.fromhex(place.read_text("ascii").strip())
    except OSError as exc:
        raise NegawattError(f"cannot keep the server's secret in {place}: {exc.strerror or exc}") from exc
    except ValueError:
        found = b""
    if len(found) != 32:
        raise NegawattError(f"{place} holds no secret of 64 hexadecimal digits; put back what was there")
    return found


class Keys:
    """The keys of a server.

    A key is ``nw-ID-SECRET``. Of the secret only a keyed hash is stored (HMAC-SHA-256, RFC 2104, with
    the server's secret): 256 random bits need no slow hash, and a stolen table checks no guesses.

    Args:
        database: where they are kept.
        secret: see `server_secret`.
        clock: seconds since the epoch.
    """

    def __init__(self, database: Database, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._database, self._secret, self._clock = database, secret, clock
        self._known: dict[str, tuple[float, Key, bytes]] = {}
        self._lock = threading.Lock()
        database.create([_TABLE])

    def create(self, name: str, **chosen: Any) -> tuple[Key, str]:
        """Make a key; the text is returned this once and kept nowhere.

        Args:
            name: for its owner to know it by.
            chosen: any of `Key`'s team, priority, rates and ``expires_s``.

        Raises:
            UsageError: a name or a rate that `Key` refuses.
        """
        identity = secrets.token_hex(6)
        text = f"nw-{identity}-{secrets.token_urlsafe(32)}"
        key = Key(identity, name, created_s=self._clock(), **chosen)
        values = (
            *(key.id, key.name, key.team, key.priority, key.requests_per_minute, key.tokens_per_minute),
            *(key.created_s, key.expires_s, key.revoked_s, self._hash(text).hex()),
        )
        with self._database.write("keys") as session:
            marks = ", ".join("?" * len(values))
            session.execute(f"INSERT INTO keys ({_COLUMNS}) VALUES ({marks})", values)  # noqa: S608
        return key, text

    def all(self) -> list[Key]:
        """Every key that was ever made, the oldest first."""
        with self._database.read() as session:
            rows = session.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created_s, id")  # noqa: S608
        return [_key(row) for row in rows]

    def revoke(self, identity: str) -> Key:
        """End a key, by its id; every server forgets it within `FRESH_S`.

        Raises:
            UsageError: there is no such key.
        """
        with self._database.write("keys") as session:
            session.execute(
                "UPDATE keys SET revoked_s = ? WHERE id = ? AND revoked_s IS NULL", (self._clock(), identity)
            )
        found = self._stored(identity)
        if found is None:
            raise UsageError(f"there is no key {identity!r}; `negawatt keys list` shows their ids")
        with self._lock:
            self._known.pop(identity, None)
        return found[0]

    def check(self, authorization: str | None) -> Key:
        """The key in an ``Authorization`` header.

        Every refusal takes the same comparison, in constant time.

        Raises:
            KeyRefused: none, unknown, revoked or expired.
        """
        scheme, _, text = (authorization or "").partition(" ")
        text = text.strip()
        form = _FORM.fullmatch(text) if scheme.lower() == "bearer" else None
        found = self._recent(form[1]) if form else None
        digest = self._hash(text[:256])
        right = hmac.compare_digest(digest, found[1] if found else bytes(32))
        if found is None or not right or not found[0].holds(self._clock()):
            raise KeyRefused("expected an API key that holds, as in `Authorization: Bearer nw-…`")
        return found[0]

    def held(self, identity: str) -> Key:
        """A key by its id.

        Raises:
            KeyRefused: there is none, or it is revoked or expired.
        """
        found = self._recent(identity)
        if found is None or not found[0].holds(self._clock()):
            raise KeyRefused(f"the key {identity} holds no longer")
        return found[0]

    def _recent(self, identity: str) -> tuple[Key, bytes] | None:
        now = time.monotonic()
        with self._lock:
            kept = self._known.get(identity)
        if kept is not None and now - kept[0] < FRESH_S:
            return kept[1], kept[2]
        found = self._stored(identity)
        with self._lock:
            if found is None:
                self._known.pop(identity, None)
            else:
                self._known[identity] = (now, *found)
        return found

    def _stored(self, identity: str) -> tuple[Key, bytes] | None:
        with self._database.read() as session:
            rows = session.execute(f"SELECT {_COLUMNS} FROM keys WHERE id = ?", (identity,))  # noqa: S608
        return (_key(rows[0]), bytes.fromhex(rows[0][-1])) if rows else None

    def _hash(self, text: str) -> bytes:
        return hmac.new(self._secret, b"key:" + text.encode("utf-8", "replace"), hashlib.sha256).digest()


def _key(row: Row) -> Key:
    return Key(*row[:-1])
