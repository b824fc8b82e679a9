"""``negawatt monitor``, run as people run it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()"]


def monitor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NEGAWATT, "monitor", *arguments], capture_output=True, text=True, timeout=60)


def total(document: dict[str, object], *kinds: str) -> float:
    found = 0.0
    for kind in kinds:
        lines = document[kind] if isinstance(document[kind], list) else [document[kind]]
        found += sum(line["energy"]["value_j"] or 0.0 for line in lines)  # type: ignore[union-attr,index]
    return found


def test_once_prints_one_document_whose_parts_make_the_whole() -> None:
    done = monitor("--once", "--json", "--interval", "0.2")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    whole = document["energy"]["value_j"]
    assert whole > 0
    assert total(document, "idle", "unattributed", "processes", "ended") == pytest.approx(whole, rel=1e-9)
    assert total(document, "idle", "unattributed", "groups", "ended_groups") == pytest.approx(whole, rel=1e-9)
    assert 0.19 < document["duration_s"] < 0.95  # and not the usual second


def test_once_prints_a_table() -> None:
    done = monitor("--once", "--interval", "0.2")
    assert done.returncode == 0
    assert "unattributed" in done.stdout
    assert " W (" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_all_exports_whole(number: signal.Signals, tmp_path: Path) -> None:
    files = ["--csv", str(tmp_path / "a.csv"), "--parquet", str(tmp_path / "p")]
    process = subprocess.Popen(
        [*NEGAWATT, "monitor", "--json", "--interval", "0.1", *files],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    documents = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(number)
    rest, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")
    documents += [json.loads(line) for line in rest.splitlines()]
    assert all(d["duration_s"] > 0 for d in documents)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert sum(",machine," in line for line in lines) == len(documents)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "p")
    assert table.column("kind").to_pylist().count("machine") == len(documents)


def test_it_serves_prometheus_while_a_dead_collector_is_one_sentence(tmp_path: Path) -> None:
    from test_exporters import free_port, wait_for

    port = free_port()
    process = subprocess.Popen(
        [*NEGAWATT, "monitor", "--interval", "0.1", "--prometheus-port", str(port),
         "--otlp", f"http://127.0.0.1:{free_port()}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def scraped() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    try:
        wait_for(lambda: f'pid="{process.pid}"' in scraped())
        time.sleep(3)
        assert "negawatt_unattributed_joules_total" in scraped()
    finally:
        process.terminate()
        out, said = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert said.startswith("negawatt: OTLP: ")
    assert said.count("\n") == 1


def test_a_terminal_gets_a_table_that_is_drawn_anew_until_it_is_interrupted() -> None:
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp(NEGAWATT[0], [*NEGAWATT, "monitor", "--interval", "0.2", "--top", "3"])
    seen = b""
    while seen.count(b"unattributed") < 2:
        seen += os.read(fd, 4096)
    os.write(fd, b"\x03")  # Ctrl-C, as the terminal sends it
    try:
        while os.read(fd, 4096):
            pass
    except OSError:  # the terminal's other end is closed
        pass
    os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_wrong_usage_gets_a_sentence() -> None:
    done = monitor("--otlp", "localhost", "--once")
    assert done.returncode == 2
    assert "http://localhost:4318" in done.stderr
    assert monitor("--interval", "0").returncode == 2


def test_a_reader_that_leaves_ends_it() -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [*NEGAWATT, "monitor", "--json", "--interval", "0.1"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    os.close(read)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Traceback" not in said
