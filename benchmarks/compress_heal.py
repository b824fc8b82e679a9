"""A cut model healed, beside one cut by Torch-Pruning to the same size and healed alike.

    python benchmarks/compress_heal.py --work FOLDER [--windows N] [--steps N] [--cutter ours|torch-pruning]

A fifth of the decoder's weights leave as feed-forward channels (1,536 → 1,120 of SmolLM2-135M-Instruct, whose
weights came out of a 4-bit file). Both cutters see the same text, BoolQ's passages and XSum's articles, and
both are then trained by `heal` on it, the whole model being the teacher. Judged on PIQA, of which neither saw
anything, as llama.cpp's q8_0, paired with the model as it is. Everything already made in FOLDER is taken as
it is.

With ``--text workload`` both see the words of a third of PIQA's questions, each with either answer, not which
is right, and are judged on the other two thirds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from compress_structure import MODEL
from environments import environment
from negawatt.artifact import Artifact
from negawatt.compress import Recipe, compress, parse
from negawatt.compress.calibration import calibration
from negawatt.compress.source import Source
from negawatt.engine import Settings
from negawatt.profiling.quality import Quality
from negawatt.profiling.scores import Scores
from negawatt.workload import Workload, paired_difference
from negawatt.workload.datasets import load
from negawatt.workload.items import ChooseItem, GenerateItem, prompt_text

CUT = "width:ffn=0.27"
CUT_WINDOWS = 256
"""Windows of the text that both cutters see; more tells them nothing new."""
HELDOUT, LENGTH = 16, 256
PEER = Path(__file__).parent / "peers" / "compress_torch_pruning.py"
SETTINGS = Settings(engine="llamacpp", weight_format="q8_0", threads=1, max_context=1024)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bench:
    """What all share: the text, and a folder for what is made."""

    def __init__(self, work: Path, windows: int, kind: str) -> None:
        self.work, self.windows, self.kind = work, windows, kind
        piqa = Workload.open("piqa")
        shown, self.judged = piqa.split(1 / 3, seed=0) if kind == "workload" else (None, piqa)
        self.plain = Artifact.open(MODEL)
        source = Source.of(self.plain)
        self.text = work / f"{kind}.txt"
        texts = passages() if shown is None else questions(shown)
        self.text.write_text("\n\n".join(texts), "utf-8")
        text = calibration(
            source, str(self.text), windows=min(windows, CUT_WINDOWS), heldout=HELDOUT, length=LENGTH, seed=0,
            progress=lambda done, total, what: None,
        )  # fmt: skip
        self.tokens = text.windows.numpy()

    def made(self, model: str, technique: str, name: str, windows: int) -> Artifact:
        output = self.work / f"{self.kind}-{name}"
        if not output.exists():
            recipe = Recipe(
                model, (parse(technique),), str(self.text), windows=windows, heldout=HELDOUT,
                length=LENGTH, threads=1,
            )  # fmt: skip
            compress(recipe, output, keep_worse=True)
        return Artifact.open(output)

    def cut(self) -> Artifact:
        return self.made(MODEL, CUT, "cut", min(self.windows, CUT_WINDOWS))

    def cut_by_peer(self, channels: int) -> Artifact:
        output = self.work / f"{self.kind}-cut-torch-pruning"
        if not output.exists():
            np.save(self.work / "windows.npy", self.tokens)
            python = environment(
                self.work, "torch-pruning", ["torch==2.13.0", "transformers", "torch-pruning"]
            )
            command = [
                python, PEER, self.plain.checkpoint(), channels, self.work / "windows.npy", output
            ]  # fmt: skip
            done = subprocess.run(
                [str(part) for part in command], check=True, capture_output=True, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            say(f"torch-pruning: {json.loads(done.stdout)}")
        return Artifact.open(output)

    def healed(self, cut_model: Artifact, name: str, steps: int, rate: float) -> Artifact:
        technique = f"heal:teacher={MODEL},method=full,rate={rate:g},steps={steps}"
        made_as = f"{name}-{self.windows}-{steps}-{rate:g}"
        return self.made(str(cut_model.path), technique, made_as, self.windows)


def passages() -> list[str]:
    """Every passage and article once, shuffled."""
    found = {}
    for item in (*load("boolq")[0], *load("xsum")[0]):
        if isinstance(item, GenerateItem):
            text = prompt_text(item.prompt).partition("\n\n")[2]
        else:
            assert isinstance(item, ChooseItem)
            text = prompt_text(item.context).rpartition("\nQuestion: ")[0]
        found[text[:80]] = text
    texts = list(found.values())
    random.Random(0).shuffle(texts)
    return texts


def questions(piqa: Workload) -> list[str]:
    """Questions with either answer, shuffled."""
    texts = []
    for item in piqa.quality:
        assert isinstance(item, ChooseItem)
        texts += [prompt_text(item.context) + " " + choice.strip() for choice in item.choices]
    random.Random(0).shuffle(texts)
    return texts


def answers(artifact: Artifact, judged: Workload) -> Quality:
    with Scores(artifact, judged, SETTINGS) as scores:
        return scores.quality(SETTINGS, judged.quality, lambda text: None)


def line(name: str, artifact: Artifact, judged: Workload, before: Quality) -> None:
    found = answers(artifact, judged)
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
    parser.add_argument("--windows", type=int, default=1536, help="of 256 tokens, to heal on")
    parser.add_argument("--steps", type=int, default=384, help="of four windows; 0: only cut")
    parser.add_argument("--text", choices=("passages", "workload"), default="passages")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--cutter", choices=("ours", "torch-pruning", "both"), default="both")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.work, options.windows, options.text)
    before = answers(bench.plain, bench.judged)
    right = sum(before.scores.values())
    print(f"as it is: PIQA {right / len(before.scores):.2%} of {len(before.scores):,}", flush=True)
    ours = bench.cut()
    cutters = {"ours": ours}
    if options.cutter != "ours":
        cutters["torch-pruning"] = bench.cut_by_peer(ours.shape.ffn)
    for name, model in cutters.items():
        if options.cutter in (name, "both"):
            line(f"{name}, cut", model, bench.judged, before)
            if options.steps:
                healed = bench.healed(model, name, options.steps, options.rate)
                line(f"{name}, healed", healed, bench.judged, before)


if __name__ == "__main__":
    main()
