"""What a machine spends, divided: every part adds up to the whole, whatever the machine did."""

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proctree import ProcTree

from negawatt.energy import Energy, Provenance
from negawatt.meter import Counter, Reading, Sensor, SensorAbsent, Station
from negawatt.meter.cputime import CpuPower, cpu_power
from negawatt.meter.idle import IdlePower
from negawatt.monitor import Joules, Monitor, ProcessTable, Sample, by_weight, mean, split
from negawatt.monitor.gpus import NvmlUse
from negawatt.testing.nvml import NvmlDouble, ProcessSample

POWER = cpu_power("Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz")
numbers = st.floats(0, 1e6)
weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e4)), max_size=30)


@st.composite
def joules(draw: st.DrawFn) -> Joules:
    value, down, up = draw(st.floats(-1e4, 1e6)), draw(numbers), draw(numbers)
    return Joules(value, value - down, value + up)


@given(joules(), st.one_of(st.none(), joules()), weights, weights, st.floats(0, 1e4), st.floats(0, 1e5))
def test_the_parts_of_a_component_make_it(
    whole: Joules, idle: Joules | None, cpu: list[float], memory: list[float], rest: float, spare: float
) -> None:
    """To one part in 10⁹ of the largest figure involved, also when idle exceeds what was spent."""
    memory = (memory + [0.0] * len(cpu))[: len(cpu)]
    shares = by_weight(cpu, rest, spare)
    for way in (shares, mean(shares, by_weight(memory, 1.0))):
        assert math.fsum(s.value for s in way.parts) + way.rest.value == pytest.approx(1, rel=1e-9)
        assert all(
            0 <= s.low <= s.value + 1e-12 and s.value <= s.high + 1e-12 and s.high <= 1 + 1e-9
            for s in (*way.parts, way.rest)
        )
        parts = split(whole, idle, way)
        every = [*parts.parts, parts.unattributed, *([parts.idle] if parts.idle else [])]
        scale = max(1.0, abs(whole.value_j), abs(idle.value_j) if idle else 0.0)
        assert math.fsum(p.value_j for p in every) == pytest.approx(whole.value_j, abs=1e-9 * scale)
        assert all(p.low_j <= p.value_j <= p.high_j for p in every)
        assert parts.idle == idle  # a line of its own, never clamped


class Bench(Sensor):
    """Counters that a test advances by hand, as a sensor."""

    name = "bench"

    def __init__(self, *names: str) -> None:
        self.joules = dict.fromkeys(names, 100.0)
        self.fault = ""

    def read(self) -> Reading:
        if self.fault:
            raise SensorAbsent(self.fault)
        for name in self.joules:
            self.joules[name] += 1e-9  # alive
        return Reading(
            time.monotonic(),
            {
                name: Counter(value, limit_w=1e9, boundary="wall" if name.startswith("wall") else "chip",
                              part_of="cpu/0" if name == "cpu/0/core" else None)
                for name, value in self.joules.items()
            },
        )  # fmt: skip


@dataclass
class GpuTable:
    """Who uses the GPUs, told by the test."""

    shares: dict[str, dict[int, float]] = field(default_factory=dict)

    def read(self) -> Mapping[str, Mapping[int, float]]:
        return self.shares


class Machine:
    """A synthetic machine: counters, processes and GPU users that a test drives."""

    def __init__(self, folder: Path, *names: str, idle: IdlePower | None = None) -> None:
        self.bench, self.tree, self.gpus = Bench(*names), ProcTree(folder / "proc"), GpuTable()
        self.tree.start(1, "init")
        self.tree.start(40, "one", f"0::/docker/{'ab' * 32}\n")
        self.tree.start(41, "two", "0::/system.slice/two.service\n")
        station = Station([self.bench] if names else [], POWER, idle)
        self.monitor = Monitor(station, ProcessTable(self.tree.root, self.tree.cpu_s), self.gpus)


def check_sums(sample: Sample) -> None:
    """Both ways to divide make the whole, in the interval and since the beginning."""
    whole = [c for c in sample.components if c.is_whole]
    idle = [sample.idle] if sample.idle else []
    for lines in (
        [*sample.processes, sample.ended, sample.unattributed, *idle],
        [*sample.groups, sample.ended_groups, sample.unattributed, *idle],
    ):
        total = math.fsum(line.total.value_j for line in lines)
        assert total == pytest.approx(math.fsum(c.total.value_j for c in whole), rel=1e-9, abs=1e-9)
        spent = math.fsum(line.spent.value_j for line in lines)
        known = math.fsum(c.spent.value_j for c in whole if c.spent)
        assert spent == pytest.approx(known, rel=1e-9, abs=1e-9)


