"""Files of /proc that are kept open: what others do with descriptors, and forks, do not mislead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from negawatt.meter.procfile import ProcFile, whole


def test_it_tells_what_the_file_holds_now() -> None:
    file = ProcFile("/proc/self/status", b"Name:")
    for _ in range(3):
        assert f"Pid:\t{os.getpid()}\n".encode() in file.read()


def test_a_descriptor_that_was_closed_or_is_another_files_by_now_is_opened_anew(tmp_path: Path) -> None:
    file = ProcFile("/proc/self/status", b"Name:")
    file.read()
    os.close(file._fd)
    assert file.read().startswith(b"Name:")
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    os.write(other, b"mine")
    os.dup2(other, file._fd)
    assert file.read().startswith(b"Name:")
    assert os.pread(other, 9, 0) == b"mine"


def test_what_is_not_as_it_must_be_is_not_kept_open(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("nothing of the kind")
    file = ProcFile(str(tmp_path / "stat"), b"cpu ")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert file.read() == b"nothing of the kind"
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FileNotFoundError):
        ProcFile(str(tmp_path / "none"), b"cpu ").read()


def test_a_forked_child_reads_its_own() -> None:
    """In a process of its own, without threads to fork."""
    code = (
        "import os\nfrom negawatt.meter.procfile import ProcFile\n"
        "file = ProcFile('/proc/self/status', b'Name:')\nfile.read()\n"
        "if os.fork() == 0:\n"
        "    os._exit(0 if b'Pid:\\t%d\\n' % os.getpid() in file.read() else 1)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_a_long_file_is_read_to_its_end() -> None:
    assert whole("/proc/self/smaps").endswith(b"\n")
    assert len(whole("/proc/self/smaps")) > 4096
