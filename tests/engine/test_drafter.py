"""A draft model: answers stay the model's own, its cost is counted, and it rests while it does not pay."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_decode import VOCAB, Arithmetic, expected
from test_session import Log

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings, backends
from negawatt.engine.backend import Chunk, Logits
from negawatt.engine.batching import Batching, Job
from negawatt.engine.cells import Cells
from negawatt.engine.decode import Decoder
from negawatt.engine.draft_model import split
from negawatt.engine.drafter import Drafter
from negawatt.engine.grammar import Grammars, json_grammar
from negawatt.engine.link import Link
from negawatt.engine.proposal_length import FIRST, MOST, ProposalLength
from negawatt.engine.session import SessionOptions
from negawatt.errors import ArtifactError, EngineError, UnsupportedSetting, UsageError
from negawatt.testing.small_models import small_model

PROMPT = [5, 9, 200, 31, 7, 77, 8]
LLAMACPP = Settings(engine="llamacpp", threads=1, max_context=128)


class Drafted(Arithmetic):
    """The exact language on an engine that takes proposals."""

    name = "drafted"
    has_drafts = True


class Guessing(Arithmetic):
    """Says something else than the language after some tokens, and takes its time."""

    def __init__(self, wrong_after: frozenset[int], busy_s: float = 0.0) -> None:
        super().__init__(Settings())
        self.wrong_after, self.busy_s, self.spent_s = wrong_after, busy_s, 0.0

    def forward(self, chunks: Sequence[Chunk]) -> list[Logits]:
        begun_s = time.process_time()
        (rows,) = super().forward(chunks)
        if chunks[0].tokens[-1] in self.wrong_after:
            rows = np.roll(rows, 1, axis=1)
        while time.process_time() - begun_s < self.busy_s:
            pass
        self.spent_s += time.process_time() - begun_s
        return [rows]


class Always(ProposalLength):
    """Proposes the same number of tokens whether it pays or not."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def next(self, room: int, unread: int = 0) -> int:
        return min(room, self._length)


def drafted() -> Drafted:
    return Drafted(Settings(speculation="draft", draft="small"))


# -- the loops, on a language that is known exactly --------------------------------------------------

prompts = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=4)
wrongs = st.frozensets(st.integers(0, VOCAB - 1))


@given(prompts, wrongs, st.integers(1, 30), st.integers(0, 6), st.booleans())
def test_answers_are_exact_however_wrong_the_draft_is(
    texts: list[list[int]], wrong: frozenset[int], n: int, length: int, keep: bool
) -> None:
    model, guessing = drafted(), Guessing(wrong)
    drafter = Drafter(guessing, keep=keep, length=Always(length) if length else None)
    answers = Decoder(model, drafter).generate([Request(text, n) for text in texts])
    assert [a.tokens for a in answers] == [expected(text, n) for text in texts]
    assert model.slots == [[]]
    assert keep or guessing.slots == [[]]


@given(prompts, wrongs, st.integers(1, 30), st.integers(0, 6), st.integers(1, 9), st.booleans())
def test_a_session_writes_the_same(
    texts: list[list[int]], wrong: frozenset[int], n: int, length: int, step_tokens: int, keep: bool
) -> None:
    model = drafted()
    drafter = Drafter(Guessing(wrong), keep=keep, length=Always(length) if length else None)
    loop = Batching(model, Cells(model, 1, 200, keep=keep), 1, step_tokens, drafter=drafter)
    for number, text in enumerate(texts):
        loop.submit(Job(number, text, n))
    written: dict[int, list[int]] = {}
    while loop.busy:
        for job, picked in loop.step().picked:
            written.setdefault(job, []).append(picked.token)
    assert written == {number: expected(text, n) for number, text in enumerate(texts)}


def test_an_answer_ends_where_it_ends_without() -> None:
    text, stop = [1, 2, 3], expected([1, 2, 3], 9)[6]
    plain = Decoder(Arithmetic(Settings())).generate([Request(text, 40, frozenset({stop}))])[0]
    answer = Decoder(drafted(), Drafter(Guessing(frozenset()), length=Always(4))).generate(
        [Request(text, 40, frozenset({stop}))]
    )[0]
    assert (answer.tokens, answer.finish_reason) == (
        plain.tokens,
        plain.finish_reason,
    ) and stop not in plain.tokens


def test_a_right_draft_saves_calls_of_the_model() -> None:
    model = drafted()
    Decoder(model, Drafter(Guessing(frozenset()), length=Always(4))).generate([Request([1], 81)])
    assert model.calls == 1 + 80 / 5


