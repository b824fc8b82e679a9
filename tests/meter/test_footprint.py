"""Memory held and bytes moved by real processes, and the band of joules that models give them."""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt import Provenance
from negawatt.meter import Meter, ProcessMeter, Station
from negawatt.meter import footprint as module
from negawatt.meter.command import measure_command
from negawatt.meter.cputime import cpu_power
from negawatt.meter.footprint import Footprint, FootprintTotal, held, solid_state
from negawatt.meter.machine import Share

POWER = cpu_power("AMD EPYC 7763 64-Core Processor")
BLIND = Station([], POWER)
MB = 10**6
HOLD = "import sys, time; held = bytearray({0}); print(flush=True); time.sleep({1})"


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that holds 200 MB."""
    code = HOLD.format(200 * MB, 60)
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_process_that_only_holds_memory_is_charged_for_it(holder: subprocess.Popen[str]) -> None:
    meter = ProcessMeter(holder.pid, BLIND)
    meter.start()
    time.sleep(0.3)
    spent = meter.stop()
    dram = spent.components["dram"]
    gb = 200 * MB / 2**30
    assert dram.provenance is Provenance.ESTIMATED
    assert gb * 0.375 <= dram.value_j / spent.duration_s <= (gb + 0.05) * 0.375
    assert dram.low_j / spent.duration_s == pytest.approx(
        dram.value_j / spent.duration_s * 0.284 / 0.375, rel=0.05
    )
    assert dram.high_j >= dram.value_j * 0.392 / 0.375 * 0.99
    assert all(name in dram.reason for name in ("Boavizta", "CodeCarbon", "Cloud Carbon Footprint"))
    assert spent.footprint is not None
    assert 200 * MB < spent.footprint.to_json()["resident_bytes"] < 250 * MB
    # Memory draws its power whether it is used or not.
    assert spent.idle.value_j == pytest.approx(POWER.idle_w * spent.cpu_s + dram.value_j)


def test_memory_that_came_and_went_between_two_looks_is_inside_the_interval() -> None:
    code = (
        "import time\nfrom negawatt.meter import Meter, Station\n"
        "with Meter(Station([])) as meter:\n"
        "    held = bytearray(300_000_000)\n    time.sleep(0.05)\n    del held\n"
        "spent = meter.measurement\n"
        "print(spent.components['dram'].high_j / spent.duration_s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 300 * MB / 2**30 * 0.392


def test_memory_taken_after_the_window_is_not_in_its_interval() -> None:
    code = (
        "import time\nfrom negawatt.meter import Meter, Station\n"
        "with Meter(Station([])) as meter:\n    time.sleep(0.02)\n"
        "held = bytearray(300_000_000)\nspent = meter.measurement\n"
        "print(spent.components['dram'].high_j / spent.duration_s)"
    )
    # Started by a small process: one keeps the peak of whoever started it, until it runs its program.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200 * MB / 2**30 * 0.392


def test_a_measured_command_is_looked_at_while_it_runs() -> None:
    # Measured by a process of its own: the children that other tests left running here count as well.
    held = HOLD.format(200 * MB, 1.0)
    code = (
        "import sys\nfrom negawatt.meter import Station\nfrom negawatt.meter.command import measure_command\n"
        f"code, spent = measure_command([sys.executable, '-S', '-c', {held!r}], output_to_stderr=True, "
        "station=lambda: Station([]))\n"
        "print(code, spent.footprint.to_json()['resident_bytes'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code_and_bytes = [int(word) for word in done.stdout.split()]
    assert code_and_bytes[0] == 0
    # It holds nothing at the window's start nor at its end.
    assert 120 * MB < code_and_bytes[1] < 250 * MB


def test_a_child_that_comes_and_goes_between_two_looks_is_inside_the_interval() -> None:
    """In a process of its own: what this one has held before is more than the child's peak."""
    child = HOLD.format(300 * MB, 0.05)
    code = (
        "import subprocess, sys, time\nfrom negawatt.meter import Meter, Station\n"
        "def most_w(work):\n"
        "    with Meter(Station([])) as meter:\n        work()\n"
        "    return meter.measurement.components['dram'].high_j / meter.measurement.duration_s\n"
        f"child = [sys.executable, '-S', '-c', {child!r}]\n"
        "print(most_w(lambda: subprocess.run(child, capture_output=True)), most_w(lambda: time.sleep(0.02)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with_child_w, without_w = map(float, done.stdout.split())
    assert with_child_w > 300 * MB / 2**30 * 0.392
    assert without_w < with_child_w


def test_a_command_too_short_to_be_looked_at_is_not_taken_for_nothing() -> None:
    _, spent = measure_command(
        [sys.executable, "-S", "-c", "held = bytearray(50_000_000)"], station=lambda: BLIND
    )
    dram = spent.components["dram"]
    assert 0 < dram.value_j < dram.high_j
    assert dram.high_j / spent.duration_s > 50 * MB / 2**30 * 0.392


def looked_at_twice(share: Share, pids: list[int]) -> Footprint:
    total = FootprintTotal(share, pids[0])
    total.note(held(pids))
    time.sleep(0.02)
    total.note(held(pids))
    return total.total()


def test_of_pages_that_processes_share_the_largest_share_counts_once(holder: subprocess.Popen[str]) -> None:
    seen = looked_at_twice(Share.of(), [holder.pid] * 3)
    resident, shared, peak = module.memory(Path(f"/proc/{holder.pid}/status").read_bytes())
    assert 0 < shared < resident <= peak
    assert seen.byte_s / seen.duration_s == pytest.approx(3 * (resident - shared) + shared, rel=0.01)


def test_no_more_is_resident_than_the_share_allows(holder: subprocess.Popen[str]) -> None:
    small = Share(1.0, 2, 50 * MB, 1000 * MB)
    seen = looked_at_twice(small, [holder.pid])
    assert seen.byte_s / seen.duration_s == pytest.approx(50 * MB)
    assert seen.high_byte_s / seen.duration_s == pytest.approx(50 * MB)


def moved() -> tuple[int, int]:
    text = Path("/proc/self/io").read_text()
    read, written, cancelled = (
        int(re.search(rf"^{name}: (\d+)", text, re.M)[1])  # type: ignore[index]
        for name in ("read_bytes", "write_bytes", "cancelled_write_bytes")
    )
    return read, written - cancelled


def test_bytes_are_those_the_kernel_counts_children_that_ended_included(tmp_path: Path) -> None:
    code = (
        "import os, sys\nwith open(sys.argv[1], 'wb') as file:\n"
        "    file.write(os.urandom(8_000_000))\n    os.fsync(file.fileno())"
    )
    before = moved()
    with Meter(BLIND) as meter:
        subprocess.run([sys.executable, "-S", "-c", code, str(tmp_path / "file")], check=True)
        inside = moved()
    after = moved()
    footprint = meter.measurement.footprint
    assert footprint is not None
    for seen, least, low, most in zip(
        (footprint.read_bytes, footprint.written_bytes), before, inside, after, strict=True
    ):
        assert seen is not None
        assert low - least - 100_000 <= seen <= most - least
    if inside[1] > before[1]:  # a file system in memory moves none
        assert footprint.written_bytes >= 8_000_000


def test_bytes_that_may_not_be_read_are_missing_and_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    class Denied:
        def read(self) -> bytes:
            raise PermissionError("/proc/self/io")

    monkeypatch.setattr(module, "_IO", Denied())
    with Meter(BLIND) as meter:
        pass
    seen = meter.measurement.footprint
    assert seen is not None
    assert seen.read_bytes is None
    assert seen.to_json()["written_bytes"] is None
    assert seen.disk_energy() is None
    assert "disk" not in seen.beside(POWER, {"cpu": POWER.energy(1.0)})
    assert any("another user" in sentence for sentence in seen.not_modelled)


@pytest.mark.parametrize(
    ("drives", "solid"),
    [
        ({"nvme0n1": "0", "sda": "0", "loop0": "1"}, True),
        ({"nvme0n1": "0", "sda": "1"}, False),
        ({"vda": "1"}, False),
        ({"loop0": "0"}, False),
        ({}, False),
    ],
)
def test_drives_are_modelled_only_where_all_say_that_they_do_not_spin(
    tmp_path: Path, drives: dict[str, str], solid: bool
) -> None:
    for name, text in drives.items():
        (tmp_path / name / "queue").mkdir(parents=True)
        (tmp_path / name / "queue" / "rotational").write_text(f"{text}\n")
    assert solid_state(tmp_path) is solid


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.floats(1e-6, 1e12), st.floats(1e-6, 1e6))
def test_joules_are_proportional_and_the_parts_make_the_whole(
    read: int, written: int, byte_s: float, cpu_s: float
) -> None:
    one = Footprint(byte_s, 0.5 * byte_s, 2 * byte_s, 1.0, read, written)
    two = Footprint(2 * byte_s, byte_s, 4 * byte_s, 2.0, 2 * read, 2 * written)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "solid_state", lambda: True)
        for energy, double in (
            (one.memory_energy(), two.memory_energy()),
            (one.disk_energy(), two.disk_energy()),
        ):
            assert energy is not None and double is not None
            assert double.value_j == pytest.approx(2 * energy.value_j)
            assert energy.low_j <= energy.value_j <= energy.high_j
        components = {"cpu": POWER.energy(cpu_s)}
        components |= one.beside(POWER, components)
    assert components.keys() == {"cpu", "dram", "disk"}
    own_j = cpu_s * POWER.value_w + byte_s / 2**30 * 0.375 + (read + written) * 2.5e-9
    assert math.fsum(e.value_j for e in components.values()) == pytest.approx(own_j, rel=1e-9)


