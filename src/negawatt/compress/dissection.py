"""What one decoding step of a model costs on an engine, taken apart: weights, operations, tokens, context.

A step of B sequences whose contexts hold c tokens on average costs

    read + unpack + start  +  B · (arithmetic + context · c)

CPU seconds. `CostModel` is fitted to steps of several batches, which tells what a step costs once and what
for every token in it. What it costs once is taken apart by two more measurements: reading as many bytes as
the weights have, as fast as this machine streams memory (the roofline of Williams et al. 2009), and running
a twin with as many layers, each almost empty, which leaves what it takes to start the operations. The rest
comes with every weight: unpacking codes, or reading slower than memory allows.
"""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from negawatt.artifact import Artifact
from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.shape import ModelShape
from negawatt.energy import Energy
from negawatt.engine import Engine, Request, Settings, Step
from negawatt.errors import UsageError, require
from negawatt.profiling import CostModel

FITTED = (1, 2, 8)
HELD_BACK = 4
"""Batches whose steps the model is fitted to, besides the one asked for, and the one it is tested on."""
PROMPT, ANSWER = 128, 96
"""Tokens of the request that costs are told for: chat."""
MEASURED = 24
"""Tokens of each answer measured."""
HEAD_SIZE = 64
"""Width of the twin's only head, and so of all its layers."""

Tick = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Dissection:
    """CPU seconds of the parts of a token's cost at a batch, and what they were derived from.

    Attributes:
        settings: how the model ran.
        shape: the model's dimensions.
        read_s, unpack_s, start_s: of one decoding step, whatever the batch.
        arithmetic_s: of every token decoded; context_s: of every token of context it looks at.
        prefill_s: of every token of a prompt.
        layer_bits: bits that a weight of the blocks takes as it runs.
        layer_bytes, head_bytes: read by every step.
        bytes_per_s: that one core streams from memory.
        errors: relative errors on a batch that the fit did not see.
    """

    settings: Settings
    shape: ModelShape
    read_s: float
    unpack_s: float
    start_s: float
    arithmetic_s: float
    context_s: float
    prefill_s: float
    layer_bits: float
    layer_bytes: float
    head_bytes: float
    bytes_per_s: float
    errors: tuple[float, ...]

    @property
    def parts(self) -> dict[str, float]:
        """CPU seconds of one generated token by part, for a request of `PROMPT` and `ANSWER` tokens."""
        batch = self.settings.batch
        return {
            "weights": (self.read_s + self.unpack_s) / batch,
            "overhead": self.start_s / batch,
            "arithmetic": self.arithmetic_s + self.prefill_s * PROMPT / ANSWER,
            "context": self.context_s * (PROMPT + ANSWER / 2),
        }

    @property
    def token_s(self) -> float:
        """CPU seconds of one generated token, its share of the prompt included."""
        return sum(self.parts.values())

    @property
    def bound(self) -> str:
        """The part that costs most."""
        parts = self.parts
        return max(parts, key=lambda name: parts[name])

    @property
    def ridge(self) -> float:
        """The batch from which on arithmetic costs more than weights and overhead."""
        return (self.read_s + self.unpack_s + self.start_s) / max(self.parts["arithmetic"], 1e-12)

    def to_json(self) -> dict[str, Any]:
        names = (
            "read_s", "unpack_s", "start_s", "arithmetic_s", "context_s", "prefill_s", "layer_bits",
            "layer_bytes", "head_bytes", "bytes_per_s",
        )  # fmt: skip
        return {
            "settings": self.settings.to_json(),
            "cpu_s_per_token": self.token_s,
            "parts": self.parts,
            "bound": self.bound,
            "ridge_batch": self.ridge,
            "request": {"prompt_tokens": PROMPT, "answer_tokens": ANSWER},
            "step": {name: getattr(self, name) for name in names},
            "median_error": statistics.median(self.errors),
            "n_held_back": len(self.errors),
        }


