"""Stages that nest, overlap, run in threads and tasks: whatever they do, the parts make the whole."""

import asyncio
import json
import logging
import math
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.errors import UsageError
from negawatt.meter import Measurement, Meter, Station, metered
from negawatt.meter.accumulate import Total
from negawatt.meter.cputime import cpu_power
from negawatt.meter.sensor import Counter
from negawatt.meter.stages import Ledger

POWER = cpu_power("AMD EPYC 7763 64-Core Processor")
BLIND = Station([], POWER)


def spin(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def by_name(measurement: Measurement) -> dict[str, float]:
    return {stage.name: stage.cpu_s for stage in measurement.stages}


def test_nested_stages_hold_what_is_inside_them() -> None:
    with Meter(BLIND) as meter:
        with meter.stage("train"):
            spin(0.02)
            with meter.stage("evaluate"):
                spin(0.03)
        spin(0.01)
    train, evaluate = meter.measurement.stages
    assert (train.name, train.parent, evaluate.name, evaluate.parent) == ("train", None, "evaluate", 0)
    # In a process with many threads and children the stages' own looks take milliseconds, too.
    assert evaluate.cpu_s == pytest.approx(0.03, abs=0.015)
    assert train.cpu_s == pytest.approx(evaluate.cpu_s + 0.02, abs=0.015)
    assert train.energy.value_j == pytest.approx(train.self_energy.value_j + evaluate.energy.value_j)
    assert meter.measurement.energy.value_j > train.energy.value_j
    assert train.duration_s >= evaluate.duration_s


def test_threads_are_charged_what_each_used() -> None:
    with Meter(BLIND) as meter:

        def work(name: str, cpu_s: float) -> None:
            with meter.stage(name):
                spin(cpu_s)

        threads = [threading.Thread(target=work, args=(n, c)) for n, c in (("small", 0.03), ("large", 0.12))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    used = by_name(meter.measurement)
    assert used["small"] == pytest.approx(0.03, abs=0.025)
    assert used["large"] == pytest.approx(0.12, abs=0.04)
    assert sum(used.values()) <= meter.measurement.cpu_s * (1 + 1e-9)


def test_tasks_that_overlap_share_without_double_counting() -> None:
    async def task(meter: Meter, name: str) -> None:
        with meter.stage(name):
            for _ in range(5):
                spin(0.004)
                await asyncio.sleep(0)

    async def everything() -> Measurement:
        with Meter(BLIND) as meter:
            with meter.stage("all"):
                await asyncio.gather(*(task(meter, f"task {n}") for n in range(3)))
        return meter.measurement

    measurement = asyncio.run(everything())
    whole, *tasks = measurement.stages
    assert {stage.parent for stage in tasks} == {0}
    assert math.fsum(stage.cpu_s for stage in tasks) <= whole.cpu_s * (1 + 1e-9)
    assert math.fsum(stage.cpu_s for stage in tasks) >= 0.055
    assert whole.energy.value_j <= measurement.energy.value_j * (1 + 1e-9)


def test_child_processes_belong_to_the_stage_that_started_them() -> None:
    code = "import time\nwhile time.process_time() < 0.1: pass"
    with Meter(BLIND) as meter:
        with meter.stage("before"):
            pass
        with meter.stage("outside help"):
            subprocess.run([sys.executable, "-S", "-c", code], check=True)
        with meter.stage("nothing"):
            pass
    used = by_name(meter.measurement)
    assert used["outside help"] >= 0.1
    assert used["nothing"] < used["before"] + 0.005  # to look at all processes takes its time


def test_ten_thousand_nested_stages_survive() -> None:
    with Meter(BLIND) as meter:
        ledger = meter._window.ledger()
        positions: list[int] = []
        for n in range(10_000):
            positions.append(ledger.open(f"level {n}", positions[-1] if positions else None))
        for position in reversed(positions):
            ledger.close(position)
    stages = meter.measurement.stages
    assert len(stages) == 10_000
    assert stages[0].energy.value_j >= stages[5000].energy.value_j >= stages[-1].energy.value_j
    assert len(json.loads(json.dumps(meter.measurement.to_json()))["stages"]) == 10_000


def test_a_stage_left_open_is_told() -> None:
    with Meter(BLIND) as meter:
        meter._window.ledger().open("forgotten", None)
    assert "stage forgotten was still open at the end of the window" in meter.measurement.warnings


def test_a_stage_without_a_running_meter_is_refused() -> None:
    with pytest.raises(UsageError, match="running meter"):
        with Meter(BLIND).stage("too early"):
            pass


class Scripted:
    """A process tree and a counter whose figures are set by hand; threads' own clocks stay real."""

    def __init__(self) -> None:
        self.cpu_s, self.joules = 0.0, 0.0

    def totals(self) -> dict[str, Total]:
        counter = Counter(self.joules, refresh_s=0.1)
        return {"gpu/0": Total(0.0, self.joules, self.joules, self.joules, 0.0, 0, counter)}


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["open", "close"]), st.integers(0, 30), st.floats(0, 100), st.floats(0, 10)),
    max_size=60,
)


