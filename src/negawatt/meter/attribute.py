"""Which part of the machine's joules is charged to one process tree."""

from __future__ import annotations

import os
from collections.abc import Mapping

from negawatt.energy import Energy, Provenance
from negawatt.meter.accumulate import Total
from negawatt.meter.cputime import CpuPower

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def by_cpu_time(
    whole: Energy, cpu_s: float, busy_s: float, duration_s: float, cores: int | None = None
) -> Energy:
    """The share of a measured whole that goes to a process tree, by CPU time.

    The value is its share of all busy CPU time: those who work carry the idle power. The lower end
    is its share of the processors' whole capacity: each carries idle power only for the time it
    was busy. The upper end allows for `busy_s` being counted in scheduler ticks.

    Args:
        whole: energy of the component over the window.
        cpu_s: CPU seconds of the process tree in the window.
        busy_s: CPU seconds of the whole machine in the window.
        duration_s: length of the window.
        cores: processors of the machine; by default those online here.
    """
    if whole.value_j is None or whole.low_j is None or whole.high_j is None:
        return whole
    cores = cores or os.cpu_count() or 1
    busy_s = max(busy_s, cpu_s)
    capacity_s = max(duration_s * cores, busy_s)
    if busy_s <= 0:
        return whole.scaled(0.0)
    share = cpu_s / busy_s
    low_share = cpu_s / capacity_s
    least_busy_s = max(cpu_s, busy_s - 2 * TICK_S * cores)
    high_share = cpu_s / least_busy_s if least_busy_s > 0 else 0.0  # none of it was this tree's
    reason = f"{share:.0%} of the busy CPU time"
    return Energy(
        whole.value_j * share,
        min(whole.low_j * low_share, whole.value_j * share),
        max(whole.high_j * high_share, whole.value_j * share),
        max(whole.provenance, Provenance.DERIVED),
        "; ".join(filter(None, (whole.reason, reason))),
    )


def charged(
    spent: Mapping[str, Energy],
    totals: Mapping[str, Total],
    power: CpuPower,
    *,
    cpu_s: float,
    busy_s: float,
    duration_s: float,
    shared: bool = True,
) -> dict[str, Energy]:
    """Energy charged to a process tree, by component; the parts add up without double counting.

    Processors and memory go by CPU time, a GPU whole to whoever measures, unless `shared` says that
    another process of the same job is charged it (`negawatt.meter.reader`). Where no processor
    counter gave a reading, the CPU-time model stands in under the name ``cpu``. Components that
    are part of another, and the meters of host and wall, which contain the chips, are left out.
    """
    chips = {
        n: e
        for n, e in spent.items()
        if totals[n].counter.boundary == "chip" and not totals[n].counter.part_of
    }
    result: dict[str, Energy] = {}
    covered: tuple[str, ...] = ()  # what the model's watts hold already
    processors = {n: e for n, e in chips.items() if n.startswith("cpu/")}
    if processors and not any(e.is_missing for e in processors.values()):
        for name, energy in processors.items():
            result[name] = by_cpu_time(energy, cpu_s, busy_s, duration_s)
    else:
        load = busy_s / (duration_s * (os.cpu_count() or 1)) if duration_s > 0 and busy_s > 0 else None
        result["cpu"] = power.energy(cpu_s, load)
        covered = power.covers
    for name, energy in chips.items():
        if name.startswith("dram/"):
            if "dram" in covered:
                continue
            result[name] = by_cpu_time(energy, cpu_s, busy_s, duration_s)
        elif not name.startswith("cpu/") and shared:
            result[name] = energy
    return result
