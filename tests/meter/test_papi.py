"""PAPI: the real library on an event that moves anywhere, and a double for hardware that is not here."""

import os
import time

import pytest

from negawatt.errors import SensorError, UsageError
from negawatt.meter import Integrated, Sensor, SensorAbsent, Station
from negawatt.meter.papi import Papi, PapiNvmlSource, PapiPowercapSensor
from negawatt.meter.sources import from_text
from negawatt.testing.papi import PapiDouble
from negawatt.testing.sensor_contract import SensorBench, SensorContract


def opened(library: PapiDouble) -> PapiPowercapSensor:
    """A sensor that counts, and whose counters have moved once since."""
    sensor = PapiPowercapSensor(library)
    sensor.read()
    library.spend(1.0)
    return sensor


class TestPowercap(SensorContract):
    @pytest.fixture
    def bench(self) -> SensorBench:
        library = PapiDouble.server()
        return SensorBench(opened(library), library.spend, lambda: setattr(library, "fault", -3))


class TestNvml(SensorContract):
    joules = 2.0

    @pytest.fixture
    def bench(self) -> SensorBench:
        library = PapiDouble.server()
        sensor = Integrated(PapiNvmlSource(library))
        sensor.read()

        def spend(joules: float) -> None:
            time.sleep(joules / 40.0)

        return SensorBench(sensor, spend, lambda: setattr(library, "fault", -3))


def test_zones_are_named_as_rapl_names_them() -> None:
    counters = opened(PapiDouble.server()).read().counters
    assert set(counters) == {"cpu/0", "cpu/0/core", "dram/0"}
    assert counters["cpu/0/core"].part_of == "cpu/0"
    assert counters["dram/0"].part_of is None
    assert counters["cpu/0"].range_j == pytest.approx(262_143.32885)


def test_gpus_are_known_by_their_device() -> None:
    power = PapiNvmlSource(PapiDouble.server()).read_power()
    assert {name: p.power_w for name, p in power.items()} == {"gpu/0": 40.0, "gpu/1": 40.0}


def test_errors_are_told_in_the_librarys_words() -> None:
    library = PapiDouble.server()
    sensor = opened(library)
    library.fault = -3
    with pytest.raises(SensorError, match="A System/C library call failed"):
        sensor.read()


@pytest.fixture
def papi() -> Papi:
    try:
        return Papi()
    except SensorAbsent as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{exc}; {exc.remedy}")
        pytest.skip(f"{exc}; {exc.remedy}")


def test_the_real_library_counts(papi: Papi) -> None:
    """It is asked for nanoseconds of this thread: the one event that moves on any machine."""
    events = papi.count(["perf::TASK-CLOCK"])
    begun = time.thread_time()
    first = events.read()[0]
    while time.thread_time() - begun < 0.05:
        pass
    passed_s = (events.read()[0] - first) * 1e-9
    events.stop()
    assert passed_s == pytest.approx(0.05, abs=0.01)
    with pytest.raises(SensorError, match="PAPI: "):
        events.read()
    with pytest.raises(SensorError, match="PAPI: Event does not exist"):
        papi.count(["nothing:::SUCH"])


def test_the_real_library_lists_and_describes_events(papi: Papi) -> None:
    events = papi.events("perf_event")
    assert "perf::TASK-CLOCK" in events
    assert "TASK_CLOCK" in papi.description(events["perf::TASK-CLOCK"])
    with pytest.raises(SensorAbsent, match="built without"):
        papi.events("moonshine")


@pytest.mark.parametrize("text", ["papi:powercap", "papi:nvml"])
def test_what_the_real_library_does_not_have_is_absent(papi: Papi, text: str) -> None:
    sensor = from_text(text)
    assert isinstance(sensor, Sensor)
    (status,) = Station([sensor]).statuses
    if status.status != "ok":
        assert (status.status, "component" in status.reason) == ("absent", True)


def test_it_is_named_by_its_component() -> None:
    assert isinstance(from_text("papi:powercap"), PapiPowercapSensor)
    with pytest.raises(UsageError, match="papi:powercap or papi:nvml"):
        from_text("papi:lustre")
