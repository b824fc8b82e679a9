"""``negawatt carbon``: from a measurement's joules to what people report."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import click

from negawatt.carbon import BOUNDARIES, GRAMS, Amount, Band, Contract, Factor, Ledger, Tariff
from negawatt.cli.common import emit, examples, json_option
from negawatt.energy import Energy
from negawatt.errors import UsageError


@dataclass(frozen=True)
class Work:
    """What a measurement's document says of the work.

    Attributes:
        energy: joules charged to it.
        boundary: where they were counted.
        duration_s: how long it took.
    """

    energy: Energy
    boundary: str
    duration_s: float


def moment(text: str) -> datetime:
    """A time with a time zone."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as exc:
        raise click.BadParameter(f"expected a time such as 2026-03-01T14:00Z, not {text!r}") from exc
    if found.tzinfo is None:
        raise click.BadParameter(f"{text} has no time zone; add Z or an offset such as +01:00")
    return found


def price(text: str) -> Tariff:
    """A currency and what a kWh costs in it."""
    match = re.fullmatch(r"([A-Za-z]{3}):(-?\d+(?:\.\d+)?)", text)
    if match is None:
        raise click.BadParameter(f"expected a price of a kWh such as EUR:0.30, not {text!r}")
    return Tariff(float(match[2]), match[1].upper())


def hours(text: str) -> Band:
    """Hours of the day with a price of their own."""
    match = re.fullmatch(r"([0-2]\d:[0-5]\d)-([0-2]\d:[0-5]\d)=(-?\d+(?:\.\d+)?)", text)
    if match is None or max(match[1], match[2]) >= "24":
        raise click.BadParameter(f"expected hours and a price such as 22:00-06:00=0.18, not {text!r}")
    return Band(float(match[3]), time.fromisoformat(match[1]), time.fromisoformat(match[2]))


