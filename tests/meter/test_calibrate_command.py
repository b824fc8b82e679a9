"""``negawatt calibrate``: load steps on this machine, and what later measurements make of the curve."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from negawatt.cli.calibrate import command
from negawatt.errors import NegawattError, SensorError, UsageError
from negawatt.meter import (
    Counter,
    Integrated,
    Meter,
    Power,
    PowerSource,
    Reading,
    Sensor,
    SensorAbsent,
    Station,
    energy_of_cpu_time,
)
from negawatt.meter.calibrate import measure_curve, steps_plan
from negawatt.meter.calibrated import curve_power, load_curve, power_here, save_curve
from negawatt.meter.cputime import this_cpu_power
from negawatt.meter.curve import LoadStep, PowerCurve
from negawatt.meter.load import WORK, Load
from negawatt.meter.machine import fingerprint
from negawatt.meter.station import this_station

THREADS = os.cpu_count() or 1
IDLE_W, BUSY_W = 40.0, 30.0


class Plug(Sensor):
    """A double of a wall plug on a machine that draws more for each processor this process keeps busy."""

    name = "plug"

    def __init__(self, component: str = "wall/plug", busy_w: float = BUSY_W) -> None:
        self.component, self.busy_w = component, busy_w
        self.broken = False

    def read(self) -> Reading:
        if self.broken:
            raise SensorError("the plug was pulled")
        now_s = time.monotonic()
        joules = IDLE_W * now_s + self.busy_w * time.process_time()
        where = self.component.partition("/")[0]
        boundary = "wall" if where == "wall" else "host" if where == "host" else "chip"
        return Reading(now_s, {self.component: Counter(joules, boundary=boundary, limit_w=1e5)})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEGAWATT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests share their machine; here it seems to have no other processes."""
    station = sys.modules["negawatt.meter.station"]
    ticks = os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(
        station, "machine_stat", lambda: b"cpu  %d 0 0 0 0 0 0 0 0 0\n" % (time.process_time() * ticks)
    )
    monkeypatch.setattr("negawatt.meter.calibrate.MOST_BUSY", 0.5)
    monkeypatch.setattr("negawatt.meter.curve.LEAST_SPAN", 0.2)


def made(threads: int = 64, **machine: object) -> PowerCurve:
    """A curve of a machine that draws 100 W at rest and 300 W at full load."""
    steps = tuple(LoadStep(w, u, u, 100 + 200 * u + (5 if w == "copy" else 0) * u) for w, u in steps_plan())
    facts = {**fingerprint(), **machine}
    return PowerCurve(facts, threads, "2026-01-01", ("cpu/0",), "chip", ("cpu",), steps)


