"""`ClassifierContract`: what every engine that labels texts must do.

Subclass it, and supply a fixture ``settings`` with the engine's settings; ``classifier`` is an artifact, by
default a small random one of each of two families.

::

    class TestMyEngine(ClassifierContract):
        @pytest.fixture(scope="class")
        def settings(self) -> Settings:
            return Settings(engine="myengine")
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.engine.decode import Decoder
from negawatt.engine.transformers import TransformersBackend
from negawatt.errors import EngineError, NegawattError
from negawatt.testing.small_models import TEXT, small_model

LABELS = ("dull", "fair", "fine")
LENGTHS = (3, 41, 8, 8, 17, 64, 1, 30)
"""Tokens of the texts; unequal, so that some are padded."""


class ClassifierContract:
    """The promises; every method is one.

    Attributes:
        families: of `negawatt.testing.small_models`.
        difference: most that a label's probability may differ from the reference's: transformers in fp32.
    """

    families: tuple[str, ...] = ("bert", "mpnet")
    difference: float = 0.02

    @pytest.fixture(scope="class")
    def classifiers(self, tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
        folder = tmp_path_factory.mktemp("classifiers")
        return [Artifact.open(small_model(folder / f, f, labels=LABELS)) for f in self.families]

    @pytest.fixture(scope="class")
    def engines(self, classifiers: list[Artifact], settings: Settings) -> Iterator[list[Engine]]:
        """The engine under test, open, on each model; three texts at once."""
        opened = [Engine(m, settings.replace(batch=3, max_context=96, threads=1)) for m in classifiers]
        try:
            yield [engine.open() for engine in opened]
        finally:
            for engine in opened:
                engine.close()

    def _texts(self, engine: Engine) -> list[list[int]]:
        tokens = engine.artifact.tokenizer.encode(TEXT)
        return [tokens[3 * n : 3 * n + length] for n, length in enumerate(LENGTHS)]

    def test_says_what_it_tells_apart(self, engines: list[Engine]) -> None:
        for engine in engines:
            assert engine.labels == LABELS

    def test_agrees_with_the_reference(self, engines: list[Engine]) -> None:
        for engine in engines:
            texts = self._texts(engine)
            backend = TransformersBackend(Settings(engine="transformers", weight_format="fp32", batch=3))
            backend.load(engine.artifact.path)
            theirs = Decoder(backend).classify(texts)
            ours = engine.classify(texts).log_probs
            assert np.abs(np.exp(ours) - np.exp(theirs)).max() < self.difference
            assert np.ptp(np.exp(theirs), axis=0).max() > 0.05, "the texts do not differ enough to tell"

    def test_probabilities_sum_to_one(self, engines: list[Engine]) -> None:
        for engine in engines:
            found = engine.classify(self._texts(engine)).log_probs
            assert found.shape == (len(LENGTHS), len(LABELS))
            assert np.exp(found).sum(axis=1) == pytest.approx(1.0, abs=1e-4)

    def test_a_batch_is_answered_in_order_and_as_each_alone(self, engines: list[Engine]) -> None:
        for engine in engines:
            texts = self._texts(engine)
            together = engine.classify(texts).log_probs
            alone = np.concatenate([engine.classify([text]).log_probs for text in texts])
            assert np.abs(np.exp(together) - np.exp(alone)).max() < self.difference

    def test_steps_account_for_texts_tokens_and_cpu_time(self, engines: list[Engine]) -> None:
        for engine in engines:
            found = engine.classify(self._texts(engine))
            assert sum(step.sequences for step in found.steps) == len(LENGTHS)
            assert max(step.sequences for step in found.steps) <= 3
            assert sum(step.tokens for step in found.steps) == sum(LENGTHS)
            assert 0 < sum(step.cpu_s for step in found.steps) <= found.usage.cpu_s * 1.001

    def test_refuses_what_does_not_fit_and_lives_on(self, engines: list[Engine]) -> None:
        for engine in engines:
            with pytest.raises(EngineError, match="max_context is 96"):
                engine.classify([[5] * 97])
            with pytest.raises(EngineError, match="at least one"):
                engine.classify([])
            with pytest.raises(NegawattError, match="cannot write"):
                engine.generate([Request([5, 6], 2)])
            assert engine.classify([[5, 6, 7]]).log_probs.shape == (1, len(LABELS))
