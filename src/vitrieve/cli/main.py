"""The entry point: the table of commands, which one is called, and what happens with errors.

No command's module is imported before it is called, so that ``vitrieve --help`` is quick and needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from vitrieve import __version__
from vitrieve.cli.console import (
    flush_results,
    keep_output_for_results,
    print_failure,
    print_message,
    print_result,
    spell_every_name,
)
from vitrieve.cli.failures import (
    STATUS_DONE,
    STATUS_WRONG_USE,
    explain_failure,
    interrupted_by_sigterm,
)
from vitrieve.cli.verbosity import FLAGS, take_flags, telling, telling_what_it_took
from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.plugins import describe_plugin_package, list_plugin_names, load_plugin

FORMER_COMMANDS = {"quantise": "quantize"}
FORMER_FLAGS = {
    "embed": {"--images": "--data"},
    "quantize": {"--images": "--data"},
    "reduce": {"--whiten": "--kind=pca_whitening", "--supervised": "--kind=supervised_whitening"},
}
"""Former spellings of commands, and of flags by command; they are still taken, with a note."""


@dataclass(frozen=True)
class Command:
    """Where a command is and what it does, in a line.

    Attributes:
        module: Holds ``main(argv, prog)``, or a dataclass of arguments and a function that runs them.
        summary: One line for ``vitrieve --help``.
        arguments: Name of the dataclass.
        run: Name of the function.
        is_resumable: Whether a stopped run of it goes on with ``--resume``.
        is_repeatable: Whether the same command goes on where it was stopped, without any flag.
    """

    module: str
    summary: str
    arguments: str = "Arguments"
    run: str = "run"
    is_resumable: bool = False
    is_repeatable: bool = False


COMMANDS = {
    "doctor": Command("vitrieve.cli.doctor", "versions, processor, memory, weights and data: is everything here?"),
    "data check": Command("vitrieve.cli.data", "count a data set, and find unreadable and duplicate pictures"),
    "data audit": Command(
        "vitrieve.cli.data_audit", "find probable label errors, leaks and odd pictures in a data set; correct it"
    ),
    "data pack": Command(
        "vitrieve.cli.data_pack", "pack the pictures of a source into shards that read quickly", is_resumable=True
    ),
    "data describe": Command(
        "vitrieve.cli.data",
        "where to get a data set, its layout, license and size",
        "DescribeArguments",
        "run_describe",
    ),
    "weights list": Command("vitrieve.cli.weights", "list the pre-trained weights", "ListArguments", "run_list"),
    "weights pull": Command("vitrieve.cli.weights", "fetch pre-trained weights", "PullArguments", "run_pull"),
    "weights use": Command("vitrieve.cli.weights", "choose the default encoder", "UseArguments", "run_use"),
    "weights describe": Command(
        "vitrieve.cli.weights", "parameters and FLOPs of a backbone", "DescribeArguments", "run_describe"
    ),
    "train": Command(
        "vitrieve.cli.train", "fine-tune an encoder by a recipe, with a report before and after", is_resumable=True
    ),
    "runs": Command("vitrieve.cli.runs", "training runs side by side: figures, status, and the settings that differ"),
    "evaluate": Command("vitrieve.cli.evaluate", "measure encoders on a data set, with a report", is_resumable=True),
    "compare": Command(
        "vitrieve.cli.compare", "one honest contest of training methods on data sets, with a page", is_resumable=True
    ),
    "reduce": Command(
        "vitrieve.cli.reduce", "shorten the embeddings of an encoder: PCA, whitening, or the first dimensions"
    ),
    "adapt": Command("vitrieve.cli.adapt", "learn a linear head on stored embeddings in seconds, for their encoder"),
    "align": Command("vitrieve.cli.align", "let an encoder be asked in words, learned from names or descriptions"),
    "reproduce": Command("vitrieve.cli.reproduce", "the paper's tables and figures: published figures beside ours"),
    "export": Command("vitrieve.cli.export", "write an encoder as ONNX, for use without torch"),
    "quantize": Command("vitrieve.cli.quantize", "add a graph in int8 to an exported encoder"),
    "push": Command("vitrieve.cli.push", "send an encoder to the model hub, with a card of its figures"),
    "pull": Command("vitrieve.cli.push", "fetch an encoder of the model hub", "PullArguments", "run_pull"),
    "embed": Command("vitrieve.cli.embed", "turn a collection of pictures into embeddings", is_resumable=True),
    "index": Command("vitrieve.cli.index", "make embeddings searchable"),
    "sync": Command(
        "vitrieve.cli.sync",
        "keep an index true to a collection: embed what is new, remove what is gone",
        is_repeatable=True,
    ),
    "up": Command(
        "vitrieve.cli.up", "a folder of pictures becomes a search page: sync, then serve", is_repeatable=True
    ),
    "calibrate": Command("vitrieve.cli.calibrate", "choose the score below which nothing in an index is a match"),
    "duplicates": Command(
        "vitrieve.cli.duplicates", "find pictures that are there twice; move or link them, and undo it"
    ),
    "map": Command("vitrieve.cli.map", "lay the pictures of an index out in the plane; a page with lasso and groups"),
    "search": Command("vitrieve.cli.search", "find the pictures most like a given one"),
    "explain": Command("vitrieve.cli.explain", "show which patches of a query and a result match"),
    "serve": Command("vitrieve.cli.serve", "serve an index as a search page, and to programs"),
    "feedback": Command("vitrieve.cli.feedback", "count what people said of results, and export it for a training"),
    "mcp": Command("vitrieve.cli.mcp", "let an assistant search an index (Model Context Protocol)"),
    "config show": Command(
        "vitrieve.cli.config", "show which defaults for flags are kept", "ShowArguments", "run_show"
    ),
    "config set": Command(
        "vitrieve.cli.config", "keep a default for a flag, in a TOML file", "SetArguments", "run_set"
    ),
    "config unset": Command("vitrieve.cli.config", "forget a default that is kept", "UnsetArguments", "run_unset"),
    "config path": Command("vitrieve.cli.config", "tell the place of the user's file", "PathArguments", "run_path"),
    "completion": Command("vitrieve.cli.completion", "let bash, zsh or fish complete commands, flags and values"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``vitrieve`` and return its exit status.

    0: done. 1: the checked thing is not fine. 2: wrong use or input, after one message on standard error.
    3: a fault of vitrieve. 130 and 143: interrupted by Ctrl-C and by SIGTERM, but for a service, whose end that is.

    Args:
        argv: The words after ``vitrieve``; None: those of this process.
    """
    words, flags = take_flags(sys.argv[1:] if argv is None else argv)
    spell_every_name()
    try:
        with telling(flags), keep_output_for_results():
            return _run(words)
    except ConfigError as error:  # flags that contradict each other
        return explain_failure(error)