def test_load_steps_find_the_curve_of_this_machine_and_it_is_used_from_then_on(
    home: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("negawatt.meter.sources.from_text", lambda text: Plug())
    done = CliRunner().invoke(command, ["--sensor", "shelly:double", "--seconds", "7", "--json"])
    assert done.exit_code == 0, done.exception
    document = json.loads(done.stdout)
    assert Path(document["file"]).is_relative_to(home)
    curve = load_curve()
    assert curve is not None
    assert (curve.source, curve.boundary, curve.threads) == (("wall/plug",), "wall", THREADS)
    most = curve.knots[-1][0]
    for load in (0.0, most / 2, most):
        truth_w = IDLE_W + BUSY_W * THREADS * load
        assert curve.power_w(load) == pytest.approx(truth_w, rel=0.1)
    assert [s.work for s in curve.steps].count("rest") == 3
    assert {s.work for s in curve.steps} == {"rest", *WORK}
    assert not [t for t in threading.enumerate() if t.name.startswith("negawatt-load")]
    assert "wall/plug" in energy_of_cpu_time(1.0).reason
    assert this_station().power.boundary == "wall"


class PlugPower(PowerSource):
    """The same plug, told in watts and polled: the mean since it was renewed, every 10 ms at the soonest."""

    name = "plug power"
    polled_s = 0.03

    def __init__(self) -> None:
        self.last, self.busy = self._clocks(), 0.0

    def read_power(self) -> dict[str, Power]:
        (then_s, used_s), now = self.last, self._clocks()
        if now[0] - then_s >= 0.01:
            self.last, self.busy = now, (now[1] - used_s) / (now[0] - then_s)
        return {"wall/plug": Power(IDLE_W + BUSY_W * self.busy, boundary="wall", limit_w=1e5)}

    @staticmethod
    def _clocks() -> tuple[float, float]:
        """Both at one moment: a thread that has to wait in between would see watts that nobody drew."""
        while True:
            begun, used_s, ended = time.monotonic(), time.process_time(), time.monotonic()
            if ended - begun < 1e-3:
                return begun, used_s


def test_a_polled_sensor_serves_as_well_and_progress_is_told_to_the_end(home: Path, alone: None) -> None:
    seen: list[tuple[float, float, str]] = []
    where = Station([Integrated(PlugPower())])
    curve = measure_curve(where, 7.0, progress=lambda *told: seen.append(told))
    where.close()
    most = curve.knots[-1][0]
    assert curve.power_w(most) == pytest.approx(IDLE_W + BUSY_W * THREADS * most, rel=0.15)
    done = [told[0] for told in seen]
    assert done == sorted(done)
    assert 6.5 < done[-1] <= seen[-1][1] == pytest.approx(7.0)
    assert seen[0][2] == "rest 0%"


def test_afterwards_it_is_used_in_place_of_the_published_curves(home: Path) -> None:
    assert power_here() == (this_cpu_power(), "")
    before = energy_of_cpu_time(1.0)
    save_curve(made(THREADS))
    assert load_curve() == made(THREADS)
    power, why = power_here()
    assert not why
    assert "calibrated 2026-01-01 by cpu/0" in power.summary
    assert energy_of_cpu_time(1.0) != before
    assert "this machine" in energy_of_cpu_time(1.0).reason
    with Meter(Station([], power)) as meter:
        sum(range(300_000))
    spent = meter.measurement
    assert spent.boundary == "chip"
    assert "calibrated" in spent.components["cpu"].reason
    assert (spent.idle + spent.dynamic).value_j == pytest.approx(spent.energy.value_j)


def test_a_curve_of_the_wall_gives_wall_joules_and_holds_the_memory(home: Path) -> None:
    chip = made(THREADS)
    wall = PowerCurve(
        chip.machine, THREADS, chip.measured, ("wall/plug",), "wall", ("cpu", "dram", "disk"), chip.steps
    )
    with Meter(Station([], curve_power(wall))) as meter:
        sum(range(300_000))
    assert meter.measurement.boundary == "wall"
    assert set(meter.measurement.components) == {"cpu"}
    assert "wall joules" in meter.measurement.energy.reason


def test_what_devices_count_themselves_is_taken_off(home: Path, alone: None) -> None:
    from negawatt.meter.calibrate import _step, _target

    where = Station([Plug(), Plug("gpu/0", busy_w=0.0)])
    target = _target(where, [])
    assert (target.source, target.devices) == (("wall/plug",), ("gpu/0",))
    before = where.snapshot()
    time.sleep(0.2)
    step = _step(where, target, "rest", 0.0, before)
    assert step.power_w == pytest.approx(BUSY_W * THREADS * step.load, abs=1)


def test_a_named_sensor_goes_before_the_chips_and_the_chips_before_others(home: Path) -> None:
    from negawatt.meter.calibrate import _target

    plug, host, chips = Plug(), Plug("host/controller"), Plug("cpu/0")
    everything = Station([chips, host, plug])
    assert _target(everything, [plug]).source == ("wall/plug",)
    assert _target(everything, [host]).boundary == "host"
    assert _target(everything, []).source == ("cpu/0",)
    assert _target(Station([host]), []).source == ("host/controller",)
    with pytest.raises(UsageError, match="both measure the whole machine"):
        _target(Station([host, plug]), [])


@pytest.mark.parametrize("export", [False, True])
def test_without_a_source_it_says_so_and_keeps_the_band(home: Path, export: bool) -> None:
    arguments = ["--export", str(home / "out.json")] if export else []
    done = subprocess.run(
        [sys.executable, "-c", "from negawatt.cli import main; main()", "calibrate", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "NEGAWATT_HOME": str(home)},
    )
    if done.returncode == 0:
        pytest.skip("this machine has a counter that can be trusted")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert ("power curve is kept" if export else "none here can be trusted") in done.stderr
    assert not list(home.iterdir())


def test_an_interrupted_calibration_leaves_nothing(
    home: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_curve(Station([Plug()]), 7.0, progress=interrupt)
    assert not [t for t in threading.enumerate() if t.name.startswith("negawatt-load")]
    assert not list(home.iterdir())


def test_ctrl_c_ends_the_command_in_a_word_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "bench" / "log.csv"
    log.parent.mkdir()
    log.write_text("time,power_w\n")
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.1):
            with log.open("a") as file:
                file.write(f"{time.time()},60\n")

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.3)
    done = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from negawatt.cli import main; main()",
            "calibrate",
            "--sensor",
            f"csv:{log}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NEGAWATT_HOME": str(home / "kept")},
    )
    try:
        deadline = time.monotonic() + 30
        while len(os.listdir(f"/proc/{done.pid}/task")) < THREADS + 3 and time.monotonic() < deadline:
            time.sleep(0.05)  # until its load threads are there
        done.send_signal(signal.SIGINT)
        out, err = done.communicate(timeout=30)
    finally:
        done.kill()
        over.set()
        writer.join()
    assert done.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert not (home / "kept").exists()


