"""`Facts`: what a run says, read once and tolerantly, so that every format shows the same.

A run may be unfinished, killed half-way, or written by a version that records more or less than
this one knows. Every field but the manifest's ``schema`` and ``kind`` may be absent or null; here
absence becomes None (or a missing `Energy`), and the formats say "not measured".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from negawatt.energy import Energy, Provenance
from negawatt.errors import RunError
from negawatt.run import Run

STAGES = ("screen", "search", "final")
_LOWER_IS_BETTER = ("perplexity", "kl", "nll", "loss")
_NOT_A_SHARE = (*_LOWER_IS_BETTER, "chrf", "bleu")
_DEFAULTS: dict[str, Any] = {
    "device": "cpu",
    "kv_cache": "default",
    "flash_attention": None,
    "speculation": "none",
    "max_context": 2048,
}


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its interval, where known."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, data: Any, value: str = "value") -> Interval | None:
        found = number(data, value)
        return None if found is None else cls(found, number(data, "low"), number(data, "high"))


@dataclass(frozen=True)
class Quality:
    """A metric's value on `n` items. Shares (accuracy …) lie in 0..1 and print in percent."""

    metric: str
    score: Interval
    n: int | None

    @property
    def lower_is_better(self) -> bool:
        return any(word in self.metric.lower() for word in _LOWER_IS_BETTER)

    @property
    def is_share(self) -> bool:
        return is_share(self.metric)


@dataclass(frozen=True)
class Drop:
    """Paired quality difference to the baseline; positive is worse. `bound` is one-sided, 95 %."""

    mean: float
    low: float | None
    high: float | None
    bound: float | None


