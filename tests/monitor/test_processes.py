"""Processes and who of them ran: on a tree laid out in a folder, and on the real ``/proc``."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from proctree import ProcTree

from negawatt.monitor import ProcessTable

SPIN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass\n"


@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    found = ProcTree(tmp_path / "proc")
    found.start(1, "init")
    found.start(40, "worker", "0::/system.slice/work.service\n")
    return found


@pytest.fixture
def table(tree: ProcTree, monkeypatch: pytest.MonkeyPatch) -> ProcessTable:
    monkeypatch.setattr("negawatt.monitor.processes._RENEW_S", 0.0)  # looks follow quickly here
    made = ProcessTable(tree.root, tree.cpu_s)
    assert made.look() == ([], [])  # what was used before is nobody's
    return made


def used(table: ProcessTable) -> dict[int, float]:
    return {process.pid: pytest.approx(process.used_s, abs=1e-9) for process in table.look()[0]}


def test_only_who_ran_is_told(tree: ProcTree, table: ProcessTable) -> None:
    tree.run(40, 0.25)
    assert used(table) == {40: 0.25}
    assert used(table) == {}
    assert next(p for p in table if p.pid == 40).used_s == 0  # not the interval's before


def test_a_new_process_is_told_with_all_it_used(tree: ProcTree, table: ProcessTable) -> None:
    tree.start(41, "x (y) z) 1 2", "0::/jobs\n")
    tree.run(41, 0.5)
    [new], [] = table.look()
    assert (new.name, new.used_s, new.group.path) == ("x (y) z) 1 2", 0.5, "/jobs")
    assert new.memory_bytes == 256 * os.sysconf("SC_PAGE_SIZE")


def test_an_id_used_again_is_another_process(tree: ProcTree, table: ProcessTable) -> None:
    tree.run(40, 1.0)
    table.look()
    tree.end(40)
    tree.start(40, "other", start=900)
    tree.fork()
    tree.run(40, 3.0)  # more than the former owner ever used
    ran, ended = table.look()
    assert [(p.name, p.used_s) for p in ran] == [("other", 3.0)]
    assert [p.name for p in ended] == ["worker"]


def test_what_children_used_unseen_goes_to_who_waited_for_them(tree: ProcTree, table: ProcessTable) -> None:
    tree.run(40, 0.01, waited_s=0.7)  # a child came and went between two looks
    assert used(table) == {40: 0.71}
    tree.start(45, parent=40)
    tree.run(45, 0.2)
    assert used(table) == {45: 0.2}
    tree.run(40, 0.01, waited_s=0.3)  # the child used 0.1 s more, ended, and was waited for
    tree.end(45)
    assert used(table) == {40: pytest.approx(0.11)}


def test_a_child_that_nobody_waits_for_is_not_held_against_its_parent(
    tree: ProcTree, table: ProcessTable
) -> None:
    tree.start(41, parent=40)
    tree.run(41, 0.4)
    table.look()
    tree.end(41)
    tree.run(40, 0.1)
    assert used(table) == {40: 0.1}
    tree.run(40, 0.1, waited_s=0.2)
    assert used(table) == {40: pytest.approx(0.3)}


def test_who_has_long_slept_is_asked_less_often_and_loses_nothing(
    tree: ProcTree, table: ProcessTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negawatt.monitor.processes._SWEEP_S", 0.05)
    monkeypatch.setattr("negawatt.monitor.processes._AWAKE_S", 0.1)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        tree.run(40, 0.001)
        table.look()
        time.sleep(0.01)
    tree.run(1, 5.0)
    found = 0.0
    end = time.monotonic() + 10
    while not found and time.monotonic() < end:
        found += sum(p.used_s for p in table.look()[0] if p.pid == 1)
    assert found == 5.0
    tree.run(1, 1.0)
    assert used(table) == {1: 1.0}  # awake again


def test_a_group_is_read_anew_when_a_program_begins(tree: ProcTree, table: ProcessTable) -> None:
    (tree.root / "40" / "cgroup").write_text("0::/elsewhere\n")
    tree._stats[40]["name"] = "program"
    tree.fork()
    tree.run(40, 0.1)
    [process], [] = table.look()
    assert process.group.path == "/elsewhere"


def test_files_that_vanish_or_are_torn_are_no_process(tree: ProcTree, table: ProcessTable) -> None:
    tree.start(41)
    (tree.root / "41" / "stat").write_text("41 (torn) S 1")
    tree.start(42)
    (tree.root / "42" / "stat").unlink()
    tree.run(40, 0.1)
    assert used(table) == {40: 0.1}


def test_the_real_processes_while_they_come_and_go() -> None:
    table = ProcessTable()
    table.look()
    before_s = time.process_time()
    storm = subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-c",
            "import os\nfor _ in range(400):\n if os.fork() == 0: os._exit(0)\n os.wait()",
        ]
    )
    seen = 0.0
    while storm.poll() is None:
        seen += sum(p.used_s for p in table.look()[0] if p.pid == storm.pid)
    assert seen > 0.005
    own_s = sum(p.used_s for p in table.look()[0] if p.pid == os.getpid())
    assert 0 <= own_s <= time.process_time() - before_s


def test_a_thousand_processes() -> None:
    code = (
        "import subprocess, sys\n"
        "children = [subprocess.Popen(['sleep', '60']) for _ in range(1000)]\n"
        "print(flush=True)\nsys.stdin.read()\n"
        "[child.kill() for child in children]\n"
        "[child.wait() for child in children]\n"  # else they have not ended before somebody else does
    )
    table = ProcessTable()
    table.look()
    parent = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    try:
        table.look()
        assert sum(process.parent == parent.pid for process in table) == 1000
        children = {process.pid for process in table if process.parent == parent.pid}
    finally:
        parent.communicate()
    end = time.monotonic() + 20
    while children and time.monotonic() < end:
        children -= {process.pid for process in table.look()[1]}
    assert children == set()


def test_cpu_time_of_a_real_child() -> None:
    tell = "print(time.process_time(), flush=True)\ninput()\n"
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", f"import time\n{tell}{SPIN.format(0.2)}{tell}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    try:
        began_s = float(child.stdout.readline())
        table = ProcessTable()
        table.look()
        child.stdin.write("\n")
        child.stdin.flush()
        used_s = 0.0
        end = time.monotonic() + 20
        while used_s < 0.2 and time.monotonic() < end:
            time.sleep(0.01)
            used_s += sum(p.used_s for p in table.look()[0] if p.pid == child.pid)
        told_s = float(child.stdout.readline()) - began_s
        used_s += sum(p.used_s for p in table.look()[0] if p.pid == child.pid)
        assert used_s == pytest.approx(told_s, abs=0.02)
    finally:
        child.kill()
        child.communicate()
