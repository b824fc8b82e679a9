"""A server in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEGAWATT = "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``negawatt serve`` with these arguments: its address and process; its log is ``folder/log``."""
    command = [sys.executable, "-c", NEGAWATT, "serve", "--threads", "1", "--port", "0", "--json", *arguments]
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    watchdog = threading.Timer(290, process.kill)
    watchdog.start()
    try:
        said = ""
        while (line := process.stdout.readline()) and line.rstrip() != "}":
            said += line
        assert said, (folder / "log").read_text()
        yield json.loads(said + "}")["address"], process
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(20)
        process.stdout.close()
        log.close()
