"""ONNX Runtime keeps the contract on the real model, as the other engines do (see test_contract).

Apart from them because most of it is tracing the model, which can run beside what measures.
"""

from __future__ import annotations

import pytest

from negawatt.engine import Settings
from negawatt.testing import EngineContract


class TestOnnxRuntime(EngineContract):
    @pytest.fixture(scope="class")
    def settings(self) -> Settings:
        """Weights in fp32, as the operators have no such grid as the file's; attention is their own."""
        return Settings(engine="onnxruntime", weight_format="native")
