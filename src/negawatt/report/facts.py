"""`Facts`: what a run says, read once and tolerantly, so that every format shows the same.

A run may be unfinished, killed half-way, or written by a version that records more or less than
this one knows. Every field but the manifest's ``schema`` and ``kind`` may be absent or null; here
absence becomes None (or a missing `Energy`), and the formats say "not measured".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from negawatt.energy import Provenance
from negawatt.errors import RunError
from negawatt.report.reading import energy, mapping, named, number, sequence, text, texts
from negawatt.report.records import (
    Drop,
    Interval,
    Profile,
    Search,
    Step,
    Trial,
    Verdict,
    same,
    settings_of,
    way,
)
from negawatt.run import Run


@dataclass(frozen=True)
class Facts:
    """Everything a report shows, from one run.

    Attributes:
        baseline, best: measured in full; None in an unfinished run. Of a profile run, `best` is
            the profile and there is no baseline.
        reference: (seconds or trials since the start, CPU seconds) of the fixed load timed between trials.
        manifest, result: as they stand in the run, for what is shown without interpretation.
    """

    path: Path
    kind: str
    finished: bool
    manifest: Mapping[str, Any]
    result: Mapping[str, Any]
    trials: tuple[Trial, ...]
    baseline: Profile | None
    best: Profile | None
    frontier: tuple[Mapping[str, Any], ...]
    verdict: Verdict | None
    search: Search
    waterfall: tuple[Step, ...]
    reference: tuple[tuple[float, float], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    raw_trials: tuple[Mapping[str, Any], ...] = field(repr=False, default=())

    @classmethod
    def read(cls, path: Path | str) -> Facts:
        """Read a run folder.

        Raises:
            RunError: no run there, damaged, written by a newer version, or not readable.
        """
        run = Run.open(path)
        try:
            records = list(run.records())
            lost = _lines(run.path / "records.jsonl") - len(records)
        except OSError as exc:
            raise RunError(f"cannot read the records of {run.path}: {exc.strerror or exc}") from exc
        result = run.result
        outcome: Mapping[str, Any] = result or {}
        raw = tuple(r for r in records if r.get("record") == "trial")
        trials = tuple(Trial.read(record, i) for i, record in enumerate(raw))
        trials = _compared(trials, mapping(run.manifest.get("baseline")))
        kind = str(run.manifest["kind"])
        torn = f"damaged lines of records.jsonl, left out: {lost}"
        return cls(
            path=run.path,
            kind=kind,
            finished=result is not None,
            manifest=run.manifest,
            result=outcome,
            trials=trials,
            baseline=Profile.read(outcome.get("baseline")),
            best=Profile.read(outcome if kind == "profile" else outcome.get("best")),
            frontier=tuple(way(mapping(p)) for p in sequence(outcome.get("frontier"))),
            verdict=Verdict.read(outcome.get("verdict")),
            search=_search(mapping(outcome.get("search")), trials),
            waterfall=_steps(outcome.get("waterfall"), _unit(run.manifest)),
            reference=_reference(records),
            notes=tuple(filter(None, (text(r.get("text")) for r in records if r.get("record") == "note"))),
            warnings=(*texts(outcome.get("warnings")), *((torn,) if lost > 0 else ())),
            raw_trials=raw,
        )

    @property
    def counts_joules(self) -> bool:
        """Whether the search went by joules of counters; older ones went by CPU seconds."""
        return _unit(self.manifest) == "joules_per_token"

    @property
    def artifact_name(self) -> str:
        return named(self.manifest.get("artifact")) or (self.best.artifact if self.best else "") or "a model"

    @property
    def workload_name(self) -> str:
        return named(self.manifest.get("workload")) or "a workload"

    @property
    def baseline_settings(self) -> Mapping[str, Any]:
        return self.baseline.settings if self.baseline else settings_of(self.manifest.get("baseline"))

    @property
    def recommends(self) -> bool:
        """Whether the verdict is to run something other than today's settings."""
        best = self.best.settings if self.best else {}
        return bool(self.verdict and self.verdict.accepted) and not same(best, self.baseline_settings)

    def final_trial(self, settings: Mapping[str, Any]) -> Trial | None:
        """The last trial of these settings that was measured in the final, else in the search."""
        found = [t for t in self.trials if same(t.settings, settings) and t.state == "complete"]
        return max(found, key=lambda t: (t.stage == "final", t.number), default=None)

    def drop_of(self, profile: Profile) -> Drop | None:
        """The quality drop of a profile: its own, else that of the last trial of its settings."""
        if profile.drop:
            return profile.drop
        trial = self.final_trial(profile.settings)
        return trial.drop if trial else None

    @property
    def provenance(self) -> Provenance:
        """The worst provenance among the energies per token that were obtained."""
        profiles = [p.costs.energy for p in (self.baseline, self.best) if p is not None]
        found = [e for e in (*profiles, *(t.costs.energy for t in self.trials)) if not e.is_missing]
        return max((e.provenance for e in found), default=Provenance.MISSING)


