"""The search on a landscape whose answer is known: how close it comes, what it spends, what survives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from negawatt.engine import Settings
from negawatt.errors import RunError
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, Study
from negawatt.tuning.attempt import Look
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.trial import Trial

SPACE = Space(("llamacpp", "openvino", "transformers"), (1,), (1, 2), 512, {})
BASELINE = Candidate(Settings(engine="transformers", weight_format="fp32", max_context=512))


class Landscape(Study):
    """A double of the study whose trials look their cost up in a table instead of running an engine.

    The table has the shape that was measured on real machines: engines differ by factors, formats by
    tens of per cent, threads and speculation by some; every look-up is disturbed by 5 % noise.
    """

    def __init__(self, run: Run, seed: int, strategy: str = "default", space: Space = SPACE) -> None:
        super().__init__(
            run,
            space,
            Constraints(),
            None,
            BASELINE,
            [],
            [],
            0,
            seed,
            strategy,  # type: ignore[arg-type]
        )
        self.noise = np.random.default_rng(seed)
        self.table = {candidate: true_cost(candidate) for candidate in [*SPACE.grid(), BASELINE]}
        self.spent = 0.0

    def look(self, candidate: Candidate) -> Look | Trial:
        cost = self.table[candidate] * float(np.exp(0.05 * self.noise.normal()))
        self.spent += 16 * cost
        return Look(cost, cost, 0, 16 * cost)

    def try_candidate(
        self, candidate: Candidate, tick: Callable[[str], None], *, screen: bool = True
    ) -> Trial:
        cost = self.table[candidate] * float(np.exp(0.05 * self.noise.normal()))
        best = min((t.cost for t in self.trials if t.feasible and t.cost), default=np.inf)
        pruned = screen and cost > 1.3 * best
        self.spent += cost * (16 if pruned else 16 + 288)
        state = "pruned" if pruned else "complete"
        return Trial(len(self.trials), candidate, state, cost, figures={"screen_cost": cost})


def true_cost(candidate: Candidate) -> float:
    if candidate == BASELINE:
        return 80.0
    settings = candidate.settings
    formats = SPACE.formats(settings.engine)
    position = formats.index(settings.weight_format)
    rng = np.random.default_rng([len(settings.engine), position])
    cost = {"llamacpp": 12.0, "openvino": 20.0, "transformers": 80.0}[settings.engine] * rng.uniform(0.5, 1.2)
    cost *= 1.25 if settings.threads == 2 else 1.0
    cost *= 1.04 if settings.kv_cache != "default" else 1.0
    return float(cost * (0.9 if settings.speculation == "ngram" else 1.0))


def search(path: Path, seed: int, strategy: str = "default") -> Landscape:
    with Run.create("tune", path=path, reference_load_s=1.0) as run:
        study = Landscape(run, seed, strategy)
        study.search(lambda: 1.0, lambda text: None)
        return study


def test_comes_close_to_the_best_at_a_fraction_of_the_grid(tmp_path: Path) -> None:
    """Within 5 % (median of seeds), with at most a quarter of what trying everything fully would cost."""
    gaps, shares = [], []
    for seed in range(9):
        study = search(tmp_path / str(seed), seed)
        assert study.best is not None
        inside = {s: c for s, c in study.table.items() if s != BASELINE}
        gaps.append(study.table[study.best.candidate] / min(inside.values()) - 1)
        shares.append(study.spent / sum(304 * c for c in inside.values()))
    assert np.median(gaps) <= 0.05, gaps
    assert np.median(shares) <= 0.25, shares


def test_no_point_is_tried_twice_and_the_baseline_comes_first(tmp_path: Path) -> None:
    study = search(tmp_path / "run", 1)
    tried = [t.candidate for t in study.trials]
    assert tried[0] == BASELINE
    assert len(tried) == len(set(tried))


def test_an_interrupted_search_takes_its_trials_over(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with Run.create("tune", path=path, reference_load_s=1.0) as run:
        first = Landscape(run, 3)
        count = iter(range(6))
        with pytest.raises(KeyboardInterrupt):
            first.search(lambda: 1.0, lambda text: stop_after(count))
    records = path / "records.jsonl"
    records.write_bytes(records.read_bytes() + b'{"record":"trial","numb')  # torn by the kill
    with Run.open(path) as run:
        run.lock()
        second = Landscape(run, 3)
        second.search(lambda: 1.0, lambda text: None)
    assert [t.candidate for t in second.trials[: len(first.trials)]] == [t.candidate for t in first.trials]
    assert len(second.trials) > len(first.trials)
    settings = [t.candidate for t in second.trials]
    assert len(settings) == len(set(settings))


def stop_after(count: object) -> None:
    if next(count, None) is None:  # type: ignore[call-overload]
        raise KeyboardInterrupt


def test_two_searches_cannot_write_to_one_run(tmp_path: Path) -> None:
    with Run.create("tune", path=tmp_path / "run"):
        with pytest.raises(RunError, match="in use"):
            Run.open(tmp_path / "run").lock()


def test_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = Landscape(run, 0, "tpe", Space(("transformers",), (1,), (1,), 512, {}))
        study.search(lambda: 1.0, lambda text: None)
    assert {t.candidate for t in study.trials} == {BASELINE, *study.space.grid()}


@pytest.mark.parametrize("strategy", ["random", "gp", "reinforcement", "halving", "nsga3"])
def test_any_strategy_can_be_had_by_name(tmp_path: Path, strategy: str) -> None:
    study = search(tmp_path / "run", 2, strategy)
    assert study.best is not None
    assert study.table[study.best.candidate] < study.table[BASELINE]
    tried = [t.candidate for t in study.trials]
    assert len(tried) == len(set(tried))


def test_after_a_refutation_it_searches_on_without_its_like(tmp_path: Path) -> None:
    """What held-out items speak against is not the best any more, nor is anything of its arithmetic tried."""
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = Landscape(run, 0, "tpe")
        study.search(lambda: 1.0, lambda text: None)
        assert study.best is not None
        loser = study.best.candidate
        tried = len(study.trials)
        study.refute(loser, "it forgot too much", {})
        assert study.best is not None
        assert study.best.candidate.arithmetic != loser.arithmetic
        study.search(lambda: 1.0, lambda text: None)
        later = study.trials[tried:]
        assert later
        assert all(t.candidate.arithmetic != loser.arithmetic for t in later)
        best = study.best.candidate
    with Run.open(tmp_path / "run") as run:
        run.lock()
        resumed = Landscape(run, 0, "tpe")
        resumed._take_over()
        assert resumed.best is not None
        assert resumed.best.candidate == best


def test_an_engine_is_hopeless_beside_others_of_the_same_model_only(tmp_path: Path) -> None:
    """That a large model costs more in it than a small one elsewhere says nothing of the small one in it."""
    engines = Space(("llamacpp", "openvino", "transformers"), (1,), (1,), 512, {}, models=("", "small"))
    large = Candidate(Settings(engine="openvino", weight_format="int8", threads=1, max_context=512))
    small = Candidate(large.settings.replace(weight_format="f16"), model="small")
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = Landscape(run, 0, space=engines)
        elsewhere = Candidate(small.settings.replace(engine="llamacpp"), model="small")
        study.keep(Trial(0, BASELINE, "complete", 80.0, figures={"screen_cost": 80.0}))
        study.keep(Trial(1, large, "pruned", 40.0, figures={"screen_cost": 40.0}))
        study.keep(Trial(2, elsewhere, "complete", 5.0, figures={"screen_cost": 5.0}))
        assert study._reason_to_skip(small) is None
        study.keep(Trial(3, small, "pruned", 16.0, figures={"screen_cost": 16.0}))
        other = Candidate(small.settings.replace(weight_format="int8"), model="small")
        assert study._reason_to_skip(other) is not None
