"""Containers and units by the paths that runtimes, orchestrators and systemd really make."""

import os
from pathlib import Path

import pytest

from negawatt.monitor import ProcessTable, group, group_path

ID = "3f" * 32
POD = "0123abcd-4567-89ab-cdef-0123456789ab"
UNDER = POD.replace("-", "_")


@pytest.mark.parametrize(
    ("path", "kind", "name", "container", "pod"),
    [
        ("/", "root", "/", "", ""),
        (f"/docker/{ID}", "docker", ID[:12], ID, ""),
        (f"/system.slice/docker-{ID}.scope", "docker", ID[:12], ID, ""),
        (f"/docker/{'ab' * 32}/docker/{ID}", "docker", ID[:12], ID, ""),
        ("/docker/buildkit/k8wxxh0vyaab5cq5z1x9p3q2r", "buildkit", "k8wxxh0vyaab5cq5z1x9p3q2r", None, ""),
        (f"/system.slice/nerdctl-{ID}.scope", "containerd", ID[:12], ID, ""),
        (f"/default/{ID}", "containerd", ID[:12], ID, ""),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice/cri-containerd-{ID}.scope",
            "containerd",
            ID[:12],
            ID,
            POD,
        ),
        (f"/system.slice/containerd.service/kubepods-burstable-pod{UNDER}.slice:cri-containerd:{ID}",
         "containerd", ID[:12], ID, POD),
        (f"/kubepods/besteffort/pod{POD}/{ID}", "kubernetes", ID[:12], ID, POD),
        (f"/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{ID}.scope", "cri-o", ID[:12], ID, POD),
        (f"/kubepods.slice/kubepods-pod{UNDER}.slice/crio-{ID}.scope/container", "cri-o", ID[:12], ID, POD),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman", ID[:12], ID, ""),
        (f"/user.slice/user-1.slice/user@1.service/user.slice/libpod-{ID}.scope", "podman", ID[:12], ID, ""),
        ("/lxc.payload.web/system.slice/nginx.service", "lxc", "web", "web", ""),
        ("/lxc/web", "lxc", "web", "web", ""),
        ("/machine.slice/systemd-nspawn@build\\x2dbox.service/x", "nspawn", "build-box", "build-box", ""),
        (f"/ecs/0123456789abcdef/{ID}", "ecs", ID[:12], ID, ""),
        (f"/ecs/{'0a' * 16}/{'0a' * 16}-1234567890", "ecs", f"{'0a' * 16}-1234567890", None, ""),
        ("/system.slice/ssh.service", "systemd", "ssh.service", "", ""),
        ("/user.slice/user-0.slice/session-3.scope", "systemd", "session-3.scope", "", ""),
        ("/user.slice", "systemd", "user.slice", "", ""),
        # what watches a container is none itself
        (f"/machine.slice/libpod-conmon-{ID}.scope", "systemd", f"libpod-conmon-{ID}.scope", "", ""),
        ("/jobs/nightly", "cgroup", "/jobs/nightly", "", ""),
        (f"/../../{'../' * 2}docker/{ID}", "docker", ID[:12], ID, ""),
        (f"/docker/{ID[:-1]}", "cgroup", f"/docker/{ID[:-1]}", "", ""),
    ],
)  # fmt: skip
def test_a_path_names_its_container(path: str, kind: str, name: str, container: str | None, pod: str) -> None:
    found = group(path)
    assert (found.kind, found.name, found.pod, found.path) == (kind, name, pod, path)
    assert found.container == (name if container is None else container)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/system.slice/ssh.service\n", "/system.slice/ssh.service"),
        ("12:memory:/docker/a\n4:cpu,cpuacct:/docker/b\n1:name=systemd:/docker/c\n0::/\n", "/docker/b"),
        ("4:memory:/jobs/a:b\n2:cpu:/\n0::/\n", "/jobs/a:b"),
        ("7:rdma:/only/here\n0::/\n", "/only/here"),
        ("0::/gone.scope (deleted)\n", "/gone.scope"),
        ("0::/\n", "/"),
        ("", "/"),
        ("nonsense\n", "/"),
    ],
)
def test_the_group_that_accounts_for_a_process(text: str, path: str) -> None:
    assert group_path(text) == path


def test_the_real_groups_are_read() -> None:
    own = Path("/proc/self/cgroup").read_text()
    table = ProcessTable()
    table.look()
    here = {process.pid: process for process in table}
    assert here[os.getpid()].group.path == group_path(own)
    assert here[os.getpid()].memory_bytes > 1e6
