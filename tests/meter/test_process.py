"""CPU time of real process trees: threads, children, daemons, killed and re-parented ones."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from negawatt.meter.process import OwnTree, ProcessTree, descendants, machine_time, own_cpu_s, running

SPIN = "import time\nend = time.process_time() + {cpu_s}\nwhile time.process_time() < end: pass\n"


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[str]]:
    """A Python that runs what it is told, a line at a time, and answers when done."""
    code = (
        "import json, os, subprocess, sys, threading, time\n"
        "def spin(s):\n"
        "    end = time.thread_time() + s\n"
        "    while time.thread_time() < end: pass\n"
        "for line in sys.stdin:\n"
        "    exec(json.loads(line)); print('done', time.process_time(), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    tell(process, "pass")
    yield process
    process.kill()
    process.communicate()


def tell(process: subprocess.Popen[str], line: str) -> float:
    """Let it run the line; returns what its own clock said afterwards.

    What it used is compared with that: a host that takes a processor away makes any stretch longer.
    """
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(line) + "\n")
    process.stdin.flush()
    word, clock_s = process.stdout.readline().split()
    assert word == "done"
    return float(clock_s)


def test_a_process_is_charged_what_it_used(shell: subprocess.Popen[str]) -> None:
    tree, began_s = ProcessTree(shell.pid), tell(shell, "pass")
    before_s = tree.cpu_s()
    used_s = tell(shell, "spin(0.05)") - began_s
    assert used_s >= 0.05
    assert tree.cpu_s() - before_s == pytest.approx(used_s, abs=0.005)


def test_a_short_stretch_is_seen_to_a_millisecond(shell: subprocess.Popen[str]) -> None:
    began_s = tell(shell, "pass")
    before_s = own_cpu_s(shell.pid)
    used_s = tell(shell, "spin(0.003)") - began_s
    assert used_s >= 0.003
    assert own_cpu_s(shell.pid) - before_s == pytest.approx(used_s, abs=0.001)


def test_threads_that_have_ended_still_count(shell: subprocess.Popen[str]) -> None:
    tree, began_s = ProcessTree(shell.pid), tell(shell, "pass")
    before_s = tree.cpu_s()
    ended_s = tell(
        shell,
        "ts = [threading.Thread(target=spin, args=(0.03,)) for _ in range(3)]; "
        "[t.start() for t in ts]; [t.join() for t in ts]",
    )
    assert ended_s - began_s >= 0.09
    assert tree.cpu_s() - before_s == pytest.approx(ended_s - began_s, abs=0.005)


def test_children_that_were_waited_for_count(shell: subprocess.Popen[str]) -> None:
    tree = ProcessTree(shell.pid)
    before_s = tree.cpu_s()
    spin = SPIN.format(cpu_s=0.1)
    tell(shell, f"subprocess.run([sys.executable, '-S', '-c', {spin!r}])")
    assert tree.cpu_s() - before_s == pytest.approx(0.1, abs=0.06)


def test_a_running_child_counts_and_so_it_does_after_being_waited_for(shell: subprocess.Popen[str]) -> None:
    tree = ProcessTree(shell.pid)
    before_s = tree.cpu_s()
    spin = SPIN.format(cpu_s=0.15) + "time.sleep(30)"
    tell(shell, f"child = subprocess.Popen([sys.executable, '-S', '-c', {spin!r}])")
    [child] = descendants(shell.pid)
    wait_for(lambda: own_cpu_s(child) > 0.15)
    running_s = tree.cpu_s() - before_s
    assert running_s >= 0.15
    tell(shell, "child.kill(); child.wait()")
    assert tree.cpu_s() - before_s == pytest.approx(running_s, abs=0.03)


def test_a_killed_child_that_nobody_waits_for_stays_counted(shell: subprocess.Popen[str]) -> None:
    tell(shell, "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    tree = ProcessTree(shell.pid)
    before_s = tree.cpu_s()
    spin = SPIN.format(cpu_s=0.1) + "time.sleep(30)"
    tell(shell, f"child = subprocess.Popen([sys.executable, '-S', '-c', {spin!r}])")
    [child] = descendants(shell.pid)
    wait_for(lambda: own_cpu_s(child) > 0.1)
    seen_s = tree.cpu_s() - before_s
    tell(shell, "child.kill()")
    wait_for(lambda: not descendants(shell.pid))
    assert tree.cpu_s() - before_s >= seen_s - 0.02 >= 0.08  # to two ticks


def test_a_daemon_stays_in_the_tree_once_seen(shell: subprocess.Popen[str]) -> None:
    tree = ProcessTree(shell.pid)
    daemon = SPIN.format(cpu_s=0.05) + "time.sleep(30)"
    tell(
        shell,
        f"p = subprocess.Popen([sys.executable, '-S', '-c', {daemon!r}], start_new_session=True)",
    )
    [pid] = descendants(shell.pid)
    tree.cpu_s()
    shell.kill()
    shell.wait()
    try:
        wait_for(lambda: own_cpu_s(pid) > 0.05)
        before_s = tree.cpu_s()
        assert pid in running([pid])
        assert before_s >= 0.05
    finally:
        os.kill(pid, 9)


def test_an_ended_tree_keeps_its_last_figure(shell: subprocess.Popen[str]) -> None:
    tree = ProcessTree(shell.pid)
    tell(shell, "spin(0.05)")
    before_s = tree.cpu_s()
    shell.kill()
    shell.wait()
    assert tree.cpu_s() == pytest.approx(before_s, abs=1e-6)


def test_orphans_are_adopted_only_while_a_command_is_measured() -> None:
    # In a process of its own: the shell leaves an orphan behind, whose parent is told once it has one.
    orphan = "(sleep 0.2; exec ps -o ppid= -p $(exec sh -c 'echo $PPID')) & "
    code = (
        "import os, subprocess\nfrom negawatt.meter.command import adopting_orphans\n"
        f"def parent(): return int(subprocess.run(['sh', '-c', {orphan!r}], capture_output=True).stdout)\n"
        "with adopting_orphans(): inside = parent()\n"
        "print(inside == os.getpid(), parent() == os.getpid())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_there_is_no_tree_of_a_process_that_is_not_there() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    with pytest.raises(ProcessLookupError):
        ProcessTree(process.pid)


def test_many_children_are_found() -> None:
    code = (
        "import subprocess, sys\n"
        "children = [subprocess.Popen(['sleep', '60']) for _ in range(100)]\n"
        "print(flush=True)\nsys.stdin.read()\n"
        "[child.kill() for child in children]\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        assert len(descendants(process.pid)) == 100
        assert len(running(descendants(process.pid))) == 100
    finally:
        process.communicate()


def test_short_children_that_are_waited_for_are_not_counted_twice(
    shell: subprocess.Popen[str], tmp_path: Path
) -> None:
    """Against what the kernel says exactly, which only the process itself can ask."""
    ask = (
        "import resource\n"
        "ended = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "exact_s = time.process_time() + ended.ru_utime + ended.ru_stime\n"
        f"open({str(tmp_path / 'exact')!r}, 'w').write(str(exact_s))\n"
    )
    tree = ProcessTree(shell.pid)
    tell(
        shell,
        "def burst():\n"
        "    pid = os.fork()\n"
        "    if pid == 0: spin(0.004); time.sleep(0.02); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "thread = threading.Thread(target=lambda: [burst() for _ in range(40)])\n"
        "thread.start()\n",
    )
    for _ in range(300):
        tree.cpu_s()
        time.sleep(0.004)
    tell(shell, "thread.join()\n" + ask)
    exact_s = float((tmp_path / "exact").read_text())
    assert tree.cpu_s() == pytest.approx(exact_s, abs=0.03)


def test_own_tree_counts_threads_and_children() -> None:
    tree = OwnTree()
    before_s, began_s = tree.cpu_s(), time.process_time()

    def spin() -> None:
        end = time.thread_time() + 0.03
        while time.thread_time() < end:
            pass

    threads = [threading.Thread(target=spin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used_s, own_s = time.process_time() - began_s, tree.cpu_s() - before_s
    assert used_s >= 0.06
    assert own_s == pytest.approx(used_s, abs=0.02)
    subprocess.run([sys.executable, "-S", "-c", SPIN.format(cpu_s=0.1)], check=True)
    assert tree.cpu_s() - before_s >= own_s + 0.1


def test_own_tree_finds_a_child_at_once_and_lets_go_of_it(shell: subprocess.Popen[str]) -> None:
    tree = OwnTree()
    assert shell.pid in tree.pids()
    child = subprocess.Popen(["sleep", "60"])
    assert child.pid in tree.pids()
    child.kill()
    child.wait()
    subprocess.run(["true"], check=True)
    assert child.pid not in tree.pids()


def test_the_machine_is_at_least_as_busy_as_we_are() -> None:
    before, own_before_s = machine_time(), time.process_time()
    while time.process_time() < own_before_s + 0.1:
        pass
    own_s, after = time.process_time() - own_before_s, machine_time()
    stolen_s = after.steal_s - before.steal_s  # is in a process's own time, and is not busy
    assert after.busy_s - before.busy_s >= own_s - stolen_s - 0.03  # in ticks


def wait_for(condition, deadline_s: float = 20) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
