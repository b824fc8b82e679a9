"""`Parameter`: one declared knob of a pass, so that a tuner can turn it without knowing the pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negawatt.errors import UsageError

_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a pass.

    Attributes:
        name: as the user writes it.
        default: its value where none is given; its type is the parameter's type
            (int, float, bool or str).
        help: one line, with the unit if there is one.
        choices: the only values allowed; empty where a range or any value is.
        low, high: the range allowed.
        open: the ends of the range are not allowed themselves.
        search: values that a tuner tries, in order; empty where it keeps the default.
    """

    name: str
    default: Any
    help: str
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    open: bool = False
    search: tuple[Any, ...] = ()

    @property
    def kind(self) -> type:
        return type(self.default)

    def checked(self, value: Any, technique: str) -> Any:
        """`value`, or the value that a text stands for, in the parameter's type and range.

        Raises:
            UsageError: it is of another type or outside; the sentence says what is allowed.
        """
        converted = self._converted(value)
        if converted is None or not self._allowed(converted):
            raise UsageError(f"{technique}: {self.name} must be {self._expected()}, not {value}")
        return converted

    def _converted(self, value: Any) -> Any:
        if isinstance(value, str) and self.kind is bool:
            return _TRUTHS.get(value.lower())
        if self.kind in (bool, str) or isinstance(value, bool):
            return value if isinstance(value, self.kind) and self.kind in (bool, str) else None
        try:
            number = float(value)
            whole = int(value) if self.kind is int else 0
        except (ValueError, TypeError, OverflowError):
            return None
        if self.kind is int:
            return whole if whole == number else None
        return number

    def _allowed(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.kind not in (int, float):
            return True
        if self.open:
            return bool(self.low < value < self.high)
        return bool(self.low <= value <= self.high)

    def _expected(self) -> str:
        if self.choices:
            return f"one of {', '.join(map(str, self.choices))}"
        if self.kind not in (int, float) or (self.low, self.high) == (-math.inf, math.inf):
            return _WORDS[self.kind]
        above, below = ("above", "below") if self.open else ("from", "up to")
        ends = [f"{above} {self.low:g}"] if self.low > -math.inf else []
        ends += [f"{below} {self.high:g}"] if self.high < math.inf else []
        return f"{_WORDS[self.kind]} {' and '.join(ends)}"

    def to_json(self) -> dict[str, Any]:
        """What a tuner or a user interface needs to know; infinite ends are null."""
        return {
            "name": self.name,
            "kind": self.kind.__name__,
            "default": self.default,
            "help": self.help,
            "choices": list(self.choices),
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
            "search": list(self.search),
        }


def values_of(parameters: tuple[Parameter, ...], given: Mapping[str, Any], technique: str) -> dict[str, Any]:
    """The value of every parameter: as given, checked, or its default.

    Raises:
        UsageError: a value is not allowed, or no parameter has that name.
    """
    names = [p.name for p in parameters]
    if unknown := [name for name in given if name not in names]:
        raise UsageError(f"{technique} has no parameter {unknown[0]!r}; it has {', '.join(names) or 'none'}")
    return {p.name: p.checked(given.get(p.name, p.default), technique) for p in parameters}
