"""Reading single members out of archives: nothing is ever extracted by the path an archive names."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from typing import IO

from negawatt.catalog.entry import StoredFile
from negawatt.errors import IntegrityError

_BLOCK = 1 << 20


def extract(file: StoredFile, archives: Sequence[Path], target: Path) -> None:
    """Write `file` to `target` by joining its parts, found in any of `archives`.

    At most ``file.size_bytes`` are written whatever an archive claims, and the result is checked.

    Raises:
        IntegrityError: a part is missing, or the result has another length or hash.
    """
    digest, written = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        for part in file.parts:
            with _part(part, archives, file.size_bytes) as source:
                while block := source.read(min(_BLOCK, file.size_bytes - written + 1)):
                    written += len(block)
                    if written > file.size_bytes:
                        raise IntegrityError(f"{file.name} is longer than {file.size_bytes:,} bytes")
                    digest.update(block)
                    out.write(block)
    if written != file.size_bytes or digest.hexdigest() != file.sha256:
        raise IntegrityError(f"{file.name} in {archives[0].name} is not the file that the catalogue pins")


@contextmanager
def _part(part: str, archives: Sequence[Path], most: int) -> Iterator[IO[bytes]]:
    """One member, or with a ``*`` in the name all of a tarball that match, in the order of their names."""
    if "*" not in part:
        with _member(part, archives) as source:
            yield source
        return
    found: dict[str, bytes] = {}
    for archive in (a for a in archives if a.suffix not in (".whl", ".zip")):
        try:
            with tarfile.open(archive) as tar:
                for info in tar:
                    if info.isreg() and fnmatchcase(info.name, part) and (stream := tar.extractfile(info)):
                        found[info.name] = stream.read(most + 1)
                        most -= len(found[info.name])  # no more is kept in memory than the file may hold
                        if most < 0:
                            raise IntegrityError(f"{archive.name} holds more of {part} than is pinned")
        except (tarfile.TarError, EOFError) as exc:
            raise IntegrityError(f"{archive.name} is not a readable archive: {exc}") from exc
    if not found:
        raise IntegrityError(f"{', '.join(a.name for a in archives)} hold no {part}")
    yield BytesIO(b"".join(found[name] for name in sorted(found)))


@contextmanager
def _member(part: str, archives: Sequence[Path]) -> Iterator[IO[bytes]]:
    outer, _, inner = part.partition("!")
    for archive in archives:
        try:
            with _opened(archive, outer) as stream:
                if stream is None:
                    continue
                if not inner:
                    yield stream
                    return
                with tarfile.open(fileobj=stream) as nested, _tar_member(nested, inner) as deeper:
                    if deeper is not None:
                        yield deeper
                        return
        except (zipfile.BadZipFile, tarfile.TarError, EOFError) as exc:
            raise IntegrityError(f"{archive.name} is not a readable archive: {exc}") from exc
    raise IntegrityError(f"{', '.join(a.name for a in archives)} hold no {part}")


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes] | None]:
    """The member's bytes, or None when the archive has no regular file of that name."""
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as wheel:
            if member not in wheel.NameToInfo:
                yield None
                return
            with wheel.open(member) as stream:
                yield stream
    else:
        with tarfile.open(archive) as tar, _tar_member(tar, member) as stream:
            yield stream


@contextmanager
def _tar_member(tar: tarfile.TarFile, name: str) -> Iterator[IO[bytes] | None]:
    info = next((m for m in tar if m.name == name and m.isreg()), None)  # links are not followed
    stream = tar.extractfile(info) if info else None
    if stream is None:
        yield None
        return
    with stream:
        yield stream
