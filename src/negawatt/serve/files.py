"""`Files`: what clients upload for batches, and what batches write for them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.database import Database, Row
from negawatt.errors import NegawattError
from negawatt.home import written_beside

_TABLE = (
    "CREATE TABLE IF NOT EXISTS files (id TEXT PRIMARY KEY, owner TEXT NOT NULL, filename TEXT NOT NULL, "
    "purpose TEXT NOT NULL, bytes BIGINT NOT NULL, created_s DOUBLE PRECISION NOT NULL)"
)


@dataclass(frozen=True, slots=True)
class File:
    """Attributes:
    id: as clients call it.
    owner: the team or key that may see it.
    filename: as it was uploaded.
    purpose: ``batch`` or ``batch_output``.
    bytes: its length.
    created_s: seconds since the epoch.
    """

    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_s: float

    def to_json(self) -> dict[str, Any]:
        """OpenAI's file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created_s),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class Files:
    """Files by id, each seen by its owner alone. They hold prompts and answers until they are deleted.

    Args:
        database: what is known of them; the files themselves are in the folder.
        folder: readable by this user alone; servers that share the database share it too.
        clock: seconds since the epoch.
    """

    def __init__(self, database: Database, folder: Path, clock: Callable[[], float]) -> None:
        self._database, self.folder, self._clock = database, folder, clock
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise NegawattError(f"cannot make {folder}: {exc.strerror or exc}") from exc
        database.create([_TABLE])

    def add(self, owner: str, filename: str, purpose: str, content: bytes) -> File:
        """Keep a file."""
        identity = f"file-{secrets.token_hex(12)}"
        with written_beside(self.folder / identity) as temporary:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(content)
        return self._keep(File(identity, owner, filename, purpose, len(content), self._clock()))

    def adopt(self, owner: str, identity: str, filename: str, content: Path) -> File:
        """Make what a batch wrote a file of the owner's; done twice it is the same file."""
        size = content.stat().st_size
        with contextlib.suppress(FileExistsError):
            os.link(content, self.folder / identity)
        return self._keep(File(identity, owner, filename, "batch_output", size, self._clock()))

    def find(self, owner: str, identity: str) -> File | None:
        """A file of an owner; None when there is none, or it is somebody else's."""
        with self._database.read() as session:
            rows = session.execute("SELECT * FROM files WHERE id = ? AND owner = ?", (identity, owner))
        return _file(rows[0]) if rows else None

    def all(self, owner: str) -> list[File]:
        """Files of an owner, the newest first."""
        with self._database.read() as session:
            rows = session.execute(
                "SELECT * FROM files WHERE owner = ? ORDER BY created_s DESC, id", (owner,)
            )
        return [_file(row) for row in rows]

    def path(self, file: File) -> Path:
        return self.folder / file.id

    def delete(self, file: File) -> None:
        """Forget a file and what was in it."""
        with self._database.write("files") as session:
            session.execute("DELETE FROM files WHERE id = ?", (file.id,))
        self.path(file).unlink(missing_ok=True)

    def _keep(self, file: File) -> File:
        with self._database.write("files") as session:
            session.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (file.id, file.owner, file.filename, file.purpose, file.bytes, file.created_s),
            )
        return file


def _file(row: Row) -> File:
    return File(*row)
