"""Thermal design power of a hardware thread, by processor name or generation.

A small table of makers' published figures: enough to place common servers, clouds and laptops. A
processor that is not in it gets the range of its generation, or of all processors, and the
interval of every estimate widens accordingly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARTS: dict[str, tuple[float, int]] = {  # name fragment: (TDP of the package in W, hardware threads)
    "E5-2670": (115, 16), "E5-2680 v3": (120, 24), "E5-2680 v4": (120, 28), "E5-2686 v4": (145, 36),
    "E5-2690 v3": (135, 24), "E5-2690 v4": (135, 28), "E5-2699 v4": (145, 44),
    "Silver 4116": (85, 24), "Silver 4210": (85, 20), "Silver 4310": (120, 24), "Silver 4314": (135, 32),
    "Silver 4410Y": (150, 24),
    "Gold 6130": (125, 32), "Gold 6148": (150, 40), "Gold 6230": (125, 40), "Gold 6248": (150, 40),
    "Gold 6330": (205, 56), "Gold 6338": (205, 64), "Gold 6430": (270, 64),
    "Platinum 8175M": (240, 48), "Platinum 8259CL": (210, 48), "Platinum 8272CL": (195, 52),
    "Platinum 8280": (205, 56), "Platinum 8375C": (300, 64), "Platinum 8380": (270, 80),
    "Platinum 8480": (350, 112),
    "EPYC 7302": (155, 32), "EPYC 7402": (180, 48), "EPYC 7452": (155, 64), "EPYC 7543": (225, 64),
    "EPYC 7702": (200, 128), "EPYC 7713": (225, 128), "EPYC 7742": (225, 128), "EPYC 7763": (280, 128),
    "EPYC 7B12": (240, 128), "EPYC 7R13": (225, 96),
    "EPYC 9124": (200, 32), "EPYC 9354": (280, 64), "EPYC 9554": (360, 128), "EPYC 9654": (360, 192),
    "EPYC 9754": (360, 256), "EPYC 9965": (500, 384),
    "Ryzen 5 5600X": (65, 12), "Ryzen 7 3700X": (65, 16), "Ryzen 7 7700X": (105, 16),
    "Ryzen 9 5900X": (105, 24), "Ryzen 9 5950X": (105, 32), "Ryzen 9 7950X": (170, 32),
    "Ryzen 9 9950X": (170, 32),
    "i7-1165G7": (28, 8), "i7-1185G7": (28, 8), "i7-8650U": (15, 8), "i9-13900K": (125, 32),
    "Ultra 7 155H": (28, 22),
}  # fmt: skip

_GENERATIONS: dict[tuple[str, int, int], tuple[str, float, float, float]] = {
    # (maker, family, model): (name, W a thread of the leanest part, of a usual dense part, of the hungriest)
    ("GenuineIntel", 6, 85): ("Skylake-SP or Cascade Lake", 3.1, 3.6, 5.2),
    ("GenuineIntel", 6, 106): ("Ice Lake-SP", 3.2, 3.4, 5.2),
    ("GenuineIntel", 6, 143): ("Sapphire Rapids", 2.9, 3.1, 6.3),
    ("GenuineIntel", 6, 207): ("Emerald Rapids", 2.6, 2.8, 6.3),
    ("AuthenticAMD", 23, 49): ("EPYC Rome", 1.56, 1.8, 5.0),
    ("AuthenticAMD", 25, 1): ("EPYC Milan", 1.75, 2.2, 5.0),
    ("AuthenticAMD", 25, 17): ("EPYC Genoa", 1.85, 2.4, 6.3),
    ("AuthenticAMD", 25, 160): ("EPYC Bergamo or Siena", 1.4, 1.6, 3.2),
}

_ANY = (1.4, 3.0, 7.0)
"""W a thread over all parts above, with room at both ends."""


@dataclass(frozen=True, slots=True)
class ThreadPower:
    """Thermal design power divided by hardware threads.

    Attributes:
        low_w, usual_w, high_w: watts a thread; all equal for a part that is known by name.
        basis: how it was found, for people.
        part_threads: threads of the whole part, when it is known by name.
    """

    low_w: float
    usual_w: float
    high_w: float
    basis: str
    part_threads: int | None = None


def thread_power(cpu_model: str, maker: str = "", family: int = 0, model: int = 0) -> ThreadPower:
    """Look a processor up by name, else by generation, else give the range of all."""
    plain = re.sub(r"\((?:R|TM)\)|CPU|Intel|AMD|Xeon|@.*", " ", cpu_model)
    plain = " ".join(plain.split())
    for fragment in sorted(_PARTS, key=len, reverse=True):
        if re.search(rf"\b{re.escape(fragment)}(?![0-9])", f"{plain} "):
            tdp_w, threads = _PARTS[fragment]
            per_thread = tdp_w / threads
            return ThreadPower(
                per_thread, per_thread, per_thread, f"TDP {tdp_w:g} W over {threads} threads", threads
            )
    if generation := _GENERATIONS.get((maker, family, model)):
        name, low, usual, high = generation
        return ThreadPower(low, usual, high, f"{name}, TDP {low:g} to {high:g} W a thread")
    low, usual, high = _ANY
    return ThreadPower(low, usual, high, f"unknown part, TDP assumed {low:g} to {high:g} W a thread")
