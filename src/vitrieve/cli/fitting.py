"""Which kept defaults fit a command line: those that would be refused there are left out (``defaults.py``).

Two kept flags do not give way, and are refused as on the command line: ``--store``, because the index would be made in
another place, unnoticed, and ``--map-path`` of a service with a write token, because pictures would not be found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vitrieve.artifacts import find_kind, has_artifact
from vitrieve.errors import DataError

Values = Mapping[str, Sequence[str]]
"""Name of each flag that is given or kept -> its values; a word that names the collection is one of ``--data``."""
EVERY = "every"
"""The key of ``ONLY_FOR`` for all commands that have a flag."""

APART: Mapping[str, tuple[tuple[str, str], ...]] = {
    "calibrate": (
        ("--data", "--embeddings"),
        ("--column", "--data --embeddings"),
        ("--false-accept-rate", "--false-reject-rate"),
    ),
    "data audit": (("--apply", "--html --csv"),),
    "duplicates": (
        ("--undo", "--html --csv --move-to --link"),
        ("--link", "--move-to"),
        ("--level=exact", "--threshold"),
    ),
    "embed": (("--join", "--shard --ray --reuse"), ("--ray", "--shard --reuse")),
    "evaluate": (("--compare", "--embeddings --index"),),
    "export": (
        ("--weights", "--scales --delta-rank --data"),
        ("--delta-rank", "--image-size --scales"),
        ("--format=sentence-transformers,torch-export,coreml,tflite", "--weights --delta-rank --data"),
    ),
    "index": (("--verify", "--embeddings"), ("--out", "--index")),
    "serve": (("--collections", "--index --encoder --map-path"),),
}
"""Command -> a flag, and those that are refused beside it; a flag may stand with the values of which that is so."""
ONLY_WITH: Mapping[str, Mapping[str, str]] = {
    "calibrate": {"--encoder": "--data", "--exclude": "--data"},
    "duplicates": {"--undo-file": "--link"},
    "embed": {"--ray-actors": "--ray"},
    "export": {"--data": "--delta-rank"},
    "index": {"--index": "--verify", "--code-bytes": "--index-kind=ivf_pq", "--uri": "--store=milvus,pgvector"},
    "sync": {"--uri": "--store=milvus,pgvector"},
    "up": {"--uri": "--store=milvus,pgvector"},
}
"""Command -> flag -> what it is refused without, spelled as in ``APART``."""


def _is_there(word: str, values: Values) -> bool:
    """Say whether a flag is there; of ``--flag=some,values``, with one of these values."""
    flag, _, some = word.partition("=")
    return flag in values and (not some or bool({*some.split(",")} & {*values[flag]}))


def _names_pictures(values: Values) -> bool:
    """Say whether a source is a folder of pictures, from which files can be left out."""
    from vitrieve.data.sources import is_folder_source

    return any(map(is_folder_source, [*values.get("--data", ()), *values.get("--distractors", ())]))


def _names_no_vectors(values: Values) -> bool:
    """Say whether a collection is a folder of pictures, and neither an index nor embeddings."""
    has_vectors = [find_kind(Path(source)) in ("index", "embeddings") for source in values.get("--data", ())]
    return not any(has_vectors) and _names_pictures(values)


def _keeps_one_reranking(values: Values) -> bool:
    """Say whether an evaluation of one encoder chooses one re-ranking, which an index can remember."""
    from vitrieve.data.sources import list_protocols
    from vitrieve.evaluation.revisited import REVISITED_ROLES
    from vitrieve.rerank.names import AUTO

    if [*values.get("--rerank", ())] != [AUTO]:
        return False
    protocols = set(values.get("--protocol", ()))
    for source in () if protocols else values.get("--data", ()):
        with suppress(DataError):  # which is told when the source is read
            protocols |= set(list_protocols(source)) & set(REVISITED_ROLES)  # all of them are measured
    return len(protocols) <= 1


def _makes_index(values: Values) -> bool:
    """Say whether a sync makes a new index; one that is there has its store, and its address."""
    return not any(has_artifact(Path(index)) for index in values.get("--index", ()))


ONLY_FOR: Mapping[str, Mapping[str, Callable[[Values], bool]]] = {
    EVERY: {"--exclude": _names_pictures},
    "duplicates": {"--exclude": _names_no_vectors},
    "evaluate": {"--index": _keeps_one_reranking},
    "index": {
        "--index-kind": lambda values: (
            not _is_there("--index-kind=ivf_pq,ivf_rq", values) or not _is_there("--store=exact,pgvector", values)
        )
    },
    "sync": {"--store": lambda values: _makes_index(values) or "--uri" in values, "--uri": _makes_index},
    "up": {
        "--exclude": lambda _: True,  # up takes a folder alone, also one that is called as a data set is
        "--store": lambda values: _makes_index(values) or "--uri" in values,
        "--uri": _makes_index,
    },
}
"""Command -> flag -> what says whether the flag is for what is asked for."""


def choose_fitting(command: str, given: Values, kept: Values) -> set[str]:
    """Choose which kept flags fit a command line.

    Args:
        command: The command.
        given: What the command line has, as ``flags.read_words`` reads it, without what it takes back.
        kept: What files keep for the command and the command line does not say, what counts most first.

    Returns:
        Names of the flags of ``kept`` that would not be refused. Of two that are refused together the one that counts
        more is chosen.
    """
    unfit: set[str] = set()
    needed = ONLY_WITH.get(command, {})
    conditions = {**ONLY_FOR[EVERY], **ONLY_FOR.get(command, {})}
    while True:
        values = dict(given)
        for flag in kept:
            if flag not in unfit and not _is_refused(flag, command, {**values, flag: kept[flag]}):
                values[flag] = kept[flag]
        falling = {
            flag
            for flag in values.keys() - given.keys()
            if (flag in needed and not _is_there(needed[flag], values))
            or (flag in conditions and not conditions[flag](values))
        }
        if not falling:
            return values.keys() - given.keys()
        unfit |= falling  # and what was left out because of them may fit


def _is_refused(flag: str, command: str, values: Values) -> bool:
    """Say whether a flag is refused beside another one that is there."""
    pairs = [(one, other) for one, others in APART.get(command, ()) for other in others.split()]
    return any(
        flag in (one.partition("=")[0], other.partition("=")[0]) and _is_there(one, values) and _is_there(other, values)
        for one, other in pairs
    )
