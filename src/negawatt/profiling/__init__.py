"""Profiling: artifact × settings × workload → joules, latency, memory, quality, and a cost model."""

from negawatt.profiling.cost_model import Cost, CostModel
from negawatt.profiling.profiler import REFERENCE_SETTINGS, Profile, about, profile
from negawatt.profiling.quality import Quality
from negawatt.profiling.reference_load import reference_load
from negawatt.profiling.summary import Summary
from negawatt.profiling.window import Window

__all__ = [
    "REFERENCE_SETTINGS",
    "Cost",
    "CostModel",
    "Profile",
    "Quality",
    "Summary",
    "Window",
    "about",
    "profile",
    "reference_load",
]
