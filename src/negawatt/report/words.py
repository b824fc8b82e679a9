"""Numbers in words: units, intervals and honest marks, the same in every format."""

from __future__ import annotations

import math
from collections.abc import Mapping

from negawatt.energy import Energy, Provenance
from negawatt.report.facts import Facts
from negawatt.report.reading import text
from negawatt.report.records import Drop, Interval, Quality, is_share

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
NOT_MEASURED = "not measured"
_ACRONYMS = {"cpu": "CPU", "gpu": "GPU", "os": "OS", "id": "ID", "ttft": "TTFT", "tpot": "TPOT"}
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


def figure(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, thousands grouped, never in powers of ten."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    magnitude = len(f"{abs(rounded):.0f}") if abs(rounded) >= 1 else 0
    places = max(0, digits - magnitude) if magnitude else min(12, digits - 1 - _exponent(rounded))
    shown = f"{rounded:,.{places}f}"
    if "." in shown:
        shown = shown.rstrip("0").rstrip(".")
    return shown.replace("-", MINUS)


def _exponent(value: float) -> int:
    return int(f"{abs(value):e}".split("e")[1])


def prefix(value: float) -> tuple[float, str]:
    """The SI prefix that suits a value: its factor and letter."""
    return next(((f, p) for f, p in _PREFIXES if abs(value) >= f * 0.9995), (1.0, ""))


def quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """A value with an SI prefix and unit, or "not measured"."""
    if value is None:
        return NOT_MEASURED
    factor, letter = prefix(value)
    return f"{figure(value / factor, digits)}{NBSP}{letter}{unit}"


def joules(energy: Energy, per: str = "") -> str:
    """An energy with its honest mark: ``12.4 J``, ``~12 J (8–21)`` or ``not measured: reason``."""
    if energy.value_j is None or energy.low_j is None or energy.high_j is None:
        known = f" (at least {quantity(energy.low_j, 'J')})" if energy.low_j else ""
        return f"{NOT_MEASURED}: {energy.reason or 'no reason given'}{known}"
    factor, letter = prefix(energy.value_j)
    unit = f"{NBSP}{letter}J{per}"
    if energy.provenance is not Provenance.ESTIMATED:
        return f"{figure(energy.value_j / factor)}{unit}"
    low, high = figure(energy.low_j / factor, 2), figure(energy.high_j / factor, 2)
    return f"~{figure(energy.value_j / factor, 2)}{unit} ({low}–{high})"


def percent(share: float, digits: int = 2) -> str:
    """A share in percent; near 0 and 1 the distance to them keeps its digits."""
    shown = 100 * share
    places = 1 if abs(shown) < 10 or abs(shown) > 98 else 0
    return f"{shown:.{max(places, digits - 2)}f}{NBSP}%".replace("-", MINUS)


def span(interval: Interval, show: str = "") -> str:
    """The ends of an interval as ``low–high``; empty when unknown."""
    if interval.low is None or interval.high is None:
        return ""
    if show == "percent":
        return f"{percent(interval.low)[:-2]}–{percent(interval.high)[:-2]}"
    return f"{figure(interval.low)}–{figure(interval.high)}"


def times(ratio: Interval | None) -> str:
    """``4.8× (4.6–5.0)``."""
    if ratio is None:
        return NOT_MEASURED
    ends = span(ratio)
    return f"{figure(ratio.value)}×" + (f" ({ends})" if ends else "")


def saved(saving: Interval | None) -> str:
    """``79 % (77–81)``, or that no difference was shown."""
    if saving is None:
        return NOT_MEASURED
    ends = span(saving, "percent")
    shown = percent(saving.value) + (f" ({ends})" if ends else "")
    if saving.low is not None and saving.high is not None and saving.low <= 0 <= saving.high:
        return f"no difference shown: {shown}"
    return shown


def quality(found: Quality | None) -> str:
    """``64.0 % accuracy (61.0–66.9, n 1,000)``."""
    if found is None:
        return NOT_MEASURED
    ends = [score(end, found) for end in (found.score.low, found.score.high) if end is not None]
    details = [f"{ends[0]}–{ends[1]}"] if len(ends) == 2 else []
    details += [f"n{NBSP}{found.n:,}"] if found.n else []
    unit = f"{NBSP}%" if found.is_share else ""
    return f"{score(found.score.value, found)}{unit}" + (f" ({', '.join(details)})" if details else "")


def score(value: float, found: Quality) -> str:
    """A metric's value without its unit: shares times 100, one decimal."""
    return f"{100 * value:.1f}".replace("-", MINUS) if found.is_share else figure(value, 4)


def points(value: float, metric: str) -> str:
    """A quality difference: percentage points for shares, plain otherwise."""
    if is_share(metric):
        return f"{100 * value:.2f}{NBSP}points".replace("-", MINUS)
    return figure(value).replace("-", MINUS)


def drop(found: Drop | None, metric: str) -> str:
    """``no difference shown (−0.40 to 0.90 points)``, or by how much it is worse or better."""
    if found is None:
        return NOT_MEASURED
    ends = ""
    if found.low is not None and found.high is not None:
        ends = f" ({points(found.low, metric).removesuffix(f'{NBSP}points')} to {points(found.high, metric)})"
        if found.low <= 0 <= found.high:
            return f"no difference shown{ends}"
    way = "worse" if found.mean > 0 else "better"
    return f"{points(abs(found.mean), metric)} {way}{ends}"


def drop_verdict(facts: Facts) -> str:
    """The verdict's quality drop with its one-sided bound, in words."""
    verdict = facts.verdict
    if verdict is None or verdict.drop is None:
        return NOT_MEASURED
    found = facts.drop_of(facts.best) if facts.best else None
    if verdict.drop <= 0 or (found and found.low is not None and found.low <= 0):
        return "no difference shown"
    return f"{points(verdict.drop, metric_of(facts))} worse"


def metric_of(facts: Facts) -> str:
    """The name of the quality metric, in plain words."""
    for profile in (facts.best, facts.baseline):
        if profile and profile.costs.quality:
            return profile.costs.quality.metric
    found = next((t.costs.quality.metric for t in facts.trials if t.costs.quality), "")
    workload = facts.manifest.get("workload")
    return found or (text(workload.get("metric")) if isinstance(workload, Mapping) else "") or "quality"


def best_settings(facts: Facts) -> Mapping[str, object]:
    return facts.best.settings if facts.best else {}


def duration(seconds: float | None) -> str:
    """``41 s``, ``5 min 12 s``, ``2 h 03 min``."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{figure(seconds, 2)}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min{NBSP}{rest:02d}{NBSP}s"
    return f"{minutes // 60}{NBSP}h{NBSP}{minutes % 60:02d}{NBSP}min"


def memory(size_bytes: float | None) -> str:
    """Bytes in MiB or GiB."""
    if size_bytes is None:
        return NOT_MEASURED
    unit, factor = ("GiB", 2**30) if size_bytes >= 2**30 else ("MiB", 2**20)
    return f"{figure(size_bytes / factor)}{NBSP}{unit}"


def tokens(count: float | None) -> str:
    """A large round number of tokens, in words that can be read out."""
    if count is None:
        return NOT_MEASURED
    for factor, word in ((1e9, "billion"), (1e6, "million")):
        if count >= factor:
            return f"{figure(count / factor, 2)}{NBSP}{word} tokens"
    return f"{figure(count, 2)} tokens"


def milliseconds(value: float | None) -> str:
    """A latency in milliseconds or seconds."""
    return NOT_MEASURED if value is None else quantity(value / 1000, "s")


def flat(data: Mapping[str, object], before: str = "") -> list[tuple[str, str]]:
    """Nested facts as (name, value) rows; sizes in bytes become MiB or GiB."""
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        name = before + " ".join(_ACRONYMS.get(word, word) for word in str(key).split("_"))
        if isinstance(value, Mapping):
            rows += flat(value, f"{name} · ")
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value))))
        elif isinstance(value, float) and not math.isfinite(value):
            rows.append((name, str(value)))
        elif str(key).endswith("_bytes") and isinstance(value, (int, float)):
            rows.append((name.removesuffix(" bytes"), memory(value)))
        elif isinstance(value, bool):
            rows.append((name, "yes" if value else "no"))
        elif isinstance(value, float):
            rows.append((name, figure(value, 4)))
        elif value is not None and value != "":
            rows.append((name, str(value)))
    return rows
