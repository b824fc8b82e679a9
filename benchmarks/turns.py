"""Ways of running models, in turn: CPU-milliseconds a token in every round, and the ratio to the first."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from negawatt.artifact import Artifact
from negawatt.engine import Engine, Request, Settings
from negawatt.errors import NegawattError
from negawatt.profiling import Window
from negawatt.profiling.window import interleave, warm_up

Way = tuple[Artifact, Settings]
PROMPT = "The history of the lighthouse begins with a fire on the beach. "


def in_turns(
    ways: Mapping[str, Way], rounds: int, *, prompt_tokens: int = 8, new_tokens: int = 64
) -> dict[str, list[Window]]:
    """A full batch of like requests on each way in every round, the first of each round rotating."""
    with ExitStack() as stack:
        engines, groups = [], []
        for artifact, settings in ways.values():
            settings = settings.replace(max_context=prompt_tokens + new_tokens)
            engines.append(stack.enter_context(Engine(artifact, settings)))
            text = artifact.tokenizer.encode(PROMPT * (1 + prompt_tokens // 8))[:prompt_tokens]
            groups.append([Request(text, new_tokens)] * settings.batch)
            warm_up(engines[-1], groups[-1][0])
        return dict(zip(ways, interleave(engines, [groups] * rounds), strict=True))


def whole_ms(window: Window) -> float:
    """CPU-milliseconds for each generated token, everything included."""
    return 1000 * window.cpu_s_per_token


def phase_ms(phase: str) -> Callable[[Window], float]:
    """CPU-milliseconds for each token fed in ``prefill`` or ``decode``."""

    def cost(window: Window) -> float:
        steps = [step for step in window.steps if step.phase == phase]
        return 1000 * sum(step.cpu_s for step in steps) / sum(step.tokens for step in steps)

    return cost


def row(label: str, first: Sequence[float], *others: Sequence[float]) -> str:
    """Medians over rounds of each, and the ratio of each other to the first, with the range over rounds."""
    text = f"{label:<34}{statistics.median(first):>9.2f}"
    for other in others:
        ratios = sorted(b / a for a, b in zip(first, other, strict=True))
        text += (
            f"{statistics.median(other):>11.2f}{statistics.median(ratios):>8.3f} "
            f"({ratios[0]:.3f}–{ratios[-1]:.3f})"
        )
    return text


def show(label: str, ways: Mapping[str, Way], rounds: int) -> None:
    """Print a row of the whole cost of ways, or why one of them does not run."""
    try:
        windows = in_turns(ways, rounds)
    except NegawattError as exc:
        print(f"{label:<34}{exc}", flush=True)
    else:
        print(row(label, *([whole_ms(w) for w in each] for each in windows.values())), flush=True)
