"""A listening socket changes hands: between real processes, whatever the successor does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from negawatt.errors import NegawattError
from negawatt.serve.handover import Handover, Predecessor, tell_supervisor

SUCCESSOR = """
import sys, pathlib
from negawatt.serve.handover import Predecessor
before = Predecessor.at(pathlib.Path(sys.argv[1]))
print(before.place.getsockname()[1], flush=True)
if sys.stdin.readline() == "die\\n":
    sys.exit(3)
before.relieve()
connection, _ = before.place.accept()
connection.sendall(b"the successor")
connection.close()
"""


@pytest.fixture
def place() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def successor(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SUCCESSOR, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_what_waits_in_the_socket_is_answered_by_the_successor(tmp_path: Path, place: socket.socket) -> None:
    path, relieved = tmp_path / "run" / "handover", threading.Event()
    handover = Handover(path, place, relieved.set)
    assert path.parent.stat().st_mode & 0o077 == 0 and path.stat().st_mode & 0o077 == 0
    with successor(path) as process:
        assert process.stdin is not None and process.stdout is not None
        assert int(process.stdout.readline()) == place.getsockname()[1]
        assert not relieved.is_set(), "it has not begun to accept"
        with socket.create_connection(place.getsockname()) as client:  # waits in the queue of both
            process.stdin.write("serve\n")
            process.stdin.flush()
            assert relieved.wait(60)
            place.close()  # the predecessor's end
            client.settimeout(20)
            assert client.recv(100) == b"the successor"
    assert process.returncode == 0 and not path.exists()
    handover.close()


def test_a_successor_that_dies_changes_nothing(tmp_path: Path, place: socket.socket) -> None:
    path, relieved = tmp_path / "handover", threading.Event()
    handover = Handover(path, place, relieved.set)
    for _ in range(2):
        with successor(path) as process:
            assert process.stdout is not None and process.stdout.readline()
            process.communicate("die\n")
        assert process.returncode == 3
    assert not relieved.is_set()
    with socket.create_connection(place.getsockname()):
        assert place.accept()
    handover.close()
    assert not path.exists() and Predecessor.at(path) is None


def test_where_nobody_waits_there_is_no_predecessor(tmp_path: Path, place: socket.socket) -> None:
    path = tmp_path / "handover"
    assert Predecessor.at(path) is None
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(os.fspath(path))
    assert path.exists() and Predecessor.at(path) is None
    handover = Handover(path, place, lambda: None)  # takes the place of the one that was killed
    assert Predecessor.at(path) is not None
    handover.close()


def test_one_successor_at_a_time(
    tmp_path: Path, place: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "handover"
    handover = Handover(path, place, lambda: None)
    first = Predecessor.at(path)
    assert first is not None
    monkeypatch.setattr("negawatt.serve.handover.ANSWER_S", 0.3)
    with pytest.raises(NegawattError, match="another one being started"):
        Predecessor.at(path)
    first.close()
    end = time.monotonic() + 10
    while True:
        try:
            second = Predecessor.at(path)
            break
        except NegawattError:
            assert time.monotonic() < end
    assert second is not None
    second.close()
    handover.close()


def test_a_path_that_cannot_be_used_gets_a_sentence(tmp_path: Path, place: socket.socket) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NegawattError, match="cannot wait for a successor"):
        Handover(tmp_path / "file" / "handover", place, lambda: None)


def test_systemd_is_told_where_it_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    tell_supervisor("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        tell_supervisor("READY=1")
        assert listening.recv(100) == b"READY=1"
