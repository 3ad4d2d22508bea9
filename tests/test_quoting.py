from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from vitrieve.quoting import escape_lines, escape_text, quote_name

SOURCE = Path(__file__).resolve().parents[1] / "src" / "vitrieve"
COUNTED = re.compile(
    r"(?<!of )(?<!all )\{(?:num_|len\()[^{}]*\} (?:[a-z]+ )?"
    r"(?:collections|corrections|images|pictures|queries|vectors) (?:are|count|have|name|occur|that are|were)\b"
)
"""A number, its noun and its verb in one text; ``count_nouns`` spells them. "1 of 3 images" is none."""
HOSTILE = ["\n", "\r", "\t", "\0", "\x1b", "\x7f", "\x85", "\x9b", "\u200e", "\u2028", "\u202e", "\u2066", "\udcff"]


@pytest.mark.parametrize("sign", HOSTILE)
def test_quote_name_escapes_what_a_terminal_obeys(sign: str) -> None:
    quoted = quote_name(f"Ä{sign}b.png")
    assert quoted.isprintable()
    assert quoted.startswith('"Ä\\')
    assert json.loads(quoted) == f"Ä{sign}b.png"
    assert escape_text(quoted) == quoted  # once is enough
    assert escape_text(f"x{sign}y").isprintable()


@pytest.mark.parametrize(
    "name", ["a.png", "Äpfel 🍎.png", "家族.jpg", "👩\u200d👧.png", "back\\slash.png", "quo'te\".png"]
)
def test_quote_name_leaves_ordinary_names_as_they_are(name: str) -> None:
    assert quote_name(name) == name
    assert escape_text(name) == name


def test_quote_name_shows_what_cannot_be_seen() -> None:
    assert [quote_name(name) for name in ("", " a", "a ", '"a"')] == ['""', '" a"', '"a "', '"\\"a\\""']


def test_escape_lines_keeps_line_breaks_alone() -> None:
    assert escape_lines("a\r\nb\x1b") == "a\\r\nb\\u001b"


def test_escape_text_handles_every_character() -> None:
    # One by one: what json escapes as a pair of surrogates, too.
    assert all(
        escape_text(chr(code)).replace("\u200c", "").replace("\u200d", "").isprintable()
        for code in range(sys.maxunicode + 1)
    )


def test_messages_count_one_as_one() -> None:
    assert COUNTED.search("{num_unlisted:,} pictures are in no list")
    found = [(path.name, COUNTED.findall(path.read_text(encoding="utf-8"))) for path in SOURCE.rglob("*.py")]
    assert {name: texts for name, texts in found if texts} == {}
