"""`Group`: the control group a process runs in, and the container or unit that its path names.

Containers are told from the path alone: no runtime is asked, so nothing needs privilege. Known are
Docker, containerd (also by nerdctl, and under Kubernetes as ``cri-containerd``), CRI-O, Podman,
LXC, systemd-nspawn and ECS, with either of the two drivers (cgroupfs and systemd) and with version
1 and 2 of the groups; whatever else is named by its systemd unit, or by its path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONTROLLERS = (
    "",
    "cpu,cpuacct",
    "cpuacct,cpu",
    "cpuacct",
    "cpu",
    "memory",
    "pids",
    "devices",
    "name=systemd",
)
"""Whose path is taken, best first; "" is the one hierarchy of version 2."""

_ID = r"(?P<id>[0-9a-f]{64})"
_CONTAINERS = tuple(
    (runtime, re.compile(pattern))
    for runtime, pattern in (
        ("docker", rf"docker-{_ID}\.scope"),
        ("containerd", rf"(?:cri-containerd|nerdctl|containerd)-{_ID}\.scope"),
        ("containerd", rf".*:(?:cri-containerd|nerdctl|containerd):{_ID}"),
        ("cri-o", rf"crio-{_ID}(?:\.scope)?"),
        ("podman", rf"libpod-{_ID}(?:\.scope)?"),
        ("lxc", r"lxc\.payload\.(?P<name>.+)"),
        ("nspawn", r"systemd-nspawn@(?P<name>.+)\.service"),
        ("nspawn", r"machine-(?P<name>.+)\.scope"),
    )
)
_PARENTS = {"docker": "docker", "k8s.io": "containerd", "default": "containerd", "buildkit": "buildkit"}
"""Folders of the cgroupfs driver under which a bare id is a container."""

_POD = re.compile(
    r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
)
_UNIT = re.compile(r".+\.(?:service|scope|slice|socket|mount|swap)")
_BARE = re.compile(rf"{_ID}|(?P<task>[0-9a-f]{{32}}-\d+)|(?P<build>[0-9a-z]{{25}})")


@dataclass(frozen=True, slots=True)
class Group:
    """A control group.

    Attributes:
        path: as the kernel gives it, ``/`` for the root.
        kind: ``docker``, ``containerd``, ``cri-o``, ``podman``, ``lxc``, ``nspawn``, ``ecs``,
            ``buildkit``; ``systemd`` for a unit, ``cgroup`` for any other, ``root`` for none.
        name: what people call it: the first twelve digits of a container's id, a container's or a
            unit's name, or the path.
        container: the container's whole id or name; empty for what is no container.
        pod: the UID of the Kubernetes pod it belongs to; empty outside of one.
    """

    path: str
    kind: str
    name: str
    container: str = ""
    pod: str = ""


def group(path: str) -> Group:
    """Tell what a control group's path names; of nested containers, the innermost."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    pods = _POD.findall(path)
    pod = pods[-1].replace("_", "-") if pods else ""
    for place in range(len(parts) - 1, -1, -1):
        found = _container(parts, place, pod)
        if found is not None:
            kind, name = found
            short = name[:12] if re.fullmatch(r"[0-9a-f]{64}", name) else name
            return Group(path, kind, short, name, pod)
    for part in reversed(parts):
        if _UNIT.fullmatch(part):
            return Group(path, "systemd", _unescaped(part), "", pod)
    return Group(path, "cgroup", path, "", pod) if parts else Group(path, "root", "/")


def _container(parts: list[str], place: int, pod: str) -> tuple[str, str] | None:
    """The runtime and the id or name of the container that one folder of a path stands for."""
    part, parent = parts[place], parts[place - 1] if place else ""
    for runtime, pattern in _CONTAINERS:
        if found := pattern.fullmatch(part):
            named = found.groupdict()
            return runtime, named.get("id") or _unescaped(named["name"])
    if parent == "lxc":
        return "lxc", part
    bare = _BARE.fullmatch(part)
    if not bare:
        return None
    if bare["build"]:
        return ("buildkit", part) if parent == "buildkit" else None
    if "ecs" in parts[:place]:
        return "ecs", part
    if parent in _PARENTS and bare["id"]:
        return _PARENTS[parent], part
    # Under Kubernetes' cgroupfs driver nothing tells the runtimes apart.
    return ("kubernetes", part) if pod and bare["id"] else None


def _unescaped(name: str) -> str:
    r"""A unit's name as people write it: systemd writes ``\x2d`` for a dash in a name."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), name)


def group_path(text: str) -> str:
    """The path of the group that accounts for a process, from the content of ``/proc/PID/cgroup``.

    On version 1 and on mixed systems every controller has a hierarchy of its own, and a process may
    be at the root of most: the first that places it anywhere else is taken, in the order of
    ``cpu``, ``memory``, others.
    """
    paths: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            paths[fields[1]] = fields[2].removesuffix(" (deleted)")
    ordered = [*(name for name in _CONTROLLERS if name in paths), *paths]
    return next((paths[name] for name in ordered if paths[name] != "/"), "/")
