"""How honest and how narrow are a calibrated curve's intervals, beside the published curves' band?

Synthetic machines with a known power curve are calibrated by the same load steps as
``negawatt calibrate`` and then asked for the joules of loads and kinds of work they never saw. The
band is that of the published models for a part whose TDP is known, brought to the machine's own full
power, which flatters it: in the field that power is not known, and the band several times as wide.
"""

from __future__ import annotations

import random
import statistics
from collections import defaultdict

from rich.console import Console
from rich.table import Table

from negawatt.meter.calibrate import steps_plan
from negawatt.meter.calibrated import curve_power
from negawatt.meter.cputime import cpu_power
from negawatt.testing.synthetic import SyntheticMachine

MACHINES, QUESTIONS = 2000, 10


def main() -> None:
    held: dict[str, list[bool]] = defaultdict(list)
    widths: dict[str, list[float]] = defaultdict(list)
    band_held: dict[str, list[bool]] = defaultdict(list)
    published = cpu_power("AMD EPYC 7763 64-Core Processor")
    for seed in range(MACHINES):
        dice = random.Random(seed)
        machine = SyntheticMachine(dice)
        power = curve_power(machine.calibrated(steps_plan()))
        scale = (machine.idle_w + machine.dynamic_w) / machine.threads / published.value_w
        for n in range(QUESTIONS):
            load = dice.uniform(0.02, 1.0)
            idle_w = machine.idle_w * (1 + machine.drift)
            watts = machine.power_w(f"new {n}", load, 1.0)
            truth_j, cpu_s = load * idle_w + watts - idle_w, load * machine.threads
            energy = power.energy(cpu_s, load)
            held[machine.shape].append(energy.low_j <= truth_j <= energy.high_j)
            widths[machine.shape].append((energy.high_j - energy.low_j) / truth_j)
            band_held[machine.shape].append(
                published.low_w * scale * cpu_s <= truth_j <= published.high_w * scale * cpu_s
            )
    band = (published.high_w - published.low_w) / published.value_w
    table = Table(title=f"{MACHINES} machines, {QUESTIONS} held-back loads each")
    for name in ("truth", "curve holds", "median width", "band holds", "width"):
        table.add_column(name)
    for shape in [*sorted(held), "all"]:
        pick = sorted(held) if shape == "all" else [shape]
        inside, width, others = ([x for s in pick for x in d[s]] for d in (held, widths, band_held))
        table.add_row(
            shape,
            f"{statistics.mean(inside):.1%}",
            f"{statistics.median(width):.0%}",
            f"{statistics.mean(others):.1%}",
            f"{band:.0%}",
        )
    Console().print(table)
    misses, others = (
        1 - statistics.mean(x for inside in d.values() for x in inside) for d in (held, band_held)
    )
    print(f"the band misses the truth {others / misses:.1f} times as often as the curve")


if __name__ == "__main__":
    main()
