"""Mails as questions: is it spam?"""

from __future__ import annotations

import email
import html
import json
import re
from collections.abc import Iterator
from email.message import Message

from negawatt.workload.items import ClassifyItem

LABELS = ("wanted", "spam")
MOST_CHARACTERS = 300
"""Of a mail's text, from its beginning: what tells spam is at the top, and reading all of it costs joules."""

_TAGS = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.IGNORECASE | re.DOTALL)
_SPACE = re.compile(r"\s+")


def spam_items(text: str) -> tuple[ClassifyItem, ...]:
    """Mails of the SpamAssassin corpus (2002 to 2003) by their subject and the beginning of their text.

    One JSON object after the other: ``id``, ``group`` (such as ``easy-ham-1`` or ``spam-2``) and ``text``,
    the mail as it was sent. Mails without any text are left out, and those that look like one before.
    """
    items: dict[str, ClassifyItem] = {}
    for record in _objects(text):
        group = str(record["group"])
        shown = shown_of(str(record["text"]))
        if shown:
            answer = LABELS["ham" not in group]
            prompt = f"{shown}\nThis mail is"
            item = ClassifyItem(f"{group}-{record['id']}", prompt, LABELS, answer)
            items.setdefault(prompt, item)
    return tuple(items.values())


def shown_of(mail: str) -> str:
    """A mail's subject and the beginning of its text, each on one line; empty without text."""
    parsed = email.message_from_string(mail.partition("\n")[2] if mail.startswith("From ") else mail)
    body = _SPACE.sub(" ", _text(parsed)).strip()[:MOST_CHARACTERS].strip()
    subject = _SPACE.sub(" ", str(parsed.get("Subject") or "")).strip()
    return f"Subject: {subject}\n{body}" if body else ""


def _text(parsed: Message) -> str:
    """The first part that is a text, plain before HTML."""
    found: dict[str, str] = {}
    for part in parsed.walk():
        kind = part.get_content_type()
        if kind in ("text/plain", "text/html") and not part.is_multipart():
            payload = part.get_payload(decode=True)
            text = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
            if text.strip():
                found.setdefault(kind, text)
    if "text/plain" in found:
        return found["text/plain"]
    return html.unescape(_TAGS.sub(" ", found.get("text/html", "")))


def _objects(text: str) -> Iterator[dict[str, object]]:
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        record, place = decoder.raw_decode(text, place)
        yield record
        while place < len(text) and text[place].isspace():
            place += 1
