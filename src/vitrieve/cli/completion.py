"""``vitrieve completion``: a script with which a shell completes commands, flags and their values.

The script is static: it holds the names that there were when it was printed, those of other packages included, and a
key press starts no program.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from vitrieve.cli.console import print_names
from vitrieve.cli.flags import Flag, read_flags
from vitrieve.cli.verbosity import FLAGS
from vitrieve.errors import ConfigError

COMMON_FLAGS = (*FLAGS, "--help")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Print a script that completes vitrieve's commands, flags and values in a shell.

    bash: vitrieve completion bash > ~/.local/share/bash-completion/completions/vitrieve. zsh: > a file _vitrieve in a
    folder of fpath. fish: > ~/.config/fish/completions/vitrieve.fish. Print it again after an update.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(metavar="{bash,zsh,fish}")]
    """The shell that reads the script."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """What can follow a command.

    Attributes:
        summary: What the command does.
        flags: Its flags, without those of every command.
        words: What its first word without a flag may be; empty where that is a file, or nothing is known.
    """

    summary: str
    flags: tuple[Flag, ...]
    words: tuple[str, ...] = ()


def run(arguments: Arguments) -> int:
    """Print the script."""
    commands = list_completed()
    build = {"bash": _build_bash, "zsh": _build_zsh, "fish": _build_fish}[arguments.shell]
    print_names(build(commands), end="\n")
    return 0


def list_completed() -> Mapping[str, Completed]:
    """List all commands with what can follow them; a package that cannot be loaded has no flags."""
    from vitrieve.cli.main import list_commands

    return {name: _describe(name) for name in list_commands()}


def _describe(name: str) -> Completed:
    from vitrieve.cli.main import load_command

    try:
        command, module = load_command(name)
        flags = tuple(read_flags(getattr(module, command.arguments)))
    except (ConfigError, AttributeError):  # of another package: broken, or with a parser of its own
        return Completed(summary="", flags=())
    positional = [flag for flag in flags if flag.is_positional]
    words = positional[0].choices if positional else ()
    return Completed(
        summary=command.summary,
        flags=tuple(flag for flag in flags if not flag.is_positional),
        words=words or _list_first_words(name),
    )


def _list_first_words(name: str) -> tuple[str, ...]:
    """List the names that stand behind some commands."""
    if name in ("train", "compare"):
        from vitrieve.recipes import RECIPES

        return tuple(RECIPES)
    if name == "data describe":
        from vitrieve.data.sources import list_sources

        return list_sources()
    if name in ("weights pull", "weights use", "weights describe"):
        from vitrieve.model.pretrained import WEIGHTS

        return tuple(WEIGHTS)
    if name == "reproduce":
        return tuple(f"table{number}" for number in range(2, 10)) + tuple(f"figure{number}" for number in range(2, 6))
    return ()


def _list_groups(commands: Mapping[str, Completed]) -> dict[str, list[str]]:
    """List the commands of two words by their first one."""
    groups: dict[str, list[str]] = {}
    for name in commands:
        first, _, second = name.partition(" ")
        if second:
            groups.setdefault(first, []).append(second)
    return groups


def _summarize(first: str, commands: Mapping[str, Completed]) -> str:
    return commands[first].summary if first in commands else "a group of commands"


def _list_first(commands: Mapping[str, Completed]) -> list[str]:
    return list(dict.fromkeys(name.split()[0] for name in commands))


# bash


def _build_bash(commands: Mapping[str, Completed]) -> Iterator[str]:
    groups = _list_groups(commands)
    yield from (
        "# vitrieve completion bash",
        "_vitrieve() {",
        '    local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"',
        "    local command= place=0 i word words= flags= first= value=",
        "    COMPREPLY=()",
        '    if [[ $current == "=" ]]; then current=',
        '    elif [[ $before == "=" ]]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi',
        "    for ((i = 1; i < COMP_CWORD; i++)); do",
        '        word="${COMP_WORDS[i]}"',
        "        [[ $word == -* ]] && continue",
        '        case "$command$word" in',
        f'            {"|".join(groups)}) command="$word " ;;',
        '            *) command="$command$word"; place=$i; break ;;',
        "        esac",
        "    done",
        '    case "$command" in',
        f'        "") words={_quote_list([*_list_first(commands), *FLAGS, "--help", "--version"])} ;;',
        *(f'        "{first} ") words={_quote_list(seconds)} ;;' for first, seconds in groups.items()),
    )
    for name, completed in commands.items():
        yield from (
            f'        "{name}")',
            f"            flags={_quote_list([*_spell_all(completed.flags), *COMMON_FLAGS])}",
        )
        if completed.words:
            yield f"            if ((COMP_CWORD == place + 1)); then words={_quote_list(completed.words)}; fi"
        yield '            case "$before" in'
        for flag in completed.flags:
            if flag.choices:
                yield f"                {'|'.join(_takers(flag))}) value={_quote_list(flag.choices)} ;;"
        for kind, told in (("path", "files"), ("value", "nothing")):
            takers = [
                word for flag in completed.flags if flag.takes == kind and not flag.choices for word in _takers(flag)
            ]
            if takers:
                yield f"                {'|'.join(takers)}) value={told} ;;"
        yield from ("            esac ;;",)
    yield from (
        "    esac",
        '    case "$value" in',
        "        files) return ;;",
        "        nothing) compopt +o default 2>/dev/null; return ;;",
        '        ?*) words="$value" ;;',
        '        *) if [[ $current == -* && -n $flags ]]; then words="$flags"; fi ;;',
        "    esac",
        '    if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$current")); fi',
        "}",
        "complete -o default -F _vitrieve vitrieve",
    )


def _quote_list(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))


def _spell_all(flags: Sequence[Flag]) -> list[str]:
    return [word for flag in flags for word in flag.spellings]


def _takers(flag: Flag) -> tuple[str, ...]:
    return (flag.name, *flag.others)


# zsh


def _build_zsh(commands: Mapping[str, Completed]) -> Iterator[str]:
    from vitrieve.cli.main import COMMANDS

    groups = _list_groups(commands)
    yield from (
        "#compdef vitrieve",
        "_vitrieve() {",
        "    local -a names",
        "    local command= word",
        "    local -i i skip=1",
        "    for ((i = 2; i < CURRENT; i++)); do",
        "        word=$words[i]",
        "        if [[ $word == -* ]]; then (( skip++ )); continue; fi",
        '        case "$command$word" in',
        f'            ({"|".join(groups)})) command="$word "; (( skip++ )) ;;',
        '            *) command="$command$word"; break ;;',
        "        esac",
        "    done",
        '    case "$command" in',
        '        "")',
        "            names=(",
        *(f"                {_quote_zsh_name(first, _summarize(first, commands))}" for first in _list_first(commands)),
        "            )",
        "            _describe command names",
        f"            compadd -- {' '.join([*FLAGS, '--help', '--version'])}",
        "            return ;;",
    )
    for first, seconds in groups.items():
        yield f'        "{first} ")'
        yield "            names=("
        for second in seconds:
            summary = COMMANDS[f"{first} {second}"].summary
            yield f"                {_quote_zsh_name(second, summary)}"
        yield "            )"
        yield "            _describe command names"
        yield "            return ;;"
    yield "    esac"
    yield "    (( CURRENT -= skip ))"
    yield "    shift $skip words"
    yield '    case "$command" in'
    for name, completed in commands.items():
        yield f'        "{name}") _arguments -S \\'
        yield from (f"            {spec} \\" for flag in completed.flags for spec in _build_zsh_flag(flag))
        yield from (f"            {shlex.quote(f'{one}[of every command]')} \\" for one in COMMON_FLAGS)
        if completed.words:
            yield f"            {shlex.quote('1:word:(' + ' '.join(completed.words) + ')')} \\"
        yield "            '*:file:_files' ;;"
    yield from ("    esac", "}", '_vitrieve "$@"')


def _quote_zsh_name(name: str, summary: str) -> str:
    return shlex.quote(f"{name}:{summary.replace(':', ' -')}")


def _build_zsh_flag(flag: Flag) -> Iterator[str]:
    many = "*" if flag.is_repeatable or flag.is_list else ""
    for word in flag.spellings:
        if flag.takes == "nothing":
            yield shlex.quote(f"{word}[switch]")
            continue
        action = f"({' '.join(flag.choices)})" if flag.choices else "_files" if flag.takes == "path" else " "
        name = flag.name.lstrip("-").replace("-", " ").replace(".", " ")
        equals = "=" if word.startswith("--") else ""
        yield shlex.quote(f"{many}{word}{equals}[{name}]:{name}:{action}")


# fish


def _build_fish(commands: Mapping[str, Completed]) -> Iterator[str]:
    from vitrieve.cli.main import COMMANDS

    groups = _list_groups(commands)
    yield from (
        "# vitrieve completion fish",
        "function __vitrieve_command",
        "    set -l command",
        "    for word in (commandline -opc)[2..-1]",
        "        if string match -q -- '-*' $word",
        "            continue",
        "        end",
        "        set -a command $word",
        f"        if not contains -- $command[1] {' '.join(groups)}; or test (count $command) = 2",
        "            break",
        "        end",
        "    end",
        '    test "$command" = "$argv[1]"',
        "end",
        "complete -c vitrieve -f",
    )
    top = "-n '__vitrieve_command \"\"'"
    for first in _list_first(commands):
        yield f"complete -c vitrieve {top} -a {first} -d {_quote_fish(_summarize(first, commands))}"
    yield f"complete -c vitrieve {top} -l version -d 'print the version'"
    for common, (_, does) in FLAGS.items():
        yield f"complete -c vitrieve -l {common[2:]} -d {_quote_fish(does)}"
    yield "complete -c vitrieve -l help -d 'tell the flags'"
    for first, seconds in groups.items():
        for second in seconds:
            summary = COMMANDS[f"{first} {second}"].summary
            yield f"complete -c vitrieve -n '__vitrieve_command {first}' -a {second} -d {_quote_fish(summary)}"
    for name, completed in commands.items():
        begin = f"complete -c vitrieve -n '__vitrieve_command \"{name}\"'"
        yield f"{begin} -F"
        if completed.words:
            yield f"{begin} -a {_quote_fish(' '.join(completed.words))}"
        for flag in completed.flags:
            for word in flag.spellings:
                yield f"{begin} {_spell_fish(word)}{_build_fish_value(flag)}"


def _spell_fish(word: str) -> str:
    return f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"


def _build_fish_value(flag: Flag) -> str:
    if flag.takes == "nothing":
        return ""
    if flag.choices:
        return f" -x -a {_quote_fish(' '.join(flag.choices))}"
    return " -r -F" if flag.takes == "path" else " -x"


def _quote_fish(text: str) -> str:
    escaped = re.sub(r"([\\'])", r"\\\1", text)
    return f"'{escaped}'"
