"""Which data sets weights have seen, so that nothing is measured fairly there.

A published data set is known by its name, and a copy of it by the names of its pictures, which stay with it: in another
folder, in shards, in a table, as a part of the collection, or made small or gray. Pictures that were given other names
are not known. The name of a folder or a file says nothing, because anybody may call one so.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from vitrieve.data.records import SPLITS, Dataset, choose_records, read_columns, read_ids
from vitrieve.data.sources import list_sources
from vitrieve.model.pretrained import WEIGHTS, WeightsEntry
from vitrieve.model.tensors import read_arrays

SEEN_ONE_OF = 10
"""A data set counts as seen where one of so many images of its test classes has a known name: a few are alike by
accident."""
NUM_ASKED = 10_000
"""Images of test classes whose names are looked at; of more, as many at even distances."""
_HASH_BYTES = 4
_BOX = re.compile(r"#[-+.,e\d]+$")
"""What ``table.py`` puts after the name of a picture that has several boxes."""
_DISTRACTORS = " + "
"""Stands between the names of a data set and of the distractors in its gallery."""


def list_seen(name: str, datasets: Iterable[Dataset]) -> list[str]:
    """List the data sets whose test classes weights were trained on; one without queries is none.

    Args:
        name: Name of the weights, of the table or not.
        datasets: Data sets.

    Returns:
        Their names, each once; where the pictures told it, with the collection that they are named as in.

    Raises:
        ArtifactError: The file of the pictures' names, a part of this package, is missing or damaged.
    """
    entry = WEIGHTS.get(name)
    if entry is None or not entry.trained_on:
        return []
    found = (_describe_seen(entry, dataset) for dataset in datasets)
    return list(dict.fromkeys(name for name in found if name is not None))


def describe_seen(encoder: str, start: str, datasets: Iterable[Dataset]) -> tuple[str, ...]:
    """Say of each data set that the start of an encoder has seen that figures on it mislead.

    Args:
        encoder: How messages name the encoder.
        start: Name of the weights that it is, or that its training started from.
        datasets: Data sets whose test images it is measured on.
    """
    return tuple(
        f"{encoder}: its start, {start}, has seen the test classes of {name}: the figures say nothing about classes "
        "that it has not seen"
        for name in list_seen(start, datasets)
    )


def hash_names(image_ids: Iterable[str]) -> npt.NDArray[np.uint32]:
    """Hash the names of pictures without folder, suffix and box, in lower case: ``(N,)``.

    >>> one, other, third = hash_names(["val/Kiwi_001.jpg", "low/kiwi_001.png#0,0,9.5,8", "Kiwi_002.jpg"])
    >>> one == other, one == third
    (np.True_, np.False_)
    """
    names = (PurePosixPath(_BOX.sub("", image_id)).stem.lower() for image_id in image_ids)
    digests = (hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES) for name in names)
    return np.frombuffer(b"".join(digest.digest() for digest in digests), "<u4")


def _describe_seen(entry: WeightsEntry, dataset: Dataset) -> str | None:
    rows = _find_tested(dataset)
    if not len(rows):
        return None
    known = {} if entry.pictures is None else read_arrays(entry.pictures)
    name = dataset.name.partition(_DISTRACTORS)[0]
    if name in entry.trained_on and _is_name_its_own(name, dataset.source, are_pictures_known=name in known):
        return dataset.name
    if not known:
        return None
    num_asked = min(len(rows), NUM_ASKED)
    asked = choose_records(dataset.records, rows[np.arange(num_asked) * len(rows) // num_asked])
    hashes = hash_names(read_ids(asked))
    is_in = {collection: np.isin(hashes, of_it) for collection, of_it in known.items()}
    if SEEN_ONE_OF * np.any(list(is_in.values()), axis=0).sum() < num_asked:
        return None
    collections = sorted((name for name in is_in if is_in[name].any()), key=lambda name: -is_in[name].sum())
    return f"{dataset.name} (its pictures are named as in {' and '.join(collections)})"


def _is_name_its_own(name: str, source: str, *, are_pictures_known: bool) -> bool:
    """Say whether a data set has its name from those who published it, not from a folder or file that anybody named.

    Shards have the name of the data set that was packed, which tells where the pictures cannot.

    >>> [_is_name_its_own("emoji", source, are_pictures_known=False) for source in ("emoji", "", "shards:a", "a/emoji")]
    [True, True, True, False]
    """
    kind = source.partition(":")[0]
    is_published = kind == name and name in list_sources()
    return not source or is_published or (kind == "shards" and not are_pictures_known)


def _find_tested(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Find the test images of the classes that are asked for, ``(N,)`` rows: a million distractors are none of them."""
    columns = read_columns(dataset.records)
    is_tested = columns.splits == SPLITS.index("test")
    asked = np.unique(columns.labels[is_tested & columns.is_query])
    return np.flatnonzero(is_tested & np.isin(columns.labels, asked))
