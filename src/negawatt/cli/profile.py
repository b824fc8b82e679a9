"""``negawatt profile``: joules, latency, memory and quality of a model on a workload."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from negawatt.cli.common import emit, examples, json_option, progress_bar
from negawatt.cli.settings import parse_settings, run_options, settings_from


@click.command(
    epilog=examples(
        "negawatt profile smollm2-135m-instruct",
        "negawatt profile smollm2-135m-instruct --engine llamacpp --weights q8_0 --threads 1",
        "negawatt profile ./my-model --engine llamacpp --draft ./small:q4_0 --against llamacpp",
        "negawatt profile smollm2-135m-instruct --engine llamacpp --power-cap 65 --clock 2000",
        "negawatt profile smollm2-135m-instruct --engine llamacpp --gpu-layers 15",
        "negawatt profile ./my-model --workload ./my-workload --against transformers:fp32 --json",
    )
)
@click.argument("model")
@click.option(
    "--workload", default="offline", show_default=True, help="What to ask it; see: negawatt data list."
)
@run_options
@click.option(
    "--power-cap",
    "power_cap_w",
    type=float,
    metavar="WATTS",
    help="Of each processor package, for as long as it runs; where the system permits it.",
)
@click.option(
    "--clock",
    "clock_mhz",
    type=int,
    metavar="MHZ",
    help="Highest of each processor, for as long as it runs; where the system permits it.",
)
@click.option("--against", metavar="ENGINE[:WEIGHTS]", help="Measure in turn with this, and give the ratio.")
@click.option("--rounds", type=int, default=4, show_default=True, help="Windows to measure; at least 2.")
@click.option("--requests", type=int, default=2, show_default=True, help="Requests in each window.")
@click.option(
    "--quality-items", type=int, default=None, help="Quality items to judge; all if absent, 0 for none."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder to keep the profile in.")
@json_option
def command(
    model: str,
    workload: str,
    against: str | None,
    rounds: int,
    requests: int,
    quality_items: int | None,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure joules per token by phase, latency, memory and quality of MODEL.

    MODEL is a name from the catalogue, a folder or file, or hf:org/name. On a workload of
    questions without traffic, joules are counted per answer: choices scored, texts labelled, documents found.
    """
    from negawatt.artifact import Artifact
    from negawatt.meter import fingerprint
    from negawatt.profiling import about, profile
    from negawatt.run import Run
    from negawatt.workload import Workload

    limits = {name: options.pop(name) for name in ("power_cap_w", "clock_mhz")}
    settings = settings_from(options).replace(**limits)
    baseline = parse_settings(against, settings.max_context) if against else None
    chosen = Workload.open(workload)
    with progress_bar("profile") as progress:
        artifact = Artifact.open(model, progress=progress)
        found = profile(
            artifact, chosen, settings, baseline=baseline, rounds=rounds, requests_per_round=requests,
            quality_items=quality_items, progress=progress,
        )  # fmt: skip
    document = found.to_json()
    if output is not None:
        run = Run.create(
            "profile",
            path=output,
            **about(artifact, chosen),
            machine=fingerprint(),
            command=["negawatt", *sys.argv[1:]],
        )
        with run:
            run.finish(document)
    if as_json:
        emit(document)
    else:
        _show(document, found.settings)


def _proposals(calls: int, proposed: int, accepted: int) -> str:
    """What speculation did, in words."""
    if not proposed:
        return f"nothing was proposed in {calls} calls"
    return f"{proposed} tokens proposed in {calls} calls, {accepted / proposed:.0%} of them right"


def _show(document: dict[str, Any], settings: Any) -> None:
    from negawatt.energy import Energy

    energy = Energy.from_json(document["energy_per_token"])
    low, high = document["cpu_s_per_token_spread"]
    answers = document["unit"] == "answer"
    output = "answer" if answers else "generated token"
    lines = [
        ("what ran", str(settings)),
        (f"energy per {output}", str(energy)),
        (f"CPU time per {output}", f"{1000 * document['cpu_s_per_token']:.2f} ms"
         f" ({1000 * low:.2f}–{1000 * high:.2f} seen)"),
        (f"{'answers' if answers else 'tokens'} per second", f"{document['tokens_per_s']:.1f}"),
    ]  # fmt: skip
    for name, phase in document["phases"].items():
        if phase.get("tokens") == 0 or (answers and name == "decode"):
            continue
        spent = phase.get("cpu_s_per_token")
        text = f"{1000 * spent:.2f} CPU-ms a token" if spent is not None else f"{phase['cpu_s']:.2f} CPU-s"
        per = Energy.from_json(phase.get("energy_per_token") or phase["energy"])
        lines.append((f"  {name}", f"{per}, {text}"))
    for name, text in (document["texts"] or {}).items():
        per = Energy.from_json(text["energy_per_text"])
        share = "" if text["per_answer"] == 1 else f", {text['per_answer']:.3g} to an answer"
        lines.append((f"  a {name}", f"{per}, {1000 * text['cpu_s_per_text']:.2f} CPU-ms{share}"))
    for name, key in (
        ("time to an answer" if answers else "time to first token", "ttft_ms"),
        ("time per output token", "tpot_ms"),
    ):
        if found := document[key]:
            lines.append((name, f"{found['p50']:.1f} ms median, {found['p95']:.1f} ms p95"))
    if document["speculation"]:
        lines.append(("speculation", _proposals(**document["speculation"])))
    lines.append(("peak memory", f"{document['peak_rss_bytes'] / 1e6:.0f} MB"))
    if quality := document["quality"]:
        found = f"{quality['value']:.4g} ({quality['low']:.4g}–{quality['high']:.4g}, {quality['n']} items)"
        lines.append((quality["metric"], found))
    if model := document["cost_model"]:
        error = "" if model["median_error"] is None else f"; off by {model['median_error']:.1%} (median)"
        lines.append(("cost model", model["text"] + error))
    if ratio := document["ratio_to_baseline"]:
        lines.append(("against the baseline", f"{ratio['value']:.2f} times fewer CPU seconds "
                      f"for each {output} "
                      f"({ratio['low']:.2f}–{ratio['high']:.2f}, {ratio['n']} pairs)"))  # fmt: skip
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name:<{width}}  {text}")
    for warning in document["warnings"]:
        click.echo(f"note: {warning}", err=True)
