"""`Handover`: a server's listening socket, passed on to the process that takes its place.

Both processes then have the very same socket: connections that wait in it are lost to neither, which two
sockets of one port (``SO_REUSEPORT``) could not promise when one of them closes. The processes meet at a Unix
socket in a folder of their user's. The successor asks for the socket (``take``), loads its models while the
predecessor goes on answering, begins to accept, and says so (``serving``); only then does the predecessor
stop accepting and finish what it has. A successor that dies before that changes nothing.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from negawatt.errors import NegawattError

ANSWER_S = 5.0
"""In so many seconds a predecessor answers, unless another successor is being started."""

_TAKE, _SERVING, _GONE = b"take\n", b"serving\n", b"gone\n"


class Predecessor:
    """The server that has the address now.

    Attributes:
        place: its listening socket.
    """

    def __init__(self, control: socket.socket, place: socket.socket) -> None:
        self._control, self.place = control, place

    @classmethod
    def at(cls, path: Path) -> Predecessor | None:
        """The server that waits at `path` for a successor, or None when there is none.

        Raises:
            NegawattError: it is somebody else's, or does not hand over.
        """
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.settimeout(ANSWER_S)
        try:
            try:
                control.connect(os.fspath(path))
            except (FileNotFoundError, ConnectionRefusedError):
                control.close()
                return None
            _check_user(control, path)
            control.sendall(_TAKE)
            _, handles, _, _ = socket.recv_fds(control, 1, 1)
        except OSError as exc:
            control.close()
            raise NegawattError(
                f"the server at {path} does not hand over its address; is another one being started?"
            ) from exc
        except NegawattError:
            control.close()
            raise
        if not handles:
            control.close()
            raise NegawattError(f"the server at {path} did not hand over its address; start again")
        os.set_inheritable(handles[0], False)
        return cls(control, socket.socket(fileno=handles[0]))

    def relieve(self) -> None:
        """Say that this process accepts connections, so that the other one need not; it leaves its path.

        Harmless when it has ended meanwhile.
        """
        with suppress(OSError):
            self._control.settimeout(ANSWER_S)
            self._control.sendall(_SERVING)
            self._control.recv(len(_GONE))
        self._control.close()

    def close(self) -> None:
        """Leave it as it was."""
        self._control.close()
        self.place.close()


class Handover:
    """Waits for a successor, in a thread of its own.

    Args:
        path: of the Unix socket; its folder must be this user's alone.
        place: what is handed over.
        relieved: called from the thread once a successor accepts connections.

    Raises:
        NegawattError: the path cannot be used.
    """

    def __init__(self, path: Path, place: socket.socket, relieved: Callable[[], object]) -> None:
        self._path, self._place, self._relieved = path, place, relieved
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._lock, self._open = threading.Lock(), True
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.unlink(missing_ok=True)  # of one that was killed: `Predecessor.at` found nobody there
            before = os.umask(0o177)
            try:
                self._control.bind(os.fspath(path))
            finally:
                os.umask(before)
            self._control.listen(4)
            self._ours = path.stat().st_ino
        except OSError as exc:
            self._control.close()
            raise NegawattError(f"cannot wait for a successor at {path}: {exc.strerror or exc}") from exc
        threading.Thread(target=self._wait, name="negawatt-handover", daemon=True).start()

    def close(self) -> None:
        """Wait for nobody any more; once is enough."""
        with self._lock:
            if not self._open:
                return
            self._open = False
            with suppress(OSError):
                if self._path.stat().st_ino == self._ours:  # and not a successor's
                    self._path.unlink()
            with suppress(OSError):
                self._control.shutdown(socket.SHUT_RDWR)  # wakes the thread
            self._control.close()

    def _wait(self) -> None:
        while True:
            try:
                successor, _ = self._control.accept()
            except OSError:
                return  # closed
            with successor:
                try:
                    if self._handed_over(successor):
                        return
                except (OSError, NegawattError):
                    continue  # it has died, or is not of this user: nothing has changed

    def _handed_over(self, successor: socket.socket) -> bool:
        """Whether a successor accepts connections now; waits for as long as it loads."""
        _check_user(successor, self._path)
        successor.settimeout(ANSWER_S)
        if successor.recv(len(_TAKE)) != _TAKE:
            return False
        socket.send_fds(successor, [b"!"], [self._place.fileno()])
        successor.settimeout(None)
        if successor.recv(len(_SERVING)) != _SERVING:
            return False
        self.close()
        self._relieved()
        successor.sendall(_GONE)
        return True


def _check_user(control: socket.socket, path: Path) -> None:
    """
    Raises:
        NegawattError: the other side is another user's.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return  # the folder's permissions have to do
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if user != os.geteuid():
        raise NegawattError(f"{path} is another user's; give --handover a path of your own")


def tell_supervisor(state: str) -> None:
    """Tell systemd about this service, where it asked to be told (``Type=notify``): see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
