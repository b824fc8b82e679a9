"""Hashing files and saying what is wrong with them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from negawatt.errors import IntegrityError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; reads it once in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, sha256: str, size_bytes: int, *, what: str) -> None:
    """Compare a file with its promised length and hash.

    Raises:
        IntegrityError: it differs, or is not there.
    """
    if not path.is_file():
        raise IntegrityError(f"{what}: {path.name} is missing; fetch or make it again")
    actual = path.stat().st_size
    if actual != size_bytes:
        state = "truncated" if actual < size_bytes else "too long"
        raise IntegrityError(f"{what} is {state}: {actual:,} of {size_bytes:,} bytes; fetch or make it again")
    if (found := sha256_of(path)) != sha256:
        raise IntegrityError(
            f"{what} is not the file it should be: sha256 {found[:12]}… instead of {sha256[:12]}…; "
            "fetch or make it again"
        )
