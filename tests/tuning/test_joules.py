"""Searches that go by joules of counters: what they count, keep apart, and refuse to make up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from negawatt import report
from negawatt.artifact import Artifact
from negawatt.cli.tune import command as tune_command
from negawatt.energy import Energy
from negawatt.engine import Request, Settings
from negawatt.errors import EngineError, RunError, UsageError
from negawatt.limits.cpu import POWERCAP
from negawatt.limits.journal import Journal
from negawatt.limits.ladder import against
from negawatt.limits.limits import Limits
from negawatt.limits.system import System
from negawatt.meter import Measurement, Station
from negawatt.meter.nvml import NvmlSensor
from negawatt.meter.rapl import RaplSensor
from negawatt.profiling.scores import Scores
from negawatt.profiling.window import Window
from negawatt.run import Run
from negawatt.testing.nvml import NvmlDouble
from negawatt.testing.powercap import PowercapTree
from negawatt.testing.powered import PoweredMachine
from negawatt.tuning import Constraints, Space, attempt, finals, tune
from negawatt.tuning.bench import Bench
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.limited import all_limits, limits_json, with_limits
from negawatt.tuning.memory import Memory
from negawatt.tuning.observed import Observed
from negawatt.tuning.question import Question, cost_of, open_run
from negawatt.tuning.space_file import read_space
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.trial import Trial
from negawatt.tuning.watch import Watch
from negawatt.tuning.workshop import Workshop
from negawatt.workload import Workload
from negawatt.workload.writer import write_workload

BASELINE = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96)
SPACE = Space(
    ("llamacpp",), (1,), (1,), 96, {"llamacpp": ("q8_0",)}, kv_caches={"llamacpp": ("default",)},
    speculation=("none",),
)  # fmt: skip
UNCHANGED = replace(SPACE, weight_formats={"llamacpp": ("f16",)})
JOULES = Cost("J", ("rapl:cpu/0",))
BUSY_W, CAPPED_W = 20.0, 4.0

pytestmark = pytest.mark.usefixtures("in_home_with_engines")


@pytest.fixture
def powered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PoweredMachine]:
    """A machine of files in the place of this one's counters; noise cannot hide what its cap saves."""
    with PoweredMachine(tmp_path / "root", busy_w=BUSY_W, capped_w=CAPPED_W) as machine:
        where = Station([RaplSensor(machine.root / POWERCAP)])
        monkeypatch.setattr(import_module("negawatt.meter.station"), "_shared", where)
        for module in ("hold", "turn", "limits", "ladder"):
            monkeypatch.setattr(f"negawatt.limits.{module}.System", lambda: System(machine.root))
        before = machine.limit.read_text()
        yield machine
        where.close()
        assert machine.limit.read_text() == before
        assert not Journal().place.exists()


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


