"""The worker process: it may die, hang or be too large; the parent lives on and says why."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings, wire
from negawatt.errors import EngineError, UsageError, WorkerDied

SETTINGS = Settings(engine="llamacpp", max_context=256, threads=1)


def test_a_killed_worker_is_an_error_with_its_reason(model: Artifact) -> None:
    with Engine(model, SETTINGS) as engine:
        os.kill(engine.pid, signal.SIGILL)
        with pytest.raises(WorkerDied, match="SIGILL"):
            engine.generate([Request([1, 2, 3], 4)])
        with pytest.raises(EngineError, match="not open"):
            engine.generate([Request([1], 1)])


def test_a_worker_killed_for_memory_says_so(model: Artifact) -> None:
    with Engine(model, SETTINGS) as engine:
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="memory"):
            engine.generate([Request([1, 2, 3], 4)])


def test_a_hang_ends_at_the_deadline(model: Artifact) -> None:
    with Engine(model, SETTINGS, call_deadline_s=0.5) as engine:
        pid = engine.pid
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(WorkerDied, match="no answer to generate"):
            engine.generate([Request([1, 2, 3], 4)])
        assert time.monotonic() - started < 10
    assert not Path(f"/proc/{pid}").exists()


def test_closing_ends_the_worker_and_frees_its_memory(model: Artifact) -> None:
    engine = Engine(model, SETTINGS).open()
    pid = engine.pid
    engine.close()
    engine.close()
    assert not Path(f"/proc/{pid}").exists()


def test_an_interrupted_call_does_not_leave_a_worker_behind(model: Artifact) -> None:
    pids = []

    def interrupt() -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), Engine(model, SETTINGS) as engine:  # noqa: PT012 - the loop waits for it
        pids.append(engine.pid)
        threading.Thread(target=interrupt).start()
        while True:
            engine.generate([Request([1, 2, 3], 64)])
    assert not Path(f"/proc/{pids[0]}").exists()


def test_a_killed_parent_leaves_no_worker_computing(model: Artifact) -> None:
    """Not even in the middle of a long answer, which nobody would notice before its end."""
    program = (
        "import sys; from negawatt.artifact import Artifact; from negawatt.engine import *\n"
        "settings = Settings(engine='llamacpp', max_context=2048, threads=1)\n"
        "with Engine(Artifact.open(sys.argv[1]), settings) as engine:\n"
        "    print(engine.pid, flush=True)\n"
        "    engine.generate([Request([1, 2, 3], 2000)], lambda index, token: print(token, flush=True))\n"
    )
    command = [sys.executable, "-c", program, str(model.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path(f"/proc/{int(parent.stdout.readline())}")
        parent.stdout.readline()  # it is writing
        parent.kill()
    started = time.monotonic()
    while worker.exists() and time.monotonic() - started < 10:
        time.sleep(0.05)
    assert not worker.exists()


def test_a_model_larger_than_memory_is_refused_before_loading(
    model: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negawatt.engine.engine.available_memory_bytes", lambda: 1_000_000)
    with pytest.raises(EngineError, match="GB of memory are free"):
        Engine(model, SETTINGS).open()


def test_an_unknown_engine_is_a_wrong_call(model: Artifact) -> None:
    with pytest.raises(UsageError, match="there are llamacpp"):
        Engine(model, Settings(engine="steam"))


def test_frames_carry_json_and_arrays() -> None:
    pipe = io.BytesIO()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    wire.send(pipe, {"a": "ü"}, [array, np.zeros((0, 4), np.float32)])
    pipe.seek(0)
    received = wire.receive(pipe)
    assert received is not None
    message, arrays = received
    assert message == {"a": "ü"}
    assert np.array_equal(arrays[0], array)
    assert arrays[1].shape == (0, 4)
    assert wire.receive(pipe) is None


@pytest.mark.parametrize("cut", [1, 7, 9, 20])
def test_a_cut_frame_is_noticed(cut: int) -> None:
    pipe = io.BytesIO()
    wire.send(pipe, {"hello": "world"}, [np.ones(3, np.float32)])
    with pytest.raises(EOFError):
        wire.receive(io.BytesIO(pipe.getvalue()[:cut]))


def test_a_foreign_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="not one of ours"):
        wire.receive(io.BytesIO(b"\xff" * 64))
