"""How often is a verdict wrong? Hundreds of searches whose truth is known, through the real study and proofs.

    python benchmarks/verdict_errors.py --searches 400

Costs and answers are drawn with known truth (`negawatt.testing.simulated_search`); what decides is real.
Three worlds: candidates of mixed quality; the trap, where all candidates are cheaper and break the limit by a
little, so that any accepted verdict is wrong; and one where nothing is cheaper than what runs today.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from negawatt.testing.simulated_search import Simulated, World, simulate, world
from negawatt.workload import wilson

LIMIT = 0.01


def mixed(rng: np.random.Generator) -> World:
    drops = rng.choice([0.0, 0.0, 0.004, 0.012, 0.02, 0.06], size=64)
    costs = rng.uniform(0.3, 0.9, size=64)
    return world(rng, lambda n: float(drops[n]), lambda n: float(costs[n]))


def trap(rng: np.random.Generator) -> World:
    costs = rng.uniform(0.3, 0.5, size=64)
    return world(rng, lambda n: LIMIT + 1e-4, lambda n: float(costs[n]))


def level(rng: np.random.Generator) -> World:
    return world(rng, lambda n: 0.0, lambda n: 1.0)


def wrong_quality(found: Simulated) -> bool:
    return found.verdict.accepted and found.true_drop > LIMIT


def wrong_saving(found: Simulated) -> bool:
    return found.verdict.accepted and found.true_ratio <= 1.0


CLAIMS: tuple[tuple[str, Callable[[np.random.Generator], World], str, Callable[[Simulated], bool]], ...] = (
    ("mixed", mixed, "accepted, and the quality bound is broken", wrong_quality),
    ("trap", trap, "accepted, and the quality bound is broken", wrong_quality),
    ("level", level, "a difference is said where there is none", wrong_saving),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--strategy", default="default")
    parser.add_argument("--world", choices=[claim[0] for claim in CLAIMS], help="only this one")
    options = parser.parse_args()
    print(f"{'world':8}{'searches':>9}{'accepted':>9}{'wrong':>7}  share wrong; at most 5 % is claimed")
    for name, make, what, wrong in CLAIMS:
        if options.world not in (None, name):
            continue
        found = []
        with tempfile.TemporaryDirectory(prefix="negawatt-verdicts-") as folder:
            for number in range(options.searches):
                rng = np.random.default_rng([number, len(name)])
                found.append(
                    simulate(
                        make(rng), Path(folder) / str(number), rng, limit=LIMIT, strategy=options.strategy
                    )
                )
        errors = sum(wrong(one) for one in found)
        share = wilson(errors, len(found))
        accepted = sum(one.verdict.accepted for one in found)
        print(
            f"{name:8}{len(found):>9}{accepted:>9}{errors:>7}  {share.value:.1%} ({share.low:.1%} to "
            f"{share.high:.1%}): {what}"
        )


if __name__ == "__main__":
    main()