def test_a_search_by_joules_finds_proves_and_keeps_a_power_cap(
    powered: PoweredMachine,
    small: Artifact,
    lines: Workload,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, between, answer = [], set(), Scores._answer

    def answered(scores: Scores, settings: Settings, items: Any) -> Any:
        asked.extend((settings, item.id) for item in items)
        return answer(scores, settings, items)

    def look(done: float, total: float | None, text: str) -> None:
        between.add(powered.limit.read_text())

    monkeypatch.setattr(Scores, "_answer", answered)
    monkeypatch.setattr(finals, "FINAL_ROUNDS", 3)
    monkeypatch.setattr(finals, "ABLATION_ROUNDS", 1)
    space = replace(UNCHANGED, limits={"power_caps_w": (0, 64)})
    found = tune(
        small, lines, space=space, baseline=BASELINE, time_budget_s=240,
        constraints=Constraints(max_quality_drop=0.9), path=tmp_path / "run", progress=look,
    )  # fmt: skip
    assert found["search"]["cost"] == {
        "unit": "J", "counters": ["rapl:cpu/0"], "text": "goes by joules of rapl:cpu/0"
    }  # fmt: skip
    run, best = Run.open(tmp_path / "run"), found["best"]
    assert Cost.from_json(run.manifest["cost"]) == JOULES
    assert found["verdict"]["accepted"], found["verdict"]
    assert best["settings"]["power_cap_w"] == 64
    assert best["engine"]["limits"][0].startswith("cpu/0 at most 64 W on average over 0.05 s")
    assert between == {"100000000\n"}, "the cap is let go of whenever its candidate does not run"
    assert powered.capped_j > 0
    kept = Settings.from_json(json.loads((tmp_path / "run/artifact/settings.json").read_text()))
    assert kept.limits == Limits(64)

    for document, watts in ((found["baseline"], BUSY_W), (best, CAPPED_W)):
        assert document["joules_per_token"] == pytest.approx(watts * document["cpu_s_per_token"], rel=0.25)
        assert document["energy_per_token"]["provenance"] == "derived"
    trials = [r for r in run.records("trial") if r["stage"] == "search"]
    assert [r["settings"]["power_cap_w"] for r in trials] == [None, 64]
    assert all(r["cost"] == r["joules_per_token"] for r in trials)
    assert trials[1]["quality_drop"]["n"] and best["quality_drop"]["n"]
    assert len({item for _, item in asked}) == len(asked), "no question is put twice, limits or not"

    rows = found["waterfall"]
    assert [row["lever"] for row in rows] == [None, "power cap"]
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert rows[0]["joules_per_token"] > rows[-1]["joules_per_token"]
    saved = found["baseline"]["joules_per_token"] - best["joules_per_token"]
    spent_j = found["search"]["energy"]["value_j"]
    assert found["search"]["payback_tokens"] == pytest.approx(spent_j / saved, rel=0.01)
    shown = report.render(tmp_path / "run", "markdown").replace("\\", "")
    assert "joules of rapl:cpu/0" in shown and "fewer joules, in interleaved pairs" in shown
    assert "Joules per token" in shown and "at most 64 W" in shown
    assert "Joules per token after each step" in report.render(tmp_path / "run", "html")
    assert ["reference_s" in r for r in trials] == [True, False], "a slowed load tells no drift"
    watches_in_joules(small, lines, tmp_path, monkeypatch)


def watches_in_joules(
    small: Artifact, lines: Workload, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch weighs joules against joules, of the finished search in `folder`."""
    asked = Observed("here", lengths=((60, 10),) * 30, tokens_per_day=1000.0)
    with Run.create("watch", path=folder / "watch") as run:
        watch = Watch(run, small, lines, folder / "run", horizon_days=1.0)
        assert watch.cost == JOULES
        costs = {candidate: [8.0 - n] * 3 for n, candidate in enumerate(watch.choice.starts)}
        monkeypatch.setattr(watch, "_costs", lambda observed, candidates: costs)
        finding = watch.check(asked)
    assert finding.gain_j is not None and finding.ratio is not None and finding.gain_cpu_s == 0
    cheapest = 8.0 - (len(costs) - 1)
    assert finding.gain_j == pytest.approx((8.0 / cheapest - 1) * cheapest * 1000.0)
    assert "joules in 1 days, and a search takes some" in finding.text
    assert finding.due == (finding.gain_j > float(finding.text.rpartition(" ")[2].replace(",", "")))


def window(energy: Energy, wall_s: float = 1.0, outputs: int = 10) -> Window:
    counted = measurement({"cpu/0": energy})
    return Window((1,), (outputs,), (), (), 2.0, wall_s, 0.02, counted)


def test_of_windows_in_turn_a_round_without_joules_is_left_out_for_all(tmp_path: Path) -> None:
    first, second, lost = Candidate(BASELINE), *(Candidate(BASELINE.replace(threads=n)) for n in (2, 3))
    good, gone = window(Energy.measured(5.0)), window(Energy.missing("the driver was reset"))
    with Run.create("tune", path=tmp_path / "run") as run:
        plain: Any = SimpleNamespace(per_token=lambda candidate: 2.0)
        measured = finals.Finals(run, plain, plain, lambda text: None, JOULES)
        found = measured._counted(
            {first: [good, good, good], second: [good, gone, good], lost: [gone, gone, gone]}
        )
        assert found == {first: [good, good], second: [good, good]}
        assert measured._cost(first, found[first]) == pytest.approx(2 * 5.0 / 10)
        notes = [record["text"] for record in run.records("note")]
    assert [text.partition(": ")[0] for text in notes] == [
        "Dropped among the finalists",
        "Round 2 measured in turn is left out",
    ]
    assert all("the driver was reset" in text for text in notes)


def test_windows_last_as_long_as_counters_need(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def measure(engine: Any, jobs: Any) -> Window:
        taken.append(len(jobs))
        return window(Energy.measured(5.0), wall_s=0.05 * len(jobs))

    monkeypatch.setattr(attempt, "measure", measure)
    engine: Any = None
    assert attempt.take(engine, [Request([1], 4)], JOULES).wall_s >= attempt.LEAST_S
    assert taken == [1, 8]
    attempt.take(engine, [Request([1], 4)], CPU_SECONDS)
    assert taken == [1, 8, 1], "CPU seconds need no counter"


def test_without_counters_nothing_is_limited_and_cpu_seconds_count(
    powered: PoweredMachine,
    small: Artifact,
    lines: Workload,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_module("negawatt.meter.station"), "_shared", Station([]))
    found = tune(
        small, lines, space=SPACE, baseline=BASELINE, time_budget_s=3600, energy_budget_j=0.01,
        path=tmp_path / "run",
    )  # fmt: skip
    assert found["search"]["cost"] == {"unit": "cpu_s", "counters": [], "text": "goes by CPU seconds"}
    records = list(Run.open(tmp_path / "run").records("trial"))
    for document in (found["baseline"], found["best"], *records):
        assert document["cpu_s_per_token"] > 0 and "joules_per_token" not in document
        assert document["settings"]["power_cap_w"] is None
    assert powered.capped_j == 0
    assert "fewer CPU-seconds" in report.render(tmp_path / "run", "markdown") or not found["verdict"]["ratio"]


def test_limits_are_asked_for_by_name_only_where_they_can_be_told_apart(
    powered: PoweredMachine, small: Artifact, lines: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for caps, reason in (((0, 64), ""), ((3,), "3 W are too few"), ((0, 200), "would lower nothing")):
        capped = replace(SPACE, limits={"power_caps_w": caps})
        if reason:
            with pytest.raises(UsageError, match=rf"power_caps_w: .* cannot be tried here: .*{reason}"):
                with_limits(capped, JOULES)
        else:
            assert with_limits(capped, JOULES).limits["power_caps_w"] == caps
    with pytest.raises(UsageError, match="clocks_mhz: 2000 MHz cannot be tried here: no clock can be set"):
        with_limits(replace(SPACE, limits={"clocks_mhz": (0, 2000)}), JOULES)
    usual = with_limits(SPACE, JOULES)
    assert {n: v for n, v in usual.limits.items() if v != (0,)} == {"power_caps_w": (0, 82, 64)}
    assert len(list(usual.grid())) == 3 * len(list(SPACE.grid()))
    again = with_limits(SPACE, JOULES, limits_json(usual))
    assert again == usual, "a search that is taken up again tries the same"
    assert list(with_limits(SPACE, CPU_SECONDS).grid()) == list(SPACE.grid())
    for candidate in usual.grid():
        chosen = usual.parameters(candidate)
        assert usual.pick(lambda name, _, chosen=chosen: chosen[name]) == candidate  # type: ignore[misc]

    monkeypatch.setattr(import_module("negawatt.meter.station"), "_shared", Station([]))
    file = tmp_path / "space.toml"
    file.write_text('schema = 1\nengines = ["llamacpp"]\npower_caps_w = ["none", 64]\n')
    command = [
        str(small.path),
        "--space",
        str(file),
        "--workload",
        str(write_workload(lines, tmp_path / "w")),
    ]
    done = CliRunner().invoke(
        tune_command, [*command, "--baseline", "llamacpp:f16:1", "-o", str(tmp_path / "o")]
    )
    assert isinstance(done.exception, UsageError) and done.exception.exit_code == 2
    assert "power_caps_w are tried where a search goes by joules" in str(done.exception)
    assert not (tmp_path / "o").exists()


def test_what_has_layers_on_a_gpu_is_held_to_the_limits_of_that(
    powered: PoweredMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = NvmlDouble(gpus=1)
    monkeypatch.setattr("negawatt.limits.ladder.System", lambda: System(powered.root, nvml))
    monkeypatch.setattr("negawatt.limits.gpu.os.geteuid", lambda: 0)
    space = replace(SPACE, gpu_layers={"llamacpp": (0, 6)})
    usual = with_limits(space, JOULES)
    assert usual.limits == {
        "power_caps_w": (0, 82, 64), "clocks_mhz": (0,), "gpu_power_caps_w": (0, 340, 280),
        "gpu_clocks_mhz": (0, 1700, 1300),
    }  # fmt: skip
    held: dict[int, list[Limits]] = {0: [], 6: []}
    for candidate in usual.grid():
        held[candidate.settings.gpu_layers or 0].append(candidate.settings.limits)
        chosen = usual.parameters(candidate)
        assert usual.pick(lambda name, _, chosen=chosen: chosen[name]) == candidate  # type: ignore[misc]
    assert [str(each) for each in held[0]] == ["no limits", "at most 82 W", "at most 64 W"]
    assert {each.device for each in held[6]} == {"vulkan"}
    assert [(each.power_cap_w, each.clock_mhz) for each in held[6]] == [
        (None, None), (None, 1700), (None, 1300), (340, None), (280, None)
    ]  # fmt: skip
    assert all(not against(each, System(powered.root, nvml)) for each in all_limits(usual))
    with pytest.raises(UsageError, match="gpu_power_caps_w are for candidates with layers on a GPU"):
        with_limits(replace(SPACE, limits={"gpu_power_caps_w": (0, 300)}), JOULES)


def test_a_clock_is_tried_only_without_a_cap(tmp_path: Path) -> None:
    file = tmp_path / "space.toml"
    file.write_text('schema = 1\npower_caps_w = [60, "none", 80.5]\nclocks_mhz = [2000, "none"]\n')
    space = read_space(file, SPACE)
    assert space.limits == {"power_caps_w": (0, 80.5, 60), "clocks_mhz": (0, 2000)}
    held = [str(c.settings.limits) for c in space.grid()]
    assert held == ["no limits", "at most 2000 MHz", "at most 80.5 W", "at most 60 W"]
    for line in ("power_caps_w = []", "power_caps_w = [0]", "clocks_mhz = [20.5]", 'clocks_mhz = ["all"]'):
        file.write_text(f"schema = 1\n{line}\n")
        with pytest.raises(UsageError, match="must be a list of"):
            read_space(file, SPACE)


def test_a_search_goes_on_by_what_it_has_counted_so_far(
    small: Artifact, lines: Workload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question(small.sha256, lines.hash, Candidate(BASELINE), Constraints(), SPACE, 0)
    for name, cost in (("seconds", CPU_SECONDS), ("joules", JOULES)):
        open_run(tmp_path / name, question, small, lines, [], cost=cost).close()
        assert cost_of(tmp_path / name, CPU_SECONDS) == cost_of(tmp_path / name, JOULES) == cost
    Run.create("tune", path=tmp_path / "older").close()
    assert cost_of(tmp_path / "older", JOULES) == CPU_SECONDS
    assert cost_of(tmp_path / "new", JOULES) == JOULES
    monkeypatch.setattr(import_module("negawatt.meter.station"), "_shared", Station([]))
    with pytest.raises(RunError, match="goes by joules of rapl:cpu/0, and rapl:cpu/0 cannot be read here"):
        tune(small, lines, space=SPACE, baseline=BASELINE, path=tmp_path / "joules")


def test_what_runs_with_limits_today_is_started_from_where_joules_are_counted() -> None:
    capped = Candidate(BASELINE.replace(power_cap_w=60))
    plain = Candidate(BASELINE)
    seen = Observed("run", capped, (capped, plain)).within(96, JOULES)
    assert seen.starts == (capped, plain)
    assert Observed("run", plain, (plain, capped)).within(96).starts == (plain,)


def test_a_counter_that_stops_fails_the_trial_and_says_so(
    powered: PoweredMachine, small: Artifact, lines: Workload
) -> None:
    powered.stopped = True
    workshop = Workshop(small)
    judge: Any = SimpleNamespace(workshop=workshop, baseline=Candidate(BASELINE))
    traffic = Traffic(workshop, lines.traffic[:4], 96)
    bench = Bench(judge, traffic, [], 0, None, 0.02, JOULES)
    trial = bench.measure(Candidate(BASELINE.replace(power_cap_w=64)))
    assert (trial.state, trial.cost) == ("failed", None)
    assert "the joules of cpu/0 are missing: the counter did not move for" in trial.reason
