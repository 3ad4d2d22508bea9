"""The flags of a command as data: for shell completion, the man page and kept defaults.

Names, types and choices are read from the dataclass of a command's arguments by tyro's rules
(``tests/cli/test_flags.py`` compares them with the help text), meanings from the help text (``help_text.py``).
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag of a command, or a word without one.

    Attributes:
        name: ``--num-threads``; of a word without a flag what the help calls it.
        others: Further spellings of it: ``-k``.
        negation: What switches it off: ``--no-report``; empty where nothing does.
        hint: Type of its value, with the marks on it.
        choices: The values it takes, where they are a list.
        takes: ``nothing``: it is a switch. ``path``: it may name a file or folder. ``value``: another value.
        is_positional: It is a word without a flag.
        is_repeatable: It can be given several times.
        is_list: It takes several values after one another.
        num_values: How many they are, where the number is fixed: four of a box; else None.
    """

    name: str
    others: tuple[str, ...] = ()
    negation: str = ""
    hint: Any
    choices: tuple[str, ...] = ()
    takes: Literal["nothing", "path", "value"]
    is_positional: bool = False
    is_repeatable: bool = False
    is_list: bool = False
    num_values: int | None = None

    @property
    def spellings(self) -> tuple[str, ...]:
        """All words by which it is given."""
        return () if self.is_positional else (self.name, *self.others, *([self.negation] if self.negation else []))


def read_flags(arguments_class: type, prefix: str = "") -> Iterator[Flag]:
    """Yield the flags that tyro makes of a dataclass, in the order of its fields.

    Args:
        arguments_class: The dataclass; its stages are dataclasses too.
        prefix: What stands before the names of a stage: ``optimizer.``.
    """
    hints = typing.get_type_hints(arguments_class, include_extras=True)
    for field in dataclasses.fields(arguments_class):
        marks, plain = _split_hint(hints[field.name])
        named = [mark.name for mark in marks if hasattr(mark, "prefix_name") and mark.name is not None]
        name = named[0] if named else field.name.replace("_", "-")
        stage = "" if any(getattr(mark, "prefix_name", None) is False for mark in marks) else prefix
        if dataclasses.is_dataclass(plain):
            yield from read_flags(typing.cast(type, plain), f"{stage}{name}." if name else stage)
        else:
            yield _build_flag(f"{stage}{name}", marks, hints[field.name])


def _build_flag(path: str, marks: list[Any], hint: Any) -> Flag:
    others = tuple(alias for mark in marks for alias in getattr(mark, "aliases", None) or ())
    metavar = next(filter(None, (getattr(mark, "metavar", None) for mark in marks)), "")
    types_in = set(list_types(hint))
    choices = tuple(str(value) for value in _list_choices(hint)) or _read_choices(metavar)
    is_positional = tyro.conf.Positional in marks
    is_switch = _split_hint(hint)[1] is bool
    stage, _, last = path.rpartition(".")
    has_negation = is_switch and tyro.conf.FlagCreatePairsOff not in marks
    takes: Literal["nothing", "path", "value"] = "value"
    if is_switch:
        takes = "nothing"
    elif not choices and types_in & {str, Path}:
        takes = "path"
    return Flag(
        name=metavar or path if is_positional else f"--{path}",
        others=others,
        negation=f"--{stage}{'.' if stage else ''}no-{last}" if has_negation else "",
        hint=hint,
        choices=choices,
        takes=takes,
        is_positional=is_positional,
        is_repeatable=tyro.conf.UseAppendAction in marks,
        is_list=tuple in types_in and (tyro.conf.UseAppendAction not in marks or _is_nested(hint)),
        num_values=_count_values(hint),
    )


def _split_hint(hint: Any) -> tuple[list[Any], Any]:
    """Split the type of a field into the marks on it and the type without them."""
    marks: list[Any] = []
    while typing.get_origin(hint) is Annotated:
        marks += hint.__metadata__
        hint = typing.get_args(hint)[0]
    return marks, hint


