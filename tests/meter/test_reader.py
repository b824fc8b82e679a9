"""One reader a host: real processes of one job, of whom one is charged what the host shares."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from negawatt.meter.reader import Election, job, local_rank, runtime_folder

RANK = """
import json, os, sys, time
from negawatt.meter import Meter
from negawatt.meter.nvml import NvmlSensor
from negawatt.meter.station import Station
from negawatt.testing.nvml import NvmlDouble

nvml = NvmlDouble(gpus=1)
class Live(NvmlSensor):
    def read(self):
        nvml.energy_j[0] = 1000 + 100 * time.monotonic()  # 100 W
        return super().read()
station = Station([Live(nvml)])
print("ready", flush=True)
for line in sys.stdin:
    with Meter(station) as meter:
        time.sleep(float(line))
    spent = meter.measurement
    print(json.dumps({"gpu": "gpu/0" in spent.components, "machine": bool(spent.machine),
                      "told": any("another process" in w for w in spent.warnings)}), flush=True)
"""


class Rank:
    """One process of a job, that measures when told."""

    def __init__(self, folder: Path, **environment: str) -> None:
        clean = {k: v for k, v in os.environ.items() if "RANK" not in k and "SLURM" not in k}
        self._process = subprocess.Popen(
            [sys.executable, "-c", RANK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**clean, "XDG_RUNTIME_DIR": str(folder), **environment},
        )
        assert self._process.stdout is not None and self._process.stdin is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def ready(self) -> None:
        assert self._out.readline() == "ready\n"

    def begin(self, seconds: float) -> None:
        self._in.write(f"{seconds}\n")
        self._in.flush()

    def result(self) -> dict[str, bool]:
        found: dict[str, bool] = json.loads(self._out.readline())
        return found

    def end(self) -> None:
        self._in.close()
        self._process.wait(20)
        self._out.close()


def ranks(folder: Path, *numbers: int, **environment: str) -> list[Rank]:
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    made = [Rank(folder, LOCAL_RANK=str(n), **{**torchrun, **environment}) for n in numbers]
    for rank in made:
        rank.ready()
    return made


def test_four_ranks_report_the_node_once_and_the_first_does(tmp_path: Path) -> None:
    four = ranks(tmp_path, 3, 2, 1, 0)
    for seconds in (0.3, 0.2):  # the same one, window after window
        for rank in four:
            rank.begin(seconds)
        results = [rank.result() for rank in four]
        assert [r["gpu"] for r in results] == [False, False, False, True]
        assert [r["machine"] for r in results] == [False, False, False, True]
        assert [r["told"] for r in results] == [True, True, True, False]
    for rank in four:
        rank.end()


def test_where_the_first_rank_does_not_measure_another_does(tmp_path: Path) -> None:
    three = ranks(tmp_path, 1, 2, 3)
    for rank in three:
        rank.begin(0.2)
    assert sum(rank.result()["gpu"] for rank in three) == 1
    for rank in three:
        rank.end()


def test_what_a_reader_that_ended_was_charged_is_not_charged_again(tmp_path: Path) -> None:
    first, second = ranks(tmp_path, 0, 1)
    second.begin(1.0)
    first.begin(0.2)
    assert first.result()["gpu"]
    first.end()  # gives the lock up while the other's window, which overlaps, is still open
    assert not second.result()["gpu"]
    second.begin(0.1)  # from now on there is nobody else
    assert second.result()["gpu"]
    second.end()


def test_two_jobs_on_a_host_have_a_reader_each(tmp_path: Path) -> None:
    both = [*ranks(tmp_path, 0, MASTER_PORT="29500"), *ranks(tmp_path, 0, MASTER_PORT="29501")]
    for rank in both:
        rank.begin(0.1)
    assert [rank.result()["gpu"] for rank in both] == [True, True]
    for rank in both:
        rank.end()


@pytest.mark.parametrize(
    ("environment", "rank", "name"),
    [
        ({}, None, None),
        ({"LOCAL_RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, 2, "MASTER_ADDR=a,MASTER_PORT=1"),
        ({"SLURM_LOCALID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1"}, 0,
         "SLURM_JOB_ID=7,SLURM_STEP_ID=1"),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "PMIX_NAMESPACE": "n"}, 1, "PMIX_NAMESPACE=n"),
        ({"MPI_LOCALRANKID": "3"}, 3, None),
        ({"LOCAL_RANK": "first"}, None, None),
    ],
)  # fmt: skip
def test_what_launchers_tell(environment: dict[str, str], rank: int | None, name: str | None) -> None:
    assert local_rank(environment) == rank
    assert job(environment) == (name or f"launcher {os.getppid()}")


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "negawatt").symlink_to(tmp_path)
    assert runtime_folder() is None
    (tmp_path / "negawatt").unlink()
    assert runtime_folder() == tmp_path / "negawatt"
    assert (tmp_path / "negawatt").stat().st_mode & 0o777 == 0o700


def test_without_a_folder_the_first_rank_is_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    for rank in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        assert Election().is_reader(0.0, 1.0) is (rank == 0)


def test_a_forked_worker_of_the_reader_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "0")
    mine = Election()
    assert mine.is_reader(time.monotonic(), time.monotonic())
    pid = os.fork()
    if pid == 0:
        try:
            mine.leave()  # as the module does for its own
            os._exit(int(mine.is_reader(time.monotonic(), time.monotonic())))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert mine.is_reader(time.monotonic(), time.monotonic())


def test_threads_of_one_process_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "1")
    mine, answers = Election(), []
    threads = [threading.Thread(target=lambda: answers.append(mine.is_reader(0.0, 1.0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 8
