"""What this machine is: the part of a result that says where it holds."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
"""Instruction sets that decide which kernels an engine picks, as /proc/cpuinfo names them."""


@dataclass(frozen=True, slots=True)
class CpuIdentity:
    """Name and numbers of the first processor, as the kernel gives them; empty or 0 if it does not."""

    model_name: str
    maker: str
    family: int
    model: int
    flags: tuple[str, ...]


@cache
def cpu_identity(root: Path = Path("/")) -> CpuIdentity:
    """Read ``/proc/cpuinfo`` below `root`."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return CpuIdentity(platform.processor(), "", 0, 0, ())
    first = text.split("\n\n")[0]
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}

    def number(key: str) -> int:
        return int(fields[key]) if fields.get(key, "").isdigit() else 0

    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return CpuIdentity(
        model_name=fields.get("model name") or fields.get("Processor") or platform.machine(),
        maker=fields.get("vendor_id", ""),
        family=number("cpu family"),
        model=number("model"),
        flags=tuple(f for f in _FLAGS if f in present),
    )


def usable_cores(root: Path = Path("/"), pid: int | None = None) -> float:
    """CPU cores a process may use: its affinity, or its control group's quota if that is less.

    Reads the quota of version 2 (``cpu.max``) and version 1 (``cpu.cfs_quota_us``) groups, at the
    process's own group and at every one above it. May be a fraction.

    Args:
        root: where ``proc`` and ``sys`` are.
        pid: the process; by default this one.

    Raises:
        ProcessLookupError: there is no such process.
    """
    cores = float(len(os.sched_getaffinity(pid or 0)))
    for folder in _groups(root, "cpu", pid):
        quota = _quota(folder)
        if quota is not None:
            cores = min(cores, quota)
    return cores


def memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory that the machine has."""
    try:
        if found := re.search(r"^MemTotal:\s+(\d+) kB", (root / "proc/meminfo").read_text(), re.M):
            return int(found[1]) * 1024
        return 0
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limit_bytes(root: Path = Path("/"), pid: int | None = None) -> int:
    """Bytes of memory a process may use: the machine's, or its control group's limit if less."""
    limits = [memory_bytes(root)]
    for folder, file in (
        (d, f) for d in _groups(root, "memory", pid) for f in ("memory.max", "memory.limit_in_bytes")
    ):
        text = _text(folder / file)
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


@dataclass(frozen=True, slots=True)
class Share:
    """How much of the machine a process may use: its affinity and its control groups' limits.

    In a virtual machine the machine is what the host gave it: its virtual CPUs and memory.

    Attributes:
        cores: processors it may keep busy; may be a fraction.
        of_cores: processors of the machine.
        memory_bytes: memory it may hold.
        of_memory_bytes: memory of the machine.
    """

    cores: float
    of_cores: int
    memory_bytes: int
    of_memory_bytes: int

    @classmethod
    def of(cls, pid: int | None = None, root: Path = Path("/")) -> Share:
        """The share of a process, by default of this one.

        Raises:
            ProcessLookupError: there is no such process.
        """
        cores, threads = usable_cores(root, pid), os.cpu_count() or 1
        return cls(min(cores, threads), threads, memory_limit_bytes(root, pid), memory_bytes(root))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _groups(root: Path, controller: str, pid: int | None = None) -> list[Path]:
    """Folders of a process's control group and of its ancestors, for a controller."""
    found: list[Path] = []
    for line in _text(root / f"proc/{pid or 'self'}/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        base = root / "sys/fs/cgroup"
        if controllers:
            if controller not in controllers.split(","):
                continue
            base = base / controller if (base / controller).is_dir() else base / controllers
        here = Path(path.lstrip("/"))
        found += [base / p for p in (here, *here.parents)]
    return [folder for folder in found if folder.is_dir()]


def _quota(folder: Path) -> float | None:
    """Cores that a group's quota allows, or None without one."""
    if text := _text(folder / "cpu.max"):
        quota, period = text.split()
    else:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def virtualisation(root: Path = Path("/")) -> str | None:
    """``vm`` (the processor says there is a hypervisor), ``container``, or None on bare metal."""
    info = _text(root / "proc/cpuinfo")
    if re.search(r"^flags\s*:.*\bhypervisor\b", info, re.M) or (root / "sys/hypervisor/type").exists():
        return "vm"
    in_container = (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()
    return "container" if in_container else None


@cache
def _fingerprint(root: Path) -> str:
    cpu = cpu_identity(root)
    facts: dict[str, Any] = {
        "cpu": cpu.model_name,
        "cpu_family": cpu.family,
        "cpu_model": cpu.model,
        "architecture": platform.machine(),
        "flags": list(cpu.flags),
        "cores": usable_cores(root),
        "memory_bytes": memory_limit_bytes(root),
        "virtualised": virtualisation(root),
        "os": platform.system(),
        "kernel": platform.release(),
    }
    # Memory differs by pages between starts of one machine: the id takes whole GiB.
    stable = {**facts, "memory_bytes": round(facts["memory_bytes"] / 2**30)}
    facts["id"] = hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:16]
    facts["python"] = platform.python_version()
    return json.dumps(facts)


def fingerprint(root: Path = Path("/")) -> dict[str, Any]:
    """What this machine is, with an ``id`` that stays the same until the machine changes.

    Holds ``cpu``, ``cpu_family``, ``cpu_model``, ``architecture``, ``flags`` (instruction sets),
    ``cores`` (usable by this process), ``memory_bytes`` (likewise), ``virtualised`` (``vm``,
    ``container`` or None), ``os``, ``kernel``, ``python`` and ``id``. It holds nothing that names
    the user or the host.
    """
    result: dict[str, Any] = json.loads(_fingerprint(root))
    return result
