"""``negawatt tune``: find the way of running a model that spends the fewest joules, and prove it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from negawatt.cli.common import emit, examples, json_option, offers, progress_bar, say
from negawatt.cli.settings import joules, parse_settings, seconds, size_bytes
from negawatt.errors import UsageError


@click.command(
    epilog=examples(
        "negawatt tune smollm2-135m-instruct --max-quality-drop 0.01",
        "negawatt tune ./my-model --workload ./my-workload --throughput --time-budget 20m -o my-run",
        "negawatt tune ./my-model --engines llamacpp --p95-tpot 40 --max-memory 800MB --json",
        "negawatt tune ./my-model --pass vocabulary --pass 'depth:ratio=0.1|0.2' --time-budget 1h",
        "negawatt tune ./my-model --from my-run --energy-budget 2Wh",
        "negawatt tune ./my-model -o my-run --store postgresql://db.example/negawatt",
        "negawatt tune ./my-model --ray auto --time-budget 30m",
        "negawatt tune ./my-model --draft ./small:q4_0 --engines llamacpp",
        "negawatt tune ./large ./small --space space.toml --energy-budget 5Wh --tokens-per-day 2000000",
        "negawatt tune ./my-model --from my-run --watch receipts.csv --every 6h -o my-watch",
    )
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--workload", default="chat-piqa", show_default=True, help="What it is asked.")
@click.option(
    "--batch", type=int, default=None, help="Pin the batch; 1, or what the receipts of --from show."
)
@click.option("--throughput", is_flag=True, help="Leave the batch free.")
@click.option(
    "--engines",
    default=None,
    help="Engines to consider, comma-separated; all here but onnxruntime if absent.",
)
@click.option("--space", type=click.Path(path_type=Path), help="File that narrows or extends the search.")
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME[:KEY=VALUE|VALUE,…]",
    shell_complete=offers("negawatt.compress.registry:PASSES"),
    help="Compression to consider, in this order; none: only the models as they are.",
)
@click.option(
    "--draft",
    "drafts",
    multiple=True,
    metavar="MODEL[:WEIGHTS]",
    help="Small model of the same vocabulary that may propose, in this weight format; llamacpp, batch 1.",
)
@click.option(
    "--baseline",
    default=None,
    metavar="ENGINE[:WEIGHTS[:THREADS]]",
    help="What you run today; transformers:fp32, or the baseline of --from, if absent.",
)
@click.option("--max-quality-drop", type=float, default=None, help="Proved at 95 %, in the metric's unit.")
@click.option("--p95-ttft", type=float, default=None, help="Most milliseconds to the first token.")
@click.option("--p95-tpot", type=float, default=None, help="Most milliseconds per output token.")
@click.option("--max-memory", default=None, help="Peak memory of the engine, such as 800MB.")
@click.option("--max-context", type=int, default=1024, show_default=True, help="Tokens a sequence may hold.")
@click.option("--min-quality-items", type=int, default=0, help="Items that a proof needs at least.")
@click.option("--time-budget", default="6m", show_default=True, help="For all of it: 90s, 6m, 1.5h.")
@click.option("--energy-budget", default=None, help="For all of it: 500J, 10Wh, 0.1kWh.")
@click.option("--tokens-per-day", type=float, default=None, help="Generated in use; payback in days.")
@click.option(
    "--strategy",
    default="default",
    show_default=True,
    metavar="NAME",
    shell_complete=offers("negawatt.tuning.strategy:STRATEGIES"),
    help="What is tried next: default, random, grid, tpe, gp, nsga2, nsga3, reinforcement or halving.",
)
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="NAME",
    shell_complete=offers("negawatt.tuning.objectives:OBJECTIVES"),
    help="Beside joules, seek a frontier over: quality, ttft, tpot or memory. May be repeated.",
)
@click.option(
    "--from",
    "origin",
    type=click.Path(path_type=Path),
    help="Run, or receipts of a server (.csv), to start from.",
)
@click.option(
    "--watch",
    "receipts",
    metavar="RECEIPTS",
    help="Look at these (.csv, or a server's database) again and again; search when it is worth it.",
)
@click.option("--every", default="1h", show_default=True, help="With --watch: time between two looks.")
@click.option("--checks", type=int, help="With --watch: end after so many looks; never if absent.")
@click.option(
    "--horizon", type=float, default=30.0, show_default=True, help="With --watch: days a saving counts."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the search.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Run folder; an unfinished one is continued."
)
@click.option(
    "--store",
    metavar="URL",
    envvar="NEGAWATT_STORE",
    help="Database that keeps the run besides, postgresql://HOST/NAME or a SQLite file; by default "
    "NEGAWATT_STORE. Under the name of its folder it is continued from anywhere.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Ray cluster whose nodes try the candidates: auto, HOST:PORT or ray://HOST:PORT.",
)
@json_option
def command(models: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Find the way of running MODEL that spends the fewest joules per token, and prove it.

    Of several models the first is what you run today: quality and saving are told against it.
    Keeps every finished trial in the run folder: interrupt it, and the same command goes on there.
    With --watch it does not search at once, but as soon as what is asked has changed so far that a new search
    pays; --from then names the search whose choice runs today.
    """
    if options["receipts"] is not None:
        from negawatt.cli.watch import keep_watch

        keep_watch(models, options, as_json)
        return
    if idle := [f"--{name}" for name in ("every", "checks", "horizon") if _is_typed(name)]:
        raise UsageError(f"{idle[0]} is for --watch, which is not asked for")
    from negawatt.artifact import Artifact
    from negawatt.tuning import tune
    from negawatt.tuning.space_file import models_of
    from negawatt.workload import Workload

    asked = asked_of(options)
    workload = Workload.open(options["workload"])
    further = () if options["space"] is None else models_of(options["space"])
    with progress_bar("tune") as progress:
        artifact, *others = (Artifact.open(each, progress=progress) for each in (*models, *further))
        result = tune(
            artifact, workload, **asked, models=others, command=["negawatt", *sys.argv[1:]],
            progress=progress, told=told,
        )  # fmt: skip
    if as_json:
        emit(result)
        return
    tell(result, several=bool(options["objectives"]))


