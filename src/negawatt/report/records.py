"""The parts of a run as a report sees them: trials, profiles, the verdict.

Every field may be absent from a record; absence becomes None, or a missing `Energy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negawatt.energy import Energy
from negawatt.report.reading import energy, is_number, mapping, named, number, sequence, text, texts

_LOWER_IS_BETTER = ("perplexity", "kl", "nll", "loss")
_NOT_A_SHARE = (*_LOWER_IS_BETTER, "chrf", "bleu")
DRAFT = "draft "
"""What comes before the name of the small model that proposes, in ``speculation``."""
_DEFAULTS: dict[str, Any] = {
    "device": "cpu",
    "gpu_layers": None,
    "kv_cache": "default",
    "flash_attention": None,
    "speculation": "none",
    "pooling": "default",
    "cores": "default",
    "power_cap_w": None,
    "clock_mhz": None,
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

    @classmethod
    def read(cls, data: Any) -> Drop | None:
        """From a paired difference, whose mean and interval count improvement."""
        gain = number(data, "mean")
        mean = number(data, "drop") if gain is None else -gain
        if mean is None:
            return None
        low, high = number(data, "low"), number(data, "high")
        ends = None if high is None else -high, None if low is None else -low
        return cls(mean, *ends, number(data, "upper_one_sided"))


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

    Attributes:
        row: its place in the run.
        state: complete, pruned, failed, or unknown.
        ratio: how many times less a token costs than with the baseline.
        drift_free_cost: per token: CPU seconds, corrected by the reference load timed beside it, or joules.
    """

    row: int
    number: int
    settings: Mapping[str, Any]
    state: str
    stage: str
    reason: str
    costs: Costs
    ratio: Interval | None
    drop: Drop | None
    drift_free_cost: float | None
    cpu_s_spent: float | None
    duration_s: float | None

    @classmethod
    def read(cls, data: Mapping[str, Any], position: int) -> Trial:
        found = number(data, "number")
        return cls(
            row=position,
            number=position if found is None else int(found),
            settings=way(data),
            state=text(data.get("state")) or "unknown",
            stage=text(data.get("stage")) or "unknown",
            reason=text(data.get("reason")),
            costs=Costs.read(data),
            ratio=Interval.read(data.get("ratio_to_baseline")),
            drop=Drop.read(data.get("quality_drop")),
            drift_free_cost=number(data, "cost"),
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
    ratio: Interval | None
    drop: Drop | None
    phases: tuple[Phase, ...]
    spread: tuple[float, float] | None
    request_tokens: tuple[float, float] | None
    cost_model: Mapping[str, Any]
    engine: Mapping[str, Any]

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
        spread = [v for v in sequence(content.get("cpu_s_per_token_spread")) if is_number(v)]
        return cls(
            artifact=named(content.get("artifact")),
            settings=way(content),
            costs=Costs.read(content),
            ratio=Interval.read(content.get("ratio_to_baseline")),
            drop=Drop.read(content.get("quality_drop")),
            phases=tuple(phases),
            spread=(min(spread), max(spread)) if spread else None,
            request_tokens=(prompt / requests, generated / requests)
            if requests and prompt is not None and generated is not None
            else None,
            cost_model=mapping(content.get("cost_model")),
            engine=mapping(content.get("engine")),
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
    """One step of the way from the baseline to the winner.

    Attributes:
        per_token: the level after it: CPU seconds, or joules where the search went by those.
    """

    label: str
    per_token: float


def way(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of a record, with the ``model`` and ``passes`` that its weights come from, where told.

    ``cascade`` says of a cascade who answers what this way is not sure of.
    """
    made = " + ".join(texts(data.get("passes")))
    extra = {"model": text(data.get("model")), "passes": made}
    if after := mapping(data.get("cascade")):
        extra["cascade"] = label(way({k: v for k, v in after.items() if k != "cascade"}))
    settings = settings_of(data.get("settings"))
    return {**settings, **{k: v for k, v in extra.items() if v}} if settings else settings


def settings_of(data: Any) -> Mapping[str, Any]:
    """Settings of a record. What proposes stands in ``speculation``, where earlier ones have a ``draft``."""
    settings = mapping(data)
    if draft := text(settings.get("draft")):
        settings = {**settings, "speculation": DRAFT + draft}
    return {name: value for name, value in settings.items() if name != "draft"}


def proposer(settings: Mapping[str, Any]) -> str:
    """The small model that proposes, without its folder; empty where none does."""
    speculation = text(settings.get("speculation"))
    return last_of(speculation.removeprefix(DRAFT)) if speculation.startswith(DRAFT) else ""


def label(settings: Mapping[str, Any]) -> str:
    """Short form of settings for tables: model and passes where they are told, engine, weights, and so on."""
    if not settings:
        return "settings not recorded"
    threads = settings.get("threads")
    made = [text(settings.get(name)) for name in ("model", "passes") if settings.get(name)]
    parts = [
        *made,
        text(settings.get("engine")) or "engine unknown",
        text(settings.get("weight_format")) or "native",
    ]
    parts.append("default threads" if threads is None else f"{threads} thread{'' if threads == 1 else 's'}")
    parts.append(f"batch {settings.get('batch') or 1}")
    for name in sorted(set(settings) - _FIRST):
        value = settings[name]
        if value is None or value == _DEFAULTS.get(name):
            continue
        spoken = name.replace("_", " ")
        if name == "speculation" and (draft := proposer(settings)):
            value, spoken = draft, "draft"
        parts.append(f"{value} {spoken}" if isinstance(value, str) else f"{spoken} {value}")
        if isinstance(value, bool):
            parts[-1] = spoken if value else f"no {spoken}"
    if settings.get("cascade"):
        parts.append(f"in doubt: {text(settings['cascade'])}")
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


_FIRST = {"model", "passes", "cascade", "engine", "weight_format", "threads", "batch"}
"""Of settings what `label` tells in an order of its own."""


def last_of(place: str) -> str:
    """A name, or the last part of a folder."""
    return place.rstrip("/").rsplit("/", 1)[-1]


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two settings describe the same way of running (and say anything at all)."""
    return bool(left) and left == right


def is_share(metric: str) -> bool:
    """Whether a metric lies in 0..1 and reads best in percent."""
    return not any(word in metric.lower() for word in _NOT_A_SHARE)
