"""``python -m negawatt.tuning.node_worker``: one errand on a node, in a process of its own.

The errand comes as a line of JSON on standard input, the answer goes as one to standard output. The process
has the environment that a search on this machine would have, whatever started it, and ends with its parent.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import Any

from negawatt.errors import EngineError, NegawattError
from negawatt.meter import fingerprint
from negawatt.tuning.attempt import Look
from negawatt.tuning.bench import Bench
from negawatt.tuning.candidate import Candidate
from negawatt.tuning.errand import Brief, look_from, look_json, scores_from, scores_json
from negawatt.tuning.greeting import greeted
from negawatt.tuning.node import alone
from negawatt.tuning.pass_worker import end_with_parent
from negawatt.tuning.trial import Trial
from negawatt.tuning.workshop import Making


def main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    with suppress(OSError):  # what started this process may have stepped back for others; the search did not
        os.setpriority(os.PRIO_PROCESS, 0, job["nice"])
    Thread(target=end_with_parent, daemon=True).start()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not tear our line
    answer: dict[str, Any]
    try:
        answer = done(job)
    except NegawattError as exc:
        answer = {"error": str(exc), "kind": type(exc).__name__}
    except MemoryError:
        answer = {"error": "memory ran out", "kind": "EngineError"}
    answer["own_cpu_s"] = time.process_time()
    with suppress(BrokenPipeError):  # nobody waits any more
        out.write(json.dumps(answer) + "\n")


def done(job: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to an errand.

    Raises:
        NegawattError: this machine cannot do it, whatever the candidate.
    """
    if job["do"] == "greet":
        return greeted(job)
    brief = Brief.from_json(job["brief"])
    models = {name: parcel.found() for name, parcel in brief.models.items()}
    if lacks := [name for name, model in models.items() if model is None]:
        return {"lacks": lacks}
    makings: list[Making] = []
    here = fingerprint()["id"]
    bench = brief.bench(
        {name: model for name, model in models.items() if model is not None}, makings,
        "" if here == brief.machine else here,
    )  # fmt: skip
    answer: dict[str, Any] = {"machine": here}
    try:
        if job["do"] == "judge":
            if known := scores_from(job["known"]):
                bench.judge.scores.teach(brief.baseline, known)
            with alone(exclusive=False):
                _judge_baseline(bench)
                trial = bench.judged(Trial.from_record(job["trial"]), lambda text: None)
            answer["scores"] = scores_json(bench.judge.scores.known(trial.candidate, bench.items))
            answer["trial"] = trial.to_record("search")
        else:
            candidate, earlier = Candidate.from_json(job["candidate"]), look_from(job.get("earlier"))
            with alone(exclusive=False), suppress(EngineError):  # the trial says what is wrong
                bench.judge.workshop.artifact(candidate)  # passes measure nothing, and may take long
            with alone(exclusive=True):
                tried = (
                    bench.look(candidate)
                    if job["do"] == "look"
                    else bench.measure(candidate, job["foreseen"], earlier)
                )
            if isinstance(tried, Look):
                answer["look"] = look_json(tried)
            else:
                answer["trial"] = tried.to_record("search")
    finally:
        bench.judge.scores.close()
    answer["makings"] = [making.to_record() for making in makings]
    return answer


def _judge_baseline(bench: Bench) -> None:
    """Judge what candidates are compared with, lest they be blamed for it.

    Raises:
        NegawattError: it cannot be judged here.
    """
    try:
        bench.judge.scores.quality(bench.judge.baseline, bench.items)
    except NegawattError as exc:
        raise NegawattError(f"it cannot judge what runs today: {exc}") from exc


if __name__ == "__main__":
    main()
