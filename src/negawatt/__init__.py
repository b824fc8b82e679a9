"""Negawatt: find, prove and keep the way of running a language model that spends the fewest joules."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "negawatt.artifact",
    "CostModel": "negawatt.profiling",
    "Energy": "negawatt.energy",
    "Engine": "negawatt.engine",
    "Measurement": "negawatt.meter",
    "Meter": "negawatt.meter",
    "NegawattError": "negawatt.errors",
    "Profile": "negawatt.profiling",
    "Provenance": "negawatt.energy",
    "Run": "negawatt.run",
    "Settings": "negawatt.engine",
    "Verdict": "negawatt.tuning",
    "Workload": "negawatt.workload",
    "profile": "negawatt.profiling",
    "tune": "negawatt.tuning",
}

__all__ = sorted([*_HOMES, "__version__"])

if TYPE_CHECKING:
    from negawatt.artifact import Artifact as Artifact
    from negawatt.energy import Energy as Energy
    from negawatt.energy import Provenance as Provenance
    from negawatt.engine import Engine as Engine
    from negawatt.engine import Settings as Settings
    from negawatt.errors import NegawattError as NegawattError
    from negawatt.meter import Measurement as Measurement
    from negawatt.meter import Meter as Meter
    from negawatt.profiling import CostModel as CostModel
    from negawatt.profiling import Profile as Profile
    from negawatt.profiling import profile as profile
    from negawatt.run import Run as Run
    from negawatt.tuning import Verdict as Verdict
    from negawatt.tuning import tune as tune
    from negawatt.workload import Workload as Workload


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that ``import negawatt`` stays quick."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'negawatt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
