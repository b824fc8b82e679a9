"""`Payback`: after how many generated tokens a pass has saved what it cost.

Source and results take turns on the engine that will run them, in windows of the profiler; what a token
costs before and after, in pairs, is set against what the pass spent. Where joules are estimated from CPU
time on both sides, the same power stands on both, and CPU seconds are compared instead: it cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from negawatt.artifact import Artifact
from negawatt.energy import Energy, Provenance
from negawatt.engine import Engine, Request, Settings
from negawatt.meter import energy_of_cpu_time
from negawatt.profiling import Summary, Window
from negawatt.profiling.profiler import baseline_ratio, ratio_json
from negawatt.profiling.window import interleave, warm_up
from negawatt.workload import Ratio

if TYPE_CHECKING:
    import torch

ROUNDS = 6
"""Windows for each model: as many as a sign test needs to bound a median at 95 %."""
PROMPT_TOKENS = 32
NEW_TOKENS = 32
MAX_CONTEXT = PROMPT_TOKENS + NEW_TOKENS


@dataclass(frozen=True, slots=True)
class Stage:
    """A model to run, and text in its own numbering of tokens.

    Attributes:
        artifact: the model.
        windows: int64, shape ``(n, length)``; their beginnings are the prompts.
        cache: where its engine keeps what it makes of it; the model's own cache if absent.
    """

    artifact: Artifact
    windows: torch.Tensor
    cache: Path | None = None


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds and joules."""

    cpu_s: float
    energy: Energy

    def to_json(self) -> dict[str, Any]:
        return {"cpu_s": self.cpu_s, "energy": self.energy.to_json()}

    @classmethod
    def of(cls, documents: Sequence[dict[str, Any]]) -> Spent:
        """The sum of what documents with ``cpu_s`` and ``energy`` say."""
        energies = [Energy.from_json(each["energy"]) for each in documents]
        return cls(sum(each["cpu_s"] for each in documents), Energy.total(energies))


@dataclass(frozen=True)
class Payback:
    """See the module's text.

    Attributes:
        settings: how both models ran.
        before, after: their windows; those of one place are a pair.
        spent: what is to be saved again.
    """

    settings: Settings
    before: Summary
    after: Summary
    spent: Spent

    @property
    def in_joules(self) -> bool:
        """Whether joules are compared, and not CPU seconds."""
        parts = (self.before.energy, self.after.energy, self.spent.energy)
        return all(part.provenance <= Provenance.DERIVED for part in parts)

    @property
    def ratio(self) -> Ratio:
        """How many times less a token costs afterwards, at 95 %."""
        return baseline_ratio(*(self._costs(each) for each in (self.before, self.after)))

    def _costs(self, summary: Summary) -> list[float]:
        """Cost of a generated token in every window."""

        def joules(window: Window) -> float:
            return (window.measurement.energy.value_j or 0.0) / sum(window.outputs)

        return [joules(w) if self.in_joules else w.cpu_s_per_token for w in summary.windows]

    @property
    def tokens(self) -> tuple[int, int, int] | None:
        """Least, likely and most tokens; None where it is not shown that a token costs less.

        The interval spans that of the ratio, and the dearest and cheapest window before.
        """
        ratio, costs = self.ratio, self._costs(self.before)
        if ratio.low <= 1:
            return None
        value = low = high = self.spent.cpu_s
        if self.in_joules:
            energy = self.spent.energy
            value, low, high = energy.value_j or 0.0, energy.low_j or 0.0, energy.high_j or 0.0
        ways = ((low, max(costs), ratio.high), (value, median(costs), ratio.value),
                (high, min(costs), ratio.low))  # fmt: skip
        least, likely, most = (math.ceil(spent / (cost * (1 - 1 / r))) for spent, cost, r in ways)
        return min(least, likely), likely, max(likely, most)

    @property
    def text(self) -> str:
        """The finding in words."""
        ratio, found = self.ratio, self.tokens
        cost = f"a token costs {ratio.value:.2f} times less ({ratio.low:.2f}–{ratio.high:.2f})"
        if found is not None:
            least, likely, most = found
            return f"paid back after {likely:,} tokens ({least:,}–{most:,}): {cost}"
        if ratio.high < 1:
            cost = (
                f"a token costs {1 / ratio.value:.2f} times more ({1 / ratio.high:.2f}–{1 / ratio.low:.2f})"
            )
            return f"never paid back: {cost}"
        return f"not shown to be ever paid back: {cost}"

    def to_json(self) -> dict[str, Any]:
        """``payback_tokens`` and its interval are null where no token is shown to cost less."""
        least, likely, most = self.tokens or (None, None, None)
        sides = {"before": self.before, "after": self.after}
        return {
            "payback_tokens": likely,
            "payback_tokens_low": least,
            "payback_tokens_high": most,
            "text": self.text,
            "basis": "joules" if self.in_joules else "cpu_seconds",
            "spent": self.spent.to_json(),
            "ratio": ratio_json(self.ratio),
            **{
                name: {
                    "energy_per_token": side.energy_per_token.to_json(),
                    "cpu_s_per_token": side.cpu_s_per_token,
                }
                for name, side in sides.items()
            },
            "settings": self.settings.to_json(),
            "tokens": {"prompt": self.before.prompted, "generated": self.before.generated},
            "warnings": sorted({*self.before.warnings, *self.after.warnings}),
        }


def measured(
    stages: Sequence[Stage], settings: Settings, *, rounds: int = ROUNDS,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Summary], Spent]:  # fmt: skip
    """Run models in turn, the same text on each.

    Args:
        stages: at least two.
        settings: how to run all of them; their context is cut to what is run.
        rounds: windows for each.
        progress: called with the number of windows done.

    Returns:
        For each its windows, and what the whole comparison cost, loading included.

    Raises:
        EngineError: the engine refuses or fails.
    """
    settings = settings.replace(max_context=MAX_CONTEXT)
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine(each.artifact, settings, cache=each.cache)) for each in stages]
        groups = [_groups(each.windows, settings.batch, rounds) for each in stages]
        for engine, group in zip(engines, groups, strict=True):
            warm_up(engine, group[0][0])
        found = interleave(engines, list(zip(*groups, strict=True)), progress)
        cpu_s = sum(engine.spent_cpu_s for engine in engines)
    return [Summary(tuple(windows)) for windows in found], Spent(cpu_s, energy_of_cpu_time(cpu_s))


def _groups(windows: torch.Tensor, batch: int, rounds: int) -> list[list[Request]]:
    """For each round a full batch of prompts, which no token ends early."""
    prompts = [row[:PROMPT_TOKENS].tolist() for row in windows]
    chosen = [Request(prompts[k % len(prompts)], NEW_TOKENS) for k in range(rounds * batch)]
    return [chosen[n * batch : (n + 1) * batch] for n in range(rounds)]
