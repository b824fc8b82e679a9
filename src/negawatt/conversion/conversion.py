"""`convert`: write a model in a form that others load, read it back, compare, and only then keep it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from negawatt.artifact import Artifact
from negawatt.catalog.hashing import sha256_of
from negawatt.catalog.manifest import NAME, FileRecord, Manifest
from negawatt.conversion import encoders
from negawatt.conversion.comparison import (
    Comparison,
    Labelling,
    Likeness,
    compared,
    labelling,
    likeness,
    prompts,
    spoken,
)
from negawatt.conversion.forms import Target, bits_of, parse
from negawatt.conversion.runner import CallReader, in_engine
from negawatt.conversion.sizes import as_promised, predicted
from negawatt.errors import ArtifactError, UsageError
from negawatt.home import written_beside

KL_NATS = {16: 0.05, 8: 0.1, 4: 1.5}
"""Most divergence that a type of so many bits explains, with arithmetic of the engine's choosing."""
COSINE = {16: 0.99, 8: 0.95, 4: 0.7}

Progress = Callable[[float, float | None, str], None]


def convert(artifact: Artifact, to: str, output: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write `artifact` into the new folder `output`, whole and compared, or not at all.

    Args:
        to: a format, and after a colon a type of its: ``safetensors``, ``gguf:q4_0-head8``, ``onnx:int8``.
        progress: called with steps done, steps in all, and what is being done.

    Returns:
        ``artifact``, ``format``, ``type``, ``kind``, ``bytes`` and ``predicted_bytes`` of the weights,
        ``source_bytes``, ``comparison``, ``ran`` (what the comparison ran on), and ``notes``.

    Raises:
        UsageError: no such format or type, or `output` is there already.
        ArtifactError: the format cannot hold the model, or what was written is not what it should be.
        EngineError: a library cannot write or run it.
        NegawattError: the disk is full.
    """
    target = parse(to)
    if output.exists():
        raise UsageError(f"{output} exists already; name a new folder, or remove it first")
    kind = encoders.kind_of(artifact)
    target.form.refuse(artifact, target.type, kind)
    say = progress or (lambda done, total, text: None)
    with written_beside(output) as folder:
        folder.mkdir()
        scratch = folder.parent / "scratch"
        scratch.mkdir()
        say(0, 3, f"writing {target}")
        target.form.write(artifact, target.type, kind, folder, scratch)
        shutil.rmtree(scratch)
        _small_files(artifact.checkpoint(), folder)
        n_bytes = sum(path.stat().st_size for path in target.form.weight_files(folder))
        promised = predicted(artifact, target.form.widths(artifact, target.type, kind))
        if not as_promised(n_bytes, promised):
            raise ArtifactError(
                f"{target} took {n_bytes / 1e6:.1f} MB for weights whose types predict "
                f"{promised / 1e6:.1f} MB, so nothing was kept"
            )
        say(1, 3, "reading it back")
        comparison, ran = (_heard if kind == "decoder" else _read)(artifact, target, folder, say)
        result = {
            "format": target.form.name,
            "type": target.type,
            "kind": kind,
            "bytes": n_bytes,
            "predicted_bytes": promised,
            "source_bytes": artifact.weight_bytes,
            "comparison": comparison.to_json(),
            "ran": ran,
            "notes": _notes(artifact, target),
        }
        _write_manifest(artifact, target, folder, result)
    return {"artifact": str(output), **result}


def _heard(
    artifact: Artifact, target: Target, folder: Path, say: Progress
) -> tuple[Comparison, dict[str, Any]]:
    asked = prompts(artifact.tokenizer)
    with in_engine(artifact, "transformers", "fp32") as speaker:
        source = spoken(speaker, asked)
    say(2, 3, "comparing")
    with target.form.speaker(folder, artifact, target.type) as speaker:
        made, ran = spoken(speaker, asked, along=source), speaker.info()
    comparison = compared(source, made, where=str(target))
    comparison.require(KL_NATS[bits_of(target.type)])
    return comparison, ran


def _read(
    artifact: Artifact, target: Target, folder: Path, say: Progress
) -> tuple[Likeness | Labelling, dict[str, Any]]:
    kind, bits = encoders.kind_of(artifact), bits_of(target.type)
    source = CallReader(encoders.call(artifact.checkpoint(), kind), {})
    say(2, 3, "comparing")
    with target.form.reader(folder, artifact, target.type) as reader:
        ran = reader.info()
        found: Likeness | Labelling
        if kind == "classifier":
            found = labelling(source, reader, artifact)
            found.require(KL_NATS[bits])
        else:
            found = likeness(source, reader, artifact)
            found.require(COSINE[bits])
    return found, ran


def _small_files(source: Path, folder: Path) -> None:
    """Configuration and tokenizer, which every program that loads the model asks for."""
    for file in source.iterdir():
        wanted = file.suffix in (".json", ".jinja", ".txt", ".model") or file.name.startswith("LICENSE")
        ours = file.name in (NAME, "model.safetensors.index.json") or (folder / file.name).exists()
        if file.is_file() and wanted and not ours:
            shutil.copyfile(file, folder / file.name)


def _notes(artifact: Artifact, target: Target) -> list[str]:
    notes = list(target.form.notes)
    if "packed" in artifact.formats and target.type != "native":
        notes.append("packed and factored matrices were multiplied out before they were written")
    elif "packed" in artifact.formats and target.form.name == "safetensors":
        notes.append("safetensors for transformers holds packed and factored matrices in full")
    return notes


def _write_manifest(artifact: Artifact, target: Target, folder: Path, result: dict[str, Any]) -> None:
    from negawatt import __version__

    files = {
        str(path.relative_to(folder)): FileRecord(sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    held = {"safetensors": "checkpoint"}.get(target.form.name, target.form.name)
    step = {"step": "export", "to": str(target), "source_sha256": artifact.sha256,
            "versions": {"negawatt": __version__}, **_finite(result)}  # fmt: skip
    Manifest(
        artifact.name, "model", f"negawatt export {artifact.name}", artifact.license, files, (held,),
        (*artifact.lineage, step), artifact.notes,
    ).write(folder)  # fmt: skip


def _finite(value: Any) -> Any:
    """JSON has no infinity; what is not a number is missing."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
