"""The shipped catalogue is whole, and names are forgiving."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from negawatt import catalog
from negawatt.catalog.entry import KINDS, parse
from negawatt.errors import UsageError

TEXT = resources.files("negawatt.catalog").joinpath("catalog.toml").read_text("utf-8")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_entry_is_pinned(machine: str) -> None:
    entries = parse(TEXT, machine=machine)
    assert len({e.name for e in entries}) == len(entries)
    for entry in entries:
        assert entry.kind in KINDS
        if (entry.name, machine) == ("llamacpp-vulkan", "aarch64"):
            assert not entry.packages  # what its notes say
            assert not entry.files
            continue
        assert entry.packages, f"{entry.name} has nothing to fetch on {machine}"
        assert entry.files, f"{entry.name} stores nothing on {machine}"
        for pinned in (*entry.packages, *entry.files, *entry.joined):
            assert re.fullmatch("[0-9a-f]{64}", pinned.sha256)
            assert pinned.size_bytes > 0
        assert entry.license
        assert entry.license_url.startswith("https://")


def test_each_kind_of_machine_gets_its_own_runtime() -> None:
    names = {m: {f.name for f in next(e for e in parse(TEXT, machine=m) if e.kind == "runtime").files}
             for m in ("x86_64", "aarch64")}  # fmt: skip
    assert "libggml-cpu-haswell.so" in names["x86_64"] - names["aarch64"]
    assert "libggml-cpu-armv8.0_1.so" in names["aarch64"] - names["x86_64"]
    assert all(e.packages == () for e in parse(TEXT, machine="riscv64") if e.kind == "runtime")


def test_only_terms_beyond_open_licences_ask_for_consent() -> None:
    assert [e.name for e in catalog.entries() if e.needs_consent] == ["gemma-3-270m"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("smollm", "smollm2-135m-instruct"),
        ("gemma3", "gemma-3-270m"),
        ("PIQA", "piqa"),
        ("llama.cpp", "llamacpp"),
    ],
)
def test_a_wrong_name_suggests_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {meant}"):
        catalog.entry(typed)


def test_a_name_of_another_kind_is_not_found() -> None:
    with pytest.raises(UsageError, match="no model called 'piqa'"):
        catalog.entry("piqa", kind="model")
