"""`Crew`: a search whose trials are made on the nodes of a cluster, one errand a node at a time.

A verdict is for one kind of machine: that which the search was begun on. Nodes with its fingerprint measure;
others judge quality, against the baseline on that same node, and nothing that they do enters a cost. A node
that measures does nothing else: what is worth judging goes to nodes that are free, those of another kind
first. What a node that is lost was at, another does once more; after that the trial has failed.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from negawatt import __version__
from negawatt.engine.backends import engines
from negawatt.meter import fingerprint
from negawatt.run import Run
from negawatt.tuning.attempt import Look
from negawatt.tuning.bench import Tick, failed
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cluster import Cluster, ClusterError, Node, NodeLost
from negawatt.tuning.errand import Brief, look_from, look_json, scores_from, scores_json
from negawatt.tuning.expense import Expense
from negawatt.tuning.greeting import greeting, why_not_measure
from negawatt.tuning.limited import all_limits
from negawatt.tuning.material import Material
from negawatt.tuning.node import THREADS, alone
from negawatt.tuning.sampler import Proposal
from negawatt.tuning.study import Study
from negawatt.tuning.trial import Trial

POLL_S = 0.5
MET_EVERY_S = 2.0
GREETED_WITHIN_S = 60.0
"""A node that has not answered a greeting for so long is not waited for any more."""
GREETINGS = 3
"""How often a node is greeted that was lost and is there again."""
LOSSES = 2
"""A candidate on which so many nodes were lost has failed."""
OVERTIME_S = 240.0
"""How long errands may last after the search's time is over; what has not even begun by then never will."""


@dataclass
class Member:
    """A node that takes part.

    Attributes:
        node: of the cluster.
        machine: id of what it is.
        like: whether that is the kind that the search is for.
        work: what it is at.
        sent: names of models that were sent to it.
    """

    node: Node
    machine: str
    like: bool
    work: Work | None = None
    sent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """An errand about a candidate.

    Attributes:
        do: ``measure``, ``look`` or ``judge``.
        candidate, proposal: what it is about.
        trial: what is to be judged.
        lost_on: ids of nodes that were lost on it.
    """

    do: str
    candidate: Candidate
    proposal: Proposal
    trial: Trial | None = None
    lost_on: tuple[str, ...] = ()

    def suits(self, member: Member) -> bool:
        return (member.like or self.do == "judge") and member.node.id not in self.lost_on


def crew_for(cluster: Cluster, study: Study, material: Material, seed: int, expense: Expense) -> Crew:
    """A crew for a search that is for machines like this one.

    Args:
        seed: of passes.
        material, expense: of the search.
    """
    here = fingerprint()["id"]
    brief = Brief.of(study.bench, material, study.space.max_context, seed, here)
    return Crew(cluster, study, brief, study.run, expense)


