"""Every engine keeps the contract on the real model."""

from __future__ import annotations

import pytest

from negawatt.engine import Settings
from negawatt.testing.engine_contract import EngineContract


class TestTransformers(EngineContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="transformers", weight_format="fp32")


class TestLlamaCpp(EngineContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="llamacpp")


class TestOpenVino(EngineContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="openvino")