def told(text: str) -> None:
    """What is to be known before a search begins."""
    say(text, err=True)


def _is_typed(name: str) -> bool:
    """Whether an option stands on the command line, and is not left at its default."""
    context = click.get_current_context(silent=True)
    return context is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def tell(result: dict[str, Any], *, several: bool) -> None:
    """The outcome in words; with the frontier where several objectives were asked."""
    say(result["verdict"]["text"])
    if result.get("present"):
        say(result["present"]["text"])
    search = result["search"]
    paid = search["payback_tokens"]
    words = f", paid back after {paid:,} tokens" if paid else ""
    if (days := search["payback_days"]) is not None:
        words += f" ({days:,.1f} days)" if days >= 0.05 else f" ({24 * 60 * days:,.0f} minutes)"
    say(
        f"The search {search['cost']['text']}. It tried {search['trials']} ways "
        f"({search['pruned']} dropped early, {search['failed']} failed) "
        f"in {search['duration_s'] / 60:.1f} minutes and {search['cpu_s']:.0f} CPU-seconds{words}."
    )
    for each in search["left_out"]:
        say(f"Left out: {each['passes']}: {each['reason']}.")
    if several:
        say(f"Not beaten in {', '.join(search['objectives'])}:")
        for line in _frontier_lines(result["frontier"], search["cost"]["unit"]):
            say(f"  {line}")
    if "artifact" in result:
        say(f"Ready to use: {result['artifact']}")
    say(f"See it: negawatt report {result['run']}", err=True)


