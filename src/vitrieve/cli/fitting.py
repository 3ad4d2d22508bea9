"""Which kept defaults fit a command line: those that would be refused there are left out (``defaults.py``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from vitrieve.artifacts import find_kind, has_artifact
from vitrieve.errors import DataError

Values = Mapping[str, Sequence[str]]
"""Name of each flag that is given or kept -> its values; a word that names the collection is one of ``--data``."""
EVERY = "every"
"""The key of ``ONLY_FOR`` for all commands that have a flag."""

APART: Mapping[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "calibrate": (
        (("--data",), ("--embeddings",)),
        (("--column",), ("--data", "--embeddings")),
        (("--false-accept-rate",), ("--false-reject-rate",)),
    ),
    "data audit": ((("--apply",), ("--html", "--csv")),),
    "duplicates": ((("--undo",), ("--html", "--csv", "--move-to", "--link")), (("--link",), ("--move-to",))),
    "embed": (
        (("--join",), ("--shard", "--ray", "--reuse")),
        (("--ray",), ("--shard", "--reuse")),
    ),
    "export": ((("--weights",), ("--scales", "--delta-rank", "--data")),),
    "index": ((("--verify",), ("--embeddings",)), (("--out",), ("--index",))),
    "serve": ((("--collections",), ("--index", "--encoder", "--map-path")),),
}
"""Command -> flags, and those that are refused beside them: where one is given or counts more, files do not add the
other."""
ONLY_WITH: Mapping[str, Mapping[str, str]] = {
    "calibrate": {"--encoder": "--data", "--exclude": "--data"},
    "duplicates": {"--undo-file": "--link"},
    "embed": {"--ray-actors": "--ray"},
    "export": {"--data": "--delta-rank"},
    "index": {"--index": "--verify"},
}
"""Command -> flag -> the flag without which it is refused: where neither the command line nor a file has that, files do
not add it."""


def _names_pictures(values: Values) -> bool:
    """Say whether a source is a folder of pictures, from which files can be left out; without one nothing is known."""
    from vitrieve.data.sources import is_folder_source

    sources = [*values.get("--data", ()), *values.get("--distractors", ())]
    return not sources or any(map(is_folder_source, sources))


def _names_no_vectors(values: Values) -> bool:
    """Say whether a collection is a folder of pictures, and neither an index nor embeddings."""
    has_vectors = [find_kind(Path(source)) in ("index", "embeddings") for source in values.get("--data", ())]
    return not any(has_vectors) and _names_pictures(values)


def _keeps_one_reranking(values: Values) -> bool:
    """Say whether an evaluation chooses one re-ranking, which an index can remember."""
    from vitrieve.data.sources import list_protocols
    from vitrieve.evaluation.revisited import REVISITED_ROLES
    from vitrieve.rerank.names import AUTO

    if [*values.get("--rerank", ())] != [AUTO] or "--compare" in values:
        return False
    protocols = set(values.get("--protocol", ()))
    for source in () if protocols else values.get("--data", ()):
        with suppress(DataError):  # which is told when the source is read
            protocols |= set(list_protocols(source)) & set(REVISITED_ROLES)  # all of them are measured
    return len(protocols) <= 1


def _is_on_server(values: Values) -> bool:
    """Say whether the store of a new index is on a server, which has an address."""
    from vitrieve.index.store import SERVERS

    return any(store in SERVERS for store in values.get("--store", ()))


def _makes_index(values: Values) -> bool:
    """Say whether a sync makes a new index; one that is there has its store."""
    return not any(has_artifact(Path(index)) for index in values.get("--index", ()))


def _makes_index_on_server(values: Values) -> bool:
    return _makes_index(values) and _is_on_server(values)


def _has(flag: str, *accepted: str) -> Callable[[Values], bool]:
    """Return what says whether a flag has one of some values."""
    return lambda values: any(value in accepted for value in values.get(flag, ()))


def _has_not(flag: str, *refused: str) -> Callable[[Values], bool]:
    """Return what says whether a flag, if it is there, has none of some values."""
    return lambda values: not any(value in refused for value in values.get(flag, ()))


ONLY_FOR: Mapping[str, Mapping[str, Callable[[Values], bool]]] = {
    EVERY: {"--exclude": _names_pictures},
    "duplicates": {"--exclude": _names_no_vectors, "--threshold": _has_not("--level", "exact")},
    "evaluate": {"--index": _keeps_one_reranking},
    "export": {"--delta-rank": lambda values: "--format" not in values or _has("--format", "onnx")(values)},
    "index": {
        "--index-kind": _has_not("--store", "exact", "pgvector"),
        "--code-bytes": _has("--index-kind", "ivf_pq"),
        "--uri": _is_on_server,
    },
    "sync": {"--store": _makes_index, "--uri": _makes_index_on_server},
    "up": {"--exclude": lambda values: True, "--store": _makes_index, "--uri": _makes_index_on_server},
}
"""Command -> flag -> what says whether the flag is for what is asked for; where it is not, files do not add it."""


def choose_fitting(command: str, given: Values, kept: Values) -> set[str]:
    """Choose which kept flags fit a command line.

    Args:
        command: The command.
        given: What the command line has, as ``flags.read_words`` reads it.
        kept: What files keep for the command, what counts most first.

    Returns:
        Names of the flags of ``kept`` that neither are given nor would be refused.
    """
    refused: dict[str, set[str]] = defaultdict(set)
    for some, others in APART.get(command, ()):
        for one, other in product(some, others):
            refused[one].add(other)
            refused[other].add(one)
    fitting: set[str] = set()
    for flag in kept:
        if flag not in given and not refused[flag] & {*given, *fitting}:
            fitting.add(flag)
    needed = ONLY_WITH.get(command, {})
    conditions = {**ONLY_FOR[EVERY], **ONLY_FOR.get(command, {})}
    while True:  # one that is left out may be what another one needs
        values = {**given, **{flag: kept[flag] for flag in fitting}}
        left = {
            flag
            for flag in fitting
            if needed.get(flag, flag) in values and (flag not in conditions or conditions[flag](values))
        }
        if left == fitting:
            return left
        fitting = left
