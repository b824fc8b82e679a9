"""Quantizers side by side: perplexity, CPU-seconds and peak memory of each, on the same windows of text.

    .venv/bin/python benchmarks/compress_quantizers.py [--only gptq] [--texts austen,self,handbook]

The model is SmolLM2-135M-Instruct, whose weights come out of a 4-bit GGUF file (Q4_1, groups of 32): the
original is already rounded. Judged on characters 200,000 to 600,000 of the Debian handbook, the first 16
windows of 512 tokens; the embedding, which is also the head, stays as it is. Calibrated on 64 windows of 512
tokens of Austen (another domain), on 96 windows of 340 tokens that the model wrote, or on other parts of the
handbook (its own domain). Each row runs in a process of its own; CPU-seconds and memory are that process's,
without the text and without the judging.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from texts import austen, handbook

MODEL = "smollm2-135m-instruct"
PLAIN = ("rtn:group=64,embeddings=0,clip=false", "rtn:group=64,embeddings=0", "hqq:group=64,embeddings=0")
CALIBRATED = ("gptq:group=64,embeddings=0", "awq:group=64,embeddings=0", "qat:group=64,embeddings=0,steps=16")
TEXTS = ("austen", "self", "handbook")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="only techniques whose name begins so")
    parser.add_argument("--texts", default=",".join(TEXTS), help="calibration texts, comma-separated")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "negawatt-texts")
    parser.add_argument("--model", default=MODEL, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run(*options.worker.split("@"), options.work, options.model)))
        return
    rows = [("as it is", "-")] + [(t, "-") for t in PLAIN]
    rows += [(t, text) for t in CALIBRATED for text in options.texts.split(",")]
    print(f"{'technique':<46}{'calibrated on':<15}{'perplexity':>10}{'ratio':>8}{'CPU-s':>8}{'peak MB':>9}")
    first = 0.0
    for technique, text in rows:
        if technique != "as it is" and not technique.startswith(options.only):
            continue
        found = in_a_process(technique, text, options.work)
        first = first or found["perplexity"]
        print(
            f"{technique:<46}{text:<15}{found['perplexity']:>10.2f}{found['perplexity'] / first:>8.3f}"
            f"{found['cpu_s']:>8.0f}{found['peak_mb']:>9.0f}",
            flush=True,
        )


def in_a_process(technique: str, text: str, work: Path, model: str = MODEL) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(work), "--model", model]
    command += ["--worker", f"{technique}@{text}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{technique} on {text} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(technique: str, text: str, work: Path, model: str) -> dict[str, Any]:
    """Apply one technique, judge it, and tell what it took."""
    import torch

    from negawatt.artifact import Artifact
    from negawatt.compress import Draft, Source, Work, parse
    from negawatt.compress.judgement import judge
    from negawatt.engine.host import peak_rss_bytes
    from negawatt.run import Run

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    source = Source.of(Artifact.open(model))
    windows = judged_windows(source, work)
    cpu_s, peak_mb = 0.0, 0.0
    if technique != "as it is":
        each = parse(technique)
        text, _, n = text.partition("/")
        calibrated = calibration_windows(source, text, work, int(n or 64)) if each.calibrated else None
        with tempfile.TemporaryDirectory() as folder, Run.create("pass", path=Path(folder) / "run") as kept:
            draft = Draft(source, kept)
            each.apply(Work(source, draft, calibrated, text, 0, lambda done, total, what: None))
            cpu_s = draft.cost()["cpu_s"]
            peak_mb = peak_rss_bytes() / 1e6
            scores = judge(draft.as_source(source), windows).scores
    else:
        scores = judge(source, windows).scores
    return {"perplexity": float(scores.mean().exp()), "cpu_s": cpu_s, "peak_mb": peak_mb}


def judged_windows(source: Any, work: Path) -> Any:
    """Token ids of shape ``(16, 512)``."""
    import torch

    book = handbook(work).read_text("utf-8")
    return torch.tensor(source.tokenizer.encode(book[200_000:600_000])[: 16 * 512]).reshape(16, 512)


def calibration_windows(source: Any, text: str, work: Path, n: int = 64) -> Any:
    """Token ids of shape ``(n, 512)``, or of 96 shorter windows that the model wrote."""
    from negawatt.compress.calibration import calibration

    length, reference = 512, text
    if text == "self":
        n, length = 96, 340
    elif text == "austen":
        reference = str(austen(work))
    else:
        book = handbook(work).read_text("utf-8")
        reference = str(work / "handbook-rest.txt")
        Path(reference).write_text(book[:200_000] + book[600_000:], "utf-8")

    def silent(done: float, total: float | None, what: str) -> None:
        pass

    found = calibration(source, reference, windows=n - 1, heldout=1, length=length, seed=0, progress=silent)
    return found.windows


if __name__ == "__main__":
    main()
