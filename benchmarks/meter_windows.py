"""The peers' meters as processes that open and close windows when told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
PACKAGES = {"codecarbon": ["codecarbon==3.3.2"], "zeus": ["zeus==0.16.0"], "perun": ["perun==1.0.0"]}


@contextmanager
def detached(*command: str) -> Iterator[None]:
    """A process that is no child of this one, so that it is not charged to it; killed at the end."""
    shell = ["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh", *command]
    pid = int(subprocess.run(shell, stdout=subprocess.PIPE, check=True).stdout)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)


class Peer:
    """A peer's meter in its own environment; `ready` is what it said when it could measure."""

    def __init__(self, python: Path, script: str) -> None:
        self.process = subprocess.Popen(
            [python, PEERS / script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ready = self._answer()

    def ask(self, line: str) -> dict[str, Any]:
        """Send ``start``, ``stop`` or ``time N`` and return the answer."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer died with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
