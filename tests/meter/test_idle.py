"""Idle power: measured, kept, shown on its own line, and never clamped."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from negawatt import Energy
from negawatt.cli.calibrate import command
from negawatt.errors import NegawattError, SensorError
from negawatt.meter import Meter, Reading, Sensor, Station
from negawatt.meter.calibrate import measure_idle
from negawatt.meter.cputime import cpu_power
from negawatt.meter.idle import IdlePower, load_idle, save_idle
from negawatt.meter.rapl import RaplSensor
from negawatt.meter.station import this_station
from negawatt.testing.devices import ShellyDouble
from negawatt.testing.powercap import PowercapTree

POWER = cpu_power("AMD EPYC 7763 64-Core Processor")


class Steady(Sensor):
    """A powercap tree whose counters advance by 20 W."""

    name = "rapl"

    def __init__(self, root: Path) -> None:
        self.tree = PowercapTree(root)
        self.tree.add("intel-rapl:0", "package-0", 1000)
        self.inner, self.last_s = RaplSensor(root), time.monotonic()

    def read(self) -> Reading:
        now_s = time.monotonic()
        self.tree.spend(20.0 * (now_s - self.last_s))
        self.last_s = now_s
        return Reading(now_s, self.inner.read().counters)


def idle_of(watts: float) -> IdlePower:
    return IdlePower("m", "2026-01-01T00:00:00", 30.0, 0.0, {"cpu/0": Energy.measured(watts, 0.1)})


def test_idle_power_is_what_the_counters_say_at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("negawatt.meter.calibrate.MOST_BUSY", 2.0)  # the tests share their machine
    seen: list[float] = []
    idle = measure_idle(Station([Steady(tmp_path)], POWER), 0.5, seen.append)
    assert idle.power["cpu/0"].value_j == pytest.approx(20.0, rel=0.02)
    assert idle.energy("cpu/0", 3.0).value_j == pytest.approx(60.0, rel=0.02)
    assert idle.energy("gpu/0", 3.0).is_missing
    assert seen


def test_a_busy_machine_is_not_taken_for_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("negawatt.meter.calibrate.MOST_BUSY", -1.0)
    with pytest.raises(NegawattError, match="which is not idle"):
        measure_idle(Station([Steady(tmp_path)], POWER), 0.2)


def test_without_a_counter_it_says_what_it_cannot_do() -> None:
    with pytest.raises(SensorError, match="none here can be trusted") as caught:
        measure_idle(Station([], POWER), 0.1)
    assert "negawatt doctor" in caught.value.remedy


@pytest.mark.parametrize("idle_w", [5.0, 35.0])
def test_idle_has_its_own_line_and_dynamic_is_never_clamped(tmp_path: Path, idle_w: float) -> None:
    station = Station([Steady(tmp_path)], POWER, idle_of(idle_w))
    with Meter(station) as meter:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    spent = meter.measurement
    share = spent.components["cpu/0"].value_j / spent.machine["cpu/0"].value_j
    assert spent.idle.value_j == pytest.approx(share * idle_w * spent.duration_s)
    assert (spent.idle + spent.dynamic).value_j == pytest.approx(spent.energy.value_j)
    assert (spent.dynamic.value_j < 0) == (idle_w > 20)


def test_a_record_is_kept_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEGAWATT_HOME", str(tmp_path))
    assert load_idle() is None
    path = save_idle(idle_of(7.0))
    assert load_idle() == idle_of(7.0)
    path.write_text("{")
    with pytest.raises(NegawattError, match="damaged"):
        load_idle()
    assert any("damaged" in note for note in this_station().notes)


def test_the_command_measures_by_a_named_sensor_and_keeps_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEGAWATT_HOME", str(tmp_path))
    monkeypatch.setattr("negawatt.meter.calibrate.MOST_BUSY", 2.0)
    with ShellyDouble(power_w=42.0) as plug:
        done = CliRunner().invoke(
            command, ["--idle", "--seconds", "2.5", "--json", "--sensor", f"shelly:{plug.url}"]
        )
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["power"]["wall/shelly"]["value_j"] == pytest.approx(42.0, rel=0.01)
    kept = load_idle()
    assert kept is not None
    assert Path(document["file"]).is_relative_to(tmp_path)
    assert kept.power["wall/shelly"].value_j == document["power"]["wall/shelly"]["value_j"]
