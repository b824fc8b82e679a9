"""The columns of the table of trials, and the other facts that every format lays out as rows."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from negawatt.report import words
from negawatt.report.facts import Facts
from negawatt.report.reading import mapping, sequence, text, texts
from negawatt.report.records import Phase, Profile, Trial, same


@dataclass(frozen=True)
class Column:
    """One column: its header, the words of a cell, and what it sorts by (None: by its words)."""

    header: str
    cell: Callable[[Trial, str], str]
    sort: Callable[[Trial], float | None] | None = None
    wide: bool = False


def _short(value: str) -> str:
    """In a table, "not measured" is a dash whose meaning is given once above it."""
    return "–" if value.startswith(words.NOT_MEASURED) else value


COLUMNS = (
    Column("Trial", lambda t, m: str(t.number), lambda t: float(t.number)),
    Column("Settings", lambda t, m: t.label, wide=True),
    Column("Outcome", lambda t, m: _outcome(t), wide=True),
    Column(
        "Energy / token", lambda t, m: _short(words.joules(t.costs.energy)), lambda t: t.costs.energy.value_j
    ),
    Column(
        "CPU / token",
        lambda t, m: _short(words.quantity(t.costs.cpu_s_per_token, "s")),
        lambda t: t.costs.cpu_s_per_token,
    ),
    Column(
        "Against today",
        lambda t, m: _short(words.times(t.ratio)),
        lambda t: t.ratio.value if t.ratio else None,
    ),
    Column(
        "Quality",
        lambda t, m: _short(words.quality(t.costs.quality)),
        lambda t: t.costs.quality.score.value if t.costs.quality else None,
    ),
    Column(
        "Quality drop", lambda t, m: _short(words.drop(t.drop, m)), lambda t: t.drop.mean if t.drop else None
    ),
    Column(
        "First token p50 / p95",
        lambda t, m: _pair(t.costs.ttft_p50_ms, t.costs.ttft_p95_ms),
        lambda t: t.costs.ttft_p95_ms,
    ),
    Column(
        "Next token p50 / p95",
        lambda t, m: _pair(t.costs.tpot_p50_ms, t.costs.tpot_p95_ms),
        lambda t: t.costs.tpot_p95_ms,
    ),
    Column(
        "Tokens/s",
        lambda t, m: "–" if t.costs.tokens_per_s is None else words.figure(t.costs.tokens_per_s),
        lambda t: t.costs.tokens_per_s,
    ),
    Column(
        "Peak memory", lambda t, m: _short(words.memory(t.costs.memory_bytes)), lambda t: t.costs.memory_bytes
    ),
    Column("Spent on it", lambda t, m: _short(words.quantity(t.cpu_s_spent, "s")), lambda t: t.cpu_s_spent),
)


def _outcome(trial: Trial) -> str:
    """State and stage, with the reason of a failure and the warnings of a measurement."""
    details = "; ".join(filter(None, (trial.reason, *trial.costs.warnings)))
    return f"{trial.state}, {trial.stage}" + (f": {details}" if details else "")


def _pair(median: float | None, high: float | None) -> str:
    if median is None and high is None:
        return "–"
    return " / ".join("–" if v is None else words.milliseconds(v) for v in (median, high))


def sort_key(column: Column, trial: Trial) -> str | None:
    """The number a cell sorts by, as text; None where there is none."""
    value = column.sort(trial) if column.sort else None
    return None if value is None or not math.isfinite(value) else f"{value:.9g}"


def profile_rows(profile: Profile) -> list[tuple[str, str]]:
    """What one configuration costs and delivers."""
    c = profile.costs
    spread = profile.spread
    rows = [
        ("Settings", profile.label),
        ("Energy per token", words.joules(c.energy)),
        ("CPU time per token", words.quantity(c.cpu_s_per_token, "s")),
        ("Quality", words.quality(c.quality) + (f", {c.quality.metric}" if c.quality else "")),
        ("First token, p50 / p95", _pair(c.ttft_p50_ms, c.ttft_p95_ms).replace("–", words.NOT_MEASURED)),
        ("Next token, p50 / p95", _pair(c.tpot_p50_ms, c.tpot_p95_ms).replace("–", words.NOT_MEASURED)),
        ("Speed", f"{words.figure(c.tokens_per_s)} tokens/s" if c.tokens_per_s else words.NOT_MEASURED),
        ("Peak memory", words.memory(c.memory_bytes)),
    ]
    if spread:
        rows.insert(3, ("CPU time per token, seen", " to ".join(words.quantity(v, "s") for v in spread)))
    return rows


def profiles(facts: Facts) -> list[tuple[str, Profile]]:
    """What was measured in full, with what to call it."""
    best = "This profile" if facts.kind == "profile" else "Recommended" if facts.recommends else "Best found"
    pair = [("What you run today", facts.baseline), (best, facts.best)]
    if facts.best and facts.baseline and same(facts.best.settings, facts.baseline.settings):
        pair = pair[:1]
    return [(name, profile) for name, profile in pair if profile is not None]


def request_tokens(facts: Facts) -> tuple[float, float] | None:
    """Mean prompt and new tokens of a request; None when no profile counted them."""
    return next((p.request_tokens for _, p in profiles(facts) if p.request_tokens), None)


def phase_rows(facts: Facts) -> list[tuple[str, list[str]]]:
    """(phase, energy and CPU time for each profile): load once, prefill and decode.

    Of one request where the tokens of a request are known, else of one token.
    """
    request = request_tokens(facts)
    n_in, n_out = request or (1.0, 1.0)
    titles = {
        "load": ("load the model, once", 1.0),
        "prefill": (
            f"prefill, {words.figure(n_in)} tokens" if request else "prefill, per prompt token",
            n_in,
        ),
        "decode": (f"decode, {words.figure(n_out)} tokens" if request else "decode, per new token", n_out),
    }
    rows = []
    for name, (title, count) in titles.items():
        found = [next((p for p in profile.phases if p.name == name), None) for _, profile in profiles(facts)]
        if any(found):
            rows.append((title, [_phase(phase, count) for phase in found]))
    return rows


def _phase(phase: Phase | None, count: float) -> str:
    if phase is None:
        return words.NOT_MEASURED
    cpu = None if phase.cpu_s is None else phase.cpu_s * count
    joules = phase.energy if phase.energy.is_missing else phase.energy.scaled(count)
    return f"{_short(words.joules(joules))}, {words.quantity(cpu, 's')} CPU"


def step_unit(facts: Facts) -> str:
    """What steps are told in."""
    return "Joules" if facts.counts_joules else "CPU time"


def step_rows(facts: Facts) -> list[tuple[str, str, str]]:
    """(step, CPU time or joules per token after it, change), all in one unit."""
    levels = [step.per_token for step in facts.waterfall]
    unit = "J" if facts.counts_joules else "s"
    factor, letter = words.prefix(max(levels, default=1.0))

    def show(value: float) -> str:
        return f"{value / factor:.1f}{words.NBSP}{letter}{unit}"

    rows = []
    for i, step in enumerate(facts.waterfall):
        change = step.per_token - levels[i - 1] if i else None
        sign = words.MINUS if change is not None and change < 0 else "+"
        rows.append((step.label, show(step.per_token), "" if change is None else sign + show(abs(change))))
    return rows


def method_rows(facts: Facts) -> list[tuple[str, str]]:
    """How it was measured."""
    profile = facts.best or facts.baseline
    joules = profile.costs.energy if profile else next((t.costs.energy for t in facts.trials), None)
    workload = mapping(facts.manifest.get("workload"))
    rows = [("Provenance of the energy figures", str(facts.provenance))]
    if joules is not None and joules.reason:
        rows.append(("What that rests on", joules.reason))
    rows += [("Sensor", row) for row in map(_sensor, sequence(facts.manifest.get("sensors")))]
    for name, key in (("Traffic the joules are counted on", "n_traffic"), ("Quality set", "n_quality")):
        if workload.get(key) is not None:
            rows.append((name, f"{workload[key]} items"))
    if facts.kind == "tune":
        stages = [f"{sum(t.stage == s for t in facts.trials)} {s}" for s in ("screen", "search", "final")]
        rows.append(("Measurements by stage", ", ".join(stages)))
        counted = text(mapping(facts.manifest.get("cost")).get("text")) or "goes by CPU seconds"
        rows.append(("What the search goes by", counted.removeprefix("goes by ")))
    if facts.reference:
        rows.append(("Host drift", drift(facts)))
    model = profile.cost_model if profile else {}
    if text(model.get("text")):
        rows.append(("Cost model", text(model.get("text"))))
    if (error := model.get("median_error")) is not None and isinstance(error, (int, float)):
        rows.append(("Its median error on held-back requests", words.percent(float(error))))
    coefficients = mapping(model.get("coefficients"))
    rows += [(f"Coefficient {name}", value) for name, value in words.flat(coefficients)]
    return rows


def drift(facts: Facts) -> str:
    """How far the fixed reference load moved, in words."""
    values = sorted(c for _, c in facts.reference)
    middle = values[len(values) // 2]
    width = (values[-1] - values[0]) / middle
    return (
        f"the fixed reference load, timed {len(values)} times, took {words.quantity(values[0], 's')} to"
        f" {words.quantity(values[-1], 's')} of CPU time (spread {words.percent(width)} of its median)"
    )


def _sensor(sensor: object) -> str:
    if not isinstance(sensor, Mapping):
        return text(sensor)
    name, status = text(sensor.get("name")) or "unnamed", text(sensor.get("status"))
    details = "; ".join(filter(None, (text(sensor.get("reason")), text(sensor.get("remedy")))))
    return name + (f": {status}" if status else "") + (f" ({details})" if details else "")


def all_warnings(facts: Facts) -> list[str]:
    """Warnings of the run, of its profiles, and notes made while it went, each once."""
    profiles = [w for p in (facts.baseline, facts.best) if p for w in p.costs.warnings]
    artifact = mapping(facts.manifest.get("artifact"))
    notes = texts(artifact.get("notes")) or tuple(filter(None, (text(artifact.get("notes")),)))
    return list(dict.fromkeys([*facts.warnings, *profiles, *notes, *facts.notes]))


def machine_rows(facts: Facts) -> list[tuple[str, str]]:
    machine = facts.manifest.get("machine") or facts.result.get("machine")
    return words.flat(mapping(machine))


def origin_rows(facts: Facts) -> list[tuple[str, str]]:
    """What is needed to do it again: hashes, versions, constraints."""
    manifest = facts.manifest
    artifact = {k: v for k, v in mapping(manifest.get("artifact")).items() if k != "notes"}
    workload = mapping(manifest.get("workload"))
    rows = words.flat(artifact, "Model · ") or [("Model", facts.artifact_name)]
    rows += words.flat(workload, "Workload · ") or [("Workload", facts.workload_name)]
    rows += words.flat(mapping(manifest.get("constraints")), "Constraint · ")
    rows += [("Version · negawatt", text(manifest.get("negawatt")) or "not recorded")]
    rows += words.flat(mapping(manifest.get("versions")), "Version · ")
    rows += words.flat(facts.best.engine if facts.best else {}, "Engine · ")
    if text(facts.result.get("artifact")) and facts.kind == "tune":
        rows.append(("Ready to use", "the folder artifact in the run folder"))
    rows += [("Started", text(manifest.get("created")) or "not recorded"), ("Run folder", facts.path.name)]
    return rows


def command(facts: Facts) -> str:
    """The exact command that made the run, quoted for a POSIX shell."""
    words_ = facts.manifest.get("command")
    parts: Sequence[str] = [str(w) for w in words_] if isinstance(words_, list) else []
    return shlex.join(parts) if parts else text(words_)
