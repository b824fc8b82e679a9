"""SmoothQuant side by side: what weights and activations of 8 bits lose, and what integers are worth.

    .venv/bin/python benchmarks/compress_smoothquant.py            perplexity, with and without smoothing
    .venv/bin/python benchmarks/compress_smoothquant.py --speed    CPU-ms a token against 8-bit weights alone

The model is SmolLM2-135M-Instruct, whose weights come out of a 4-bit file. Text is the Debian handbook, whose
windows calibrate and, others of them, judge. For speed OpenVINO runs the original with 8-bit weights, and the
result with 8-bit weights and inputs, in turn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import texts
from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.engine import Engine, Settings
from turns import in_turns, phase_ms, row

MODEL = "smollm2-135m-instruct"
TECHNIQUES = (
    "rtn:bits=8,group=64", "smoothquant:alpha=0,tolerance=1", "smoothquant:tolerance=1",
    "smoothquant:alpha=0", "smoothquant",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--techniques", default=" ".join(TECHNIQUES), help="separated by spaces")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--batches", default="1,16", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "negawatt-texts")
    options = parser.parse_args()
    text = options.work / "handbook-part.txt"
    if not text.is_file():
        text.write_text(texts.handbook(options.work).read_text("utf-8")[200_000:600_000], "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        if options.speed:
            made = Path(folder) / "made"
            _made("smoothquant", text, options.windows, made)
            speed(Artifact.open(made), [int(each) for each in options.batches.split(",")], options.rounds)
        else:
            quality(options.techniques.split(), text, options.windows, Path(folder))


def _made(technique: str, text: Path, windows: int, output: Path) -> dict[str, Any]:
    recipe = Recipe(MODEL, (parse(technique),), str(text), windows=windows, heldout=8, length=256, threads=1)
    (step,) = compress(recipe, output, keep_worse=True)["passes"]
    return dict(step)


def quality(techniques: list[str], text: Path, windows: int, folder: Path) -> None:
    print(f"{'technique':<34}{'perplexity':>10}{'ratio':>8}{'CPU-s':>8}{'inputs kept':>13}")
    for number, technique in enumerate(techniques):
        step = _made(technique, text, windows, folder / str(number))
        before, after = step["quality"]["before"], step["quality"]["after"]
        if not number:
            print(f"{'as it is':<34}{before:>10.2f}{1:>8.3f}")
        kept = len(step["outcome"].get("inputs_kept", []))
        print(
            f"{technique:<34}{after:>10.2f}{after / before:>8.3f}{step['cpu_s']:>8.0f}{kept:>13}", flush=True
        )


def speed(made: Artifact, batches: list[int], rounds: int) -> None:
    original = Artifact.open(MODEL)
    print(f"{'CPU-ms a token fed, 1 thread':<34}{'weights':>9}{'and inputs':>11}{'ratio':>8}")
    for batch in batches:
        settings = Settings(engine="openvino", threads=1, batch=batch)
        ways = {"weights": (original, settings.replace(weight_format="int8")), "both": (made, settings)}
        windows = in_turns(ways, rounds, prompt_tokens=256, new_tokens=32)
        for phase in ("prefill", "decode"):
            costs = ([phase_ms(phase)(w) for w in each] for each in windows.values())
            print(row(f"{phase}, batch {batch}", *costs), flush=True)
    with Engine(made, Settings(engine="openvino", threads=1)) as engine:
        print(f"matrices by the kernel that multiplies them: {engine.info['kernels']}")


if __name__ == "__main__":
    main()
