"""Replay searches on recorded landscapes: how close does each strategy come, and for what share of the grid?

    python benchmarks/search_landscapes.py --seeds 20

Each strategy searches each table of ``benchmarks/landscapes`` from several seeds. What it is told is what was
recorded; what it spends is what the recording spent on the same steps. Random search and plain TPE measure
and judge every point they propose, as a user of Optuna would; the rows with looks drop a dear point at its
first tokens and judge only what is near the best, as a study of Negawatt's does with any strategy.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from landscape import Account, Landscape, gap, recorded
from negawatt.engine import Settings
from negawatt.tuning.bench import SCREEN_FACTOR
from negawatt.tuning.predicted import promising, traits
from negawatt.tuning.sampler import Outcome, Sampler, Strategy
from negawatt.tuning.strategy import strategy
from negawatt.tuning.study import QUALITY_WITHIN
from negawatt.tuning.tree import Exhausted

BUDGETS = (0.05, 0.10, 0.15, 0.25, 0.50)
"""Shares of the grid's CPU seconds."""


class Replay:
    """One search on a landscape.

    Args:
        screened: with first looks and quality only where it matters, as `Study` does it.
    """

    def __init__(self, landscape: Landscape, chosen: Strategy, *, screened: bool) -> None:
        self.landscape, self.screened = landscape, screened
        self.sampler = Sampler(chosen)
        self.account = Account(landscape)
        self.best = math.inf
        self.ratios: list[float] = []
        self.looks: dict[Settings, float] = {}
        self.trail: list[tuple[float, float]] = []

    def _look(self, settings: Settings) -> float:
        self.looks[settings] = float(self.landscape.points[settings]["look_cost"])
        return self.looks[settings]

    def _too_dear(self, look: float) -> bool:
        return bool(self.ratios) and look > SCREEN_FACTOR * self.best * median(self.ratios)

    def run(self, budget_cpu_s: float) -> list[tuple[float, float]]:
        """(spent CPU seconds, cost of the best allowed point so far) after each trial."""
        while self.account.spent_cpu_s < budget_cpu_s:
            try:
                proposal, candidate = self.sampler.ask(self.landscape.space.pick)
            except Exhausted:
                break
            before_cpu_s = self.account.spent_cpu_s
            outcome = self._tried(candidate.settings, proposal.whole)
            outcome = replace(outcome, spent=self.account.spent_cpu_s - before_cpu_s)
            self.sampler.tell(proposal, outcome)
            self.trail.append((self.account.spent_cpu_s, self.best))
        return self.trail

    def _tried(self, settings: Settings, whole: bool) -> Outcome:
        here = self.landscape
        seen = settings in self.looks
        if not seen or whole:  # the model is loaded once more for what follows a look
            self.account.look(settings)
        if here.failed(settings):
            return Outcome(None)
        look = self._look(settings)
        if not whole or (self.screened and self._too_dear(look)):
            return Outcome((math.log(look),), looked=True)
        self.account.whole(settings)
        cost = here.cost(settings)
        self.ratios.append(look / cost)
        if self.screened and cost > QUALITY_WITHIN * self.best:
            return Outcome((math.log(cost),))
        self.account.judge(settings)
        kept = here.keeps(settings)
        if kept and cost < self.best:
            self.best = cost
        return Outcome((math.log(cost),), int(not kept), drop=here.drop(settings), kept=kept)


Maker = Callable[[Landscape, int], Replay]


def plain(name: str) -> Maker:
    return lambda here, seed: Replay(here, strategy(name, seed), screened=False)


def screened(name: str) -> Maker:
    return lambda here, seed: Replay(here, strategy(name, seed), screened=True)


def default(here: Landscape, seed: int) -> Replay:
    starting = promising(here.space.starts(without="transformers"))  # a study's baseline, not a start
    starts = [here.space.parameters(candidate) for candidate in starting]
    chosen = strategy(
        "default",
        seed,
        limit=here.limit,
        identity=lambda made: made.arithmetic,
        starts=starts,
        traits=traits,
    )
    return Replay(here, chosen, screened=True)


MAKERS: dict[str, Maker] = {
    "default": default,
    "random": plain("random"),
    "tpe": plain("tpe"),
    "tpe, with looks": screened("tpe"),
    "random, with looks": screened("random"),
    "gp, with looks": screened("gp"),
    "halving": screened("halving"),
    "reinforcement, with looks": screened("reinforcement"),
    "nsga2, with looks": screened("nsga2"),
}


def at(trail: Sequence[tuple[float, float]], budget: float) -> float:
    """The best cost found within a budget."""
    return next((best for spent, best in reversed(trail) if spent <= budget), math.inf)


def words(share: float) -> str:
    return "nothing" if math.isinf(share) else f"{share:+.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--strategy", action="append", choices=MAKERS, help="all of them if absent")
    options = parser.parse_args()
    for here in recorded():
        show(here, options.strategy or list(MAKERS), options.seeds)


def show(here: Landscape, names: Sequence[str], seeds: int) -> None:
    """One table: the median gap to the best allowed cost at each budget, and where searches end."""
    allowed = sum(not here.failed(s) and here.keeps(s) for s in here.points)
    print(
        f"\n{here.table['name']}: {len(here.points)} points, {allowed} allowed, grid {here.grid_cpu_s:.0f} "
        f"CPU-seconds; median of {seeds} seeds of how much dearer the choice is than the best allowed"
    )
    print(f"{'':26}" + "".join(f"{budget:>9.0%}" for budget in BUDGETS) + "   ended at")
    for name in names:
        trails = [MAKERS[name](here, seed).run(BUDGETS[-1] * here.grid_cpu_s) for seed in range(seeds)]
        gaps = [median(gap(at(t, b * here.grid_cpu_s), here.best) for t in trails) for b in BUDGETS]
        ended = median(t[-1][0] for t in trails) / here.grid_cpu_s
        print(f"{name:26}" + "".join(f"{words(g):>9}" for g in gaps) + f"{ended:>10.0%}")


if __name__ == "__main__":
    main()
