"""Values of flags as a file keeps them (``defaults.py``): which a flag takes, and how a word becomes one."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrieve.cli.flags import Flag, list_types
from vitrieve.settings import Range, Setting


def find_expected(value: Any, flag: Flag) -> str:
    """Say what a flag takes, where it does not take a value of a file; else the text is empty."""
    values = value if isinstance(value, list) else [value]
    is_many = flag.is_list or flag.is_repeatable
    if isinstance(value, list) != is_many or not all(_fits(flag, one) for one in values):
        return _describe_accepted(flag) or "another value"
    for accepted in Setting(flag.name, value, flag.hint).find_marks(Range):
        if not accepted.is_valid(tuple(value) if is_many else value):
            return accepted.accepted
    return ""


def _fits(flag: Flag, value: Any) -> bool:
    if flag.choices:
        return str(value) in flag.choices
    if isinstance(value, bool):
        return flag.takes == "nothing"
    kinds = _list_kinds(flag)
    return type(value) in kinds or (type(value) is int and float in kinds)


def _list_kinds(flag: Flag) -> set[type]:
    kinds = set(list_types(flag.hint)) - {tuple, types.NoneType}
    return {str if kind is Path else kind for kind in kinds}


def _describe_accepted(flag: Flag) -> str:
    if flag.choices:
        one = f"one of {', '.join(flag.choices)}"
    else:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        one = " or ".join(sorted(words[kind] for kind in _list_kinds(flag) if kind in words))
    return f"a list, each entry {one}" if flag.is_list or flag.is_repeatable else one


def parse_value(flag: Flag, words: Sequence[str]) -> Any:
    """Read the value of a flag from words of the command line, as a file keeps it; it is not checked."""
    values = [_parse_word(flag, word) for word in words]
    return values if flag.is_list or flag.is_repeatable or len(values) > 1 else values[0]


def _parse_word(flag: Flag, word: str) -> Any:
    if flag.takes == "nothing":
        return {"true": True, "false": False}.get(word.lower(), word)
    for kind in (int, float):
        if kind in _list_kinds(flag) and not flag.choices:
            try:
                return kind(word)
            except ValueError:
                continue
    return word
