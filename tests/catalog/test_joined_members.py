"""Many members of an archive become one file, by a name with a star."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from negawatt.catalog.archive import extract
from negawatt.catalog.entry import StoredFile
from negawatt.errors import IntegrityError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    place = tmp_path / "letters.tgz"
    with tarfile.open(place, "w:gz") as tar:
        for name, content in (("p/b/2.json", b"two"), ("p/a/1.json", b"one"), ("p/a/1.txt", b"no")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("p/c/3.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return place


def pinned(content: bytes, part: str = "p/*/*.json") -> StoredFile:
    return StoredFile("all.json", (part,), hashlib.sha256(content).hexdigest(), len(content))


def test_members_that_match_are_joined_in_order_and_links_are_not_followed(archive: Path) -> None:
    target = archive.with_name("all.json")
    extract(pinned(b"onetwo"), [archive], target)
    assert target.read_bytes() == b"onetwo"


@pytest.mark.parametrize(
    ("content", "part", "sentence"),
    [
        (b"one", "p/*/*.json", "more of p/.* than is pinned"),
        (b"onetwo!", "p/*/*.json", "is not the file that the catalogue pins"),
        (b"onetwo", "q/*", "hold no q/"),
    ],
)
def test_what_is_not_pinned_is_refused(archive: Path, content: bytes, part: str, sentence: str) -> None:
    with pytest.raises(IntegrityError, match=sentence):
        extract(pinned(content, part), [archive], archive.with_name("all.json"))