def test_where_tokens_are_drawn_at_random_nothing_is_proposed() -> None:
    guessing = Guessing(frozenset())
    Decoder(drafted(), Drafter(guessing, length=Always(4))).generate([Request([1], 9, temperature=1.0)])
    assert guessing.calls == 0


# -- what it takes is counted -------------------------------------------------------------------------


def test_cpu_seconds_of_the_draft_are_in_the_steps_of_the_answer() -> None:
    guessing = Guessing(frozenset({3, 7}), busy_s=0.004)
    decoder = Decoder(drafted(), Drafter(guessing, length=Always(3)))
    begun_s = time.process_time()
    decoder.generate([Request([1, 2], 12)])
    whole_s = time.process_time() - begun_s
    told_s = sum(step.cpu_s for step in decoder.steps)
    assert guessing.spent_s > 0.04
    assert guessing.spent_s <= told_s <= whole_s
    assert whole_s - told_s < 0.1 * whole_s  # picking tokens alone is in no step


def test_a_session_charges_the_draft_to_the_sequence_it_worked_for() -> None:
    guessing = Guessing(frozenset({3, 7}), busy_s=0.004)
    model = drafted()
    loop = Batching(model, Cells(model, 1, 200), 1, 16, drafter=Drafter(guessing, length=Always(3)))
    for number in range(2):
        loop.submit(Job(number, [number + 1, 2], 8))
    loop.idle_cpu_s()
    begun_s, spent = time.process_time(), {0: 0.0, 1: 0.0}
    of_draft = dict(spent)
    while loop.busy:
        before_s = guessing.spent_s
        report = loop.step()
        (part,) = report.parts
        spent[part.job] += report.cpu_s
        of_draft[part.job] += guessing.spent_s - before_s
    whole_s = time.process_time() - begun_s
    assert sum(spent.values()) + loop.idle_cpu_s() == pytest.approx(whole_s, abs=0.002)
    assert all(spent[job] >= of_draft[job] > 0.01 for job in spent)


# -- how many tokens to propose -----------------------------------------------------------------------


def learnt(acceptance: float, proposal_s: float, verifying_s: float, n: int = 400) -> ProposalLength:
    """What is known after calls of a model of 1 s that adds `verifying_s` for each proposal."""
    dice, length = random.Random(1), ProposalLength()
    length.read(100, 100 * verifying_s)
    for _ in range(n):
        proposed = length.next(1000)
        accepted = 0
        while accepted < proposed and dice.random() < acceptance:
            accepted += 1
        if proposed:
            length.proposed(proposed, proposed * proposal_s)
        length.verified(proposed, accepted, 1 + proposed, 1 + proposed * verifying_s)
    return length


@pytest.mark.parametrize(
    ("acceptance", "proposal_s", "verifying_s", "least", "most"),
    [
        (0.95, 0.02, 0.02, 5, MOST),  # a good draft of a model that waits for memory
        (0.6, 0.1, 0.1, 1, 3),
        (0.9, 0.02, 1.0, 0, 0),  # verifying a token takes as long as writing one
        (0.9, 0.95, 0.02, 0, 0),  # the draft is as slow as the model
        (0.05, 0.1, 0.1, 0, 0),  # the draft is wrong
    ],
)
def test_the_length_is_what_measured_costs_make_of_it(
    acceptance: float, proposal_s: float, verifying_s: float, least: int, most: int
) -> None:
    length = learnt(acceptance, proposal_s, verifying_s)
    assert least <= length.best(1000) <= most
    assert length.best(2) <= 2


@pytest.mark.parametrize("n", [0, 1, 4, 8])
@pytest.mark.parametrize("acceptance", [0.2, 0.7, 0.95])
def test_the_cost_of_a_token_is_that_of_many_simulated_calls(n: int, acceptance: float) -> None:
    length = ProposalLength()
    length.acceptance.amount, length.acceptance.weight = acceptance, 1.0
    length.proposed(4, 4 * 0.1)
    length.verified(0, 0, 1, 1.0)
    length.verified(0, 0, 5, 1.0 + 4 * 0.05)
    dice, written, calls = random.Random(2), 0, 20_000
    for _ in range(calls):
        right = 0
        while right < n and dice.random() < acceptance:
            right += 1
        written += 1 + right
    assert length.cpu_s_per_token(n) == pytest.approx((1 + n * 0.15) * calls / written, rel=0.02)


