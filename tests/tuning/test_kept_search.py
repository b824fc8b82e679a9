"""A search kept in PostgreSQL: killed, refused to a second one, continued from another folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg

from negawatt.artifact import Artifact
from negawatt.run import Run
from negawatt.workload import Workload
from negawatt.workload.writer import write_workload
from postgres_server import Server, emptied


def test_killed_it_goes_on_in_another_folder_by_url_and_name(
    small: Artifact, lines: Workload, home_with_engines: Path, postgres_server: Server, tmp_path: Path
) -> None:
    with emptied(postgres_server.url) as url:
        environment = {**os.environ, "NEGAWATT_HOME": str(home_with_engines)}
        asked = write_workload(lines, tmp_path / "lines")

        def command(folder: str, *more: str) -> list[str]:
            return [
                sys.executable, "-c", "from negawatt.cli import main; main()", "tune", str(small.path),
                "--workload", str(asked), "--engines", "llamacpp", "--baseline", "llamacpp:f16:1",
                "--max-context", "96", "--pass", "none", "--strategy", "random", "--time-budget", "10s",
                "-o", str(tmp_path / folder / "run"), "--store", url, "--json", *more,
            ]  # fmt: skip

        first = subprocess.Popen(
            command("here"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        wait_for_trials(url, 2)
        first.send_signal(signal.SIGSTOP)  # so that it has not ended before the second one has begun
        second = subprocess.run(
            command("there"), env=environment, capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert "in use by another process" in second.stderr
        first.kill()
        first.communicate(timeout=60)
        before = rows(url, "SELECT record FROM negawatt_records WHERE kind = 'trial' ORDER BY number")
        assert len(before) >= 2

        other = subprocess.run(
            command("there", "--seed", "7"), env=environment, capture_output=True, text=True, check=False
        )
        assert "unfinished search for something else" in other.stderr
        done = subprocess.run(command("there"), env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        after = [
            json.loads(text) for (text,) in rows(url, "SELECT record FROM negawatt_records ORDER BY number")
        ]
        trials = [record for record in after if record["record"] == "trial"]
        assert trials[: len(before)] == [json.loads(text) for (text,) in before], "no finished trial is lost"
        run = Run.open(tmp_path / "there" / "run", kind="tune")
        assert list(run.records()) == after
        ((result,),) = rows(url, "SELECT result FROM negawatt_runs WHERE name = 'run'")
        assert json.loads(result) == run.result == json.loads(done.stdout)

        again = subprocess.run(command("third"), env=environment, capture_output=True, text=True, check=False)
        assert "is finished" in again.stderr
        told = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size < 10**6]
        said = "".join(each.stdout + each.stderr for each in (second, other, done, again))
        assert not any(b"correct-horse" in each for each in told)
        assert "correct-horse" not in said
        assert run.manifest["command"][-3:-1] == ["--store", url.replace("tester:correct-horse@", "")]


def rows(url: str, statement: str) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def wait_for_trials(url: str, count: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            ((found,),) = rows(url, "SELECT count(*) FROM negawatt_records WHERE kind = 'trial'")
        except psycopg.errors.UndefinedTable:
            found = 0
        if found >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no trials were kept within two minutes")
