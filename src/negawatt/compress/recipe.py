"""`Recipe`: a TOML file that replays how an artifact was made, exactly."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.compress.calibration import SELF
from negawatt.compress.registry import technique
from negawatt.compress.technique import Pass
from negawatt.errors import UsageError

SCHEMA = 1
NAME = "recipe.toml"
_FIELDS = {"schema", "model", "model_sha256", "result_sha256", "seed", "threads", "calibration", "pass"}
_CALIBRATION = {"text", "sha256", "windows", "heldout", "length"}


@dataclass(frozen=True)
class Recipe:
    """What to do to which model, on which text.

    Attributes:
        model: reference of the model, as `Artifact.open` takes it.
        passes: in the order in which they are applied.
        text: reference of the text, as `calibration` takes it.
        windows, heldout, length: of the text.
        seed: of everything random.
        threads: of the arithmetic, on which the last bits depend; None for as many as there are.
        model_sha256, text_sha256, result_sha256: what the model, the tokens and the result were, and
            must be again; empty in a recipe written by hand.
    """

    model: str
    passes: tuple[Pass, ...]
    text: str = SELF
    windows: int = 64
    heldout: int = 16
    length: int = 512
    seed: int = 0
    threads: int | None = None
    model_sha256: str = ""
    text_sha256: str = ""
    result_sha256: str = ""

    def __post_init__(self) -> None:
        if not self.passes:
            raise UsageError("no pass is given; name at least one, such as --pass rtn:bits=4")
        reading = [each.name for each in self.passes if each.reads_usage]
        if reading and self.text == SELF:
            raise UsageError(
                f"{reading[0]} keeps what the model is used for, so it must know that; name a workload or a "
                "text with --calibration"
            )
        for name, fewest in (("windows", 1), ("heldout", 1), ("length", 8)):
            if (value := getattr(self, name)) < fewest:
                raise UsageError(f"{name} must be at least {fewest}, not {value}")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads must be at least 1, not {self.threads}")

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe.

        Raises:
            UsageError: it is absent, not TOML, of a newer version, or names what does not exist.
        """
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except OSError as exc:
            raise UsageError(f"cannot read {path}: {exc.strerror or exc}") from exc
        except ValueError as exc:
            raise UsageError(f"{path} is not TOML: {exc}") from exc
        schema = data.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
            raise UsageError(f"{path}: schema must be a whole number such as {SCHEMA}, not {schema!r}")
        if schema > SCHEMA:
            raise UsageError(
                f"{path} has schema {schema}, newer than this Negawatt reads ({SCHEMA}); update Negawatt"
            )
        try:
            return cls._of(data)
        except UsageError as exc:
            raise UsageError(f"{path}: {exc}") from exc
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise UsageError(f"{path} is no recipe: {exc!r}") from exc

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> Recipe:
        text = data.get("calibration", {})
        if unknown := sorted((set(data) - _FIELDS) | (set(text) - _CALIBRATION)):
            raise UsageError(f"unknown field {unknown[0]!r}")
        passes = []
        for row in data["pass"]:
            values = {key: value for key, value in row.items() if key != "name"}
            passes.append(technique(str(row["name"]))(**values))
        threads = data.get("threads")
        return cls(
            str(data["model"]), tuple(passes), str(text.get("text", SELF)),
            int(text.get("windows", cls.windows)), int(text.get("heldout", cls.heldout)),
            int(text.get("length", cls.length)), int(data.get("seed", 0)),
            None if threads is None else int(threads), str(data.get("model_sha256", "")),
            str(text.get("sha256", "")), str(data.get("result_sha256", "")),
        )  # fmt: skip

    def to_toml(self) -> str:
        """The recipe as a file, every parameter spelled out."""
        rows: list[tuple[str, Any]] = [("schema", SCHEMA), ("model", self.model), ("seed", self.seed)]
        rows += [(k, v) for k in ("model_sha256", "result_sha256") if (v := getattr(self, k))]
        rows += [] if self.threads is None else [("threads", self.threads)]
        lines = [_line(*row) for row in rows] + ["", "[calibration]"]
        lines += [_line(name, getattr(self, name)) for name in ("text", "windows", "heldout", "length")]
        lines += [_line("sha256", self.text_sha256)] if self.text_sha256 else []
        for each in self.passes:
            lines += ["", "[[pass]]", _line("name", each.name)]
            lines += [_line(key, value) for key, value in each.values.items()]
        return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"  # TOML spells these four kinds as JSON does
