"""A server in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NEGAWATT = "import sys; from negawatt.cli import main; sys.argv[0] = 'negawatt'; main()"
_TELLS = "import faulthandler, signal; faulthandler.register(signal.SIGUSR1); "  # where it hangs


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """``negawatt serve`` with these arguments: its address and process; its log is ``folder/log``."""
    serve = [sys.executable, "-c", _TELLS + NEGAWATT, "serve"]
    command = [*serve, "--threads", "1", "--port", "0", "--json", *arguments]
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    watchdog = threading.Timer(290, process.kill)
    watchdog.start()
    try:
        said = ""
        while (line := process.stdout.readline()) and line.rstrip() != "}":
            said += line
        watchdog.cancel()  # from here on each test has its own limit; a server of all of them lives long
        assert said, (folder / "log").read_text()
        yield json.loads(said + "}")["address"], process
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)  # where the disk is busy the last of the database takes its time
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGUSR1)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(2)
                process.kill()
                raise AssertionError((folder / "log").read_text()[-8000:]) from None
        process.stdout.close()
        log.close()
