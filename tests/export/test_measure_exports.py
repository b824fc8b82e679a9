"""``negawatt measure`` while it exports: the measured job is never disturbed by it."""

import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow.parquet
import pytest
from receiver import Receiver
from test_exporters import free_port, wait_for

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()"]
JOB = "import sys, time; print('out', flush=True); time.sleep({}); sys.exit(7)"
UNTIL = """import os, sys, time
print('out', flush=True)
end = time.monotonic() + 40
while time.monotonic() < end and not (os.path.exists({0!r}) and ',command,' in open({0!r}).read()):
    time.sleep(0.05)
time.sleep(0.3)
sys.exit(7)
"""
"""A job that goes on until it has been written about once."""


def measure(*options: str, job: str = JOB.format(0.3)) -> subprocess.CompletedProcess[str]:
    command = [*NEGAWATT, "measure", *options, "--", sys.executable, "-S", "-c", job]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_rows_and_metrics_tell_what_the_measurement_tells(tmp_path: Path) -> None:
    receiver = Receiver()
    done = measure(
        "--output", str(tmp_path / "m.json"), "--csv", str(tmp_path / "m.csv"),
        "--parquet", str(tmp_path / "p"),
        "--otlp", receiver.url, job=UNTIL.format(str(tmp_path / "m.csv")),
    )  # fmt: skip
    receiver.close()
    assert (done.returncode, done.stdout) == (7, "out\n")
    document = json.loads((tmp_path / "m.json").read_text())
    assert not [w for w in document["warnings"] if "OTLP" in w or "CSV" in w]
    with (tmp_path / "m.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "command"]
    assert len(rows) >= 2  # one a second, and the last
    whole = document["energy"]["value_j"]
    assert sum(float(row["energy_j"]) for row in rows) == pytest.approx(whole, rel=1e-9)
    table = pyarrow.parquet.read_table(tmp_path / "p").to_pylist()
    assert max(row["total_j"] for row in table if row["kind"] == "command") == pytest.approx(whole)
    assert sum(value for value, _ in receiver.points("negawatt.command.energy")) == pytest.approx(whole)


def test_prometheus_can_be_asked_while_the_command_runs() -> None:
    port = free_port()
    process = subprocess.Popen(
        [*NEGAWATT, "measure", "--prometheus-port", str(port), "--", "sleep", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def scraped() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    try:
        wait_for(lambda: "negawatt_command_component_joules_total" in scraped())
        assert "negawatt_component_joules" not in scraped()  # those would be the machine's
    finally:
        process.send_signal(signal.SIGTERM)  # passed on to the command, whatever threads there are
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


def test_every_exporter_may_fail_and_the_job_does_not_notice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not,ours\n")
    busy = Receiver()
    busy.hang.set()
    port = int(busy.url.rpartition(":")[2])
    begun = time.monotonic()
    done = measure(
        "--output", str(tmp_path / "m.json"), "--prometheus-port", str(port), "--otlp", busy.url,
        "--csv", "/dev/full", "--parquet", str(tmp_path / "file"), job=JOB.format(1.2),
    )  # fmt: skip
    assert time.monotonic() - begun < 20
    busy.close()
    assert (done.returncode, done.stdout) == (7, "out\n")
    document = json.loads((tmp_path / "m.json").read_text())
    assert document["duration_s"] < 3  # waiting for exporters is no part of the job
    for words in (
        "OTLP: ",
        "CSV file /dev/full: cannot be written",
        "Parquet folder",
        "Prometheus endpoint: port",
    ):
        assert sum(words in warning for warning in document["warnings"]) == 1, document["warnings"]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "not,ours\n"


def test_a_command_that_cannot_be_run_is_told_at_once(tmp_path: Path) -> None:
    command = [*NEGAWATT, "measure", "--csv", str(tmp_path / "a.csv"), "--", "no-such-command"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "negawatt: there is no command no-such-command\n"


def on_terminal(*arguments: str) -> tuple[int, str]:
    """Run with a terminal for standard error and output; return the exit code and what was seen on it."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp(NEGAWATT[0], [*NEGAWATT, "measure", *arguments])
    seen = b""
    try:
        while data := os.read(fd, 4096):
            seen += data
    except OSError:  # the terminal's other end is closed
        pass
    os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


def test_a_terminal_gets_a_live_line_and_quiet_takes_it_away() -> None:
    code, seen = on_terminal("--", "sh", "-c", "printf hello; sleep 2.6; exit 3")
    assert code == 3
    assert re.search(r"hello.*\x1b7.* J, .* W, [12] s.*\x1b8", seen, re.S)
    code, seen = on_terminal("--quiet", "--", "sh", "-c", "printf hello; sleep 0.7; exit 3")
    assert (code, seen) == (3, "hello")


def test_without_a_terminal_there_is_no_live_line() -> None:
    assert "\x1b" not in measure(job=JOB.format(0.8)).stderr
