"""Searches that go by joules of counters: what they count, keep apart, and refuse to make up."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from negawatt import report
from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine import Settings
from negawatt.errors import EngineError, RunError
from negawatt.limits.cpu import POWERCAP
from negawatt.meter import Measurement, Station
from negawatt.meter.nvml import NvmlSensor
from negawatt.meter.rapl import RaplSensor
from negawatt.run import Run
from negawatt.testing.nvml import NvmlDouble
from negawatt.testing.powercap import PowercapTree
from negawatt.testing.powered import PoweredMachine
from negawatt.tuning import Space, tune
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.memory import Memory
from negawatt.tuning.trial import Trial
from negawatt.workload import Workload

BASELINE = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96)
SPACE = Space(
    ("llamacpp",), (1,), (1,), 96, {"llamacpp": ("q8_0",)}, kv_caches={"llamacpp": ("default",)},
    speculation=("none",),
)  # fmt: skip
JOULES = Cost("J", ("rapl:cpu/0",))

pytestmark = pytest.mark.usefixtures("in_home_with_engines")


@pytest.fixture
def powered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoweredMachine]:
    """A machine of files in the place of this one's counters."""
    with PoweredMachine(tmp_path / "root") as machine:
        where = Station([RaplSensor(machine.root / POWERCAP)])
        monkeypatch.setattr(import_module("negawatt.meter.station"), "_shared", where)
        yield machine
        where.close()


def measurement(components: dict[str, Energy], machine: dict[str, Energy] | None = None) -> Measurement:
    total = Energy.total(components.values())
    return Measurement(
        0.0, 1.0, total, components, machine or components, Energy.zero(), total, 1.0, 0.0, 0.0
    )


# -- which unit --------------------------------------------------------------------------------------


def test_goes_by_joules_only_where_all_that_an_engine_spends_is_counted(tmp_path: Path) -> None:
    tree = PowercapTree.server(tmp_path)
    nvml = NvmlDouble()
    spending: Any = nvml

    class Flowing(RaplSensor):
        """A counter that has moved whenever it is read."""

        def read(self) -> Any:
            tree.spend(1.0)
            nvml.spend(1.0)
            return super().read()

    packages = Station([Flowing(tree.root)])
    assert Cost.here(where=packages).counters == ("rapl:cpu/0", "rapl:cpu/1", "rapl:dram/0", "rapl:dram/1")
    assert Cost.here(["cuda:1"], packages) == CPU_SECONDS
    both = Station([Flowing(tree.root), NvmlSensor(spending)])
    assert Cost.here(["cpu", "cuda:1"], both).counters[-1] == "nvml:gpu/1"
    assert "nvml:gpu/0" not in Cost.here(["cuda:1"], both).counters
    assert set(Cost.here(["cuda"], both).counters) >= {"nvml:gpu/0", "nvml:gpu/1"}
    assert Cost.here(["npu"], both) == CPU_SECONDS
    assert Cost.here(where=Station([NvmlSensor(spending)])) == CPU_SECONDS
    assert Cost.here(where=Station([])) == CPU_SECONDS
    still = Station([RaplSensor(tree.root)])
    assert Cost.here(where=still) == CPU_SECONDS, "a counter that stands still counts nothing"
    for where in (packages, both, still):
        where.close()


def test_a_gpu_is_counted_for_those_that_run_on_it_and_the_parts_make_the_whole() -> None:
    cost = Cost("J", ("rapl:cpu/0", "rapl:dram/0", "nvml:gpu/0"))
    parts = {"cpu/0": Energy.measured(5.0), "dram/0": Energy.measured(1.0), "gpu/0": Energy.measured(50.0)}
    seen = measurement(parts)
    assert cost.joules(seen, ["cpu"]) == 6.0
    assert cost.joules(seen, ["cuda"]) == seen.energy.value_j


@pytest.mark.parametrize(
    ("components", "machine", "reason"),
    [
        (
            {"cpu": Energy.estimated(5, 1, 9)},
            {"cpu/0": Energy.missing("permission denied")},
            "permission denied",
        ),
        ({"cpu/0": Energy.missing("it vanished")}, {}, "it vanished"),
        ({"cpu": Energy.estimated(5, 1, 9)}, {}, "was not read"),
        ({"cpu/0": Energy.estimated(5, 1, 9, "a model")}, {"cpu/0": Energy.missing("gone")}, "gone"),
        ({"cpu/0": Energy.measured(0.0)}, {}, "did not move over a window of 1 s"),
    ],
)
def test_missing_joules_are_no_joules(
    components: dict[str, Energy], machine: dict[str, Energy], reason: str
) -> None:
    with pytest.raises(EngineError, match=f"joules of cpu/0 are missing: .*{reason}"):
        JOULES.joules(measurement(components, machine))


