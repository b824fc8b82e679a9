"""`keep`: the winner's weights with settings, hashes and lineage, as an artifact that opens."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.artifact.pooling import copy_pooling_files
from negawatt.engine import Engine
from negawatt.engine.draft_model import KEPT
from negawatt.engine.settings import DRAFT
from negawatt.home import write_json, written_beside
from negawatt.limits.limits import Limits
from negawatt.profiling.cascade import Cascade, Runner, write_cascade

NONE = Limits()


def keep(runner: Runner, target: Path, name: str, verdict: str, limits: Limits = NONE) -> Path:
    """Write the folder `target`, whole or not at all.

    Weights in an engine's own form lie in a folder of that engine's name, beside the model, and a draft that
    proposes to it, an artifact of its own, in ``draft``. Of a cascade both
    models lie in folders of their own, ``small`` and ``large``, beside ``cascade.toml``.

    Args:
        runner: that was open, and may be closed again.
        name: of the artifact.
        verdict: for its lineage.
        limits: that it was measured under, for its settings; a cascade has none.
    """
    with written_beside(target) as folder:
        folder.mkdir()
        if isinstance(runner, Cascade):
            prepared = []
            for part, engine in zip(("small", "large"), runner.engines, strict=True):
                (folder / part).mkdir()
                prepared.append(_put(engine, folder / part, f"{name}-{part}", verdict))
            settings = [engine.settings for engine in runner.engines]
            write_cascade(folder, runner.threshold, runner.metrics, settings, prepared)
        else:
            _put(runner, folder, name, verdict, limits)
    return target


def _put(engine: Engine, folder: Path, name: str, verdict: str, limits: Limits = NONE) -> str | None:
    """Put what an engine runs into `folder`; where in it its own form of the weights lies, if it has one."""
    settings, artifact, prepared = engine.settings, engine.artifact, engine.model_path
    settings = settings.replace(power_cap_w=limits.power_cap_w, clock_mhz=limits.clock_mhz)
    own: str | None = None
    if prepared.suffix == ".gguf":
        _link_or_copy(prepared, folder / prepared.name)
        settings = settings.replace(weight_format="native")  # it is in the file now
        own = prepared.name
    else:
        source = artifact.path
        members = sorted(source.iterdir()) if source.is_dir() else [source]
        for file in members:
            if file.is_file() and file.name != "negawatt.json":
                _link_or_copy(file, folder / file.name)
        copy_pooling_files(source, folder, _link_or_copy)
        if not prepared.is_relative_to(source):
            shutil.copytree(prepared, folder / settings.engine, copy_function=_link_or_copy)
            own = settings.engine
    if engine.draft is not None:
        _put_draft(engine.draft.artifact, engine.draft_path, folder / KEPT)
        settings = settings.replace(speculation=DRAFT + KEPT)
    write_json(folder / "settings.json", settings.to_json())
    step = {"pass": "tune", "parameters": settings.to_json(), "verdict": verdict}
    Artifact.create(
        folder,
        name=name,
        source=artifact.source,
        license=artifact.license,
        lineage=(*artifact.lineage, step),
        notes=artifact.notes,
    )
    return own


def _put_draft(draft: Artifact, prepared: Path, folder: Path) -> None:
    """What proposes, in the form in which it ran."""
    folder.mkdir()
    _link_or_copy(prepared, folder / prepared.name)
    Artifact.create(
        folder,
        name=draft.name,
        source=draft.source,
        license=draft.license,
        lineage=draft.lineage,
        notes=draft.notes,
    )


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link costs nothing; across file systems the bytes are copied."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