def list_types(hint: Any) -> Iterator[Any]:
    """Yield the classes that a type is made of: ``tuple`` and ``int`` of ``tuple[int, ...] | None``."""
    _, plain = _split_hint(hint)
    origin = typing.get_origin(plain)
    if origin is None:
        yield plain
        return
    if origin not in (typing.Union, types.UnionType, Literal):
        yield origin
    if origin is not Literal:
        for part in typing.get_args(plain):
            yield from list_types(part)


def _list_choices(hint: Any) -> Iterator[Any]:
    _, plain = _split_hint(hint)
    if typing.get_origin(plain) is Literal:
        yield from typing.get_args(plain)
        return
    for part in typing.get_args(plain):
        yield from _list_choices(part)


def _count_values(hint: Any) -> int | None:
    """Count the values of a tuple of a fixed length, alone or beside None.

    >>> _count_values(tuple[float, float] | None), _count_values(tuple[int, ...]), _count_values(str)
    (2, None, None)
    """
    _, plain = _split_hint(hint)
    parts = typing.get_args(plain)
    if typing.get_origin(plain) is tuple:
        return None if ... in parts else len(parts)
    if typing.get_origin(plain) in (typing.Union, types.UnionType):
        return next((count for count in map(_count_values, parts) if count is not None), None)
    return None


def _is_nested(hint: Any) -> bool:
    return [*list_types(hint)].count(tuple) > 1


def _read_choices(metavar: str) -> tuple[str, ...]:
    """Read the choices out of what the help calls a value.

    >>> _read_choices("{lance,exact}"), _read_choices("DIR")
    (('lance', 'exact'), ())
    """
    found = re.fullmatch(r"\{([\w,]+)\}", metavar)
    return tuple(found[1].split(",")) if found else ()


def names_collection(flags: Collection[Flag], given: Collection[str]) -> bool:
    """Say whether a word without a flag names the collection: the word that may stand in the place of ``--data``.

    Args:
        flags: Those of the command.
        given: What ``read_words`` found on the command line.
    """
    return WITHOUT_FLAG in given and any(
        flag.is_positional and types.NoneType in list_types(flag.hint) for flag in flags
    )


NOTHING = "None"
"""The value of a flag that stands for none."""
WITHOUT_FLAG = ""
"""The key of ``read_words`` for words without a flag."""


def read_words(flags: Collection[Flag], words: Sequence[str]) -> dict[str, list[str]]:
    """Read which flags a command line gives, and their values; words that are none of the flags are passed over.

    Returns:
        Name of a flag -> its values; of a switch it has none. ``WITHOUT_FLAG`` -> the words without a flag.
    """
    by_spelling = {word: flag for flag in flags for word in flag.spellings}
    found: dict[str, list[str]] = {}
    rest = deque(words)
    while rest:
        word = rest.popleft()
        if word == "--" or not word.startswith("-"):
            alone = [*rest] if word == "--" else [word]
            if alone:
                found.setdefault(WITHOUT_FLAG, []).extend(alone)
            if word == "--":
                break
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name not in by_spelling and not word.startswith("--"):
            name, equals, value = word[:2], "=", word[2:]  # -k5
        if name in by_spelling:
            flag = by_spelling[name]
            if equals and flag.num_values:
                rest.appendleft(value)  # --box=0 0 1 1
                equals = ""
            found.setdefault(flag.name, []).extend([value] if equals else _take_values(flag, rest))
    return found


def takes_back(flag: Flag, values: Sequence[str]) -> bool:
    """Say whether the values of a flag are None, by which a kept default is taken back."""
    return [*values] == [NOTHING] and types.NoneType in list_types(flag.hint)


def _take_values(flag: Flag, rest: deque[str]) -> Iterator[str]:
    """Take the values of a flag from the words behind it."""
    most = 1
    if flag.takes == "nothing":
        most = 0
    elif flag.is_list and not (flag.num_values and rest and rest[0] == NOTHING):
        most = flag.num_values or len(rest)
    for number in range(most):
        if not rest or (flag.is_list and number >= (flag.num_values or 0) and rest[0].startswith("-")):
            return
        yield rest.popleft()
