"""`Cascade`: a small model answers, and a large one where the small one was not sure.

A known way to spend less on light tasks (P. Viola and M. Jones, CVPR 2001; L. Chen et al., FrugalGPT, 2023).
How sure an answer is, is by how much it leads the next best (`negawatt.workload.margin`). The small model's
failed attempts are part of the cost: every question is put to it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Settings
from negawatt.errors import EngineError, UsageError
from negawatt.profiling.quality import Answered, answered
from negawatt.workload import QualityItem, Response, margin

FILE = "cascade.toml"
SCHEMA = 1
MAX_BYTES = 100_000


@dataclass(frozen=True)
class Cascade:
    """Two engines and what decides between them; a context manager that opens and closes both.

    ::

        with Cascade.read(Path("my-run/artifact")) as cascade:
            found = cascade.answered(items)

    Args:
        small, large: not open yet.
        threshold: least margin with which the small model's answer stands.
        metrics: kind of question → metric, which says how margins are told.
    """

    small: Engine
    large: Engine
    threshold: float
    metrics: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> Cascade:
        """The cascade of a folder that `write_cascade` wrote.

        Raises:
            UsageError: there is none, or it is damaged.
            ArtifactError: one of its models is.
        """
        file = folder / FILE
        try:
            with file.open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
            if len(raw) > MAX_BYTES:
                raise ValueError(f"it is longer than {MAX_BYTES:,} bytes")
            data = tomllib.loads(raw.decode("utf-8"))
            if data["schema"] != SCHEMA:
                raise ValueError(f"its schema is {data['schema']!r}, and this Negawatt reads {SCHEMA}")
            threshold = float(data["threshold"])
            metrics = {str(kind): str(name) for kind, name in data["metrics"].items()}
            places = [_within(folder, str(data[part]["artifact"])) for part in ("small", "large")]
            settings = [Settings.from_json(data[part]["settings"]) for part in ("small", "large")]
            prepared = [data[part].get("prepared") for part in ("small", "large")]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise UsageError(f"{file} is no cascade: {exc}") from exc
        small, large = (
            Engine(Artifact.open(place), each, prepared=_within(place, str(made)) if made else None)
            for place, each, made in zip(places, settings, prepared, strict=True)
        )
        return cls(small, large, threshold, metrics)

    # -- what an engine has too --------------------------------------------------------------------

    def __enter__(self) -> Cascade:
        with ExitStack() as stack:
            for engine in self.engines:
                stack.enter_context(engine)
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self.engines:
            engine.__exit__(kind, value, trace)

    @property
    def engines(self) -> tuple[Engine, Engine]:
        return self.small, self.large

    # -- answering ---------------------------------------------------------------------------------

    def answered(self, items: Sequence[QualityItem]) -> Answered:
        """Let the small model answer, and the large one those questions where it is not sure.

        Raises:
            WorkloadError: as for `negawatt.profiling.quality.answered`.
            EngineError: a question is no choice.
        """
        first = answered(self.small, items)
        unsure = [n for n, item in enumerate(items) if not self.stands(item, first.responses[n])]
        if not unsure:
            return first
        second = answered(self.large, [items[n] for n in unsure])
        responses, fed, waits_s = list(first.responses), list(first.fed), first.waits_s
        for n, response, more, wait_s in zip(
            unsure, second.responses, second.fed, second.waits_s, strict=True
        ):
            responses[n] = response
            fed[n] += more
            waits_s[n] += wait_s
        return Answered(
            tuple(responses), tuple(fed), (*first.steps, *second.steps), first.cpu_s + second.cpu_s,
            first.wall_s + second.wall_s, tuple(waits_s),
        )  # fmt: skip

    def stands(self, item: QualityItem, response: Response) -> bool:
        """Whether the small model's answer is handed out."""
        lead = margin(self.metrics[item.kind], item, response)
        if lead is None:
            raise EngineError(f"item {item.id!r} is answered by a text, which has no margin over another")
        return lead >= self.threshold


Runner = Engine | Cascade
"""What answers questions."""


def engines_of(runner: Runner) -> tuple[Engine, ...]:
    """The engines in it, that which answers first before others."""
    return runner.engines if isinstance(runner, Cascade) else (runner,)


def answers_of(runner: Runner, items: Sequence[QualityItem]) -> Answered:
    """Let an engine, or a cascade of two, answer questions.

    Raises:
        WorkloadError: as for `negawatt.profiling.quality.answered`.
    """
    return runner.answered(items) if isinstance(runner, Cascade) else answered(runner, items)


def write_cascade(
    folder: Path,
    threshold: float,
    metrics: Mapping[str, str],
    settings: Sequence[Settings],
    prepared: Sequence[str | None],
) -> None:
    """Write ``cascade.toml`` beside the artifacts ``small`` and ``large`` in `folder`.

    Args:
        settings: of both.
        prepared: where in each artifact the weights lie that its engine made; None where it loads the
            artifact itself.
    """
    lines = [f"schema = {SCHEMA}", f"threshold = {threshold!r}  # nats by which the small one must lead", ""]
    lines += ["[metrics]", *(f"{kind} = {json.dumps(name)}" for kind, name in metrics.items())]
    for part, own, made in zip(("small", "large"), settings, prepared, strict=True):
        lines += ["", f"[{part}]", f'artifact = "{part}"']
        lines += [] if made is None else [f"prepared = {json.dumps(made)}"]
        known = {key: value for key, value in own.to_json().items() if value is not None}
        lines += [f"[{part}.settings]", *(f"{key} = {json.dumps(value)}" for key, value in known.items())]
    (folder / FILE).write_text("\n".join(lines) + "\n", "utf-8")


def _within(folder: Path, name: str) -> Path:
    """A place in a folder.

    Raises:
        ValueError: it lies outside.
    """
    place = folder / name
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leaves its folder")
    return place
