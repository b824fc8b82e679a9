"""Every engine keeps the contract on the real model.

Held at equal weights and unrounded activations: kernels for quantized weights also round activations
to 8 bits (about 0.07 nats a token for llama.cpp here), which is no fault of the engine's.
"""

from __future__ import annotations

import pytest

from negawatt.engine import Settings
from negawatt.testing import EngineContract


class TestTransformers(EngineContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="transformers", weight_format="fp32")


class TestLlamaCpp(EngineContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="llamacpp", weight_format="f16")


class TestOpenVino(EngineContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        return Settings(engine="openvino", weight_format="f16")
