"""``negawatt export``: write a model for another program, and prove that it is still the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from negawatt.cli.catalogue import size
from negawatt.cli.common import emit, examples, json_option, progress_bar


@click.command(
    epilog=examples(
        "negawatt export smollm2-135m-instruct --to safetensors -o plain",
        "negawatt export smollm2-135m-instruct --to gguf:q4_0-head8 -o small",
        "negawatt export ./my-model --to onnx:int8 -o onnx --json",
    )
)
@click.argument("model")
@click.option(
    "--to",
    required=True,
    metavar="FORMAT[:TYPE]",
    help="gguf, onnx, openvino, safetensors, torch-export or torchscript, and a type of its weights.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--accept-license", is_flag=True, help="Accept the terms of a model that asks for it.")
@json_option
def command(model: str, to: str, output: Path, accept_license: bool, as_json: bool) -> None:
    """Write MODEL in another format, read it back, and compare it with its source before it is kept."""
    from negawatt.artifact import Artifact
    from negawatt.conversion import convert, parse

    parse(to)
    with progress_bar("export") as progress:
        artifact = Artifact.open(model, accept_license=accept_license, progress=progress)
        result = convert(artifact, to, output, progress=progress)
    if as_json:
        emit(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    found, ran = result["comparison"], result["ran"]
    click.echo(
        f"weights: {size(result['source_bytes'])} → {size(result['bytes'])}, "
        f"{size(result['predicted_bytes'])} predicted by the types"
    )
    if result["kind"] == "decoder":
        click.echo(
            f"KL from the source: {found['kl_nats']:.3g} nats a token over {found['n_positions']} positions; "
            f"{found['greedy']:.0%} of {found['n_tokens']} greedy tokens agree up to the first difference"
        )
    else:
        click.echo(f"least cosine with the source over {found['n_tokens']} tokens: {found['cosine']:.5f}")
    click.echo(f"compared on: {ran['engine']} {ran['version']}")
    for name, count in ran["kernels"].items() if isinstance(ran.get("kernels"), dict) else ():
        click.echo(f"  {count} × {name}")
    for note in result["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"Ready to use: {result['artifact']}")
