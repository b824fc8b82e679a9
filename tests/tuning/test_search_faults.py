"""What goes wrong in a search: each fault ends in one sentence, and the search where it can goes on."""

from __future__ import annotations

import dataclasses
import json
import resource
from contextlib import nullcontext
from pathlib import Path

import pytest
from crashing import Crashing

from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.errors import EngineError, RunError, UsageError
from negawatt.profiling.quality import Quality
from negawatt.run import Run
from negawatt.tuning import Constraints, Space
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.pass_range import PassRange
from negawatt.tuning.question import Question, open_run
from negawatt.tuning.shortfall import says_nothing, why_nothing
from negawatt.tuning.space_file import read_space
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.trial import QUALITY, Trial
from negawatt.tuning.workshop import Workshop
from negawatt.workload import Workload

SPACE = Space(("llamacpp", "openvino"), (1,), (1, 2), 512, {})
BASELINE = Candidate(Settings(engine="transformers", weight_format="fp32", max_context=512))


def _crashing(run: Run, engine: str) -> Crashing:
    """One engine's process dies at every look."""
    return Crashing(
        run, SPACE, BASELINE, lambda c: c.settings.engine == engine, "died of SIGILL (Illegal instruction)"
    )


def test_an_engine_that_always_crashes_is_dropped_after_two_with_the_reason(tmp_path: Path) -> None:
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = _crashing(run, "openvino")
        study.search(lambda: 1.0, lambda text: None)
        assert sum(t.settings.engine == "openvino" for t in study.trials) == 2
        assert sum(t.settings.engine == "llamacpp" for t in study.trials) > 2
        notes = [r["text"] for r in run.records("note")]
    assert any("openvino is not tried any more" in n and "SIGILL" in n for n in notes)


def test_when_all_engines_crash_the_verdict_says_so(tmp_path: Path) -> None:
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = _crashing(run, "llamacpp")
        study.space = Space(("llamacpp",), (1,), (1,), 512, {})
        study.trials = [Trial(0, BASELINE, "complete", 9.0)]
        for candidate in list(study.space.grid())[:2]:
            study.trials.append(study.try_candidate(candidate, lambda text: None))
    assert "Every candidate failed; the first: llamacpp" in why_nothing(study.trials)


def test_the_closest_candidate_and_the_limit_that_binds_are_named() -> None:
    candidates = list(SPACE.grid())[:2]
    slow = [
        Trial(n + 1, c, "complete", 1.0, figures={"ttft_ms": {"p95": 300.0 - 100 * n}}).checked(
            Constraints(p95_ttft_ms=50)
        )
        for n, c in enumerate(candidates)
    ]
    assert "the closest of 2 trials reached 200, the limit is 50" in why_nothing(slow)
    lossy = [
        Trial(n, c, "complete", 1.0, f"lost {n}", (QUALITY,), {"quality_drop": {"drop": 0.3 - 0.1 * n}})
        for n, c in enumerate(candidates)
    ]
    assert f"The closest was {candidates[1]}: lost 1" in why_nothing(lossy)


def test_a_quality_set_on_which_all_fail_is_named() -> None:
    assert "proves nothing" in says_nothing(Quality("accuracy", {"a": 0.0, "b": 0.0}))
    assert not says_nothing(Quality("accuracy", {"a": 1.0, "b": 1.0})), "from here it can fall"
    assert not says_nothing(Quality("accuracy", {"a": 0.0, "b": 1.0}))


def test_a_full_disk_ends_the_search_with_a_sentence(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as run:
        study = _crashing(run, "openvino")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        try:
            with pytest.raises(RunError, match=r"cannot append to .*: File too large"):
                study.search(lambda: 1.0, lambda text: None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        kept = list(run.records("trial"))
    assert kept, "what was finished before is kept"
    assert [r["number"] for r in kept] == list(range(len(kept)))


def test_a_run_of_a_newer_version_of_another_machine_or_question_is_not_continued(
    small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    question = Question(small.sha256, lines.hash, BASELINE, Constraints(), SPACE, 0)
    path = tmp_path / "run"
    open_run(path, question, small, lines, []).close()
    with open_run(path, question, small, lines, []), pytest.raises(RunError, match="in use"):
        open_run(path, question, small, lines, [])
    with pytest.raises(RunError, match="something else"):
        open_run(path, dataclasses.replace(question, seed=1), small, lines, [])
    manifest = json.loads((path / "run.json").read_text("utf-8"))
    kept = manifest["question"]["baseline"]
    for changes, same in (({"threads": 7}, False), ({"later": 1}, False), ({"draft": None}, True)):
        manifest["question"]["baseline"] = {k: v for k, v in kept.items() if k != "cores"} | changes
        (path / "run.json").write_text(json.dumps(manifest), "utf-8")
        with nullcontext() if same else pytest.raises(RunError, match="something else"):
            open_run(path, question, small, lines, []).close()
    run = Run.open(path)
    run.update(machine={"id": "another"})
    with pytest.raises(RunError, match="another machine"):
        open_run(path, question, small, lines, [])
    run.update(schema=99)
    with pytest.raises(RunError, match="newer Negawatt"):
        open_run(path, question, small, lines, [])


def test_requirements_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    packs = [PassRange.of(name, required=True) for name in ("rtn", "gptq")]
    with pytest.raises(UsageError, match="rtn and gptq are both required"):
        Space(("llamacpp",), (1,), (1,), 512, {}, passes=tuple(packs))
    with pytest.raises(UsageError, match="rtn is required, and transformers does not run what it makes"):
        Space(("llamacpp", "transformers"), (1,), (1,), 512, {}, passes=(packs[0],))
    file = tmp_path / "space.toml"
    file.write_text("schema = 1\nengines = ['llamacpp']\n[[pass]]\nname = 'svd'\nrequired = true\n")
    with pytest.raises(UsageError, match=r"space.toml: svd is required, and llamacpp"):
        read_space(file, SPACE)


def test_a_request_that_does_not_fit_in_another_models_tokens_fails_that_model_alone(
    small: Artifact, lines: Workload
) -> None:
    shop = Workshop(small)
    longest = max(len(small.tokenizer.encode(str(i.prompt))) + i.max_new_tokens for i in lines.traffic)
    traffic = Traffic(shop, lines.traffic, longest)
    shop.models["worse"] = spelled_out(small)
    other = Candidate(BASELINE.settings, model="worse")
    with pytest.raises(EngineError, match=r"in the tokens of worse.*max_context"):
        traffic.jobs(other)
    assert traffic.per_token(Candidate(BASELINE.settings)) == 1.0


class _Spelled:
    """A double of an artifact whose tokenizer needs two tokens where the other needs one."""

    def __init__(self, artifact: Artifact) -> None:
        self.tokenizer = self
        self._own = artifact.tokenizer

    def encode(self, text: str, **options: bool) -> list[int]:
        return [i for i in self._own.encode(text, **options) for _ in range(2)]


def spelled_out(artifact: Artifact) -> Artifact:
    return _Spelled(artifact)  # type: ignore[return-value]
