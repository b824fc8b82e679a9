"""Sources beyond the processor's own counters: each against the contract, and against its faults."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import Provenance
from negawatt.errors import SensorError, UsageError
from negawatt.meter import Integrated, Meter, Power, PowerSource, SensorAbsent, SensorDenied, Station, probe
from negawatt.meter.accumulate import Accumulator, window
from negawatt.meter.amdsmi import AmdSmiSensor
from negawatt.meter.battery import BatterySource
from negawatt.meter.benchmeter import BenchMeterSensor, read_log
from negawatt.meter.cputime import cpu_power
from negawatt.meter.fetch import Server
from negawatt.meter.hwmon import HwmonEnergySensor, HwmonPowerSource, JetsonPowerSource
from negawatt.meter.nvml import NvmlPowerSource, NvmlSensor
from negawatt.meter.plugs import ShellySource, TasmotaSource
from negawatt.meter.powermetrics import PowermetricsSource, parse
from negawatt.meter.redfish import RedfishSource
from negawatt.meter.sources import from_text
from negawatt.testing.amdsmi import AmdSmiDouble
from negawatt.testing.devices import (
    FirstShellyDouble,
    JsonDevice,
    RedfishDouble,
    ShellyDouble,
    TasmotaDouble,
)
from negawatt.testing.nvml import NvmlDouble
from negawatt.testing.sensor_contract import SensorBench, SensorContract

POWER = cpu_power("AMD EPYC 7763 64-Core Processor")


def lay(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def let_flow(sensor: Integrated, set_power: Callable[[float], None]) -> Callable[[float], None]:
    """Spend joules through a power sensor: a power held for as long as it takes, sampled at both ends."""

    def spend(joules: float) -> None:
        set_power(joules / 0.1)
        sensor.read()
        time.sleep(0.1)

    return spend


class PowerContract(SensorContract):
    """The contract for power sources: time passes while joules flow, so they are judged a little wider."""

    joules = 4.0

    def _assert_advanced(self, component, before, after):  # type: ignore[no-untyped-def]
        counter = after.counters[component]
        step_j = counter.energy_j - before.counters[component].energy_j
        low, high = counter.band
        doubt_j = counter.doubt_j - before.counters[component].doubt_j
        late_j = 40 * (after.at_s - before.at_s - 0.1)  # held longer than asked for
        assert (
            step_j * low - doubt_j - late_j - 0.05 <= self.joules <= step_j * high + doubt_j + late_j + 0.05
        )


class TestAmdEnergy(SensorContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> SensorBench:
        files: dict[str, object] = {"hwmon0/name": "k10temp", "hwmon3/name": "amd_energy"}
        for n, shown in enumerate(("Ecore000", "Ecore001", "Esocket0", "Esocket1"), 1):
            files |= {f"hwmon3/energy{n}_label": shown, f"hwmon3/energy{n}_input": 5_000_000}
        root = lay(tmp_path, files)

        def spend(joules: float) -> None:
            for file in root.glob("hwmon3/energy*_input"):
                file.write_text(str(int(file.read_text()) + round(joules * 1e6)))

        sensor = HwmonEnergySensor(root)
        assert set(sensor.read().counters) == {"cpu/0", "cpu/1"}
        return SensorBench(
            sensor, spend, lambda: (root / "hwmon3/energy3_input").unlink() or spend_nothing(root)
        )


def spend_nothing(root: Path) -> None:
    (root / "hwmon3/energy4_input").write_text("I/O error")


class TestGraphicsCard(PowerContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> SensorBench:
        root = lay(tmp_path, {"hwmon2/name": "amdgpu", "hwmon2/power1_average": 1_000_000})
        file = root / "hwmon2/power1_average"
        sensor = Integrated(HwmonPowerSource(root))

        def set_power(watts: float) -> None:
            file.write_text(str(round(watts * 1e6)))

        def fail() -> None:
            file.write_text("")

        return SensorBench(sensor, let_flow(sensor, set_power), fail)


class TestJetson(PowerContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> SensorBench:
        files: dict[str, object] = {"hwmon1/name": "ina3221"}
        for n, rail in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 1):
            files |= {f"hwmon1/in{n}_label": rail, f"hwmon1/in{n}_input": 5000, f"hwmon1/curr{n}_input": 100}
        root = lay(tmp_path, files)

        def set_power(watts: float) -> None:
            for n in (1, 2, 3):
                (root / f"hwmon1/curr{n}_input").write_text(str(round(watts / 5 * 1000)))

        def fail() -> None:
            (root / "hwmon1/in1_input").write_text("?")

        sensor = Integrated(JetsonPowerSource(root))
        return SensorBench(sensor, let_flow(sensor, set_power), fail)

    def test_rails_are_not_counted_twice(self, bench: SensorBench) -> None:
        counters = bench.sensor.read().counters
        assert set(counters) == {"host/vdd_in", "cpu/vdd_cpu_gpu_cv", "host/vdd_in/vdd_soc"}
        assert counters["host/vdd_in/vdd_soc"].part_of == "host/vdd_in"
        assert counters["host/vdd_in"].boundary == "host"
        assert counters["cpu/vdd_cpu_gpu_cv"].boundary == "chip"


class TestBattery(PowerContract):
    @pytest.fixture
    def bench(self, tmp_path: Path) -> SensorBench:
        root = lay(
            tmp_path,
            {
                "AC/type": "Mains",
                "BAT0/type": "Battery",
                "BAT0/status": "Discharging",
                "BAT0/current_now": 1_000_000,
                "BAT0/voltage_now": 10_000_000,
                "hid-mouse/type": "Battery",
                "hid-mouse/scope": "Device",
            },
        )

        def set_power(watts: float) -> None:
            (root / "BAT0/current_now").write_text(str(round(watts / 10 * 1e6)))

        sensor = Integrated(BatterySource(root))
        return SensorBench(
            sensor,
            let_flow(sensor, set_power),
            lambda: (root / "BAT0/status").write_text("Charging") and None,
        )


class TestNvmlPowerDouble(PowerContract):
    """An older GPU, without an energy counter: not yet run on NVIDIA hardware."""

    @pytest.fixture
    def bench(self) -> SensorBench:
        nvml = NvmlDouble(gpus=1, has_counter=False)
        sensor = Integrated(NvmlPowerSource(nvml))
        return SensorBench(
            sensor,
            let_flow(sensor, lambda watts: nvml.power_w.__setitem__(0, watts)),
            lambda: setattr(nvml, "fault", nvml.NVML_ERROR_GPU_IS_LOST),
        )


class TestAmdSmiDouble(SensorContract):
    """Against a double of amdsmi: not yet run on AMD GPUs."""

    @pytest.fixture
    def bench(self) -> SensorBench:
        smi = AmdSmiDouble()
        return SensorBench(AmdSmiSensor(smi), smi.spend, lambda: setattr(smi, "fault", 32))


class TestPowermetricsText(PowerContract):
    """A real process that prints what the tool prints: not yet run on Apple hardware."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[SensorBench]:
        level = lay(tmp_path, {"mw": 1000}) / "mw"
        loop = (
            f'while read mw < {level}; do printf "*** Sampled system activity ***\\n'
            f'CPU Power: %s mW\\nGPU Power: %s mW\\nCombined Power (CPU + GPU + ANE): 99999 mW\\n" $mw $mw; '
            "sleep 0.01; done; echo 'the sampler stopped' >&2"
        )
        sensor = Integrated(PowermetricsSource(["sh", "-c", loop]))

        def set_power(watts: float) -> None:
            swap = tmp_path / "next"
            swap.write_text(f"{watts * 1000:.0f}\n")
            swap.replace(level)
            time.sleep(0.1)

        def fail() -> None:
            level.unlink()
            time.sleep(0.2)

        yield SensorBench(sensor, let_flow(sensor, set_power), fail)
        sensor.close()


