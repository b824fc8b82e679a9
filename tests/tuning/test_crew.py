"""Trials on nodes: who does what, what becomes of a lost node's, and what a node has that it was not sent.

The cluster here is a double that answers in this process, so that any fault can be had at will; with the
real one the same is done in `test_ray.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from negawatt import __version__
from negawatt.artifact import Artifact
from negawatt.energy import Energy
from negawatt.engine import Settings
from negawatt.engine.backends import engines
from negawatt.errors import IntegrityError, UsageError
from negawatt.meter import fingerprint
from negawatt.profiling.quality import Quality
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, Study, tune
from negawatt.tuning.attempt import Look
from negawatt.tuning.bench import Bench
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cluster import Cluster, ClusterError, Node, NodeLost
from negawatt.tuning.crew import Crew
from negawatt.tuning.errand import Brief, Letter, look_from, look_json, scores_from, scores_json
from negawatt.tuning.expense import Expense
from negawatt.tuning.node import carried_out
from negawatt.tuning.parcel import Parcel, delivery_name
from negawatt.tuning.trial import Trial
from negawatt.workload import Workload

SPACE = Space(
    ("llamacpp",), (1,), (1, 2), 512, {"llamacpp": ("q8_0", "q4_0", "q4_1", "bf16")},
    kv_caches={"llamacpp": ("default",)}, speculation=("none",),
)  # fmt: skip
BASELINE = Candidate(Settings(engine="llamacpp", weight_format="f16", threads=2, max_context=512))
HERE = fingerprint()["id"]
JOULE = Energy.estimated(1.0, 0.5, 2.0, "a double's").to_json()


pytestmark = pytest.mark.usefixtures("llamacpp_runtime")


def versions() -> dict[str, str | None]:
    """Of the engines here, once they are pulled."""
    return {each["name"]: each["version"] for each in engines(["llamacpp"])}


class Answering:
    """A double of the cluster: nodes answer at once, in the order in which they were asked.

    Args:
        machines: node → id of its machine.
        answer: what a node answers to a job; raises `NodeLost` where it is lost at it.
    """

    def __init__(
        self, machines: dict[str, str], answer: Callable[[str, dict[str, Any]], dict[str, Any]]
    ) -> None:
        self.machines, self.answer = dict(machines), answer
        self.waiting: list[tuple[Any, str | NodeLost]] = []
        self.asked: list[tuple[str, str, Candidate | None]] = []
        self.at_once: dict[str, int] = {}
        self.delivered: list[str] = []

    def nodes(self) -> list[Node]:
        return [Node(name, 2.0) for name in self.machines]

    def send(self, node: Node, text: str, ticket: Any, *, beside: bool = False) -> None:
        job = json.loads(text)
        told: dict[str, Any]
        if job["do"] == "greet":
            machine = {**fingerprint(), "id": self.machines[node.id]}
            told = {"machine": machine, "engines": versions()}
            self.waiting.append((ticket, json.dumps({**told, "cpu_s": 0.0})))
            return
        assert self.at_once.get(node.id, 0) == 0, "one errand a node at a time"
        self.at_once[node.id] = 1
        about = job.get("candidate") or job.get("trial")
        self.asked.append((node.id, job["do"], Candidate.from_json(about)))
        try:
            told = self.answer(node.id, job)
        except NodeLost as exc:
            self.machines.pop(node.id)
            self.waiting.append((ticket, exc))
            return
        costs = {"cpu_s": 1.0, "energy": JOULE, "machine": self.machines[node.id], "makings": []}
        self.waiting.append((ticket, json.dumps({**costs, **told})))

    def done(self, timeout_s: float) -> Iterator[tuple[Any, str | NodeLost]]:
        while self.waiting:
            ticket, answer = self.waiting.pop(0)
            if not isinstance(ticket, Node):
                self.at_once[ticket.node.id] = 0
            yield ticket, answer

    def recall(self) -> None:
        self.waiting.clear()

    def deliver(self, node: Node, parcel: Parcel) -> None:
        self.delivered.append(node.id)


def cost_of(candidate: Candidate) -> float:
    place = ["q4_0", "q4_1", "q8_0", "bf16", "f16"].index(candidate.settings.weight_format)
    return (5.0 + place) * (1.0 if candidate.settings.threads == 1 else 1.3)


def measured(candidate: Candidate) -> dict[str, Any]:
    cost = cost_of(candidate)
    figures = {"screen_cost": cost, "duration_s": 1.0, "cpu_s_spent": 0.5}
    return {"trial": Trial(-1, candidate, "complete", cost, figures=figures).to_record("search")}


def answered(node: str, job: dict[str, Any]) -> dict[str, Any]:
    """What a node answers when all is well: everything keeps its quality."""
    if job["do"] == "measure":
        return measured(Candidate.from_json(job["candidate"]))
    figures = {"quality": {"value": 1.0}, "quality_drop": {"drop": 0.0, "mean": 0.0, "n": 4, "changed": 0}}
    return {"trial": {**job["trial"], **figures}, "scores": None}


class Tabled(Bench):
    """A double of the bench of this machine, which looks costs up."""

    def measure(self, candidate: Candidate, foreseen: Any = None, earlier: Any = None) -> Trial:
        return Trial.from_record(measured(candidate)["trial"])

    def judged(self, trial: Trial, tick: Any) -> Trial:
        return trial


class Judging:
    """A double of the judge of this machine."""

    labelled = True
    confidence = 0.95

    def __init__(self, workload: Workload) -> None:
        self.workload, self.scores, self.workshop = workload, self, self

    def known(self, *_: Any) -> None:
        return None

    def is_made(self, *_: Any) -> bool:
        return True


def crew_of(run: Run, cluster: Answering, lines: Workload) -> Crew:
    judge: Any = Judging(lines)
    no_traffic: Any = None
    study = Study(
        run, SPACE, Constraints(max_quality_drop=0.1), judge, BASELINE, no_traffic, lines.quality[:4], 99, 0,
        "random",
    )  # fmt: skip
    study.bench = Tabled(judge, no_traffic, study.items, 99, 0.1, 1.0)
    letter = Letter("0" * 64, {})
    brief = Brief({}, letter, letter, [], [], BASELINE, 512, 1.0, 99, 0.1, 0.95, 0, HERE)
    double: Any = cluster
    return Crew(double, study, brief, run, Expense(run, lambda: 1.0))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run.create("tune", path=tmp_path / "run", reference_load_s=1.0) as made:
        yield made


def search(crew: Crew) -> list[Trial]:
    crew.search(lambda: 60.0, lambda text: None)
    assert not list(crew.cluster.done(0.0)), "nothing is left out"
    return crew.study.trials


def notes(run: Run) -> list[str]:
    return [record["text"] for record in run.records("note")]


def test_like_nodes_measure_and_others_only_judge(run: Run, lines: Workload) -> None:
    cluster = Answering({"a": HERE, "b": HERE, "other": "of another kind"}, answered)
    trials = search(crew_of(run, cluster, lines))
    tried = [t.candidate for t in trials]
    assert tried[0] == BASELINE
    assert len(tried) == len(set(tried))
    assert set(tried[1:]) == set(SPACE.grid()) - {BASELINE}
    assert {node for node, do, _ in cluster.asked if do == "measure"} == {"a", "b"}
    assert "other" in {node for node, do, _ in cluster.asked if do == "judge"}
    assert all(t.figures["machine"] == HERE for t in trials), "costs are of one kind of machine"
    judged = [t for t in trials if "judged_on" in t.figures]
    assert {t.figures["judged_on"]["node"] for t in judged} <= {"a", "b", "other"}
    assert any("judges quality and measures nothing" in text for text in notes(run))
    assert set(run.manifest["machines"]) == {HERE, "of another kind"}


def test_what_errands_cost_adds_up(run: Run, lines: Workload) -> None:
    crew = crew_of(run, Answering({"a": HERE, "b": "of another kind"}, answered), lines)
    search(crew)
    n = sum(record["do"] != "greet" for record in run.records("errand"))  # the double's greetings are free
    assert crew.expense.cpu_s == pytest.approx(n)
    assert crew.expense.energy.value_j == pytest.approx(n)
    parts = crew.expense.by_machine()
    assert sum(part["cpu_s"] for part in parts) == pytest.approx(crew.expense.cpu_s)
    assert sum(part["energy"]["value_j"] for part in parts) == pytest.approx(n)
    again = Expense(run, lambda: 0.0)
    here = sum(t.figures["cpu_s_spent"] for t in crew.study.trials if "node" not in t.figures)
    assert again.earlier_cpu_s == pytest.approx(n + here), "the next sitting knows, and counts nothing twice"


def test_a_lost_nodes_trial_is_made_elsewhere_once(run: Run, lines: Workload) -> None:
    lost: list[Candidate] = []

    def answer(node: str, job: dict[str, Any]) -> dict[str, Any]:
        if node == "b" and job["do"] == "measure":
            lost.append(Candidate.from_json(job["candidate"]))
            raise NodeLost("it fell into the harbour")
        return answered(node, job)

    cluster = Answering({"a": HERE, "b": HERE}, answer)
    trials = search(crew_of(run, cluster, lines))
    assert len(lost) == 1
    (again,) = [t for t in trials if t.candidate == lost[0]]
    assert (again.state, again.figures["node"]) == ("complete", "a")
    assert any("was lost at" in text and "harbour" in text for text in notes(run))


def test_what_two_nodes_were_lost_on_has_failed_with_the_reason_and_the_search_goes_on(
    run: Run, lines: Workload
) -> None:
    cursed = next(c for c in SPACE.grid() if c.settings.weight_format == "q8_0")

    def answer(node: str, job: dict[str, Any]) -> dict[str, Any]:
        if job["do"] == "measure" and Candidate.from_json(job["candidate"]) == cursed:
            raise NodeLost(f"{node} fell into the harbour")
        return answered(node, job)

    cluster = Answering({"a": HERE, "b": HERE, "c": HERE}, answer)
    trials = search(crew_of(run, cluster, lines))
    (failed,) = [t for t in trials if t.state == "failed"]
    assert failed.candidate == cursed
    assert "2 nodes were lost on it" in failed.reason
    assert "harbour" in failed.reason
    assert len(cluster.machines) == 1
    assert len(trials) == len(list(SPACE.grid())) + (BASELINE not in SPACE.grid())


def test_when_no_node_is_left_the_search_goes_on_here(run: Run, lines: Workload) -> None:
    def answer(node: str, job: dict[str, Any]) -> dict[str, Any]:
        raise NodeLost("gone")

    trials = search(crew_of(run, Answering({"a": HERE, "b": HERE}, answer), lines))
    complete = [t for t in trials if t.state == "complete"]
    assert len(complete) == len(trials), "what one node each was lost on is made here"
    assert not any("node" in t.figures for t in complete)


def test_a_node_without_the_same_engine_takes_no_part(
    run: Run, lines: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = crew_of(run, Answering({"a": HERE}, answered), lines)
    monkeypatch.setitem(globals(), "versions", lambda: {"llamacpp": "v0"})
    trials = search(crew)
    assert not any("node" in t.figures for t in trials)
    assert any("llamacpp is v" in text and "v0 there" in text for text in notes(run))


def test_what_a_node_lacks_is_sent_once_and_then_believed_lost(run: Run, lines: Workload) -> None:
    def answer(node: str, job: dict[str, Any]) -> dict[str, Any]:
        return {"lacks": [""]} if node == "a" else answered(node, job)

    cluster = Answering({"a": HERE, "b": HERE}, answer)
    crew = crew_of(run, cluster, lines)
    crew.brief = replace(crew.brief, models={"": None})  # type: ignore[dict-item] # the double sends nothing
    trials = search(crew)
    assert cluster.delivered == ["a"]
    assert any("does not keep" in text for text in notes(run))
    assert {t.figures.get("node") for t in trials} == {None, "b"}


def test_an_error_of_the_candidate_is_its_failure_and_the_node_stays(run: Run, lines: Workload) -> None:
    def answer(node: str, job: dict[str, Any]) -> dict[str, Any]:
        if job["do"] == "measure" and "q4_0" in job["candidate"]["settings"]["weight_format"]:
            return {"error": "memory ran out", "kind": "EngineError"}
        return answered(node, job)

    trials = search(crew_of(run, Answering({"a": HERE}, answer), lines))
    failed = [t for t in trials if t.state == "failed"]
    assert failed
    assert all(t.reason == "memory ran out" and t.figures["node"] == "a" for t in failed)
    assert sum(t.state == "complete" for t in trials) > len(failed)


def test_time_that_is_over_ends_it_and_keeps_what_is_out(run: Run, lines: Workload) -> None:
    cluster = Answering({"a": HERE}, answered)
    crew = crew_of(run, cluster, lines)
    crew.search(lambda: 1.0 if len(crew.study.trials) < 4 else -1.0, lambda text: None)
    assert 1 < len(crew.study.trials) < len(list(SPACE.grid()))
    kept = {Trial.from_record(r).candidate for r in run.records("trial")}
    assert {c for _, do, c in cluster.asked if do == "measure"} <= kept


# -- errands and parcels, really -----------------------------------------------------------------------


def test_an_errand_in_a_process_of_its_own_tells_what_it_cost(
    small: Artifact, home_with_engines: Path
) -> None:
    job = {"version": __version__, "threads": {}, "nice": 0, "do": "greet", "engines": ["llamacpp"]}
    answer = json.loads(carried_out(json.dumps(job)))
    assert answer["machine"] == fingerprint()
    assert answer["engines"] == versions()
    assert answer["cpu_s"] > 0
    assert answer["energy"]["value_j"] > 0
    other = json.loads(carried_out(json.dumps({**job, "version": "0.0.0"})))
    assert "the search 0.0.0" in other["error"]


def test_a_model_is_found_by_its_hash_or_arrives_by_pieces(small: Artifact, fresh_home: Path) -> None:
    parcel = Parcel.from_json(json.loads(json.dumps(Parcel.of(small).to_json())))
    there = parcel.found()
    assert there is not None
    assert there.sha256 == small.sha256
    hidden = replace(parcel, path="/nowhere")
    assert hidden.found() is not None, "what was hashed once is known"
    shutil.rmtree(fresh_home)
    assert hidden.found() is None
    delivery = delivery_name()
    for name, offset, data in parcel.pieces():
        hidden.accept(delivery, name, offset, data)
    hidden.seal(delivery)
    received = hidden.found()
    assert received is not None
    assert received.sha256 == small.sha256
    assert received.path.is_relative_to(fresh_home)
    assert not list((fresh_home / "cache" / "received").glob(".*-*")), "nothing half-written stays behind"


def test_what_arrives_damaged_or_under_a_foreign_name_is_refused(small: Artifact, fresh_home: Path) -> None:
    parcel = replace(Parcel.of(small), path="/nowhere")
    delivery = delivery_name()
    with pytest.raises(IntegrityError, match="has no file"):
        parcel.accept(delivery, "../escape", 0, b"x")
    name = next(iter(parcel.files))
    with pytest.raises(IntegrityError, match="longer than"):
        parcel.accept(delivery, name, parcel.files[name][1], b"more")
    for name, offset, data in Parcel.of(small).pieces():
        parcel.accept(delivery, name, offset, bytes(len(data)))
    with pytest.raises(IntegrityError):
        parcel.seal(delivery)
    assert parcel.found() is None
    with pytest.raises(IntegrityError, match="names"):
        Parcel.from_json({**parcel.to_json(), "files": {"/etc/passwd": ["0" * 64, 1]}})


def test_scores_and_looks_come_back_as_they_went() -> None:
    quality = Quality("accuracy", {"a": 1.0, "b": 0.0}, {"a": 2.0}, margins={"a": 0.5})
    assert scores_from(json.loads(json.dumps(scores_json(quality)))) == quality
    look = Look(1.0, 0.5, 7, 0.1, 2.0, (3.0, 4.0))
    assert look_from(json.loads(json.dumps(look_json(look)))) == look
    assert scores_from(scores_json(None)) is look_from(look_json(None)) is None


def test_a_workload_travels_as_its_files(lines: Workload, fresh_home: Path) -> None:
    bare = replace(lines, description="", source="")
    assert Letter.of(bare).opened().hash == lines.hash
    with pytest.raises(IntegrityError, match="not the workload"):
        Letter("1" * 64, Letter.of(bare).files).opened()


@pytest.mark.parametrize("address", ["nonsense", "http://127.0.0.1:1", "127.0.0.1:port"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="a Ray cluster is auto"):
        Cluster(address)


def test_an_address_where_nothing_answers_leaves_no_run(
    small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    with pytest.raises(ClusterError, match="nothing answers at 127"):
        tune(small, lines, space=SPACE, ray="127.0.0.1:1", path=tmp_path / "run")
    assert not (tmp_path / "run").exists()
