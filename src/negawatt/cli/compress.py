"""``negawatt compress``: make a smaller model, judge it, and keep how it was made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from negawatt.cli.catalogue import size
from negawatt.cli.common import emit, examples, json_option, progress_bar
from negawatt.cli.settings import parse_settings
from negawatt.errors import UsageError


@click.command(
    epilog=examples(
        "negawatt compress --list",
        "negawatt compress smollm2-135m-instruct --pass rtn:bits=4,group=32 -o small",
        "negawatt compress ./my-model --pass gptq --calibration my-text.txt -o small",
        "negawatt compress ./my-model --pass rtn:bits=4 --payback llamacpp -o small",
        "negawatt compress --recipe small/recipe.toml -o small-again",
        "negawatt compress smollm2-135m-instruct --explain llamacpp:q8_0:1 --batch 8",
    )
)
@click.argument("model", required=False)
@click.option(
    "--pass", "passes", multiple=True, metavar="NAME[:KEY=VALUE,…]", help="What to do; several in turn."
)
@click.option("--recipe", type=click.Path(path_type=Path), help="Replay this instead.")
@click.option(
    "--calibration",
    "text",
    metavar="TEXT",
    help="A text file, a workload, or self: what the model writes. [default: self]",
)
@click.option("--windows", type=int, help="Windows of text to calibrate on.  [default: 64]")
@click.option("--heldout", type=int, help="Windows of text to judge on.  [default: 16]")
@click.option("--length", type=int, help="Tokens in a window.  [default: 512]")
@click.option("--seed", type=int, help="Of everything random.  [default: 0]")
@click.option("--threads", type=int, help="Of the arithmetic; the last bits depend on it.")
@click.option("--keep-worse", is_flag=True, help="Keep a result that plain rounding beats.")
@click.option(
    "--payback",
    metavar="ENGINE[:WEIGHTS[:THREADS]]",
    help="Run source and result in turn there, and tell after how many tokens the work is paid back.",
)
@click.option(
    "--kv-cache",
    metavar="ENGINE[:WEIGHTS[:THREADS]]",
    help="Run the result there with every precision of the key-value cache, and recommend one.",
)
@click.option("--list", "listing", is_flag=True, help="List the passes with their parameters.")
@click.option(
    "--explain",
    metavar="ENGINE[:WEIGHTS[:THREADS]]",
    help="Make nothing: measure where a token's joules go there, and say which passes can save.",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="With --explain.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to make.")
@json_option
def command(
    model: str | None,
    passes: tuple[str, ...],
    recipe: Path | None,
    keep_worse: bool,
    payback: str | None,
    kv_cache: str | None,
    listing: bool,
    explain: str | None,
    batch: int,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make MODEL smaller by passes, judge the result on held-out text, and write it to a folder.

    Interrupt it, and the same command goes on where it was.
    """
    if listing:
        _list(as_json)
        return
    if explain is not None:
        _explain(model, explain, batch, passes, as_json)
        return
    from negawatt.compress import Recipe, compress, parse

    given = {name: value for name, value in options.items() if value is not None}
    if output is None:
        raise UsageError("say where to write the result, with -o FOLDER")
    if recipe is not None:
        if passes or given:
            raise UsageError("a recipe holds its passes and their text; give --recipe or those options")
        wanted = Recipe.read(recipe)
        wanted = wanted if model is None else replace(wanted, model=model)
    elif model is None:
        raise UsageError("name the model to compress, or give a --recipe")
    else:
        wanted = Recipe(model, tuple(map(parse, passes)), **given)
    paid, cached = (parse_settings(given, 256) if given else None for given in (payback, kv_cache))
    with progress_bar("compress") as progress:
        result = compress(
            wanted, output, keep_worse=keep_worse, payback=paid, kv_cache=cached, progress=progress
        )
    if as_json:
        emit(result)
    else:
        _show(result)


