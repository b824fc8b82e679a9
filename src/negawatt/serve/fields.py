"""`Fields`: a JSON body read field by field; what is wrong is refused with the field's name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from negawatt.serve.admission import Refused


def wrong(param: str, message: str, code: str | None = None) -> Refused:
    """The error of a field."""
    return Refused(message, status=400, param=param, code=code)


class Fields:
    """Each getter takes a field out; `refuse_rest` then names what nobody asked for.

    A field that is null counts as absent.

    Raises:
        Refused: the body is no object.
    """

    def __init__(self, body: Any) -> None:
        if not isinstance(body, Mapping):
            raise Refused("expected a JSON object as the body", status=400)
        self._left: dict[str, Any] = {str(name): value for name, value in body.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, default: Any = None) -> Any:
        """The field as it is."""
        return self._left.pop(name, default)

    def text(self, name: str, default: str | None = None) -> str:
        """A string.

        Raises:
            Refused: it is none, or absent without a default.
        """
        value = self.take(name, default)
        if value is None:
            raise wrong(name, f"you must provide {name}", "missing_required_parameter")
        if not isinstance(value, str):
            raise wrong(name, f"{name} must be a string, not {_kind(value)}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number in an interval, both ends included."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise wrong(name, f"{name} must be a number, not {_kind(value)}")
        if not low <= value <= high:
            raise wrong(name, f"{name} must be from {low:g} to {high:g}, not {value:g}")
        return float(value)

    def whole(self, name: str, default: int | None, low: int, high: int) -> int | None:
        """A whole number in an interval, both ends included."""
        value = self.take(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(name, f"{name} must be a whole number, not {_kind(value)}")
        if not low <= value <= high:
            raise wrong(name, f"{name} must be from {low} to {high}, not {value}")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where absent."""
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise wrong(name, f"{name} must be true or false, not {_kind(value)}")
        return value

    def strings(self, name: str, most: int, most_bytes: int = 256) -> tuple[str, ...]:
        """A string or several, each of at most so many bytes; none where absent."""
        value = self.take(name, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) and v for v in values):
            raise wrong(name, f"{name} must be a string or a list of strings, none of them empty")
        if len(values) > most:
            raise wrong(name, f"{name} may hold {most} strings, not {len(values)}")
        if any(len(v.encode("utf-8", "replace")) > most_bytes for v in values):
            raise wrong(name, f"each string of {name} may be {most_bytes} bytes long")
        return tuple(values)

    def refuse(self, name: str, neutral: Iterable[Any], why: str) -> None:
        """Refuse a field that is not supported, unless it says what happens anyway.

        Raises:
            Refused: it asks for something.
        """
        if name in self._left:
            value = self.take(name)
            if value not in neutral:
                raise wrong(name, f"{name} is not supported: {why}", "unsupported_parameter")

    def refuse_rest(self) -> None:
        """
        Raises:
            Refused: there are fields that nobody knows.
        """
        if self._left:
            name = sorted(self._left)[0]
            raise wrong(name, f"unrecognized request argument supplied: {name[:100]}", "unknown_parameter")


def _kind(value: Any) -> str:
    kinds = {bool: "a boolean", str: "a string", list: "a list", dict: "an object", type(None): "nothing"}
    return kinds.get(type(value), repr(value)[:40])
