"""`EngineContract`: what every engine must do, run on a real model.

Subclass it, and supply a fixture ``settings`` with the engine's settings; ``model`` and ``reference``
come from a conftest: the artifact, and an open reference engine on it.

::

    class TestMyEngine(EngineContract):
        @pytest.fixture(scope="class")
        def settings(self) -> Settings:
            return Settings(engine="myengine")
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import EngineError, UnsupportedSetting

PROMPTS = (
    "The quickest way to cool a cup of tea is",
    "def add(a, b):\n    return",
    "Bees make honey because",
)
CONTINUATIONS = (
    ("To open a jar that is stuck,", " run its lid under hot water."),
    ("To open a jar that is stuck,", " paint the kitchen blue."),
    ("Water boils at a temperature of", " 100 degrees Celsius at sea level."),
    ("In 1969 two astronauts", " walked on the surface of the Moon."),
)
NATS_PER_TOKEN = 0.05
"""Mean distance of log-probabilities from the reference at equal weights."""
AGREEMENT = 0.8
"""Share of greedy tokens, up to the first difference, that must agree with the reference."""
GREEDY_TOKENS = 16


class EngineContract:
    """The promises; every method is one."""

    @pytest.fixture(scope="class")
    def engine(self, model: Artifact, settings: Settings) -> Iterator[Engine]:
        """The engine under test, open, with two slots."""
        with Engine(model, settings.replace(batch=2, max_context=256, threads=1)) as engine:
            yield engine

    def _tokens(self, engine: Engine, text: str) -> list[int]:
        return engine.artifact.tokenizer.encode(text)

    def _greedy(
        self, engine: Engine, prompts: tuple[str, ...] = PROMPTS, n: int = GREEDY_TOKENS
    ) -> list[list[int]]:
        requests = [Request(self._tokens(engine, text), n) for text in prompts]
        return [c.tokens for c in engine.generate(requests).completions]

    def test_greedy_answers_agree_with_the_reference(self, engine: Engine, reference: Engine) -> None:
        """Rounding may flip a near tie, after which texts part: agreement counts up to there."""
        ours, theirs = self._greedy(engine), self._greedy(reference)
        same = [next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), GREEDY_TOKENS)
                for x, y in zip(ours, theirs, strict=True)]  # fmt: skip
        assert sum(same) >= AGREEMENT * GREEDY_TOKENS * len(PROMPTS), (ours, theirs)

    def test_scores_agree_with_the_reference(self, engine: Engine, reference: Engine) -> None:
        pairs = [(self._tokens(engine, c), self._tokens(engine, r)) for c, r in CONTINUATIONS]
        ours, _ = engine.score(pairs)
        theirs, _ = reference.score(pairs)
        distances = [
            abs(a - b) for (x, _), (y, _) in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)
        ]
        assert statistics.mean(distances) < NATS_PER_TOKEN

    def test_scores_are_log_probabilities_and_rank_sense_over_nonsense(self, engine: Engine) -> None:
        pairs = [(self._tokens(engine, c), self._tokens(engine, r)) for c, r in CONTINUATIONS[:2]]
        scores, usage = engine.score(pairs)
        assert all(x <= 0 for values, _ in scores for x in values)
        assert [len(values) for values, _ in scores] == [len(r) for _, r in pairs]
        sense, nonsense = (sum(values) / len(values) for values, _ in scores)
        assert sense > nonsense
        assert usage.cpu_s > 0

    def test_scoring_greedy_text_says_so(self, engine: Engine) -> None:
        prompt = self._tokens(engine, PROMPTS[0])
        (written,) = self._greedy(engine, PROMPTS[:1], 4)
        other = [(t + 1) % 1000 for t in written]
        (_, greedy), (_, not_greedy) = engine.score([(prompt, written), (prompt, other)])[0]
        assert greedy
        assert not not_greedy

    def test_tokens_fed_one_at_a_time_give_what_they_give_together(self, engine: Engine) -> None:
        import numpy as np

        tokens = self._tokens(engine, PROMPTS[0])
        together, decoded = engine.distributions(tokens), engine.distributions(tokens, 3)
        assert decoded.shape == together.shape
        assert np.abs(np.exp(decoded) - np.exp(together)).max() < 0.05
        with pytest.raises(EngineError, match="can be decoded"):
            engine.distributions(tokens, len(tokens))

    def test_distributions_sum_to_one_and_match_scores(self, engine: Engine) -> None:
        import numpy as np

        context, rest = (self._tokens(engine, text) for text in CONTINUATIONS[2])
        rows = engine.distributions([*context, *rest])
        assert rows.shape == (len(context) + len(rest), rows.shape[1])
        assert np.exp(rows.astype(np.float64)).sum(axis=1) == pytest.approx(1.0, abs=1e-3)
        scored = engine.score([(context, rest)])[0][0][0]
        along = [float(rows[len(context) - 1 + i, token]) for i, token in enumerate(rest)]
        assert along == pytest.approx(scored, abs=0.06)

    def test_the_same_request_twice_gives_the_same_answer(self, engine: Engine) -> None:
        assert self._greedy(engine, PROMPTS[:1]) == self._greedy(engine, PROMPTS[:1])

    def test_a_batch_answers_as_each_alone(self, engine: Engine) -> None:
        together = self._greedy(engine)
        alone = [self._greedy(engine, (text,))[0] for text in PROMPTS]
        same = sum(a == b for x, y in zip(together, alone, strict=True) for a, b in zip(x, y, strict=True))
        assert same >= AGREEMENT * GREEDY_TOKENS * len(PROMPTS)

    def test_more_requests_than_slots_are_all_answered_in_order(self, engine: Engine) -> None:
        lengths = [3, 7, 2, 5, 4]
        prompt = self._tokens(engine, PROMPTS[2])
        answers = engine.generate([Request(prompt, n) for n in lengths]).completions
        assert [len(a.tokens) for a in answers] == lengths
        assert all(a.finish_reason == "length" for a in answers)
        assert all(a.tokens[:2] == answers[0].tokens[:2] for a in answers)

    def test_streams_what_it_answers(self, engine: Engine) -> None:
        seen: dict[int, list[int]] = {0: [], 1: []}
        requests = [Request(self._tokens(engine, text), 6) for text in PROMPTS[:2]]
        generation = engine.generate(requests, lambda index, token: seen[index].append(token))
        assert [seen[0], seen[1]] == [c.tokens for c in generation.completions]

    def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(self, engine: Engine) -> None:
        prompt = self._tokens(engine, PROMPTS[0])
        free = engine.generate([Request(prompt, 8)]).completions[0].tokens
        stop = free[4]
        answer = engine.generate([Request(prompt, 8, frozenset({stop}))]).completions[0]
        assert answer.finish_reason == "stop"
        assert answer.tokens == free[: free.index(stop)]

    def test_sampling_repeats_with_its_seed_and_varies_without(self, engine: Engine) -> None:
        prompt = self._tokens(engine, PROMPTS[0])

        def sample(seed: int) -> list[int]:
            request = Request(prompt, 12, temperature=1.2, top_p=0.95, seed=seed)
            return engine.generate([request]).completions[0].tokens

        assert sample(1) == sample(1)
        assert len({tuple(sample(seed)) for seed in range(4)}) > 1

    def test_steps_account_for_tokens_and_cpu_time(self, engine: Engine) -> None:
        requests = [Request(self._tokens(engine, text), 5) for text in PROMPTS[:2]]
        generation = engine.generate(requests)
        assert sum(s.produced for s in generation.steps) == 10
        prefilled = sum(s.tokens for s in generation.steps if s.phase == "prefill")
        assert prefilled == sum(len(r.tokens) for r in requests)
        assert 0 < sum(s.cpu_s for s in generation.steps) <= generation.usage.cpu_s * 1.001
        times = generation.completions[0].token_times_s
        assert times == sorted(times)
        assert times[0] > 0
        assert generation.usage.peak_rss_bytes > 20e6

    def test_refuses_by_name_what_it_lacks(self, model: Artifact, settings: Settings) -> None:
        for lacking in ({"weight_format": "q9_9"}, {"kv_cache": "q9_9"}, {"device": "abacus"}):
            with pytest.raises(UnsupportedSetting, match=settings.engine):
                Engine(model, settings.replace(**lacking))

    def test_refuses_what_does_not_fit(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="max_context"):
            engine.generate([Request([1] * 250, 32)])
        with pytest.raises(EngineError, match="at least one"):
            engine.generate([Request([], 4)])
        with pytest.raises(EngineError, match="at least one"):
            engine.score([([1], [])])
        assert self._greedy(engine, PROMPTS[:1], 2)  # and lives on
