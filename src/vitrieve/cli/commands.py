"""The table of commands, and the text of ``vitrieve --help``.

No command's module is imported before it is called, so that ``vitrieve --help`` is quick and needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """Where a command is and what it does, in a line.

    Attributes:
        module: Holds ``main(argv, prog)``, or a dataclass of arguments and a function that runs them.
        summary: One line for ``vitrieve --help``.
        arguments: Name of the dataclass.
        run: Name of the function.
        is_resumable: Whether a stopped run of it goes on with ``--resume``.
    """

    module: str
    summary: str
    arguments: str = "Arguments"
    run: str = "run"
    is_resumable: bool = False


COMMANDS = {
    "doctor": Command("vitrieve.cli.doctor", "versions, processor, memory, weights and data: is everything here?"),
    "data check": Command("vitrieve.cli.data", "count a data set, and find unreadable and duplicate pictures"),
    "data describe": Command(
        "vitrieve.cli.data",
        "where to get a data set, its layout, license and size",
        "DescribeArguments",
        "run_describe",
    ),
    "weights list": Command("vitrieve.cli.weights", "list the pre-trained weights", "ListArguments", "run_list"),
    "weights pull": Command("vitrieve.cli.weights", "fetch pre-trained weights", "PullArguments", "run_pull"),
    "weights describe": Command(
        "vitrieve.cli.weights", "parameters and FLOPs of a backbone", "DescribeArguments", "run_describe"
    ),
    "train": Command(
        "vitrieve.cli.train", "fine-tune an encoder by a recipe, with a report before and after", is_resumable=True
    ),
    "evaluate": Command("vitrieve.cli.evaluate", "measure encoders on a data set, with a report", is_resumable=True),
    "reduce": Command("vitrieve.cli.reduce", "add a PCA or whitening, fitted on training images, to an encoder"),
    "reproduce": Command("vitrieve.cli.reproduce", "the paper's tables and figures: published figures beside ours"),
    "export": Command("vitrieve.cli.export", "write an encoder as ONNX, for use without torch"),
    "quantize": Command("vitrieve.cli.quantize", "add a graph in int8 to an exported encoder"),
    "embed": Command("vitrieve.cli.embed", "turn a collection of pictures into embeddings", is_resumable=True),
    "index": Command("vitrieve.cli.index", "make embeddings searchable"),
    "sync": Command("vitrieve.cli.sync", "keep an index true to a collection: embed what is new, remove what is gone"),
    "up": Command("vitrieve.cli.up", "a folder of pictures becomes a search page: sync, then serve"),
    "calibrate": Command("vitrieve.cli.calibrate", "choose the score below which nothing in an index is a match"),
    "search": Command("vitrieve.cli.search", "find the pictures most like a given one"),
    "explain": Command("vitrieve.cli.explain", "show which patches of a query and a result match"),
    "serve": Command("vitrieve.cli.serve", "serve an index as a search page, and to programs"),
}


def find_command(words: Sequence[str]) -> str | None:
    """Find the command that the words begin with; None where there is none."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name
    return None


def build_help() -> str:
    """Build the text of ``vitrieve --help``: the commands in the order in which one uses them."""
    return (
        "usage: vitrieve COMMAND [FLAGS]\n\n"
        "Train a vision transformer to find the same thing again, measure it, and search images with it.\n\n"
        f"{chr(10).join(list_commands(COMMANDS))}\n\n"
        "vitrieve COMMAND --help tells a command's flags; vitrieve --version the version. With --debug (or "
        "VITRIEVE_DEBUG=1) an error\nis shown with its traceback."
    )


def list_commands(names: Iterable[str]) -> list[str]:
    """Lay commands out with their summaries, a line each."""
    width = max(map(len, COMMANDS))
    return [f"  {name:<{width}}  {COMMANDS[name].summary}" for name in names]
