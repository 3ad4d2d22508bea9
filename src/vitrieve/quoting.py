"""The one spelling of text that others wrote (names of files, classes, columns) where it is printed or logged.

A name may hold a line break, which forges a line of a log; ESC, which a terminal obeys; a sign that reverses the
order of letters; or bytes that are no text. ``quote_name`` spells a name inside a sentence; ``escape_text`` is what
everything that is printed goes through on its way out, so that a forgotten name does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

_JOINERS = frozenset("\u200c\u200d")
"""Zero-width joiners: invisible parts of emoji and of Persian and Indic words, which move nothing."""
NUM_REASONS_SHOWN = 3


def make_breakable(name: str) -> Markup:
    """Escape a name for a page, and let a line end after each of its underscores, where no browser ends one by itself.

    >>> print(make_breakable("IMG_<1>"))
    IMG_<wbr>&lt;1&gt;
    """
    from markupsafe import Markup

    return Markup("_<wbr>").join(name.split("_"))


def quote_name(name: object) -> str:
    r"""Spell a name so that it stays on its line: as a JSON string where it cannot be printed as it is.

    >>> print(quote_name("a b.png"), quote_name("Äpfel\nbreak.png"))
    a b.png "Äpfel\nbreak.png"
    """
    text = str(name)
    if all(map(is_harmless, text)) and text == text.strip() and not text.startswith('"') and text:
        return text
    body = "".join(json.dumps(sign)[1:-1] if sign in '"\\' else escape_text(sign) for sign in text)
    return f'"{body}"'


def count_nouns(count: int, one: str, many: str) -> str:
    """Spell a number with its noun.

    >>> print(count_nouns(1, "class", "classes"), "and", count_nouns(1200, "class", "classes"))
    1 class and 1,200 classes
    """
    return f"{count:,} {one if count == 1 else many}"


def spell_reasons(failures: Sequence[tuple[str, str]]) -> str:
    """Spell the names of the first images that cannot be read, each with its reason.

    >>> spell_reasons([("a.png", "it is empty"), ("b.png", "it is cut short")])
    'a.png: it is empty; b.png: it is cut short'
    """
    return "; ".join(f"{image_id}: {reason}" for image_id, reason in failures[:NUM_REASONS_SHOWN])


def escape_text(text: str) -> str:
    r"""Spell what cannot be printed on one line as JSON does, and leave the rest as it is.

    >>> print(escape_text("a\nb \x1b[31m \u202egpj.exe \udce9 é"))
    a\nb \u001b[31m \u202egpj.exe \udce9 é
    """
    if text.isprintable():
        return text
    return "".join(sign if is_harmless(sign) else _escape_sign(sign) for sign in text)


def escape_lines(text: str) -> str:
    """Spell as ``escape_text`` all but the line breaks of a text whose lines are ours."""
    return "\n".join(map(escape_text, text.split("\n")))


def is_harmless(sign: str) -> bool:
    r"""Say whether a character can be shown as it is: it can be printed, or joins those beside it.

    >>> [is_harmless(sign) for sign in ("ä", "\u200d", "\n", "\u202e")]
    [True, True, False, False]
    """
    return sign.isprintable() or sign in _JOINERS


def _escape_sign(sign: str) -> str:
    spelled = json.dumps(sign)[1:-1]
    return spelled if spelled.startswith("\\") else f"\\u{ord(sign):04x}"  # DEL, which JSON may hold as it is
