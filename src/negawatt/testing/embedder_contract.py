"""`EmbedderContract`: what every engine that turns texts into vectors must do.

Subclass it, and supply two fixtures: ``embedder``, an artifact whose pooling is ``mean``, ``cls`` or
``lasttoken``, and ``settings``.

::

    class TestMyEngine(EmbedderContract):
        @pytest.fixture(scope="class")
        def embedder(self) -> Artifact:
            return Artifact.open("minilm-l6")

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
from negawatt.errors import EngineError

TEXTS = (
    "The kettle hums before the house is awake.",
    "A gull walks along the wall.",
    "Pears were once the size of houses, she says, three for a coin, and by evening nobody believes it.",
    "Rain.",
    "The bread is in the drawer, and the train runs at nine.",
)
TOLERANCE = 2e-3
"""Of what rounds weights and inputs no further than to half precision."""


class EmbedderContract:
    """The promises; every method is one.

    Attributes:
        tolerance: of vectors of length 1, against the library's own states pooled by hand.
    """

    tolerance: float = TOLERANCE

    @pytest.fixture(scope="class")
    def engine(self, embedder: Artifact, settings: Settings) -> Iterator[Engine]:
        """The engine under test, open, with three slots."""
        with Engine(embedder, settings.replace(batch=3, max_context=96, threads=1)) as engine:
            yield engine

    @pytest.fixture(scope="class")
    def texts(self, embedder: Artifact) -> list[list[int]]:
        return [embedder.tokenizer.encode(text, add_special=True) for text in TEXTS]

    @pytest.fixture(scope="class")
    def expected(self, embedder: Artifact, settings: Settings, texts: list[list[int]]) -> list[list[float]]:
        """Vectors by definition: one text at a time, without padding, in double precision after the model."""
        import torch
        import transformers

        pooling = embedder.pooling(settings.pooling)
        assert pooling is not None
        model = transformers.AutoModel.from_pretrained(embedder.checkpoint(), dtype=torch.float32).eval()
        found = []
        for text in texts:
            with torch.inference_mode():
                states = model(input_ids=torch.tensor([text])).last_hidden_state[0].double().numpy()
            ways = {"mean": states.mean(axis=0), "cls": states[0], "lasttoken": states[-1]}
            vector = np.concatenate([ways[mode] for mode in pooling.modes])
            length = float(np.linalg.norm(vector)) if pooling.normalized else 1.0
            found.append([float(x) / length for x in vector])
        return found

    def test_vectors_are_the_library_s_own(
        self, engine: Engine, texts: list[list[int]], expected: list[list[float]]
    ) -> None:
        answer = engine.embed(texts)
        assert answer.vectors.shape == (len(texts), engine.width) and answer.vectors.dtype == np.float32
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(answer.vectors, expected, atol=self.tolerance * scale)

    def test_each_text_gets_alone_what_it_gets_in_company(
        self, engine: Engine, texts: list[list[int]]
    ) -> None:
        together = engine.embed(texts).vectors
        alone = np.concatenate([engine.embed([text]).vectors for text in texts])
        scale = max(1.0, float(np.abs(alone).max()))
        np.testing.assert_allclose(together, alone, atol=self.tolerance * scale)
        assert np.abs(together[0] - together[1]).max() > 2 * self.tolerance  # and not all the same

    def test_steps_account_for_tokens_and_cpu_time(self, engine: Engine, texts: list[list[int]]) -> None:
        answer = engine.embed(texts)
        assert {step.phase for step in answer.steps} == {"prefill"} and len(answer.steps) == 2
        assert sum(step.tokens for step in answer.steps) == sum(map(len, texts))
        assert 0 < sum(step.cpu_s for step in answer.steps) <= answer.usage.cpu_s * 1.001

    def test_refuses_what_it_cannot_do(self, engine: Engine, texts: list[list[int]]) -> None:
        with pytest.raises(EngineError, match="into vectors"):
            engine.generate([Request(texts[0], 4)])
        with pytest.raises(EngineError, match="max_context"):
            engine.embed([[1] * 97])
        with pytest.raises(EngineError, match="at least one"):
            engine.embed([[]])
        assert len(engine.embed(texts[:1]).vectors) == 1  # and lives on
