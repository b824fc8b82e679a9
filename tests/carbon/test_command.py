"""``negawatt carbon`` on a measurement's document."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from negawatt.cli.carbon import command
from negawatt.errors import UsageError

KWH = {"value_j": 3.6e6, "low_j": 1.8e6, "high_j": 7.2e6, "provenance": "estimated", "reason": None}


@pytest.fixture
def spent(tmp_path: Path) -> Path:
    """What ``negawatt measure --output`` writes, as far as it is read: 1 kWh within an hour."""
    file = tmp_path / "spent.json"
    file.write_text(json.dumps({"energy": KWH, "boundary": "chip", "duration_s": 3600.0}))
    return file


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def document(*words: object) -> dict:  # type: ignore[type-arg]
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    loaded: dict = json.loads(done.stdout)  # type: ignore[type-arg]
    return loaded


def test_from_chip_to_site_with_everything(spent: Path) -> None:
    said = document(
        spent, "--host-factor", 1.25, "--psu-efficiency", 0.8, "--pue", 1.6, "--wue", 2, "--ewif", 3,
        "--intensity", "FR", "--embodied-kg", 350.64, "--tokens", 1000, "--price", "eur:0.5",
    )  # fmt: skip
    kwh = 1.25 / 0.8 * 1.6
    assert said["ledger"]["boundary"] == "facility"
    assert said["ledger"]["total"]["value_j"] == pytest.approx(kwh * 3.6e6)
    added = [line["added"]["value_j"] for line in said["ledger"]["lines"]]
    assert sum(added) == pytest.approx(kwh * 3.6e6)
    assert said["location_based"]["value"] == pytest.approx(kwh * 56.0)
    assert said["water"]["value"] == pytest.approx(kwh / 1.6 * 2 + kwh * 3)
    assert said["cost"] == said["cost"] | {"unit": "EUR", "provenance": "estimated"}
    assert said["cost"]["value"] == pytest.approx(kwh * 0.5)
    assert said["embodied"]["value"] == pytest.approx(350_640 / (4 * 365.25 * 24))
    assert said["sci_for_ai"]["value"] == pytest.approx((kwh * 56.0 + 10) / 1000)


def test_what_is_not_given_is_not_filled_in(spent: Path) -> None:
    said = document(spent, "--intensity", "SE", "--tokens", 10)
    assert said["ledger"]["boundary"] == "chip"
    assert said["sci_for_ai"]["provenance"] == "missing"
    text = run(spent, "--intensity", "SE").stdout
    assert "boundary drawn at: chip" in text
    assert "Sweden, 2023" in text


def test_market_based_stands_beside_location_based(spent: Path) -> None:
    said = document(spent, "--intensity", "FR", "--contract", "50%=0", "--contract", "25%=100")
    assert said["location_based"]["value"] == pytest.approx(56.0)
    assert said["market_based"]["value"] == pytest.approx(25 + 14)


def test_missing_energy_stays_missing(tmp_path: Path) -> None:
    file = tmp_path / "denied.json"
    nothing = {"value_j": None, "low_j": None, "high_j": None, "provenance": "missing", "reason": "denied"}
    file.write_text(json.dumps({"energy": nothing, "boundary": "chip", "duration_s": 3600.0}))
    said = document(file, "--intensity", "FR", "--price", "EUR:0.3", "--wue", 2)
    assert said["ledger"]["boundary"] is None
    for name in ("location_based", "cost", "site_water"):
        assert said[name]["value"] is None
        assert "denied" in said[name]["reason"]
    assert "not known: denied" in run(file, "--intensity", "FR").stdout


def test_by_the_hour(spent: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.csv"
    grid.write_text("start,g_per_kwh\n2026-03-01T12:00Z,100\n2026-03-01T13:00Z,300\n")
    said = document(
        spent, "--intensity", f"csv:{grid}", "--start", "2026-03-01T12:30Z",
        "--price", "EUR:0.3", "--band", "14:00-18:00=0.1", "--time-zone", "Europe/Berlin",
    )  # fmt: skip
    assert (said["location_based"]["low"], said["location_based"]["value"]) == (50, 200)
    assert said["cost"]["value"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pue", 1.2], "--host-factor"),
        (["--intensity", "csv:grid.csv"], "--start"),
        (["--intensity", "Atlantis"], "Atlantis"),
        (["--tokens", 5], "--intensity"),
        (["--contract", "50%=0"], "--intensity"),
        (["--intensity", "DE", "--contract", "80%=0", "--contract", "40%=0"], "at most 1"),
        (["--band", "22:00-06:00=0.1"], "--price"),
        (["--marginal", "PJM", "--start", "2026-03-01T12:30Z"], "WATTTIME_USER"),
    ],
)
def test_calls_that_cannot_be_meant(
    spent: Path, words: list[object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATTTIME_USER", raising=False)
    done = run(spent, *words)
    assert isinstance(done.exception, UsageError)
    assert says in str(done.exception)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--start", "yesterday"], "expected a time"),
        (["--start", "2026-03-01T12:30"], "no time zone"),
        (["--price", "0.3"], "EUR:0.30"),
        (["--price", "EUR:0.3", "--band", "25:00-06:00=1"], "22:00-06:00"),
        (["--pue", 0.5], "0.5"),
        (["--contract", "120%=0"], "60%=0"),
    ],
)
def test_values_of_the_wrong_kind(spent: Path, words: list[object], says: str) -> None:
    done = run(spent, *words)
    assert done.exit_code == 2
    assert says in done.stderr


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"energy": 3}', json.dumps({"energy": KWH, "boundary": "rack", "duration_s": 1})],
)
def test_a_file_that_is_no_measurement(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    done = run(file)
    assert isinstance(done.exception, UsageError)
    assert "other.json" in str(done.exception)


def test_a_factor_inside_the_boundary_is_in_the_figure_already(tmp_path: Path) -> None:
    file = tmp_path / "wall.json"
    file.write_text(json.dumps({"energy": KWH, "boundary": "wall", "duration_s": 1.0}))
    done = run(file, "--psu-efficiency", 0.9)
    assert isinstance(done.exception, UsageError)
    assert "already" in str(done.exception)
