"""From joules to what people report: carbon, water, money, and the ledger from chip to site."""

from negawatt.carbon.amount import GRAMS, KWH_J, LITRES, MARGINAL_GRAMS, Amount, Factor
from negawatt.carbon.emissions import YEAR_S, Contract, embodied, location_based, marginal, market_based
from negawatt.carbon.facility import cue, given_pue, pue, site_water, source_water, water, wue
from negawatt.carbon.intensity import Country, CsvIntensity, IntensitySource, countries, yearly
from negawatt.carbon.ledger import BOUNDARIES, Ledger, Line, ledger
from negawatt.carbon.sci import Sci, sci, sci_for_ai
from negawatt.carbon.services import BritishIntensity, ElectricityMaps, WattTime
from negawatt.carbon.steps import Step, over
from negawatt.carbon.tariff import Band, Tariff, cost

__all__ = [
    "BOUNDARIES",
    "GRAMS",
    "KWH_J",
    "LITRES",
    "MARGINAL_GRAMS",
    "YEAR_S",
    "Amount",
    "Band",
    "BritishIntensity",
    "Contract",
    "Country",
    "CsvIntensity",
    "ElectricityMaps",
    "Factor",
    "IntensitySource",
    "Ledger",
    "Line",
    "Sci",
    "Step",
    "Tariff",
    "WattTime",
    "cost",
    "countries",
    "cue",
    "embodied",
    "given_pue",
    "ledger",
    "location_based",
    "marginal",
    "market_based",
    "over",
    "pue",
    "sci",
    "sci_for_ai",
    "site_water",
    "source_water",
    "water",
    "wue",
    "yearly",
]
