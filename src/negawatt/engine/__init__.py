"""Engines: ways to run an artifact, each in a worker process of its own."""

from negawatt.engine.backends import BACKENDS, engines
from negawatt.engine.decode import Completion, Request, Step
from negawatt.engine.engine import Classification, Engine, Generation, Usage
from negawatt.engine.settings import Settings

__all__ = [
    "BACKENDS",
    "Classification",
    "Completion",
    "Engine",
    "Generation",
    "Request",
    "Settings",
    "Step",
    "Usage",
    "engines",
]