DEVICES: list[tuple[type[JsonDevice], Callable[[Server], PowerSource]]] = [
    (ShellyDouble, ShellySource),
    (FirstShellyDouble, ShellySource),
    (TasmotaDouble, TasmotaSource),
    (RedfishDouble, RedfishSource),
]


class TestDevicesOverHttp(PowerContract):
    """Doubles of the devices, each a real server on the loopback interface."""

    @pytest.fixture(params=DEVICES, ids=lambda pair: pair[0].__name__)
    def bench(self, request: pytest.FixtureRequest) -> Iterator[SensorBench]:
        double, source = request.param
        with double() as device:
            sensor = Integrated(source(Server(device.url)))
            yield SensorBench(
                sensor,
                let_flow(sensor, lambda watts: setattr(device, "power_w", watts)),
                lambda: setattr(device, "trouble", "error"),
            )


@pytest.mark.parametrize(
    ("trouble", "error", "words"),
    [
        ("hang", SensorError, "no answer within 0.3 s"),
        ("drip", SensorError, "no answer within 0.3 s"),
        ("garbage", SensorError, "expected JSON"),
        ("redirect", SensorError, "redirects to http://elsewhere.invalid/"),
        ("denied", SensorDenied, "401"),
        ("error", SensorError, "500"),
        ("empty", SensorError, "no "),
    ],
)
@pytest.mark.parametrize(("double", "source"), DEVICES[1:])
def test_a_device_in_trouble_is_told_in_a_sentence_and_in_time(
    trouble: str,
    error: type[SensorError],
    words: str,
    double: type[JsonDevice],
    source: Callable[[Server], PowerSource],
) -> None:
    with double() as device:
        meter = source(Server(device.url, deadline_s=0.3 if trouble in ("hang", "drip") else 2.5))
        device.trouble = trouble
        begun = time.monotonic()
        with pytest.raises(error) as caught:
            meter.read_power()
        assert time.monotonic() - begun < 3
        if not (trouble == "empty" and double is RedfishDouble):
            assert words in str(caught.value)


