"""Engines: ways to run an artifact, each in a worker process of its own."""

from negawatt.engine.answers import Classification, Embedding, Generation, Usage
from negawatt.engine.backends import BACKENDS, engines
from negawatt.engine.decode import Completion, Request, Step
from negawatt.engine.engine import Engine
from negawatt.engine.settings import Settings

__all__ = [
    "BACKENDS",
    "Classification",
    "Completion",
    "Embedding",
    "Engine",
    "Generation",
    "Request",
    "Settings",
    "Step",
    "Usage",
    "engines",
]
