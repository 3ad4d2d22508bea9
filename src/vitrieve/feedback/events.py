"""One correction of a result, what it may hold, and which corrections of a history count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from vitrieve.errors import DataError, unknown_name_message
from vitrieve.quoting import is_harmless

Kind = Literal["right", "wrong", "same_group", "tagged", "taken_back"]
"""right and wrong: the result of a query. same_group: the two pictures belong together, whatever their labels say.
tagged: tags and a label of one image. taken_back: the same person's last word about this pair counts no longer; without
a query, that about the image's tags and label."""
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_NAME = 1024
"""Characters of the name of an image, or of a query."""
MAX_WORD = 100
"""Characters of a tag, of a label and of a person's name."""
MAX_TAGS = 20


@dataclass(frozen=True, kw_only=True)
class Correction:
    """What one person said of one result.

    Attributes:
        kind: What was said.
        image_id: Name of the result in the index.
        query_id: Name of the query, where it is an image of the index; else empty.
        query: Words or another description of a query that is no image of the index; else empty.
        tags: Words for the image.
        label: Name of the image's right class; empty: nothing is said of it.
        who: Name of the person; may be empty.
        at: When, in ISO 8601 with the time zone.
        fingerprint: Fingerprint of the encoder whose index showed the result.
    """

    kind: Kind
    image_id: str
    query_id: str = ""
    query: str = ""
    tags: tuple[str, ...] = ()
    label: str = ""
    who: str = ""
    at: str = ""
    fingerprint: str = ""


def check_correction(correction: Correction) -> None:
    """Refuse a correction that says nothing, or says it in a way that cannot be kept.

    Raises:
        DataError: As it says.
    """
    if correction.kind not in KINDS:
        raise DataError(unknown_name_message("kind of feedback", str(correction.kind), KINDS))
    if not correction.image_id:
        raise DataError("feedback without an image_id; name the result that it is about.")
    named = (("image_id", correction.image_id), ("query_id", correction.query_id), ("query", correction.query))
    words = (("label", correction.label), ("who", correction.who), *(("tag", tag) for tag in correction.tags))
    for most, texts in ((MAX_NAME, named), (MAX_WORD, words)):
        for name, text in texts:
            if len(text) > most:
                raise DataError(f"{name} has {len(text):,} characters; at most {most:,} are kept.")
            if "\0" in text or (most == MAX_WORD and not _is_shown(text)):
                raise DataError(f"{name} has characters that cannot be printed; leave them out.")
    if len(correction.tags) > MAX_TAGS or not all(tag.strip() for tag in correction.tags):
        raise DataError(f"{len(correction.tags)} tags; give at most {MAX_TAGS}, none of them empty.")
    _check_kind(correction)


def _is_shown(word: str) -> bool:
    """Say whether a word can be shown as it is: all of its characters can, and not all are joiners."""
    return all(map(is_harmless, word)) and (not word or any(map(str.isprintable, word)))


def _check_kind(correction: Correction) -> None:
    kind, has_query = correction.kind, bool(correction.query_id or correction.query)
    if kind == "tagged":
        if not (correction.tags or correction.label):
            raise DataError("feedback of the kind tagged without tags and without a label; give one of them.")
        return
    if correction.tags or correction.label:
        raise DataError(f"tags and a label belong to the kind tagged, not to {kind}.")
    if kind == "same_group" and not correction.query_id:
        raise DataError("same_group needs query_id, an image of the index: two pictures belong together.")
    if kind in ("right", "wrong") and not has_query:
        raise DataError(f"{kind} needs the query: query_id, an image of the index, or query, its words.")
    if kind == "same_group" and correction.query_id == correction.image_id:
        raise DataError("an image is in its own group anyway; query_id and image_id are the same.")


def find_last_words(corrections: Iterable[Correction]) -> list[Correction]:
    """Return those corrections that count: of each person the last about each pair, and about the tags of each image.

    Args:
        corrections: Corrections in the order in which they were made.

    Returns:
        In that order; nothing of what was taken back.

    >>> said = [Correction(kind=kind, image_id="a", query_id="b") for kind in ("right", "wrong")]
    >>> [one.kind for one in find_last_words(said)]
    ['wrong']
    """
    last: dict[tuple[bool, str, str, str, str], Correction] = {}
    for one in corrections:
        is_about_query = bool(one.query_id or one.query)
        key = (one.kind == "tagged" or not is_about_query, one.who, one.query_id, one.query, one.image_id)
        if key[0]:  # tags are about the image, whatever was asked
            key = (True, one.who, "", "", one.image_id)
        last.pop(key, None)  # so that the order is that of the last words
        if one.kind != "taken_back":
            last[key] = one
    return list(last.values())


def is_time(text: str) -> bool:
    """Say whether a text is a time in ISO 8601 with its zone.

    >>> is_time("2026-11-29T08:00:00+00:00"), is_time("today")
    (True, False)
    """
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
