"""Contract suites that ship with the package, and honest doubles that keep them.

Subclass a suite in your own tests and supply its fixture; pytest is needed only here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "ClassifierContract": "classifier_contract",
    "EmbedderContract": "embedder_contract",
    "EngineContract": "engine_contract",
    "PassContract": "pass_contract",
    "PlacementContract": "placement_contract",
    "SamplerContract": "sampler_contract",
    "SensorContract": "sensor_contract",
}

__all__ = [
    "ClassifierContract",
    "EmbedderContract",
    "EngineContract",
    "PassContract",
    "PlacementContract",
    "SamplerContract",
    "SensorContract",
]

if TYPE_CHECKING:
    from negawatt.testing.classifier_contract import ClassifierContract
    from negawatt.testing.embedder_contract import EmbedderContract
    from negawatt.testing.engine_contract import EngineContract
    from negawatt.testing.pass_contract import PassContract
    from negawatt.testing.placement_contract import PlacementContract
    from negawatt.testing.sampler_contract import SamplerContract
    from negawatt.testing.sensor_contract import SensorContract


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"negawatt.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'negawatt.testing' has no attribute {name!r}")
