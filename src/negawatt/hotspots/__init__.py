"""Hot-spots: which stage, function, model layer and operator the joules of a window went to."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negawatt.hotspots.command import of_command as of_command
    from negawatt.hotspots.hotspots import Hotspots as Hotspots
    from negawatt.hotspots.layers import by_layer as by_layer
    from negawatt.hotspots.looking import by_function as by_function
    from negawatt.hotspots.model import of_model as of_model
    from negawatt.hotspots.roles import Role as Role
    from negawatt.hotspots.roles import by_role as by_role
    from negawatt.hotspots.spot import Spot as Spot

# Loaded on first use: a process that is only sampled imports the sampler and nothing else.
_HOMES = {
    "Hotspots": "negawatt.hotspots.hotspots",
    "Role": "negawatt.hotspots.roles",
    "Spot": "negawatt.hotspots.spot",
    "by_function": "negawatt.hotspots.looking",
    "by_layer": "negawatt.hotspots.layers",
    "of_command": "negawatt.hotspots.command",
    "of_model": "negawatt.hotspots.model",
    "by_role": "negawatt.hotspots.roles",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'negawatt.hotspots' has no attribute {name!r}")
