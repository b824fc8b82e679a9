"""Environments of their own for the peers, made on first use and kept."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, name: str, packages: Sequence[str]) -> Path:
    """The Python of the environment `name` below `folder`, with `packages` installed."""
    python = folder / name / "bin" / "python"
    done = folder / name / "done"
    if not done.exists():
        print(f"making the environment of {name} …", file=sys.stderr)
        venv.create(folder / name, with_pip=True, clear=True)
        for package in packages:
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
        done.touch()
    return python