def _frontier_lines(found: list[dict[str, Any]], unit: str) -> list[str]:
    """Each way on the frontier with its figures, on a line; joules or CPU time as they were compared."""
    from negawatt.tuning.candidate import Candidate

    words = "mJ a token" if unit == "J" else "CPU-ms a token"

    lines = []
    for each in found:
        figures = [f"{1000 * each['cost']:.1f} {words}"]
        figures += [f"{n.upper()} {each[f'{n}_ms']['p50']:.0f} ms" for n in ("ttft", "tpot")]
        figures.append(f"{each['peak_rss_bytes'] / 1e6:,.0f} MB")
        if each.get("quality_drop"):
            figures.append(f"drop {each['quality_drop']['drop']:.2%}")
        lines.append(f"{Candidate.from_json(each)}: {', '.join(figures)}")
    return lines


def asked_of(options: dict[str, Any], observed: Any = None) -> dict[str, Any]:
    """Arguments of `negawatt.tune` from the options, and from what was observed, which --from else names."""
    from negawatt.tuning import Constraints, Space
    from negawatt.tuning.observed import Observed, batch_for
    from negawatt.tuning.pass_range import PassRange
    from negawatt.tuning.space import BATCHES
    from negawatt.tuning.space_file import keys_of, read_space

    if options["throughput"] and options["batch"] is not None:
        raise UsageError("--throughput frees the batch and --batch pins it; give one of them")
    if options["origin"] is not None:
        observed = Observed.read(options["origin"])
    pinned = options["batch"]
    if pinned is None:
        pinned = batch_for(observed.in_flight if observed else None, BATCHES)
    if pinned < 1:
        raise UsageError(f"the batch must be at least 1, not {pinned}")
    batches = BATCHES if options["throughput"] else (pinned,)
    named = options["engines"]
    only = None if named is None else [name.strip() for name in named.split(",")]
    memory, energy, passes = options["max_memory"], options["energy_budget"], options["passes"]
    if "none" in passes and len(passes) > 1:
        raise UsageError("--pass none stands alone")
    considered = [PassRange.parse(each) for each in passes if each != "none"]
    space = Space.default(
        batches=batches, max_context=options["max_context"], only=only, passes=considered if passes else None
    )
    space = replace(space, drafts=options["drafts"])
    if options["space"] is not None:
        _refuse_twice(options, keys_of(options["space"]))
        space = read_space(options["space"], space)
    return {
        "constraints": Constraints(
            max_quality_drop=options["max_quality_drop"],
            p95_ttft_ms=options["p95_ttft"],
            p95_tpot_ms=options["p95_tpot"],
            max_memory_bytes=None if memory is None else size_bytes(memory),
        ),
        "space": space,
        "baseline": _baseline(options["baseline"], observed, space.max_context),
        "observed": observed,
        "time_budget_s": seconds(options["time_budget"]),
        "energy_budget_j": None if energy is None else joules(energy),
        "tokens_per_day": options["tokens_per_day"],
        "fewest_items": options["min_quality_items"],
        "seed": options["seed"],
        "strategy": options["strategy"],
        "objectives": options["objectives"],
        "path": options["output"],
        "store": options["store"],
        "ray": options["ray"],
    }


def _refuse_twice(options: dict[str, Any], keys: frozenset[str]) -> None:
    """
    Raises:
        UsageError: an option says what the file of --space says as well.
    """
    asked = {
        "--engines": ("engines", options["engines"] is not None),
        "--throughput": ("batches", options["throughput"]),
        "--batch": ("batches", options["batch"] is not None),
        "--pass": ("pass", options["passes"]),
        "--draft": ("drafts", options["drafts"]),
        "--max-context": ("max_context", _is_typed("max_context")),
    }
    for option, (key, given) in asked.items():
        if given and key in keys:
            raise UsageError(f"{options['space']} names {key} and {option} does too; say it in one place")


def _baseline(text: str | None, observed: Any, max_context: int) -> Any:
    """What was asked for, else what savings were told against before, else stock transformers."""
    if text is None and observed is not None and observed.baseline is not None:
        return observed.baseline.replace(max_context=max_context)
    return parse_settings(text or "transformers:fp32", max_context)
