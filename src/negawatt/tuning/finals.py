"""`Finals`: the finalists measured again, in turn, on requests that the search never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from negawatt.engine import Completion
from negawatt.errors import EngineError, NegawattError
from negawatt.limits.ladder import against
from negawatt.meter import energy_of_cpu_time
from negawatt.profiling import CostModel, Profile, Summary
from negawatt.profiling.cascade import Runner, engines_of
from negawatt.profiling.profiler import baseline_ratio
from negawatt.profiling.window import Job, Window, completions_of, groups_for, interleave, warm_up
from negawatt.run import Run
from negawatt.tuning.ablation import Step, levers
from negawatt.tuning.attempt import answered_in, take
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cost import CPU_SECONDS, Cost
from negawatt.tuning.kept import keep
from negawatt.tuning.limited import limited
from negawatt.tuning.node import alone
from negawatt.tuning.traffic import Traffic
from negawatt.tuning.workshop import Workshop
from negawatt.workload import Ratio

RANKING_ROUNDS = 3
FINAL_ROUNDS = 6
BASELINE_ROUNDS = 2
ABLATION_ROUNDS = 3
"""Rounds to rank finalists, to compare the winner with the baseline, where nothing competes, and to tell what
each lever saves."""
LATENCY_TOKENS = 32
"""Of an answer whose latencies are measured; many requests say more of a percentile than long answers."""
FEWEST_RANKING_ROUNDS = 1
FEWEST_ABLATION_ROUNDS = 1
FEWEST_FINAL_ROUNDS = 3
"""The same where the time is over."""


class Finals:
    """Measures in turn, and keeps the winner's weights.

    Args:
        run: where notes and the winning artifact go.
        workshop: gives the candidates' weights.
        traffic: held out from the search.
        tick: told what goes on.
        cost: what is counted.
    """

    def __init__(
        self,
        run: Run,
        workshop: Workshop,
        traffic: Traffic,
        tick: Callable[[str], None],
        cost: Cost = CPU_SECONDS,
    ) -> None:
        self.run, self.workshop, self.traffic, self.tick, self.cost = run, workshop, traffic, tick, cost
        self._engines: dict[Candidate, Runner] = {}  # closed again; kept for what they tell of themselves
        self._held: dict[Candidate, dict[str, Any]] = {}  # the limits that were in force

    def ranked(self, finalists: Sequence[Candidate], time_left: Callable[[], float]) -> list[Candidate]:
        """The finalists by their cost in fresh, interleaved windows, cheapest first."""
        if len(finalists) < 2:
            return list(finalists)
        windows = self._interleaved(finalists, RANKING_ROUNDS, FEWEST_RANKING_ROUNDS, time_left)
        costs = {candidate: self._cost(candidate, w) for candidate, w in windows.items() if w}
        return sorted(costs, key=lambda candidate: costs[candidate])

    def answers(
        self, candidate: Candidate, traffic: Sequence[Traffic], time_left: Callable[[], float]
    ) -> list[Completion]:
        """Answers to all jobs, each once and at most `LATENCY_TOKENS` long, as many as there is time for.

        Raises:
            EngineError: it can no longer be loaded.
        """
        found: list[Completion] = []
        jobs = [job for each in traffic for job in each.jobs(candidate)]
        batch = candidate.settings.batch
        limits = candidate.settings.limits
        with _alone_if([candidate]), self.workshop.runner(candidate) as engine, ExitStack() as stack:
            warm_up(engine, jobs[0])
            stack.enter_context(limited(engine, jobs, limits))
            for start in range(0, len(jobs), batch):
                if found and time_left() <= 0:
                    break
                self.tick(f"latency of {candidate}: {start} of {len(jobs)} requests")
                group = [answered_in(job, LATENCY_TOKENS) for job in jobs[start : start + batch]]
                found += completions_of(engine, group)
        return found

    def compare(
        self, baseline: Candidate, winner: Candidate | None, time_left: Callable[[], float]
    ) -> tuple[Profile, Profile | None]:
        """Profiles of both from windows taken in turn; the winner's carries the ratio of the two.

        Raises:
            EngineError: one of them can no longer be loaded.
        """
        chosen = [baseline] if winner is None else [baseline, winner]
        rounds, fewest = (FINAL_ROUNDS, FEWEST_FINAL_ROUNDS) if winner else (BASELINE_ROUNDS, BASELINE_ROUNDS)
        windows = self._all_of(chosen, rounds, fewest, time_left)
        before = self._profile(baseline, windows[baseline])
        if winner is None:
            return before, None
        ratio = self._ratio(windows, baseline, winner)
        return before, replace(self._profile(winner, windows[winner]), ratio=ratio)

    def ratio(self, present: Candidate, winner: Candidate, time_left: Callable[[], float]) -> Ratio:
        """How many times less a token costs with the winner, from windows taken in turn.

        Raises:
            EngineError: one of them can no longer be loaded.
        """
        windows = self._all_of([present, winner], FINAL_ROUNDS, FEWEST_FINAL_ROUNDS, time_left)
        return self._ratio(windows, present, winner)

    def costs(self, candidates: Sequence[Candidate]) -> dict[Candidate, list[float]]:
        """What a token (as the baseline cuts text) costs with those that run, window by window in turn."""
        windows = self._interleaved(candidates, FINAL_ROUNDS, FINAL_ROUNDS, lambda: 0.0)
        return {c: [self._cost(c, [w]) for w in own] for c, own in windows.items() if own}

    def _cost(self, candidate: Candidate, windows: Sequence[Window]) -> float:
        """For a token as the baseline cuts text, in the unit of the search."""
        return self.cost.per_output(windows, candidate.devices) * self.traffic.per_token(candidate)

    def _all_of(
        self, chosen: Sequence[Candidate], rounds: int, fewest: int, time_left: Callable[[], float]
    ) -> dict[Candidate, list[Window]]:
        windows = self._interleaved(chosen, rounds, fewest, time_left)
        if lost := [c for c in chosen if len(windows.get(c, ())) < 2]:
            raise EngineError(f"{lost[0]} ran during the search but not any more; the run's notes say why")
        return windows

    def _ratio(
        self, windows: Mapping[Candidate, Sequence[Window]], dear: Candidate, cheap: Candidate
    ) -> Ratio:
        return baseline_ratio(*([self._cost(c, [w]) for w in windows[c]] for c in (dear, cheap)))

    def along(self, steps: Sequence[Step], time_left: Callable[[], float]) -> list[dict[str, Any]] | None:
        """What each lever saves on the way from baseline to winner, all steps measured in turn.

        Args:
            steps: as `ablation.path` gives them.
            time_left: seconds; when they are over, one round is enough.
        """
        windows = self._interleaved(
            [step.candidate for step in steps], ABLATION_ROUNDS, FEWEST_ABLATION_ROUNDS, time_left
        )
        windows = {c: w for c, w in windows.items() if w}
        costs = {c: self._cost(c, w) for c, w in windows.items()}
        seconds = {
            c: Summary(tuple(w)).cpu_s_per_token * self.traffic.per_token(c) for c, w in windows.items()
        }
        rounds = min((len(w) for w in windows.values()), default=0)
        how = f"every step measured in turn, {rounds} windows each"
        return levers(steps, costs, how, seconds if self.cost.in_joules else None)

    def _interleaved(
        self, candidates: Sequence[Candidate], rounds: int, fewest: int, time_left: Callable[[], float]
    ) -> dict[Candidate, list[Window]]:
        """Windows of several candidates, taken in turn; one that fails now is left out, with a note."""
        with _alone_if(candidates), ExitStack() as stack:
            opened: dict[Candidate, Runner] = {}
            for each in candidates:
                self.tick(f"loading {each}")
                try:
                    if why := against(each.settings.limits):
                        raise EngineError(why)
                    runner = self.workshop.runner(each)
                    stack.enter_context(runner)
                    warm_up(runner, self.traffic.jobs(each)[0])
                    opened[each] = runner
                except NegawattError as exc:
                    self.run.append("note", {"text": f"Dropped among the finalists: {each}: {exc}"})
            engines, chosen = list(opened.values()), list(opened)
            groups = [groups_for(self.traffic.jobs(c), c.settings.batch, rounds, 1) for c in opened]
            plan = [[g[number] for g in groups] for number in range(rounds)]
            total = rounds * len(engines)
            taken = interleave(
                engines,
                plan,
                lambda n: self.tick(f"measuring in turn: {n} of {total}"),
                lambda done: done >= fewest and time_left() <= 0,
                lambda position, group: self._window(chosen[position], engines[position], group),
            )
            self._engines |= opened
            return self._counted(dict(zip(opened, taken, strict=True)))

    def _window(self, candidate: Candidate, runner: Runner, group: Sequence[Job]) -> Window:
        """A window under the candidate's limits, which are let go of after it."""
        with limited(runner, self.traffic.jobs(candidate), candidate.settings.limits) as held:
            self._held[candidate] = held
            return take(runner, group, self.cost)

    def _counted(self, windows: dict[Candidate, list[Window]]) -> dict[Candidate, list[Window]]:
        """Without the rounds in which somebody's joules are missing, so that pairs stay pairs.

        A candidate of which no window can be counted is left out; both are noted.
        """
        reasons = {c: [self._uncounted(c, window) for window in own] for c, own in windows.items()}
        for lost in [c for c, own in reasons.items() if own and all(own)]:
            self.run.append("note", {"text": f"Dropped among the finalists: {lost}: {reasons.pop(lost)[0]}"})
        rounds = max((len(own) for own in reasons.values()), default=0)
        broken = {n: own[n] for own in reasons.values() for n in range(rounds) if own[n]}
        for number, reason in broken.items():
            text = f"Round {number + 1} measured in turn is left out: {reason}"
            self.run.append("note", {"text": text})
        return {c: [w for n, w in enumerate(windows[c]) if n not in broken] for c in reasons}

    def _uncounted(self, candidate: Candidate, window: Window) -> str:
        """Why a window does not count; nothing where it does."""
        try:
            self.cost.per_output([window], candidate.devices)
        except EngineError as exc:
            return str(exc)
        return ""

    def _profile(self, candidate: Candidate, windows: Sequence[Window]) -> Profile:
        """A profile whose cost model is fitted on all windows but the last two, and tested on those."""
        summary, engines = Summary(tuple(windows)), engines_of(self._engines[candidate])
        cut = len(windows) - 2 if len(windows) > 3 else len(windows)
        fitted, held_back = windows[:cut], windows[cut:]
        model = CostModel.fit(
            [step for w in fitted for step in w.steps],
            batch=candidate.settings.batch,
            cpu_s=sum(w.cpu_s for w in fitted),
            energy_per_cpu_s=summary.energy.scaled(1 / summary.cpu_s),
        ).tested_on([w.cost for w in held_back])
        load_cpu_s = sum(each.load_usage.cpu_s for each in engines)
        infos = [{**each.info, **self._held.get(candidate, {})} for each in engines]
        return Profile(
            artifact=" + ".join(each.artifact.name for each in engines),
            settings=candidate.settings,
            summary=summary,
            load_cpu_s=load_cpu_s,
            load_energy=energy_of_cpu_time(load_cpu_s),
            peak_rss_bytes=sum(each.last_usage.peak_rss_bytes for each in engines),
            cost_model=model,
            version=" + ".join(dict.fromkeys(each.version for each in engines)),
            info=infos[0] if len(infos) == 1 else dict(zip(("small", "large"), infos, strict=True)),
        )

    def keep_artifact(self, candidate: Candidate, verdict: str) -> Path:
        """The winner as an artifact in the run; see `negawatt.tuning.kept.keep`."""
        name = f"{self.workshop.base.name}-tuned"
        place, limits = self.run.path / "artifact", candidate.settings.limits
        return keep(self._engines[candidate], place, name, verdict, limits)


def _alone_if(candidates: Sequence[Candidate]) -> AbstractContextManager[None]:
    """With nothing of ours beside it on this machine, where a candidate holds it to limits."""
    return alone(exclusive=True) if any(c.settings.limits for c in candidates) else nullcontext()


def waterfall(
    baseline: Profile, best: Profile | None, cost: Cost = CPU_SECONDS
) -> list[dict[str, Any]] | None:
    """Where the cost of a generated token went, before and after, by phase; in a search by text.

    Joules are shared between phases as CPU seconds are.
    """
    if best is None:
        return None
    steps: list[dict[str, Any]] = []
    for label, profile in (("baseline", baseline), ("best", best)):
        summary = profile.summary
        seconds = {part.name: part.cpu_s_per_output for part in summary.parts.values()} or {
            phase: summary.phase(phase, summary.generated)["cpu_s_per_token"]
            for phase in ("prefill", "decode")
        }
        each_s = cost.per_output(summary.windows, [profile.settings.device]) / summary.cpu_s_per_token
        for name, spent in seconds.items():
            step = {"label": f"{label}: {name}", "cpu_s_per_token": spent}
            steps.append({**step, "joules_per_token": spent * each_s} if cost.in_joules else step)
    return steps
