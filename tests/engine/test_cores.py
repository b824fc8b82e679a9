"""Where threads are kept: machines laid out as sysfs shows them, and the worker's own threads read back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.engine.cores import CHOICES, Cores
from negawatt.errors import EngineError, UsageError
from negawatt.testing.small_models import small_model
from negawatt.tuning import Space
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.space import core_choices

Layout = list[tuple[int, str, str, int | None]]
"""For each processor its socket, the threads of its core, its cluster, and its capacity."""


def laid_out(root: Path, layout: Layout, atoms: str = "") -> Path:
    for number, (package, siblings, cluster, capacity) in enumerate(layout):
        folder = root / f"sys/devices/system/cpu/cpu{number}"
        (folder / "topology").mkdir(parents=True)
        (folder / "topology/physical_package_id").write_text(f"{package}\n")
        (folder / "topology/thread_siblings_list").write_text(f"{siblings}\n")
        (folder / "topology/cluster_id").write_text(f"{cluster}\n")
        if capacity is not None:
            (folder / "cpu_capacity").write_text(f"{capacity}\n")
    if atoms:
        (root / "sys/devices/cpu_atom").mkdir(parents=True)
        (root / "sys/devices/cpu_atom/cpus").write_text(f"{atoms}\n")
    return root


def laptop(root: Path) -> Cores:
    """Two fast cores of two threads each, and four thrifty ones."""
    layout: Layout = [
        (0, "0-1", "0", None),
        (0, "0-1", "0", None),
        (0, "2-3", "8", None),
        (0, "2-3", "8", None),
    ]
    layout += [(0, str(n), "16", None) for n in range(4, 8)]
    return Cores.here(laid_out(root, layout, "4-7"), range(8))


def where(cores: Cores, choice: str, threads: int) -> set[int]:
    found = cores.where(choice, threads)
    return set() if found is None else set(found)


def server(root: Path, allowed: range = range(8)) -> Cores:
    """Two sockets of four cores, numbered in turn as some firmware does."""
    return Cores.here(laid_out(root, [(n % 2, str(n), "0", None) for n in range(8)]), allowed)


def test_a_hybrid_processor_has_cores_of_two_kinds(tmp_path: Path) -> None:
    cores = laptop(tmp_path)
    assert where(cores, "performance", 2) == {0, 1, 2, 3}
    assert where(cores, "efficiency", 4) == {4, 5, 6, 7}
    assert cores.where("default", 8) is None
    assert cores.offered(1) == ("default", "performance", "efficiency"), "one thread is near itself anyway"
    assert cores.offered(2) == CHOICES
    assert cores.offered(8) == ("default",), "all of them are all of them"
    assert where(cores, "compact", 2) == {0, 2}, "a fast core each"
    with pytest.raises(EngineError, match="5 threads do not fit on 4 efficiency cores"):
        cores.where("efficiency", 5)
    assert {2, 4, 6, 8} <= set(cores.counts())


def test_cores_are_told_apart_by_capacity_where_nothing_lists_them(tmp_path: Path) -> None:
    layout: Layout = [(0, str(n), "0", capacity) for n, capacity in enumerate((250, 250, 900, 1024))]
    cores = Cores.here(laid_out(tmp_path, layout), range(4))
    assert where(cores, "efficiency", 1) == {0, 1}
    assert where(cores, "performance", 2) == {2, 3}, "a higher clock alone makes no other kind"


def test_two_sockets_are_filled_one_after_the_other(tmp_path: Path) -> None:
    cores = server(tmp_path)
    assert where(cores, "compact", 4) in ({0, 2, 4, 6}, {1, 3, 5, 7})
    assert cores.offered(4) == ("default", "compact")
    assert cores.offered(1) == ("default",)
    assert cores.counts() == (1, 4, 8)
    with pytest.raises(EngineError, match="all alike"):
        cores.where("efficiency", 1)


def test_only_what_the_process_may_use_counts(tmp_path: Path) -> None:
    cores = server(tmp_path, range(0, 8, 2))
    assert {p.number for p in cores.processors} == {0, 2, 4, 6}
    assert all(cores.offered(n) == ("default",) for n in (1, 2, 4)), "cores of one socket, all alike"


def test_a_second_thread_of_a_core_comes_last(tmp_path: Path) -> None:
    layout: Layout = [(0, f"{n % 2},{n % 2 + 2}", "0", None) for n in range(4)]
    cores = Cores.here(laid_out(tmp_path, layout), range(4))
    assert where(cores, "compact", 2) == {0, 1}
    assert where(cores, "compact", 3) == {0, 1, 2}


@pytest.mark.parametrize("layout", [[], [(0, "0", "0", None)]])
def test_where_the_layout_cannot_be_read_there_is_no_choice(tmp_path: Path, layout: Layout) -> None:
    cores = Cores.here(laid_out(tmp_path, layout), range(2))
    assert not cores.processors
    assert cores.offered(2) == ("default",)
    assert cores.counts() == ()
    with pytest.raises(EngineError, match="cannot be told apart"):
        cores.where("compact", 1)


def picking(space: Space, point: Candidate) -> Any:
    chosen = space.parameters(point)
    return lambda name, _: chosen[name]


def test_the_search_has_the_dimension_only_where_it_can_matter(tmp_path: Path) -> None:
    plain = Space(("transformers",), (1,), (1, 2), 512, {"transformers": ("fp32",)}, speculation=("none",))
    assert {p.settings.cores for p in plain.grid()} == {"default"}
    kept = core_choices(laptop(tmp_path), (1, 2))
    space = Space(
        ("transformers",), (1,), (1, 2), 512, {"transformers": ("fp32",)}, speculation=("none",), cores=kept
    )
    points = list(space.grid())
    assert len(points) == len(set(points)) == 3 + 4
    for point in points:
        assert space.pick(picking(space, point)) == point


def test_this_machine_is_read() -> None:
    cores = Cores.here()
    assert {p.number for p in cores.processors} in ({*os.sched_getaffinity(0)}, set())
    for threads in Space.default(only=["transformers"]).threads:
        assert set(cores.offered(threads)) <= set(CHOICES)


def test_settings_name_only_what_there_is() -> None:
    with pytest.raises(UsageError, match="cores are default, compact"):
        Settings(threads=1, cores="warm")
    with pytest.raises(UsageError, match="need a number of threads"):
        Settings(cores="compact")
    settings = Settings(threads=2, cores="efficiency")
    assert Settings.from_json(settings.to_json()) == settings
    assert "2 threads on efficiency cores" in str(settings)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor leaves nothing to choose")
def test_all_threads_of_the_worker_stay_where_they_are_put(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = Artifact.open(str(small_model(tmp_path / "model")))
    settings = Settings(engine="openvino", threads=1, cores="compact", max_context=64)
    with Engine(model, settings, cache=tmp_path / "cache") as opened:
        assert opened.generate([Request([1, 2, 3], 4)]).completions[0].tokens
        threads = os.listdir(f"/proc/{opened.pid}/task")
        kept = {frozenset(os.sched_getaffinity(int(thread))) for thread in threads}
    assert kept == {Cores.here().where("compact", 1)}
    assert len(threads) > 1
    with pytest.raises(EngineError, match="alike"), Engine(model, settings.replace(cores="efficiency")):
        pass
