"""`Redactor`: strikes personal data out of texts before the model, the log or the ledger sees them."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from negawatt.errors import UsageError, require


@dataclass(frozen=True, slots=True)
class Redacted:
    """A text or document with marks such as ``[EMAIL]`` in place of what was struck out.

    Attributes:
        value: of the kind that was given.
        found: how often each kind was struck out; never what.
    """

    value: Any
    found: Mapping[str, int]


class Redactor(Protocol):
    """Finds personal data in a text."""

    def text(self, text: str) -> tuple[str, Counter[str]]:
        """The text with marks in it, and how often each kind was found."""
        ...


def redact(document: Any, redactor: Redactor) -> Redacted:
    """Every text in a JSON document redacted: prompts, messages, arguments of tools, parts of contents.

    Names of fields stay as they are, and so does what a field that only steers the request holds.
    """
    found: Counter[str] = Counter()

    def walk(node: Any, field: str = "") -> Any:
        if isinstance(node, str):
            if field in _STEERING:
                return node
            text, counts = redactor.text(node)
            found.update(counts)
            return text
        if isinstance(node, list):
            return [walk(child, field) for child in node]
        if isinstance(node, dict):
            return {name: walk(child, str(name)) for name, child in node.items()}
        return node

    return Redacted(walk(document), found)


_STEERING = frozenset({"model", "role", "type", "tool_choice", "reasoning_effort", "service_tier"})


class PatternRedactor:
    """Own patterns, each match checked as far as its kind allows, so that other numbers are left alone.

    Checked are the check digits of IBANs (ISO 13616), cards (Luhn) and national numbers, and the form of
    addresses. A phone number has no check digit: it needs its ``+`` or North America's grouping. Names and
    postal addresses have no pattern and are not found.

    Args:
        kinds: which of `KINDS`; all by default.

    Raises:
        UsageError: another kind.
    """

    def __init__(self, kinds: tuple[str, ...] | None = None) -> None:
        chosen = KINDS if kinds is None else kinds
        if unknown := set(chosen) - set(KINDS):
            raise UsageError(f"expected kinds among {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
        self._patterns = [p for p in _PATTERNS if p.kind in chosen]

    def text(self, text: str) -> tuple[str, Counter[str]]:
        found: Counter[str] = Counter()
        for pattern in self._patterns:
            text = pattern.applied(text, found)
        return text, found


class PresidioRedactor:
    """Microsoft Presidio's recognizers of patterns, with no model and no network.

    E-mail addresses are found by the own pattern: Presidio's downloads a list of domains to check them.

    Args:
        language: of the texts.
        score: matches that Presidio is less sure of are left alone.

    Raises:
        MissingDependency: presidio-analyzer is not installed.
    """

    def __init__(self, language: str = "en", score: float = 0.5) -> None:
        self._language, self._score = language, score
        self._analyzer = _presidio(language)
        self._mails = PatternRedactor(("EMAIL",))

    def text(self, text: str) -> tuple[str, Counter[str]]:
        text, found = self._mails.text(text)
        matches = self._analyzer.analyze(text=text, language=self._language, score_threshold=self._score)
        end = len(text) + 1
        for match in sorted(matches, key=lambda m: (m.start, -m.end), reverse=True):
            if match.end > end:
                continue  # overlaps one that was struck out
            kind = match.entity_type
            text = f"{text[: match.start]}[{kind}]{text[match.end :]}"
            found[kind] += 1
            end = match.start
        return text, found


def _presidio(language: str) -> Any:
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)  # it warns of every other language
    analyzer = require("presidio_analyzer", extra="presidio")
    engine = require("presidio_analyzer.nlp_engine", extra="presidio")
    spacy = require("spacy", extra="presidio")
    # A blank language: splits words and knows no names, and so needs nothing that would be downloaded.
    blank = engine.SpacyNlpEngine(models=[{"lang_code": language, "model_name": "blank"}])
    blank.nlp = {language: spacy.blank(language)}
    registry = analyzer.RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=blank)
    registry.remove_recognizer("EmailRecognizer")
    return analyzer.AnalyzerEngine(registry=registry, nlp_engine=blank, supported_languages=[language])


# -- patterns ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pattern:
    kind: str
    form: re.Pattern[str]
    holds: Callable[[str], bool]

    def applied(self, text: str, found: Counter[str]) -> str:
        def strike(match: re.Match[str]) -> str:
            if not self.holds(match[0]):
                return match[0]
            found[self.kind] += 1
            return f"[{self.kind}]"

        return self.form.sub(strike, text)


def _digits(text: str) -> list[int]:
    return [int(c) for c in text if c.isdecimal()]


def luhn(text: str) -> bool:
    """Whether the digits of a text pass ISO/IEC 7812's check."""
    digits = _digits(text)[::-1]
    doubled = (2 * d - 9 * (d > 4) for d in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _card(text: str) -> bool:
    digits = _digits(text)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn(text)


_IBAN_LENGTHS = {
    **{"AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29},
    **{"BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29},
    **{"ES": 24, "FI": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28},
    **{"HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20},
    **{"LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19},
    **{"MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29},
    **{"RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28},
    **{"TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20},
}


def _iban(text: str) -> bool:
    plain = text.replace(" ", "").upper()
    if _IBAN_LENGTHS.get(plain[:2]) != len(plain):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _ip(text: str) -> bool:
    if ":" in text and (not any(c.isdecimal() for c in text) or len(text) < 6):
        return False  # ``a::b`` is an address, and much oftener code
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _phone(text: str) -> bool:
    return 8 <= len(_digits(text)) <= 15


def _born(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _us_ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _german_tax(text: str) -> bool:
    """Identifikationsnummer: ISO 7064 mod 11,10; of the first ten digits one comes two or three times."""
    digits = _digits(text)
    counts = sorted(Counter(digits[:10]).values(), reverse=True)
    if len(digits) != 11 or digits[0] == 0 or counts[0] not in (2, 3) or counts[1] > 1:
        return False
    product = 10
    for digit in digits[:10]:
        product = ((digit + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == digits[10]


def _spanish(text: str) -> bool:
    """DNI and NIE: a letter by the number mod 23."""
    plain = text.upper().replace("-", "")
    number = int(plain[:-1].translate(str.maketrans("XYZ", "012")))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == plain[-1]


def _french(text: str) -> bool:
    """NIR: 97 less the number mod 97; Corsica's departments 2A and 2B count as 19 and 18."""
    plain = text.replace(" ", "").upper()
    body = plain[:13].replace("2A", "19").replace("2B", "18")
    return body.isdecimal() and 97 - int(body) % 97 == int(plain[13:])


def _polish(text: str) -> bool:
    """PESEL: weights 1, 3, 7, 9; the month tells the century."""
    digits = _digits(text)
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[digits[2] // 2]
    year, month, day = int(text[:2]), int(text[2:4]) % 20, int(text[4:6])
    total = sum(w * d for w, d in zip((1, 3, 7, 9) * 3, digits[:10], strict=False))
    return (10 - total % 10) % 10 == digits[10] and _born(century + year, month, day)


def _belgian(text: str) -> bool:
    """National register number: 97 less the first nine digits mod 97, with a 2 before them since 2000."""
    digits = "".join(map(str, _digits(text)))
    return any(97 - int(ahead + digits[:9]) % 97 == int(digits[9:]) for ahead in ("", "2"))


def _finnish(text: str) -> bool:
    """Henkilötunnus: the number mod 31 as a sign."""
    number = int(text[:6] + text[7:10])
    return "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == text[10].upper()


_ITALIAN_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _italian(text: str) -> bool:
    """Codice fiscale: a letter by a table for odd places and the plain value for even ones."""
    values = [int(c, 36) - 10 if c.isalpha() else int(c) for c in text.upper()]
    total = sum(_ITALIAN_ODD[v] for v in values[:15:2]) + sum(values[1:15:2])
    return total % 26 == values[15]


def _any(_: str) -> bool:
    return True


def _made(kind: str, form: str, holds: Callable[[str], bool] = _any, flags: int = 0) -> _Pattern:
    return _Pattern(kind, re.compile(form, flags), holds)


# In this order: what is struck out first cannot be taken for something else. No pattern backtracks far.
_PATTERNS = (
    _made("EMAIL", r"(?<![\w.+-])[\w+-]+(?:\.[\w+-]+)*@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}\b"),
    _made("IBAN", r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", _iban, re.IGNORECASE),
    _made("NATIONAL_ID", r"\b[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}\b", _french),
    _made(
        "CARD",
        r"(?<![\w-])(?<![A-Z]{2}\d\d )[2-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,4}(?:[ -]?\d{1,3})?(?![\w-])",
        _card,
    ),
    _made("CARD", r"(?<![\w-])3[47]\d{2}[ -]?\d{6}[ -]?\d{5}(?![\w-])", _card),
    _made("NATIONAL_ID", r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", _us_ssn),
    _made("NATIONAL_ID", r"(?<![\w.-])\d{2} ?\d{3} ?\d{3} ?\d{3}(?![\w-])", _german_tax),
    _made("NATIONAL_ID", r"(?<![\w.-])\d{11}(?![\w-])", _polish),
    _made("NATIONAL_ID", r"(?<![\w.-])\d{2}\.?\d{2}\.?\d{2}-?\d{3}[.-]?\d{2}(?![\w-])", _belgian),
    _made("NATIONAL_ID", r"(?<![\w-])(?:\d{8}|[XYZ]\d{7})-?[A-Z](?![\w-])", _spanish, re.IGNORECASE),
    _made("NATIONAL_ID", r"(?<![\w-])\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y](?!\w)", _finnish, re.IGNORECASE),
    _made("NATIONAL_ID", r"\b[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]\b", _italian, re.IGNORECASE),
    _made("IP", r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)", _ip),
    _made(
        "IP",
        r"(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}(?:[0-9a-f]{1,4}|(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])",
        _ip,
        re.IGNORECASE,
    ),
    _made("PHONE", r"(?<![\w+])\+\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,6}(?![\w-])", _phone),
    _made(
        "PHONE",
        r"(?<![\w.+-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}(?![\w-])",
        _phone,
    ),
)
KINDS: tuple[str, ...] = tuple(dict.fromkeys(p.kind for p in _PATTERNS))
