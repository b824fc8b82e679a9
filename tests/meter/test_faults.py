"""Faults amid a measurement: what is measured goes on as ever, and the figures say what happened."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from negawatt import Provenance
from negawatt.meter import Counter, Measurement, Meter, Reading, Sensor, Station, probe
from negawatt.meter.accumulate import Total
from negawatt.meter.benchmeter import BenchMeterSensor
from negawatt.meter.cputime import cpu_power
from negawatt.meter.rapl import RaplSensor
from negawatt.testing.powercap import PowercapTree

station_module = sys.modules[Station.__module__]
POWER = cpu_power("AMD EPYC 7763 64-Core Processor")
NEGAWATT = [sys.executable, "-c", "from negawatt.cli import main; main()", "measure"]


class Machine(Sensor):
    """One package of 50 W as powercap files, spent as time passes, that breaks when told to."""

    name = "rapl"

    def __init__(self, root: Path) -> None:
        self.tree = PowercapTree(root)
        self.folder = self.tree.add("intel-rapl:0", "package-0", 5_000_000_000)
        self.inner, self.last_s, self.frozen = RaplSensor(root), time.monotonic(), False
        self.before: Callable[[], None] = lambda: None
        self.still = threading.Lock()  # held while files change

    def read(self) -> Reading:
        self.before()
        self.still.acquire(timeout=0.2)  # in a forked child nobody may be there to let go of it
        try:
            now_s = time.monotonic()
            if not self.frozen and (self.folder / "energy_uj").exists():
                with contextlib.suppress(ValueError, OSError):
                    self.tree.spend(50.0 * (now_s - self.last_s))
            self.last_s = now_s
            return self.inner.read()
        finally:
            with contextlib.suppress(RuntimeError):
                self.still.release()

    def breaks(self, fault: Callable[[], object]) -> Callable[[], None]:
        """A fault that happens between two readings."""

        def happen() -> None:
            with self.still:
                fault()

        return happen


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "powercap")


@pytest.fixture
def station(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Station]:
    monkeypatch.setattr(station_module, "WATCH_S", 0.1)
    made = Station([machine], POWER)
    assert made.statuses[0].status == "ok"
    yield made
    made.close()


def measured(station: Station, fault: Callable[[], object], seconds: float = 0.3) -> Measurement:
    """A window with a fault in its middle."""
    with Meter(station) as meter:
        time.sleep(seconds)
        fault()
        time.sleep(seconds)
    return meter.measurement


@pytest.mark.parametrize("what", ["file", "zone", "tree"])
def test_a_counter_that_vanishes(machine: Machine, station: Station, what: str) -> None:
    def vanish() -> None:
        if what == "file":
            (machine.folder / "energy_uj").unlink()
        else:
            shutil.rmtree(machine.folder if what == "zone" else machine.tree.root)

    spent = measured(station, machine.breaks(vanish))
    cpu = spent.machine["cpu/0"]
    assert cpu.provenance is Provenance.DERIVED
    assert cpu.reason
    assert cpu.low_j <= 50 * spent.duration_s <= cpu.high_j
    assert spent.energy.value_j is not None


@pytest.mark.parametrize("text", ["<html>", "", "nan", "12.5 J", "\ufffd" * 50, "9" * 400])
def test_a_counter_that_returns_text(machine: Machine, station: Station, text: str) -> None:
    spent = measured(station, machine.breaks(lambda: (machine.folder / "energy_uj").write_text(text)))
    cpu = spent.machine["cpu/0"]
    assert cpu.provenance is Provenance.DERIVED
    assert cpu.reason
    assert cpu.low_j <= 50 * spent.duration_s <= cpu.high_j


def test_a_counter_that_goes_back(machine: Machine, station: Station) -> None:
    spent = measured(station, machine.breaks(lambda: machine.tree.set("intel-rapl:0", 1_000)))
    cpu = spent.machine["cpu/0"]
    assert cpu.provenance is Provenance.DERIVED
    assert "reset" in cpu.reason
    assert cpu.low_j <= 50 * spent.duration_s <= cpu.high_j
    assert cpu.value_j == pytest.approx(50 * spent.duration_s, rel=0.3)


def test_a_counter_that_freezes_is_not_taken_at_its_word(machine: Machine, station: Station) -> None:
    spent = measured(station, lambda: setattr(machine, "frozen", True), seconds=1.5)
    cpu = spent.machine["cpu/0"]
    assert cpu.provenance is Provenance.DERIVED
    assert "did not move for the last 1." in cpu.reason
    assert cpu.value_j == pytest.approx(50 * spent.duration_s, rel=0.2)  # the counter itself says half
    assert cpu.low_j <= 50 * spent.duration_s <= cpu.high_j


def test_permission_lost_half_way(tmp_path: Path) -> None:
    """As an ordinary user: root is denied nothing."""
    script = """
        import os, sys, tempfile
        from pathlib import Path
        sys.path.insert(0, os.environ["TESTS"])
        from test_faults import Machine, Station, measured, station_module
        station_module.WATCH_S = 0.1
        root = Path(sys.argv[1])
        root.mkdir()
        if os.getuid() == 0:
            os.chown(root, 65534, 65534)
            for folder in root.parents[: -len(Path(tempfile.gettempdir()).parts)]:
                folder.chmod(0o755)
            os.setuid(65534)
        machine = Machine(root / "powercap")
        spent = measured(Station([machine]), machine.breaks(lambda: (machine.folder / "energy_uj").chmod(0)))
        cpu = spent.machine["cpu/0"]
        print(cpu.provenance.name, cpu.low_j <= 50 * spent.duration_s <= cpu.high_j, cpu.reason, sep="|")
    """
    environment = {**os.environ, "TESTS": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "root")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    provenance, holds, reason = done.stdout.strip().split("|")
    assert (provenance, holds) == ("DERIVED", "True")
    assert reason.startswith("permission denied on ")


class Bad(Exception):
    pass


@pytest.mark.parametrize(
    "error", [Bad("not in the contract"), KeyError("x"), ZeroDivisionError(), OSError(5, "I/O")]
)
def test_a_sensor_that_raises_what_it_should_not(
    machine: Machine, station: Station, error: Exception
) -> None:
    def fail() -> None:
        raise error

    spent = measured(station, lambda: setattr(machine, "before", fail))
    cpu = spent.machine["cpu/0"]
    assert cpu.provenance is Provenance.DERIVED
    assert cpu.reason.startswith(f"rapl failed with {type(error).__name__}")
    assert cpu.low_j <= 50 * spent.duration_s <= cpu.high_j


class Wrong(Sensor):
    """Breaks its contract from the first read on, and cannot even be closed."""

    name = "wrong"

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def read(self) -> Reading:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]

    def close(self) -> None:
        raise OSError("the device is gone")


@pytest.mark.parametrize(
    "answer", [Bad("no"), None, Reading(0.0, {"cpu/0": Counter(float("nan"))}), Reading(0.0, {"cpu/0": None})]
)
def test_a_sensor_that_is_wrong_from_the_start_is_told_and_left_out(answer: object) -> None:
    begun = time.monotonic()
    [status] = probe([Wrong(answer)])
    assert time.monotonic() - begun < 2  # it has answered, if wrongly: no waiting for the deadline
    assert status.status == "absent"
    assert status.reason.startswith("wrong ")
    with Meter(Station([Wrong(answer)], POWER)) as meter:
        pass
    assert set(meter.measurement.components) == {"cpu", "dram"}, "only what is estimated without a sensor"


def test_a_sensor_that_hangs_is_waited_for_once_and_used_again_when_it_answers(
    machine: Machine, station: Station
) -> None:
    """Read on the spot, as quick sensors are; its deadline is a second."""
    free, answered = threading.Event(), threading.Event()

    def hang() -> None:
        free.wait(30)
        answered.set()

    machine.before = hang
    begun = time.monotonic()
    with Meter(station) as meter:
        pass
    assert 0.5 < time.monotonic() - begun < 2.5
    assert "no answer within 1 s" in " ".join(meter.measurement.warnings)
    begun = time.monotonic()
    for _ in range(5):
        with Meter(station):
            pass
    assert time.monotonic() - begun < 0.9, "it was waited for again"
    free.set()
    assert answered.wait(10)
    time.sleep(0.2)
    assert measured(station, lambda: None).machine["cpu/0"].provenance is Provenance.MEASURED


def test_a_fork_in_mid_window_measures_on_in_both(station: Station) -> None:
    """The child leaves the block too, without the threads that its parent had."""
    pid, meter = -1, Meter(station)
    try:
        with meter:
            time.sleep(0.1)
            pid = os.fork()
            time.sleep(0.1)
        told = meter.measurement.machine["cpu/0"]
    finally:
        if pid == 0:
            os._exit(0 if told.provenance is Provenance.MEASURED else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert told.provenance is Provenance.MEASURED


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_the_clock_is_changed_by_an_hour(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    real = time.time

    def step() -> None:
        monkeypatch.setattr("time.time", lambda: real() + step_s)

    spent = measured(station, step)
    assert 0.6 <= spent.duration_s < 2
    cpu = spent.machine["cpu/0"]
    assert cpu.provenance is Provenance.MEASURED
    assert cpu.value_j == pytest.approx(50 * spent.duration_s, rel=0.05)


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_a_log_by_the_clock_survives_its_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """What goes by timestamps cannot know better, but it neither fails nor counts backwards."""
    real, log, over = time.time, tmp_path / "log.csv", threading.Event()

    def write() -> None:
        with log.open("w", buffering=1) as file:
            file.write(f"time,power_w\n{real() - 0.1},80\n")
            while not over.wait(0.01):
                file.write(f"{real()},80\n")

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.1)
    sensor = BenchMeterSensor(log)
    sensor.polled_s = 0.05
    station = Station([sensor], POWER)
    spent = measured(station, lambda: monkeypatch.setattr("time.time", lambda: real() + step_s))
    over.set()
    writer.join()
    station.close()
    wall = spent.machine["wall/bench"]
    assert wall.is_missing or wall.value_j >= 0
    assert wall.reason or wall.low_j <= 80 * spent.duration_s <= wall.high_j


def test_a_suspended_machine_is_told(station: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    """Monotonic time stands still meanwhile; a counter that lost its count is a reset like any other."""
    from negawatt.meter.process import asleep_s

    assert asleep_s() == pytest.approx(asleep_s(), abs=0.01)

    def suspend() -> None:
        monkeypatch.setattr(station_module, "asleep_s", lambda: asleep_s() + 1800)

    spent = measured(station, suspend)
    assert "the machine was suspended for 1800 s, which are not in the window" in spent.warnings
    assert spent.machine["cpu/0"].value_j == pytest.approx(50 * spent.duration_s, rel=0.05)
    assert not any("suspended" in w for w in measured(station, lambda: None).warnings)


def test_a_pause_after_the_counter_was_read_is_not_in_the_window(
    station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stops a thread wherever it likes: the garbage collector, the scheduler."""
    with Meter(station) as meter:
        time.sleep(0.2)
        read, inside_s = station.totals, time.monotonic()

        def held_up() -> dict[str, Total]:
            found = read()
            time.sleep(0.3)
            return found

        monkeypatch.setattr(station, "totals", held_up)
    spent = meter.measurement
    assert spent.duration_s < inside_s - spent.started_s + 0.25
    cpu = spent.machine["cpu/0"]
    assert cpu.value_j == pytest.approx(50 * spent.duration_s, rel=0.05)
    assert cpu.high_j - cpu.low_j < 0.2 * cpu.value_j


