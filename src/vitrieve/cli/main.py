"""The entry point: which command is called, and what happens with errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from vitrieve import __version__
from vitrieve.cli.commands import COMMANDS, build_help, find_command, list_commands
from vitrieve.cli.console import print_message, print_result
from vitrieve.cli.failures import STATUS_DONE, STATUS_WRONG_USE, debugging, explain_failure
from vitrieve.cli.former import spell_now
from vitrieve.cli.signals import interrupted_by_sigterm
from vitrieve.cli.streams import flush_results, keep_output_for_results, spell_every_name
from vitrieve.errors import ConfigError, unknown_name_message

DEBUG_FLAG = "--debug"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``vitrieve`` and return its exit status.

    0: done. 1: the checked thing is not fine. 2: wrong use or input, after one message on standard error.
    130: interrupted.

    Args:
        argv: The words after ``vitrieve``; None: those of this process.
    """
    words, is_debug = _take_debug_flag(sys.argv[1:] if argv is None else argv)
    spell_every_name()
    with keep_output_for_results(), debugging(is_debug):
        try:
            with interrupted_by_sigterm():
                status = _dispatch(words)
                flush_results()  # a reader that has gone shows itself here, not after main
                return status
        except SystemExit as stop:  # from tyro: --help, or a value it cannot read
            return stop.code if isinstance(stop.code, int) else STATUS_DONE
        except BaseException as error:
            return explain_failure(error, advice=_advise_after_interrupt(words))


def _take_debug_flag(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out of the words, wherever it stands before ``--``."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != DEBUG_FLAG]
    return kept + words[end:], len(kept) < end


def _dispatch(words: list[str]) -> int:
    if words[:1] in (["--help"], ["-h"]):
        print_result(*build_help().split("\n"))
        return STATUS_DONE
    if words == ["--version"]:
        print_result(f"vitrieve {__version__}")
        return STATUS_DONE
    if not words:
        print_message(*build_help().split("\n"))
        return STATUS_WRONG_USE
    words, notes = spell_now(words)
    print_message(*notes)
    name = find_command(words)
    if name is None:
        return _answer_without_command(words)
    return _run_command(name, words[len(name.split()) :])


def _answer_without_command(words: Sequence[str]) -> int:
    """Help with a group of commands (``vitrieve weights``), or refuse an unknown name."""
    group = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if not group:
        raise ConfigError(unknown_name_message("command", words[0], COMMANDS) + " See: vitrieve --help")
    is_help = len(words) > 1 and words[1] in ("--help", "-h")
    if len(words) > 1 and not is_help:
        raise ConfigError(unknown_name_message("command", " ".join(words[:2]), group))
    (print_result if is_help else print_message)("usage: vitrieve COMMAND [FLAGS]", "", *list_commands(group))
    return STATUS_DONE if is_help else STATUS_WRONG_USE


def _run_command(name: str, argv: list[str]) -> int:
    command = COMMANDS[name]
    module = import_module(command.module)
    prog = f"vitrieve {name}"
    if hasattr(module, "main"):
        return int(module.main(argv, prog))
    from vitrieve.cli.arguments import parse_arguments

    arguments = parse_arguments(getattr(module, command.arguments), argv, prog)
    return int(getattr(module, command.run)(arguments))


def _advise_after_interrupt(words: Sequence[str]) -> str:
    name = find_command(words)
    if name is None or not COMMANDS[name].is_resumable:
        return ""
    return "what is done is kept: run the same command with --resume to go on."
