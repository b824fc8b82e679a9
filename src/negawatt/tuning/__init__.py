"""Tuning: search over ways of running a model → frontier → verdict."""

from negawatt.tuning.space import Space
from negawatt.tuning.study import Study
from negawatt.tuning.tuner import tune
from negawatt.tuning.verdict import Constraints, Verdict, pareto

__all__ = ["Constraints", "Space", "Study", "Verdict", "pareto", "tune"]
