"""`standby`: a candidate that is likely to be proved, to be proved before bolder ones are tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

from negawatt.tuning.candidate import Candidate
from negawatt.tuning.predicted import bits_of
from negawatt.tuning.trial import Trial
from negawatt.workload.intervals import normal_quantile

SURE = 0.8
"""Chance of a proof from which on a candidate needs no standby."""
FAR_MORE = 2.0
"""What is not sure stands by only if it is expected to save more than this times what bolder ones are."""
FAITHFUL_BITS = 8
CHANGES, WORSE = 10, 0.55
"""Of 1,148 questions SmolLM2 changed 24 to 128 answers in 8 and 4 bits, 51 to 60 % of them for the worse."""


def chance_of_proof(seen: Mapping[str, Any], held: int, limit: float, confidence: float) -> float:
    """Chance that `held` further items prove a drop of at most `limit`, from a paired difference.

    Which way an answer changes is near chance where rounding moves it over a tie, and a few changes tell
    little: `CHANGES` others, of which `WORSE` are for the worse, are put to those seen (a Beta prior). The
    drop that further items will show is taken for normal around the share that results of the rate of
    changes, which is the variance on both sets. A gain counts as none: fewer bits do not answer better.

    Args:
        seen: as `difference_json` gives it.
        held: items of the proof.
        limit: on the drop.
        confidence: of the bound at the proof's last look.
    """
    n, z = int(seen["n"]), normal_quantile(confidence)
    changed = max(float(seen["changed"]), 0.5)
    rate, told = changed / n, changed / (changed + CHANGES)
    drop = told * float(seen["drop"]) + (1 - told) * (2 * WORSE - 1) * rate
    needed = limit - z * math.sqrt(rate / held) - z * z / held
    return NormalDist(max(0.0, drop), math.sqrt(told * rate / n + rate / held)).cdf(needed)


def standby(
    trials: Sequence[Trial], chosen: Sequence[Candidate], chance: Callable[[Trial], float]
) -> Trial | None:
    """What is to be proved before the best of the chosen, where that is not all but sure to be proved.

    The cheapest trial that is sure; where none is, the one expected to save the most, its chance counted, if
    that is more than `FAR_MORE` times what the best of the chosen is expected to save.

    Args:
        trials: the baseline's first; only cheaper ones come into question.
        chosen: what would be proved first without it, cheapest first.
        chance: of a trial to be proved.
    """
    known = {trial.candidate: trial for trial in trials}
    if not chosen or chance(known[chosen[0]]) >= SURE:
        return None
    most = trials[0].cost or math.inf

    def saving(trial: Trial) -> float:
        return chance(trial) * (most - (trial.cost or most))

    cheaper = [t for t in trials[1:] if t.state != "failed" and not t.violations and (t.cost or most) < most]
    sure = [t for t in cheaper if chance(t) >= SURE]
    if sure:
        return min(sure, key=lambda t: t.cost or most)
    found = max(cheaper, key=saving, default=None)
    return found if found is not None and saving(found) > FAR_MORE * saving(known[chosen[0]]) else None


def faithful(candidate: Candidate) -> bool:
    """Whether weights are as they are, or of 8 bits at least, and changed by no pass."""
    settings = candidate.settings
    bits = bits_of(settings.weight_format)
    native = settings.weight_format == "native"
    return not candidate.making[1] and not candidate.model and (native or (bits or 0) >= FAITHFUL_BITS)
