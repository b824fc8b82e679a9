"""Calling ``negawatt compress`` as a user does, on little text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()"]


def arguments(model: Path, text: Path, output: Path, *passes: str) -> list[str]:
    given = ["compress", str(model), "--calibration", str(text), "--windows", "4", "--heldout", "2"]
    given += ["--length", "64", "--threads", "1", "-o", str(output)]
    return given + [word for each in passes for word in ("--pass", each)]


def message(model: Path, text: Path, output: Path, *passes: str) -> tuple[int, str]:
    """Exit code and the one sentence of a call that fails."""
    return sentence([*NEGAWATT, *arguments(model, text, output, *passes)], output)


def sentence(command: list[str], output: Path) -> tuple[int, str]:
    """Exit code and the one sentence of a command that fails and leaves no output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert not output.exists()
    return done.returncode, lines[0]
