"""A package registry on loopback, with packages of its own and faults on request."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


@dataclass
class Registry:
    """What is served, what was asked for, and what goes wrong.

    Attributes:
        files: file name → bytes; served under ``/files/`` and listed by the simple index.
        requests: (path, value of the Range header) of every request.
        cut_at: file name → bytes after which the connection breaks, once.
        rate: bytes per second of every file; 0 for as fast as possible.
        silent: never answer.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    cut_at: dict[str, int] = field(default_factory=dict)
    rate: int = 0
    silent: bool = False

    def downloads(self, name: str) -> list[str]:
        """Range headers of the requests for one file."""
        return [ranges for path, ranges in self.requests if path == f"/files/{name}"]


@contextmanager
def serve() -> Iterator[Registry]:
    registry = Registry()
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            registry.requests.append((self.path, self.headers.get("Range", "")))
            if registry.silent:
                stopped.wait()
            elif self.path.startswith("/files/"):
                self._file(self.path.removeprefix("/files/"))
            elif self.path.startswith("/simple/"):
                links = "".join(f'<a href="{registry.url}/files/{n}">{n}</a>\n' for n in registry.files)
                self._answer(f"<html><body>{links}</body></html>".encode(), "text/html")
            elif self.path == "/@org%2fpkg":
                tarball = f"{registry.url}/files/pkg-1.0.0.tgz"
                page = {"versions": {"1.0.0": {"dist": {"tarball": tarball}}}}
                self._answer(json.dumps(page).encode(), "application/json")
            else:
                self.send_error(404)

        def _answer(self, body: bytes, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _file(self, name: str) -> None:
            body = registry.files[name]
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            cut = registry.cut_at.pop(name, len(body))
            for at in range(start, cut, 4096):
                self.wfile.write(body[at : min(at + 4096, cut)])
                if registry.rate:
                    time.sleep(4096 / registry.rate)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        registry.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield registry
        stopped.set()
        server.shutdown()


# -- packages ------------------------------------------------------------------------------------


def wheel(name: str, members: dict[str, bytes]) -> bytes:
    """A wheel that pip accepts, holding `members` as they are given."""
    info = f"{name}-1.0.dist-info"
    members = members | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members.items():
            archive.writestr(path, content)
    return target.getvalue()


def tarball(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    """A gzipped tar; `links` are symbolic links, name → target."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for path, content in members.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for path, points_to in (links or {}).items():
            info = tarfile.TarInfo(path)
            info.type, info.linkname = tarfile.SYMTYPE, points_to
            archive.addfile(info)
    return target.getvalue()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class File:
    """A stored file of a test entry: its name, its parts, and what it must be."""

    name: str
    parts: list[str]
    content: bytes


def write_catalog(
    home: Path,
    name: str,
    packages: dict[str, tuple[str, str, bytes]],
    files: list[File],
    joined: list[File] | None = None,
    **fields: object,
) -> None:
    """Write ``catalog.toml`` with one entry into `home`.

    Args:
        home: the NEGAWATT_HOME of the test.
        name: name of the entry.
        packages: archive file name → (registry, package name, pinned content).
        files: what is stored.
        joined: archives put together from pieces.
        fields: other fields of the entry.
    """
    entry = {
        "name": name,
        "kind": "data",
        "description": "a test",
        "license": "MIT",
        "license_url": "-",
        **fields,
    }
    lines = ["[[entry]]", *(f"{k} = {json.dumps(v)}" for k, v in entry.items())]
    for archive, (registry, package, content) in packages.items():
        version = "1.0.0" if registry == "npm" else "1.0"
        lines += [
            "[[entry.package]]",
            f'registry = "{registry}"',
            f'name = "{package}"',
            f'version = "{version}"',
        ]
        lines += [f'archive = "{archive}"', f'sha256 = "{sha(content)}"', f"size_bytes = {len(content)}"]
    pinned = [("joined", file) for file in joined or []] + [("file", file) for file in files]
    for kind, file in pinned:
        lines += [f"[[entry.{kind}]]", f"name = {json.dumps(file.name)}", f"parts = {json.dumps(file.parts)}"]
        lines += [f'sha256 = "{sha(file.content)}"', f"size_bytes = {len(file.content)}"]
    home.mkdir(parents=True, exist_ok=True)
    (home / "catalog.toml").write_text("\n".join(lines))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A running registry that pip and npm's clients are pointed at, and nothing else."""
    with serve() as running:
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_INDEX_URL", f"{running.url}/simple")
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", running.url)
        yield running
