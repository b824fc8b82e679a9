"""What a search spent is not forgotten when it is killed, nor what was spent in vain."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.errors import WorkerDied
from negawatt.meter import Meter
from negawatt.profiling.scores import Scores
from negawatt.run import Run
from negawatt.tuning import expense
from negawatt.tuning.bench import failed
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.expense import Expense
from negawatt.workload import Workload

PLAIN = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96)


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_a_sitting_spent_is_known_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.create("tune", path=tmp_path / "run") as run, Meter() as meter:
        first = Expense(run, lambda: 7.0)
        busy(0.05)
        first.keep(meter)
        first.keep(meter)
        assert len(list(run.records("spent"))) == 1, "not at every step"
        monkeypatch.setattr(expense, "SPENT_EVERY_S", 0.0)
        busy(0.05)
        first.keep(meter)
        kept = list(run.records("spent"))[-1]
        second = Expense(run, lambda: 9.0)
        assert second.earlier_cpu_s == kept["cpu_s"] >= 0.1, "the last of a sitting, not their sum"
        assert second.earlier_energy.to_json() == kept["energy"]
        assert second.earlier_s == 7.0
        second.keep(meter)
        both = kept["cpu_s"] + list(run.records("spent"))[-1]["cpu_s"]
        assert Expense(run, lambda: 9.0).earlier_cpu_s == pytest.approx(both)


@pytest.mark.usefixtures("in_home_with_engines")
def test_a_worker_that_dies_is_charged(small: Artifact, lines: Workload) -> None:
    engine = Engine(small, PLAIN)
    with engine:
        engine.kill()
        with pytest.raises(WorkerDied) as died:
            engine.score([([1, 2], [3])])
    trial = failed(Candidate(PLAIN), died.value, 1.0, engine)
    assert trial.figures["cpu_s_spent"] > 0.05, "it had loaded its library and the model"
    with Scores(small, lines, PLAIN) as scores:
        assert scores.spent_cpu_s == 0
        scores.quality(PLAIN, lines.quality[:2])
        open_s = scores.spent_cpu_s
    assert 0 < open_s <= scores.spent_cpu_s + 1e-9