def test_what_a_counter_tells_is_not_estimated_beside_it() -> None:
    held = Footprint(1e9, 1e9, 1e9, 1.0, 10, 10)
    assert held.beside(POWER, {"cpu/0": POWER.energy(1.0)}) == {}
    assert "dram" not in held.beside(POWER, {"cpu": POWER.energy(1.0), "dram/0": POWER.energy(1.0)})


def test_the_stages_share_all_of_it() -> None:
    with Meter(BLIND) as meter:
        with meter.stage("one"):
            sum(range(200_000))
        with meter.stage("two"):
            sum(range(400_000))
    spent = meter.measurement
    assert math.fsum(e.value_j for e in spent.components.values()) == pytest.approx(spent.energy.value_j)
    assert sum(s.energy.value_j for s in spent.stages) <= spent.energy.value_j * (1 + 1e-9)
    assert (spent.idle + spent.dynamic).value_j == pytest.approx(spent.energy.value_j)


def test_the_document_tells_what_was_held_moved_and_left_out() -> None:
    with Meter(BLIND) as meter:
        time.sleep(0.01)
    document = json.loads(json.dumps(meter.measurement.to_json()))
    assert document["footprint"]["resident_bytes"] > 5 * MB
    assert document["footprint"]["read_bytes"] >= 0
    assert any("network" in sentence for sentence in document["footprint"]["not_modelled"])
    assert document["share"]["of_cores"] == os.cpu_count()
    assert 0 < document["share"]["cores"] <= os.cpu_count()
    assert 0 < document["share"]["memory_bytes"] <= document["share"]["of_memory_bytes"]
