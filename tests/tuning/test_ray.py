"""A search on a real Ray cluster on loopback: nodes measure and judge, one of them is killed midway."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ray_machines
from negawatt import report
from negawatt.artifact import Artifact
from negawatt.engine import Settings
from negawatt.meter import fingerprint
from negawatt.run import Run
from negawatt.tuning import Constraints, Space, tune
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.cluster import Cluster, ClusterError, Node, NodeLost
from negawatt.tuning.parcel import Parcel
from negawatt.tuning.trial import Trial
from negawatt.workload import Workload

BASELINE = Settings(engine="llamacpp", weight_format="f16", threads=1, max_context=96)
SPACE = Space(
    ("llamacpp",), (1, 4), (1,), 96, {"llamacpp": ("q8_0", "q4_0", "iq4_nl")},
    kv_caches={"llamacpp": ("default",)}, speculation=("none",),
)  # fmt: skip
"""Four at once with fewer bytes cost so much less than the baseline that no disturbed pair hides it."""


@pytest.fixture(scope="module")
def machines(home_with_engines: Path) -> Iterator[Any]:
    """A cluster whose head is a node, to which a node like it and one with a single core are added."""
    environment = {
        "NEGAWATT_HOME": str(home_with_engines),
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "3",
    }
    with ray_machines.machines(environment) as made:
        yield made


def with_one_core(machines: Any) -> None:
    """Add a node that is another kind of machine: its processes may use one core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        machines.add_node(num_cpus=1, **ray_machines.SMALL)
    finally:
        os.sched_setaffinity(0, before)


class Killer(threading.Thread):
    """Kills a node while it is at its second errand."""

    def __init__(self, machines: Any, path: Path) -> None:
        super().__init__(daemon=True)
        self.machines, self.path = machines, path
        self.node = machines.add_node(num_cpus=2, **ray_machines.SMALL)
        self.name = self.node.node_id[:12]
        self.killed = False

    def run(self) -> None:
        end = time.monotonic() + 240
        while time.monotonic() < end and not self.killed:
            time.sleep(0.1)
            if not (self.path / "records.jsonl").exists():
                continue
            done = [r for r in Run.open(self.path).records("errand") if r["do"] == "measure"]
            if any(record["node"] == self.name for record in done):
                self.killed = True
                self.machines.remove_node(self.node, allow_graceful=False)


def test_a_search_on_nodes_one_of_which_is_killed_midway(
    machines: Any, small: Artifact, lines: Workload, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with_one_core(machines)
    killer = Killer(machines, path)
    killer.start()
    result = tune(
        small, lines, space=SPACE, baseline=BASELINE, constraints=Constraints(max_quality_drop=0.9),
        time_budget_s=240, strategy="grid", ray=machines.address, path=path,
    )  # fmt: skip
    killer.join()
    assert killer.killed
    run = Run.open(path, kind="tune")
    trials = [Trial.from_record(r) for r in run.records("trial") if r["stage"] == "search"]
    tried = [t.candidate for t in trials]
    assert sorted(map(str, tried)) == sorted(map(str, {Candidate(BASELINE), *SPACE.grid()})), "each once"
    assert not [t for t in trials if t.state == "failed"], "what was lost was made elsewhere"
    notes = [r["text"] for r in run.records("note")]
    assert any(f"Node {killer.name} was lost" in text for text in notes), notes
    here = fingerprint()["id"]
    assert {t.figures["machine"] for t in trials} == {here}, "costs are of one kind of machine"
    nodes = {t.figures.get("node") for t in trials}
    assert killer.name in nodes
    assert len(nodes) == 3, "the baseline here, the others on two nodes"
    judges = {r["machine"] for r in run.records("errand") if r["do"] == "judge"}
    assert judges - {here}, "the other machine judged"
    assert not [r for r in run.records("errand") if r["do"] == "measure" and r["machine"] != here]
    assert set(run.manifest["machines"]) == {here} | judges
    assert result["verdict"]["accepted"], result["verdict"]
    search = result["search"]
    errands = list(run.records("errand"))
    assert sum(m["cpu_s"] for m in search["machines"]) == pytest.approx(sum(r["cpu_s"] for r in errands))
    lasting = [r for r in errands if r["node"] != killer.name]  # what outlives its node is nobody's child
    assert all(r["counted"] for r in lasting), "the cluster is this process's child: its meter has them"
    assert report.render(path, "markdown")


def test_a_model_is_sent_to_a_node_that_has_it_not(machines: Any, small: Artifact, tmp_path: Path) -> None:
    home = tmp_path / "elsewhere"
    machines.add_node(
        num_cpus=1, **ray_machines.SMALL, env_vars={"NEGAWATT_HOME": str(home)},
        resources={"elsewhere": 1},
    )  # fmt: skip
    with Cluster(machines.address) as cluster:
        import ray

        ray.init(address=machines.address, log_to_driver=False)
        chosen = next(n["NodeID"] for n in ray.nodes() if n["Alive"] and "elsewhere" in n["Resources"])
        ray.shutdown()
        node = next(n for n in cluster.nodes() if n.id == chosen)
        parcel = Parcel.of(small)
        cluster.deliver(node, parcel)
        arrived = home / "cache" / "received" / small.sha256
        assert Artifact.open(arrived).sha256 == small.sha256
        Artifact.open(arrived).verify()
        with pytest.raises(ClusterError, match="other content"):
            cluster.deliver(node, replace(parcel, sha256="0" * 64))
        with pytest.raises(NodeLost):
            cluster.deliver(Node("ab" * 28, 1.0), parcel)
        cluster.send(node, json.dumps({"version": "0.0.0"}), "ticket")
        answers: list[Any] = []
        while not answers:
            answers = list(cluster.done(1.0))
        assert answers[0][0] == "ticket"
        assert "the search 0.0.0" in json.loads(answers[0][1])["error"]