@pytest.mark.parametrize("unread", [1, 400])
def test_trying_a_draft_that_does_not_pay_takes_a_hundredth(unread: int) -> None:
    length = learnt(0.1, 0.5, 0.8)
    assert length.best(1000) == 0
    tried_s = model_s = 0.0
    for _ in range(40_000):
        if n := length.next(1000, unread):
            length.proposed(n, n * 0.5)
            tried_s += unread * length.reading_s.value + n * (0.5 + 0.8)
        length.verified(n, 0, 1 + n, 1 + n * 0.8)
        model_s += 1 + n * 0.8
    assert 0.005 * model_s < tried_s < 0.011 * model_s


def test_a_draft_that_begins_to_pay_is_found_again() -> None:
    length = learnt(0.0, 0.05, 0.05, n=300)
    assert length.best(1000) == 0
    for _ in range(6_000):
        n = length.next(1000)
        if n:
            length.proposed(n, n * 0.05)
        length.verified(n, n, 1 + n, 1 + n * 0.05)
    assert length.best(1000) > 2


def test_a_long_prompt_before_a_short_answer_is_not_read_for_nothing() -> None:
    length = learnt(0.9, 0.05, 0.05)
    assert length.pays(room=500, unread=100)
    assert not length.pays(room=3, unread=1000)
    assert length.next(3, unread=1000) == 0


def test_the_first_calls_try_both() -> None:
    length = ProposalLength()
    assert tuple(length.next(1000) for _ in FIRST) == FIRST
    assert {0} < set(FIRST)


# -- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speculation": "draft"}, "needs the small model"),
        ({"draft": "small"}, "proposes nothing with speculation 'none'"),
        ({"draft": "small", "speculation": "ngram"}, "proposes nothing with speculation 'ngram'"),
    ],
)
def test_a_draft_and_its_use_go_together(changes: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Settings(**changes)


def test_settings_with_a_draft_are_read_back_and_told() -> None:
    settings = LLAMACPP.replace(speculation="draft", draft="/models/small:q4_0")
    assert Settings.from_json(settings.to_json()) == settings
    assert str(settings).endswith("draft small:q4_0")
    assert settings.without_speculation() == LLAMACPP
    assert settings.arithmetic == LLAMACPP.arithmetic


@pytest.mark.parametrize("engine", ["transformers", "openvino", "onnxruntime"])
def test_engines_without_drafts_refuse_them_by_name(engine: str) -> None:
    with pytest.raises(UnsupportedSetting, match=engine):
        backends.backend(engine).check(Settings(engine=engine, speculation="draft", draft="small"))


def test_a_draft_proposes_to_one_sequence_at_a_time() -> None:
    with pytest.raises(UnsupportedSetting, match="at batch 1 only, not at batch 4"):
        backends.backend("llamacpp").check(LLAMACPP.replace(speculation="draft", draft="small", batch=4))


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
        model, settings.replace(speculation="draft", draft="smollm2-135m-instruct:q8_0"), prompt, 16
    )
    assert answer == plain
    assert (none, proposed > 0) == (0, True)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_model_says_the_same_with_a_right_and_a_wrong_draft(
    checkpoint: Artifact, tmp_path: Path, seed: int
) -> None:
    draft = small_model(tmp_path / "draft", seed=seed, num_hidden_layers=2 + (seed == 0))
    plain, _, calls = generated(checkpoint, LLAMACPP, PROMPT, 40)
    settings = LLAMACPP.replace(speculation="draft", draft=str(draft))
    answer, proposed, fewer = generated(checkpoint, settings, PROMPT, 40)
    assert answer == plain
    assert proposed >= sum(FIRST)
    assert seed != 0 or fewer <= calls - sum(FIRST)  # the model itself is always right


def test_a_session_with_a_draft_tells_all_it_spends(checkpoint: Artifact, tmp_path: Path) -> None:
    plain, _, _ = generated(checkpoint, LLAMACPP, PROMPT, 40)
    draft = small_model(tmp_path / "draft", seed=1, num_hidden_layers=2)
    settings = LLAMACPP.replace(speculation="draft", draft=str(draft))

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
    for settings in (LLAMACPP, LLAMACPP.replace(speculation="draft", draft="itself")):
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
    settings = LLAMACPP.replace(speculation="draft", draft="smollm2-135m-instruct:q8_0")
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
    settings = LLAMACPP.replace(speculation="draft", draft=str(other))
    with pytest.raises(
        EngineError, match=r"is '[AB]' to the draft and '[AB]' to the model; a draft must share"
    ):
        Engine(checkpoint, settings).open()


def test_a_draft_that_is_not_there_is_named(checkpoint: Artifact, tmp_path: Path) -> None:
    settings = LLAMACPP.replace(speculation="draft", draft=str(tmp_path / "nothing"))
    with pytest.raises(ArtifactError, match=r"there is no .*nothing"):
        Engine(checkpoint, settings).open()
