"""What a search starts from: an earlier run's choice, or a server's receipts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.errors import RunError, UsageError
from negawatt.profiling.quality import prompt_tokens
from negawatt.run import Run
from negawatt.testing.small_models import TEXT, small_model
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.observed import Observed, batch_for, present_text
from negawatt.tuning.trial import Trial
from negawatt.workload import TrafficItem, Workload

COLUMNS = "id,outcome,created_s,duration_s,input_tokens,output_tokens"
GOOD = Candidate(Settings(engine="llamacpp", weight_format="q8_0", threads=1))
OTHER = Candidate(Settings(engine="llamacpp", weight_format="q4_0", threads=1), ("vocabulary",))
BEFORE = Settings(engine="transformers", weight_format="fp32")


def receipts(folder: Path, rows: list[str]) -> Path:
    file = folder / "receipts.csv"
    file.write_text("\n".join([COLUMNS, *rows]) + "\n", "utf-8")
    return file


def test_receipts_tell_lengths_and_how_many_run_at_a_time(tmp_path: Path) -> None:
    rows = [
        "a,completed,1000,100,30,60",
        "b,completed,1050,50,20,10",  # all of it beside the first
        "c,aborted,1060,9000,999,1",
        "d,completed,8200,100,10,30",
        "e,idle,8300,0,0,0",
    ]
    found = Observed.read(receipts(tmp_path, rows))
    assert sorted(found.lengths) == [(10, 30), (20, 10), (30, 60)]
    assert found.in_flight == pytest.approx((100 + 50 + 100) / 200)
    assert found.tokens_per_day == pytest.approx(100 / ((8300 - 1000) / 86_400))
    assert batch_for(found.in_flight, (1, 4, 8)) == 1
    assert batch_for(7.9, (1, 4, 8)) == 4
    assert batch_for(None, (1, 4)) == 1


def test_a_few_minutes_tell_no_tokens_per_day(tmp_path: Path) -> None:
    assert Observed.read(receipts(tmp_path, ["a,completed,1000,100,30,60"])).tokens_per_day is None


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no completed request"),
        (["a,completed,1000,100,many,60"], "no receipts"),
        (["x"], "no completed"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, rows: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Observed.read(receipts(tmp_path, rows))


def test_traffic_takes_the_lengths_that_were_seen(tmp_path: Path) -> None:
    tokenizer = Artifact.open(str(small_model(tmp_path / "model"))).tokenizer
    texts = [TEXT[:n] for n in (20, 60, 120, 240, 300)]
    traffic = tuple(TrafficItem(f"t{n}", text, 8) for n, text in enumerate(texts))
    workload = Workload("w", "", "", "", traffic, (), {})
    longest = len(prompt_tokens(tokenizer, texts[-1]))
    seen = Observed("here", lengths=tuple((longest, 40 + k) for k in range(50)))
    shaped, note = seen.shaped(workload, tokenizer)
    assert {str(item.prompt) for item in shaped.traffic} == {texts[-1]}
    assert {40 <= item.max_new_tokens < 90 for item in shaped.traffic} == {True}
    assert len({item.id for item in shaped.traffic}) == len(shaped.traffic)
    assert note == ""
    far, note = Observed("here", lengths=((10 * longest, 5),)).shaped(workload, tokenizer)
    assert "10.0 times" in note
    assert {item.max_new_tokens for item in far.traffic} == {5}


def search(path: Path, **result: object) -> Path:
    with Run.create("tune", path=path, baseline=BEFORE.to_json(), artifact={"sha256": "s"}) as run:
        for number, (candidate, cost) in enumerate([(Candidate(BEFORE), 9.0), (OTHER, 2.0), (GOOD, 3.0)]):
            run.append("trial", Trial(number, candidate, "complete", cost).to_record("search"))
        if result:
            run.finish(result)
    return path


def test_a_finished_search_gives_its_choice_and_its_best(tmp_path: Path) -> None:
    found = Observed.read(search(tmp_path / "run", best=GOOD.to_json()))
    assert found.present == GOOD
    assert found.starts[:2] == (GOOD, OTHER)
    assert found.baseline == BEFORE
    assert found.model_sha256 == "s"
    assert {each.settings.max_context for each in found.within(77).starts} == {77}


def test_an_unfinished_a_foreign_and_a_newer_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unfinished"):
        Observed.read(search(tmp_path / "unfinished"))
    with Run.create("measure", path=tmp_path / "measure") as run:
        run.finish({})
    with pytest.raises(UsageError, match="measure run"):
        Observed.read(tmp_path / "measure")
    newer = search(tmp_path / "newer", best=GOOD.to_json())
    manifest = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps({**manifest, "schema": 99}))
    with pytest.raises(RunError, match="newer Negawatt"):
        Observed.read(newer)
    with pytest.raises(UsageError, match="does not say"):
        Observed.read(search(tmp_path / "odd", best={"settings": {"engine": 3, "steam": 1}}))


@given(st.floats(0.5, 3.0), st.floats(0.01, 0.5))
def test_the_sentence_calls_a_choice_outdated_only_where_that_is_shown(value: float, width: float) -> None:
    ratio = {"value": value, "low": value - width, "high": value + width}
    text = present_text(GOOD, OTHER, ratio)
    assert ("no longer the best" in text) == (value - width > 1)
    assert "still the best" in present_text(GOOD, GOOD, None)
