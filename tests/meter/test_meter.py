"""Windows on processes: with counters laid out as files, and with nothing but CPU time."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import Energy, Provenance
from negawatt.errors import UsageError
from negawatt.meter import Counter, Meter, ProcessMeter, Reading, Sensor, Station
from negawatt.meter.accumulate import Total
from negawatt.meter.attribute import by_cpu_time
from negawatt.meter.attribute import charged as attributed
from negawatt.meter.cputime import cpu_power
from negawatt.meter.nvml import NvmlSensor
from negawatt.meter.process import machine_time
from negawatt.meter.rapl import RaplSensor
from negawatt.testing.nvml import NvmlDouble
from negawatt.testing.powercap import PowercapTree

POWER = cpu_power("Intel(R) Xeon(R) Platinum 8280 CPU @ 2.70GHz")


def spin(cpu_s: float) -> None:
    end = time.process_time() + cpu_s
    while time.process_time() < end:
        pass


@pytest.fixture
def blind() -> Station:
    """A machine with no sensors at all."""
    return Station([], POWER)


class Live(Sensor):
    """A powercap tree whose counters advance with time, at 50 W a zone."""

    name = "rapl"

    def __init__(self, tree: PowercapTree) -> None:
        self.tree, self.inner, self.last_s = tree, RaplSensor(tree.root), time.monotonic()

    def read(self) -> Reading:
        now_s = time.monotonic()
        self.tree.spend(50.0 * (now_s - self.last_s))
        self.last_s = now_s
        return Reading(now_s, self.inner.read().counters)


@pytest.fixture
def server(tmp_path: Path) -> Station:
    return Station([Live(PowercapTree.server(tmp_path))], POWER)


@pytest.fixture
def child() -> Iterator[Callable[[float], float]]:
    """Uses so many CPU seconds, and tells how many it has used then by its own clock."""
    code = (
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    end = time.process_time() + float(line)\n"
        "    while time.process_time() < end: pass\n"
        "    print(time.process_time(), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def work(cpu_s: float) -> float:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{cpu_s}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    work(0)
    work.pid = process.pid  # type: ignore[attr-defined]
    yield work
    process.kill()
    process.communicate()


def test_without_sensors_cpu_time_is_charged_at_the_models_watts(blind: Station) -> None:
    with Meter(blind) as meter:
        begun_s = time.process_time()
        spin(0.05)
        used_s = time.process_time() - begun_s
    spent = meter.measurement
    assert spent.cpu_s == pytest.approx(used_s, abs=0.01)
    assert spent.components["cpu"] == POWER.energy(spent.cpu_s)
    assert spent.components.keys() - {"disk"} == {"cpu", "dram"}
    assert spent.energy.value_j == pytest.approx(math.fsum(e.value_j for e in spent.components.values()))
    assert spent.machine == {}
    assert spent.energy.provenance is Provenance.ESTIMATED


def test_idle_and_dynamic_make_the_whole(blind: Station) -> None:
    with Meter(blind) as meter:
        spin(0.02)
    spent = meter.measurement
    assert (spent.idle + spent.dynamic).value_j == pytest.approx(spent.energy.value_j)
    assert spent.idle.value_j == pytest.approx(POWER.idle_w * spent.cpu_s + spent.components["dram"].value_j)


def test_children_of_the_block_are_counted(blind: Station) -> None:
    code = "import time\nwhile time.process_time() < 0.15: pass"
    with Meter(blind) as meter:
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
    assert meter.measurement.cpu_s >= 0.15


def test_with_counters_the_parts_are_charged_by_cpu_time(server: Station) -> None:
    with Meter(server) as meter:
        spin(0.3)
    spent = meter.measurement
    assert spent.components.keys() == {"cpu/0", "cpu/1", "dram/0", "dram/1"}
    assert spent.energy.value_j == pytest.approx(math.fsum(e.value_j for e in spent.components.values()))
    assert spent.energy.provenance is Provenance.DERIVED
    assert spent.machine["host/psys"].value_j == pytest.approx(50 * spent.duration_s, rel=0.05)
    for name, energy in spent.components.items():
        assert energy.value_j <= spent.machine[name].value_j * (1 + 1e-9)
        assert spent.machine[name].provenance is Provenance.MEASURED
    assert spent.idle.is_missing
    assert spent.dynamic.is_missing


def test_a_counter_that_dies_in_the_window_gives_way_to_the_model(tmp_path: Path) -> None:
    tree = PowercapTree.server(tmp_path)
    live = Live(tree)
    where = Station([live], POWER)
    live.inner.root = tmp_path / "gone"
    with Meter(where) as meter:
        spin(0.05)
    spent = meter.measurement
    assert spent.components["cpu"].provenance is Provenance.ESTIMATED
    assert any("cpu/0" in warning for warning in spent.warnings)


def test_a_gpu_is_charged_whole_beside_the_cpu_model() -> None:
    nvml = NvmlDouble(gpus=1)

    class LiveGpu(Sensor):
        name = "nvml"

        def __init__(self) -> None:
            self.inner = NvmlSensor(nvml)

        def read(self) -> Reading:
            nvml.spend(30.0)
            return self.inner.read()

    where = Station([LiveGpu()], POWER)
    with Meter(where) as meter:
        time.sleep(0.25)
    spent = meter.measurement
    assert spent.components["gpu/0"].value_j == pytest.approx(30.0, rel=0.05)
    assert "cpu" in spent.components
    assert spent.energy.provenance is Provenance.ESTIMATED


@pytest.mark.parametrize("shared", [True, False])
def test_of_several_processes_of_a_job_one_is_charged_the_gpus(shared: bool) -> None:
    totals = {"gpu/0": Total(0.0, 5.0, 5.0, 5.0, 0.0, 0, Counter(5.0))}
    spent = {"gpu/0": Energy.measured(5.0)}
    parts = attributed(spent, totals, POWER, cpu_s=1.0, busy_s=1.0, duration_s=1.0, shared=shared)
    assert ("gpu/0" in parts) == shared
    assert "cpu" in parts


def test_a_counter_that_stands_still_beside_one_that_moves_is_left_out(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path)
    tree.add("intel-rapl:0", "package-0", 1000)
    tree.add("intel-rapl:1", "psys", 0)

    class PackageOnly(Live):
        def read(self) -> Reading:
            now_s = time.monotonic()
            tree.set("intel-rapl:0", tree.get("intel-rapl:0") + round(50e6 * (now_s - self.last_s)))
            self.last_s = now_s
            return Reading(now_s, self.inner.read().counters)

    with Meter(Station([PackageOnly(tree)], POWER)) as meter:
        time.sleep(0.05)
    assert set(meter.measurement.machine) == {"cpu/0"}


def test_of_two_sensors_that_count_one_component_only_the_first_is_used(tmp_path: Path) -> None:
    first, second = (Live(PowercapTree.server(tmp_path / n)) for n in "ab")
    where = Station([first, second], POWER)
    with Meter(where) as meter:
        time.sleep(0.1)
    assert meter.measurement.machine["cpu/0"].value_j == pytest.approx(
        50 * meter.measurement.duration_s, rel=0.1
    )


def test_a_process_is_measured_while_it_lives_and_as_often_as_wanted(
    child: Callable[[float], float], blind: Station
) -> None:
    meter = ProcessMeter(child.pid, blind)  # type: ignore[attr-defined]
    began_s = child(0)
    for cpu_s in (0.02, 0.05):
        meter.start()
        ended_s = child(cpu_s)
        spent = meter.stop()
        assert ended_s - began_s >= cpu_s
        assert spent.cpu_s == pytest.approx(ended_s - began_s, abs=0.004)
        began_s = ended_s
        assert spent.components["cpu"] == POWER.energy(spent.cpu_s)


def test_what_others_use_is_told_and_not_charged(child: Callable[[float], float], blind: Station) -> None:
    meter, began_s = ProcessMeter(child.pid, blind), child(0)  # type: ignore[attr-defined]
    steal_s = machine_time().steal_s
    meter.start()
    spin(0.2)
    ended_s = child(0.05)
    spent = meter.stop()
    stolen_s = machine_time().steal_s - steal_s  # is in a process's own time, and is nobody's here
    assert spent.cpu_s == pytest.approx(ended_s - began_s, abs=0.004)
    assert spent.other_cpu_s >= 0.15 - stolen_s
    assert any("other processes" in warning for warning in spent.warnings)


def test_a_process_that_ends_is_charged_what_was_last_seen(blind: Station) -> None:
    process = subprocess.Popen(["sleep", "60"])
    meter = ProcessMeter(process.pid, blind)
    meter.start()
    process.kill()
    process.wait()
    assert meter.stop().cpu_s == pytest.approx(0, abs=0.01)


def test_wrong_use_gets_a_sentence(blind: Station) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(UsageError, match=f"no process {process.pid}"):
        ProcessMeter(process.pid)
    meter = ProcessMeter(os.getpid(), blind)
    with pytest.raises(UsageError, match="start it first"):
        meter.stop()
    meter.start()
    with pytest.raises(UsageError, match="already running"):
        meter.start()
    with pytest.raises(UsageError, match="left"):
        _ = Meter(blind).measurement


def test_the_block_fails_as_it_would_without_a_meter_and_is_measured(blind: Station) -> None:
    meter = Meter(blind)
    with pytest.raises(ZeroDivisionError):
        with meter:
            1 / 0  # noqa: B018
    assert meter.measurement.duration_s > 0


def test_a_forked_child_can_measure_too() -> None:
    with Meter():
        pass
    pid = os.fork()
    if pid == 0:
        try:
            with Meter() as meter:
                spin(0.02)
            os._exit(0 if meter.measurement.cpu_s > 0.01 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_json_holds_what_other_programs_rely_on(blind: Station) -> None:
    with Meter(blind) as meter:
        spin(0.01)
    document = json.loads(json.dumps(meter.measurement.to_json(), allow_nan=False))
    assert {"energy", "components", "duration_s", "cpu_s", "stages"} <= document.keys()
    assert Energy.from_json(document["energy"]) == meter.measurement.energy


@given(
    st.floats(0.1, 1e5),
    st.lists(st.floats(0.001, 100), min_size=1, max_size=20),
    st.floats(1, 10),
)
def test_attribution_conserves_the_whole(joules: float, cpu_s: list[float], slack: float) -> None:
    """Everybody's shares of one counter add up to it."""
    whole, busy_s = Energy.measured(joules), math.fsum(cpu_s)
    parts = [by_cpu_time(whole, each, busy_s, slack * busy_s / 4, cores=4) for each in cpu_s]
    assert math.fsum(p.value_j for p in parts) == pytest.approx(joules, rel=1e-9)
    assert all(p.low_j <= p.value_j <= p.high_j for p in parts)
    assert math.fsum(p.low_j for p in parts) <= joules * (1 + 1e-9)
