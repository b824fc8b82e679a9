"""`Observed`: what an earlier run or a server's receipts say of use, for a search to start from."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from negawatt.artifact import Tokenizer
from negawatt.engine import Settings
from negawatt.engine.backends import backend
from negawatt.errors import NegawattError, UsageError
from negawatt.profiling.quality import prompt_tokens
from negawatt.run import Run
from negawatt.tuning.candidate import Candidate, refuse_limits
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.trial import kept_trials
from negawatt.workload import TrafficItem, Workload

MOST_STARTS = 4
"""Candidates of an earlier search that are tried first."""
FEWEST_HOURS = 1.0
"""Of receipts, to tell tokens per day from them."""
FAR = 2.0
"""A prompt whose length is off by more than this factor stands badly for what was observed."""


@dataclass(frozen=True)
class Observed:
    """What was seen in use, as far as it is told.

    Attributes:
        origin: where it was read.
        present: what was chosen there and runs today.
        starts: the best candidates known there, the present one first.
        baseline: what savings and quality were told against.
        lengths: tokens of prompt and answer of each request.
        in_flight: requests answered at the same time, on average over the time that any was.
        tokens_per_day: generated.
        model_sha256: identity of the model that ran; empty where it is not told.
    """

    origin: str
    present: Candidate | None = None
    starts: tuple[Candidate, ...] = ()
    baseline: Settings | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    in_flight: float | None = None
    tokens_per_day: float | None = None
    model_sha256: str = ""

    @classmethod
    def read(cls, path: Path, latest_s: float = math.inf) -> Observed:
        """Read a finished ``tune`` or ``profile`` run, or receipts that a server exported as CSV.

        Args:
            latest_s: of receipts only those of so many seconds before the last.

        Raises:
            UsageError: there is neither.
            RunError: the run is damaged, or was written by a newer version.
        """
        if path.is_dir():
            return _of_run(Run.open(path))
        if path.suffix.lower() == ".csv":
            return _of_receipts(path, latest_s)
        what = "" if path.exists() else ", which is not there"
        raise UsageError(f"expected the folder of a run, or receipts as a .csv file, not {path}{what}")

    def shaped(self, workload: Workload, tokenizer: Tokenizer) -> tuple[Workload, str]:
        """The workload with traffic of the lengths observed, and a note where its prompts do not reach them.

        Requests are drawn evenly over what was observed; each gets the prompt of the workload that is
        nearest in length, and the very length of answer.
        """
        if not self.lengths or not workload.traffic:
            return workload, ""
        known = [(len(prompt_tokens(tokenizer, item.prompt)), item) for item in workload.traffic]
        ordered, n = sorted(self.lengths), max(len(workload.traffic), 4)
        drawn = [ordered[int((k + 0.5) * len(ordered) / n)] for k in range(n)]
        items: list[TrafficItem] = []
        worst = 1.0
        for number, (n_in, n_out) in enumerate(drawn):
            length, item = min(known, key=lambda pair, n_in=n_in: abs(pair[0] - n_in))  # type: ignore[misc]
            worst = max(worst, length / max(1, n_in), n_in / length)
            items.append(replace(item, id=f"{item.id}-as-seen-{number}", max_new_tokens=max(1, n_out)))
        note = (
            f"Prompts in use differ in length from those of {workload.name} by up to {worst:.1f} times; "
            "give a workload with prompts like them for figures that hold"
            if worst > FAR
            else ""
        )
        return replace(workload, traffic=tuple(items)), note

    def within(self, max_context: int, cost: Cost = CPU_SECONDS) -> Observed:
        """The same candidates with the context that is searched now.

        Args:
            cost: what is counted; CPU seconds cannot tell what limits save: what runs with some is left out.

        Raises:
            UsageError: what runs today holds the machine to limits, and CPU seconds are counted.
        """
        if self.present is None:
            return self
        if not cost.in_joules:
            refuse_limits(self.present.settings, self.origin)
        told = [each for each in self.starts if cost.in_joules or not each.settings.limits]
        starts = tuple(each.run_as(max_context=max_context) for each in told)
        return replace(self, present=self.present.run_as(max_context=max_context), starts=starts)

    def to_json(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "present": self.present.to_json() if self.present else None,
            "requests": len(self.lengths),
            "in_flight": self.in_flight,
            "tokens_per_day": self.tokens_per_day,
        }


def _of_run(run: Run) -> Observed:
    if run.manifest["kind"] not in ("tune", "profile"):
        raise UsageError(f"{run.path} is a {run.manifest['kind']} run; give one of tune or profile")
    result = run.result
    if result is None:
        raise UsageError(f"{run.path} is unfinished, so nothing was chosen there yet")
    try:
        sha = str((run.manifest.get("artifact") or {}).get("sha256", ""))
        if run.manifest["kind"] == "profile":
            present = Candidate.from_json(result)
            backend(present.settings.engine)
            return Observed(str(run.path), present, (present,), model_sha256=sha)
        present = Candidate.from_json(result["best"])
        baseline = Settings.from_json(run.manifest["baseline"])
        known = [present, *_cheapest(run)]
        for each in known:
            backend(each.settings.engine)
    except NegawattError as exc:
        raise UsageError(f"{run.path} does not say what was chosen there: {exc}") from exc
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise UsageError(f"{run.path} does not say what was chosen there: {exc!r}") from exc
    starts = tuple(dict.fromkeys(known))[: MOST_STARTS + 1]
    return Observed(str(run.path), present, starts, baseline, model_sha256=sha)


def _cheapest(run: Run) -> list[Candidate]:
    """Candidates of a search that kept its constraints, cheapest first."""
    own = (trial for stage, trial in kept_trials(run) if stage == "search")
    good = [(t.cost, t.candidate) for t in own if t.feasible and t.cost is not None]
    return [candidate for _, candidate in sorted(good, key=lambda pair: pair[0])]


def _of_receipts(path: Path, latest_s: float) -> Observed:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("outcome") == "completed"]
        newest_s = max((float(r["created_s"]) for r in rows), default=0.0)
        rows = [r for r in rows if float(r["created_s"]) >= newest_s - latest_s]
        lengths = tuple((int(r["input_tokens"]), int(r["output_tokens"])) for r in rows)
        spans = [(float(r["created_s"]), float(r["created_s"]) + float(r["duration_s"])) for r in rows]
    except OSError as exc:
        raise UsageError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (KeyError, TypeError, ValueError, csv.Error) as exc:
        raise UsageError(f"{path} holds no receipts as a server exports them: {exc!r}") from exc
    lengths = tuple(pair for pair in lengths if min(pair) > 0)
    if not lengths:
        raise UsageError(f"{path} holds no completed request")
    days = (max(end for _, end in spans) - min(begin for begin, _ in spans)) / 86_400
    told = days * 24 >= FEWEST_HOURS
    return Observed(
        str(path),
        lengths=lengths,
        in_flight=_in_flight(spans),
        tokens_per_day=sum(n for _, n in lengths) / days if told else None,
    )


def _in_flight(spans: Sequence[tuple[float, float]]) -> float | None:
    """Requests at the same time, averaged over the time that any was answered."""
    busy_s, until = 0.0, 0.0
    for begin, end in sorted(spans):
        busy_s += max(0.0, end - max(begin, until))
        until = max(until, end)
    return sum(end - begin for begin, end in spans) / busy_s if busy_s > 0 else None


def batch_for(in_flight: float | None, batches: Sequence[int]) -> int:
    """The batch that serves so many requests at a time: the largest that they fill, at least the smallest."""
    fitting = [b for b in batches if in_flight is not None and b <= max(1.0, in_flight)]
    return max(fitting, default=min(batches))


def present_text(present: Candidate, winner: Candidate | None, ratio: Mapping[str, Any] | None) -> str:
    """Whether what runs today is still the best, in a sentence.

    Args:
        present: what runs today.
        winner: the search's; None where nothing better than the baseline was proved.
        ratio: cost of the present choice over the winner's with its interval, measured in turn; None
            where it could not be.
    """
    if winner == present:
        return f"The present choice ({present}) is still the best one."
    if winner is None:
        return f"Nothing was proved to be better than the baseline, the present choice ({present}) included."
    if ratio is None:
        return f"The present choice ({present}) does not run any more; {winner} does."
    low, high = ratio["low"], ratio["high"]
    words = f"it costs {ratio['value']:.2f} times as much as {winner} ({low:.2f} to {high:.2f})"
    if low > 1:
        return f"The present choice ({present}) is no longer the best one: {words}."
    return f"The present choice ({present}) may stay: no difference to {winner} is shown ({words})."
