"""What the tests of all libraries share: a home of their own, and nothing that talks to the network."""

from __future__ import annotations

import os

os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

import pytest

from negawatt.meter import Station
from negawatt.meter.cputime import cpu_power


@pytest.fixture
def station() -> Station:
    """A machine without counters: energy is estimated from CPU time."""
    return Station([], cpu_power("AMD EPYC 7763 64-Core Processor"))
