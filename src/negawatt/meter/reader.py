"""One reader a host: of the processes of a distributed job, one is charged what the host shares.

Each of four ranks on a host is charged its own CPU time; were each charged the GPUs as well, the job
would report the node four times. So the processes of a job on one host elect one: whoever holds an
advisory lock on a file named for the job, kept until the process ends, however it ends. The first
local rank takes it when its window opens. Others only try when a window of theirs closes, so that
the first rank, whose figures people look at, has it wherever it measures at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")
"""Where launchers tell a process its place on the host: torchrun, Slurm, Open MPI, MPICH, Cray."""

JOB_VARIABLE = "NEGAWATT_JOB"
"""Where a measured command finds what its own meters must take for its job, whoever launched them."""

_JOBS = (
    ("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ("PMIX_NAMESPACE",),
    ("OMPI_MCA_ess_base_jobid",),
    ("PALS_APID",),
    ("PMI_JOBID",),
    ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"),  # the id alone is "none" by default
    ("MASTER_ADDR", "MASTER_PORT"),
)
"""Where launchers tell which job a process belongs to; one launcher's variables may be inside another's."""


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """This process's place among a distributed job's processes on this host; None outside of one."""
    for name in _RANKS:
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return None


def job(environment: Mapping[str, str] = os.environ) -> str:
    """What tells this process's job from others on the host: its id, or else who launched it."""
    if environment.get(JOB_VARIABLE):
        return environment[JOB_VARIABLE]
    named = [f"{n}={environment[n]}" for names in _JOBS for n in names if environment.get(n)]
    return ",".join(dict.fromkeys(named)) or f"launcher {os.getppid()}"


def runtime_folder() -> Path | None:
    """A folder of the user's own that does not outlive the machine's run; None if there can be none."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "negawatt" if base else Path(tempfile.gettempdir()) / f"negawatt-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    # In a folder that everybody may write to, somebody else may have been there first.
    return folder if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() else None


class Election:
    """This process's part in the election. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: IO[str] | None = None
        self._job = job()  # kept: a forked child has another parent, and is of the same job
        self._opened = False

    def open_window(self) -> None:
        """A window of this process opens: at its first one, the first rank puts itself forward."""
        if not self._opened:
            self._opened = True
            if local_rank() == 0:
                self._win()

    def is_reader(self, started_s: float, stopped_s: float) -> bool:
        """Whether this process is charged what the host shares, over a window by `time.monotonic`.

        Outside of a distributed job every process is. Within one, a process is not when another
        holds the lock, nor when another that has ended was charged part of the window already.
        """
        rank = local_rank()
        if rank is None:
            return True
        file = self._win()
        if file is None:
            return rank == 0 if runtime_folder() is None else False
        with self._lock:
            return self._claim(file, started_s, stopped_s)

    @property
    def leads(self) -> bool:
        """Whether this process would be the reader as things stand; takes nothing and claims nothing."""
        return local_rank() in (None, 0) or self._held is not None

    def leave(self) -> None:
        """In a forked child: the lock is the parent's."""
        held, self._held, self._lock, self._opened = self._held, None, threading.Lock(), False
        if held is not None:
            held.close()

    def _win(self) -> IO[str] | None:
        """The lock's file if this process holds it now."""
        with self._lock:
            folder = runtime_folder()
            if self._held is not None or folder is None:
                return self._held
            name = hashlib.sha256(self._job.encode()).hexdigest()[:16]
            try:
                file = (folder / f"reader-{name}").open("a+")
            except OSError:
                return None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                return None
            self._held = file
            return file

    @staticmethod
    def _claim(file: IO[str], started_s: float, stopped_s: float) -> bool:
        """Note the window as charged, unless a former reader was charged part of it."""
        file.seek(0)
        words = file.read().split()
        now_s = time.monotonic()
        if len(words) == 2 and words[0] != str(os.getpid()):
            try:
                until_s = float(words[1])
            except ValueError:
                until_s = 0.0
            # A time ahead of ours is from before the machine was last started.
            if started_s < until_s <= now_s:
                return False
        file.seek(0)
        file.truncate()
        file.write(f"{os.getpid()} {stopped_s!r}\n")
        file.flush()
        return True


election = Election()
os.register_at_fork(after_in_child=election.leave)
