"""Limits where engines run: a profile under a cap, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from limited_machine import kept, machine

from negawatt.artifact import Artifact
from negawatt.cli.doctor import command as doctor
from negawatt.cli.profile import command as profile_command
from negawatt.engine import Engine, Settings
from negawatt.errors import EngineError, UsageError
from negawatt.limits.journal import Change, Entry, Journal
from negawatt.limits.limits import Limits
from negawatt.limits.system import System
from negawatt.profiling import profile
from negawatt.serve.config import ModelConfig, ServerConfig
from negawatt.serve.launch import server_of
from negawatt.testing.small_models import small_model
from negawatt.testing.small_workload import small_search
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.observed import Observed
from negawatt.tuning.question import Question
from negawatt.tuning.space import Space
from negawatt.tuning.verdict import Constraints
from negawatt.workload import Workload

SETTINGS = Settings("transformers", weight_format="fp32", threads=1, max_context=96)
CAPPED = SETTINGS.replace(power_cap_w=60, clock_mhz=2000)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("encoder") / "bert", "bert"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_search(tmp_path_factory.mktemp("words"))


@pytest.fixture
def root(tmp_path: Path, fresh_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine of files in the place of this one; all of it has to be as it was in the end."""
    root = machine(tmp_path / "root")
    for module in ("hold", "turn", "limits"):
        monkeypatch.setattr(f"negawatt.limits.{module}.System", lambda: System(root))
    before = kept(root)
    yield root
    assert kept(root) == before
    assert not Journal().place.exists()


def test_a_profile_runs_under_its_limits_and_says_what_estimates_do_not_know(
    root: Path, encoder: Artifact, words: Path
) -> None:
    before, seen = kept(root), []

    def look(done: float, total: float | None, text: str) -> None:
        seen.append({name: text for name, text in kept(root).items() if text != before[name]})
        if done == 1:
            with pytest.raises(EngineError, match="another engine of this process runs with at most 60 W"):
                Engine(encoder, SETTINGS).open()

    workload = Workload.open(words)
    document = profile(encoder, workload, CAPPED, rounds=2, quality_items=0, progress=look).to_json()
    assert seen[0] == {} and sorted(seen[1].values()) == ["2000000\n", "60000000\n", "60000000\n"]
    assert document["settings"]["power_cap_w"] == 60
    assert document["engine"]["limits"][0].startswith("cpu/0 at most 60 W on average over 28 s")
    assert any("holds on average over 28 s" in warning for warning in document["warnings"])
    told = [w for w in document["warnings"] if "know nothing of at most 60 W and at most 2000 MHz" in w]
    assert len(told) == (document["energy_per_token"]["provenance"] == "estimated")


def test_an_engine_that_cannot_load_leaves_nothing_lowered(root: Path, encoder: Artifact) -> None:
    with pytest.raises(EngineError, match="cores"):  # in the worker, when the limits are in force
        Engine(encoder, CAPPED.replace(cores="compact", threads=4096)).open()


def test_limits_are_not_for_measuring_in_turn(root: Path, encoder: Artifact, words: Path) -> None:
    asked = ["--workload", str(words), "--power-cap", "60", "--against", "transformers:fp32"]
    done = CliRunner().invoke(profile_command, [str(encoder.path), *asked])
    assert isinstance(done.exception, UsageError)
    assert "nothing can be measured in turn with it" in str(done.exception)


def test_a_profile_is_refused_before_anything_is_loaded(
    root: Path, encoder: Artifact, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option, reason in (("--clock=5000", "would lower nothing"), ("--power-cap=1", "1 W are too few")):
        done = CliRunner().invoke(profile_command, [str(encoder.path), "--workload", str(words), option])
        assert isinstance(done.exception, EngineError) and reason in str(done.exception)
    done = CliRunner().invoke(profile_command, [str(encoder.path), "--power-cap=-1"])
    assert isinstance(done.exception, UsageError) and "above 0" in str(done.exception)


def test_doctor_puts_back_what_a_dead_process_left(root: Path) -> None:
    place = "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"
    Journal().write(Entry(Entry.of_this_process([]).boot, 2**22, 1, (Change(place, 4_800_000, 2_000_000),)))
    (root / place).write_text("2000000\n")
    document = json.loads(CliRunner().invoke(doctor, ["--json"]).stdout)
    assert document["notes"] == [
        f"process {2**22} ended without putting back what it had lowered; that is done now: {place}"
    ]
    assert {row["name"]: row["status"] for row in document["limits"]}["cpu clock"] == "ok"


def test_doctor_tells_of_a_journal_that_it_cannot_read(root: Path) -> None:
    Journal().place.parent.mkdir(parents=True)
    Journal().place.write_text("{")
    done = CliRunner().invoke(doctor, [])
    assert done.exit_code == 0 and "look at them by hand and remove it" in done.stderr
    Journal().remove()


# -- serving and searching ---------------------------------------------------------------------------


def test_a_served_model_has_the_limits_it_was_kept_with_unless_told_otherwise() -> None:
    tuned = CAPPED.to_json()
    assert ModelConfig("x").options(tuned).settings.limits == Limits(60, 2000)
    asked = ModelConfig("x", power_cap_w=80.0, clock_mhz=0).options(tuned).settings
    assert asked.limits == Limits(80)


def test_a_server_holds_one_limit_for_all(encoder: Artifact, fresh_home: Path) -> None:
    place = str(encoder.path)
    one = ModelConfig(place, name="one", power_cap_w=60.0)
    for models, more, reason in (
        ((one, ModelConfig(place, name="two")), {}, "one with at most 60 W, two with no limits"),
        ((one,), {"ray": "auto"}, "serve without --ray"),
        ((one,), {"handover": "/tmp/x"}, "serve without --handover"),
    ):
        with pytest.raises(UsageError, match=reason):
            server_of(ServerConfig(models, **more))  # type: ignore[arg-type]
    server_of(ServerConfig((one, ModelConfig(place, name="two", power_cap_w=60.0))))


def test_a_search_does_not_start_from_limits() -> None:
    seen = Observed("run", Candidate(CAPPED), (Candidate(CAPPED),))
    with pytest.raises(UsageError, match=r"run runs with at most 60 W.*profile --power-cap"):
        seen.within(96)
    space = Space.default(only=["transformers"])
    with pytest.raises(UsageError, match="the baseline runs with at most 60 W"):
        Question("model", "workload", Candidate(CAPPED), Constraints(), space, 0)


def test_settings_with_limits_are_written_and_read() -> None:
    assert Settings.from_json(json.loads(json.dumps(CAPPED.to_json()))) == CAPPED
    assert str(CAPPED).endswith("at most 60 W and at most 2000 MHz")
    assert CAPPED.arithmetic == SETTINGS.arithmetic
    for wrong in ({"power_cap_w": 0}, {"clock_mhz": -5}, {"power_cap_w": float("nan")}):
        with pytest.raises(UsageError, match="must be above 0"):
            SETTINGS.replace(**wrong)