def contract(text: str) -> Contract:
    """A share of the energy and what the contract for it says a kWh emitted."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%=(\d+(?:\.\d+)?)", text)
    if match is None or float(match[1]) > 100:
        raise click.BadParameter(f"expected a share and grams a kWh such as 60%=0, not {text!r}")
    rate = Factor.exact(float(match[2]), f"{GRAMS}/kWh", f"contract for {match[1]} %")
    return Contract(float(match[1]) / 100, rate, f"contract {text}")


_RATIO = click.FloatRange(1, 100)
_RATE = click.FloatRange(0, 1000)


@click.command(
    epilog=examples(
        "negawatt carbon spent.json --intensity DE",
        "negawatt carbon spent.json --intensity csv:grid.csv --start 2026-03-01T14:00+01:00",
        "negawatt carbon spent.json --host-factor 1.3 --psu-efficiency 0.9 --pue 1.2 --wue 1.8 --ewif 3.1",
        "negawatt carbon spent.json --intensity FR --embodied-kg 300 --tokens 5000 --json",
        "negawatt carbon spent.json --intensity DE --contract 60%=0",
        "negawatt carbon spent.json --price EUR:0.30 --band 22:00-06:00=0.18 --time-zone Europe/Berlin "
        "--start 2026-03-01T21:00+01:00",
    )
)
@json_option
@click.option(
    "--intensity",
    metavar="SOURCE",
    help="Average intensity: a country for its yearly figure; or csv:FILE, british, electricity-maps:ZONE, "
    "which need --start. The last two ask a service over the network.",
)
@click.option(
    "--contract",
    "contracts",
    type=contract,
    metavar="SHARE%=GRAMS",
    multiple=True,
    help="A certificate or contract and its grams a kWh, such as 60%=0: adds the market-based figure, with "
    "--intensity for the rest; repeatable.",
)
@click.option("--marginal", metavar="REGION", help="Also ask WattTime for the marginal sensitivity.")
@click.option("--start", type=moment, metavar="TIME", help="When the work began, with a time zone.")
@click.option("--host-factor", type=_RATIO, help="What the whole machine draws over its chips.")
@click.option("--psu-efficiency", type=click.FloatRange(0.1, 1), help="Of the power supply.")
@click.option("--pue", type=_RATIO, help="Power usage effectiveness of the site.")
@click.option("--wue", type=_RATE, help="Litres the site uses a kWh of its machines.")
@click.option("--ewif", type=_RATE, help="Litres that generating a kWh uses.")
@click.option("--embodied-kg", type=click.FloatRange(0), help="Kilograms of CO₂e from making the machine.")
@click.option(
    "--lifespan-years", type=click.FloatRange(0.1, 50), default=4.0, show_default=True, help="Of the machine."
)
@click.option(
    "--machine-share",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="How much of the machine was reserved for the work.",
)
@click.option(
    "--tokens", type=click.IntRange(1), help="Tokens made: adds SCI for AI, a consumer's, per token."
)
@click.option(
    "--price", "tariff", type=price, metavar="CURRENCY:PRICE", help="Price of a kWh, such as EUR:0.30."
)
@click.option(
    "--band",
    "bands",
    type=hours,
    metavar="HH:MM-HH:MM=PRICE",
    multiple=True,
    help="Hours with another price; repeatable.",
)
@click.option("--time-zone", default="UTC", show_default=True, help="Of the bands.")
@click.argument("measurement", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def command(
    measurement: Path, as_json: bool, start: datetime | None, tariff: Tariff | None, **options: Any
) -> None:
    """Turn MEASUREMENT, written by `negawatt measure --output`, into carbon, water and cost.

    The ledger says up to which boundary the energy is known: only factors that are given are applied.
    Everything else counts what is known there. Keys come from the environment:
    ELECTRICITY_MAPS_API_KEY; WATTTIME_USER and WATTTIME_PASSWORD.
    """
    work = _read(measurement)
    end = None if start is None else start + timedelta(seconds=work.duration_s)
    ledger = _ledger(work, options)
    amounts = _emissions(work, ledger, start, end, options)
    amounts |= _water(ledger, options)
    if tariff is not None:
        amounts["cost"] = _cost(ledger, tariff, start, end, options)
    elif options["bands"]:
        raise UsageError("--band changes a price; give the usual one with --price")
    if as_json:
        emit({"ledger": ledger.to_json(), **{name: amount.to_json() for name, amount in amounts.items()}})
        return
    click.echo(str(ledger))
    for name, amount in amounts.items():
        click.echo(f"{name.replace('_', ' ')}: {amount}" + (f" [{amount.reason}]" if amount.reason else ""))


def _read(file: Path) -> Work:
    try:
        document = json.loads(file.read_text("utf-8"))
        energy = Energy.from_json(document["energy"])
        boundary, duration_s = str(document["boundary"]), float(document["duration_s"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise UsageError(
            f"{file} is no measurement: expected what negawatt measure --output writes ({exc})"
        ) from exc
    if boundary not in BOUNDARIES:
        raise UsageError(f"{file}: expected one of {', '.join(BOUNDARIES)}, not {boundary!r}")
    return Work(energy, boundary, duration_s)


def _ledger(work: Work, options: dict[str, Any]) -> Ledger:
    from negawatt.carbon import given_pue, ledger

    factors: dict[Any, Factor] = {}
    if (host := options["host_factor"]) is not None:
        factors["host"] = Factor.estimated(host, host, host, "1", f"host factor {host:g} as stated")
    if (efficiency := options["psu_efficiency"]) is not None:
        supply = 1 / efficiency
        factors["wall"] = Factor.estimated(
            supply, supply, supply, "1", f"efficiency {efficiency:g} as stated"
        )
    if options["pue"] is not None:
        factors["facility"] = given_pue(options["pue"])
    names = {"host": "--host-factor", "wall": "--psu-efficiency", "facility": "--pue"}
    here = BOUNDARIES.index(work.boundary)
    for position, boundary in enumerate(BOUNDARIES):
        if boundary not in factors:
            continue
        if position <= here:
            raise UsageError(
                f"{names[boundary]} is in the figure already: it was counted at the {work.boundary}"
            )
        for between in BOUNDARIES[here + 1 : position]:
            if between not in factors:
                raise UsageError(
                    f"{names[boundary]} multiplies what is drawn at the {BOUNDARIES[position - 1]}, and the "
                    f"energy was counted at the {work.boundary}; give {names[between]} too (1 adds nothing)"
                )
    return ledger({work.boundary: work.energy}, factors)  # type: ignore[dict-item]


def _emissions(
    work: Work, ledger: Ledger, start: datetime | None, end: datetime | None, options: dict[str, Any]
) -> dict[str, Amount]:
    from negawatt.carbon import YEAR_S, embodied, location_based, marginal, market_based, sci_for_ai
    from negawatt.carbon.sources import intensity_from_text

    amounts: dict[str, Amount] = {}
    making = Amount.missing(GRAMS, "what making the machine emitted was not given (--embodied-kg)")
    if (kg := options["embodied_kg"]) is not None:
        making = amounts["embodied"] = embodied(
            Amount.estimated(kg * 1000, kg * 1000, kg * 1000, GRAMS, "making of the machine as stated"),
            reserved_s=work.duration_s,
            lifespan_s=options["lifespan_years"] * YEAR_S,
            resources=options["machine_share"],
        )
    if options["intensity"] is not None:
        intensity = intensity_from_text(options["intensity"], start, end)
        amounts["location_based"] = location_based(ledger.total, intensity)
        if options["contracts"]:
            amounts["market_based"] = market_based(ledger.total, options["contracts"], intensity)
        if (tokens := options["tokens"]) is not None:
            amounts["sci_for_ai"] = sci_for_ai(
                "consumer", ledger.total, intensity, making, tokens, "token"
            ).rate
    elif options["tokens"] is not None or options["contracts"]:
        raise UsageError("--tokens and --contract need the grid's average too: --intensity")
    if options["marginal"] is not None:
        sensitivity = intensity_from_text(f"watttime:{options['marginal']}", start, end)
        amounts["marginal_sensitivity"] = marginal(ledger.total, sensitivity)
    return amounts


def _water(ledger: Ledger, options: dict[str, Any]) -> dict[str, Amount]:
    from negawatt.carbon import LITRES, site_water, source_water

    amounts = {}
    # IT energy is what the machines draw at the wall, or as far out as it is known short of the site.
    inner = [
        line.total for line in ledger.lines if "facility" not in line.covers and not line.total.is_missing
    ]
    if inner:
        it = inner[-1]
    elif ledger.boundary is None:
        it = ledger.total  # missing, with its reason
    else:
        it = Energy.missing("the energy of the machines is not told apart from the site's")
    if (wue := options["wue"]) is not None:
        rate = Factor.estimated(wue, wue, wue, f"{LITRES}/kWh", f"WUE {wue:g} as stated")
        amounts["site_water"] = site_water(it, rate)
    if (ewif := options["ewif"]) is not None:
        rate = Factor.estimated(ewif, ewif, ewif, f"{LITRES}/kWh", f"EWIF {ewif:g} as stated")
        amounts["source_water"] = source_water(ledger.total, rate)
    if len(amounts) == 2:
        amounts["water"] = amounts["site_water"] + amounts["source_water"]
    return amounts


def _cost(
    ledger: Ledger, usual: Tariff, start: datetime | None, end: datetime | None, options: dict[str, Any]
) -> Amount:
    from negawatt.carbon import cost

    tariff = Tariff(usual.price, usual.currency, options["bands"], options["time_zone"])
    return cost(ledger.total, tariff, start, end)