def test_what_cannot_be_calibrated_gets_a_sentence(
    home: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = Plug()
    where = Station([plug])
    with pytest.raises(UsageError, match="needs at least 6 s"):
        measure_curve(where, 1.0)
    plug.broken = True
    with pytest.raises(SensorError, match="failed while the machine was calibrated: the plug was pulled"):
        measure_curve(where, 6.0)
    plug.broken = False
    monkeypatch.setattr("negawatt.meter.calibrate.MOST_BUSY", -1.0)
    with pytest.raises(NegawattError, match="not idle"):
        measure_curve(where, 6.0)
    monkeypatch.setattr("negawatt.meter.calibrate.usable_cores", lambda: 0.5)
    with pytest.raises(NegawattError, match=f"0.5 of {THREADS} processors may be used"):
        measure_curve(where, 6.0)


def test_a_curve_goes_from_a_host_to_its_virtual_machine(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "elsewhere" / "host.json"
    save_curve(made(64))
    assert CliRunner().invoke(command, ["--export", str(file)]).exit_code == 0
    (home / "curves" / f"{fingerprint()['id']}.json").unlink()
    # The host: the same processor, another machine.
    document = json.loads(file.read_text())
    document["machine"] = {
        **document["machine"],
        "id": "0123456789abcdef",
        "cores": 64.0,
        "virtualised": None,
    }
    file.write_text(json.dumps(document))
    done = CliRunner().invoke(command, ["--import", str(file), "--json"])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["curve"][-1]["power_w"] == pytest.approx(301)
    power, _ = power_here()
    # One busy thread of 64 bears a 64th of the idle power, and its share of the dynamic power.
    assert power.value_w == pytest.approx((100 + 201) / 64, rel=0.01)
    assert "a machine with this processor" in power.reason
    assert power.energy(1.0, 0.5) == power.energy(1.0)  # the host's load is not to be seen from here


def test_a_curve_of_another_processor_is_refused(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps(made(cpu="Z80").to_json()))
    done = CliRunner().invoke(command, ["--import", str(file)])
    assert "is of Z80" in str(done.exception)
    file.write_text("[]")
    assert "no power curve" in str(CliRunner().invoke(command, ["--import", str(file)]).exception)
    assert not (home / "curves").exists()


def test_a_damaged_curve_costs_its_use_and_nothing_else(home: Path) -> None:
    path = save_curve(made(THREADS))
    path.write_text("{")
    power_here.__globals__["_power_of"].cache_clear()
    power, why = power_here()
    assert power == this_cpu_power()
    assert "delete it" in why
    assert any("delete it" in note for note in this_station().notes)


@pytest.mark.parametrize(
    "arguments", [["--idle", "--export", "x"], ["--export", "x", "--seconds", "3"], ["--import", "absent"]]
)
def test_options_that_exclude_each_other_are_refused(home: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2 or isinstance(done.exception, UsageError)


def test_every_kind_of_work_keeps_the_processors_busy_as_asked() -> None:
    for work in WORK:
        with Load(1) as load:
            load.set(work, 0.3)
            time.sleep(0.4)  # what the work needs is made ready
            begun, used = time.monotonic(), time.process_time()
            time.sleep(0.3)
            share = (time.process_time() - used) / (time.monotonic() - begun)
        assert 0.1 < share < 0.6, work


def test_a_sensor_that_is_absent_does_not_stand_in() -> None:
    class Gone(Plug):
        def read(self) -> Reading:
            raise SensorAbsent("nothing there")

    with pytest.raises(SensorError, match="none here can be trusted"):
        measure_curve(Station([Gone()]))
