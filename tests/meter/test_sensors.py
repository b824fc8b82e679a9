"""Every sensor against the shipped contract, and what is particular to each."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.errors import SensorError
from negawatt.meter import Sensor, SensorAbsent, SensorDenied, probe
from negawatt.meter.cputime import CpuTimeSensor, cpu_power
from negawatt.meter.nvml import NvmlSensor
from negawatt.meter.perf import PARANOID, PerfSensor, cpu_list
from negawatt.meter.rapl import RaplSensor
from negawatt.testing.nvml import NvmlDouble
from negawatt.testing.powercap import PowercapTree
from negawatt.testing.sensor_contract import SensorBench, SensorContract


class TestRapl(SensorContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> SensorBench:
        tree = PowercapTree.server(tmp_path / "powercap")

        def unplug() -> None:
            (tree.root / "intel-rapl:1" / "energy_uj").unlink()

        return SensorBench(RaplSensor(tree.root), tree.spend, unplug)


class TestRaplAcrossAWrap(TestRapl):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> SensorBench:
        tree = PowercapTree(tmp_path / "powercap")
        tree.add("intel-rapl:0", "package-0", tree.range_uj - 1_000_000)

        def garble() -> None:
            (tree.root / "intel-rapl:0" / "energy_uj").write_text("<html>")

        return SensorBench(RaplSensor(tree.root), tree.spend, garble)


class TestNvmlDouble(SensorContract):
    """Against a double of pynvml: not yet run on NVIDIA hardware."""

    @pytest.fixture
    def bench(self) -> SensorBench:
        nvml = NvmlDouble()

        def lose() -> None:
            nvml.fault = nvml.NVML_ERROR_GPU_IS_LOST

        return SensorBench(NvmlSensor(nvml), nvml.spend, lose)


class TestCpuTimeModel(SensorContract):
    @pytest.fixture
    def bench(self) -> SensorBench:
        power = cpu_power("Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz")
        used = [100.0]

        def cpu_time() -> float:
            if used[0] < 0:
                raise SensorError("the measured process has ended")
            return used[0]

        def spend(joules: float) -> None:
            used[0] += joules / power.value_w

        return SensorBench(CpuTimeSensor(cpu_time, power), spend, lambda: used.__setitem__(0, -1.0))


def test_zones_are_not_counted_twice(tmp_path: Path) -> None:
    counters = RaplSensor(PowercapTree.server(tmp_path).root).read().counters
    assert counters.keys() == {
        *("cpu/0", "cpu/1", "cpu/0/core", "cpu/1/core", "dram/0", "dram/1", "host/psys"),
    }
    assert counters["cpu/1/core"].part_of == "cpu/1"
    assert counters["dram/1"].part_of is None  # powercap shows memory below the package; it is not in it
    assert counters["host/psys"].boundary == "host"


def test_the_memory_mapped_twin_is_left_out(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path)
    tree.add("intel-rapl:0", "package-0", 5)
    tree.add("intel-rapl-mmio:0", "package-0", 5)
    assert list(RaplSensor(tree.root).read().counters) == ["cpu/0"]


def test_dies_of_one_package_are_kept_apart(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path)
    tree.add("intel-rapl:0", "package-0-die-0", 5)
    tree.add("intel-rapl:1", "package-0-die-1", 7)
    assert list(RaplSensor(tree.root).read().counters) == ["cpu/0.0", "cpu/0.1"]


def test_a_zone_plugged_in_later_is_seen(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path)
    tree.add("intel-rapl:0", "package-0")
    sensor = RaplSensor(tree.root)
    assert list(sensor.read().counters) == ["cpu/0"]
    tree.add("intel-rapl:1", "package-1")
    assert list(sensor.read().counters) == ["cpu/0", "cpu/1"]


def test_no_powercap_is_absent_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SensorAbsent, match="no RAPL zones") as caught:
        RaplSensor(tmp_path).read()
    assert "modprobe intel_rapl_msr" in caught.value.remedy


def _probed_as_nobody(module: str, name: str, root: Path) -> list[str]:
    """Status, reason and remedy as an ordinary user sees them: root is denied nothing."""
    script = (
        "import os, sys, tempfile\n"
        "from pathlib import Path\n"
        f"from negawatt.meter.{module} import {name}\n"
        "from negawatt.meter import probe\n"
        "root = Path(sys.argv[1])\n"
        "ours = root.parents[: -len(Path(tempfile.gettempdir()).parts)]\n"
        "for folder in (root, *ours): folder.chmod(0o755)\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        f"[status] = probe([{name}(root)])\n"
        "print(status.status, status.reason, status.remedy, sep='|')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip().split("|")


def test_permission_denied_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    tree = PowercapTree.server(tmp_path / "tree")
    (tree.root / "intel-rapl:0" / "energy_uj").chmod(0)
    status, reason, remedy = _probed_as_nobody("rapl", "RaplSensor", tree.root)
    assert status == "denied"
    assert reason == f"permission denied on {tree.root / 'intel-rapl:0' / 'energy_uj'}"
    assert remedy.startswith(f"sudo chmod a+r {tree.root}/*/energy_uj")


def test_a_counter_that_stands_still_is_dead(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path)
    tree.add("intel-rapl:0", "psys", 0)
    used_before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    [status] = probe([RaplSensor(tree.root)])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime > used_before
    assert status.status == "dead"
    assert "did not move while CPU time passed" in status.reason
    assert status.remedy


class _Spending(Sensor):
    """Lets a tree's package zone, and nothing else in it, spend on every read."""

    name = "spending"

    def __init__(self, tree: PowercapTree, zone: str) -> None:
        self.tree, self.zone, self.inner = tree, zone, RaplSensor(tree.root)

    def read(self):  # type: ignore[no-untyped-def]
        self.tree.set(self.zone, self.tree.get(self.zone) + 1_000_000)
        return self.inner.read()


