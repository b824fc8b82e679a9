"""The peers' meters as processes that open and close windows when told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
PACKAGES = {"codecarbon": ["codecarbon==3.3.2"], "zeus": ["zeus==0.16.0"], "perun": ["perun==1.0.0"]}


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
