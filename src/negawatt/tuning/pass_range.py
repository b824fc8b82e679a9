"""`PassRange`: a pass of `negawatt.compress` with the values of its parameters that a search may try."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.compress import Pass, technique
from negawatt.errors import UsageError

Choose = Callable[[str, Sequence[Any]], Any]
"""Picks one of the choices of a named dimension."""


@dataclass(frozen=True)
class PassRange:
    """A pass that a candidate's weights may be made by. Make one with `PassRange.of` or `PassRange.parse`.

    Attributes:
        name: of the pass.
        ranges: of its parameters, those that are not left at their default, each with its values.
        required: whether every candidate is made by it.
    """

    name: str
    ranges: tuple[tuple[str, tuple[Any, ...]], ...]
    required: bool = False

    @classmethod
    def of(cls, name: str, given: Mapping[str, Any] | None = None, *, required: bool = False) -> PassRange:
        """A pass by name, with the search ranges that it declares, save for those `given`.

        Args:
            name: of the pass.
            given: parameter → a value, or the values to try.
            required: see the class.

        Raises:
            UsageError: the pass, a parameter or a value is unknown; the sentence says what there is.
        """
        kind, given = technique(name), dict(given or {})
        ranges = {p.name: p.search for p in kind.parameters if p.search}
        known = {p.name: p for p in kind.parameters}
        if unknown := [key for key in given if key not in known]:
            has = ", ".join(known) or "none"
            raise UsageError(f"{name} has no parameter {unknown[0]!r}; it has {has}")
        for key, value in given.items():
            values = value if isinstance(value, list | tuple) else (value,)
            if not values:
                raise UsageError(f"{name}: {key} needs at least one value")
            ranges[key] = tuple(dict.fromkeys(known[key].checked(v, name) for v in values))
        return cls(name, tuple(sorted(ranges.items())), required)

    @classmethod
    def parse(cls, text: str) -> PassRange:
        """What ``NAME`` or ``NAME:key=value|value,key=value`` stands for.

        Raises:
            UsageError: the text, the name, a key or a value is wrong.
        """
        name, _, rest = text.partition(":")
        given: dict[str, list[str]] = {}
        for pair in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, values = (word.strip() for word in pair.partition("="))
            if not equals or not key or key in given:
                raise UsageError(
                    f"a pass is written NAME or NAME:key=value|value,key=value, each key once, not {text!r}"
                )
            given[key] = [value.strip() for value in values.split("|")]
        return cls.of(name.strip(), given)

    @property
    def technique(self) -> type[Pass]:
        return technique(self.name)

    def pick(self, choose: Choose) -> str:
        """The pass with each parameter picked, as on the command line of ``negawatt compress``."""
        values = {
            key: choose(f"{self.name}.{key}", choices) if len(choices) > 1 else choices[0]
            for key, choices in self.ranges
        }
        return str(self.technique(**values))

    def variants(self) -> list[str]:
        """The pass with every combination of its values."""
        names = [key for key, _ in self.ranges]
        return [
            str(self.technique(**dict(zip(names, values, strict=True))))
            for values in itertools.product(*(choices for _, choices in self.ranges))
        ]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "required": self.required, **{k: list(v) for k, v in self.ranges}}
