"""Options that name a way of running a model, shared by the commands that run one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import click

from negawatt.errors import UsageError

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|)$")
_ENERGY = re.compile(r"^(\d+(?:\.\d+)?)\s*(J|kJ|MJ|Wh|kWh|)$")
_JOULES = {"": 1.0, "J": 1.0, "kJ": 1e3, "MJ": 1e6, "Wh": 3600.0, "kWh": 3.6e6}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kMGT]?i?)B?$")
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "ki": 2**10, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--engine``, ``--weights``, ``--threads``, ``--batch``, ``--kv-cache``, ``--draft``, …"""
    options = [
        click.option("--engine", default="transformers", show_default=True, help="Engine to run it with."),
        click.option("--weights", default=None, help="Weight format; the engine's plain one by default."),
        click.option("--threads", type=int, default=None, help="Threads; the engine's default if absent."),
        click.option(
            "--cores", default="default", show_default=True, metavar="NAME",
            help="Where the threads are kept: default, compact, performance or efficiency.",
        ),
        click.option(
            "--device", metavar="NAME",
            help="Where it runs: cpu, vulkan (llamacpp) or cuda (transformers); cpu by default.",
        ),
        click.option(
            "--gpu-layers", type=int, metavar="N",
            help="How many layers run on the device, the others on the processor; all by default. Without "
            "--device that is the engine's own kind of accelerator.",
        ),
        click.option("--batch", type=int, default=1, show_default=True, help="Sequences decoded at once."),
        click.option("--kv-cache", default="default", show_default=True, help="KV-cache precision."),
        click.option(
            "--flash-attention/--no-flash-attention", default=None, help="Where the engine has the switch."
        ),
        click.option(
            "--speculation", type=click.Choice(["none", "ngram"]), default="none", show_default=True,
            help="Verify proposed continuations several tokens at a time.",
        ),
        click.option(
            "--draft", metavar="MODEL[:WEIGHTS]",
            help="Small model of the same vocabulary that proposes, in this weight format; llamacpp.",
        ),
        click.option(
            "--max-context", type=int, default=1024, show_default=True, help="Tokens a sequence may hold."
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def settings_from(options: dict[str, Any]) -> Any:
    """`Settings` from the values of `run_options`, which are taken out of `options`."""
    from negawatt.engine import Settings
    from negawatt.engine.backends import accelerator_of
    from negawatt.engine.settings import DRAFT

    engine, device = options.pop("engine"), options.pop("device")
    layers = options["gpu_layers"]
    if device is None:
        device = "cpu" if layers is None else accelerator_of(engine)
    weights = options.pop("weights") or ("fp32" if engine == "transformers" else "native")
    names = (
        "threads", "cores", "batch", "kv_cache", "flash_attention", "speculation", "max_context", "gpu_layers"
    )  # fmt: skip
    chosen = {name: options.pop(name) for name in names}
    if (draft := options.pop("draft")) is not None:
        if (other := chosen["speculation"]) != "none":
            raise UsageError(f"the draft {draft} proposes nothing with speculation {other!r}; choose one")
        chosen["speculation"] = DRAFT + draft
    return Settings(engine=engine, device=device, weight_format=weights, **chosen)


def parse_settings(text: str, max_context: int) -> Any:
    """``ENGINE[:WEIGHTS[:THREADS]]`` as `Settings`.

    Raises:
        UsageError: the text has another form.
    """
    from negawatt.engine import Settings

    parts = text.split(":")
    if len(parts) > 3 or (len(parts) == 3 and not parts[2].isdecimal()):
        raise UsageError(f"expected ENGINE[:WEIGHTS[:THREADS]] such as llamacpp:q8_0:1, not {text!r}")
    weights = parts[1] if len(parts) > 1 else "fp32" if parts[0] == "transformers" else "native"
    threads = int(parts[2]) if len(parts) > 2 else None
    return Settings(engine=parts[0], weight_format=weights, threads=threads, max_context=max_context)


def seconds(text: str) -> float:
    """``90``, ``90s``, ``6m`` or ``1.5h`` as seconds.

    Raises:
        UsageError: the text has another form, or is not above 0.
    """
    found = _DURATION.match(text.strip())
    value = float(found[1]) * {"s": 1, "": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"expected a time such as 90s, 6m or 1.5h, not {text!r}")
    return value


def joules(text: str) -> float:
    """``500J``, ``2.5kJ``, ``10Wh``, ``0.1kWh`` or a plain number of joules.

    Raises:
        UsageError: the text has another form, or is not above 0.
    """
    found = _ENERGY.match(text.strip())
    value = float(found[1]) * _JOULES[found[2]] if found else 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"expected an energy such as 500J, 10Wh or 0.1kWh, not {text!r}")
    return value


def size_bytes(text: str) -> int:
    """``800MB``, ``1.5GiB`` or a plain number as bytes.

    Raises:
        UsageError: the text has another form.
    """
    found = _SIZE.match(text.strip())
    value = float(found[1]) * _UNITS.get(found[2], math.inf) if found else math.inf
    if value == math.inf:
        raise UsageError(f"expected a size such as 800MB or 1.5GiB, not {text!r}")
    return int(value)
