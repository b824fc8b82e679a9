"""A draft model in a real engine: named by the settings, refused where it cannot propose, and counted."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from proposing import Always
from test_session import Log

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings, backends
from negawatt.engine.batching import Batching, Job
from negawatt.engine.cells import Cells
from negawatt.engine.draft_model import split
from negawatt.engine.drafter import Drafter
from negawatt.engine.grammar import Grammars, json_grammar
from negawatt.engine.link import Link
from negawatt.engine.proposal_length import FIRST
from negawatt.engine.session import SessionOptions
from negawatt.errors import ArtifactError, EngineError, UnsupportedSetting, UsageError
from negawatt.testing.small_models import small_model

PROMPT = [5, 9, 200, 31, 7, 77, 8]
LLAMACPP = Settings(engine="llamacpp", threads=1, max_context=128)

# -- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["draft", "draft ", "drafts small"])
def test_a_draft_has_a_name(said: str) -> None:
    with pytest.raises(UsageError, match="speculation is 'none', 'ngram' or 'draft MODEL'"):
        Settings(speculation=said)


def test_settings_with_a_draft_are_read_back_and_told() -> None:
    settings = LLAMACPP.replace(speculation="draft /models/small:q4_0")
    assert Settings.from_json(settings.to_json()) == settings
    assert (settings.draft, LLAMACPP.draft) == ("/models/small:q4_0", None)
    assert str(settings).endswith("draft small:q4_0")
    assert settings.without_speculation() == LLAMACPP
    assert settings.arithmetic == LLAMACPP.arithmetic


def test_a_draft_in_a_field_of_its_own_is_read_too() -> None:
    settings = LLAMACPP.replace(speculation="draft small:q4_0")
    alone = {**LLAMACPP.to_json(), "draft": "small:q4_0"}
    del alone["speculation"]
    assert Settings.from_json({**alone, "speculation": "draft"}) == Settings.from_json(alone) == settings
    assert Settings.from_json({**LLAMACPP.to_json(), "draft": None}) == LLAMACPP
    with pytest.raises(UsageError, match="proposes nothing with speculation 'ngram'"):
        Settings.from_json({**alone, "speculation": "ngram"})


@pytest.mark.parametrize("engine", ["transformers", "openvino", "onnxruntime"])
def test_engines_without_drafts_refuse_them_by_name(engine: str) -> None:
    with pytest.raises(UnsupportedSetting, match=engine):
        backends.backend(engine).check(Settings(engine=engine, speculation="draft small"))


def test_a_draft_proposes_to_one_sequence_at_a_time() -> None:
    with pytest.raises(UnsupportedSetting, match="at batch 1 only, not at batch 4"):
        backends.backend("llamacpp").check(LLAMACPP.replace(speculation="draft small", batch=4))


def test_a_format_stands_behind_the_models_name() -> None:
    formats = ("native", "q8_0")
    assert split("small:q8_0", formats) == ("small", "q8_0")
    assert split("hf:people/small", formats) == ("hf:people/small", "native")
    assert split("hf:people/small:q8_0", formats) == ("hf:people/small", "q8_0")
    assert split("./a:b.gguf", formats) == ("./a:b.gguf", "native")


# -- llama.cpp ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, llamacpp_runtime: Path) -> Artifact:
    return Artifact.open(small_model(tmp_path_factory.mktemp("small") / "model"))


def generated(
    artifact: Artifact, settings: Settings, prompt: Sequence[int], n: int
) -> tuple[list[int], int, int]:
    """The answer, how many tokens were proposed for it, and in how many calls it was written."""
    with Engine(artifact, settings) as engine:
        found = engine.generate([Request(prompt, n)])
    assert sum(step.cpu_s for step in found.steps) == pytest.approx(found.usage.cpu_s, rel=0.2, abs=0.02)
    calls = [step for step in found.steps if step.phase == "decode"]
    return found.completions[0].tokens, sum(step.tokens - 1 for step in calls), len(calls)


def test_the_real_model_says_the_same_with_a_draft(model: Artifact) -> None:
    settings = LLAMACPP.replace(weight_format="f16")
    prompt = model.tokenizer.encode("The days of the week: Monday, Tuesday, Wednesday,")
    plain, none, _ = generated(model, settings, prompt, 16)
    answer, proposed, _ = generated(
        model, settings.replace(speculation="draft smollm2-135m-instruct:q8_0"), prompt, 16
    )
    assert answer == plain
    assert (none, proposed > 0) == (0, True)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_model_says_the_same_with_a_right_and_a_wrong_draft(
    checkpoint: Artifact, tmp_path: Path, seed: int
) -> None:
    draft = small_model(tmp_path / "draft", seed=seed, num_hidden_layers=2 + (seed == 0))
    plain, _, calls = generated(checkpoint, LLAMACPP, PROMPT, 40)
    settings = LLAMACPP.replace(speculation=f"draft {draft}")
    answer, proposed, fewer = generated(checkpoint, settings, PROMPT, 40)
    assert answer == plain
    assert proposed >= sum(FIRST)
    assert seed != 0 or fewer <= calls - sum(FIRST)  # the model itself is always right


def test_a_session_with_a_draft_tells_all_it_spends(checkpoint: Artifact, tmp_path: Path) -> None:
    plain, _, _ = generated(checkpoint, LLAMACPP, PROMPT, 40)
    draft = small_model(tmp_path / "draft", seed=1, num_hidden_layers=2)
    settings = LLAMACPP.replace(speculation=f"draft {draft}")

    async def spend() -> None:
        log = Log()
        with Engine(checkpoint, settings, session=SessionOptions(1, 512, 5, 16)) as engine:
            link = Link(engine, log.report, log.idle, log.cancel)
            task = asyncio.create_task(link.run())
            await link.connected.wait()
            for number in range(3):
                link.submit(Job(number, PROMPT, 40))
            await log.until(lambda: {0, 1, 2} <= log.finished())
            link.cancel(7)  # is answered, so what came before it has been told
            await log.until(lambda: 7 in log.cancelled)
            fields = Path(f"/proc/{engine.pid}/stat").read_text().rsplit(") ", 1)[1].split()
            ticks_s = (int(fields[11]) + int(fields[12])) / 100
            told_s = log.idle_cpu_s + sum(report.cpu_s for report in log.reports)
            assert told_s == pytest.approx(ticks_s, abs=0.05)
            engine.kill()
            await task
        assert [log.tokens(number) for number in range(3)] == [plain] * 3

    asyncio.run(spend())


def test_of_what_a_draft_proposes_only_what_fits_a_grammar_is_verified(
    checkpoint: Artifact, tmp_path: Path
) -> None:
    grammar = json_grammar({"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 9, "maxItems": 9})
    kind, found = backends.backend("llamacpp"), []
    for settings in (LLAMACPP, LLAMACPP.replace(speculation="draft itself")):
        backend = kind(settings)
        backend.reserve(2, 256)
        file = kind.prepare(checkpoint.path, "native", tmp_path)
        backend.load(file)
        drafter = Drafter.load(backend, file) if settings.draft else None
        if drafter is not None:
            drafter.length = Always(4)
        grammars = partial(Grammars, checkpoint.tokenizer, backend.vocab_size)
        loop = Batching(backend, Cells(backend, 2, 256), 1, 64, grammars, drafter)
        loop.submit(Job(0, PROMPT, 90, grammar=grammar))
        written = []
        while loop.busy:
            report = loop.step()
            written += [picked.token for _, picked in report.picked]
            assert not report.failed
        found.append(checkpoint.tokenizer.decode(written))
    assert found[0] == found[1]
    assert len(json.loads(found[0])) == 9


def test_a_draft_of_another_vocabulary_is_refused(checkpoint: Artifact, model: Artifact) -> None:
    settings = LLAMACPP.replace(speculation="draft smollm2-135m-instruct:q8_0")
    with pytest.raises(
        EngineError, match=r"the draft has 49152 tokens and the model \d+; a draft must share"
    ):
        Engine(checkpoint, settings).open()


def test_a_draft_that_means_something_else_by_a_token_is_refused(
    checkpoint: Artifact, tmp_path: Path
) -> None:
    other = tmp_path / "draft"
    shutil.copytree(checkpoint.path, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    one, two = "A", "B"
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    settings = LLAMACPP.replace(speculation=f"draft {other}")
    with pytest.raises(
        EngineError, match=r"is '[AB]' to the draft and '[AB]' to the model; a draft must share"
    ):
        Engine(checkpoint, settings).open()


def test_a_draft_that_is_not_there_is_named(checkpoint: Artifact, tmp_path: Path) -> None:
    settings = LLAMACPP.replace(speculation=f"draft {tmp_path / 'nothing'}")
    with pytest.raises(ArtifactError, match=r"there is no .*nothing"):
        Engine(checkpoint, settings).open()