def test_only_the_moving_counters_of_a_sensor_are_trusted(tmp_path: Path) -> None:
    tree = PowercapTree.server(tmp_path)
    [status] = probe([_Spending(tree, "intel-rapl:0")])
    assert status.status == "ok"
    assert status.components == ("cpu/0",)
    assert "host/psys" in status.reason
    assert "not trusted" in status.reason


def test_every_status_comes_with_a_reason(tmp_path: Path) -> None:
    nvml = NvmlDouble()
    nvml.fault = nvml.NVML_ERROR_DRIVER_NOT_LOADED
    statuses = probe(
        [RaplSensor(tmp_path), PerfSensor(tmp_path), NvmlSensor(nvml), NvmlSensor(NvmlDouble(0))]
    )
    assert [s.status for s in statuses] == ["absent"] * 4
    assert all(s.reason for s in statuses)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", SensorAbsent),
        ("NVML_ERROR_DRIVER_NOT_LOADED", SensorAbsent),
        ("NVML_ERROR_NOT_SUPPORTED", SensorAbsent),
        ("NVML_ERROR_NO_PERMISSION", SensorDenied),
        ("NVML_ERROR_GPU_IS_LOST", SensorError),
    ],
)
def test_errors_of_nvml_become_ours(code: str, error: type[SensorError]) -> None:
    nvml = NvmlDouble()
    sensor = NvmlSensor(nvml)
    sensor.read()
    nvml.fault = getattr(nvml, code)
    with pytest.raises(error) as caught:
        sensor.read()
    assert type(caught.value) is error


def test_the_installed_nvml_has_the_names_of_the_double() -> None:
    pynvml = pytest.importorskip("pynvml")
    for name in (n for n in vars(NvmlDouble) if n.startswith(("nvml", "NVML"))):
        assert hasattr(pynvml, name), name
        if name.startswith("NVML_ERROR"):
            assert getattr(pynvml, name) == getattr(NvmlDouble, name)


def _perf_tree(root: Path) -> Path:
    """The software clock of the kernel, dressed as a power event: opened and read for real."""
    (root / "events").mkdir(parents=True)
    (root / "type").write_text("1\n")  # PERF_TYPE_SOFTWARE
    (root / "cpumask").write_text("0\n")
    (root / "events" / "energy-pkg").write_text("event=0x0\n")  # PERF_COUNT_SW_CPU_CLOCK, nanoseconds
    (root / "events" / "energy-pkg.scale").write_text("1e-9\n")
    (root / "events" / "energy-pkg.unit").write_text("Joules\n")
    return root


def test_perf_events_are_opened_and_read_by_the_real_system_call(tmp_path: Path) -> None:
    """A clock that counts a nanojoule a nanosecond is a one-watt chip: the whole path but the event."""
    sensor = PerfSensor(_perf_tree(tmp_path))
    try:
        before = sensor.read()
    except SensorDenied as denied:
        pytest.skip(str(denied))
    time.sleep(0.05)
    after = sensor.read()
    watts = (after.counters["cpu/0"].energy_j - before.counters["cpu/0"].energy_j) / (
        after.at_s - before.at_s
    )
    assert watts == pytest.approx(1.0, rel=0.05)
    open_files = len(os.listdir("/proc/self/fd"))
    sensor.close()
    assert len(os.listdir("/proc/self/fd")) == open_files - 1


def test_perf_events_that_are_not_permitted_say_so(tmp_path: Path) -> None:
    if int(PARANOID.read_text()) < 1:
        pytest.skip("this kernel permits perf events to everybody")
    status, reason, remedy = _probed_as_nobody("perf", "PerfSensor", _perf_tree(tmp_path / "power"))
    assert status == "denied"
    assert reason.startswith("perf_event_open is not permitted (kernel.perf_event_paranoid is ")
    assert remedy.startswith("sudo sysctl kernel.perf_event_paranoid=0")


@pytest.mark.parametrize(
    ("file", "text"), [("type", "x"), ("events/energy-pkg.unit", "Watts"), ("events/energy-pkg", "umask=1")]
)
def test_a_perf_tree_that_is_not_as_documented_is_refused(tmp_path: Path, file: str, text: str) -> None:
    root = _perf_tree(tmp_path)
    (root / file).write_text(text)
    with pytest.raises(SensorError, match="not laid out as expected"):
        PerfSensor(root).read()


@given(st.sets(st.integers(0, 300), min_size=1))
def test_cpu_lists(numbers: set[int]) -> None:
    assert cpu_list(",".join(map(str, sorted(numbers)))) == sorted(numbers)
    assert cpu_list(f"{min(numbers)}-{max(numbers)}") == list(range(min(numbers), max(numbers) + 1))
