"""The exception tree: everything vitrieve raises on purpose.

    VitrieveError                  caught by the command line, printed as one message
    ├── InputError (ValueError)    wrong use or wrong input: exit status 2
    │   ├── ConfigError            a setting that is unknown, out of range or without effect
    │   ├── DataError              a collection or data set that cannot be used
    │   │   ├── DecodeError        one image that cannot be turned into RGB
    │   │   │   └── PictureTooLargeError   it would take too many pixels or too much work
    │   │   └── UnreachableError   a server with images that does not answer
    │   ├── WeightsError           weights that are unknown, unreachable or do not fit
    │   ├── ArtifactError          a folder of ours that exists, is incomplete or does not fit
    │   │   ├── FingerprintError   made by another encoder
    │   │   ├── IncompleteError    shards of it are missing
    │   │   └── ReplacedError      another index than the one that was opened
    │   └── DiskFullError          the disk that was named has no room
    ├── NonFiniteLossError         training produced NaN or infinity: exit status 1
    ├── ClusterError               machines that were to work do not: exit status 1
    ├── UnfinishedRunError         training is done, something after its last step failed: exit status 1
    └── RankLostError              another process of the same training failed: exit status 1

A message says what was wrong (with the value), what is accepted, and what to do next. What is no VitrieveError and
no refusal of the operating system is a fault of ours: exit status 3.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

from vitrieve.quoting import quote_name

NUM_NEAREST = 3
"""Valid names that a message about an unknown one names first."""
DEBUG_VARIABLE = "VITRIEVE_DEBUG"
"""With any value but 0, errors are shown with their traceback; the flag --debug sets it."""


def is_debugging() -> bool:
    """Say whether whoever runs this wants tracebacks."""
    return is_set(DEBUG_VARIABLE)


def is_set(variable: str) -> bool:
    """Say whether an environment variable switches something on: it has a value, and not 0."""
    return os.environ.get(variable, "0") not in ("", "0")


class VitrieveError(Exception):
    """The root of all errors raised on purpose."""


class InputError(VitrieveError, ValueError):
    """Something the caller gave cannot be used as it is."""


class ConfigError(InputError):
    """A setting is unknown, out of range or contradicts another one."""


class DataError(InputError):
    """A data set or an image collection cannot be used."""


class DecodeError(DataError):
    """One image cannot be decoded; the message gives the reason."""


class PictureTooLargeError(DecodeError):
    """One image would take more pixels or more work than is spent on a picture; nothing of it was decoded."""


class UnreachableError(DataError):
    """A server with images does not answer, or refuses access; nothing is said about any image."""


class WeightsError(InputError):
    """Pre-trained weights are unknown, cannot be fetched or do not fit the backbone."""


class ArtifactError(InputError):
    """A run, encoder, embeddings or index folder exists already, is incomplete or damaged."""


class FingerprintError(ArtifactError):
    """Vectors of one encoder met another encoder."""


class IncompleteError(ArtifactError):
    """Embeddings lack what some shards were to write.

    Attributes:
        shards: Those shards, as ``--shard`` takes them.
    """

    def __init__(self, message: str, shards: tuple[str, ...]) -> None:
        """Keep the names of the shards beside the message."""
        super().__init__(message)
        self.shards = shards


class ReplacedError(ArtifactError):
    """A folder holds another index than the one that was opened; opening it again is the way on."""


class DiskFullError(InputError):
    """A file cannot be written because its disk is full; the message names it and the bytes."""


class NonFiniteLossError(VitrieveError):
    """A loss term became NaN or infinite; the message names the term and the step."""


class RankLostError(VitrieveError):
    """Another process of a training that several share died or failed."""


class ClusterError(VitrieveError):
    """A cluster cannot be reached, has no room, lets its workers die, or makes no progress; what is done is kept."""


class UnfinishedRunError(VitrieveError):
    """A training is done and its encoder is saved, but its measurement, reduction, report or export failed."""


def describe_error(error: BaseException) -> str:
    """Return what an error says: its message alone where that was written for people, else with its type before it."""
    is_told = isinstance(error, VitrieveError) or (isinstance(error, OSError) and error.strerror)
    return str(error) if is_told else f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message without its full stop, or its type where it has no message.

    >>> first_line(ValueError("no such layer.\nTry another one.")), first_line(KeyboardInterrupt())
    ('no such layer', 'KeyboardInterrupt')
    """
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def find_nearest(name: str, names: Iterable[str]) -> list[str]:
    """Find the three names most like ``name``, best first; never empty where there are names.

    A dotted name is also compared by each of its ends: who forgets the stage finds the field.

    >>> find_nearest("--koleo-weight", ["--margin", "--objective.koleo.weight"])
    ['--objective.koleo.weight', '--margin']
    """
    sought = _join_words(name.split("."))

    def likeness(candidate: str) -> float:
        parts = candidate.split(".")
        ends = (_join_words(parts[start:]) for start in range(len(parts)))
        return max(difflib.SequenceMatcher(None, sought, end).ratio() for end in ends)

    return sorted(names, key=lambda candidate: (-likeness(candidate), candidate))[:NUM_NEAREST]


def _join_words(parts: Iterable[str]) -> str:
    return "-".join(parts).replace("_", "-").lstrip("-")


def unknown_name_message(kind: str, name: str, valid: Iterable[str]) -> str:
    """Build the message for an unknown name: the nearest valid ones first, then all.

    >>> unknown_name_message("recipe", "smal", ["small", "irt_r"])
    "unknown recipe 'smal'. Did you mean 'small'? Valid: irt_r, small."
    """
    names = sorted(valid)
    nearest = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    return f"unknown {kind} {name!r}.{hint} Valid: {', '.join(map(quote_name, names))}."