def dissect(artifact: Artifact, settings: Settings, tick: Tick = lambda text: None) -> Dissection:
    """Run a decoder at several batches, and its twin, and take a step apart.

    Raises:
        UsageError: the model is no decoder.
        EngineError: the engine cannot run it.
    """
    if artifact.shape.architecture in ("bert", "mpnet", "t5", "marian"):
        raise UsageError(f"{artifact.name} does not generate token by token, so there is nothing to explain")
    batches = sorted({*FITTED, settings.batch})
    settings = settings.without_speculation()
    steps, held_back, weights = _run(artifact, settings, batches, tick)
    model = CostModel.fit(
        [s for found in steps.values() for s in found],
        batch=settings.batch,
        cpu_s=0.0,
        energy_per_cpu_s=Energy.estimated(1.0, 1.0, 1.0, "not used"),
    )
    errors = tuple(
        abs(
            (model.decode_call_s + model.decode_token_s * s.tokens + model.decode_context_s * s.context)
            / s.cpu_s
            - 1
        )
        for s in held_back
    )
    layer_bytes, head_bytes = weights
    shape = artifact.shape
    tick("reading memory")
    bytes_per_s = streamed(int(layer_bytes + head_bytes))
    tick("running a twin of almost empty layers")
    start_s = min(_started(artifact, settings, bytes_per_s), model.decode_call_s)
    read_s = min((layer_bytes + head_bytes) / bytes_per_s, model.decode_call_s - start_s)
    return Dissection(
        settings=settings,
        shape=shape,
        read_s=read_s,
        unpack_s=model.decode_call_s - read_s - start_s,
        start_s=start_s,
        arithmetic_s=model.decode_token_s,
        context_s=model.decode_context_s,
        prefill_s=_prefill_s(steps[settings.batch]),
        layer_bits=8 * layer_bytes / max(1, shape.n_params - shape.vocab * shape.hidden),
        layer_bytes=layer_bytes,
        head_bytes=head_bytes,
        bytes_per_s=bytes_per_s,
        errors=errors,
    )


def _run(
    artifact: Artifact, settings: Settings, batches: Sequence[int], tick: Tick
) -> tuple[dict[int, list[Step]], list[Step], tuple[float, float]]:
    """Steps of equal requests by batch, those of the batch held back, and the bytes of layers and head."""
    dice = random.Random(0)  # noqa: S311 - picks tokens, guards no secret
    vocab = artifact.shape.vocab
    room = PROMPT + max(ANSWER, MEASURED) + 8
    with Engine(artifact, settings.replace(batch=max(*batches, HELD_BACK), max_context=room)) as engine:

        def answered(batch: int, tokens: int) -> list[Step]:
            requests = [Request([dice.randrange(vocab) for _ in range(PROMPT)], tokens) for _ in range(batch)]
            return engine.generate(requests).steps

        answered(1, 4)
        steps: dict[int, list[Step]] = {batch: [] for batch in batches}
        held_back: list[Step] = []
        for _ in range(2):
            for batch in batches:
                tick(f"decoding {batch} at a time")
                steps[batch] += answered(batch, MEASURED)
            held_back += [s for s in answered(HELD_BACK, MEASURED) if s.phase == "decode"]
        weights = weights_read(engine, artifact.shape)
    held_back = _middle(held_back)
    return {batch: _calm(found) for batch, found in steps.items()}, held_back, weights


def _calm(steps: Sequence[Step]) -> list[Step]:
    """Steps without those that something disturbed: no more than half again the median of their kind."""
    kept = []
    for phase in ("prefill", "decode"):
        own = [s for s in steps if s.phase == phase]
        usual = statistics.median(s.cpu_s / s.tokens for s in own)
        kept += [s for s in own if s.cpu_s / s.tokens <= 1.5 * usual]
    return kept