@dataclass(frozen=True)
class Costs:
    """What one way of running cost and delivered; None where it was not measured."""

    energy: Energy
    cpu_s_per_token: float | None
    tokens_per_s: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    tpot_p50_ms: float | None
    tpot_p95_ms: float | None
    memory_bytes: float | None
    quality: Quality | None
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Costs:
        score = Interval.read(data.get("quality"))
        metric = text(mapping(data.get("quality")).get("metric")) or "quality"
        n = number(data, "quality", "n")
        return cls(
            energy=energy(data.get("energy_per_token")),
            cpu_s_per_token=number(data, "cpu_s_per_token"),
            tokens_per_s=number(data, "tokens_per_s"),
            ttft_p50_ms=number(data, "ttft_ms", "p50"),
            ttft_p95_ms=number(data, "ttft_ms", "p95"),
            tpot_p50_ms=number(data, "tpot_ms", "p50"),
            tpot_p95_ms=number(data, "tpot_ms", "p95"),
            memory_bytes=number(data, "peak_rss_bytes"),
            quality=None if score is None else Quality(metric, score, None if n is None else int(n)),
            warnings=texts(data.get("warnings")),
        )


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried.

    `state` is complete, pruned, failed, or unknown; `ratio` is how many times fewer CPU seconds per
    token it needs than the baseline did beside it.
    """

    number: int
    settings: Mapping[str, Any]
    state: str
    stage: str
    reason: str
    costs: Costs
    ratio: Interval | None
    drop: Drop | None
    cpu_s_spent: float | None
    duration_s: float | None

    @classmethod
    def read(cls, data: Mapping[str, Any], position: int) -> Trial:
        found = number(data, "number")
        mean = number(data, "quality_drop", "mean")
        ends = {key: number(data, "quality_drop", key) for key in ("low", "high", "upper_one_sided")}
        return cls(
            number=position if found is None else int(found),
            settings=mapping(data.get("settings")),
            state=text(data.get("state")) or "unknown",
            stage=text(data.get("stage")) or "unknown",
            reason=text(data.get("reason")),
            costs=Costs.read(data),
            ratio=Interval.read(data.get("ratio_to_baseline")),
            drop=None if mean is None else Drop(mean, ends["low"], ends["high"], ends["upper_one_sided"]),
            cpu_s_spent=number(data, "cpu_s_spent"),
            duration_s=number(data, "duration_s"),
        )

    @property
    def label(self) -> str:
        return label(self.settings)


@dataclass(frozen=True)
class Phase:
    """Cost of one phase: of the whole load, or of one token in prefill or decode."""

    name: str
    energy: Energy
    cpu_s: float | None


@dataclass(frozen=True)
class Profile:
    """One configuration, measured in full. `request_tokens`: mean prompt and new tokens a request."""

    artifact: str
    settings: Mapping[str, Any]
    costs: Costs
    phases: tuple[Phase, ...]
    spread: tuple[float, float] | None
    request_tokens: tuple[float, float] | None
    cost_model: Mapping[str, Any]

    @classmethod
    def read(cls, data: Any) -> Profile | None:
        content = mapping(data)
        if not content:
            return None
        phases = []
        for name, suffix in (("load", ""), ("prefill", "_per_token"), ("decode", "_per_token")):
            phase = mapping(mapping(content.get("phases")).get(name))
            joules, cpu_s = energy(phase.get(f"energy{suffix}")), number(phase, f"cpu_s{suffix}")
            if cpu_s is not None or not joules.is_missing:
                phases.append(Phase(name, joules, cpu_s))
        requests = number(content, "requests")
        prompt, generated = number(content, "tokens", "prompt"), number(content, "tokens", "generated")
        spread = [v for v in sequence(content.get("cpu_s_per_token_spread")) if _is_number(v)]
        return cls(
            artifact=named(content.get("artifact")),
            settings=mapping(content.get("settings")),
            costs=Costs.read(content),
            phases=tuple(phases),
            spread=(min(spread), max(spread)) if spread else None,
            request_tokens=(prompt / requests, generated / requests)
            if requests and prompt is not None and generated is not None
            else None,
            cost_model=mapping(content.get("cost_model")),
        )

    @property
    def label(self) -> str:
        return label(self.settings)


@dataclass(frozen=True)
class Verdict:
    """The answer of a finished search."""

    saving: Interval | None
    ratio: Interval | None
    drop: float | None
    drop_bound: float | None
    accepted: bool
    text: str

    @classmethod
    def read(cls, data: Any) -> Verdict | None:
        content = mapping(data)
        if not content:
            return None
        saving = number(content, "saving")
        ends = number(content, "saving_low"), number(content, "saving_high")
        return cls(
            saving=None if saving is None else Interval(saving, *ends),
            ratio=Interval.read(content.get("ratio")),
            drop=number(content, "quality_drop"),
            drop_bound=number(content, "quality_drop_high"),
            accepted=content.get("accepted") is True,
            text=text(content.get("text")),
        )


@dataclass(frozen=True)
class Search:
    """What the search itself cost."""

    trials: int
    failed: int
    pruned: int
    energy: Energy
    cpu_s: float | None
    duration_s: float | None
    payback_tokens: float | None


@dataclass(frozen=True)
class Step:
    """One step of the way from the baseline to the winner: the level after it."""

    label: str
    cpu_s_per_token: float


@dataclass(frozen=True)
class Facts:
    """Everything a report shows, from one run.

    Attributes:
        baseline, best: measured in full; None in an unfinished run. Of a profile run, `best` is
            the profile and there is no baseline.
        reference: (seconds since the start, CPU seconds) of the fixed load timed between trials.
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
        if result is not None and not isinstance(result, dict):
            raise RunError(f"{run.path / 'result.json'} is damaged: it holds no JSON object")
        outcome: Mapping[str, Any] = result or {}
        raw = tuple(r for r in records if r.get("record") == "trial")
        trials = tuple(Trial.read(record, i) for i, record in enumerate(raw))
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
            frontier=tuple(mapping(mapping(p).get("settings")) for p in sequence(outcome.get("frontier"))),
            verdict=Verdict.read(outcome.get("verdict")),
            search=_search(mapping(outcome.get("search")), trials),
            waterfall=_steps(outcome.get("waterfall")),
            reference=_reference(records),
            notes=tuple(filter(None, (text(r.get("text")) for r in records if r.get("record") == "note"))),
            warnings=(*texts(outcome.get("warnings")), *((torn,) if lost > 0 else ())),
            raw_trials=raw,
        )

    @property
    def artifact_name(self) -> str:
        return named(self.manifest.get("artifact")) or (self.best.artifact if self.best else "") or "a model"

    @property
    def workload_name(self) -> str:
        return named(self.manifest.get("workload")) or "a workload"

    @property
    def baseline_settings(self) -> Mapping[str, Any]:
        return self.baseline.settings if self.baseline else mapping(self.manifest.get("baseline"))

    @property
    def recommends(self) -> bool:
        """Whether the verdict is to run something other than today's settings."""
        best = self.best.settings if self.best else {}
        return bool(self.verdict and self.verdict.accepted) and not same(best, self.baseline_settings)

    def final_trial(self, settings: Mapping[str, Any]) -> Trial | None:
        """The last trial of these settings that was measured in the final, else in the search."""
        found = [t for t in self.trials if same(t.settings, settings) and t.state == "complete"]
        return max(found, key=lambda t: (t.stage == "final", t.number), default=None)

    @property
    def provenance(self) -> Provenance:
        """The worst provenance among the energies per token that were obtained."""
        profiles = [p.costs.energy for p in (self.baseline, self.best) if p is not None]
        found = [e for e in (*profiles, *(t.costs.energy for t in self.trials)) if not e.is_missing]
        return max((e.provenance for e in found), default=Provenance.MISSING)


