"""A cut model healed, beside one cut by Torch-Pruning to the same size and healed alike.

    python benchmarks/compress_heal.py --work FOLDER [--windows N] [--steps N] [--cutter ours|torch-pruning]

A fifth of the decoder's weights leave as feed-forward channels (1,536 → 1,120 of SmolLM2-135M-Instruct, whose
weights came out of a 4-bit file). Both cutters see the same 256 windows, both results are trained by `heal`
on the same text, which the model wrote itself, the whole model being the teacher. Judged on all items of PIQA
as llama.cpp's q8_0, paired with the model as it is. Everything already made in FOLDER is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from compress_structure import MODEL
from environments import environment
from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.compress.calibration import SELF, calibration
from negawatt.compress.source import Source
from negawatt.engine import Settings
from negawatt.profiling.quality import Quality
from negawatt.profiling.scores import Scores
from negawatt.workload import Workload, paired_difference

CUT = "width:ffn=0.27"
CUT_WINDOWS, HELDOUT, LENGTH = 256, 16, 256
PEER = Path(__file__).parent / "peers" / "compress_torch_pruning.py"
SETTINGS = Settings(engine="llamacpp", weight_format="q8_0", threads=1, max_context=1024)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def recipe(model: str, technique: str, windows: int) -> Recipe:
    return Recipe(
        model, (parse(technique),), SELF, windows=windows, heldout=HELDOUT, length=LENGTH, threads=2
    )


def cut(work: Path) -> Artifact:
    output = work / "cut"
    if not output.exists():
        compress(recipe(MODEL, CUT, CUT_WINDOWS), output, keep_worse=True)
    return Artifact.open(output)


def cut_by_peer(work: Path, channels: int) -> Artifact:
    output = work / "cut-torch-pruning"
    if not output.exists():
        plain = Artifact.open(MODEL)
        text = calibration(
            Source.of(plain), SELF, windows=CUT_WINDOWS, heldout=HELDOUT, length=LENGTH, seed=0,
            progress=lambda done, total, what: None,
        )  # fmt: skip
        np.save(work / "windows.npy", text.windows.numpy())
        python = environment(work, "torch-pruning", ["torch==2.13.0", "transformers", "torch-pruning"])
        command = [python, PEER, plain.checkpoint(), str(channels), work / "windows.npy", output]
        done = subprocess.run(
            [str(part) for part in command], check=True, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        say(f"torch-pruning: {json.loads(done.stdout)}")
    return Artifact.open(output)


def healed(cut_model: Artifact, work: Path, name: str, windows: int, steps: int, rate: float) -> Artifact:
    output = work / f"{name}-{windows}-{steps}-{rate:g}"
    if not output.exists():
        technique = f"heal:teacher={MODEL},method=full,rate={rate:g},steps={steps}"
        compress(recipe(str(cut_model.path), technique, windows), output, keep_worse=True)
    return Artifact.open(output)


def answers(artifact: Artifact) -> Quality:
    piqa = Workload.open("piqa")
    with Scores(artifact, piqa, SETTINGS) as scores:
        return scores.quality(SETTINGS, piqa.quality, lambda text: None)


def line(name: str, artifact: Artifact, before: Quality) -> None:
    found = answers(artifact)
    ids = list(before.scores)
    difference = paired_difference([before.scores[i] for i in ids], [found.scores[i] for i in ids])
    value = sum(found.scores.values()) / len(ids)
    whole = sum(before.scores.values()) / len(ids)
    low, high = (-end / whole for end in (difference.high, difference.low))
    step = artifact.lineage[-1] if artifact.lineage else {}
    quality = step.get("quality") or {}
    print(
        f"{name:<32}{artifact.shape.n_params / 1e6:>8.1f} M  PIQA {value:.2%}, {difference.text}; "
        f"{1 - value / whole:.1%} of it lost ({low:.1%} to {high:.1%}); "
        f"perplexity {quality.get('before', float('nan')):.2f} → {quality.get('after', float('nan')):.2f}; "
        f"{step.get('cpu_s', 0):,.0f} CPU-s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for results and the peer's environment"
    )
    parser.add_argument("--windows", type=int, default=1000, help="of 256 tokens, to heal on")
    parser.add_argument("--steps", type=int, default=500, help="of four windows")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--cutter", choices=("ours", "torch-pruning", "both"), default="both")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    before = answers(Artifact.open(MODEL))
    right = sum(before.scores.values())
    print(f"as it is: PIQA {right / len(before.scores):.2%} of {len(before.scores):,}")
    ours = cut(options.work)
    cutters = {"ours": ours}
    if options.cutter != "ours":
        cutters["torch-pruning"] = cut_by_peer(options.work, ours.shape.ffn)
    for name, model in cutters.items():
        if options.cutter in (name, "both"):
            line(f"{name}, cut", model, before)
            made = healed(model, options.work, name, options.windows, options.steps, options.rate)
            line(f"{name}, healed", made, before)


if __name__ == "__main__":
    main()
