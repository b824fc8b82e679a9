"""Monitoring: what a machine spends, interval by interval, divided among processes and containers."""

from negawatt.monitor.groups import Group, group, group_path
from negawatt.monitor.monitor import Monitor
from negawatt.monitor.processes import Process, ProcessTable
from negawatt.monitor.sample import Component, Line, Sample
from negawatt.monitor.split import Joules, Shares, by_weight, mean, split

__all__ = [
    "Component",
    "Group",
    "Joules",
    "Line",
    "Monitor",
    "Process",
    "ProcessTable",
    "Sample",
    "Shares",
    "by_weight",
    "group",
    "group_path",
    "mean",
    "split",
]
