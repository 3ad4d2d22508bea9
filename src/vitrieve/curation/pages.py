"""The reports of this folder as a page in one file, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import PackageLoader

from vitrieve.artifacts import write_text_durably
from vitrieve.curation.duplicates import DuplicateReport
from vitrieve.data.decode import read_image_bytes, shrink, to_data_uri
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError
from vitrieve.evaluation.report import render_page

THUMBNAIL_PX = 160
MAX_PICTURES = 900
"""The most pictures on a page; the whole list is in the CSV and in the JSON."""
MAX_MEMBERS = 12
"""The most pictures of one group."""


def write_duplicates_page(report: DuplicateReport, path: Path | str) -> None:
    """Write the groups with their pictures as a page in one file, which needs no other.

    Args:
        report: What ``duplicates`` found.
        path: File to write.
    """
    shown, num_pictures = [], 0
    for group in report.groups:
        members = list(zip(group.image_ids, group.similarities, strict=True))[:MAX_MEMBERS]
        num_pictures += len(members)
        if num_pictures > MAX_PICTURES:
            break
        shown.append((group, members))
    uris = build_thumbnails(report.records[name] for _, members in shown for name, _ in members)
    page = render_page(
        "duplicates.html.j2",
        PackageLoader("vitrieve.curation"),
        report=report,
        shown=shown,
        uris=uris,
        thumbnail_px=THUMBNAIL_PX,
    )
    write_text_durably(Path(path), page)


def write_duplicates_csv(report: DuplicateReport, path: Path | str) -> None:
    """Write a row for each picture of a group: ``group, image_id, keep, level, similarity, path``.

    Args:
        report: What ``duplicates`` found.
        path: File to write.
    """
    rows = (
        {
            "group": number,
            "image_id": image_id,
            "keep": str(image_id == group.keep).lower(),
            "level": group.level,
            "similarity": f"{similarity:.4f}",
            "path": report.records[image_id].path,
        }
        for number, group in enumerate(report.groups, start=1)
        for image_id, similarity in zip(group.image_ids, group.similarities, strict=True)
    )
    write_csv(path, ("group", "image_id", "keep", "level", "similarity", "path"), rows)


def write_csv(path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    r"""Write a table as CSV with a header; bytes of names that are no text are spelled ``\xNN``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_durably(Path(path), text.getvalue().encode("utf-8", "backslashreplace").decode())


def build_thumbnails(records: Iterable[ImageRecord]) -> dict[str, str]:
    """Return small copies as addresses, by name; a picture that cannot be read has an empty one."""
    uris = {}
    for record in records:
        try:
            uris[record.image_id] = to_data_uri(shrink(read_image_bytes(record.path), THUMBNAIL_PX, record.box))
        except (DecodeError, MemoryError):
            uris[record.image_id] = ""
    return uris
