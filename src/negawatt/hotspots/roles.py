"""What part a module plays in a language model, and repeated layers as one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from negawatt.energy import Energy
from negawatt.hotspots.spot import Spot, merged

_ROLES = (
    ("attention", re.compile(r"Attention|Attn|RotaryEmb|RotaryPos", re.I)),
    ("MLP", re.compile(r"MLP|FeedForward|FFN|Experts|MoE", re.I)),
    ("norm", re.compile(r"Norm", re.I)),
    ("embedding", re.compile(r"Embedding", re.I)),
)
_HEADS = ("lm_head", "embed_out", "output_projection", "score", "classifier")
_NUMBER = re.compile(r"\.\d+$")


@dataclass(frozen=True)
class Role:
    """What all modules of one role spent in one stage, with everything inside them.

    Attributes:
        stage: the stage they ran in; empty outside of stages.
        name: embedding, attention, MLP, norm, head, or ``other``: residual sums, masks, the code
            around. Parts that are no model's (a device, say) keep their name.
        energy, cpu_s: all roles together make the whole.
        flops, moved_bytes: None where nothing was counted.
    """

    stage: str
    name: str
    energy: Energy
    cpu_s: float
    flops: float | None
    moved_bytes: float | None

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage or None,
            "name": self.name,
            "energy": self.energy.to_json(),
            "cpu_s": self.cpu_s,
            "flops": self.flops,
            "moved_bytes": self.moved_bytes,
        }


def by_role(whole: Spot) -> list[Role]:
    """The whole by stage and role, dearest first within a stage; empty where there are no modules."""
    if not any(spot.kind == "module" for spot in whole.walk()):
        return []
    found: dict[tuple[str, str], list[Role]] = {}
    _gather(whole, "", found)
    return [_sum(parts) for parts in sorted(found.values(), key=lambda p: (_order(p), -_cpu_s(p)))]


def folded(spot: Spot) -> Spot:
    """The same tree with repeated layers (``layers.0``, ``layers.1``, …) as one part, ``layers.*``."""
    groups: dict[tuple[str, str, str], list[Spot]] = {}
    for part in spot.inside:
        name = _NUMBER.sub(".*", part.name) if part.kind == "module" else part.name
        groups.setdefault((name, part.kind, part.place), []).append(part)
    inside = [
        folded(parts[0] if len(parts) == 1 else replace(merged(parts), name=f"{name} ({len(parts)})"))
        for (name, _, _), parts in groups.items()
    ]
    return replace(spot, inside=tuple(sorted(inside, key=lambda s: -s.cpu_s)))


def role_of(module: Spot) -> str | None:
    """The role of a module by its name and class, or None: look inside."""
    if module.name in _HEADS:
        return "head"
    return next((role for role, words in _ROLES if words.search(module.place)), None)


def _gather(spot: Spot, stage: str, found: dict[tuple[str, str], list[Role]]) -> None:
    if spot.kind == "stage":
        stage = f"{stage}/{spot.name}" if stage else spot.name
    role = role_of(spot) if spot.kind == "module" else None
    if spot.kind == "operator":
        role = "other"
    elif spot.kind in ("rest", "device"):
        role = spot.name
    if role is None:
        own = Role(stage, "other", spot.self_energy, spot.self_cpu_s, None, None)
        found.setdefault((stage, "other"), []).append(own)
        for part in spot.inside:
            _gather(part, stage, found)
        return
    part_of = Role(stage, role, spot.energy, spot.cpu_s, spot.flops, spot.moved_bytes)
    found.setdefault((stage, role), []).append(part_of)


def _sum(parts: Sequence[Role]) -> Role:
    flops = [p.flops for p in parts if p.flops is not None]
    moved = [p.moved_bytes for p in parts if p.moved_bytes is not None]
    return Role(
        parts[0].stage,
        parts[0].name,
        Energy.total(p.energy for p in parts),
        _cpu_s(parts),
        math.fsum(flops) if flops else None,
        math.fsum(moved) if moved else None,
    )


def _cpu_s(parts: Sequence[Role]) -> float:
    return math.fsum(p.cpu_s for p in parts)


def _order(parts: Sequence[Role]) -> tuple[bool, str]:
    return (parts[0].stage == "", "" if parts[0].stage == "prefill" else parts[0].stage)
