"""Texts for benchmarks, from packages of Debian: Jane Austen's novels, and the Debian handbook.

Both are fetched with ``apt-get download`` and unpacked into the benchmark's folder; nothing is installed.
"""

from __future__ import annotations

import html
import re
import struct
import subprocess
import zlib
from pathlib import Path

_HEADING = re.compile(r"<(script|style|head)\b.*?</\1>", re.DOTALL | re.IGNORECASE)
_BREAK = re.compile(r"</(p|div|li|h\d|tr|pre|dt|dd|title)>|<br ?/?>", re.IGNORECASE)
_TAG = re.compile(r"<[^>]+>")


def austen(folder: Path) -> Path:
    """Six novels as one text file, in the package's own order."""
    target = folder / "austen.txt"
    if not target.is_file():
        root = _unpacked("r-cran-janeaustenr", folder)
        (database,) = root.rglob("janeaustenr/data/Rdata.rdb")
        target.write_text("\n".join(_strings(database)), "utf-8")
    return target


def handbook(folder: Path) -> Path:
    """The English Debian handbook as one text file, chapter files in alphabetical order."""
    target = folder / "handbook.txt"
    if not target.is_file():
        root = _unpacked("debian-handbook", folder)
        pages = sorted(root.rglob("html/en-US/*.html"))
        target.write_text("\n".join(_text(page.read_text("utf-8")) for page in pages), "utf-8")
    return target


def _unpacked(package: str, folder: Path) -> Path:
    root = folder / package
    if not root.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
    return root


def _strings(database: Path) -> list[str]:
    """The lines in R's lazy-load database: zlib pieces, each behind its length, of serialized vectors.

    A string is serialized as its flags (0x00040009 for ASCII, 0x00008009 for UTF-8), length and bytes.
    """
    data, at, lines = database.read_bytes(), 0, []
    while at < len(data):
        unzip = zlib.decompressobj()
        piece = unzip.decompress(data[at + 4 :])
        at = len(data) - len(unzip.unused_data)
        for match in re.finditer(rb"\x00(?:\x04\x00|\x00\x80)\x09(....)", piece, re.DOTALL):
            (length,) = struct.unpack(">i", match[1])
            if 0 <= length < 1000:
                lines.append(piece[match.end() : match.end() + length].decode("utf-8", "replace"))
    return lines


def _text(page: str) -> str:
    page = _BREAK.sub("\n", _HEADING.sub("", page))
    lines = (line.strip() for line in html.unescape(_TAG.sub("", page)).splitlines())
    return "\n".join(line for line in lines if line)
