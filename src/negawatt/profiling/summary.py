"""`Summary`: what a set of windows of one engine says together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from negawatt.energy import Energy
from negawatt.engine import Completion, Step
from negawatt.profiling.window import Part, Window

NEIGHBOUR_SHARE = 0.10
"""Other processes using more than this share of one core during a window are reported."""
STEAL_SHARE = 0.02
"""A host that withholds more than this share of the time is reported."""
DRIFT = 1.15
"""A reference load whose cost varies by more than this factor is reported."""


@dataclass(frozen=True)
class Summary:
    """What a set of windows says together."""

    windows: tuple[Window, ...]

    @property
    def unit(self) -> str:
        """What outputs are: a ``token`` generated, or an ``answer`` to a question."""
        return self.windows[0].unit

    @property
    def generated(self) -> int:
        return sum(sum(w.outputs) for w in self.windows)

    @property
    def prompted(self) -> int:
        return sum(sum(w.inputs) for w in self.windows)

    @property
    def cpu_s(self) -> float:
        return sum(w.cpu_s for w in self.windows)

    @property
    def steps(self) -> list[Step]:
        return [step for w in self.windows for step in w.steps]

    @property
    def cpu_s_per_token(self) -> float:
        """CPU seconds for each output over all windows."""
        if parts := self.parts.values():
            return sum(part.cpu_s_per_output for part in parts)
        return self.cpu_s / self.generated

    @property
    def parts(self) -> dict[str, Part]:
        """Of a search its parts over all windows, by name; empty for all else."""
        found: dict[str, Part] = {}
        for part in (part for w in self.windows for part in w.parts):
            before = found.get(part.name, Part(part.name, 0, 0.0, part.per_output))
            found[part.name] = replace(
                before, texts=before.texts + part.texts, cpu_s=before.cpu_s + part.cpu_s
            )
        return found

    def of_part(self, part: Part) -> dict[str, Any]:
        """Joules and CPU seconds of each text of one part, as its share of the CPU time."""
        return {
            "texts": part.texts,
            "per_answer": part.per_output,
            "energy_per_text": self.energy.scaled(part.cpu_s / self.cpu_s / part.texts).to_json(),
            "cpu_s_per_text": part.cpu_s_per_text,
        }

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest `cpu_s_per_token` of a window, after division by the reference load."""
        middle = statistics.median(w.reference_s for w in self.windows)
        values = [w.cpu_s_per_token * middle / w.reference_s for w in self.windows]
        return min(values), max(values)

    @property
    def energy(self) -> Energy:
        """Joules of all windows."""
        return Energy.total(w.measurement.energy for w in self.windows)

    @property
    def energy_per_token(self) -> Energy:
        """Joules for each output, prefill included."""
        return self.energy.scaled(self.cpu_s_per_token / self.cpu_s)

    def phase(self, name: str, tokens: int) -> dict[str, Any]:
        """Joules and CPU seconds of one phase, as its share of the CPU time, per `tokens`."""
        total = sum(s.cpu_s for s in self.steps)
        share = sum(s.cpu_s for s in self.steps if s.phase == name) / total
        return {
            "energy": self.energy.scaled(share).to_json(),
            "energy_per_token": self.energy.scaled(share / max(1, tokens)).to_json(),
            "cpu_s_per_token": self.cpu_s * share / max(1, tokens),
            "tokens": tokens,
        }

    @property
    def proposals(self) -> dict[str, int]:
        """What speculation did: calls of the model, tokens proposed to it, and how many were right."""
        calls = [s for s in self.steps if s.phase == "decode"]
        sequences = sum(s.sequences for s in calls)
        return {
            "calls": len(calls),
            "proposed": sum(s.tokens for s in calls) - sequences,
            "accepted": sum(s.produced for s in calls) - sequences,
        }

    @property
    def tokens_per_s(self) -> float:
        return self.generated / sum(w.wall_s for w in self.windows)

    @property
    def ttft_ms(self) -> dict[str, float]:
        """Time from the start of a request's prefill to its first token."""
        return percentiles([1000 * c.token_times_s[0] for c in self._completions])

    @property
    def tpot_ms(self) -> dict[str, float]:
        """Time per output token after the first, of each request."""
        times = [c.token_times_s for c in self._completions if len(c.token_times_s) > 1]
        return percentiles([1000 * (t[-1] - t[0]) / (len(t) - 1) for t in times])

    @property
    def _completions(self) -> list[Completion]:
        return [c for w in self.windows for c in w.completions]

    @property
    def warnings(self) -> list[str]:
        """What disturbed the measurement, in sentences."""
        measured = {x for w in self.windows for x in w.measurement.warnings}
        said = ("meanwhile", "withheld")  # the meter says this of each window; here it is summed up
        found = sorted(x for x in measured if not any(word in x for word in said))
        noisy = [w.neighbour_share for w in self.windows if w.neighbour_share > NEIGHBOUR_SHARE]
        if noisy:
            found.append(
                f"other processes used up to {max(noisy):.0%} of a core in {len(noisy)} of "
                f"{len(self.windows)} windows"
            )
        stolen = sum(w.measurement.steal_s for w in self.windows)
        if stolen > STEAL_SHARE * sum(w.measurement.duration_s for w in self.windows):
            found.append(f"the host withheld {stolen:.1f} CPU-seconds from this virtual machine")
        references = [w.reference_s for w in self.windows]
        if max(references) > DRIFT * min(references):
            found.append(
                f"the host's speed drifted: the reference load cost {1000 * min(references):.1f} to "
                f"{1000 * max(references):.1f} CPU-ms"
            )
        return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """``p50`` and ``p95`` by linear interpolation; empty without values."""
    if not values:
        return {}
    ordered = sorted(values)

    def at(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    return {"p50": at(0.5), "p95": at(0.95)}
