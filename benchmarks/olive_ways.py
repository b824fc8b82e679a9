"""What Olive makes of a checkpoint: by one of its own commands, or with options written by hand.

Every way is one command line of Olive's, run in a process of its own on one thread; some go on from what
another made, whose CPU seconds they bear too. What was made, or why not, is kept in the work folder.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGES = [
    "torch==2.13.0", "olive-ai==0.13.0", "onnxruntime==1.32.0", "onnxruntime-genai==0.14.1", "transformers",
    "requests", "datasets",
]  # fmt: skip
"""Olive 0.13 asks for a module that later versions of ONNX Runtime GenAI have moved."""
GROUP = 64
"""Weights that share a scale where it is said by hand: the 128 of most recipes do not divide 576 inputs."""


@dataclass(frozen=True)
class Way:
    """One of Olive's ways.

    Attributes:
        name: of its folder.
        arguments: Olive's, without the model and the output; ``run`` alone is followed by a recipe.
        after: the way whose output it starts from; the checkpoint where empty.
        by_hand: options were chosen that Olive does not choose.
    """

    name: str
    arguments: tuple[str, ...]
    after: str = ""
    by_hand: bool = False

    @property
    def text(self) -> str:
        """Its command, shortened, what it starts from, and whether it was written by hand."""
        what = "run RECIPE" if self.arguments == ("run",) else " ".join(self.arguments)
        return f"`olive {what}`{f' after {self.after}' if self.after else ''}{', by hand' * self.by_hand}"


def _pass(name: str, **options: Any) -> tuple[str, ...]:
    return "run-pass", "--pass-name", name, "--pass-config", json.dumps(options)


EIGHT_BITS = {"bits": 8, "block_size": GROUP, "accuracy_level": 4}
WAYS = (
    Way("fp32", ("optimize", "--precision", "fp32")),
    Way("fp16", ("optimize", "--precision", "fp16")),
    Way("int8", ("optimize", "--precision", "int8")),
    Way("int8-builder", ("auto-opt", "--precision", "int8", "--use_model_builder")),
    Way("int8-torch", ("auto-opt", "--precision", "int8")),
    Way("int8-dynamo", ("auto-opt", "--precision", "int8", "--use_dynamo_exporter")),
    Way("int4", ("auto-opt", "--precision", "int4", "--use_model_builder")),
    Way("int8-onnx", ("auto-opt", "--precision", "int8"), after="fp32"),
    Way(
        "dynamic",
        ("quantize", "--precision", "int8", "--algorithm", "rtn", "--implementation", "ort"),
        after="fp32",
    ),
    Way("rtn8", _pass("OnnxBlockWiseRtnQuantization", **EIGHT_BITS), after="fp32", by_hand=True),
    Way("kquant8", _pass("OnnxKQuantQuantization", **EIGHT_BITS), after="fp32", by_hand=True),
    Way("mixed", _pass("ModelBuilder", precision="int4", int4_algo_config="k_quant_mixed"), by_hand=True),
    Way("rtn", ("run",), by_hand=True),
    Way("gptq", ("run",), by_hand=True),
)


@dataclass(frozen=True)
class Made:
    """What came of a way.

    Attributes:
        way: that made it.
        folder: of the model; None where there is none.
        cpu_s, wall_s: that making it took, what it started from included.
        own_cpu_s: of it, what it did not start from.
        error: why there is no model; empty where there is.
    """

    way: Way
    folder: Path | None
    cpu_s: float
    wall_s: float
    own_cpu_s: float
    error: str = ""

    @property
    def bytes(self) -> int:
        """Of the graph and its weights."""
        assert self.folder is not None, f"Olive made nothing by {self.way.name}"
        return sum(f.stat().st_size for f in self.folder.iterdir() if f.name.startswith("model.onnx"))


class Workbench:
    """Makes models in a folder and keeps them.

    Args:
        python: of Olive's environment.
        checkpoint: that all are made of.
        text: a file that calibration reads.
        work: where all of it is kept; made where it is not there.
    """

    def __init__(self, python: Path, checkpoint: Path, text: Path, work: Path) -> None:
        self.olive, self.checkpoint = python.with_name("olive"), checkpoint.resolve()
        self.text, self.work = text.resolve(), work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)

    def made(self, way: Way) -> Made:
        """What the way makes; made now unless it was before."""
        before = self.made(next(w for w in WAYS if w.name == way.after)) if way.after else None
        if before is not None and before.folder is None:
            return Made(way, None, before.cpu_s, before.wall_s, 0.0, f"{way.after}: {before.error}")
        told = self.work / f"{way.name}.cost.json"
        if not told.exists():
            cost = self._make(way, before.folder if before and before.folder else self.checkpoint)
            told.write_text(json.dumps(cost))
        found = json.loads(told.read_text())
        error = found.get("error", "")
        folder = None if error else next((self.work / way.name).rglob("genai_config.json")).parent
        cpu_s, wall_s = (found[n] + (getattr(before, n) if before else 0.0) for n in ("cpu_s", "wall_s"))
        return Made(way, folder, cpu_s, wall_s, found["cpu_s"], error)

    def _make(self, way: Way, source: Path) -> dict[str, Any]:
        output, cache = self.work / way.name, self.work / f"{way.name}.cache"
        for folder in (output, cache):
            shutil.rmtree(folder, ignore_errors=True)  # what it made before would cost nothing
        (self.work / f"{way.name}.scores.json").unlink(missing_ok=True)  # another's answers
        cache.mkdir()
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        # Olive takes a word for a path where a file of that name lies in the folder it runs in.
        done = subprocess.run(
            self._command(way, source, output, cache),
            cwd=cache, env=quiet, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        (self.work / f"{way.name}.log").write_text(done.stdout)
        shutil.rmtree(cache)
        complete = bool(list(output.rglob("genai_config.json"))) and bool(list(output.rglob("model.onnx")))
        return {
            "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            "wall_s": time.perf_counter() - begun,
            "error": "" if complete and not done.returncode else reason(done.stdout),
        }

    def _command(self, way: Way, source: Path, output: Path, cache: Path) -> list[str]:
        command = [str(self.olive), *way.arguments, "--disable_telemetry"]
        if way.arguments == ("run",):
            recipe = self.work / f"{way.name}.json"
            recipe.write_text(json.dumps(recipe_of(way.name, source, self.text, output, cache), indent=1))
            return [*command, "--config", str(recipe)]
        command += ["-m", str(source), "-o", str(output), "--log_level", "1"]
        return command if way.arguments[0] == "quantize" else [*command, "--provider", "CPUExecutionProvider"]


def reason(log: str) -> str:
    """The sentence in which Olive says why it made nothing."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if re.search(r"\b\w*(Error|Exception): |not supported", line)]
    return re.sub(r"^\[.*?\] \[.*?\] \[.*?\] ", "", (told or lines or ["it said nothing"])[-1])[:300]


def recipe_of(name: str, checkpoint: Path, text: Path, output: Path, cache: Path) -> dict[str, Any]:
    """What ``olive optimize --precision int4`` writes for a CPU, with groups and a text that serve here.

    Args:
        name: ``gptq``, or ``rtn`` for the same without GPTQ.
    """
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
        "cache_dir": str(cache),
        "no_artifacts": True,
    }
