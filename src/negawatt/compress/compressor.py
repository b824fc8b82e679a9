"""`compress`: apply passes to a model, judge what comes out, and keep it with its whole history."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.artifact.packed_file import rows_of
from negawatt.artifact.safetensors_file import StoredTensor, write_safetensors
from negawatt.catalog.manifest import NAME as MANIFEST
from negawatt.catalog.manifest import PACKED_FILE
from negawatt.compress.calibration import SELF, Calibration, calibration
from negawatt.compress.draft import ADAPTER, Draft
from negawatt.compress.judgement import Judgement, compared, judge
from negawatt.compress.kv_cache import caches_of
from negawatt.compress.kv_cache import compared as cache_compared
from negawatt.compress.labelled import has_labels, labelled
from negawatt.compress.network import Network
from negawatt.compress.payback import ROUNDS, Payback, Spent, Stage, measured
from negawatt.compress.recipe import NAME as RECIPE
from negawatt.compress.recipe import Recipe
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Progress, Work
from negawatt.energy import Energy
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import (
    Infeasible,
    IntegrityError,
    NegawattError,
    RunError,
    UsageError,
    require,
)
from negawatt.home import write_json, written_beside
from negawatt.meter import Measurement, Meter
from negawatt.run import Run

_OURS = (MANIFEST, "model.safetensors.index.json")
_KEPT_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".md")


def compress(
    recipe: Recipe,
    output: Path | str,
    *,
    keep_worse: bool = False,
    payback: Settings | None = None,
    kv_cache: Settings | None = None,
    progress: Progress = lambda done, total, text: None,
) -> dict[str, Any]:
    """Make a smaller artifact in the folder `output`, by the passes of a recipe.

    Work in progress lies in ``OUTPUT.partial``; the same call goes on there after a kill, and its
    result is the same to the bit. The model itself is never written to.

    Args:
        recipe: the model, the passes and the text.
        output: folder to make; it must not exist, or be empty.
        keep_worse: keep a result that is no better on held-out text than plain rounding.
        payback: how source and results are run to tell after how many tokens they have saved what
            they cost; nothing is run if absent.
        progress: called with done, total, and what is being done.

    Returns:
        the document of ``negawatt compress --json``: ``artifact``, ``sha256``, ``passes`` (the steps
        of the lineage), ``weight_bytes`` before and after, ``reading`` and ``judging`` (what the text
        and judging on it cost), ``payback`` (of all passes together) and ``kv_cache``; these are null
        where they were not asked for.

    Raises:
        UsageError: a parameter does not fit the model, or `output` holds something.
        ArtifactError: the model is damaged, of an unknown kind, or holds NaN or infinite values.
        WorkloadError: the text is too short, or not in a language of the model.
        Infeasible: a pass is no better than its plain fallback; nothing is kept.
        IntegrityError: work in progress, or what a recipe promises, is not what it was.
    """
    torch = require("torch", extra="compress")
    output = Path(output).expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} exists; choose another folder with -o, or remove it")
    artifact = Artifact.open(recipe.model)
    _promised("the model", artifact.sha256, recipe.model_sha256)
    recipe = replace(recipe, model_sha256=artifact.sha256, threads=recipe.threads or torch.get_num_threads())
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    job = _Job(artifact, recipe, output, keep_worse, (payback, kv_cache), progress)
    try:
        return job.run()
    except NegawattError:
        job.forget()
        raise
    except OSError as exc:
        raise NegawattError(f"cannot write {output}: {exc.strerror or exc}") from exc
    finally:
        job.close()
        torch.set_num_threads(threads)


class _Job:
    """One call of `compress`."""

    def __init__(
        self,
        artifact: Artifact,
        recipe: Recipe,
        output: Path,
        keep_worse: bool,
        running: tuple[Settings | None, Settings | None],
        progress: Progress,
    ) -> None:
        self.artifact, self.recipe, self.output = artifact, recipe, output
        self.keep_worse, self.progress = keep_worse, progress
        self.payback, self.kv_cache = running
        self.partial = output.with_name(f"{output.name}.partial")
        self.reading: list[Measurement] = []
        self.judging: list[Measurement] = []
        self.origin: Judgement | None = None
        self._runs: list[Run] = []

    def run(self) -> dict[str, Any]:
        if (self.artifact.path / MANIFEST).is_file():
            self.progress(0, None, "checking the model's files")
            self.artifact.verify()
        source = Source.of(self.artifact)
        self.recipe.passes[0].check(source)
        self._begin()
        self._require_engine()
        with Meter() as meter:
            text = original = self._text(source)
        self.reading.append(meter.measurement)
        current, lineage = self.artifact, [dict(step) for step in self.artifact.lineage]
        stages = [Stage(current, text.heldout)]
        before = self._judged("as it is", source, text)
        for number, each in enumerate(self.recipe.passes):
            source = Source.of(current)
            if number:
                each.check(source)
            place = self.partial / f"{number + 1}-{each.name}"
            draft = self._drafted(each, place, source, text)
            beaten = self._require_better(each, place, source, draft, text)
            entry = {**self._entry(each, draft, text), "fallback": beaten}
            current = self._written(place, draft, source, lineage)
            if draft.kept_tokens is not None:
                text = text.renumbered(draft.kept_tokens)
            after = self._judged(str(each), Source.of(current), text)
            entry["quality"] = compared(before, after, self.origin or before)
            lineage.append(entry)
            before = after
            stages.append(Stage(current, text.heldout, place / "engine"))
        paid = self._paid_back(stages, lineage[-len(self.recipe.passes) :])
        if self.kv_cache is not None:
            lineage[-1]["kv_cache"] = cache_compared(
                current, text.heldout, self.kv_cache, lambda what: self.progress(0, None, what)
            )
        return self._finished(current, lineage, original, paid)

    def _begin(self) -> None:
        """Make the folder of work in progress, or find it and see that it belongs to this call."""
        identity = {"recipe": self.recipe.to_toml()}
        if (self.partial / "run.json").is_file():
            run = Run.open(self.partial, kind="compress")
            if run.manifest.get("recipe") != identity["recipe"]:
                raise RunError(
                    f"{self.partial} holds unfinished work of another call; finish that one, or delete it"
                )
            run.lock()
        else:
            run = Run.create("compress", path=self.partial, **identity)
        self._runs.append(run)

    def _require_engine(self) -> None:
        """See that the engines that are to run the result run this model, before anything is computed."""
        if self.kv_cache is not None:
            caches_of(self.kv_cache)
        for settings in filter(None, (self.payback, self.kv_cache)):
            self.progress(0, None, f"loading {settings.engine}")
            with Engine(self.artifact, settings) as engine:
                engine.generate([Request([1], 1)])  # a model that embeds or labels texts writes none

    def _paid_back(self, stages: Sequence[Stage], entries: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
        """What each pass pays back, entered into its step of the lineage, and what all together do."""
        if self.payback is None:
            return None
        n_windows = ROUNDS * len(stages)

        def tell(done: int) -> None:
            self.progress(done, n_windows, "running source and result in turn")

        found, comparing = measured(stages, self.payback, progress=tell)
        costs = [[entry, *([entry["fallback"]] if entry["fallback"] else [])] for entry in entries]
        for number, entry in enumerate(entries):
            sides = found[number], found[number + 1]
            entry["payback"] = Payback(self.payback, *sides, Spent.of(costs[number])).to_json()
        around = [_cost(self.reading), _cost(self.judging), comparing.to_json()]
        whole = Spent.of([each for parts in costs for each in parts] + around)
        together = Payback(self.payback, found[0], found[-1], whole).to_json()
        return {**together, "comparing": comparing.to_json()}

    def _text(self, source: Source) -> Calibration:
        recipe = self.recipe
        windows = recipe.windows if any(p.calibrated for p in recipe.passes) else 0
        text = calibration(
            source, recipe.text, windows=windows, heldout=recipe.heldout, length=recipe.length,
            seed=recipe.seed, progress=self.progress,
        )  # fmt: skip
        if not Network(source).is_decoder and recipe.text != SELF and has_labels(recipe.text):
            text = replace(text, questions=labelled(recipe.text, recipe.seed)[1])
        _promised("the text", text.sha256, recipe.text_sha256)
        return text

    def _judged(self, what: str, source: Source, text: Calibration) -> Judgement:
        self.progress(0, None, f"judging on held-out text: {what}")
        with Meter() as meter:
            found = judge(source, text.heldout, text.questions)
        self.judging.append(meter.measurement)
        if self.origin is None or self.origin.metric != found.metric:
            self.origin = found
        return found

    def _drafted(self, each: Pass, place: Path, source: Source, text: Calibration) -> Draft:
        """Apply a pass, from where it was left."""
        run = (
            Run.open(place, kind="pass") if (place / "run.json").is_file() else Run.create("pass", path=place)
        )
        run.lock()
        self._runs.append(run)
        draft = Draft(source, run)

        def tell(done: float, total: float | None, what: str) -> None:
            self.progress(done, total, f"{each.name}: {what}")

        windows = text.windows if each.calibrated else None
        each.apply(Work(source, draft, windows, self.recipe.text, self.recipe.seed, tell))
        return draft

    def _require_better(
        self, each: Pass, place: Path, source: Source, draft: Draft, text: Calibration
    ) -> dict[str, Any] | None:
        """Compare with the plain technique at the same size, on text that neither has seen.

        Returns:
            what was beaten, for the lineage; None where nothing was compared.
        """
        plain = each.fallback()
        if plain is None or self.keep_worse:
            return None
        other = self._drafted(plain, place.with_name(f"{place.name}-or-{plain.name}"), source, text)
        ours = self._judged(str(each), draft.as_source(source), text)
        theirs = self._judged(str(plain), other.as_source(source), text)
        assert self.origin is not None
        if ours.loss(self.origin) >= theirs.loss(self.origin):
            raise Infeasible(
                f"{each} gives {ours.told(self.origin)} on held-out text, and {plain} "
                f"{theirs.told(self.origin)}, so nothing was kept; calibrate on text closer to what the "
                f"model is used for, use {plain}, or keep it all the same with --keep-worse: the work done "
                f"lies in {self.partial}"
            )
        return {
            "pass": str(plain), "metric": ours.metric, "value": theirs.value(self.origin), **other.cost(),
        }  # fmt: skip

    def _entry(self, each: Pass, draft: Draft, text: Calibration) -> dict[str, Any]:
        import torch
        import transformers

        from negawatt import __version__

        return {
            "step": "compress",
            "pass": each.name,
            "parameters": each.values,
            "seed": self.recipe.seed,
            "calibration": text.to_json() if each.calibrated else None,
            "heldout_sha256": text.sha256,
            "threads": self.recipe.threads,
            "versions": {
                "negawatt": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
            },
            "outcome": draft.outcome,
            **draft.cost(),
            "payback": None,
            "kv_cache": None,
            "notes": list(draft.notes),
        }  # fmt: skip

    def _written(
        self, place: Path, draft: Draft, source: Source, lineage: Sequence[Mapping[str, Any]]
    ) -> Artifact:
        """The draft as an artifact of its own, opened again from disk."""
        folder = place / "artifact"
        self.progress(0, None, "writing")
        with written_beside(folder) as temporary:
            temporary.mkdir()
            _copy_small_files(source.folder, temporary)
            draft.write_beside(temporary)
            write_json(temporary / "config.json", draft.config)
            packed = not all(isinstance(t, StoredTensor) for t in draft.tensors.values())
            rows, metadata = rows_of(draft.tensors)
            write_safetensors(temporary / (PACKED_FILE if packed else "model.safetensors"), rows, metadata)
        return Artifact.create(
            folder, name=self.output.name, source=f"negawatt compress {self.artifact.name}",
            license=self.artifact.license, lineage=tuple(lineage), notes=self.artifact.notes,
        )  # fmt: skip

    def _finished(
        self,
        made: Artifact,
        lineage: Sequence[Mapping[str, Any]],
        text: Calibration,
        paid: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Complete the manifest and the recipe, and move the folder to its place."""
        _promised("the result", made.sha256, self.recipe.result_sha256)
        recipe = replace(self.recipe, text_sha256=text.sha256, result_sha256=made.sha256)
        with written_beside(self.output) as temporary:
            made.path.rename(temporary)
            (temporary / MANIFEST).unlink()
            (temporary / RECIPE).write_text(recipe.to_toml(), "utf-8")
            result = Artifact.create(
                temporary, name=made.name, source=made.source, license=made.license,
                lineage=tuple(lineage), notes=_notes(made.notes, lineage),
            )  # fmt: skip
            if result.sha256 != made.sha256:
                raise IntegrityError(f"{temporary} changed while it was moved")
        self.close()
        shutil.rmtree(self.partial, ignore_errors=True)
        result = Artifact.open(self.output)
        return {
            "artifact": str(self.output),
            "sha256": result.sha256,
            "formats": sorted(result.formats),
            "passes": [dict(step) for step in lineage[len(self.artifact.lineage) :]],
            "weight_bytes": {"before": self.artifact.weight_bytes, "after": result.weight_bytes},
            "reading": _cost(self.reading),
            "judging": _cost(self.judging),
            "payback": paid,
            "kv_cache": lineage[-1]["kv_cache"],
        }

    def forget(self) -> None:
        """Remove the folder of work in progress when it holds none: the call was refused."""
        ours = bool(self._runs)  # its lock is held; otherwise the folder is another call's
        if ours and not any(self.partial.glob("*/step-*.safetensors")):
            self.close()
            shutil.rmtree(self.partial, ignore_errors=True)

    def close(self) -> None:
        """Free the locks on work in progress."""
        while self._runs:
            self._runs.pop().close()


def _notes(before: str, lineage: Sequence[Mapping[str, Any]]) -> str:
    """What was known before, and what the passes add to it, each once."""
    new = [note for step in lineage for note in step.get("notes", ()) if note not in before]
    return "; ".join(dict.fromkeys(filter(None, [before, *new])))


def _cost(spent: Sequence[Measurement]) -> dict[str, Any]:
    return {"cpu_s": sum(m.cpu_s for m in spent), "energy": Energy.total(m.energy for m in spent).to_json()}


def _promised(what: str, found: str, promised: str) -> None:
    if promised and found != promised:
        raise IntegrityError(
            f"{what} is not what the recipe was made with: sha256 {found[:12]}… instead of {promised[:12]}…"
        )


def _copy_small_files(source: Path, target: Path) -> None:
    """Configuration, tokenizer and notes; weights and our own records stay behind."""
    for file in source.rglob("*"):
        name = file.relative_to(source)
        wanted = file.suffix in _KEPT_SUFFIXES or file.name.startswith("LICENSE")
        beside = name.parts[0] == ADAPTER  # trained beside other weights than those to be written
        if file.is_file() and wanted and not beside and file.name not in _OURS:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)
