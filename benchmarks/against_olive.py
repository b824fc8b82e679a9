"""Negawatt's winner against what Olive's automatic optimisation makes of the same model.

    python benchmarks/against_olive.py RUN --work FOLDER --calibration TEXT [--items 500] [--rounds 6]

RUN is a finished ``negawatt tune`` run. Olive lives in an environment of its own below ``--environments``
and makes two models of the checkpoint, on one thread, in FOLDER: ``gptq``, the recipe that ``olive optimize
--precision int4`` writes for a CPU (GPTQ, then ONNX Runtime GenAI's model builder), calibrated on a text
file in place of a data set from a hub; and ``rtn``, the same without GPTQ. The recipe's groups of 128 do not
divide this model's 576 inputs, where it fails after the work; both get groups of 64. What is made is kept.

CPU seconds of a token are measured in turns, one chat request of 96 new tokens a round, Olive's with one
thread and with its default. Quality is PIQA, the same items for all, paired.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from against_peers import NEW_TOKENS, Ours, Peer, chat_prompts
from environments import environment
from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.profiling.quality import Quality, judged, scoring_settings
from negawatt.run import Run
from negawatt.workload import Workload, paired_difference, ratio_interval

PACKAGES = [
    "torch==2.13.0", "olive-ai==0.13.0", "onnxruntime==1.32.0", "onnxruntime-genai==0.14.1", "transformers",
    "requests", "datasets",
]  # fmt: skip
"""Olive 0.13 asks for a module that later versions of ONNX Runtime GenAI have moved."""
GROUP = 64


@dataclass
class Made:
    """One of Olive's models: where it is, and what making it took."""

    folder: Path
    cpu_s: float
    wall_s: float
    bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.bytes = sum(f.stat().st_size for f in self.folder.iterdir() if f.name.startswith("model.onnx"))


def made(name: str, python: Path, checkpoint: Path, text: Path, work: Path) -> Made:
    """Let Olive make it, unless it is there."""
    told = work / f"{name}.cost.json"
    if not told.exists():
        shutil.rmtree(work / f"{name}.cache", ignore_errors=True)  # what it made before would cost nothing
        recipe = work / f"{name}.json"
        recipe.write_text(json.dumps(recipe_of(name, checkpoint, text, work / name), indent=1))
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        olive = python.with_name("olive")
        command = [str(olive), "run", "--config", str(recipe), "--disable_telemetry"]
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode or not list((work / name).rglob("genai_config.json")):
            sys.exit(f"Olive failed at {name}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        told.write_text(json.dumps({"cpu_s": cpu_s, "wall_s": time.perf_counter() - begun}))
    (config,) = (work / name).rglob("genai_config.json")
    return Made(config.parent, **json.loads(told.read_text()))


def recipe_of(name: str, checkpoint: Path, text: Path, output: Path) -> dict[str, Any]:
    builder = {
        "type": "ModelBuilder", "precision": "int4", "int4_block_size": GROUP, "int4_accuracy_level": 4,
        "int4_op_types_to_quantize": ["MatMul", "Gather"],
    }  # fmt: skip
    gptq = {"type": "Gptq", "bits": 4, "sym": True, "group_size": GROUP, "data_config": "text"}
    data = {
        "name": "text",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {"data_name": "text", "data_files": {"train": str(text)}, "split": "train"},
        "pre_process_data_config": {
            "strategy": "join", "add_special_tokens": False, "max_samples": 64, "max_seq_len": 512,
        },
    }  # fmt: skip
    devices = {"accelerators": [{"execution_providers": ["CPUExecutionProvider"]}]}
    return {
        "input_model": {
            "type": "HfModel",
            "model_path": str(checkpoint),
            "load_kwargs": {"attn_implementation": "eager", "trust_remote_code": False},
        },
        "passes": {**({"gptq": gptq} if name == "gptq" else {}), "model_builder": builder},
        "systems": {"local_system": {"type": "LocalSystem", **devices}},
        "data_configs": [data] if name == "gptq" else [],
        "target": "local_system",
        "output_dir": str(output),
        "cache_dir": str(output.with_name(f"{name}.cache")),
        "no_artifacts": True,
    }


class Olive(Peer):
    """One of Olive's models, running; to `judged` it looks like an engine that scores."""

    labels: tuple[str, ...] = ()
    width = None
    last_steps: tuple[Any, ...] = ()

    def __init__(self, name: str, python: Path, folder: Path, threads: int, artifact: Artifact) -> None:
        super().__init__(name, python, "olive_genai.py", str(folder), str(threads), batch=1)
        self.artifact, self.settings = artifact, Settings()

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> tuple[list[list[list[float]]], Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"score": pairs}) + "\n")
        self.process.stdin.flush()
        found = self._read()["log_probs"]
        return [[row] for row in found], SimpleNamespace(cpu_s=0.0, wall_s=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True, help="a text file for GPTQ")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--environments", type=Path, default=Path(".negawatt/peers"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    run = Run.open(options.run, kind="tune")
    assert run.result is not None, "the run is not finished"
    artifact = Artifact.open(run.manifest["artifact"]["name"])
    winner = Settings.from_json(run.result["best"]["settings"])
    python = environment(options.environments.absolute(), "olive", PACKAGES)
    models = {
        name: made(name, python, artifact.checkpoint(), options.calibration.resolve(), options.work.resolve())
        for name in ("rtn", "gptq")
    }
    for name, model in models.items():
        print(f"Olive, {name}: {model.cpu_s:.0f} CPU-s and {model.wall_s:.0f} s to make, "
              f"{model.bytes / 1e6:.0f} MB")  # fmt: skip
    print(f"the search of {options.run.name}: {json.dumps(run.result['search'])}", flush=True)
    costs(artifact, winner, models, python, options.rounds)
    qualities(artifact, winner, models, python, options.items)