@settings(max_examples=60)
@given(OPERATIONS, st.floats(0.001, 1e6))
def test_whatever_opens_and_closes_the_parts_make_the_whole(
    operations: list[tuple[str, int, float, float]], whole_j: float
) -> None:
    from negawatt import Energy

    script = Scripted()
    ledger = Ledger(lambda: script.cpu_s, script.totals, 0.0, 0.0, script.totals())
    opened: list[int] = []
    for operation, pick, joules, cpu_s in operations:
        script.joules += joules
        script.cpu_s += cpu_s
        if operation == "open" or not opened:
            parent = opened[pick % len(opened)] if opened and pick % 2 else None
            opened.append(ledger.open("s", parent))
        else:
            ledger.close(opened.pop(pick % len(opened)))
    ledger.finish()
    components = {"gpu/0": Energy.measured(whole_j), "cpu": Energy.estimated(whole_j, 0, 2 * whole_j)}
    stages = ledger.stages(components, {"gpu/0": 0.1}, 100.0)
    own_j = math.fsum(stage.self_energy.value_j for stage in stages)
    top_j = math.fsum(stage.energy.value_j for stage in stages if stage.parent is None)
    assert own_j == pytest.approx(top_j, rel=1e-9, abs=1e-9 * whole_j)
    assert own_j <= 2 * whole_j * (1 + 1e-9)
    assert all(s.energy.low_j <= s.energy.value_j <= s.energy.high_j for s in stages)
    if stages and script.joules > 0:
        spent = [*ledger._stages, ledger._whole]
        assert math.fsum(s.joules.get("gpu/0", 0.0) for s in spent) == pytest.approx(script.joules, rel=1e-9)
        assert math.fsum(s.cpu_s for s in spent) == pytest.approx(script.cpu_s, rel=1e-9, abs=1e-9)


def test_a_stage_shorter_than_the_refresh_says_so_in_its_interval() -> None:
    from negawatt import Energy

    script = Scripted()
    ledger = Ledger(lambda: script.cpu_s, script.totals, 0.0, 0.0, script.totals())
    position = ledger.open("short", None)
    ledger.close(position)
    script.joules = 100.0
    ledger.finish()
    [stage] = ledger.stages({"gpu/0": Energy.measured(100.0)}, {"gpu/0": 0.1}, 10.0)
    assert stage.energy.value_j == 0
    assert stage.energy.high_j == pytest.approx(1.0)  # 0.1 s of 10 W


def test_metered_functions_are_stages_inside_a_meter() -> None:
    @metered
    def plain(x: int) -> int:
        spin(0.01)
        return x + 1

    @metered(name="slow sum")
    async def coroutine(x: int) -> int:
        spin(0.01)
        return x + 2

    with Meter(BLIND) as meter:
        assert plain(1) == 2
        assert asyncio.run(coroutine(1)) == 3
    names = [stage.name for stage in meter.measurement.stages]
    assert names == [plain.__qualname__, "slow sum"]
    assert all(stage.cpu_s > 0.009 for stage in meter.measurement.stages)


def test_metered_functions_report_outside_a_meter(caplog: pytest.LogCaptureFixture) -> None:
    reports: list[Measurement] = []

    @metered(report=reports.append)
    def told() -> None:
        spin(0.01)

    @metered
    def logged() -> None:
        raise ValueError("as it would without a meter")

    told()
    assert reports[0].cpu_s > 0.009
    with caplog.at_level(logging.INFO, "negawatt"), pytest.raises(ValueError, match="as it would"):
        logged()
    assert "logged" in caplog.text


def test_a_start_and_a_stop_are_quick() -> None:
    """Under 100 microseconds on a quiet machine; here only that it is no matter of milliseconds.

    In a process of its own: this one has the threads and children of all tests before.
    """
    code = (
        "import time\nfrom negawatt.meter import Meter, Station\n"
        "meter, took_s = Meter(Station([])), []\n"
        "for _ in range(200):\n"
        "    begun = time.thread_time()\n"
        "    with meter:\n        pass\n"
        "    took_s.append(time.thread_time() - begun)\n"
        "print(sorted(took_s)[100])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1e-3
