"""``negawatt measure``, run as people run it: real commands, real signals, real exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()"]
PYTHON = [sys.executable, "-S", "-c"]
SPIN = "import time\nwhile time.process_time() < {}: pass\n"


def measure(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NEGAWATT, "measure", *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload, no-any-return]


def document(*command: str) -> dict[str, object]:
    done = measure("--json", "--", *command)
    result: dict[str, object] = json.loads(done.stdout)
    assert result["exit_code"] == done.returncode
    return result


def test_output_and_exit_code_pass_through() -> None:
    done = measure("--", *PYTHON, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert done.returncode == 7
    assert done.stdout == "out\n"
    assert done.stderr.startswith("err\n")
    assert "negawatt: " in done.stderr
    assert " J " in done.stderr


def test_input_passes_through_byte_for_byte() -> None:
    data = bytes(range(256)) * 100
    done = subprocess.run([*NEGAWATT, "measure", "--", "cat"], input=data, capture_output=True)
    assert done.stdout == data


def test_options_of_the_command_are_left_to_it() -> None:
    assert measure("echo", "--json", "-h", "--output").stdout == "--json -h --output\n"


def test_json_is_all_there_is_on_standard_output() -> None:
    done = measure("--json", "--", "echo", "the command's own words")
    assert json.loads(done.stdout)["exit_code"] == 0
    assert done.stderr == "the command's own words\n"


def test_output_writes_the_document_and_leaves_standard_output_alone(tmp_path: Path) -> None:
    done = measure("--output", str(tmp_path / "spent.json"), "--", "echo", "hello")
    assert done.stdout == "hello\n"
    assert json.loads((tmp_path / "spent.json").read_text())["command"] == ["echo", "hello"]


def test_an_output_file_that_cannot_be_written_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = measure("--output", str(tmp_path / "file" / "spent.json"), "--", "true")
    assert done.returncode == 1
    assert done.stderr.startswith("negawatt: cannot write ")


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [("no-such-command-anywhere", 127, "no command"), ("/dev/null", 126, "may not be executed")],
)
def test_what_cannot_be_run_gets_a_sentence_and_the_shells_code(what: str, code: int, words: str) -> None:
    done = measure("--", what)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_no_command_is_wrong_usage() -> None:
    assert measure().returncode == 2


def test_children_and_grandchildren_count() -> None:
    inner = f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {SPIN.format(0.3)!r}])"
    spent = document(*PYTHON, inner)
    assert 0.3 <= spent["cpu_s"] <= 0.6  # type: ignore[operator]


def test_threads_count() -> None:
    code = (
        "import threading, time\n"
        "def spin():\n"
        "    end = time.thread_time() + 0.15\n"
        "    while time.thread_time() < end: pass\n"
        "ts = [threading.Thread(target=spin) for _ in range(2)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
    )
    assert document(*PYTHON, code)["cpu_s"] >= 0.3  # type: ignore[operator]


def test_a_daemon_that_outlives_its_parents_counts_and_is_told() -> None:
    code = (
        "import os, time\n"
        "done, tell = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        while time.process_time() < 0.3: pass\n"
        "        os.close(1); os.close(2); os.write(tell, b'.'); time.sleep(2)\n"
        "    os._exit(0)\n"
        "os.read(done, 1)\n"
    )
    spent = document(*PYTHON, code)
    assert spent["cpu_s"] >= 0.3  # type: ignore[operator]
    assert any("running behind" in warning for warning in spent["warnings"])  # type: ignore[attr-defined]


def test_a_child_that_nobody_waits_for_counts() -> None:
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "done, tell = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    while time.process_time() < 0.2: pass\n"
        "    time.sleep(0.5); os.write(tell, b'.'); os._exit(0)\n"
        "os.read(done, 1)\n"
    )
    assert document(*PYTHON, code)["cpu_s"] >= 0.17  # type: ignore[operator]


def test_a_command_killed_by_a_signal_gives_the_shells_code() -> None:
    assert measure("--", *PYTHON, "import os; os.kill(os.getpid(), 9)").returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    code = (
        "import signal, sys\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen(
        [*NEGAWATT, "measure", "--", *PYTHON, code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 5
    assert b"negawatt: " in said


def test_the_command_starts_with_the_signals_of_its_caller() -> None:
    """A pipe closed by its reader ends a writer; nothing that Python ignores or we block is left on.

    What the shell of these tests ignores (SIGHUP under nohup, say) stays ignored.
    """
    status = dict(
        line.split(":\t", 1) for line in measure("--", "cat", "/proc/self/status").stdout.splitlines()
    )
    ordinary = (1 << 31) - 1  # 32 and above belong to the C library
    own = Path("/proc/self/status").read_text()
    ours = next(int(line.split()[1], 16) for line in own.splitlines() if line.startswith("SigIgn:"))
    pythons = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert int(status["SigIgn"], 16) & ordinary == ours & ordinary & ~pythons
    assert int(status["SigBlk"], 16) & ordinary == 0


def test_a_sleeping_command_costs_next_to_nothing() -> None:
    begun = time.monotonic()
    spent = document("sleep", "0.5")
    assert time.monotonic() - begun < 10
    assert spent["duration_s"] >= 0.5  # type: ignore[operator]
    assert spent["cpu_s"] < 0.02  # type: ignore[operator]
