"""The reports of this folder as a page in one file, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from jinja2 import PackageLoader

from vitrieve.curation.audit import AuditReport
from vitrieve.curation.duplicates import DuplicateReport
from vitrieve.data.decode import read_image_bytes, shrink, to_data_uri
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError, UnreachableError
from vitrieve.evaluation.report import render_page
from vitrieve.writing import write_text_durably

THUMBNAIL_PX = 160
MAX_PICTURES = 900
"""The most pictures on a page; the whole list is in the CSV and in the JSON."""
MAX_MEMBERS = 12
"""The most pictures of one group."""
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")


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

    Spreadsheets open it, so it has a byte-order mark, and a name that one would compute, because it begins as a formula
    does, has a ``'`` before it.

    Args:
        report: What ``duplicates`` found.
        path: File to write.
    """
    rows = (
        {
            "group": number,
            "image_id": _disarm(image_id),
            "keep": str(image_id == group.keep).lower(),
            "level": group.level,
            "similarity": f"{similarity:.4f}",
            "path": _disarm(str(report.records[image_id].path)),
        }
        for number, group in enumerate(report.groups, start=1)
        for image_id, similarity in zip(group.image_ids, group.similarities, strict=True)
    )
    write_csv(path, ("group", "image_id", "keep", "level", "similarity", "path"), rows, is_marked=True)


def _disarm(cell: str) -> str:
    r"""Put a ``'`` before a text that spreadsheets would compute.

    Source: OWASP, "CSV Injection".

    >>> _disarm('=HYPERLINK("http://x")'), _disarm("@1.jpg"), _disarm("a=b.jpg")
    ('\'=HYPERLINK("http://x")', "'@1.jpg", 'a=b.jpg')
    """
    return f"'{cell}" if cell.startswith(_FORMULA_BEGINS) else cell


def write_csv(
    path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, object]], *, is_marked: bool = False
) -> None:
    r"""Write a table as CSV with a header; bytes of names that are no text are spelled ``\xNN``.

    Args:
        path: File to write.
        columns: The header.
        rows: Cells by column.
        is_marked: Begin with a byte-order mark, without which Excel takes UTF-8 for another encoding.
    """
    text = io.StringIO(newline="")
    text.write("\ufeff" if is_marked else "")
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
        except (DecodeError, UnreachableError, MemoryError):
            uris[record.image_id] = ""
    return uris


AUDIT_COLUMNS = (
    "issue",
    "image_id",
    "label",
    "suggested_label",
    "score",
    "other_image_id",
    "action",
    "new_label",
    "path",
)
TITLES = {
    "label_error": (
        "Labels that the other pictures contradict",
        "1 where the other class is sure, 0.5 where both are as likely",
    ),
    "duplicate_across_splits": ("Copies across training and test", "the similarity"),
    "duplicate_across_classes": ("Copies with different labels", "the similarity"),
    "outlier": ("Pictures far from all others", "the distance in standard deviations"),
    "dark": ("Dark pictures", "the lightness, from 0 to 1"),
    "blurred": ("Blurred pictures", "the sharpness"),
    "tiny": ("Tiny pictures", "how many pixels it has"),
}
"""Issue of the CSV -> heading on the page, and what the score of a finding is; in their order."""


def list_findings(report: AuditReport) -> Iterator[dict[str, str]]:
    """Yield a row of the CSV for each finding about a picture, the worst of each issue first.

    The columns ``action`` and ``new_label`` are empty: a person fills them in.
    """
    for error in report.label_errors:
        suggestion = {"suggested_label": error.suggested_label, "other_image_id": error.evidence}
        yield _build_row("label_error", error.image_id, error.label, error.score, report) | suggestion
    for issue, pairs in (
        ("duplicate_across_splits", report.duplicates_across_splits),
        ("duplicate_across_classes", report.duplicates_across_classes),
    ):
        for pair in pairs:
            # Of a leak, the training picture is the one to drop; of two classes, both are worth a look.
            turns = (0,) if pair.splits[1] == "test" else (1,)
            for turn in turns if issue == "duplicate_across_splits" else (0, 1):
                row = _build_row(issue, pair.image_ids[turn], pair.labels[turn], pair.similarity, report)
                suggested = pair.labels[1 - turn] if pair.labels[0] != pair.labels[1] else ""
                yield row | {"other_image_id": pair.image_ids[1 - turn], "suggested_label": suggested}
    for kind, found in report.odd.items():
        for one in found:
            yield _build_row(kind, one.image_id, one.label, one.value, report)


def _build_row(issue: str, image_id: str, label: str, score: float, report: AuditReport) -> dict[str, str]:
    empty = dict.fromkeys(AUDIT_COLUMNS, "")
    path = str(report.records[image_id].path)
    return empty | {"issue": issue, "image_id": image_id, "label": label, "score": f"{score:.4f}", "path": path}


def write_audit_csv(report: AuditReport, path: Path | str) -> None:
    """Write what to look at as CSV, with columns for decisions that ``correct_labels`` carries out.

    Spreadsheets fill it in, so it has a byte-order mark. Names and labels are read back, and so stand there as they
    are, even where a spreadsheet would compute them.

    Args:
        report: What ``audit`` found.
        path: File to write.
    """
    write_csv(path, AUDIT_COLUMNS, list_findings(report), is_marked=True)


def write_audit_page(report: AuditReport, path: Path | str) -> None:
    """Write what to look at as a page in one file, on which a person decides and saves the decisions as CSV.

    Args:
        report: What ``audit`` found.
        path: File to write.
    """
    rows = list(list_findings(report))
    sections = []
    for issue, (title, number) in TITLES.items():
        found = [row for row in rows if row["issue"] == issue]
        if found:
            sections.append((title, number, found[: MAX_PICTURES // (2 * len(TITLES))], len(found)))
    names = dict.fromkeys(
        name
        for _, _, shown, _ in sections
        for row in shown
        for name in (row["image_id"], row["other_image_id"])
        if name
    )
    page = render_page(
        "audit.html.j2",
        PackageLoader("vitrieve.curation"),
        report=report,
        sections=sections,
        uris=build_thumbnails(report.records[name] for name in names),
    )
    write_text_durably(Path(path), page)
