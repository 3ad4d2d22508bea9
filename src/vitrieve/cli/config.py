"""``vitrieve config show``, ``set``, ``unset`` and ``path``: defaults for flags in TOML files (``defaults.py``)."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from vitrieve.cli.arguments import NEEDED_HINT, Json, Switch
from vitrieve.cli.console import print_json, print_result
from vitrieve.cli.defaults import (
    CONFIG_VARIABLE,
    PROJECT_NAME,
    Kept,
    check,
    divide_key,
    find_user_file,
    list_files,
    list_tables,
    read_file,
    refuse_letting_in,
    spell_key,
)
from vitrieve.cli.flags import Flag
from vitrieve.cli.values import find_expected, parse_value
from vitrieve.errors import ConfigError
from vitrieve.writing import replacing_durably

Key = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KEY")]
InProject = Annotated[Switch, tyro.conf.arg(help=f"In {PROJECT_NAME} of this folder instead of the user's own file.")]


@dataclass(frozen=True, kw_only=True)
class ShowArguments:
    """Show which defaults are kept, and in which file; the first of a key counts."""

    json: Json = False


@dataclass(frozen=True, kw_only=True)
class SetArguments:
    """Keep a default for a flag of a command, or of all commands that have it.

    vitrieve config set embed.batch-size 32; vitrieve config set all.device cpu; vitrieve config set train.seed 3.
    """

    key: Key
    """COMMAND.FLAG, or all.FLAG."""
    value: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VALUE", help_behavior_hint=NEEDED_HINT)
    ]
    """The value; several where the flag takes several."""
    project: InProject = False


@dataclass(frozen=True, kw_only=True)
class UnsetArguments:
    """Forget a default that is kept."""

    key: Key
    """COMMAND.FLAG, or all.FLAG, as vitrieve config show tells it."""
    project: InProject = False


@dataclass(frozen=True, kw_only=True)
class PathArguments:
    """Tell the place of the user's own file, there or not."""


def run_show(arguments: ShowArguments) -> int:
    """Print what files keep, the one that counts most first."""
    kept = [one for file in list_files() for one in read_file(file)]
    for one in kept:
        check(one, *list_tables(one.command))
    if arguments.json:
        print_json(
            {"files": list(map(str, list_files())), "kept": [[str(one.file), one.key, one.value] for one in kept]}
        )
    else:
        print_result(*(f"{one.file}: {one.key} = {_spell(one.value)}" for one in kept))
    return 0


def run_set(arguments: SetArguments) -> int:
    """Write a value into a file; the rest of the file stays as it is."""
    if not arguments.value:
        raise ConfigError(f"no value: vitrieve config set {arguments.key} VALUE.")
    file = _choose_file(arguments.project)
    command, name = divide_key(arguments.key)
    tables = list_tables(command)
    value = _choose_value(arguments, [flags[name] for flags in tables if name in flags])
    check(Kept(file=file, key=arguments.key, command=command, flag=name, value=value), *tables)
    path = (*command.split(), *name.split("."))
    refuse_letting_in(file, command, arguments.key)
    _change(file, path, value)
    print_result(f"{file}: {'.'.join(path)} = {_spell(value)}")
    return 0


def run_unset(arguments: UnsetArguments) -> int:
    """Take a value out of a file."""
    file = _choose_file(arguments.project)
    command, name = divide_key(arguments.key)
    path = (*command.split(), *name.split("."))
    _change(file, path, None)
    print_result(f"{file}: {'.'.join(path)} is no longer kept")
    return 0


def run_path(arguments: PathArguments) -> int:
    """Print the place of the user's file."""
    print_result(str(_choose_file(False)))
    return 0


def _choose_file(is_project: bool) -> Path:
    user = find_user_file()
    if user is None:
        raise ConfigError(f"{CONFIG_VARIABLE} is off, so no file is read; unset it.")
    return Path(PROJECT_NAME) if is_project else user


def _choose_value(arguments: SetArguments, flags: Sequence[Flag]) -> Any:
    """Read the value as the first flag that takes it has it; where none does, as the first flag."""
    values = [parse_value(flag, arguments.value) for flag in flags] or [arguments.value[0]]
    taken = [value for value, flag in zip(values, flags, strict=False) if not find_expected(value, flag)]
    if len(arguments.value) > 1 and not taken and not any(flag.is_list or flag.is_repeatable for flag in flags):
        raise ConfigError(f"{arguments.key} takes one value, not {len(arguments.value)}.")
    return (taken or values)[0]


def _change(file: Path, path: tuple[str, ...], value: Any) -> None:
    """Write a value into a TOML file, or take it out (None); comments and order stay.

    Raises:
        ConfigError: The file is no TOML, cannot be written, or does not have what is to be taken out.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    file = Path(os.path.realpath(file))  # what a link leads to is written, and the link stays
    try:
        document = tomlkit.parse(file.read_text(encoding="utf-8-sig")) if file.is_file() else tomlkit.document()
        spelled = list(_find_spelled(document, spell_key(".".join(path))))
        if not spelled:
            _change_new(document, file, path, value)
        elif value is not None:
            table, name = spelled.pop(0)
            table[name] = value
        for table, name in spelled:  # a hand may have written one flag in two ways
            del table[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing_durably(file, suffix=f".{os.getpid()}") as beside:
            beside.write_text(tomlkit.dumps(document), encoding="utf-8")
            if file.exists():
                beside.chmod(file.stat().st_mode & 0o7777)
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}.") from None


def _find_spelled(table: Any, key: str, before: str = "") -> Iterator[tuple[Any, str]]:
    """Yield the tables and names that stand for a key, however it is spelled (``num_threads``, ``["data check"]``)."""
    for name, value in table.items():
        if isinstance(value, MutableMapping):
            yield from _find_spelled(value, key, f"{before}{name}.")
        elif spell_key(before + name) == key:
            yield table, name


def _change_new(document: Any, file: Path, path: tuple[str, ...], value: Any) -> None:
    """Write a value that a document does not have yet, in the table of its command; None takes a whole table out.

    Raises:
        ConfigError: Something else stands in the place of a table, or there is nothing to be taken out.
    """
    import tomlkit

    table = document
    for part in path[:-1]:
        if part not in table:
            if value is None:
                raise ConfigError(f"{file} does not keep {'.'.join(path)}.")
            table.add(part, tomlkit.table(is_super_table=part != path[-2]))
        table = table[part]
        if not isinstance(table, MutableMapping):
            raise ConfigError(f"{file}: {part} is {table!r}, where a table of flags is expected; correct it there.")
    if value is not None:
        table[path[-1]] = value
    elif table.pop(path[-1], None) is None:
        raise ConfigError(f"{file} does not keep {'.'.join(path)}.")


def _spell(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