def test_a_device_that_is_not_there_is_told() -> None:
    with ShellyDouble() as device:
        url = device.url
    with pytest.raises(SensorError, match="refused"):
        ShellySource(Server(url)).read_power()


def test_a_chassis_inside_another_is_part_of_it() -> None:
    with RedfishDouble() as device:
        powers = RedfishSource(Server(device.url)).read_power()
    assert set(powers) == {"host/Rack", "host/Sled"}
    assert powers["host/Sled"].part_of == "host/Rack"
    assert powers["host/Rack"].part_of is None


def test_a_gpu_split_into_instances_is_named_as_not_attributable() -> None:
    sensor = NvmlSensor(NvmlDouble(gpus=1, split=True))
    assert "split by MIG" in sensor.notes[0]
    assert NvmlSensor(NvmlDouble(gpus=1)).notes == ()


def test_a_laptop_on_mains_is_told_to_unplug(tmp_path: Path) -> None:
    root = lay(tmp_path, {"BAT0/type": "Battery", "BAT0/status": "Full", "BAT0/power_now": 0})
    with pytest.raises(SensorAbsent, match="mains") as caught:
        BatterySource(root).read_power()
    assert "unplug" in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("CPU Power: 1234 mW", ("cpu/0", 1.234)),
        ("GPU Power: 56 mW\n", ("gpu/0", 0.056)),
        ("ANE Power: 0 mW", ("npu/0", 0.0)),
        ("DRAM Power: 2.5 W", ("dram/0", 2.5)),
        ("Combined Power (CPU + GPU + ANE): 1290 mW", None),
        ("Package Power: 1290 mW", None),
        ("E-Cluster Power: 12 mW", None),
        ("CPU Power: lots", None),
    ],
)
def test_lines_of_powermetrics(line: str, sample: tuple[str, float] | None) -> None:
    assert parse(line) == sample


class Steps(PowerSource):
    """Power that follows a script."""

    name = "steps"

    def __init__(self, watts: list[float]) -> None:
        self.watts = iter(watts)

    def read_power(self) -> dict[str, Power]:
        return {"wall/x": Power(next(self.watts), limit_w=1e9)}


@given(st.lists(st.floats(0, 1000), min_size=2, max_size=30), st.randoms())
def test_integrated_power_holds_whatever_it_did_between_samples(watts: list[float], random) -> None:  # type: ignore[no-untyped-def]
    sensor = Integrated(Steps(watts))
    accumulator = Accumulator(sensor)
    times, totals = [], []
    for _ in watts:
        total = accumulator.update()["wall/x"]
        times.append(total.at_s)
        totals.append(total)
    truth_j = sum(
        (b - a) * random.uniform(min(p, q), max(p, q))
        for a, b, p, q in zip(times, times[1:], watts, watts[1:], strict=False)
    )
    span_j = totals[-1].high_j - totals[0].high_j, totals[-1].low_j - totals[0].low_j
    assert span_j[1] - 1e-9 <= truth_j <= span_j[0] + 1e-9


def test_a_bench_meters_log_gives_the_energy_between_two_moments(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("time,power_w\n" + "".join(f"{1000 + n},{50 if n < 10 else 150}\n" for n in range(21)))
    energy = read_log(log).energy(1002, 1018)
    assert energy.value_j == pytest.approx(7 * 50 + 100 + 8 * 150)
    assert energy.low_j <= 7 * 50 + 8 * 150 + 50 <= energy.high_j
    assert energy.provenance is Provenance.DERIVED
    assert read_log(log).energy(900, 1018).is_missing


def test_a_bench_meters_log_may_hold_energy_and_dates(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "Time,Energy_Wh\n2026-01-01T10:00:00,5.0\n2026-01-01T10:00:10,5.1\n2026-01-01T10:00:20,5.2\n2026"
    )
    start = datetime.fromisoformat("2026-01-01T10:00:00").timestamp()
    assert read_log(log).energy(start, start + 20).value_j == pytest.approx(0.2 * 3600)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no header"),
        ("time,volts\n1,2\n2,3\n", "needs a column"),
        ("time,power_w\n1,2\n", "1 samples"),
        ("time,power_w\n1,2\n1,3\n", "does not advance"),
        ("time,power_w\n1,2\nnoon,3\n", "line 3"),
    ],
)
def test_a_log_that_is_none_gets_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    with pytest.raises(SensorError, match=words):
        read_log(log)