def costs(
    artifact: Artifact, winner: Settings, models: dict[str, Made], python: Path, rounds: int
) -> None:  # fmt: skip
    runtimes: list[Any] = [
        Olive(
            f"Olive, {name}, {f'{n} thread' if n else 'default threads'}", python, model.folder, n, artifact
        )
        for name, model in models.items()
        for n in (1, 0)
    ]
    runtimes.append(Ours(f"Negawatt: {winner}", artifact, winner))
    prompts = chat_prompts(artifact)
    samples: dict[str, list[float]] = {r.name: [] for r in runtimes}
    for number in range(-1, rounds):  # round -1 warms up
        for k in range(len(runtimes)):
            runtime = runtimes[(max(number, 0) + k) % len(runtimes)]
            answer = runtime.run([prompts[max(number, 0) % len(prompts)]], NEW_TOKENS if number >= 0 else 4)
            if number >= 0:
                samples[runtime.name].append(answer["cpu_s"] / answer["tokens"])
    ours = samples[runtimes[-1].name]
    for runtime in runtimes:
        runtime.close()
        found = samples[runtime.name]
        ratio = ratio_interval(found, ours, robust=len(found) >= 6)
        print(f"{runtime.name}: {1000 * statistics.median(found):.2f} CPU-ms a token, "
              f"{ratio.value:.2f} ({ratio.low:.2f}–{ratio.high:.2f}) times ours", flush=True)  # fmt: skip


def qualities(
    artifact: Artifact, winner: Settings, models: dict[str, Made], python: Path, n_items: int
) -> None:
    """PIQA of all, and how much less than ours Olive's have."""
    workload = Workload.open("chat-piqa").subset(n_items)
    found: dict[str, Quality] = {}
    with Engine(artifact, scoring_settings(winner)) as engine:
        found["Negawatt"] = judged(engine, workload.quality, workload.metrics)
    for name, model in models.items():
        peer = Olive(name, python, model.folder, 0, artifact)
        found[f"Olive, {name}"] = judged(peer, workload.quality, workload.metrics)  # type: ignore[arg-type]
        peer.close()
    ours = found["Negawatt"].scores
    for name, quality in found.items():
        value = quality.interval
        beside = paired_difference(list(ours.values()), [quality.scores[i] for i in ours])
        told = f"{100 * value.value:.1f} % ({100 * value.low:.1f}–{100 * value.high:.1f}) of {value.n}"
        to_ours = f"{100 * beside.mean:+.1f} points ({100 * beside.low:+.1f} to {100 * beside.high:+.1f})"
        print(f"{name}: {quality.metric} {told}; to ours {to_ours}", flush=True)


if __name__ == "__main__":
    main()
