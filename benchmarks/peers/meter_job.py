"""One of the jobs that every meter is shown: ``one-core``, ``two-cores`` or ``waiting``, for some seconds."""

import os
import sys
import tempfile
import time


def spin(until):
    while time.monotonic() < until:
        sum(range(10_000))


def main(kind, seconds):
    until = time.monotonic() + seconds
    if kind == "two-cores":
        child = os.fork()
        spin(until)
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    elif kind == "one-core":
        spin(until)
    else:
        with tempfile.TemporaryFile() as file:
            while time.monotonic() < until:
                file.seek(0)
                file.write(os.urandom(1 << 20))
                file.flush()
                os.fsync(file.fileno())
                time.sleep(0.2)


main(sys.argv[1], float(sys.argv[2]))
