"""A source: pictures that a text file lists, a line each, ``CLASS PATH``; every second class is for testing."""

from __future__ import annotations

from pathlib import Path

from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import Description, Source
from vitrieve.errors import DataError


def read_lines(path: str, protocol: str) -> Dataset:
    """Read the pictures that a file lists.

    Args:
        path: The file; the paths in it are relative to its folder.
        protocol: One of ``LINES.protocols``.

    Raises:
        DataError: The file cannot be read, or has a line that is none.
    """
    file = Path(path)
    try:
        lines = [line.split(maxsplit=1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected lines CLASS PATH.") from None
    for number, words in enumerate(lines, start=1):
        if len(words) != 2:
            raise DataError(f"{path}, line {number}: expected CLASS PATH.")
    names = tuple(sorted({name for name, _ in lines}))
    records = tuple(
        ImageRecord(
            image_id=place,
            path=file.parent / place,
            label=names.index(name),
            split="test" if names.index(name) % 2 else "train",
        )
        for name, place in sorted(lines)
    )
    return Dataset(name="lines", protocol=protocol, records=records, label_names=names)


LINES = Source(
    path_kind="FILE",
    protocols=("every_second",),
    read=read_lines,
    description=Description(
        title="pictures that a text file lists",
        origin="your own",
        layout=("CLASS PATH    a line for each picture",),
        license="that of the pictures",
        size="any",
        protocols=("every_second",),
    ),
)
