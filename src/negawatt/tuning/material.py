"""`Material`: a workload divided into what the search may look at and what is kept for the proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from negawatt.compress import technique
from negawatt.errors import UsageError
from negawatt.profiling.window import counted_on
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.space import Space
from negawatt.workload import QualityItem, TrafficItem, Workload
from negawatt.workload.items import answers_are_choices
from negawatt.workload.split import draw_order

SEARCH_ITEMS = 96
"""Quality items that the search may look at; all others are kept for the proof."""
CALIBRATION_ITEMS = 256
"""Further ones whose texts passes may be calibrated on, where the space has such passes."""
THRESHOLD_ITEMS = 384
"""Further ones that thresholds of cascades are chosen on, where several models are searched."""
FEWEST_REQUESTS = 4

Items = Sequence[QualityItem | TrafficItem]


@dataclass(frozen=True)
class Material:
    """The parts of a workload.

    Attributes:
        searched, held: what joules are counted on in the search, and for the finalists; questions, the same
            as the quality items, where the workload has no traffic.
        search_items, held_items: the same of quality items; requests where there are no labels.
        usage: what passes may see: nothing of what is held back.
        threshold_items: what thresholds of cascades are chosen on: those of the search and, where there are
            several models, more of them.
    """

    searched: Items
    held: Items
    search_items: Items
    held_items: Items
    usage: Workload
    threshold_items: Items = ()

    @classmethod
    def of(cls, workload: Workload, space: Space, seed: int, starts: Sequence[Candidate] = ()) -> Material:
        """Divide a workload.

        Args:
            workload: to divide.
            space: what may be tried.
            seed: of the division of the requests.
            starts: what is tried besides.

        Raises:
            UsageError: it holds too little to divide.
            WorkloadError: it holds nothing to count joules on.
        """
        counted = counted_on(workload)
        if len(counted) < FEWEST_REQUESTS:
            raise UsageError(
                f"workload {workload.name} has {len(counted)} requests; a search needs {FEWEST_REQUESTS}"
            )
        n = min(SEARCH_ITEMS, len(workload.quality) // 3)
        if workload.quality and n < 1:
            raise UsageError(f"a quality set of {len(workload.quality)} items is too small; give at least 3")
        searched, held = workload.split(0.5, seed)
        name = f"{workload.name}, the part to search with"
        if not workload.quality:  # agreement with the baseline on the traffic
            usage = replace(searched, name=name)
            return cls(searched.traffic, held.traffic, searched.traffic[:8], held.traffic, usage)
        drawn = draw_order(workload.quality, 0)  # as `Workload.subset` draws: a profile's answers are reused
        names = {each.name for each in space.passes} | {name for start in starts for name in start.names}
        calibrated = any(technique(name).calibrated for name in names)
        chosen = len(space.models) > 1 and answers_are_choices(workload.quality)
        most = max(CALIBRATION_ITEMS * calibrated, THRESHOLD_ITEMS * chosen)
        more = min(most, len(workload.quality) // 3)
        usage = replace(searched, name=name, quality=tuple(drawn[: n + more]))
        if workload.traffic:
            return cls(searched.traffic, held.traffic, drawn[:n], drawn[n + more :], usage, drawn[: n + more])
        jobs = {item.id: item for item in counted}
        first, rest = ([jobs[i.id] for i in part] for part in (drawn[:n], drawn[n + more :]))
        return cls(first, rest, drawn[:n], drawn[n + more :], usage, drawn[: n + more])
