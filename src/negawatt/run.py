"""`Run`: a results folder that can be appended to, killed, resumed, copied and read elsewhere.

Layout::

    run.json        manifest: schema version, kind, what was asked, machine; replaced whole
    records.jsonl   one record a line, appended and synced; a torn last line is dropped on reading
    result.json     the outcome, present exactly when the run is finished
    lock            held while a process writes (advisory lock; freed by the kernel when it dies)
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from negawatt.errors import RunError
from negawatt.home import home, write_json

SCHEMA = 1


def new_path(kind: str, mark: str = "") -> Path:
    """A folder that does not exist yet, ``NEGAWATT_HOME/runs/KIND-DATE-TIME``.

    Args:
        mark: what is put behind the time, where it alone would not tell runs of several machines apart.
    """
    base = home() / "runs" / "-".join(filter(None, (kind, time.strftime("%Y%m%d-%H%M%S"), mark)))
    path, n = base, 1
    while path.exists():
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path


def is_run(path: Path) -> bool:
    """Whether a folder holds a run.

    Raises:
        RunError: it may not be looked into.
    """
    try:
        return (path / "run.json").is_file()
    except OSError as exc:
        raise RunError(f"cannot look into {path}: {exc.strerror or exc}") from exc


def _is_of_others(entry: Path) -> bool:
    """Whether something in a folder is not just what a kill left of making a run there."""
    return not entry.name.startswith(".run.json.")


class Journal(Protocol):
    """Where a run is kept besides its folder. What a call was given is kept when it returns.

    Every call raises `RunError` where it cannot be kept.
    """

    def append(self, kind: str, line: str) -> None:
        """Keep a record, given as the line of JSON that it is."""
        ...

    def manifest(self, content: Mapping[str, Any]) -> None:
        """Keep the manifest in the place of the one before."""
        ...

    def result(self, content: Mapping[str, Any]) -> None:
        """Keep the outcome."""
        ...

    def close(self) -> None:
        """Nothing more will come."""
        ...


class Run:
    """A results folder. Make one with `Run.create`, read or continue one with `Run.open`.

    Attributes:
        path: the folder.
        manifest: the content of ``run.json``.
        journal: where it is kept besides; what goes there goes there first, so that it never lacks what
            the folder has.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.journal: Journal | None = None
        self._lock: IO[str] | None = None

    # -- opening ---------------------------------------------------------------------------------

    @classmethod
    def create(cls, kind: str, *, path: Path | None = None, **manifest: Any) -> Run:
        """Make a new run folder, by default ``NEGAWATT_HOME/runs/KIND-DATE-TIME``, and lock it.

        Raises:
            RunError: the folder exists and holds something already.
        """
        path = path or new_path(kind)
        try:
            taken = path.exists() and (not path.is_dir() or any(map(_is_of_others, path.iterdir())))
        except OSError as exc:
            raise RunError(f"cannot use {path}: {exc.strerror or exc}") from exc
        if taken:
            raise RunError(f"{path} exists and is not empty; choose another folder, or resume it")
        from negawatt import __version__

        content = {
            "schema": SCHEMA,
            "kind": kind,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "negawatt": __version__,
            **manifest,
        }
        write_json(path / "run.json", content)
        run = cls(path, content)
        run.lock()
        return run

    @classmethod
    def open(cls, path: Path | str, *, kind: str | None = None) -> Run:
        """Open an existing run for reading; call `lock` before appending.

        Raises:
            RunError: no run there, damaged, of another kind, or written by a newer version.
        """
        path = Path(path)
        manifest_file = path / "run.json"
        if not is_run(path):
            raise RunError(f"{path} is not a run: it holds no run.json")
        try:
            manifest = json.loads(manifest_file.read_text("utf-8"))
            schema = int(manifest["schema"])
            found = str(manifest["kind"])
        except OSError as exc:
            raise RunError(f"cannot read {manifest_file}: {exc.strerror or exc}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise RunError(f"{manifest_file} is damaged: {exc}") from exc
        if schema > SCHEMA:
            raise RunError(
                f"{path} was written by a newer Negawatt (schema {schema}, this version reads up to {SCHEMA})"
            )
        if kind is not None and found != kind:
            raise RunError(f"{path} is a {found} run, not a {kind} run")
        return cls(path, manifest)

    def lock(self) -> None:
        """Take the writer's lock, held until `close` or the end of the process.

        Raises:
            RunError: another process is writing to this run, or this one may not.
        """
        if self._lock is not None:
            return
        try:
            handle = (self.path / "lock").open("w")
        except OSError as exc:
            raise RunError(f"cannot write to {self.path}: {exc.strerror or exc}") from exc
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: no advisory locks; the folder name keeps writers apart
            pass
        except OSError as exc:
            handle.close()
            raise RunError(f"{self.path} is in use by another process") from exc
        self._lock = handle

    def close(self) -> None:
        """Free the lock."""
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- records ---------------------------------------------------------------------------------

    def append(self, kind: str, record: Mapping[str, Any]) -> None:
        """Append one record durably (written and synced before returning).

        Raises:
            RunError: the disk is full or the folder is not writable.
        """
        line = json.dumps({"record": kind, **record}, ensure_ascii=False, allow_nan=False)
        self.lock()
        if self.journal is not None:
            self.journal.append(kind, line)
        try:
            with (self.path / "records.jsonl").open("ab+") as file:
                if file.tell() and not self._ends_with_newline(file):
                    file.write(b"\n")  # a line torn by a kill stays torn; ours starts fresh
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise RunError(f"cannot append to {self.path}: {exc.strerror or exc}") from exc

    @staticmethod
    def _ends_with_newline(file: IO[bytes]) -> bool:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

    def records(self, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the records of a kind, or all, in the order they were appended.

        Raises:
            RunError: they may not be read.
        """
        file = self.path / "records.jsonl"
        try:
            lines = file.open("rb")
        except FileNotFoundError:
            return
        except OSError as exc:
            raise RunError(f"cannot read the records of {self.path}: {exc.strerror or exc}") from exc
        with lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # torn by a kill while it was being appended
                if isinstance(record, dict) and (kind is None or record.get("record") == kind):
                    yield record

    # -- result ----------------------------------------------------------------------------------

    def update(self, **changes: Any) -> None:
        """Change fields of the manifest, whole or not at all."""
        self.manifest = {**self.manifest, **changes}
        if self.journal is not None:
            self.journal.manifest(self.manifest)
        write_json(self.path / "run.json", self.manifest)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``; from now on the run is finished."""
        if self.journal is not None:
            self.journal.result(result)
        write_json(self.path / "result.json", result)

    @property
    def result(self) -> dict[str, Any] | None:
        """The outcome, or None while the run is unfinished.

        Raises:
            RunError: ``result.json`` is damaged.
        """
        file = self.path / "result.json"
        try:
            result = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise RunError(f"cannot read {file}: {exc.strerror or exc}") from exc
        except ValueError as exc:
            raise RunError(f"{file} is damaged: {exc}") from exc
        if not isinstance(result, dict):
            raise RunError(f"{file} is damaged: it holds no JSON object")
        return result
