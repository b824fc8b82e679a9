"""`PlacementContract`: what every engine must do that runs part of a model on another device.

Subclass it on a machine that has such a device, and supply two fixtures: ``placed``, the engine's settings
with that device's name, and ``layered``, a small model that the engine runs, of at least 4 decoder layers.

::

    class TestMyEngine(PlacementContract):
        @pytest.fixture(scope="class")
        def placed(self) -> Settings:
            return Settings(engine="myengine", device="mydevice")
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import EngineError

TEXT = "Rain begins over the harbour; the boats knock against each other"
NATS = 0.05
"""Most that a log-probability may differ from the processor's: kernels round otherwise, to 16 bits too."""
TOKENS = 6


class PlacementContract:
    """The promises; every method is one."""

    @pytest.fixture(scope="class")
    def answers(self, layered: Artifact, placed: Settings) -> _Answers:
        """What the model says in every placement, asked of each once."""
        return _Answers(layered, placed)

    def test_every_placement_answers_as_the_processor_does(self, answers: _Answers) -> None:
        rows, written, _ = answers.of(None, "cpu")
        for number in answers.numbers:
            theirs, tokens, _ = answers.of(number)
            assert np.abs(theirs - rows).max() < NATS, number
            assert theirs.shape == rows.shape
            assert tokens[0] == written[0]

    def test_without_layers_there_nothing_runs_there(self, answers: _Answers) -> None:
        rows, written, _ = answers.of(None, "cpu")
        theirs, tokens, info = answers.of(0)
        assert np.array_equal(theirs, rows)
        assert tokens == written
        assert set(info["layers"]) == {"cpu"} == {info["head"]}

    def test_layers_there_run_other_kernels(self, answers: _Answers) -> None:
        """If all answers were equal to the last bit, nothing would have run elsewhere."""
        assert any(not np.array_equal(answers.of(n)[0], answers.of(0)[0]) for n in answers.numbers)

    def test_tells_where_layers_are_in_fact(self, answers: _Answers) -> None:
        for number in answers.numbers:
            info = answers.of(number)[2]
            wanted = answers.n_layers if number is None else number
            layers = dict(info["layers"])
            assert layers.pop("cpu", 0) == answers.n_layers - wanted
            assert sum(layers.values()) == wanted
            assert set(layers) <= set(info.get("devices", ()))
            assert (info["head"] != "cpu") == (wanted > 0)

    def test_all_layers_by_number_are_all_layers(self, answers: _Answers) -> None:
        with answers.engine(answers.n_layers) as engine:
            assert engine.info["layers"] == answers.of(None)[2]["layers"]

    def test_more_layers_than_there_are_are_refused(self, answers: _Answers) -> None:
        with pytest.raises(EngineError, match=f"{answers.n_layers} layers"):
            answers.engine(answers.n_layers + 1).open()


class _Answers:
    """Of one model in different placements: logits, tokens and what the engine tells; each asked once."""

    def __init__(self, model: Artifact, placed: Settings) -> None:
        self._model, self._placed = model, placed
        self.n_layers = model.shape.n_layers
        self.numbers: tuple[int | None, ...] = (0, self.n_layers // 2, None)
        self._held: dict[Any, tuple[NDArray[np.float32], list[int], dict[str, Any]]] = {}

    def engine(self, number: int | None, device: str | None = None) -> Engine:
        where = device or self._placed.device
        changes = {"device": where, "gpu_layers": number, "threads": 1, "max_context": 64}
        return Engine(self._model, self._placed.replace(**changes))

    def of(
        self, number: int | None, device: str | None = None
    ) -> tuple[NDArray[np.float32], list[int], dict[str, Any]]:
        if (number, device) not in self._held:
            tokens = self._model.tokenizer.encode(TEXT)
            with self.engine(number, device) as engine:
                rows = engine.distributions(tokens, 3)
                written = engine.generate([Request(tokens, TOKENS)]).completions[0].tokens
                self._held[number, device] = rows, written, engine.info
        return self._held[number, device]