def test_a_growing_log_is_a_sensor(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    now = time.time()
    log.write_text("time,power_w\n" + "".join(f"{now - 5 + n},80\n" for n in range(5)))
    accumulator = Accumulator(BenchMeterSensor(log))
    before = accumulator.update()["wall/bench"]
    with log.open("a") as file:
        file.write(f"{now},80\n")
    after = accumulator.update()["wall/bench"]
    assert after.value_j - before.value_j == pytest.approx(80)
    assert after.at_s - before.at_s == pytest.approx(1, abs=0.05)
    assert window(before, after, before.at_s, after.at_s).value_j == pytest.approx(80, rel=0.1)


def test_a_log_that_a_meter_writes_more_slowly_than_the_probe_looks_is_trusted(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    now = time.time()
    log.write_text(f"time,power_w\n{now - 0.3},60\n{now},60\n")

    def write() -> None:
        time.sleep(0.3)
        with log.open("a") as file:
            file.write(f"{time.time()},60\n")

    writer = threading.Thread(target=write)
    writer.start()
    (status,) = probe([BenchMeterSensor(log)])
    writer.join()
    assert status.status == "ok"
    (status,) = probe([BenchMeterSensor(log)])  # nobody writes any more
    assert status.status == "dead"


def test_a_wall_plug_is_shown_beside_the_chips_and_not_added() -> None:
    with ShellyDouble(power_w=60.0) as device:
        source = ShellySource(Server(device.url))
        source.polled_s = 0.05
        station = Station([Integrated(source)], POWER)
        with Meter(station) as meter:
            time.sleep(0.5)
        station.close()
    wall = meter.measurement.machine["wall/shelly"]
    assert wall.provenance is Provenance.DERIVED
    assert wall.low_j <= 60 * meter.measurement.duration_s <= wall.high_j
    assert set(meter.measurement.components) - {"disk"} == {"cpu", "dram"}


def test_a_sensor_that_hangs_holds_nobody_up() -> None:
    with ShellyDouble() as device:
        source = ShellySource(Server(device.url, deadline_s=2.0))
        source.polled_s = 0.05
        station = Station([Integrated(source)], POWER)
        time.sleep(0.2)
        device.trouble = "hang"
        time.sleep(0.2)
        begun = time.monotonic()
        with Meter(station) as meter:
            pass
        assert time.monotonic() - begun < 1.5
        assert "wall/shelly" in meter.measurement.machine
        station.close()


class Sleeper(PowerSource):
    name = "sleeper"

    def read_power(self) -> dict[str, Power]:
        time.sleep(60)
        return {}


def test_a_sensor_that_never_answers_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("negawatt.meter.sensor.DEADLINE_S", 0.1)
    [status] = probe([Integrated(Sleeper())])
    assert status.status == "dead"
    assert "no answer within 0.1 s" in status.reason


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("shelly:http://192.168.1.5", "shelly"),
        ("tasmota:http://plug.lan:8080", "tasmota"),
        ("redfish:https://user:secret@bmc.lan", "redfish"),
        ("nut:ups@localhost:3493", "nut"),
        ("prometheus:http://h:9090?query=sum(node_power_watts)", "prometheus power"),
        ("prometheus:http://h:9090?query=joules_total&unit=J", "prometheus energy"),
        ("csv:log.csv", "csv"),
    ],
)
def test_sensors_by_text(text: str, name: str) -> None:
    assert from_text(text).name == name


@pytest.mark.parametrize(
    "text",
    ["", "shelly", "shelly:", "magic:http://x", "shelly:ftp://x", "shelly:http://", "nut:ups", "nut:@h",
     "nut:u@h:x", "prometheus:http://h", "prometheus:http://h?query=x&unit=kWh", "tasmota:http://h:999999"],
)  # fmt: skip
def test_a_sensor_text_that_makes_no_sense_gets_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected|port"):
        from_text(text)


def test_credentials_do_not_show_in_errors() -> None:
    with RedfishDouble() as device:
        device.trouble = "denied"
        sensor = from_text(f"redfish:{device.url.replace('http://', 'http://admin:hunter2@')}")
        with pytest.raises(SensorDenied) as caught:
            sensor.read()
    assert "hunter2" not in str(caught.value) + caught.value.remedy
