"""``negawatt tune --watch``: search anew when what is asked has changed so far that it pays."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from negawatt.cli.common import Progress, emit, progress_bar, say
from negawatt.cli.settings import seconds
from negawatt.errors import RunError, UsageError

if TYPE_CHECKING:
    from negawatt.run import Run
    from negawatt.tuning.observed import Observed
    from negawatt.tuning.watch import Watch

LATEST_S = 86_400.0
"""Receipts that are looked at: those of the day before the last."""


def keep_watch(models: tuple[str, ...], options: dict[str, Any], as_json: bool) -> None:
    """Look, wait, look again; ends after ``--checks`` looks, or never.

    Raises:
        UsageError: ``--from`` does not name the search whose choice runs today.
    """
    from negawatt.artifact import Artifact
    from negawatt.tuning.watch import Watch
    from negawatt.workload import Workload

    if click.get_current_context().get_parameter_source("store") is ParameterSource.COMMANDLINE:
        raise UsageError("--store keeps one search by the name of its folder, and --watch begins several")
    options = {**options, "store": None}
    chosen, checks, pause_s = options["origin"], options["checks"], seconds(options["every"])
    if chosen is None:
        raise UsageError("--watch needs --from RUN, the search whose choice runs today")
    if len(models) > 1 or (checks is not None and checks < 1):
        raise UsageError("--watch takes one model, and at least one of --checks")
    artifact, workload = Artifact.open(models[0]), Workload.open(options["workload"])
    _receipts(options["receipts"])  # before anything is written
    with _run(options["output"], artifact.name, chosen) as run, progress_bar("watch") as progress:
        watch = Watch(
            run, artifact, workload, chosen, horizon_days=options["horizon"],
            tick=lambda text: progress(0, None, text),
        )  # fmt: skip
        done = 0
        while True:
            _look(watch, _receipts(options["receipts"]), options, progress, as_json)
            done += 1
            if done == checks:
                return
            progress(0, None, f"next look in {options['every']}")
            time.sleep(pause_s)


def _run(path: Path | None, model: str, chosen: Path) -> Run:
    """The run of this watch: a new one, or that of an earlier sitting.

    Raises:
        RunError: the folder holds something else, or is in use.
    """
    from negawatt.run import Run, is_run

    if path is None or not is_run(path):
        return Run.create("watch", path=path, artifact={"name": model}, first=str(chosen))
    run = Run.open(path, kind="watch")
    if run.manifest.get("first") != str(chosen):
        raise RunError(f"{path} watches over {run.manifest.get('first')}; choose another folder")
    run.lock()
    return run


def _receipts(source: str) -> Observed:
    """What a file of receipts tells, or those in a server's database."""
    from negawatt.tuning.observed import Observed

    if source.endswith(".csv"):
        return Observed.read(Path(source), LATEST_S)
    from negawatt.database import Database
    from negawatt.serve.keys import server_secret
    from negawatt.serve.ledger import ReceiptLedger
    from negawatt.serve.ledger_export import export

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "receipts.csv"
        export(ReceiptLedger(Database(source), server_secret(None)), target)
        return Observed.read(target, LATEST_S)


def _look(
    watch: Watch, observed: Observed, options: dict[str, Any], progress: Progress, as_json: bool
) -> None:
    """One look, and the search that it calls for."""
    finding = watch.check(observed)
    if not as_json:
        say(f"{time.strftime('%Y-%m-%d %H:%M')}  {finding.text}.")
    result = _searched(watch, observed, options, progress) if finding.due else None
    if as_json:
        emit({**finding.to_json(), "search": result})
    elif result is not None:
        from negawatt.cli.tune import tell

        tell(result, several=bool(options["objectives"]))


def _searched(
    watch: Watch, observed: Observed, options: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    from negawatt.cli.tune import asked_of, told
    from negawatt.tuning import tune

    path = watch.run.path / f"search-{1 + sum(1 for _ in watch.run.records('search'))}"
    asked = asked_of({**options, "origin": None}, watch.asked(observed)) | {"path": path}
    result = tune(
        watch.artifact, watch.workload, **asked, command=["negawatt", *sys.argv[1:]],
        progress=progress, told=told,
    )  # fmt: skip
    watch.adopt(path, observed, accepted=bool(result["verdict"]["accepted"]))
    return result