def by_name(sample: Sample) -> dict[str, float]:
    return {line.name: line.spent.value_j for line in sample.processes}


def test_processors_go_by_cpu_time_and_parts_and_walls_are_not_added(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cpu/0", "cpu/0/core", "wall/desk")
    machine.tree.run(40, 30.0)  # far more than the real machine's processors were busy meanwhile
    machine.tree.run(41, 10.0)
    machine.bench.joules = {"cpu/0": 180.0, "cpu/0/core": 150.0, "wall/desk": 900.0}
    sample = machine.monitor.look()
    check_sums(sample)
    assert sample.energy.value_j == pytest.approx(80, abs=1e-3)
    spent = by_name(sample)
    assert spent["one"] == pytest.approx(60, rel=0.01)
    assert spent["two"] == pytest.approx(20, rel=0.01)
    groups = {line.group.kind: line for line in sample.groups if line.group}
    assert groups["docker"].spent.value_j == spent["one"]
    assert groups["docker"].name == "ab" * 6
    assert groups["systemd"].name == "two.service"
    assert sample.idle is None
    assert "calibrate --idle" in sample.idle_reason
    assert sample.provenance is Provenance.DERIVED


def test_idle_is_a_line_of_its_own_and_never_clamped(tmp_path: Path) -> None:
    power = {"cpu/0": Energy.measured(1e6, 1.0)}  # more than will be seen: dynamic energy is negative
    machine = Machine(tmp_path, "cpu/0", idle=IdlePower("m", "now", 30.0, 0.0, power))
    machine.tree.run(40, 1000.0)
    machine.bench.joules["cpu/0"] += 50.0
    sample = machine.monitor.look()
    check_sums(sample)
    assert sample.idle is not None
    assert sample.idle.spent.value_j == pytest.approx(1e6 * sample.components[0].covered_s)
    assert by_name(sample)["one"] < 0


def test_memory_goes_halfway_between_cpu_time_and_residence(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cpu/0", "dram/0")
    machine.tree.run(40, 1e6)
    machine.bench.joules["dram/0"] += 100.0
    machine.bench.joules["cpu/0"] += 1.0
    sample = machine.monitor.look()
    check_sums(sample)
    one, two = (line.spent for line in sample.processes if line.name in ("one", "two"))
    assert one.value_j > 49  # all of the CPU time, next to none of the machine's memory
    assert one.low_j < 10
    assert one.high_j > 90
    assert 0 < two.value_j < 1  # it only holds a megabyte


def test_a_gpu_goes_to_who_used_it_and_the_rest_to_nobody(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cpu/0", "gpu/0", "gpu/1")
    machine.gpus.shares = {"gpu/0": {40: 0.5, 41: 0.25, 999: 0.25}}  # 999 is out of sight
    machine.bench.joules = {"cpu/0": 100.0, "gpu/0": 500.0, "gpu/1": 300.0}
    sample = machine.monitor.look()
    check_sums(sample)
    assert by_name(sample) == {"one": pytest.approx(200, abs=0.1), "two": pytest.approx(100, abs=0.1)}
    assert sample.unattributed.spent.value_j == pytest.approx(100 + 200, abs=0.1)


def test_a_lost_reading_is_missing_and_not_lost(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cpu/0")
    machine.tree.run(40, 10.0)
    machine.bench.fault = "unplugged"
    sample = machine.monitor.look()
    check_sums(sample)
    assert sample.energy.is_missing
    assert sample.charged(sample.unattributed.spent).is_missing
    assert sample.components[0].failing
    assert "unplugged" in str(sample.energy)
    machine.bench.fault = ""
    machine.bench.joules["cpu/0"] += 70.0
    machine.tree.run(40, 10.0)
    sample = machine.monitor.look()
    check_sums(sample)
    assert sample.energy.value_j == pytest.approx(70, abs=1e-3)


def test_idle_energy_of_an_interval_without_reading_is_idle_still(tmp_path: Path) -> None:
    idle = IdlePower("m", "now", 30.0, 0.0, {"cpu/0": Energy.measured(10.0, 1.0)})
    machine = Machine(tmp_path, "cpu/0", idle=idle)
    machine.bench.fault = "unplugged"
    time.sleep(0.2)
    machine.monitor.look()
    machine.bench.fault = ""
    machine.bench.joules["cpu/0"] += 7.0
    sample = machine.monitor.look()
    check_sums(sample)
    assert sample.idle is not None
    assert sample.idle.total.value_j == pytest.approx(10 * sample.elapsed_s, rel=0.02)
    [component] = sample.components
    assert component.power_w == pytest.approx(7 / sample.elapsed_s, rel=0.02)  # not over this interval alone


def test_what_ended_processes_spent_stays_counted(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cpu/0")
    machine.tree.run(40, 1e5)
    machine.bench.joules["cpu/0"] += 10.0
    machine.monitor.look()
    machine.tree.end(40)
    machine.tree.run(41, 1e5)
    machine.bench.joules["cpu/0"] += 10.0
    sample = machine.monitor.look()
    check_sums(sample)
    assert [line.name for line in sample.processes] == ["two"]
    assert sample.ended.total.value_j == pytest.approx(10, rel=1e-3)
    assert {line.name: round(line.total.value_j) for line in sample.groups} == {
        "ab" * 6: 10,
        "two.service": 10,
    }


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from(["run", "start", "end", "spend", "fail"]), st.floats(0.001, 50)),
        max_size=40,
    )
)
def test_any_life_of_a_machine_adds_up(events: list[tuple[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder), "cpu/0", "dram/0", "gpu/0")
        alive, newest = [40, 41], 41
        for event, amount in events:
            machine.bench.fault = "gone" if event == "fail" else ""
            if event == "start":
                newest += 1
                machine.tree.start(newest, "new", "0::/a.service\n", parent=40, start=newest)
                alive.append(newest)
            if event == "end" and alive:
                machine.tree.end(alive.pop(0))
            if alive:
                machine.tree.run(alive[int(amount) % len(alive)], amount)
                machine.gpus.shares = {"gpu/0": {alive[-1]: 1.0}}
            for name in machine.bench.joules:
                machine.bench.joules[name] += amount
            check_sums(machine.monitor.look())


def test_without_counters_the_model_is_divided_with_idle(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.tree.run(40, 20.0)
    sample = machine.monitor.look()
    check_sums(sample)
    [component] = sample.components
    assert (component.name, component.provenance) == ("cpu", Provenance.ESTIMATED)
    assert by_name(sample)["one"] == pytest.approx(20 * (POWER.value_w - POWER.idle_w))
    assert sample.idle is not None
    assert sample.idle.spent.value_j > 0


def test_a_calibrated_curve_is_asked_at_the_load_of_the_interval(tmp_path: Path) -> None:
    asked: list[float] = []

    def at_load(load: float) -> CpuPower:
        asked.append(load)
        return replace(POWER, low_w=POWER.idle_w, value_w=POWER.idle_w + 1.0)

    machine = Machine(tmp_path)
    machine.monitor._station.power = replace(POWER, at_load=at_load)
    machine.tree.run(40, 20.0)
    sample = machine.monitor.look()
    check_sums(sample)
    assert asked == [1.0]  # 20 CPU-seconds in an instant
    assert by_name(sample)["one"] == pytest.approx(20.0)


def test_the_document_is_strict_json_and_says_what_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "cpu/0")
    machine.tree.run(40, 20.0)
    machine.bench.joules["cpu/0"] += 10.0
    document = json.loads(json.dumps(machine.monitor.look().to_json(), allow_nan=False))
    assert document["idle"]["energy"]["value_j"] is None
    [one] = document["processes"]
    assert (one["pid"], one["kind"], one["container"]) == (40, "docker", "ab" * 32)
    assert Energy.from_json(one["energy"]).provenance is Provenance.DERIVED


def test_this_machine_adds_up() -> None:
    monitor = Monitor(Station([], POWER))
    for _ in range(3):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass
        sample = monitor.look()
        check_sums(sample)
    assert any(line.pid == os.getpid() for line in sample.processes)


def test_nvml_tells_who_uses_a_gpu() -> None:
    nvml = NvmlDouble(gpus=3)
    nvml.used = [[ProcessSample(7, 1000, 30), ProcessSample(8, 1000, 10)], [], [ProcessSample(9, 1000, 0)]]
    use = NvmlUse(nvml)
    assert use.read() == {"gpu/0": {7: 0.75, 8: 0.25}, "gpu/1": {}, "gpu/2": {}}
    assert use.read()["gpu/0"] == {}  # only what is new
    nvml.used[0].append(ProcessSample(8, 2000, 5))
    assert use.read()["gpu/0"] == {8: 1.0}


def test_a_gpu_that_does_not_tell_is_its_one_process_or_nobodys() -> None:
    nvml = NvmlDouble(gpus=2)
    nvml.used, nvml.running = None, [[7], [7, 8]]
    assert NvmlUse(nvml).read() == {"gpu/0": {7: 1.0}}
    nvml.fault = NvmlDouble.NVML_ERROR_GPU_IS_LOST
    assert NvmlUse(nvml).read() == {}


def test_without_a_driver_nobody_uses_a_gpu() -> None:
    assert NvmlUse().read() == {}