def _explain(model: str | None, way: str, batch: int, passes: tuple[str, ...], as_json: bool) -> None:
    if model is None:
        raise UsageError("name the model to explain")
    from negawatt.compress import parse
    from negawatt.compress.explain import explain

    settings = parse_settings(way, 1024).replace(batch=batch)
    with progress_bar("explain") as progress:
        found = explain(model, settings, [parse(p) for p in passes], lambda text: progress(0, None, text))
    if as_json:
        emit(found)
        return
    token_s, step = found["cpu_s_per_token"], found["step"]
    click.echo(f"{found['artifact']} on {settings}: {1000 * token_s:.3g} CPU-ms a token, prompt included")
    for name, seconds in found["parts"].items():
        click.echo(f"  {name:<11}{1000 * seconds:8.3f} CPU-ms {seconds / token_s:6.1%}")
    once_ms, read_ms = 1000 * (step["read_s"] + step["unpack_s"]), 1000 * step["read_s"]
    once_ms, read_ms = 1000 * (step["read_s"] + step["unpack_s"]), 1000 * step["read_s"]
    click.echo(
        f"Weights cost {once_ms:.2f} CPU-ms a step, {read_ms:.2f} of it reading them at the "
        f"{step['bytes_per_s'] / 1e9:.1f} GB/s that one core reads; "
        f"a batch that was not fitted is {found['median_error']:.1%} off."
    )
    click.echo(f"{found['verdict']}. From a batch of {found['ridge_batch']:.0f} on, arithmetic costs more.")
    for row in found["passes"]:
        ratio = "does not fit" if row["ratio"] is None else f"{row['ratio']:.2f}x"
        click.echo(f"{'+' if row['saves'] else '-'} {row['pass']:<24} {ratio:>6}  {row['why']}")


def _show(result: dict[str, Any]) -> None:
    from negawatt.energy import Energy

    for step in result["passes"]:
        quality = step["quality"]
        before = "" if quality["before"] is None else f"{quality['before']:.4g} → "
        click.echo(
            f"{step['pass']}: {quality['metric']} {before}{quality['after']:.4g} on "
            f"held-out text; {Energy.from_json(step['energy'])}, {step['cpu_s']:.0f} CPU-seconds"
        )
        if (paid := step["payback"]) and len(result["passes"]) > 1:
            click.echo(f"  alone {paid['text']}")
        for note in step["notes"]:
            click.echo(f"  {note}")
    before, after = result["weight_bytes"]["before"], result["weight_bytes"]["after"]
    click.echo(f"weights: {size(before)} → {size(after)}")
    if paid := result["payback"]:
        click.echo(f"{paid['text']}; counted are text, passes, judging and running both")
        for warning in paid["warnings"]:
            click.echo(f"note: {warning}", err=True)
    if cache := result["kv_cache"]:
        for each in cache["caches"]:
            click.echo(
                f"cache of {each['kv_cache']}: {each['kl']:.2g} nats a token from the most precise, "
                f"perplexity {each['perplexity']:.4g}, {each['top1_match']:.1%} the same next token, a token "
                f"costs {1 / each['ratio']['value']:.2f} times as much"
            )
        click.echo(f"recommended on {cache['settings']['engine']}: --kv-cache {cache['recommended']}")
    click.echo(f"Ready to use: {result['artifact']}")


def _list(as_json: bool) -> None:
    from negawatt.compress import PASSES, technique

    kinds = [technique(name) for name in sorted(PASSES)]
    if as_json:
        emit([
            {
                "name": kind.name,
                "summary": kind.summary,
                "calibrated": kind.calibrated,
                "parameters": [p.to_json() for p in kind.parameters],
            }
            for kind in kinds
        ])  # fmt: skip
        return
    for kind in kinds:
        click.echo(f"{kind.name}: {kind.summary}" + (" (calibrated on text)" if kind.calibrated else ""))
        for p in kind.parameters:
            click.echo(f"  {p.name}={p.default}".ljust(22) + p.help)