def test_a_pause_while_the_counter_is_read_is_in_the_interval(machine: Machine, station: Station) -> None:
    """The counter is read before the pause, and its reading told for the pause's middle."""
    with Meter(station) as meter:
        time.sleep(0.2)
        before = machine.inner.read

        def held_up() -> Reading:
            begun_s, counters = time.monotonic(), before().counters
            time.sleep(0.3)
            return Reading((begun_s + time.monotonic()) / 2, counters)

        machine.inner.read = held_up  # type: ignore[method-assign]
    cpu = meter.measurement.machine["cpu/0"]
    assert cpu.low_j < 50 * meter.measurement.duration_s < cpu.high_j


def test_ten_thousand_nested_windows(station: Station) -> None:
    meters = [Meter(station) for _ in range(10_000)]
    with contextlib.ExitStack() as stack:
        for meter in meters:
            stack.enter_context(meter)
    outer, inner = meters[0].measurement, meters[-1].measurement
    assert outer.duration_s > meters[5000].measurement.duration_s > inner.duration_s
    assert outer.cpu_s >= meters[5000].measurement.cpu_s >= inner.cpu_s
    joules = outer.machine["cpu/0"].value_j
    assert joules is not None
    assert joules >= 49 * outer.duration_s - 1, outer.machine["cpu/0"]
    assert all(m.measurement.energy.is_missing or m.measurement.energy.value_j >= 0 for m in meters)


