"""`Parcel`: a model that another machine finds by its hash, or is sent piece by piece."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from negawatt.artifact import Artifact
from negawatt.catalog.hashing import check
from negawatt.catalog.lock import locked
from negawatt.catalog.manifest import NAME as MANIFEST
from negawatt.errors import IntegrityError, NegawattError
from negawatt.home import home, written_beside

PIECE_BYTES = 16 * 2**20
"""Of a file at a time: small beside any object store."""
ABANDONED_S = 24 * 3600.0
"""A delivery that nothing was added to for so long was cut off."""


@dataclass(frozen=True)
class Parcel:
    """What names a model for another machine.

    Attributes:
        name, source, license, notes, lineage: as in `Artifact`.
        sha256: of its content.
        path: where it lies here.
        in_home: the same relative to Negawatt's home; None where it lies elsewhere.
        files: relative path → hash and length.
    """

    name: str
    sha256: str
    path: str
    in_home: str | None
    files: Mapping[str, tuple[str, int]]
    source: str = ""
    license: str = ""
    notes: str = ""
    lineage: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def of(cls, artifact: Artifact) -> Parcel:
        path = artifact.path.resolve()
        inside = path.is_relative_to(home().resolve())
        return cls(
            artifact.name, artifact.sha256, str(path),
            str(path.relative_to(home().resolve())) if inside else None,
            {name: (record.sha256, record.size_bytes) for name, record in artifact.files.items()},
            artifact.source, artifact.license, artifact.notes, artifact.lineage,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parcel:
        """Read back what `to_json` wrote.

        Raises:
            IntegrityError: it names a file outside its folder, or no hash.
        """
        files = {str(name): (str(digest), int(size)) for name, (digest, size) in data["files"].items()}
        fields = {**data, "files": files, "lineage": tuple(data["lineage"])}
        parcel = cls(**fields)
        plain = len(parcel.sha256) == 64 and all(c in "0123456789abcdef" for c in parcel.sha256)
        for name in files:
            place = PurePosixPath(name)
            if not plain or place.is_absolute() or ".." in place.parts or not place.parts:
                raise IntegrityError(f"a model was announced that names {name!r}, or by no hash")
        return parcel

    # -- on the machine that needs it --------------------------------------------------------------

    def found(self) -> Artifact | None:
        """The model on this machine, wherever it has the same content; None where it must be sent.

        A folder without hashes of its own is hashed once, and linked to with them.
        """
        places = [self._received, Path(self.path)]
        if self.in_home is not None:
            places.insert(1, home() / self.in_home)
        for place in places:
            with suppress(NegawattError, OSError):  # something else lies there, or nothing
                artifact = Artifact.open(place)
                if artifact.sha256 != self.sha256:
                    continue
                if place == self._received or (place / MANIFEST).is_file():
                    return artifact
                return self._linked(artifact)
        return None

    @property
    def _received(self) -> Path:
        return home() / "cache" / "received" / self.sha256

    def _linked(self, artifact: Artifact) -> Artifact:
        folder = artifact.path if artifact.path.is_dir() else artifact.path.parent
        with locked(self._received.with_name(f"{self.sha256}.lock")):
            if not self._received.is_dir():
                with written_beside(self._received) as place:
                    for name in artifact.files:
                        (place / name).parent.mkdir(parents=True, exist_ok=True)
                        (place / name).symlink_to(folder / name)
                    self._created(place)
        return Artifact.open(self._received)

    def _created(self, place: Path) -> None:
        made = Artifact.create(
            place, name=self.name, source=self.source, license=self.license, lineage=self.lineage,
            notes=self.notes,
        )  # fmt: skip
        if made.sha256 != self.sha256:
            raise IntegrityError(f"{self.name} arrived with other content than was announced")

    def accept(self, delivery: str, name: str, offset: int, data: bytes) -> None:
        """Write a piece of a file; `seal` makes a model of them.

        Args:
            delivery: letters that tell this delivery from another of the same model.

        Raises:
            IntegrityError: no such file was announced, or it is longer than was announced.
            NegawattError: the disk is full or the place cannot be written.
        """
        if name not in self.files or not delivery.isalnum():
            raise IntegrityError(f"{self.name} has no file {name!r}")
        if offset < 0 or offset + len(data) > self.files[name][1]:
            raise IntegrityError(f"{name} is longer than was announced")
        target = self._partial(delivery) / name
        try:
            if offset == 0:
                self._clear()
                target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(data)
        except OSError as exc:
            shutil.rmtree(self._partial(delivery), ignore_errors=True)
            raise NegawattError(f"cannot write {target}: {exc.strerror or exc}") from exc

    def seal(self, delivery: str) -> None:
        """Check what was delivered and put it in its place.

        Raises:
            IntegrityError: something is missing or differs.
        """
        partial = self._partial(delivery)
        try:
            for name, (digest, size) in self.files.items():
                check(partial / name, digest, size, what=name)
            self._created(partial)
            with locked(self._received.with_name(f"{self.sha256}.lock")):
                if not self._received.is_dir():
                    partial.replace(self._received)
        except OSError as exc:
            raise NegawattError(f"cannot keep {self.name}: {exc.strerror or exc}") from exc
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _partial(self, delivery: str) -> Path:
        return self._received.with_name(f".{self.sha256}-{delivery}")

    def _clear(self) -> None:
        """Remove what deliveries that were cut off left."""
        for place in self._received.parent.glob(f".{self.sha256}-*"):
            with suppress(OSError):
                if time.time() - place.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(place, ignore_errors=True)

    # -- on the machine that has it ----------------------------------------------------------------

    def pieces(self) -> Iterator[tuple[str, int, bytes]]:
        """Name, offset and content of every piece of its files, in order."""
        path = Path(self.path)
        for name, (_, size) in self.files.items():
            with (path / name if path.is_dir() else path).open("rb") as file:
                for offset in range(0, max(size, 1), PIECE_BYTES):
                    yield name, offset, file.read(PIECE_BYTES)


def delivery_name() -> str:
    """Letters that no other delivery has."""
    return os.urandom(8).hex()