def label(settings: Mapping[str, Any]) -> str:
    """Short form of settings for tables: engine, weights, threads, batch, and what is not default."""
    if not settings:
        return "settings not recorded"
    threads = settings.get("threads")
    parts = [
        text(settings.get("engine")) or "engine unknown",
        text(settings.get("weight_format")) or "native",
    ]
    parts.append("default threads" if threads is None else f"{threads} thread{'' if threads == 1 else 's'}")
    parts.append(f"batch {settings.get('batch') or 1}")
    for name in sorted(set(settings) - {"engine", "weight_format", "threads", "batch"}):
        value = settings[name]
        if value is None or value == _DEFAULTS.get(name):
            continue
        spoken = name.replace("_", " ")
        parts.append(f"{value} {spoken}" if isinstance(value, str) else f"{spoken} {value}")
        if isinstance(value, bool):
            parts[-1] = spoken if value else f"no {spoken}"
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two settings describe the same way of running (and say anything at all)."""
    return bool(left) and left == right


def is_share(metric: str) -> bool:
    """Whether a metric lies in 0..1 and reads best in percent."""
    return not any(word in metric.lower() for word in _NOT_A_SHARE)


# -- tolerant reading: absence and wrong types become None, never an exception ----------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(data: Any, *keys: str) -> float | None:
    """The finite number at a path of keys, or None."""
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return float(data) if _is_number(data) else None


def mapping(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}


def sequence(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def text(data: Any) -> str:
    return "" if data is None or isinstance(data, (Mapping, list)) else str(data).strip()


def texts(data: Any) -> tuple[str, ...]:
    return tuple(filter(None, map(text, sequence(data))))


def named(data: Any) -> str:
    """The name of an artifact or workload, given as an object with a name or as a string."""
    return text(mapping(data).get("name")) if isinstance(data, Mapping) else text(data)


def energy(data: Any) -> Energy:
    if not isinstance(data, Mapping):
        return Energy.missing("not recorded")
    try:
        return Energy.from_json(data)
    except (ValueError, TypeError) as exc:
        return Energy.missing(f"the record is unreadable ({exc})")


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


def _steps(data: Any) -> tuple[Step, ...]:
    found = ((text(mapping(s).get("label")), number(s, "cpu_s_per_token")) for s in sequence(data))
    return tuple(Step(name, level) for name, level in found if level is not None)


def _reference(records: list[dict[str, Any]]) -> tuple[tuple[float, float], ...]:
    found = [(number(r, "time_s"), number(r, "cpu_s")) for r in records if r.get("record") == "reference"]
    points = sorted((t, c) for t, c in found if t is not None and c is not None and c > 0)
    return tuple((t - points[0][0], c) for t, c in points)


def _lines(file: Path) -> int:
    if not file.exists():
        return 0
    with file.open("rb") as lines:
        return sum(bool(line.strip()) for line in lines)
