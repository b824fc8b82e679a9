"""`ServerConfig`: what is served, where, and to whom; from TOML, the environment and the command line."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from negawatt.carbon import CsvIntensity, IntensitySource, Tariff, yearly
from negawatt.carbon.amount import Factor
from negawatt.engine import Settings
from negawatt.engine.backends import accelerator_of
from negawatt.errors import UsageError
from negawatt.serve.cascade import CascadeConfig
from negawatt.serve.eco import Eco
from negawatt.serve.footprint import Footprint, litres_a_kwh
from negawatt.serve.options import ModelOptions

PREFIX = "NEGAWATT_SERVE_"
_NOT_PLAIN = ("models", "cascades", "ecos", "source")
_BOUNDS = re.compile(r"(\d{1,6})(?:\.\.(\d{1,6}))?")
_PRICE = re.compile(r"([A-Za-z]{3}):(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model to serve.

    Attributes:
        artifact: a name of the catalogue, a folder or file, hf:org/name, or what ``negawatt tune`` made.
        name: by which clients ask for it; by default the artifact's own.
        engine, weights, threads, batch, max_context, kv_cache, flash_attention, pooling, device: see
            `Settings`. What a tuned artifact says is the default.
        gpu_layers: likewise; with it alone the device is the engine's own kind of accelerator.
        power_cap_w, clock_mhz: likewise; 0 is none, whatever the artifact says.
        kv_tokens, step_tokens, prefix_cache, queue_limit, wait_s, deadline_s, stall_s, sleep_s, warm_up: see
            `ModelOptions`.
        chat_template: file of a Jinja template in place of the model's own.
    """

    artifact: str
    name: str | None = None
    engine: str | None = None
    weights: str | None = None
    threads: int | None = None
    batch: int | None = None
    max_context: int | None = None
    kv_cache: str | None = None
    flash_attention: bool | None = None
    pooling: str | None = None
    device: str | None = None
    gpu_layers: int | None = None
    power_cap_w: float | None = None
    clock_mhz: int | None = None
    kv_tokens: int | None = None
    step_tokens: int | None = None
    prefix_cache: bool | None = None
    queue_limit: int | None = None
    wait_s: float | None = None
    deadline_s: float | None = None
    stall_s: float | None = None
    sleep_s: float | None = None
    warm_up: bool | None = None
    chat_template: str | None = None

    def place(self) -> str:
        """The artifact itself, where this names a run of ``negawatt tune``."""
        inside = Path(self.artifact).expanduser() / "artifact" / "settings.json"
        return str(inside.parent) if inside.is_file() else self.artifact

    def options(self, tuned: Mapping[str, Any] | None, *, embeds: bool = False) -> ModelOptions:
        """How to run it.

        Args:
            tuned: the settings that lie beside a tuned artifact.
            embeds: whether it turns texts into vectors.

        Raises:
            UsageError: a value is impossible.
        """
        usual = "transformers" if embeds else "llamacpp"
        base = Settings.from_json(tuned) if tuned is not None else Settings(usual, batch=8)
        changes: dict[str, Any] = {
            "engine": self.engine,
            "weight_format": self.weights or ("fp32" if self.engine == "transformers" else None),
        }
        for name in (
            "threads", "batch", "max_context", "kv_cache", "flash_attention", "pooling", "device",
            "gpu_layers",
        ):  # fmt: skip
            changes[name] = getattr(self, name)
        if self.gpu_layers is not None and self.device is None and base.device == "cpu":
            changes["device"] = accelerator_of(self.engine or base.engine)
        settings = base.replace(**{name: value for name, value in changes.items() if value is not None})
        for name in ("power_cap_w", "clock_mhz"):
            if (limit := getattr(self, name)) is not None:
                settings = settings.replace(**{name: limit or None})
        names = [f.name for f in dataclasses.fields(ModelOptions) if f.name != "settings"]
        chosen = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.chat_template is not None:
            chosen["chat_template"] = _text_of(Path(self.chat_template).expanduser())
        return ModelOptions(settings, **chosen)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Attributes:
    models: what to serve, at least one.
    cascades, ecos: further names, which stand for several of the models.
    host, port: where to listen.
    keys: whether callers need keys (``negawatt keys create``); None: they do beyond loopback.
    database, secret_file: where keys, budgets and receipts are kept; None: in Negawatt's home.
    files: folder of what is uploaded for batches and written by them; None: in Negawatt's home.
    certificate, private_key: files for TLS.
    behind_proxy: a proxy in front ends TLS, so plain HTTP may leave loopback.
    intensity: a country, or ``csv:FILE``; grams in receipts.
    price: such as ``EUR:0.30`` a kWh; cost in receipts.
    litres_per_kwh: water in receipts.
    redact: whether personal data is struck out of requests before a model sees them.
    traces: address of an OpenTelemetry collector that gets a span of every request; None: nobody does.
    operators: team whose keys may read ``/metrics``, which tells of every team's budgets.
    handover: path at which a server waits for its successor, and finds its predecessor; None: it has neither.
    drain_s: how long requests under way may take to end when the server, or a replica, is told to.
    ray: address of a Ray cluster, ``auto`` or ``HOST:PORT``, whose machines run replicas of the server; None:
        this process is the server.
    replicas: how many, such as ``2``, or ``1..4`` for as many of these as the load is worth.
    scale_wait_s: expected wait beyond which replicas are added.
    waiting_w: joules it is worth to spare a request a second of waiting: what somebody's machine draws that
        waits with them. A replica that draws more than it spares is taken away.
    replica_w: watts of a replica that its receipts do not show, such as those of a machine kept on for it.
    scale_up_s, scale_down_s: so long a reason has to last before replicas are added, or one taken away.
    """

    models: tuple[ModelConfig, ...] = ()
    cascades: tuple[CascadeConfig, ...] = ()
    ecos: tuple[Eco, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    keys: bool | None = None
    database: str | None = None
    secret_file: str | None = None
    files: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    behind_proxy: bool = False
    intensity: str | None = None
    price: str | None = None
    litres_per_kwh: float | None = None
    redact: bool = False
    traces: str | None = None
    operators: str = "operators"
    handover: str | None = None
    drain_s: float = 60.0
    ray: str | None = None
    replicas: str = "1"
    scale_wait_s: float = 2.0
    waiting_w: float = 20.0
    replica_w: float = 0.0
    scale_up_s: float = 5.0
    scale_down_s: float = 60.0
    source: str = field(default="", compare=False)

    @classmethod
    def read(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> ServerConfig:
        """From a TOML file, if there is one, and ``NEGAWATT_SERVE_…`` variables, which go before it.

        Raises:
            UsageError: the file cannot be read, or a value in it or in a variable is wrong (named).
        """
        data: dict[str, Any] = {}
        if file is not None:
            try:
                data = tomllib.loads(file.read_text("utf-8"))
            except (OSError, ValueError) as exc:
                raise UsageError(f"{file} is no TOML that can be read: {exc}") from exc
        where = str(file or "")
        parsed = tuple(_made(ModelConfig, table, at) for table, at in _tables(data, "model", where))
        cascades = tuple(_made(CascadeConfig, table, at) for table, at in _tables(data, "cascade", where))
        ecos = tuple(Eco.of_toml(table, at) for table, at in _tables(data, "eco", where))
        own = {f.name: f for f in dataclasses.fields(cls) if f.name not in _NOT_PLAIN}
        for name, value in environment.items():
            if name.startswith(PREFIX) and (key := name.removeprefix(PREFIX).lower()) in own:
                data[key] = _of_text(str(own[key].type), value, name)
        made: ServerConfig = _made(cls, data, where)
        return dataclasses.replace(made, models=parsed, cascades=cascades, ecos=ecos, source=where)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_keys(self) -> bool:
        return not self.on_loopback if self.keys is None else self.keys

    @property
    def replica_bounds(self) -> tuple[int, int]:
        """The least and the most replicas.

        Raises:
            UsageError: they are no such numbers.
        """
        match = _BOUNDS.fullmatch(self.replicas)
        least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= least <= most:
            raise UsageError(f"expected replicas such as 2 or 1..4, not {self.replicas!r}")
        return least, most

    def check(self) -> None:
        """
        Raises:
            UsageError: no model, two of one name, or others could listen to it or use it unasked.
        """
        if not self.models:
            raise UsageError("name at least one model to serve")
        if self.replica_bounds != (1, 1) and self.ray is None:
            raise UsageError("replicas run on a Ray cluster; give its address: --ray auto or HOST:PORT")
        if self.ray is not None and self.handover is not None:
            raise UsageError("replicas cannot be handed over; leave out --handover")
        if (self.certificate is None) != (self.private_key is None):
            raise UsageError("TLS needs both a certificate and a private key")
        if self.on_loopback:
            return
        if not self.needs_keys:
            raise UsageError(
                f"{self.host} can be reached by others, and without keys anybody could use the server; "
                "make keys (negawatt keys create), or serve on 127.0.0.1"
            )
        if self.certificate is None and not self.behind_proxy:
            raise UsageError(
                f"{self.host} can be reached by others, and without TLS they could read keys and prompts; "
                "give --certificate and --private-key, or say --behind-proxy where a proxy does TLS"
            )

    def footprint(self) -> Footprint:
        """What turns joules into grams, litres and money.

        Raises:
            UsageError: an intensity or a price of unknown form.
        """
        found: Factor | IntensitySource | None = None
        if self.intensity is not None:
            kind, _, where = self.intensity.partition(":")
            if kind == "csv":
                found = CsvIntensity(Path(where))
            elif where or kind == "british":
                raise UsageError(
                    f"the server asks nobody on the network; expected a country or csv:FILE as intensity, "
                    f"not {self.intensity!r}"
                )
            else:
                found = yearly(self.intensity)
        tariff = None
        if self.price is not None:
            match = _PRICE.fullmatch(self.price)
            if match is None:
                raise UsageError(f"expected a price of a kWh such as EUR:0.30, not {self.price!r}")
            tariff = Tariff(float(match[2]), match[1].upper())
        litres = None if self.litres_per_kwh is None else litres_a_kwh(self.litres_per_kwh)
        return Footprint(found, litres, tariff)


def tuned_settings(folder: Path) -> dict[str, Any] | None:
    """The ``settings.json`` beside a tuned artifact, or None.

    Raises:
        UsageError: it cannot be read.
    """
    file = folder / "settings.json"
    if not file.is_file():
        return None
    try:
        data = json.loads(file.read_text("utf-8"))
        if not isinstance(data, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as exc:
        raise UsageError(f"{file} cannot be read: {exc}") from exc
    return data


def _tables(data: dict[str, Any], name: str, where: str) -> list[tuple[dict[str, Any], str]]:
    """The tables ``[[name]]``, taken out, each with where it stands."""
    tables = data.pop(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{where}: expected tables [[{name}]]")
    return [(table, f"{where} [[{name}]]") for table in tables]


def _text_of(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError) as exc:
        raise UsageError(f"{file} is no chat template that can be read: {exc}") from exc


def _made(kind: Any, data: Mapping[str, Any], where: str) -> Any:
    """A record from a TOML table, each value of the kind its field says."""
    known = {f.name: str(f.type) for f in dataclasses.fields(kind) if f.name not in _NOT_PLAIN}
    for name, value in data.items():
        if name not in known:
            raise UsageError(f"{where}: there is no {name}; there are {', '.join(sorted(known))}")
        kinds = {"bool": bool, "int": int, "float": int | float, "str": str}
        wanted = kinds[known[name].removesuffix(" | None")]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise UsageError(f"{where}: expected {name} to be of the kind {known[name]}, not {value!r}")
    try:
        return kind(**data)
    except TypeError as exc:
        raise UsageError(f"{where}: {exc}") from exc


def _of_text(kind: str, text: str, name: str) -> Any:
    """The value of an environment variable."""
    plain = kind.removesuffix(" | None")
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    try:
        if plain == "bool":
            return words[text.lower()]
        return {"int": int, "float": float, "str": str}[plain](text)
    except (KeyError, ValueError) as exc:
        raise UsageError(f"{name}: expected a value of the kind {plain}, not {text!r}") from exc
