"""The store: what was pulled lies under ``NEGAWATT_HOME``, once, checked, whole or not at all."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from negawatt.catalog import manifest
from negawatt.catalog.archive import extract
from negawatt.catalog.entry import KINDS, Entry, entry
from negawatt.catalog.fetch import fetch
from negawatt.catalog.hashing import check
from negawatt.catalog.http import Progress
from negawatt.catalog.lock import locked
from negawatt.errors import ConsentError, DownloadError, IntegrityError, NegawattError
from negawatt.home import home, written_beside


def folder(name: str) -> Path:
    """Where the entry lies once pulled: ``NEGAWATT_HOME/models|data|runtimes/NAME``.

    Raises:
        UsageError: the catalogue has no such entry.
    """
    return home() / KINDS[entry(name).kind] / name


def find(name: str) -> Path | None:
    """The entry's folder when it is here with all its files at their lengths, else None.

    Raises:
        UsageError: the catalogue has no such entry.
    """
    place = folder(name)
    if not (place / manifest.NAME).is_file():
        return None
    whole = all(_has_size(place / f.name, f.size_bytes) for f in entry(name).files)
    return place if whole else None


def verify(name: str) -> Path:
    """Hash every file of a pulled entry again.

    Raises:
        IntegrityError: it is not here, or a file differs from what the catalogue pins.
    """
    place = folder(name)
    if not place.is_dir():
        raise IntegrityError(f"{name} has not been pulled")
    for file in entry(name).files:
        check(place / file.name, file.sha256, file.size_bytes, what=str(place / file.name))
    return place


def pull(name: str, *, accept_license: bool = False, progress: Progress | None = None) -> Path:
    """Fetch, check and store an entry, unless it is here already; return its folder.

    Safe to interrupt, to repeat and to run twice at once. What was downloaded before an
    interruption is used again.

    Args:
        name: name of an entry of any kind.
        accept_license: the user accepts the terms of an entry that asks for consent.
        progress: called with bytes done, bytes in all, and what is being done.

    Raises:
        UsageError: the catalogue has no such entry.
        ConsentError: the terms must be accepted first; the message names them.
        DownloadError: the network, the registry or the disk does not let it through.
        IntegrityError: what came is not what the catalogue pins.
    """
    wanted = entry(name)
    if place := find(name):
        return place
    if not wanted.packages:
        raise DownloadError(f"{name} is not available for this kind of machine")
    if wanted.needs_consent and not accept_license:
        raise ConsentError(
            f"{name} comes under the {wanted.license} ({wanted.license_url}); read them, and if you accept, "
            f"add --accept-license"
        )
    report: Progress = progress or (lambda done, total, text: None)
    with locked(home() / "cache" / "downloads" / f"{name}.lock", report):
        if place := find(name):  # another process was quicker
            return place
        _require_space(wanted)
        return _store(wanted, report)


def _store(wanted: Entry, progress: Progress) -> Path:
    downloads = home() / "cache" / "downloads" / wanted.name
    target = folder(wanted.name)
    total, before = wanted.download_bytes, 0
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        archives = []
        for package in wanted.packages:

            def shifted(done: float, _: float | None, text: str, before: int = before) -> None:
                progress(before + done, total, text)

            archives.append(fetch(package, downloads, shifted))
            before += package.size_bytes
        for piecewise in wanted.joined:
            progress(total, total, f"joining {piecewise.name}")
            extract(piecewise, archives, downloads / piecewise.name)
            archives.append(downloads / piecewise.name)
        with written_beside(target) as temporary:
            temporary.mkdir()
            for file in wanted.files:
                progress(total, total, f"unpacking {file.name}")
                extract(file, archives, temporary / file.name)
            _manifest(wanted).write(temporary)
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise DownloadError(f"no space left under {home()}; free some and try again") from exc
        raise NegawattError(f"cannot write under {home()}: {exc.strerror or exc}") from exc
    shutil.rmtree(downloads, ignore_errors=True)
    return target


def _manifest(wanted: Entry) -> manifest.Manifest:
    return manifest.Manifest(
        name=wanted.name,
        kind=wanted.kind,
        source=wanted.source,
        license=wanted.license,
        files={f.name: manifest.FileRecord(f.sha256, f.size_bytes) for f in wanted.files},
        formats=manifest.formats_of(f.name for f in wanted.files),
        notes=wanted.notes,
    )


def _has_size(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes


def _require_space(wanted: Entry) -> None:
    need = wanted.download_bytes + wanted.size_bytes + sum(file.size_bytes for file in wanted.joined)
    free = shutil.disk_usage(home()).free
    if free < need:
        raise DownloadError(
            f"{wanted.name} needs {need / 1e6:,.0f} MB while it is unpacked, and {home()} has "
            f"{free / 1e6:,.0f} MB left; free some, or point NEGAWATT_HOME elsewhere"
        )
