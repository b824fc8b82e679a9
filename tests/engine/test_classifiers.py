"""Every engine that labels texts keeps the contract, and texts of unequal lengths are put together well."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.engine.padding import FEW_TOKENS, FILLED, Padded, together
from negawatt.errors import EngineError
from negawatt.testing import ClassifierContract
from negawatt.testing.small_models import small_model

for library in ("openvino", "nncf", "onnxruntime", "onnxscript", "torch", "transformers"):
    pytest.importorskip(library)


class TestTransformers(ClassifierContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="transformers", weight_format="fp32")


class TestOpenVino(ClassifierContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="openvino", weight_format="f16")


class TestOpenVinoInEightBits(ClassifierContract):
    families = ("bert",)
    difference = 0.1

    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="openvino", weight_format="w8a8")

    def test_weights_are_those_of_int8_and_scales_are_fewer(
        self, engines: list[Engine], classifiers: list[Artifact], settings: Settings
    ) -> None:
        texts = self._texts(engines[0])
        rounded = engines[0].classify(texts).log_probs
        with Engine(classifiers[0], settings.replace(weight_format="int8", max_context=96)) as weights_alone:
            plain = weights_alone.classify(texts).log_probs
        assert weights_alone.model_path == engines[0].model_path
        groups = [each.info["dynamic_quantization_group"] for each in (engines[0], weights_alone)]
        assert groups[0] == 64 and groups[0] > groups[1]  # 64 divides the inputs of all matrices: 64 and 128
        assert np.abs(np.exp(rounded) - np.exp(plain)).max() < self.difference


class TestOnnxRuntime(ClassifierContract):
    families = ("mpnet",)

    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="onnxruntime", weight_format="fp32")


def test_an_engine_without_classifiers_says_so(tmp_path: Path) -> None:
    model = Artifact.open(small_model(tmp_path / "bert", "bert", labels=("a", "b")))
    with (
        pytest.raises(EngineError, match="llamacpp runs no classifiers"),
        Engine(model, Settings("llamacpp")),
    ):
        pass


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(1, 40))
def test_groups_hold_each_text_once_and_little_padding(lengths: list[int], most: int) -> None:
    groups = together(lengths, most)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        own = [lengths[index] for index in group]
        area = max(own) * len(own)
        assert len(group) <= most
        assert area <= FEW_TOKENS or len(own) == 1 or 1 - sum(own) / area <= FILLED + 1e-9


def test_equal_lengths_fill_the_batch() -> None:
    assert [len(group) for group in together([20] * 10, 4)] == [4, 4, 2]


def test_texts_are_filled_up_on_the_right() -> None:
    found = Padded.of([[1, 2, 3], [4]], 9, multiple=4)
    assert np.array_equal(found.tokens, [[1, 2, 3, 9], [4, 9, 9, 9]])
    assert np.array_equal(found.mask, [[1, 1, 1, 0], [1, 0, 0, 0]])
    assert Padded.of([[1] * 6], 9, multiple=4, most=7).tokens.shape == (1, 7)
    assert Padded.of([[1] * 6], 9, multiple=4, most=5).tokens.shape == (1, 6)
