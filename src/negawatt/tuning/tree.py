"""`Tree`: which points of a define-by-run space are taken, and which are still open."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from negawatt.errors import NegawattError

Choose = Callable[[str, Sequence[Any]], Any]
"""Picks one of the choices of a named dimension. Values must be hashable."""


class Exhausted(NegawattError):
    """No point of the space is left to try."""


@dataclass
class _Node:
    """A state of the space: the choices so far lead here; what is asked next is `name`."""

    name: str = ""
    choices: tuple[Any, ...] = ()
    children: dict[Any, _Node] = field(default_factory=dict)
    done: bool = False


class Tree:
    """Grows with the points that are taken; a branch whose points are all taken is never entered again.

    Nothing is enumerated: the cost of a step is that of one point, however large the space is.
    """

    def __init__(self) -> None:
        self._root = _Node()

    @property
    def done(self) -> bool:
        """Whether every point of the space is taken (a space is known by the points taken so far)."""
        return self._root.done

    def visited(self, point: Mapping[str, Any]) -> bool:
        """Whether this very point is taken."""
        node = self._root
        while not node.done:
            child = node.children.get(point.get(node.name)) if node.name else None
            if child is None:
                return False
            node = child
        return True

    def close(self, point: Mapping[str, Any], choices: Mapping[str, Sequence[Any]]) -> None:
        """Take a point.

        Args:
            point: dimension → value, in the order in which the space asks.
            choices: dimension → what it offered.
        """
        path = [self._root]
        for name, value in point.items():
            node = path[-1]
            node.name, node.choices = name, tuple(choices[name])
            path.append(node.children.setdefault(value, _Node()))
        path[-1].done = True
        for node in reversed(path[:-1]):
            node.done = all(c in node.children and node.children[c].done for c in node.choices)

    def walk(self, pick: Callable[[Choose], Any], among: Callable[[Sequence[Any]], Any]) -> dict[str, Any]:
        """A point that is not taken, each dimension chosen by `among` from what leads to such points.

        Raises:
            Exhausted: there is none.
        """
        if self.done:
            raise Exhausted("every point of the space has been proposed")
        node: _Node | None = self._root
        chosen: dict[str, Any] = {}

        def choose(name: str, choices: Sequence[Any]) -> Any:
            nonlocal node
            known = node.children if node is not None else {}
            open_ = [c for c in choices if not (c in known and known[c].done)]
            chosen[name] = among(open_)
            node = known.get(chosen[name])
            return chosen[name]

        pick(choose)
        return chosen


def points(pick: Callable[[Choose], Any], most: int | None = None) -> Iterator[dict[str, Any]]:
    """The points of a define-by-run space in order, at most so many of them."""
    pending: list[tuple[Any, ...]] = [()]
    found = 0
    while pending and (most is None or found < most):
        prefix = pending.pop()
        taken: dict[str, Any] = {}
        branches: list[list[tuple[Any, ...]]] = []

        def choose(
            name: str,
            choices: Sequence[Any],
            taken: dict[str, Any] = taken,
            prefix: tuple[Any, ...] = prefix,
            branches: list[list[tuple[Any, ...]]] = branches,
        ) -> Any:
            if len(taken) < len(prefix):
                taken[name] = prefix[len(taken)]
            else:
                before = tuple(taken.values())
                branches.append([(*before, c) for c in choices[1:]])
                taken[name] = choices[0]
            return taken[name]

        pick(choose)
        found += 1
        for group in branches:  # the latest on top: the order of an odometer whose last dimension is fastest
            pending += reversed(group)
        yield taken
