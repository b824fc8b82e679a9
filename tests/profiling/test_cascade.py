"""A cascade answers as its parts do, charges both, and its threshold is chosen by what both answered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.errors import EngineError, UsageError
from negawatt.profiling.cascade import Cascade, answers_of, engines_of, write_cascade
from negawatt.profiling.quality import answered
from negawatt.profiling.threshold import Tried, cheapest, thresholds
from negawatt.profiling.window import measure, warm_up
from negawatt.testing.small_models import small_model
from negawatt.testing.small_workload import small_workload
from negawatt.workload import ChooseItem, Generated, PerplexityItem, QualityItem, Scored, Workload, margin

SETTINGS = Settings(engine="transformers", weight_format="fp32", threads=1, batch=8, max_context=64)
METRICS = {"classify": "accuracy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small and a large classifier, as `write_cascade` wants them."""
    place = tmp_path_factory.mktemp("cascade")
    small_model(place / "small", "bert", seed=1, labels=("warm", "cold"), num_hidden_layers=1)
    small_model(place / "large", "bert", seed=2, labels=("warm", "cold"))
    write_cascade(place, 0.5, METRICS, [SETTINGS, SETTINGS], [None, None])
    return place


@pytest.fixture(scope="module")
def cascade(folder: Path) -> Iterator[Cascade]:
    with Cascade.read(folder) as opened:
        yield opened


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> tuple[QualityItem, ...]:
    return Workload.open(small_workload(tmp_path_factory.mktemp("texts"), 40)).quality


def scored(runner: Engine | Cascade, items: tuple[QualityItem, ...]) -> list[tuple[float, ...]]:
    return [r.log_probs for r in answers_of(runner, items).responses if isinstance(r, Scored)]


def test_what_is_sure_stands_and_the_rest_is_the_large_models(
    cascade: Cascade, items: tuple[QualityItem, ...]
) -> None:
    small, large, both = (scored(each, items) for each in (cascade.small, cascade.large, cascade))
    leads = [abs(a - b) for a, b in small]
    assert 0 < sum(lead < 0.5 for lead in leads) < len(items), "the threshold divides nothing"
    for lead, first, second, found in zip(leads, small, large, both, strict=True):
        assert found == pytest.approx(first if lead >= 0.5 else second, abs=1e-4)


def test_failed_attempts_are_charged(cascade: Cascade, items: tuple[QualityItem, ...]) -> None:
    found, alone = answers_of(cascade, items), answered(cascade.small, items)
    passed = [n for n, (a, b) in enumerate(scored(cascade.small, items)) if abs(a - b) < 0.5]
    assert sum(step.sequences for step in found.steps) == len(items) + len(passed)
    assert sum(found.fed) == sum(alone.fed) + sum(alone.fed[n] for n in passed)  # one tokenizer for both
    assert all(found.fed[n] == 2 * alone.fed[n] for n in passed)
    assert sum(step.cpu_s for step in found.steps) <= found.cpu_s * 1.001
    assert len(found.waits_s) == len(items)
    assert min(found.waits_s[n] for n in passed) > 0


def test_both_processes_are_measured_as_one(cascade: Cascade, items: tuple[QualityItem, ...]) -> None:
    warm_up(cascade, items[0])
    window = measure(cascade, items)
    assert window.unit == "answer"
    assert window.outputs == (1,) * len(items)
    assert window.measurement.cpu_s == pytest.approx(window.cpu_s, rel=0.3, abs=0.05)
    assert len(engines_of(cascade)) == 2


def test_a_text_has_no_margin() -> None:
    item = PerplexityItem("long", "Once upon a time.")
    assert margin("perplexity", item, Scored((-3.0,), (4,))) is None
    choice = ChooseItem("one", "Tea is", ("hot", "a drink"), 1)
    assert margin("accuracy", choice, Generated("hot")) is None
    assert margin("accuracy", choice, Scored((-3.0, -2.0), (1, 2))) == pytest.approx(1.0)
    assert margin("accuracy_norm", choice, Scored((-3.0, -7.0), (1, 2))) == pytest.approx(0.0)


def test_what_is_no_choice_is_refused(cascade: Cascade) -> None:
    item = PerplexityItem("long", "Once upon a time.")
    with pytest.raises(EngineError, match="no margin"):
        Cascade(cascade.small, cascade.large, 0.5, {"perplexity": "perplexity"}).stands(
            item, Scored((-3.0,), (4,))
        )


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ('artifact = "small"', 'artifact = "../elsewhere"'),
        ("schema = 1", "schema = 9"),
        ("[small]", "[tiny]"),
    ],
)
def test_a_damaged_file_says_so(folder: Path, tmp_path: Path, wrong: str, sentence: str) -> None:
    text = (folder / "cascade.toml").read_text("utf-8")
    (tmp_path / "cascade.toml").write_text(text.replace(wrong, sentence), "utf-8")
    with pytest.raises(UsageError, match="is no cascade"):
        Cascade.read(tmp_path)


def test_settings_and_threshold_survive_the_file(folder: Path) -> None:
    found = Cascade.read(folder)
    assert found.threshold == 0.5
    assert [engine.settings for engine in found.engines] == [SETTINGS, SETTINGS]
    assert [engine.artifact.sha256 for engine in found.engines] == [
        Artifact.open(folder / part).sha256 for part in ("small", "large")
    ]


TRIED = st.lists(
    st.builds(Tried, st.floats(0, 10), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])),
    min_size=1, max_size=60,
)  # fmt: skip


@given(TRIED, st.floats(0.01, 1), st.floats(0.01, 10))
def test_every_threshold_keeps_the_books(tried: list[Tried], small: float, large: float) -> None:
    found = thresholds(tried, small, large, 500, 0.95)
    assert found[0].passed == 0.0
    assert found[-1].passed == 1.0
    assert found[-1].margin == math.inf
    assert found[-1].drop == 0.0
    for each in found:
        kept = [t for t in tried if t.margin >= each.margin]
        assert each.passed == pytest.approx(1 - len(kept) / len(tried))
        assert each.drop == pytest.approx(sum(t.large - t.small for t in kept) / len(tried))
        assert each.cost == pytest.approx(small + each.passed * large)
        assert each.bound > each.drop


@given(TRIED, st.floats(0, 0.2))
def test_the_cheapest_keeps_the_limit(tried: list[Tried], limit: float) -> None:
    found = thresholds(tried, 1.0, 10.0, 500, 0.95)
    best = cheapest(found, limit)
    good = [each for each in found if each.bound <= limit]
    assert (best is None) == (not good)
    if best is not None:
        assert best.bound <= limit
        assert best.passed == min(each.passed for each in good)


def test_few_questions_are_not_trusted() -> None:
    """Fifty answers without an error do not show that a drop of a point is kept."""
    tried = [Tried(float(n), 1.0, 1.0) for n in range(50)]
    assert thresholds(tried, 1.0, 10.0, 1000, 0.95)[0].bound > 0.02
