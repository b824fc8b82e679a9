"""Where Negawatt keeps models, data and runs, and how it writes files so that none is ever half there."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from negawatt.errors import NegawattError


def home() -> Path:
    """``NEGAWATT_HOME``, or the platform's data folder."""
    if chosen := os.environ.get("NEGAWATT_HOME"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "negawatt"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "negawatt"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "negawatt"


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; rename it to `target` when the block succeeds.

    Works for a file or a folder. When the block raises, or the process is interrupted, the
    temporary path is removed and `target` is untouched.

    Raises:
        NegawattError: the disk is full or the folder cannot be written.
    """
    import shutil

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as exc:
        raise NegawattError(f"cannot write {target}: {exc.strerror or exc}") from exc
    try:
        temporary = holder / target.name
        yield temporary
        if target.is_dir() and not target.is_symlink():
            target.replace(holder / "replaced")  # goes with the holder; the gap is two renames
        temporary.replace(target)
    except OSError as exc:
        raise NegawattError(f"cannot write {target}: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_json(target: Path, data: Any) -> None:
    """Write one JSON document, whole or not at all; into a device or pipe, as far as it goes.

    Raises:
        NegawattError: the disk is full or the place cannot be written.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if target.exists() and not target.is_file() and not target.is_dir():
        try:
            target.write_text(text, "utf-8")  # nothing can be put in the place of /dev/stdout
        except OSError as exc:
            raise NegawattError(f"cannot write {target}: {exc.strerror or exc}") from exc
        return
    with written_beside(target) as temporary:
        temporary.write_text(text, "utf-8")
