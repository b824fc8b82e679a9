"""`Watch`: is what runs today still the best for what is asked today, and is a new search worth its joules?

A look at receipts costs nothing. Only where their lengths or their concurrency have drifted since the last
measurement, the present choice and the best others that its search knew are measured in turn on requests of
today's lengths. A new search is worth it where the surest part of that saving, over a horizon, exceeds what
the last search and this measurement took. What no search has tried yet cannot be known to be better: a watch
finds that the order has changed, not that something new exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine import Settings
from negawatt.errors import EngineError, UsageError
from negawatt.meter import Meter, energy_of_cpu_time
from negawatt.profiling.profiler import baseline_ratio, ratio_json
from negawatt.profiling.quality import prompt_tokens
from negawatt.run import Run
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import Cost
from negawatt.tuning.finals import Finals
from negawatt.tuning.observed import Observed, batch_for
from negawatt.tuning.space import BATCHES
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.workshop import Workshop
from negawatt.workload import Ratio, Workload

FEWEST_REQUESTS = 20
"""Completed requests without which nothing is said."""
DRIFTED = 1.5
"""Factor of a median length, or of requests in flight, from which on it is worth measuring."""
HORIZON_DAYS = 30.0
Tick = Callable[[str], None]


@dataclass(frozen=True)
class Demand:
    """What requests are like.

    Attributes:
        prompt, answer: median tokens.
        in_flight: at the same time; at least 1.
    """

    prompt: float
    answer: float
    in_flight: float

    @classmethod
    def seen(cls, observed: Observed) -> Demand:
        prompts, answers = zip(*observed.lengths, strict=True)
        return cls(median(prompts), median(answers), max(1.0, observed.in_flight or 1.0))

    @classmethod
    def of(cls, workload: Workload, artifact: Artifact, settings: Settings) -> Demand:
        """What a choice was made for: the requests of its search, filling its batch."""
        prompts = [len(prompt_tokens(artifact.tokenizer, item.prompt)) for item in workload.traffic]
        answers = [item.max_new_tokens for item in workload.traffic]
        return cls(median(prompts), median(answers), float(settings.batch))

    def drift(self, other: Demand) -> float:
        """The largest factor between the two in any respect, at least 1."""
        pairs = zip(self.to_json().values(), other.to_json().values(), strict=True)
        return float(max(max(a, b) / max(1.0, min(a, b)) for a, b in pairs))

    def to_json(self) -> dict[str, float]:
        return {"prompt": self.prompt, "answer": self.answer, "in_flight": self.in_flight}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Demand:
        return cls(float(data["prompt"]), float(data["answer"]), float(data["in_flight"]))


@dataclass(frozen=True)
class Finding:
    """What a look came to.

    Attributes:
        due: a new search is worth its joules.
        text: why, or why not.
        drift: since the last measurement; None where too little was seen.
        better: the cheapest known for today's requests; None where nothing was measured.
        ratio: cost of the present choice over that one's.
        gain_cpu_s: at the lower end of the ratio, over the horizon; 0 where joules were counted.
        spent_cpu_s: what measuring took.
        gain_j: the same in joules, where the search whose choice runs went by them.
    """

    due: bool
    text: str
    drift: float | None = None
    better: Candidate | None = None
    ratio: Ratio | None = None
    gain_cpu_s: float = 0.0
    spent_cpu_s: float = 0.0
    gain_j: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "due": self.due,
            "text": self.text,
            "drift": self.drift,
            "better": None if self.better is None else self.better.to_json(),
            "ratio": None if self.ratio is None else ratio_json(self.ratio),
            "gain_cpu_s": self.gain_cpu_s,
            "gain_j": self.gain_j,
            "spent_cpu_s": self.spent_cpu_s,
            "spent": energy_of_cpu_time(self.spent_cpu_s).to_json() if self.spent_cpu_s else None,
        }


class Watch:
    """Looks at what is asked, and remembers in a run of its own what it saw and decided.

    Args:
        run: of kind ``watch``; locked.
        artifact: what the present choice was searched for.
        workload: prompts to stand for those in use.
        chosen: the finished ``tune`` run whose choice runs today.
        horizon_days: over which a saving counts.
        tick: told what goes on.

    Raises:
        UsageError: the chosen run is unfinished, or of another model.
        RunError: it went by joules of counters that cannot be read here.
    """

    def __init__(
        self,
        run: Run,
        artifact: Artifact,
        workload: Workload,
        chosen: Path,
        *,
        horizon_days: float = HORIZON_DAYS,
        tick: Tick = lambda text: None,
    ) -> None:
        if not 0 < horizon_days < float("inf"):
            raise UsageError(f"the horizon must be a number of days above 0, not {horizon_days}")
        if not workload.traffic:
            raise UsageError(f"workload {workload.name} has no requests that could stand for those in use")
        self.run, self.artifact, self.workload = run, artifact, workload
        self.horizon_days, self.tick = horizon_days, tick
        self.chosen = Path(str(self._last("search", {"path": str(chosen)})["path"]))
        self.choice = self._read()
        present = self.choice.present
        assert present is not None
        made_for = Demand.of(workload, artifact, present.settings).to_json()
        self.demand = Demand.from_json(self._last("check", {"demand": made_for})["demand"])

    def _last(self, kind: str, otherwise: dict[str, Any]) -> dict[str, Any]:
        own = [r for r in self.run.records(kind) if set(otherwise) <= set(r)]
        return own[-1] if own else otherwise

    def _read(self) -> Observed:
        choice, manifest = Observed.read(self.chosen), Run.open(self.chosen).manifest
        if choice.present is None or manifest["kind"] != "tune":
            raise UsageError(f"{self.chosen} is no search; give the run folder of a finished negawatt tune")
        if choice.model_sha256 not in ("", self.artifact.sha256):
            raise UsageError(f"{self.chosen} is of another model than {self.artifact.name}")
        self.cost = Cost.from_json(manifest.get("cost"))
        if self.cost.in_joules:
            self.cost.refuse_elsewhere(Cost.here(choice.present.devices))
        return choice

    def check(self, observed: Observed) -> Finding:
        """Look at receipts; measure where they have drifted; say whether to search anew."""
        finding, demand = self._found(observed)
        record = {**finding.to_json(), "origin": observed.origin}
        if finding.ratio is not None and demand is not None:
            record["demand"] = demand.to_json()
            self.demand = demand
        self.run.append("check", record)
        return finding

    def _found(self, observed: Observed) -> tuple[Finding, Demand | None]:
        if len(observed.lengths) < FEWEST_REQUESTS or observed.tokens_per_day is None:
            n = len(observed.lengths)
            return Finding(False, f"{n} requests over too short a time say too little"), None
        demand = Demand.seen(observed)
        drift = demand.drift(self.demand)
        if drift < DRIFTED:
            words = f"what is asked has drifted by {drift:.2f} times: not worth measuring"
            return Finding(False, words, drift), demand
        return self._measured(observed, demand, drift), demand

    def _measured(self, observed: Observed, demand: Demand, drift: float) -> Finding:
        present = self.choice.present
        assert present is not None
        with Meter() as meter:
            try:
                costs = self._costs(observed, self._rivals(present, demand))
            except EngineError as exc:
                return Finding(True, f"the present choice does not run any more: {exc}", drift)
        spent_s = meter.measurement.cpu_s
        totals = {candidate: sum(each) / len(each) for candidate, each in costs.items()}
        better = min((c for c in totals if c != present), key=totals.__getitem__, default=None)
        if better is None:
            return Finding(False, "nothing else is known to run", drift, None, None, 0.0, spent_s)
        ratio = baseline_ratio(costs[present], costs[better])
        tokens = (observed.tokens_per_day or 0.0) * self.horizon_days
        gain = max(0.0, ratio.low - 1) * totals[better] * tokens
        again = self._search_takes(meter)
        words = (
            f"the present choice ({present}) costs {ratio.value:.2f} times as much as {better} "
            f"({ratio.low:.2f} to {ratio.high:.2f}) for what is asked now"
        )
        unit = "joules" if self.cost.in_joules else "CPU-seconds"
        taken = "an unknown number" if again is None else f"some {again:,.0f}"
        verdict = (
            f"{words}: at least {gain:,.0f} {unit} in {self.horizon_days:g} days, and a search takes {taken}"
        )
        due = again is not None and gain > again
        gain_s, gain_j = (0.0, gain) if self.cost.in_joules else (gain, None)
        return Finding(due, verdict, drift, better, ratio, gain_s, spent_s, gain_j)

    def _search_takes(self, meter: Meter) -> float | None:
        """What a search is likely to take, by the last one, and what this measurement took, in its unit.

        None where its joules are not known.
        """
        took = (Run.open(self.chosen).result or {})["search"]
        if not self.cost.in_joules:
            return float(took["cpu_s"]) + meter.measurement.cpu_s
        return (Energy.from_json(took["energy"]) + meter.measurement.energy).value_j

    def _rivals(self, present: Candidate, demand: Demand) -> list[Candidate]:
        """The present choice, then what its search knew, with the batch that is filled today besides."""
        batch = batch_for(demand.in_flight, BATCHES)
        known = [present, *self.choice.starts]
        return list(dict.fromkeys([*known, *(each.run_as(batch=batch) for each in known)]))

    def _costs(self, observed: Observed, candidates: list[Candidate]) -> dict[Candidate, list[float]]:
        """What a token of each that runs costs, window by window in turn.

        Raises:
            EngineError: the first of them does not run.
        """
        most = max(candidate.settings.max_context for candidate in candidates)
        workload, note = observed.within(most).shaped(self.workload, self.artifact.tokenizer)
        if note:
            self.run.append("note", {"text": note})
        workshop = Workshop(self.artifact, usage=workload, tick=self.tick)
        traffic = Traffic(workshop, workload.traffic, most)
        finals = Finals(self.run, workshop, traffic, self.tick, self.cost)
        costs = finals.costs(candidates)
        if candidates[0] not in costs:
            raise EngineError(f"{candidates[0]}; the notes of {self.run.path} say why")
        return costs

    def asked(self, observed: Observed) -> Observed:
        """What a new search starts from: today's requests, and what the last search knew."""
        known = self.choice
        return replace(observed, present=known.present, starts=known.starts, baseline=known.baseline,
                       model_sha256=known.model_sha256)  # fmt: skip

    def adopt(self, path: Path, observed: Observed, *, accepted: bool) -> None:
        """A new search has ended: its choice is what runs from now on, where it was accepted."""
        record = {"accepted": accepted, "tuned": str(path)}
        if accepted:
            record["path"] = str(path)
            self.chosen = path
            self.choice = self._read()
        self.demand = Demand.seen(observed)
        self.run.append("search", record)
