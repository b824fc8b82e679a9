"""What a reader sees of a mail."""

from __future__ import annotations

import json

import pytest

from negawatt.workload.mails import MOST_CHARACTERS, shown_of, spam_items

PLAIN = """From baker@example.org  Mon Mar  4 08:00:00 2002
Received: from oven (oven [127.0.0.1]) by shop with SMTP
Subject: Bread for
 Saturday
Content-Type: text/plain

We bake on Friday night.

How many loaves?
"""
MARKED_UP = """Subject: Win a boat
Content-Type: text/html; charset=utf-8

<html><style>p {color: red}</style><!-- hidden --><body><p>Click&nbsp;<b>here</b></p></body></html>
"""
TWO_PARTS = """Subject: Minutes
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary=cut

--cut
Content-Type: text/html

<p>as a page</p>
--cut
Content-Type: text/plain
Content-Transfer-Encoding: base64

YXMgYSB0ZXh0
--cut--
"""


@pytest.mark.parametrize(
    ("mail", "seen"),
    [
        (PLAIN, "Subject: Bread for Saturday\nWe bake on Friday night. How many loaves?"),
        (MARKED_UP, "Subject: Win a boat\nClick here"),
        (TWO_PARTS, "Subject: Minutes\nas a text"),
        ("Subject: nothing\n\n   \n", ""),
    ],
)
def test_subject_and_text_without_markup(mail: str, seen: str) -> None:
    assert shown_of(mail) == seen


def test_a_long_mail_is_cut() -> None:
    assert len(shown_of("Subject: long\n\n" + "word " * 500)) <= MOST_CHARACTERS + len("Subject: long\n")


def test_mails_that_look_alike_are_asked_once() -> None:
    mails = [("easy-ham-1", PLAIN), ("spam-2", MARKED_UP), ("spam-1", MARKED_UP), ("hard-ham-1", "")]
    text = "\n".join(
        json.dumps({"id": f"{n:05}", "group": group, "text": mail}) for n, (group, mail) in enumerate(mails)
    )
    found = spam_items(text)
    assert [(item.id, item.answer) for item in found] == [
        ("easy-ham-1-00000", "wanted"),
        ("spam-2-00001", "spam"),
    ]
    assert found[0].prompt == f"{shown_of(PLAIN)}\nThis mail is"
    assert spam_items(text.replace("\n{", "{")) == found  # as an archive's members stand, one after the other