def test_a_thousand_processes() -> None:
    """Alive at once, with a leader that replaces itself by another program at the end."""
    script = (
        'i=0; while [ $i -lt 1000 ]; do sleep 20 & all="$all $!"; i=$((i+1)); done; echo started; '
        "sleep 0.5; kill $all; exec sh -c 'echo out; exit 7'"
    )
    done = subprocess.run([*NEGAWATT, "--", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 7
    assert done.stdout == "started\nout\n"
    assert "CPU-seconds" in done.stderr


def test_a_program_that_replaces_itself_is_charged_for_both() -> None:
    spin = "import time\nwhile time.process_time() < {}: pass\n"
    then = f"os.execv(sys.executable, [sys.executable, '-S', '-c', {spin.format(0.4)!r}])"
    command = [sys.executable, "-S", "-c", f"import os, sys\n{spin.format(0.2)}{then}"]
    done = subprocess.run([*NEGAWATT, "--json", "--", *command], capture_output=True, text=True)
    spent = json.loads(done.stdout)
    assert 0.4 <= spent["cpu_s"] <= 0.8  # the clock of a process goes on through exec


FULL = "sh", "-c", "echo out; exit 7"


def test_a_full_disk_costs_the_figures_and_not_the_command(tmp_path: Path) -> None:
    """A file size limit of nothing stands for the disk; /dev/full is a device that is always full."""
    output = tmp_path / "spent.json"
    limited = ["sh", "-c", 'ulimit -f 0; exec "$0" "$@"', *NEGAWATT, "--output", str(output), "--", *FULL]
    for command in (limited, [*NEGAWATT, "--output", "/dev/full", "--", *FULL]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 7
        assert done.stdout == "out\n"
        assert "negawatt: cannot write " in done.stderr
        assert " J " in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize(("as_json", "stream"), [(True, "stdout"), (False, "stderr"), (True, "closed")])
def test_figures_that_nobody_takes_do_not_change_the_exit_code(as_json: bool, stream: str) -> None:
    options = ["--json"] if as_json else []
    command = [*NEGAWATT, *options, "--", "sh", "-c", "exit 7"]
    if stream == "closed":
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
    else:
        with open("/dev/full", "w") as full:
            both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
            done = subprocess.run(command, text=True, **both)  # type: ignore[call-overload]
    assert done.returncode == 7
    assert "Traceback" not in (done.stderr or "")


def test_a_place_that_cannot_be_written_is_told_before_the_command_has_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "spent.json"
    done = subprocess.run([*NEGAWATT, "--output", str(place), "--", *FULL], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("negawatt: cannot write ")
