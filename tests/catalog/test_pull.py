"""Pulling, against a registry on loopback that misbehaves in every way a real one can."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from registry import File, Registry, registry, tarball, wheel, write_catalog

from negawatt import catalog
from negawatt.catalog import http
from negawatt.catalog.manifest import Manifest
from negawatt.errors import ConsentError, DownloadError, IntegrityError, NegawattError, UsageError

__all__ = ["registry"]  # the fixture

PAYLOAD = random.Random(0).randbytes(300_000)
WHEEL = "thing-1.0-py3-none-any.whl"
PULL = "from negawatt import catalog; catalog.pull('thing')"


def offer_wheel(home: Path, registry: Registry, **fields: object) -> bytes:
    content = wheel("thing", {"thing/data.bin": PAYLOAD})
    registry.files[WHEEL] = content
    stored = [File("data.bin", ["thing/data.bin"], PAYLOAD)]
    write_catalog(home, "thing", {WHEEL: ("pypi", "thing", content)}, stored, **fields)
    return content


def offer_sdist(home: Path, registry: Registry, content: bytes, parts: list[str]) -> None:
    registry.files["thing-1.0.tar.gz"] = content
    packages = {"thing-1.0.tar.gz": ("pypi", "thing", content)}
    write_catalog(home, "thing", packages, [File("data.bin", parts, PAYLOAD)])


def nothing_stored(home: Path) -> bool:
    return not [p for p in home.glob("data/**/*") if p.is_file()]


def test_a_wheel_is_fetched_once_and_described(fresh_home: Path, registry: Registry) -> None:
    content = offer_wheel(fresh_home, registry)
    seen: list[tuple[float, float | None]] = []
    folder = catalog.pull("thing", progress=lambda done, total, _: seen.append((done, total)))
    assert folder == fresh_home / "data" / "thing" == catalog.find("thing") == catalog.verify("thing")
    assert (folder / "data.bin").read_bytes() == PAYLOAD
    found = Manifest.read(folder)
    assert (found.source, found.license) == ("pypi:thing==1.0", "MIT")
    assert seen[-1] == (len(content), len(content))
    assert all(total == len(content) for _, total in seen)

    catalog.pull("thing")
    assert len(registry.downloads(WHEEL)) == 1
    assert not (fresh_home / "cache" / "downloads" / "thing").exists()


def test_parts_of_several_packages_are_joined_in_order(fresh_home: Path, registry: Registry) -> None:
    halves = {"a": PAYLOAD[:200_000], "b": PAYLOAD[200_000:]}
    packages = {}
    for name, half in halves.items():
        archive = f"{name}-1.0-py3-none-any.whl"
        registry.files[archive] = wheel(name, {f"{name}/part": half})
        packages[archive] = ("pypi", name, registry.files[archive])
    write_catalog(fresh_home, "thing", packages, [File("whole", ["a/part", "b/part"], PAYLOAD)])
    assert (catalog.pull("thing") / "whole").read_bytes() == PAYLOAD


def test_an_archive_in_pieces_is_joined_before_it_is_opened(fresh_home: Path, registry: Registry) -> None:
    whole = wheel("inside", {"deep/data": PAYLOAD})
    packages = {}
    for name, piece in {"a": whole[:70_001], "b": whole[70_001:]}.items():
        archive = f"{name}-1.0-py3-none-any.whl"
        registry.files[archive] = wheel(name, {f"{name}/all.zip.part": piece})
        packages[archive] = ("pypi", name, registry.files[archive])
    pieces = File("all.zip", ["a/all.zip.part", "b/all.zip.part"], whole)
    write_catalog(fresh_home, "thing", packages, [File("data", ["deep/data"], PAYLOAD)], joined=[pieces])
    place = catalog.pull("thing")
    assert sorted(p.name for p in place.iterdir()) == ["data", "negawatt.json"]
    assert (place / "data").read_bytes() == PAYLOAD


def test_npm_needs_no_npm(fresh_home: Path, registry: Registry) -> None:
    content = tarball({"package/lib/a.so": PAYLOAD})
    registry.files["pkg-1.0.0.tgz"] = content
    packages = {"pkg-1.0.0.tgz": ("npm", "@org/pkg", content)}
    write_catalog(fresh_home, "thing", packages, [File("a.so", ["package/lib/a.so"], PAYLOAD)])
    assert (catalog.pull("thing") / "a.so").read_bytes() == PAYLOAD


def test_an_archive_within_an_sdist(fresh_home: Path, registry: Registry) -> None:
    outer = tarball({"thing-1.0/inner.tar.gz": tarball({"deep/data": PAYLOAD})})
    offer_sdist(fresh_home, registry, outer, ["thing-1.0/inner.tar.gz!deep/data"])
    assert (catalog.pull("thing") / "data.bin").read_bytes() == PAYLOAD


def test_a_broken_connection_is_continued_where_it_broke(fresh_home: Path, registry: Registry) -> None:
    offer_sdist(fresh_home, registry, tarball({"thing-1.0/data": PAYLOAD}), ["thing-1.0/data"])
    registry.cut_at["thing-1.0.tar.gz"] = 100_000
    catalog.pull("thing")
    assert registry.downloads("thing-1.0.tar.gz") == ["", "bytes=100000-"]


def test_a_killed_pull_leaves_nothing_half_written_and_can_be_repeated(
    fresh_home: Path, registry: Registry
) -> None:
    offer_sdist(fresh_home, registry, tarball({"thing-1.0/data": PAYLOAD}), ["thing-1.0/data"])
    registry.rate = 100_000
    process = subprocess.Popen(
        [sys.executable, "-c", PULL], env=os.environ | {"NEGAWATT_HOME": str(fresh_home)}
    )
    part = fresh_home / "cache" / "downloads" / "thing" / "thing-1.0.tar.gz.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert nothing_stored(fresh_home)
    assert 0 < part.stat().st_size < len(registry.files["thing-1.0.tar.gz"])

    registry.rate = 0
    catalog.pull("thing")
    assert registry.downloads("thing-1.0.tar.gz")[-1].startswith("bytes=")
    catalog.verify("thing")


def test_ctrl_c_during_pip_leaves_nothing(fresh_home: Path, registry: Registry) -> None:
    offer_wheel(fresh_home, registry)
    registry.rate = 50_000
    command = [sys.executable, "-c", "from negawatt.cli import main; main()", "data", "pull", "thing"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not registry.downloads(WHEEL) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip()) == (130, "negawatt: interrupted")
    assert nothing_stored(fresh_home)
    assert list((fresh_home / "cache" / "downloads" / "thing").iterdir()) == []


def test_a_disk_that_takes_no_more(fresh_home: Path, registry: Registry) -> None:
    offer_sdist(fresh_home, registry, tarball({"thing-1.0/data": PAYLOAD}), ["thing-1.0/data"])
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + (
        "from negawatt.cli import main; main()"
    )
    command = [sys.executable, "-c", script, "data", "pull", "thing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"negawatt: cannot write .*thing-1.0.tar.gz.part: File too large\n", done.stderr)
    assert nothing_stored(fresh_home)


def test_two_processes_pull_the_same_thing_once(fresh_home: Path, registry: Registry) -> None:
    offer_sdist(fresh_home, registry, tarball({"thing-1.0/data": PAYLOAD}), ["thing-1.0/data"])
    registry.rate = 600_000
    environment = os.environ | {"NEGAWATT_HOME": str(fresh_home)}
    processes = [subprocess.Popen([sys.executable, "-c", PULL], env=environment) for _ in range(2)]
    assert [p.wait(60) for p in processes] == [0, 0]
    assert registry.downloads("thing-1.0.tar.gz") == [""]
    catalog.verify("thing")


@pytest.mark.parametrize("damage", ["other content", "truncated", "too long"])
def test_what_is_not_pinned_is_not_kept(damage: str, fresh_home: Path, registry: Registry) -> None:
    offer_wheel(fresh_home, registry)
    registry.files[WHEEL] = {
        "other content": wheel("thing", {"thing/data.bin": PAYLOAD[::-1]}),
        "truncated": wheel("thing", {"thing/data.bin": PAYLOAD[:-100]}),
        "too long": wheel("thing", {"thing/data.bin": PAYLOAD + b"more"}),
    }[damage]
    with pytest.raises(IntegrityError, match=r"thing==1.0"):
        catalog.pull("thing")
    assert nothing_stored(fresh_home)
    assert not list((fresh_home / "cache").rglob(WHEEL))  # the next pull starts afresh


@pytest.mark.parametrize("size", [PAYLOAD[:-1], PAYLOAD + b"!"], ids=["a byte less", "a byte more"])
def test_a_member_that_is_not_pinned_is_not_kept(size: bytes, fresh_home: Path, registry: Registry) -> None:
    offer_sdist(fresh_home, registry, tarball({"thing-1.0/data": size}), ["thing-1.0/data"])
    with pytest.raises(IntegrityError, match=r"data\.bin"):
        catalog.pull("thing")
    assert nothing_stored(fresh_home)


def test_links_inside_an_archive_are_not_followed(fresh_home: Path, registry: Registry) -> None:
    (fresh_home.parent / "secret").write_bytes(PAYLOAD)
    links = {"thing-1.0/data": str(fresh_home.parent / "secret"), "thing-1.0/up": "../../../secret"}
    archive = tarball({}, links)
    for name in links:
        offer_sdist(fresh_home, registry, archive, [name])
        with pytest.raises(IntegrityError, match=r"hold no thing-1.0/"):
            catalog.pull("thing")
    assert nothing_stored(fresh_home)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside"])
def test_a_name_that_leaves_the_folder_is_refused(name: str, fresh_home: Path) -> None:
    write_catalog(fresh_home, "thing", {WHEEL: ("pypi", "thing", b"")}, [File(name, ["x"], b"")])
    with pytest.raises(UsageError, match="leaves its folder"):
        catalog.entries()


@pytest.mark.parametrize("archive", [WHEEL, "thing-1.0.tar.gz"])
def test_a_registry_that_refuses_connections(archive: str, fresh_home: Path, registry: Registry) -> None:
    write_catalog(fresh_home, "thing", {archive: ("pypi", "thing", b"x")}, [File("x", ["x"], b"x")])
    os.environ["PIP_INDEX_URL"] = "http://127.0.0.1:9/simple"  # the registry fixture restores it
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"check the network|refused"):
        catalog.pull("thing")
    assert time.monotonic() - started < 30
    assert nothing_stored(fresh_home)


def test_a_registry_that_never_answers(
    fresh_home: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_sdist(fresh_home, registry, tarball({"thing-1.0/data": PAYLOAD}), ["thing-1.0/data"])
    registry.silent = True
    monkeypatch.setattr(http, "STALL_S", 0.3)
    with pytest.raises(DownloadError, match=r"no answer within|timed out"):
        catalog.pull("thing")


def test_a_package_the_registry_does_not_have(fresh_home: Path, registry: Registry) -> None:
    offer_wheel(fresh_home, registry)
    registry.files.clear()
    with pytest.raises(DownloadError, match=r"pip cannot fetch pypi:thing==1.0: No matching distribution"):
        catalog.pull("thing")


def test_consent_is_asked_before_anything_is_fetched(fresh_home: Path, registry: Registry) -> None:
    offer_wheel(fresh_home, registry, needs_consent=True, license="Strange Terms")
    with pytest.raises(ConsentError, match=r"Strange Terms.*--accept-license"):
        catalog.pull("thing")
    assert registry.requests == []
    catalog.pull("thing", accept_license=True)
    catalog.pull("thing")  # here already: nothing to consent to


def test_no_space_is_said_before_the_download(fresh_home: Path, registry: Registry) -> None:
    offer_wheel(fresh_home, registry)
    path = fresh_home / "catalog.toml"
    path.write_text(path.read_text().replace(f"size_bytes = {len(PAYLOAD)}", f"size_bytes = {10**18}"))
    with pytest.raises(DownloadError, match="free some, or point NEGAWATT_HOME elsewhere"):
        catalog.pull("thing")
    assert registry.requests == []


def test_a_home_that_cannot_be_written(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = tmp_path / "file"
    offer_wheel(tmp_path, registry)
    occupied.write_text("not a folder")
    (tmp_path / "cache").symlink_to(occupied)
    monkeypatch.setenv("NEGAWATT_HOME", str(tmp_path))
    with pytest.raises(NegawattError, match=r"cannot write under .*; choose another NEGAWATT_HOME"):
        catalog.pull("thing")


def test_damage_after_the_pull_is_found_and_mended(fresh_home: Path, registry: Registry) -> None:
    offer_wheel(fresh_home, registry)
    file = catalog.pull("thing") / "data.bin"
    file.write_bytes(PAYLOAD[:-1] + b"?")
    with pytest.raises(IntegrityError, match=r"data\.bin.* is not the file"):
        catalog.verify("thing")
    file.write_bytes(PAYLOAD[:-1])
    with pytest.raises(IntegrityError, match="truncated"):
        catalog.verify("thing")
    assert catalog.find("thing") is None
    catalog.pull("thing")
    catalog.verify("thing")


def test_an_interpreter_without_pip(fresh_home: Path, registry: Registry, tmp_path: Path) -> None:
    offer_wheel(fresh_home, registry)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    script = (
        "from negawatt import catalog, errors\n"
        "try: catalog.pull('thing')\n"
        "except errors.MissingDependency as exc: print(exc)"
    )
    paths = os.pathsep.join(p for p in sys.path if not p.endswith("site-packages"))
    source = str(Path(catalog.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": f"{source}{os.pathsep}{paths}"}
    python = str(bare / "bin" / "python")
    done = subprocess.run(
        [python, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert "has no pip, which fetches pypi:thing==1.0; run:" in done.stdout, done.stderr
    assert "-m ensurepip" in done.stdout