def test_what_was_counted_is_read_back_and_older_runs_went_by_cpu_seconds() -> None:
    assert Cost.from_json(JOULES.to_json()) == JOULES
    assert Cost.from_json(None) == Cost.from_json(CPU_SECONDS.to_json()) == CPU_SECONDS
    for odd in ({"unit": "Wh"}, {"unit": "J", "counters": []}):
        with pytest.raises(RunError, match="is unknown here"):
            Cost.from_json(odd)
    with pytest.raises(RunError, match="goes by joules of rapl:cpu/0, and rapl:cpu/0 cannot be read"):
        JOULES.refuse_elsewhere(CPU_SECONDS)
    CPU_SECONDS.refuse_elsewhere(JOULES)


def test_the_reference_load_is_taken_out_of_cpu_seconds_alone() -> None:
    assert CPU_SECONDS.at_start(6.0, 0.02, 0.03) == pytest.approx(4.0)
    assert JOULES.at_start(6.0, 0.02, 0.03) == 6.0


def test_searches_remember_nothing_of_those_that_counted_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEGAWATT_HOME", str(tmp_path))
    memory, candidate = Memory("ab" * 32, "machine"), next(iter(SPACE.grid()))
    trials = [Trial(0, candidate, "complete", 2.0)]
    memory.keep(trials, "run", "w", 0.02)
    assert len(memory.observations(SPACE, "w", 0.02)) == 1
    assert memory.observations(SPACE, "w", 0.02, JOULES) == []
    memory.keep(trials, "other", "w", 0.02, JOULES)
    assert [o.run for o in memory.observations(SPACE, "w", 0.04, JOULES)] == ["other"]
    assert [o.run for o in memory.observations(SPACE, "w", 0.04)] == ["run"]
    assert memory.observations(SPACE, "w", 0.04, Cost("J", ("perf:cpu/0",))) == []


# -- whole searches ----------------------------------------------------------------------------------


def test_a_search_over_a_counter_that_moves_goes_by_its_joules(
    powered: PoweredMachine, small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    found = tune(
        small, lines, space=SPACE, baseline=BASELINE, time_budget_s=240, path=tmp_path / "run"
    )  # fmt: skip
    assert found["search"]["cost"] == {
        "unit": "J", "counters": ["rapl:cpu/0"], "text": "goes by joules of rapl:cpu/0"
    }  # fmt: skip
    run = Run.open(tmp_path / "run")
    assert Cost.from_json(run.manifest["cost"]) == JOULES
    assert found["verdict"]["accepted"], found["verdict"]
    for document in (found["baseline"], found["best"]):
        assert document["joules_per_token"] == pytest.approx(20 * document["cpu_s_per_token"], rel=0.25)
        assert document["energy_per_token"]["provenance"] == "derived"
    trials = [r for r in run.records("trial") if r["stage"] == "search"]
    assert all(r["cost"] == r["joules_per_token"] for r in trials)
    rows = found["waterfall"]
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert rows[0]["joules_per_token"] > rows[-1]["joules_per_token"]
    saved = found["baseline"]["joules_per_token"] - found["best"]["joules_per_token"]
    spent_j = found["search"]["energy"]["value_j"]
    assert found["search"]["payback_tokens"] == pytest.approx(spent_j / saved, rel=0.01)
    shown = report.render(tmp_path / "run", "markdown").replace("\\", "")
    assert "joules of rapl:cpu/0" in shown and "fewer joules, in interleaved pairs" in shown
    assert "Joules per token" in shown
    for kind in report.FORMATS:
        report.render(tmp_path / "run", kind)


def test_a_counter_that_stops_fails_the_trial_and_says_so(
    powered: PoweredMachine, small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    def stop(done: float, total: float | None, text: str) -> None:
        powered.stopped = True

    with pytest.raises(EngineError, match=r"does not run here: the joules of cpu/0 are missing: .* not move"):
        tune(small, lines, space=SPACE, baseline=BASELINE, path=tmp_path / "run", progress=stop)
    trials = list(Run.open(tmp_path / "run").records("trial"))
    assert Candidate.from_json(trials[0]) == Candidate(BASELINE)
    assert {(t["state"], t["cost"]) for t in trials} == {("failed", None)}
