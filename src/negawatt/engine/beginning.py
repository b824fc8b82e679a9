"""What two sequences of tokens begin with in common."""

from __future__ import annotations


def common_beginning(held: list[int], wanted: list[int]) -> int:
    """Length of the beginning that both share."""
    low, high = 0, min(len(held), len(wanted))
    if held[:high] == wanted[:high]:
        return high
    while low < high - 1:  # equal up to low, different up to high
        middle = (low + high) // 2
        low, high = (middle, high) if held[:middle] == wanted[:middle] else (low, middle)
    return low
