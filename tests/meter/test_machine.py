"""What a machine is, read from trees laid out as kernels lay them out, and from this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from negawatt.meter import fingerprint
from negawatt.meter.machine import Share, cpu_identity, memory_limit_bytes, usable_cores, virtualisation

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni amx_tile amx_int8{more}

processor\t: 1
model name\t: never looked at
"""


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_processor_is_read_from_its_first_entry(tmp_path: Path) -> None:
    cpu = cpu_identity(lay(tmp_path, {"proc/cpuinfo": CPUINFO.format(more="")}))
    assert cpu.model_name == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"
    assert (cpu.maker, cpu.family, cpu.model) == ("GenuineIntel", 6, 143)
    assert cpu.flags == ("sse4_2", "avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8")


def test_an_arm_machine_has_no_model_name_and_its_own_words_for_flags(tmp_path: Path) -> None:
    cpu = cpu_identity(
        lay(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve\n"})
    )
    assert cpu.flags == ("asimd", "asimddp", "i8mm", "sve")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/x": "",
                "sys/fs/cgroup/a/cpu.max": "25000 100000",
            },
            0.25,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "75000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            0.75,
        ),
    ],
    ids=["version 2", "version 2, of an ancestor", "version 1"],
)
def test_a_quota_limits_the_cores(tmp_path: Path, files: dict[str, str], cores: float) -> None:
    assert usable_cores(lay(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/", "cpu.max", "max 100000"),
        ("2:cpu:/", "cpu/cpu.cfs_quota_us", "-1"),
        ("0::/", "cpu.stat", "usage_usec 5"),
    ],
)
def test_without_a_quota_affinity_counts(tmp_path: Path, group: str, file: str, text: str) -> None:
    root = lay(tmp_path, {"proc/self/cgroup": f"{group}\n", f"sys/fs/cgroup/{file}": text})
    assert usable_cores(root) == len(os.sched_getaffinity(0))


def test_affinity_limits_the_cores() -> None:
    code = (
        "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from negawatt.meter.machine import usable_cores\nprint(usable_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) <= 1


def test_memory_is_the_lesser_of_machine_and_limit(tmp_path: Path) -> None:
    files = {"proc/meminfo": "MemTotal:  8388608 kB\n", "proc/self/cgroup": "0::/job\n"}
    assert memory_limit_bytes(lay(tmp_path, files)) == 8 * 2**30
    lay(tmp_path, {"sys/fs/cgroup/job/memory.max": "1073741824\n"})
    assert memory_limit_bytes(tmp_path) == 2**30


def test_the_share_of_another_process_is_its_own_groups(tmp_path: Path) -> None:
    pid = os.getpid()
    files = {
        "proc/meminfo": "MemTotal:  8388608 kB\n",
        "proc/self/cgroup": "0::/\n",
        f"proc/{pid}/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "1073741824\n",
    }
    share = Share.of(pid, lay(tmp_path, files))
    assert (share.cores, share.of_cores) == (0.5, os.cpu_count())
    assert (share.memory_bytes, share.of_memory_bytes) == (2**30, 2**33)
    assert Share.of(root=tmp_path).memory_bytes == 2**33
    with pytest.raises(ProcessLookupError):
        Share.of(2**22 + 1)


def test_virtual_or_not(tmp_path: Path) -> None:
    assert virtualisation(lay(tmp_path, {"proc/cpuinfo": CPUINFO.format(more="")})) is None
    lay(tmp_path, {".dockerenv": ""})
    assert virtualisation(tmp_path) == "container"
    lay(tmp_path, {"proc/cpuinfo": CPUINFO.format(more=" hypervisor")})
    assert virtualisation(tmp_path) == "vm"


def test_the_fingerprint_is_stable_and_names_nobody() -> None:
    first = fingerprint()
    code = "import json\nfrom negawatt.meter import fingerprint\nprint(json.dumps(fingerprint()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == first
    assert len(first["id"]) == 16
    assert first.keys() == {
        *("architecture", "cores", "cpu", "cpu_family", "cpu_model", "flags", "id", "kernel"),
        *("memory_bytes", "os", "python", "virtualised"),
    }


def test_another_machine_has_another_id(tmp_path: Path) -> None:
    one = lay(tmp_path / "one", {"proc/cpuinfo": CPUINFO.format(more="")})
    two = lay(tmp_path / "two", {"proc/cpuinfo": CPUINFO.format(more=" avx512_bf16")})
    assert fingerprint(one)["id"] != fingerprint(two)["id"]