def _middle(steps: Sequence[Step]) -> list[Step]:
    """For each number of tokens and contexts the step of median cost."""
    found: dict[tuple[int, int], list[Step]] = {}
    for step in steps:
        found.setdefault((step.tokens, step.context), []).append(step)
    return [sorted(s, key=lambda step: step.cpu_s)[len(s) // 2] for s in found.values()]


def _prefill_s(steps: Sequence[Step]) -> float:
    own = [s for s in steps if s.phase == "prefill"]
    return statistics.median(s.cpu_s / s.tokens for s in own)


def weights_read(engine: Engine, shape: ModelShape) -> tuple[float, float]:
    """Bytes that a step reads of the blocks and of the head, in the form that the engine runs."""
    head, stored = shape.vocab * shape.hidden, shape.n_params
    layers = stored - head * (1 if shape.tied_embeddings else 2)
    path = engine.model_path
    if path.is_file() and path.suffix == ".gguf":
        tensors = GgufFile.open(path).tensors
        outer = tensors.get("output.weight", tensors["token_embd.weight"])
        return float(sum(t.n_bytes for t in tensors.values() if t.name.startswith("blk."))), float(
            outer.n_bytes
        )
    if engine.settings.engine == "transformers":
        size = (
            2.0
            if "bf" in str(engine.info.get("dtype", "")) or engine.settings.weight_format == "bf16"
            else 4.0
        )
        return size * layers, size * head
    total = float(sum(f.stat().st_size for f in path.rglob("*") if f.suffix in (".bin", ".onnx", ".data")))
    return total * layers / (layers + head), total * head / (layers + head)


def streamed(n_bytes: int) -> float:
    """Bytes a second that one core reads from a buffer of so many bytes (at most 512 MB), best of five.

    Raises:
        MemoryError: there is no room for it.
    """
    block = 8192
    rows = max(1, min(n_bytes, 512_000_000) // (8 * 4 * block))
    streams = np.ones((8, rows * block), np.float32)
    both = np.empty(block, np.float32)
    costs = []
    for _ in range(5):
        begun = time.thread_time()
        for one, other in zip(streams[::2], streams[1::2], strict=True):
            for at in range(0, one.size, block):
                np.add(one[at : at + block], other[at : at + block], out=both)
        costs.append(time.thread_time() - begun)
    return streams.nbytes / min(costs)


def _started(artifact: Artifact, settings: Settings, bytes_per_s: float) -> float:
    """CPU seconds of a step that only starts operations: that of a twin of as many almost empty layers."""
    with tempfile.TemporaryDirectory(prefix="negawatt-twin-") as folder:
        twin = _twin(artifact, Path(folder) / "twin")
        narrow = settings.replace(batch=1, weight_format="native", max_context=128)
        with Engine(twin, narrow, cache=Path(folder) / "cache") as engine:
            request = Request([1] * 8, MEASURED)
            engine.generate([request])
            steps = [s for _ in range(3) for s in engine.generate([request]).steps if s.phase == "decode"]
            read_s = sum(weights_read(engine, twin.shape)) / bytes_per_s
    return max(0.0, statistics.median(s.cpu_s for s in steps) - read_s)


def _twin(artifact: Artifact, folder: Path) -> Artifact:
    """A model of the same family and as many layers, random and as narrow as every engine takes."""
    torch, transformers = require("torch", extra="compress"), require("transformers", extra="compress")
    transformers.utils.logging.disable_progress_bar()
    source = artifact.checkpoint()
    config = json.loads((source / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("quantization_config", "torch_dtype", "dtype")}
    narrow = {
        "hidden_size": HEAD_SIZE, "n_embd": HEAD_SIZE,
        "intermediate_size": 2 * HEAD_SIZE, "n_inner": 2 * HEAD_SIZE,
        "num_attention_heads": 1, "n_head": 1, "num_key_value_heads": 1, "head_dim": HEAD_SIZE,
    }  # fmt: skip
    config |= {name: value for name, value in narrow.items() if name in config}
    own = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(own).save_pretrained(folder)
    for file in source.iterdir():
        other = file.name.startswith(("negawatt", "model.safetensors", "settings"))
        if file.suffix in (".json", ".txt", ".model", ".jinja") and not (
            other or (folder / file.name).exists()
        ):
            shutil.copy2(file, folder / file.name)
    return Artifact.open(str(folder))
