"""Making a server from its configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from negawatt.artifact import Artifact
from negawatt.database import Database, default_url
from negawatt.errors import UsageError
from negawatt.meter import station
from negawatt.serve.account import Account
from negawatt.serve.cascade import Cascade
from negawatt.serve.config import ModelConfig, ServerConfig, tuned_settings
from negawatt.serve.footprint import Footprint
from negawatt.serve.gate import KeyGate
from negawatt.serve.grid import Grid
from negawatt.serve.keys import Keys, server_secret
from negawatt.serve.ledger import ReceiptLedger
from negawatt.serve.model import ServedModel
from negawatt.serve.options import ModelOptions
from negawatt.serve.receipt import Receipt
from negawatt.serve.redact import PatternRedactor
from negawatt.serve.server import Server

_log = logging.getLogger("negawatt.serve.launch")


def server_of(config: ServerConfig) -> Server:
    """The server that a configuration describes, not started yet.

    Raises:
        UsageError: the configuration does not hold.
        NegawattError: a model or the database cannot be opened.
    """
    config.check()
    footprint = config.footprint()
    database = Database(config.database or default_url())
    secret = server_secret(None if config.secret_file is None else Path(config.secret_file))
    keys = Keys(database, secret) if config.needs_keys else None
    if keys is not None and not keys.all():
        raise UsageError("there is no key yet, so nobody could ask; make one: negawatt keys create NAME")
    account = Account(database, ReceiptLedger(database, secret))
    gate = KeyGate(keys, account, intensity=footprint.intensity_now)
    server = Server([], gate, PatternRedactor() if config.redact else None)
    for chosen in config.models:
        model = served(chosen, server.charge, footprint)
        if model.name in server.models:
            raise UsageError(f"two models are called {model.name}; give one of them another name")
        server.add(model)
    _refuse_limits(server, config)
    _tell_uncounted(server)
    name_more(server, config)
    return server


def name_more(server: Server, config: ServerConfig) -> None:
    """Serve the cascades and ecos of a configuration, whose models are served already.

    Raises:
        UsageError: one does not hold, or names what is not there or there already.
    """
    for cascade in config.cascades:
        small, large = (_of_name(server, name, cascade.name) for name in (cascade.small, cascade.large))
        _refuse_taken(server, cascade.name)
        server.cascades[cascade.name] = Cascade.of(cascade, small, large)
    for eco in config.ecos:
        if any(_of_name(server, name, eco.name).pooling is not None for name in eco.models):
            raise UsageError(f"{eco.name} needs models that write text: vectors of two cannot be compared")
        _refuse_taken(server, eco.name)
        server.ecos[eco.name] = eco
    server.grid = Grid(config.footprint().intensity)


def _refuse_limits(server: Server, config: ServerConfig) -> None:
    """
    Raises:
        UsageError: models are to run with limits that cannot be held, for a limit is the whole machine's.
    """
    wanted = {model.options.settings.limits: name for name, model in server.models.items()}
    if not any(wanted):
        return
    if len(wanted) > 1:
        told = ", ".join(f"{name} with {limits}" for limits, name in wanted.items())
        raise UsageError(f"a power cap or clock holds for all models of a machine, which differ: {told}")
    if config.ray is not None or config.handover is not None:
        option = "--ray" if config.ray is not None else "--handover"
        raise UsageError(f"one process of a machine can hold a power cap or clock: serve without {option}")


def _tell_uncounted(server: Server) -> None:
    """Say in the log whose receipts hold a part of the joules only: nothing counts the device's."""
    for model in server.models.values():
        settings = model.options.settings
        if settings.device == "cpu" or settings.gpu_layers == 0:
            continue
        if not any(name.startswith("gpu/") for name in station().totals()):
            _log.warning(
                "no counter measures the %s device of %s: receipts hold the processor's joules alone",
                settings.device, model.name,
            )  # fmt: skip


def _of_name(server: Server, name: str, whose: str) -> ServedModel:
    if name not in server.models:
        raise UsageError(f"{whose} names {name}, but the models are {', '.join(sorted(server.models))}")
    return server.models[name]


def _refuse_taken(server: Server, name: str) -> None:
    if name in server.names:
        raise UsageError(f"two things are called {name}; give one of them another name")


def served(chosen: ModelConfig, charge: Callable[[Receipt], None], footprint: Footprint) -> ServedModel:
    """The model that a configuration describes, not loaded yet.

    Raises:
        NegawattError: it cannot be opened or run so.
    """
    artifact, prepared, options = _opened(chosen)
    name = chosen.name or artifact.name
    return ServedModel(name, artifact, options, charge, footprint, prepared=prepared)


def _opened(chosen: ModelConfig) -> tuple[Artifact, Path | None, ModelOptions]:
    """The artifact, what its engine made of it where ``negawatt tune`` kept that, and how to run it."""
    artifact = Artifact.open(chosen.place())
    tuned = tuned_settings(artifact.path) if artifact.path.is_dir() else None
    embeds = artifact.pooling(chosen.pooling or "default") is not None
    options = chosen.options(tuned, embeds=embeds)
    made = artifact.path / options.settings.engine
    fits = tuned is not None and options.settings.weight_format == tuned["weight_format"]
    return artifact, made if fits and made.is_dir() else None, options
