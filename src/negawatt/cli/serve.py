"""``negawatt serve``: an OpenAI-compatible server that hands out energy receipts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from negawatt.cli.common import emit, examples, json_option
from negawatt.cli.settings import seconds
from negawatt.errors import require

_MODEL = (
    "engine", "weights", "threads", "batch", "max_context", "kv_cache", "pooling", "kv_tokens", "step_tokens",
    "queue_limit", "chat_template", "device", "gpu_layers",
)  # fmt: skip
_SERVER = (
    "host", "port", "database", "secret_file", "certificate", "private_key", "intensity", "price",
    "litres_per_kwh", "traces", "handover", "ray", "replicas", "waiting_w",
)  # fmt: skip


@click.command(
    epilog=examples(
        "negawatt serve smollm2-135m-instruct",
        "negawatt serve ./run/artifact --port 8000 --intensity DE --price EUR:0.30",
        "negawatt serve smollm2-135m-instruct --batch 16 --sleep 10m --no-warm-up",
        "negawatt serve --config server.toml",
        "negawatt serve smollm2-135m-instruct --threads 2 --ray auto --replicas 1..4",
        "negawatt serve smollm2-135m-instruct --host 0.0.0.0 --certificate tls.pem --private-key tls.key",
    )
)
@click.argument("models", nargs=-1)
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file; see the docs."
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port; 0 for any.  [default: 8080]")
@click.option("--engine", help="Engine; a tuned artifact's own, else llamacpp.")
@click.option("--weights", help="Weight format; a tuned artifact's own, else the engine's plain one.")
@click.option("--threads", type=click.IntRange(1), help="Threads; the engine's default if absent.")
@click.option("--batch", type=click.IntRange(1, 128), help="Sequences written at once.  [default: 8]")
@click.option("--max-context", type=click.IntRange(2), help="Tokens of prompt and answer together.")
@click.option("--device", help="Where it runs: cpu, vulkan (llamacpp) or cuda (transformers).")
@click.option("--gpu-layers", type=click.IntRange(0), help="Layers on the device; the rest on the processor.")
@click.option("--kv-cache", help="KV-cache precision.")
@click.option("--pooling", help="Embed texts in this way, such as mean; encoders' own files say theirs.")
@click.option("--kv-tokens", type=click.IntRange(2), help="Tokens the KV cache holds over all sequences.")
@click.option("--step-tokens", type=click.IntRange(1), help="Most tokens of an engine step.")
@click.option("--queue-limit", type=click.IntRange(0), help="Requests that may wait; more are refused.")
@click.option(
    "--max-wait", metavar="TIME", help="Refuse what would wait longer for a slot; 0: any wait.  [default: 1m]"
)
@click.option("--chat-template", help="File of a Jinja template in place of the model's own.")
@click.option("--deadline", metavar="TIME", help="After which a request is given up.  [default: 10m]")
@click.option("--sleep", metavar="TIME", help="Free the model's memory after so long without work.")
@click.option("--warm-up/--no-warm-up", default=None, help="Read and write a little before the first client.")
@click.option("--prefix-cache/--no-prefix-cache", default=None, help="Keep prompts for others like them.")
@click.option("--keys/--no-keys", default=None, help="Ask for keys; without, only on loopback.")
@click.option("--database", metavar="URL", help="Of keys, budgets and receipts; a file in Negawatt's home.")
@click.option("--secret-file", help="The server's secret.")
@click.option("--certificate", help="PEM file of the certificate chain, for TLS.")
@click.option("--private-key", help="PEM file of its key.")
@click.option("--behind-proxy/--no-behind-proxy", default=None, help="A proxy in front does TLS.")
@click.option("--intensity", metavar="SOURCE", help="Grams in receipts: a country, or csv:FILE.")
@click.option("--price", metavar="CURRENCY:PRICE", help="Cost in receipts: of a kWh, such as EUR:0.30.")
@click.option("--litres-per-kwh", type=click.FloatRange(0), help="Water in receipts.")
@click.option("--redact/--no-redact", default=None, help="Strike personal data out of requests.")
@click.option("--traces", metavar="URL", help="Send a span of every request to this OpenTelemetry collector.")
@click.option(
    "--handover", metavar="PATH", help="Take over from the server that waits there; wait there after."
)
@click.option("--ray", metavar="ADDRESS", help="Serve from replicas on this Ray cluster: auto, or HOST:PORT.")
@click.option("--replicas", metavar="N..M", help="How many, as the load is worth.  [default: 1]")
@click.option(
    "--scale-wait", metavar="TIME", help="Expected wait beyond which replicas are added.  [default: 2s]"
)
@click.option(
    "--waiting-watts",
    "waiting_w",
    type=click.FloatRange(0),
    help="Joules that sparing a request a second of waiting is worth.  [default: 20]",
)
@json_option
def command(models: tuple[str, ...], config: Path | None, as_json: bool, **options: Any) -> None:
    """Serve MODELS to OpenAI's clients, with the joules of every request in its answer.

    A model is a name from the catalogue, a folder or file, hf:org/name, or what `negawatt tune` made, which
    brings its own settings. Options of models hold for all MODELS; those in a TOML file have their own.
    Variables such as NEGAWATT_SERVE_PORT stand for options of the server.
    """
    for library in ("starlette", "uvicorn"):
        require(library, extra="serve")
    from negawatt.serve.config import ModelConfig, ServerConfig
    from negawatt.serve.listener import run

    read = ServerConfig.read(config)
    chosen = {name: options[name] for name in _MODEL if options[name] is not None}
    for name in ("warm_up", "prefix_cache"):
        if options[name] is not None:
            chosen[name] = options[name]
    for option, name in (("deadline", "deadline_s"), ("sleep", "sleep_s")):
        if options[option] is not None:
            chosen[name] = seconds(options[option])
    if (most := options["max_wait"]) is not None:
        chosen["wait_s"] = 0.0 if most.strip() == "0" else seconds(most)
    configured = (*read.models, *(ModelConfig(model) for model in models))
    own = {
        name: options[name]
        for name in (*_SERVER, "keys", "behind_proxy", "redact")
        if options[name] is not None
    }
    if (limit := options["scale_wait"]) is not None:
        own["scale_wait_s"] = seconds(limit)
    settled = dataclasses.replace(
        read, models=tuple(dataclasses.replace(model, **chosen) for model in configured), **own
    )

    def started(address: str) -> None:
        if as_json:
            emit({"address": address, "models": [m.name or m.artifact for m in settled.models]})
        else:
            click.echo(f"serving at {address}/v1 (Ctrl-C ends)")

    run(settled, started)
