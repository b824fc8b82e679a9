"""`Brief` and errands: what a node is told of a search, and asked to do for it, as JSON both ways."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.catalog.lock import locked
from negawatt.errors import IntegrityError
from negawatt.home import home, written_beside
from negawatt.profiling.quality import Quality
from negawatt.profiling.window import counted_on
from negawatt.tuning.attempt import Look
from negawatt.tuning.bench import Bench
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.judge import Judge
from negawatt.tuning.material import Material
from negawatt.tuning.parcel import Parcel
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.workshop import Making, Workshop
from negawatt.workload import Workload
from negawatt.workload.writer import write_workload


@dataclass(frozen=True)
class Letter:
    """A workload as the texts of its files.

    Attributes:
        hash: of the workload.
        files: name → text.
    """

    hash: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, workload: Workload) -> Letter:
        said = replace(  # what a header says may not be empty
            workload, name=workload.name or "-", description=workload.description or "-",
            source=workload.source or "-", licence=workload.licence or "-",
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            place = write_workload(said, Path(folder) / "workload")
            return cls(workload.hash, {file.name: file.read_text("utf-8") for file in place.iterdir()})

    def opened(self) -> Workload:
        """The workload, laid down on this machine.

        Raises:
            IntegrityError: it is not the one that was meant.
        """
        place = home() / "cache" / "workloads" / self.hash
        with locked(place.with_name(f"{self.hash}.lock")):
            if not place.is_dir():
                with written_beside(place) as folder:
                    folder.mkdir()
                    for name, text in self.files.items():
                        (folder / Path(name).name).write_text(text, "utf-8")
        workload = Workload.open(place)
        if workload.hash != self.hash:
            raise IntegrityError(f"{place} is not the workload that it is named for; remove it")
        return workload


@dataclass(frozen=True)
class Brief:
    """What all errands of a search have in common.

    Attributes:
        models: by name, as in `Candidate`; the baseline's is "".
        workload, usage: all of it, and the part that passes may see.
        searched, items: ids of what is measured on, and of the quality items of the search.
        baseline: what candidates are compared with.
        max_context: tokens that a sequence may hold.
        reference_s, held_out, limit: as in `Bench`.
        confidence: of the bounds on quality.
        seed: of passes.
        machine: id of the machine that the search is for; others only judge.
        cost: what is counted.
    """

    models: Mapping[str, Parcel]
    workload: Letter
    usage: Letter
    searched: Sequence[str]
    items: Sequence[str]
    baseline: Candidate
    max_context: int
    reference_s: float
    held_out: int
    limit: float | None
    confidence: float
    seed: int
    machine: str
    cost: Cost = CPU_SECONDS

    @classmethod
    def of(cls, bench: Bench, material: Material, max_context: int, seed: int, machine: str) -> Brief:
        judge = bench.judge
        return cls(
            {name: Parcel.of(model) for name, model in judge.workshop.models.items()},
            Letter.of(judge.workload), Letter.of(material.usage), [i.id for i in material.searched],
            [i.id for i in bench.items], judge.baseline, max_context, bench.reference_s, bench.held_out,
            bench.limit, judge.confidence, seed, machine, bench.cost,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "models": {name: parcel.to_json() for name, parcel in self.models.items()},
            "workload": asdict(self.workload),
            "usage": asdict(self.usage),
            "searched": list(self.searched),
            "items": list(self.items),
            "baseline": self.baseline.to_json(),
            "cost": self.cost.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Brief:
        return cls(
            **{name: data[name] for name in _PLAIN},
            models={name: Parcel.from_json(each) for name, each in data["models"].items()},
            workload=Letter(**data["workload"]),
            usage=Letter(**data["usage"]),
            searched=data["searched"],
            items=data["items"],
            baseline=Candidate.from_json(data["baseline"]),
            cost=Cost.from_json(data["cost"]),
        )

    def bench(self, models: Mapping[str, Artifact], makings: list[Making], apart: str) -> Bench:
        """A bench on this machine.

        Args:
            models: by name.
            makings: passes that are applied are told of there.
            apart: keeps quality scores apart from those of the machine that the search is for; else "".
        """
        others = {name: model for name, model in models.items() if name}
        workshop = Workshop(
            models[""], others, usage=self.usage.opened(), seed=self.seed, told=makings.append
        )
        workload = self.workload.opened()
        counted = {item.id: item for item in counted_on(workload)}
        asked = {item.id: item for item in (workload.quality or workload.traffic)}
        return Bench(
            Judge(workshop, workload, self.baseline, self.confidence, apart),
            Traffic(workshop, [counted[i] for i in self.searched], self.max_context),
            [asked[i] for i in self.items],
            self.held_out,
            self.limit,
            self.reference_s,
            self.cost,
        )


_PLAIN = ("max_context", "reference_s", "held_out", "limit", "confidence", "seed", "machine")


def look_json(look: Look | None) -> dict[str, Any] | None:
    """A first look as JSON; None stays None."""
    return None if look is None else asdict(look)


def look_from(data: Mapping[str, Any] | None) -> Look | None:
    """Read back what `look_json` gave."""
    return None if data is None else Look(**{**data, "read_bytes": tuple(data["read_bytes"])})


def scores_json(quality: Quality | None) -> dict[str, Any] | None:
    """Scores item by item as JSON; None stays None."""
    if quality is None:
        return None
    names = ("scores", "weights", "margins")
    return {"metric": quality.metric, **{name: dict(getattr(quality, name)) for name in names}}


def scores_from(data: Mapping[str, Any] | None) -> Quality | None:
    """Read back what `scores_json` gave."""
    if data is None:
        return None
    return Quality(data["metric"], data["scores"], data["weights"], margins=data["margins"])
