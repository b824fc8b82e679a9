"""`Settings`: how an engine runs an artifact. What an engine lacks, it refuses by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negawatt.artifact.pooling import MODES
from negawatt.engine.cores import CHOICES
from negawatt.errors import UsageError
from negawatt.limits.limits import Limits

DRAFT = "draft "
"""What comes before the small model's name where it is what proposes."""


@dataclass(frozen=True)
class Settings:
    """One way of running a model.

    Attributes:
        engine: name of the engine: ``transformers``, ``llamacpp``, ``openvino`` or ``onnxruntime``.
        device: ``cpu``, or the engine's name of another device, out of `Engine.devices`.
        gpu_layers: how many of the model's decoder layers, the last ones, run on that device, the model's
            head with them; the other layers stay on the processor. 0: nothing runs there. None: all do.
        threads: compute threads; None leaves the engine's own default.
        batch: most sequences decoded at once (at least 1).
        weight_format: name of the weight storage, as the engine calls it; ``native`` runs the
            artifact's weights as they are. Each engine lists what it has in
            `Engine.weight_formats`.
        kv_cache: precision of the key-value cache: ``default`` or a name the engine has.
        flash_attention: True, False, or None for the engine's default.
        speculation: ``none``, ``ngram`` (prompt lookup: continuations of n-grams seen before
            are proposed and verified; greedy output is unchanged), or ``draft MODEL`` (the same with what
            a small model proposes, named as `negawatt.artifact.Artifact.open` takes it, with ``:FORMAT``
            behind it where it runs in another weight format than its own).
        max_context: tokens of prompt and answer together that a sequence may hold.
        pooling: how texts become vectors: ``default`` is what the model's files say, which of a model that
            writes text is nothing; a mode of `negawatt.artifact.pooling` makes it embed in that way.
        cores: where its threads are kept, one of `negawatt.engine.cores.CHOICES`; ``default`` leaves it to
            the kernel, all others need a number of threads.
        power_cap_w: watts that each processor package may draw while it runs (or each GPU, on another
            device); None leaves that as it is. Only where the system permits it, see `negawatt.limits`.
        clock_mhz: the highest clock of each processor, or GPU, while it runs; likewise.
    """

    engine: str = "transformers"
    device: str = "cpu"
    gpu_layers: int | None = None
    threads: int | None = None
    batch: int = 1
    weight_format: str = "native"
    kv_cache: str = "default"
    flash_attention: bool | None = None
    speculation: str = "none"
    max_context: int = 2048
    pooling: str = "default"
    cores: str = "default"
    power_cap_w: float | None = None
    clock_mhz: int | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch must be at least 1, not {self.batch}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")
        if self.gpu_layers is not None and self.gpu_layers < 0:
            raise UsageError(f"gpu_layers must be at least 0, not {self.gpu_layers}")
        if self.max_context < 2:
            raise UsageError(f"max_context must be at least 2 tokens, not {self.max_context}")
        if self.speculation not in ("none", "ngram") and not self.draft:
            raise UsageError(f"speculation is 'none', 'ngram' or 'draft MODEL', not {self.speculation!r}")
        if self.pooling not in ("default", *MODES):
            raise UsageError(f"pooling is default, {', '.join(MODES)}, not {self.pooling!r}")
        if self.cores not in CHOICES:
            raise UsageError(f"cores are {', '.join(CHOICES)}, not {self.cores!r}")
        if self.cores != "default" and self.threads is None:
            raise UsageError(f"{self.cores} cores need a number of threads to be kept there")
        for name, value in (("power_cap_w", self.power_cap_w), ("clock_mhz", self.clock_mhz)):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name} must be above 0, not {value}")

    def replace(self, **changes: Any) -> Settings:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def without_speculation(self) -> Settings:
        """The same way of running, every token written by the model itself."""
        return self.replace(speculation="none")

    @property
    def draft(self) -> str | None:
        """The small model that proposes; None without one."""
        said = str(self.speculation)
        return (said.removeprefix(DRAFT).strip() or None) if said.startswith(DRAFT) else None

    def without_limits(self) -> Settings:
        """The same way of running on a machine that is held to nothing: it answers the same."""
        return self.replace(power_cap_w=None, clock_mhz=None)

    @property
    def limits(self) -> Limits:
        """What the machine is held to while it runs; false where that is nothing."""
        return Limits(self.power_cap_w, self.clock_mhz, self.device)

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """What the numbers of the answers depend on: settings that agree in it have the same quality.

        Threads, cores, batch, speculation and limits are not among it: they change the order of additions at
        most.
        """
        told: tuple[str, ...] = (
            self.engine, self.weight_format, self.kv_cache, str(self.flash_attention), self.device
        )  # fmt: skip
        if self.gpu_layers is not None and self.device != "cpu":
            told = (*told, f"{self.gpu_layers} layers")
        return told if self.pooling == "default" else (*told, self.pooling)

    @property
    def runs_on(self) -> str:
        """The engine, and a device that is not the processor: what dies, or is slow, for one reason."""
        return self.engine if self.device == "cpu" else f"{self.engine} on {self.device}"

    @property
    def placement(self) -> str:
        """Where layers run, in words; empty where all are on the processor."""
        if self.device == "cpu":
            return ""
        if self.gpu_layers is None:
            return f"all on {self.device}"
        return f"{self.gpu_layers} layer{'s' * (self.gpu_layers != 1)} on {self.device}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Read back what `to_json` wrote; unknown fields are an error.

        The small model that proposes may stand in a field ``draft`` of its own, which implies the rest.

        Raises:
            UsageError: a field is unknown or has an impossible value.
        """
        data = dict(data)
        if (draft := data.pop("draft", None)) is not None:
            if (other := data.get("speculation", "draft")) != "draft":
                raise UsageError(f"the draft {draft} proposes nothing with speculation {other!r}")
            data["speculation"] = f"{DRAFT}{draft}"
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UsageError(f"unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**data)

    def __str__(self) -> str:
        """Short form for tables: only what differs from the engine's defaults."""
        parts = [self.engine, self.weight_format]
        parts.append("1 thread" if self.threads == 1 else f"{self.threads or 'default'} threads")
        if self.cores != "default":
            parts[-1] += f" on {self.cores} cores"
        if self.placement:
            parts.append(self.placement)
        parts.append(f"batch {self.batch}")
        if self.kv_cache != "default":
            parts.append(f"kv {self.kv_cache}")
        if self.flash_attention is not None:
            parts.append("flash" if self.flash_attention else "no flash")
        if self.speculation != "none":
            parts.append(f"draft {draft_name(self.draft)}" if self.draft else self.speculation)
        if self.pooling != "default":
            parts.append(f"{self.pooling} pooling")
        if self.limits:
            parts.append(str(self.limits))
        return " · ".join(parts)


def draft_name(draft: str) -> str:
    """Short form of a draft: the last part of its folder, or its name."""
    return draft.rstrip("/").rsplit("/", 1)[-1]
