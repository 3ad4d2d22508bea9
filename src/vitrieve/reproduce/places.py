"""Where the data sets and the results are: folders under the data root, folders under ``--out``.

Next file: ``commands.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrieve.data import cub200, grocery, inshop, sfm120k, sop
from vitrieve.data.layout import data_parents
from vitrieve.reproduce.rows import Row

FOLDER_NAMES = {
    "cub200": cub200.FOLDER_NAMES,
    "sop": sop.FOLDER_NAMES,
    "inshop": inshop.FOLDER_NAMES,
    "sfm120k": sfm120k.FOLDER_NAMES,
    "roxford5k": ("roxford5k",),
    "rparis6k": ("rparis6k",),
    "grocery": grocery.FOLDER_NAMES,
}
"""Names that a data set's folder may have under the root."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set of a plan.

    Attributes:
        name: As plans name it.
        spelling: As commands name it, ``sop:DIR``; with a folder that was looked for when it is missing.
        missing: What is not there and what to do; empty when it is there.
    """

    name: str
    spelling: str
    missing: str = ""


def find_sources(names: Iterable[str], data_root: Path | None) -> dict[str, Source]:
    """Look for data sets.

    Args:
        names: Names of benchmarks, ``grocery``, ``emoji``, or any source as ``NAME:PATH``, which is taken as it is.
        data_root: Folder with a folder for each data set; None: the folder that VITRIEVE_DATA names, then
            ``../shared/datasets``.
    """
    roots = (data_root,) if data_root is not None else data_parents()
    return {name: _find_source(name, roots) for name in names}


def _find_source(name: str, roots: Iterable[Path]) -> Source:
    roots = tuple(roots)
    folders = FOLDER_NAMES.get(name)
    if folders is None:
        return Source(name=name, spelling=name)
    for root in roots:
        for folder in folders:
            if (root / folder).is_dir():
                return Source(name=name, spelling=f"{name}:{root / folder}")
    looked = " and ".join(str(root) for root in roots)
    return Source(
        name=name,
        spelling=f"{name}:{roots[0] / folders[0]}",
        missing=f"{name} is missing: no folder {' or '.join(map(repr, folders))} in {looked}. "
        f"Where to get it: vitrieve data describe {name}",
    )


def list_missing(rows: Iterable[Row], sources: Mapping[str, Source]) -> tuple[str, ...]:
    """Say what is missing for some rows, each data set once."""
    needed = dict.fromkeys(name for row in rows for name in row.sources)
    return tuple(sources[name].missing for name in needed if sources[name].missing)


def is_runnable(row: Row, sources: Mapping[str, Source]) -> bool:
    """Tell whether all data sets of a row are there."""
    return not any(sources[name].missing for name in row.sources)
