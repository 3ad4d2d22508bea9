"""Which kinds of values the metadata columns of a LanceDB table have, remembered as long as nothing changes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import reduce
from operator import or_
from pathlib import Path

from vitrieve.index.kinds import NOTHING, Kinds
from vitrieve.index.lance_files import read_version_stamp
from vitrieve.index.lance_library import Table
from vitrieve.index.lance_schema import kinds_sql


class KnownKinds:
    """The kinds of columns that were asked for, of one version of the table.

    Args:
        folder: The index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Replaced as one, because threads search at the same time.
        self._known: tuple[Hashable, dict[str, Kinds]] = (None, {})

    def find(self, table: Table, columns: Sequence[str]) -> dict[str, Kinds]:
        """Find the kinds of some columns, as the table is now."""
        stamp = read_version_stamp(self._folder)  # before the table is read: what is found is of then or later
        known = self._known[1] if stamp is not None and stamp == self._known[0] else {}
        found = {column: known[column] if column in known else _find_kinds(table, column) for column in columns}
        self._known = (stamp, {**known, **found})
        return found


def _find_kinds(table: Table, column: str) -> Kinds:
    """Look for one value of each kind."""
    return reduce(
        or_,
        (
            kind
            for kind, condition in kinds_sql(column).items()
            if table.search().where(condition).select(["image_id"]).limit(1).to_arrow().num_rows
        ),
        NOTHING,
    )