def _search(data: Mapping[str, Any], trials: tuple[Trial, ...]) -> Search:
    """Counts come from the search's own account where there is one, else from the records."""
    spent = [t.cpu_s_spent for t in trials if t.cpu_s_spent is not None]
    durations = [t.duration_s for t in trials if t.duration_s is not None]

    def count(key: str, counted: int) -> int:
        return int(found) if (found := number(data, key)) is not None else counted

    return Search(
        trials=count("trials", len(trials)),
        failed=count("failed", sum(t.state == "failed" for t in trials)),
        pruned=count("pruned", sum(t.state == "pruned" for t in trials)),
        energy=energy(data.get("energy")),
        cpu_s=number(data, "cpu_s") if data else sum(spent) if spent else None,
        duration_s=number(data, "duration_s") if data else sum(durations) if durations else None,
        payback_tokens=number(data, "payback_tokens"),
    )


def _compared(trials: tuple[Trial, ...], baseline: Mapping[str, Any]) -> tuple[Trial, ...]:
    """Give trials that were not measured in pairs the ratio of their drift-free costs."""
    own = (t.drift_free_cost for t in trials if same(t.settings, baseline) and t.state == "complete")
    base = next(filter(None, own), None)

    def compared(trial: Trial) -> Trial:
        cost = trial.drift_free_cost
        if trial.ratio or not base or not cost or cost <= 0 or not math.isfinite(base / cost):
            return trial
        return replace(trial, ratio=Interval(base / cost))

    return tuple(map(compared, trials))


def _unit(manifest: Mapping[str, Any]) -> str:
    """The name of what a search counted, in its records."""
    joules = text(mapping(manifest.get("cost")).get("unit")) == "J"
    return "joules_per_token" if joules else "cpu_s_per_token"


def _steps(data: Any, unit: str) -> tuple[Step, ...]:
    """Levels on the way from the baseline to the winner.

    A record may hold the levels themselves, or the parts of both ends (``baseline: decode``,
    ``best: decode``), which become one step a part.
    """
    found = [(text(mapping(s).get("label")), number(s, unit)) for s in sequence(data)]
    steps = [Step(name, level) for name, level in found if level is not None]
    before = {s.label.removeprefix("baseline: "): s for s in steps if s.label.startswith("baseline: ")}
    after = {s.label.removeprefix("best: "): s for s in steps if s.label.startswith("best: ")}
    if not before or len(before) + len(after) < len(steps):
        return tuple(steps)
    level = sum(s.per_token for s in before.values())
    levels = [Step("what you run today", level)]
    for name in dict.fromkeys([*before, *after]):
        level += sum(d[name].per_token * sign for d, sign in ((after, 1), (before, -1)) if name in d)
        levels.append(Step(name, max(level, 0.0)))
    return tuple(levels)


def _reference(records: list[dict[str, Any]]) -> tuple[tuple[float, float], ...]:
    found = [(number(r, "time_s"), number(r, "cpu_s")) for r in records if r.get("record") == "reference"]
    if not found:  # timed beside every trial instead
        trials = [r for r in records if r.get("record") == "trial"]
        found = [(float(i), number(r, "reference_s")) for i, r in enumerate(trials)]
    points = sorted((t, c) for t, c in found if t is not None and c is not None and c > 0)
    return tuple((t - points[0][0], c) for t, c in points)


def _lines(file: Path) -> int:
    if not file.exists():
        return 0
    with file.open("rb") as lines:
        return sum(bool(line.strip()) for line in lines)