def _run(words: list[str]) -> int:
    try:
        with interrupted_by_sigterm(), telling_what_it_took():
            status = _dispatch(words)
            flush_results()  # a reader that has gone shows itself here, not after main
            return status
    except SystemExit as stop:  # from tyro: --help, or a value it cannot read
        return stop.code if isinstance(stop.code, int) else STATUS_DONE
    except BaseException as error:
        return explain_failure(error, advice=_advise_after_interrupt(words))


def _dispatch(words: list[str]) -> int:
    if words[:1] in (["--help"], ["-h"]):
        print_result(*_build_help().split("\n"))
        return STATUS_DONE
    if words == ["--version"]:
        print_result(f"vitrieve {__version__}")
        return STATUS_DONE
    if not words:
        print_failure(*_build_help().split("\n"))
        return STATUS_WRONG_USE
    words, notes = _spell_now(words)
    print_message(*notes)
    name = _find_command(words)
    if name is None:
        return _answer_without_command(words)
    return _run_command(name, words[len(name.split()) :])


def _answer_without_command(words: Sequence[str]) -> int:
    """Help with a group of commands (``vitrieve weights``), or refuse an unknown name."""
    group = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if not group:
        names = (*COMMANDS, *list_plugin_names("command"))
        raise ConfigError(unknown_name_message("command", words[0], names) + " See: vitrieve --help")
    is_help = len(words) > 1 and words[1] in ("--help", "-h")
    if len(words) > 1 and not is_help:
        raise ConfigError(unknown_name_message("command", " ".join(words[:2]), group))
    (print_result if is_help else print_failure)("usage: vitrieve COMMAND [FLAGS]", "", *_list_commands(group))
    return STATUS_DONE if is_help else STATUS_WRONG_USE


