"""Quantizing and sparsifying passes beside llm-compressor, GPTQModel and AutoRound, all in one run.

    .venv/bin/python benchmarks/compress_peers.py --work FOLDER [--model as-it-is|rotated] [--only NAME,…]

Same model, same calibration windows (64, or --windows, of 512 tokens of Austen, another domain), same judged
windows (the first 16 of 512 tokens of characters 200,000 to 600,000 of the Debian handbook), one thread.
Every row runs in a process of its own, a peer in an environment of its own; CPU-seconds are those of loading
and the method, peak memory that of the process before judging.

``as-it-is`` is SmolLM2-135M-Instruct, whose weights come out of a 4-bit file. ``rotated`` computes the same
function with weights that are on no grid: its residual stream is turned by a random orthogonal matrix
(Ashkboos et al. 2024), so that nothing is left of the file's groups. It stands in for untouched weights,
which no small decoder at hand has.
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

import numpy as np

from compress_quantizers import MODEL, calibration_windows, in_a_process, judged_windows
from environments import environment

PEERS = Path(__file__).parent / "peers"
TORCH = "torch==2.13.0"
OURS = {
    "rtn": "rtn:group=64,embeddings=0",
    "gptq": "gptq:group=64,embeddings=0",
    "gptq-unaligned": "gptq:group=64,embeddings=0,align=0",
    "awq": "awq:group=64,embeddings=0",
    "wanda": "wanda:ratio=0.5",
    "sparsegpt": "sparsegpt:ratio=0.5",
    "magnitude": "magnitude:ratio=0.5",
}
THEIRS = {
    "llmcompressor-gptq": ("llmcompressor", "gptq", ["llmcompressor==0.14.*"]),
    "gptqmodel": ("gptqmodel", "gptq", ["gptqmodel"]),
    "autoround": ("autoround", "light", ["auto-round"]),
    "llmcompressor-wanda": ("llmcompressor", "wanda", ["llmcompressor==0.14.*"]),
    "llmcompressor-sparsegpt": ("llmcompressor", "sparsegpt", ["llmcompressor==0.14.*"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "negawatt-texts")
    parser.add_argument("--model", choices=("as-it-is", "rotated"), default="as-it-is")
    parser.add_argument("--windows", type=int, default=64, help="to calibrate on")
    parser.add_argument("--only", default=",".join([*OURS, *THEIRS]), help="rows, comma-separated")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    options.work.mkdir(parents=True, exist_ok=True)
    folder = checkpoint(options.work, options.model == "rotated")
    windows(folder, options.work, options.windows)
    before = in_a_process("as it is", "-", options.work, str(folder))["perplexity"]
    print(f"{'':<34}{'perplexity':>10}{'ratio':>8}{'CPU-s':>8}{'peak MB':>9}")
    print(f"{'as it is':<34}{before:>10.2f}{1:>8.3f}", flush=True)
    for name in options.only.split(","):
        if name in OURS:
            found = in_a_process(OURS[name], f"austen/{options.windows}", options.work, str(folder))
        else:
            found = peer(*THEIRS[name], folder, options.work)
        label = f"{name} {found.get('version', '(ours)')}"
        print(
            f"{label:<34}{found['perplexity']:>10.2f}{found['perplexity'] / before:>8.3f}"
            f"{found['cpu_s']:>8.0f}{found['peak_mb']:>9.0f}",
            flush=True,
        )


def checkpoint(work: Path, rotated: bool) -> Path:
    """The model as a folder that transformers opens, in fp32."""
    from negawatt.artifact import Artifact

    plain = Artifact.open(MODEL).checkpoint()
    return turned(plain, work / "rotated") if rotated else plain


def turned(plain: Path, output: Path) -> Path:
    """The same function with the residual stream in another basis.

    With Q orthogonal and the gain of each norm moved into the matrices behind it, RMSNorm(x) Q is
    RMSNorm(x Q), so every matrix that reads the stream becomes W diag(gain) Q and every one that writes
    it Qᵀ W.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (output / "config.json").exists():
        return output
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    size = model.config.hidden_size
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    model.config.tie_word_embeddings = False
    head = model.model.embed_tokens.weight.data.clone()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(head * model.model.norm.weight @ q)
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ q)
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                for reader in readers:
                    reader.weight.copy_(reader.weight * norm.weight @ q)
                norm.weight.fill_(1.0)
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight.copy_(q.T @ writer.weight)
    model.float().save_pretrained(output)
    AutoTokenizer.from_pretrained(plain).save_pretrained(output)
    return output


def windows(folder: Path, work: Path, n: int) -> None:
    """What to calibrate and to judge on, for the peers."""
    from negawatt.artifact import Artifact
    from negawatt.compress import Source

    source = Source.of(Artifact.open(str(folder)))
    np.save(work / f"judged-{folder.name}.npy", judged_windows(source, work).numpy())
    np.save(work / f"calibration-{folder.name}.npy", calibration_windows(source, "austen", work, n).numpy())


def peer(name: str, method: str, packages: list[str], folder: Path, work: Path) -> dict[str, Any]:
    python = environment(work / "environments", name, [TORCH, *packages])
    script = PEERS / f"compress_{name}.py"
    command = [python, script, folder, method]
    command += [work / f"{kind}-{folder.name}.npy" for kind in ("calibration", "judged")]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)  # some leave logs
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return {"perplexity": float("nan"), "cpu_s": 0.0, "peak_mb": 0.0, "version": "failed"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