class Crew:
    """Searches with a cluster.

    Args:
        cluster: a connection.
        study: the search.
        brief: what nodes are told of it.
        run: where notes, and what each errand cost, are kept.
        expense: adds up what is spent elsewhere.
    """

    def __init__(self, cluster: Cluster, study: Study, brief: Brief, run: Run, expense: Expense) -> None:
        self.cluster, self.study, self.brief, self.run, self.expense = cluster, study, brief, run, expense
        self._brief = brief.to_json()
        names = {*study.space.engines, study.baseline.settings.engine}
        self._engines = {each["name"]: each["version"] for each in engines(sorted(names))}
        self._members: dict[str, Member] = {}
        self._greeted: Counter[str] = Counter()
        self._greeting: dict[str, float] = {}  # node -> when it was greeted
        self._again: deque[Work] = deque()
        self._to_judge: deque[Work] = deque()
        self._met_s = -MET_EVERY_S
        self._dry_at = -1  # how many trials there were when the strategy had nothing left

    # -- the loop ----------------------------------------------------------------------------------

    def search(self, time_left: Callable[[], float], tick: Tick) -> None:
        """As `Study.search`; what nodes are at when the time is over is waited for."""
        with alone(exclusive=True):
            self.study.begin(time_left, tick)
        self._dry_at = -1
        first = len(self.study.trials) < 2  # on a busy machine the baseline may use up all the time
        over_s = math.inf
        while time.monotonic() - over_s < OVERTIME_S:
            self._meet()
            more = first or time_left() > 0
            over_s = math.inf if more else min(over_s, time.monotonic())
            self._hand_out(more)
            if self._do_here(more, tick):
                first = False
                continue
            at_work = [member for member in self._members.values() if member.work is not None]
            if not at_work and not self._awaited():
                return
            first = first and not at_work
            tick(f"trial {len(self.study.trials)}: {len(at_work)} of {len(self._members)} nodes at work")
            for ticket, answer in self.cluster.done(POLL_S):
                self._heard(ticket, answer)
        self._give_up()

    def _give_up(self) -> None:
        """What is still out will not come; what waits to be judged stays unjudged."""
        self.cluster.recall()
        for member in self._members.values():
            if member.work is not None:
                self._note(f"Node {member.node.name} did not answer in time: {member.work.candidate}")
                if member.work.trial is not None:
                    self._to_judge.append(member.work)
                member.work = None
        for work in (*self._to_judge, *self._again):
            if work.trial is not None:
                self.study.keep(work.trial, work.proposal)
        self._to_judge.clear()
        self._again.clear()

    # -- nodes -------------------------------------------------------------------------------------

    def _awaited(self) -> bool:
        """Whether nodes that were greeted may still answer."""
        return any(time.monotonic() - at_s < GREETED_WITHIN_S for at_s in self._greeting.values())

    def _meet(self) -> None:
        """Greet nodes that have come, and forget those that have gone."""
        if time.monotonic() - self._met_s < MET_EVERY_S:
            return
        self._met_s = time.monotonic()
        try:
            present = {node.id: node for node in self.cluster.nodes()}
        except ClusterError as exc:
            self._met_s = math.inf  # it is not asked again
            self._note(f"The cluster is gone: {exc}; the search goes on here")
            for member in list(self._members.values()):
                self._lost(member, str(exc))
            self._greeting.clear()
            return
        for member in [m for m in self._members.values() if m.node.id not in present and m.work is None]:
            self._lost(member, "it has left the cluster")
        for node in present.values():
            known = node.id in self._members or node.id in self._greeting
            if not known and self._greeted[node.id] < GREETINGS:
                self._greeted[node.id] += 1
                self._greeting[node.id] = time.monotonic()
                job = greeting(self._engines, self.brief.cost, all_limits(self.study.space))
                self.cluster.send(node, self._text(job), node, beside=True)

    def _greets_back(self, node: Node, answer: str | NodeLost) -> None:
        self._greeting.pop(node.id, None)
        if isinstance(answer, NodeLost):
            return  # it is greeted again while it is there
        data = json.loads(answer)
        self.expense.add(data, node.name, "greet")
        if "error" in data:
            self._unfit(node, data["error"])
            return
        lacking = [n for n, version in self._engines.items() if data["engines"].get(n) != version]
        if lacking:
            has = data["engines"].get(lacking[0]) or "none"
            self._unfit(node, f"{lacking[0]} is {self._engines[lacking[0]]} here and {has} there")
            return
        machine = data["machine"]
        machines = self.run.manifest.get("machines", {})
        if machine["id"] not in machines:
            self.run.update(machines={**machines, machine["id"]: machine})
        if why := why_not_measure(data, self.brief.machine, self.brief.cost):
            self._note(f"Node {node.name} {why}: it judges quality and measures nothing")
        self._members[node.id] = Member(node, machine["id"], not why)

    def _unfit(self, node: Node, why: str) -> None:
        self._greeted[node.id] = GREETINGS
        self._members.pop(node.id, None)
        self._note(f"Node {node.name} takes no part: {why}")

    def _note(self, text: str) -> None:
        self.run.append("note", {"text": text})

    # -- handing out -------------------------------------------------------------------------------

    def _hand_out(self, more: bool) -> None:
        """Something to do for every node that is free; those of another kind come first, to judge."""
        free = [member for member in self._members.values() if member.work is None]
        for member in sorted(free, key=lambda member: member.like):
            if work := self._work_for(member, more):
                self._send(member, work)

    def _work_for(self, member: Member, more: bool) -> Work | None:
        for work in self._again:
            if work.suits(member):
                self._again.remove(work)
                return work
        if self._to_judge and self.study.judge.scores.labelled:
            return self._to_judge.popleft()
        return self._proposed() if member.like and more else None

    def _proposed(self) -> Work | None:
        if self._dry_at == len(self.study.trials):
            return None
        proposed = self.study.next()
        if proposed is None:
            self._dry_at = len(self.study.trials)
            return None
        proposal, candidate = proposed
        return Work("measure" if proposal.whole else "look", candidate, proposal)

    def _send(self, member: Member, work: Work) -> None:
        member.work = work
        job: dict[str, Any] = {"do": work.do, "brief": self._brief}
        if work.trial is not None:
            scores, known = self.study.judge.scores, None
            if member.like:  # the same machine gives the same answers
                known = scores.known(self.study.baseline, self.study.items)
            job |= {"trial": work.trial.to_record("search"), "known": scores_json(known)}
        else:
            earlier = look_json(self.study.look_at(work.candidate))
            job |= {
                "candidate": work.candidate.to_json(),
                "foreseen": self.study.foreseen(),
                "earlier": earlier,
            }
        try:
            self.cluster.send(member.node, self._text(job), member)
        except ClusterError as exc:
            self._lost(member, str(exc))

    @staticmethod
    def _text(job: dict[str, Any]) -> str:
        threads = {name: os.environ[name] for name in THREADS if name in os.environ}
        nice = os.getpriority(os.PRIO_PROCESS, 0)
        return json.dumps({"version": __version__, "threads": threads, "nice": nice, **job})

    def _do_here(self, more: bool, tick: Tick) -> bool:
        """Do on this machine, if nobody else can, a piece of work; whether there was one."""
        if self._awaited():
            return False
        members = self._members.values()
        work = next((w for w in self._again if not any(map(w.suits, members))), None)
        if work is not None:
            self._again.remove(work)
        elif self._to_judge and not (members and self.study.judge.scores.labelled):
            work = self._to_judge.popleft()
        elif more and not any(member.like for member in members):
            work = self._proposed()
        if work is None:
            return False
        tick(f"trial {len(self.study.trials)}: {work.candidate}, here")
        bench = self.study.bench
        with alone(exclusive=work.do != "judge"):
            if work.trial is not None:
                self.study.keep(bench.judged(work.trial, tick), work.proposal)
            elif work.do == "look":
                self.study.keep(bench.look(work.candidate), work.proposal)
            else:
                earlier = self.study.look_at(work.candidate)
                self._measured(work, bench.measure(work.candidate, self.study.foreseen(), earlier))
        return True

    # -- taking in ---------------------------------------------------------------------------------

    def _heard(self, ticket: Node | Member, answer: str | NodeLost) -> None:
        if isinstance(ticket, Node):
            self._greets_back(ticket, answer)
        elif ticket.work is not None:  # else it was given up
            self._answered(ticket, ticket.work, answer)

    def _answered(self, member: Member, work: Work, answer: str | NodeLost) -> None:
        if isinstance(answer, NodeLost):
            self._lost(member, str(answer))
            return
        data = json.loads(answer)
        self.expense.add(data, member.node.name, work.do)
        if "lacks" in data:
            self._deliver(member, work, data["lacks"])
            return
        if "error" in data and data["kind"] not in ("EngineError", "WorkerDied"):
            self._unfit(member.node, data["error"])
            self._once_more(member, work, data["error"])
            return
        member.work = None
        where = {"machine": data.get("machine", member.machine), "node": member.node.name}
        for making in data.get("makings", ()):
            self.run.append("making", {**making, **where})
        if "error" in data:
            trial = failed(work.candidate, ClusterError(data["error"]), data.get("duration_s", 0.0))
            died = data["kind"] == "WorkerDied"
            figures = {**trial.figures, "died": died, **where}
            self.study.keep(replace(trial, figures=figures), work.proposal)
        elif work.trial is not None:
            judged = Trial.from_record(data["trial"])
            if member.like and (quality := scores_from(data["scores"])):
                self.study.judge.scores.teach(work.candidate, quality)
            figures = {**judged.figures, "judged_on": where}
            self.study.keep(replace(judged, figures=figures), work.proposal)
        elif "look" in data:
            look = look_from(data["look"])
            assert isinstance(look, Look)
            self.study.keep(look, work.proposal)
        else:
            trial = Trial.from_record(data["trial"])
            self._measured(work, replace(trial, figures={**trial.figures, **where}))

    def _measured(self, work: Work, trial: Trial) -> None:
        """Keep a trial, or have it judged first where it could win."""
        trial = trial.checked(self.study.constraints)
        if self.study.items and self.study.worth_judging(trial):
            self._to_judge.append(replace(work, do="judge", trial=trial))
        else:
            self.study.keep(trial, work.proposal)

    def _deliver(self, member: Member, work: Work, names: list[str]) -> None:
        """Send what a node has not, and the errand once more."""
        try:
            if again := [name for name in names if name in member.sent]:
                raise ClusterError(f"it does not keep {again[0] or 'the model'} that it was sent")
            for name in names:
                self.cluster.deliver(member.node, self.brief.models[name])
                member.sent = (*member.sent, name)
        except NodeLost as exc:
            self._lost(member, str(exc))
        except ClusterError as exc:
            self._unfit(member.node, str(exc))
            self._once_more(member, work, str(exc))
        else:
            self._send(member, work)

    def _lost(self, member: Member, why: str) -> None:
        self._members.pop(member.node.id, None)
        if member.work is None:
            self._note(f"Node {member.node.name} was lost: {why}")
            return
        self._note(f"Node {member.node.name} was lost at {member.work.candidate}: {why}")
        self._once_more(member, member.work, why)

    def _once_more(self, member: Member, work: Work, why: str) -> None:
        """Have another do what a node did not; what two did not has failed."""
        member.work = None
        lost_on = (*work.lost_on, member.node.id)
        if len(lost_on) < LOSSES:
            self._again.append(replace(work, lost_on=lost_on))
            return
        reason = ClusterError(f"{len(lost_on)} nodes were lost on it, the last one so: {why}")
        trial = failed(work.candidate, reason, 0.0)
        figures = {**trial.figures, "machine": member.machine, "node": member.node.name}
        self.study.keep(replace(trial, figures=figures), work.proposal)