def load_command(name: str) -> tuple[Command, ModuleType]:
    """Import the module of a command; one of another package is a module like ours.

    Raises:
        ConfigError: The other package cannot be loaded, or its module is no command.
    """
    if name in COMMANDS:
        return COMMANDS[name], import_module(COMMANDS[name].module)
    module = load_plugin("command", name)
    package = describe_plugin_package("command", name)
    if not isinstance(module, ModuleType) or not (hasattr(module, "main") or hasattr(module, "run")):
        raise ConfigError(
            f"the command {name} of the package {package} is {module!r}; expected a module with Arguments and run."
        )
    return Command(module.__name__, f"added by {package}"), module


def _run_command(name: str, argv: list[str]) -> int:
    command, module = load_command(name)
    from vitrieve.cli.defaults import add_kept

    prog, has_own_parser = f"vitrieve {name}", hasattr(module, "main")
    if argv or not has_own_parser:  # train without a word tells its recipes
        argv = add_kept(name, getattr(module, command.arguments, None), argv)
    if has_own_parser:
        return int(module.main(argv, prog))
    from vitrieve.cli.arguments import parse_arguments

    arguments = parse_arguments(getattr(module, command.arguments), argv, prog)
    return int(getattr(module, command.run)(arguments))


def _advise_after_interrupt(words: Sequence[str]) -> str:
    command = COMMANDS.get(_find_command(words) or "")
    if command is None or not (command.is_resumable or command.is_repeatable):
        return ""
    flag = " with --resume" if command.is_resumable else ""
    return f"what is done is kept: run the same command{flag} to go on."


def _find_command(words: Sequence[str]) -> str | None:
    """Find the command that the words begin with; None where there is none."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name
    return words[0] if words and words[0] in list_plugin_names("command") else None


def _build_help() -> str:
    """Build the text of ``vitrieve --help``: the commands in the order in which one uses them."""
    return (
        "usage: vitrieve COMMAND [FLAGS]\n\n"
        "Train a vision transformer to find the same thing again, measure it, and search images with it.\n\n"
        f"{chr(10).join(_list_commands(list_commands()))}\n\n"
        "vitrieve COMMAND --help tells a command's flags; vitrieve --version the version. Every command takes:\n\n"
        f"{chr(10).join(f'{flag:<9}  {does} (or {variable}=1)' for flag, (variable, does) in FLAGS.items())}"
    )


def _list_commands(names: Iterable[str]) -> list[str]:
    """Lay commands out with their summaries, a line each."""
    width = max(map(len, COMMANDS))
    return [f"  {name:<{width}}  {_summarize(name)}" for name in names]


def _summarize(name: str) -> str:
    if name in COMMANDS:
        return COMMANDS[name].summary
    return f"added by {describe_plugin_package('command', name)}"


def list_commands() -> tuple[str, ...]:
    """List the names of all commands: those of this package, then those that other packages add."""
    return tuple(dict.fromkeys((*COMMANDS, *list_plugin_names("command"))))


def _spell_now(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace former spellings by the present ones.

    Args:
        words: The words after ``vitrieve``.

    Returns:
        The words as they are spelled now, and a note for each that was replaced.

    >>> _spell_now(["quantise", "--images", "emoji"])[0]
    ['quantize', '--data', 'emoji']
    """
    if not words:
        return [], []
    command, *flags = words
    present = [FORMER_COMMANDS.get(command, command)]
    notes = [f"the command {command} is called {present[0]} now."] if command in FORMER_COMMANDS else []
    flag_names = _list_former_train_flags() if present[0] == "train" else FORMER_FLAGS.get(present[0], {})
    for word in flags:
        name, equals, value = word.partition("=")
        found = flag_names.get(name.replace("_", "-"))
        if found is not None:
            notes.append(f"{name} of {present[0]} is called {found} now.")
            word = found + equals + value
        present.append(word)
    return present, notes


def _list_former_train_flags() -> dict[str, str]:
    """List the flags of the time when the settings of all losses shared one table, with the present ones."""
    from vitrieve.objective.losses import ObjectiveConfig

    names = {former: path.split(".") for former, path in ObjectiveConfig.FORMER_NAMES.items()}
    flags = {
        f"--objective.{prefix}{former}": f"--objective.{loss}.{prefix}{field}"
        for former, (loss, field) in names.items()
        for prefix in ("", "no-")  # a switch has both
    }
    return {former.replace("_", "-"): present.replace("_", "-") for former, present in flags.items()}
