"""What can be limited: found, bounded, refused with a reason."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from limited_machine import kept, machine, without_rights

from negawatt.errors import EngineError, SensorError
from negawatt.limits.cpu import CPUFREQ, POWERCAP, packages, policies
from negawatt.limits.ladder import against, ladder
from negawatt.limits.limits import Limits, planned, statuses
from negawatt.limits.system import System
from negawatt.meter.sensor import SensorAbsent, SensorDenied
from negawatt.testing.nvml import NvmlDouble
from negawatt.testing.powercap import PowercapTree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return machine(tmp_path / "root")


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the driver of a GPU asks for it; the double has no other notion of who asks."""
    monkeypatch.setattr("negawatt.limits.gpu.os.geteuid", lambda: 0)


@pytest.fixture
def open_root() -> Iterator[Path]:
    """A machine whose files anybody may read and nobody but their owner write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield machine(folder / "root")
    shutil.rmtree(folder)


# -- finding -----------------------------------------------------------------------------------------


def test_packages_have_their_long_term_limit_and_nothing_else_has(root: Path) -> None:
    first, second = packages(root)
    assert (first.part, second.part) == ("cpu/0", "cpu/1")
    assert first.place == f"{POWERCAP}/intel-rapl:0/constraint_0_power_limit_uw"
    assert (first.now, second.now) == (165.0, 120.0)
    assert first.lowest == second.lowest == pytest.approx(16.5)
    assert first.window_s == pytest.approx(28, abs=0.1)


def test_a_ladder_lies_between_the_lowest_and_the_highest_permitted(root: Path, as_root: None) -> None:
    nvml = NvmlDouble()
    system = System(root, nvml)
    assert ladder("power", system=system) == (135, 106)
    assert ladder("clock", system=system) == (4000, 3200)
    assert ladder("power", "cuda:0", system) == (340, 280)
    assert ladder("clock", "cuda:0", system) == (1700, 1300)
    for value in (135, 106):
        assert against(Limits(power_cap_w=value), system) == ""
    (root / POWERCAP / "intel-rapl:0/enabled").write_text("0\n")
    (root / POWERCAP / "intel-rapl:1/enabled").write_text("0\n")
    assert ladder("power", system=system) == (), "nobody knows what it may draw"


def test_there_is_no_ladder_where_nothing_is_permitted(tmp_path: Path, open_root: Path) -> None:
    assert ladder("power", system=System(tmp_path)) == ladder("clock", system=System(tmp_path)) == ()
    with without_rights():
        assert ladder("power", system=System(open_root)) == ()
        assert "permission to write" in against(Limits(power_cap_w=60), System(open_root))


def test_the_limit_is_known_by_its_name_not_by_its_number(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path / POWERCAP)
    folder = tree.add("intel-rapl:0", "package-0")
    tree.limit("intel-rapl:0", 50_000_000)
    for number, name in ((0, "short_term"), (1, "long_term")):
        (folder / f"constraint_{number}_name").write_text(f"{name}\n")
    assert packages(tmp_path)[0].now == 62.5  # as the second was made with a quarter more


@pytest.mark.parametrize(("most_uw", "lowest"), [(125_000_000, 12.5), (0, 5.0), (15_000_000, 5.0)])
def test_how_far_a_package_can_be_lowered_follows_from_what_it_is_made_for(
    tmp_path: Path, most_uw: int, lowest: float
) -> None:
    tree = PowercapTree(tmp_path / POWERCAP)
    tree.add("intel-rapl:0", "package-0")
    tree.limit("intel-rapl:0", 4_095_000_000, most_uw=most_uw)  # how firmware says that there is no limit
    assert packages(tmp_path)[0].lowest == pytest.approx(lowest)


def test_clocks_are_found_in_the_order_of_their_numbers(root: Path) -> None:
    assert [(c.part, c.lowest, c.now) for c in policies(root)] == [
        ("policy0", 800.0, 4800.0),
        ("policy8", 800.0, 1800.0),
    ]


def test_counters_without_limits_and_folders_without_clocks_are_said_to_be_absent(tmp_path: Path) -> None:
    PowercapTree.server(tmp_path / POWERCAP)
    (tmp_path / CPUFREQ).mkdir(parents=True)
    with pytest.raises(SensorAbsent, match="no package has a power limit") as power:
        packages(tmp_path)
    with pytest.raises(SensorAbsent, match="no clock can be set"):
        policies(tmp_path)
    assert "AMD" in power.value.remedy


def test_a_file_that_holds_nonsense_is_named(root: Path) -> None:
    (root / POWERCAP / "intel-rapl:0/constraint_0_power_limit_uw").write_text("plenty\n")
    with pytest.raises(EngineError, match="constraint_0_power_limit_uw should hold a whole number"):
        planned(Limits(60), System(root))


@pytest.mark.usefixtures("as_root")
def test_gpus_have_the_bounds_that_nvml_tells() -> None:
    system = System(pynvml=NvmlDouble(2))
    power, clock = system.ceilings("power", "cuda"), system.ceilings("clock", "cuda:1")
    assert [(c.part, c.lowest, c.now) for c in power] == [("gpu/0", 100.0, 400.0), ("gpu/1", 100.0, 400.0)]
    assert [(c.part, c.lowest, c.now, c.kept) for c in clock] == [("gpu/1", 345.0, 1980.0, None)]
    with pytest.raises(SensorAbsent):
        system.ceilings("power", "cuda:7")


def test_gpus_are_for_root_alone() -> None:
    with without_rights(), pytest.raises(SensorDenied, match="root alone"):
        System(pynvml=NvmlDouble()).ceilings("power", "cuda")


# -- what is refused ---------------------------------------------------------------------------------


def test_a_limit_never_raises_anything(root: Path) -> None:
    changes = planned(Limits(140, 2000), System(root)).changes
    assert [(c.place, c.before, c.after) for c in changes] == [
        (f"{POWERCAP}/intel-rapl:0/constraint_0_power_limit_uw", 165_000_000, 140_000_000),
        (f"{CPUFREQ}/policy0/scaling_max_freq", 4_800_000, 2_000_000),
    ]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(165), "165 W would lower nothing; there can be cpu/0 from 16.5 to 165 W"),
        (Limits(16), "16 W are too few; there can be cpu/0 from 16.5 to 165 W, on average over 28 s"),
        (Limits(clock_mhz=4800), "4800 MHz would lower nothing; there can be policy0 from 800 to 4800 MHz"),
        (Limits(clock_mhz=799), "799 MHz are too few"),
    ],
)
def test_bounds_are_named(root: Path, limits: Limits, words: str) -> None:
    with pytest.raises(EngineError, match=words.replace("(", r"\(")):
        planned(limits, System(root))


def test_a_limit_that_is_switched_off_is_switched_on_last(root: Path) -> None:
    (root / POWERCAP / "intel-rapl:0/enabled").write_text("0\n")
    found = planned(Limits(400), System(root))
    places = [c.place.rpartition("/")[2] for c in found.changes]
    assert places == ["constraint_0_power_limit_uw", "enabled"]
    assert "before: no limit" in found.told[0]


def test_a_file_that_may_not_be_written_is_named_with_what_would_allow_it(open_root: Path) -> None:
    before = kept(open_root)
    with without_rights():
        rows = {row["name"]: row for row in statuses(System(open_root, NvmlDouble()))}
        with pytest.raises(
            EngineError, match=r"permission to write .*scaling_max_freq is denied; sudo chmod"
        ):
            planned(Limits(clock_mhz=2000), System(open_root))
    assert [rows[name]["status"] for name in ("cpu power", "cpu clock", "gpu power")] == ["denied"] * 3
    assert "intel-rapl:0/constraint_0_power_limit_uw" in rows["cpu power"]["reason"]
    assert rows["cpu power"]["remedy"].startswith("sudo chmod a+w ")
    assert kept(open_root) == before


@pytest.mark.usefixtures("as_root")
def test_rows_for_doctor_say_what_can_be_lowered(root: Path) -> None:
    rows = {row["name"]: row for row in statuses(System(root, NvmlDouble(1)))}
    assert [row["status"] for row in rows.values()] == ["ok"] * 4
    assert "cpu/1 from 16.5 to 120 W, on average over 28 s" in rows["cpu power"]["reason"]
    assert "gpu/0 from 345 to 1980 MHz" in rows["gpu clock"]["reason"]
    assert statuses(System(root / "elsewhere", NvmlDouble(0)))[1]["status"] == "absent"


@pytest.mark.parametrize(
    "place",
    [
        "etc/passwd",
        f"{POWERCAP}/../../../etc/passwd",
        f"{POWERCAP}/intel-rapl:0/../../enabled",
        f"{CPUFREQ}/policy0/scaling_governor",
        "nvml/../clock",
    ],
)
def test_nothing_but_a_place_of_a_limit_is_read_or_written(root: Path, place: str) -> None:
    before = kept(root)
    for act in (lambda: System(root).read(place), lambda: System(root).write(place, 1)):
        with pytest.raises(SensorError, match="is no place of a limit"):
            act()
    assert kept(root) == before


def test_words_name_both_limits() -> None:
    assert str(Limits(65.5, 2000)) == "at most 65.5 W and at most 2000 MHz"
    assert not Limits(device="cuda")
