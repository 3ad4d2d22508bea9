"""Defaults for flags that a user keeps in TOML files; ``config.py`` writes the files.

A flag on the command line wins, then ``vitrieve.toml`` of the folder one works in, then the user's own file, then what
is built in. What a file says is put behind the words of the command line: it is checked, used and recorded in artifacts
like them. Each use is told.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrieve.cli.console import print_message
from vitrieve.cli.fitting import choose_fitting
from vitrieve.cli.flags import WITHOUT_FLAG, Flag, names_collection, read_flags, read_words, takes_back
from vitrieve.cli.values import find_expected
from vitrieve.errors import ConfigError, find_nearest
from vitrieve.machine import expand_variable
from vitrieve.quoting import quote_name

CONFIG_VARIABLE = "VITRIEVE_CONFIG"
OFF = "off"
PROJECT_NAME = "vitrieve.toml"
ALL = "all"
"""The table of flags of whichever command has them."""
FREE = (
    *("reproduce", "compare", "doctor", "completion"),
    *("config show", "config set", "config unset", "config path"),
)
"""Commands that take nothing from files: their figures are compared with those of others, or nothing is to be kept."""
USER_ONLY = ("serve", "up", "mcp")
"""Commands that let others in: a folder that one happens to work in does not say how."""
NEVER_KEPT = ("--out", "--token", "--write-token")
"""What belongs to one call, and secrets, which the variables VITRIEVE_TOKEN and VITRIEVE_WRITE_TOKEN are for."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A value of a file.

    Attributes:
        file: The file.
        key: As the file has it, dotted: ``embed.batch-size``.
        command: Name of the command; ``all`` for every one.
        flag: The flag without dashes: ``batch-size``.
        value: The value.
    """

    file: Path
    key: str
    command: str
    flag: str
    value: Any

    @property
    def texts(self) -> list[str]:
        """The value as words of a command line; several of a list."""
        return [str(item) for item in self.value] if isinstance(self.value, list) else [str(self.value)]


def find_user_file() -> Path | None:
    """Find the place of the user's file, there or not; None where VITRIEVE_CONFIG is ``off``.

    Raises:
        ConfigError: The variable names a user that does not exist.
    """
    chosen = os.environ.get(CONFIG_VARIABLE)
    if chosen == OFF:
        return None
    if chosen:
        return expand_variable(CONFIG_VARIABLE, chosen)
    if os.environ.get("XDG_CONFIG_HOME"):
        return Path(os.environ["XDG_CONFIG_HOME"]) / "vitrieve" / "config.toml"
    try:
        return Path.home() / ".config" / "vitrieve" / "config.toml"
    except RuntimeError:  # a container's user without a home folder
        return Path("/nonexistent/vitrieve/config.toml")


def list_files() -> tuple[Path, ...]:
    """List the files that are there, the one that counts most first; none where VITRIEVE_CONFIG is ``off``.

    Raises:
        ConfigError: VITRIEVE_CONFIG names a file that is not there.
    """
    user = find_user_file()
    if user is None:
        return ()
    files = [file for file in (Path(PROJECT_NAME), user) if _is_there(file)]
    if os.environ.get(CONFIG_VARIABLE) and user not in files:
        _require_there(user)
        files.append(user)  # a folder is refused when it is read, and /dev/null is an empty file
    return tuple(files)


def _require_there(file: Path) -> None:
    """Refuse a file that the variable names and that is not there.

    Raises:
        ConfigError: As it says.
    """
    try:
        os.stat(file)
    except PermissionError:
        raise
    except (OSError, ValueError):
        raise ConfigError(
            f"{CONFIG_VARIABLE} names {quote_name(file)}, which is not there. Correct the variable, unset it, set it "
            f"to {OFF}, or make the file with vitrieve config set."
        ) from None


def _is_there(file: Path) -> bool:
    """Say whether a file is there; a home folder that belongs to another user holds nothing for this one."""
    try:
        return stat.S_ISREG(os.stat(file).st_mode)  # from Python 3.14 on, Path.is_file tells of no refusal
    except PermissionError:
        if os.environ.get(CONFIG_VARIABLE):
            raise
        return False
    except (OSError, ValueError):
        return False


def add_kept(name: str, arguments_class: type | None, argv: Sequence[str]) -> list[str]:
    """Put what files keep for a command behind the words of its command line, and tell it.

    Args:
        name: The command.
        arguments_class: The dataclass of its flags; None: it has a parser of its own, and takes nothing.
        argv: The words after its name.

    Raises:
        ConfigError: A file cannot be read, or has a key or value that is none.
    """
    if name in FREE or arguments_class is None or {"--help", "-h"} & set(argv):
        return list(argv)
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    flags = {flag.name: flag for flag in read_flags(arguments_class)}
    given = read_words(flags.values(), words)
    if names_collection(flags.values(), given):
        given["--data"] = given.pop(WITHOUT_FLAG)
    kept = choose_kept(name, arguments_class)
    not_given = {f"--{one.flag}": one.texts for some in kept.values() for one in some if f"--{one.flag}" not in given}
    there = {flag: values for flag, values in given.items() if flag not in flags or not takes_back(flags[flag], values)}
    fitting = choose_fitting(name, there, not_given)
    added: list[str] = []
    for file, some in kept.items():
        said = [word for one in some if f"--{one.flag}" in fitting for word in _spell(flags[f"--{one.flag}"], one)]
        if said:
            print_message(f"from {file}: {shlex.join(said)}")
        added += said
    return [*words[:end], *added, *words[end:]]


def choose_kept(name: str, arguments_class: type) -> dict[Path, list[Kept]]:
    """Choose what files keep for a command: by file, each flag from the file and the table that count most.

    Raises:
        ConfigError: As ``add_kept``.
    """
    flags = list_keepable(arguments_class)
    chosen: dict[str, Kept] = {}
    for file in list_files():
        everything = list(read_file(file))
        for command in (name, ALL):
            for one in everything:
                if one.command != command:
                    continue
                if command == ALL and not _is_for(one, flags):
                    continue
                check(one, flags)
                chosen.setdefault(one.flag, one)
    by_file: dict[Path, list[Kept]] = {}
    for one in chosen.values():
        by_file.setdefault(one.file, []).append(one)
    return by_file


def _is_for(one: Kept, flags: Mapping[str, Flag]) -> bool:
    """Say whether what is kept for all commands is for this one: it has the flag, and the flag takes the value.

    Raises:
        ConfigError: The flag takes another value, as that of every other command does.
    """
    if one.flag not in flags or not find_expected(one.value, flags[one.flag]):
        return one.flag in flags
    check(one, *list_tables(ALL))
    return False


def list_tables(command: str) -> list[dict[str, Flag]]:
    """List the flags of a command that can be kept; of ``all``, those of each command."""
    from vitrieve.cli.main import COMMANDS, load_command

    tables = []
    for name in [command] if command != ALL else [name for name in COMMANDS if name not in FREE]:
        described, module = load_command(name)
        arguments_class = getattr(module, described.arguments, None)
        if arguments_class is not None:
            tables.append(list_keepable(arguments_class))
    return tables


def _spell(flag: Flag, kept: Kept) -> list[str]:
    if isinstance(kept.value, bool):
        return [flag.name if kept.value else flag.negation]
    if flag.is_repeatable and not flag.is_list:
        return [word for item in kept.texts for word in (flag.name, item)]
    return [flag.name, *kept.texts]


def list_keepable(arguments_class: type) -> dict[str, Flag]:
    """List the flags that can be kept, by name without dashes: those that the command line can take back."""
    return {
        flag.name.removeprefix("--"): flag
        for flag in read_flags(arguments_class)
        if not flag.is_positional and flag.name not in NEVER_KEPT and (flag.takes != "nothing" or flag.negation)
    }


def read_file(file: Path) -> Iterator[Kept]:
    """Yield what a file keeps, with the commands checked, and the flags not yet.

    Raises:
        ConfigError: It cannot be read or is no TOML, names a command that is none or takes nothing, or has one flag
            twice.
    """
    import tomllib

    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{file} cannot be read: {reason}.") from None
    keys: dict[str, str] = {}
    for path, value in _flatten(tables):
        one = _read_entry(file, path, value)
        key = spell_key(one.key)
        if key in keys:
            raise ConfigError(
                f"{file} has one flag twice, as {quote_name(keys[key])} and as {quote_name(one.key)}; leave one of "
                "them."
            )
        keys[key] = one.key
        yield one


def _flatten(table: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, (*before, name))
        else:
            yield (*before, name), value


def _read_entry(file: Path, path: tuple[str, ...], value: Any) -> Kept:
    command, flag = divide_key(".".join(path), file)
    refuse_letting_in(file, command, ".".join(path))
    return Kept(file=file, key=".".join(path), command=command, flag=flag, value=value)


def refuse_letting_in(file: Path, command: str, key: str) -> None:
    """Refuse defaults of a command that lets others in, in a project's file.

    Raises:
        ConfigError: The message names the user's file, where they may stand.
    """
    if command in USER_ONLY and file == Path(PROJECT_NAME):
        raise ConfigError(
            f"{file}: {key}: defaults of vitrieve {command}, which lets others in, are kept in the user's own file "
            f"alone: {find_user_file()}."
        )


def spell_key(key: str) -> str:
    """Spell a dotted key as ``vitrieve config set`` does.

    >>> spell_key("data check.num_threads")
    'data.check.num-threads'
    """
    return key.replace("_", "-").replace(" ", ".")


def divide_key(key: str, file: Path | None = None) -> tuple[str, str]:
    """Divide a dotted key into the command and the flag.

    Args:
        key: ``embed.batch-size``, ``data.check.num-threads``, ``train.optimizer.learning-rate`` or ``all.device``.
        file: The file that has it, for the message.

    Raises:
        ConfigError: No such command, or one that takes nothing from files; or no flag.
    """
    from vitrieve.cli.main import list_commands

    where = f"{file}: " if file else ""
    parts = key.replace("_", "-").split(".")
    names = [*list_commands(), ALL]
    for length in (2, 1):
        command = " ".join(parts[:length])
        if command in FREE:
            raise ConfigError(f"{where}{key}: vitrieve {command} takes no defaults from files.")
        if command in names:
            if len(parts) <= length:
                raise ConfigError(f"{where}{quote_name(key)} is no flag; write COMMAND.FLAG, as in embed.batch-size.")
            return command, ".".join(parts[length:])
    nearest = ", ".join(name.replace(" ", ".") for name in find_nearest(parts[0], names))
    raise ConfigError(f"{where}{quote_name(key)} begins with no command; the nearest: {nearest}; or all.")


def check(one: Kept, *tables: Mapping[str, Flag]) -> None:
    """Refuse a key that is no flag of its command, and a value that the flag does not take.

    Args:
        one: The value of a file.
        tables: The flags of its command; several for ``all``, of which one must take the value.

    Raises:
        ConfigError: The message names the file, the key, the value and what is accepted.
    """
    found = [flags[one.flag] for flags in tables if one.flag in flags]
    if not found:
        nearest = ", ".join(find_nearest(one.flag, {name for flags in tables for name in flags})) or "none"
        raise ConfigError(
            f"{one.file}: {quote_name(one.key)} is no flag of vitrieve {one.command} that can be kept; the nearest: "
            f"{nearest}."
        )
    expected = [find_expected(one.value, flag) for flag in found]
    if all(expected):
        raise ConfigError(f"{one.file}: {one.key} is {one.value!r}; expected {expected[0]}.")
