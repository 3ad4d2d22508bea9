"""What a person decided about the findings of an audit, and the corrected table that comes of it.

Decisions are a CSV: that of ``--csv`` with the column ``action`` filled in, or what the page saves. The table lists
every picture that stays, so ``table:FILE`` is a source like any other, and the pictures themselves are not touched.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from vitrieve.curation.pages import write_csv
from vitrieve.data.parts import parse_part
from vitrieve.data.records import Dataset, ImageRecord, find_absolute, spell_path
from vitrieve.data.sources import read_source
from vitrieve.data.table import BOX_COLUMNS, JUNK_COLUMN, KNOWN_COLUMNS
from vitrieve.errors import ArtifactError, ConfigError, DataError, unknown_name_message
from vitrieve.quoting import count_nouns, quote_name
from vitrieve.search.words import TYPO_LENGTHS, count_typos

ACTIONS = ("", "keep", "relabel", "drop", "new")
"""What can stand in the column ``action``; an empty cell and ``keep`` change nothing, and ``new`` relabels, too: the
label is meant to begin a class, however like a present one it is."""
_DELIMITERS = (",", ";", "\t")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_SPREADSHEET = "If a spreadsheet has made dates or numbers of labels, import their columns as text"
_COLUMNS = ("path", "label", "split", "is_query", "is_gallery", *BOX_COLUMNS)


class Decision(NamedTuple):
    """What becomes of one picture.

    Attributes:
        action: ``relabel``, ``new`` or ``drop``.
        label: The new label, empty for ``drop``.
        before: The label that the picture had when this was decided; empty where the file does not say it.
        is_suggested: The new label is the one that the audit suggested, which pictures had then.
    """

    action: str
    label: str
    before: str = ""
    is_suggested: bool = False


@dataclass(frozen=True, kw_only=True)
class CorrectedTable:
    """A table that was written.

    Attributes:
        out: The file, which ``table:FILE`` reads.
        num_images: Pictures in it.
        num_relabeled: Pictures with another label than before.
        num_dropped: Pictures that are not in it.
        new_labels: Labels that decisions give and that no picture had, sorted.
    """

    out: Path
    num_images: int
    num_relabeled: int
    num_dropped: int
    new_labels: tuple[str, ...] = ()


def correct_labels(
    data: Dataset | str | Path, decisions: Path | str, out: Path | str, *, protocol: str | None = None
) -> CorrectedTable:
    """Write the table of a source in which decisions are carried out.

    A picture that moves to a class whose other pictures are all in one split moves to that split too.

    Args:
        data: The source that was audited, or its data set.
        decisions: CSV with the columns ``image_id``, ``action`` (keep, relabel, new, drop or empty) and ``new_label``,
            with commas, semicolons or tabs between them; where ``new_label`` is empty, ``suggested_label`` is taken; a
            column ``label`` says which label was audited. A picture may stand in several rows that agree. A label that
            no picture has begins a class; one that differs from a present one by a typo, by case, blanks and signs, or
            by zeros of a number, needs the action ``new``.
        out: The table to write, ``.csv``; it must not be there.
        protocol: One of the source's protocols; None: its first.

    Raises:
        DataError: The decisions are malformed, contradict each other, name unknown pictures or labels that these no
            longer have, give a label that is nearly a present one or the same number, take a suggested label that
            no picture has, or no picture stays.
        ConfigError: A table cannot hold what the source says: shards, lists of pairs, or answers query by query.
        ArtifactError: ``out`` is there already.
    """
    out = Path(out)
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"the corrected table is {out}; it must end in .csv.")
    if out.exists():
        raise ArtifactError(f"{out} is there already; name another file.")
    dataset = data if isinstance(data, Dataset) else read_source(str(data), protocol=protocol)
    _require_table(dataset)
    chosen = read_decisions(Path(decisions))
    known = {record.image_id for record in dataset.records}
    unknown = [image_id for image_id in chosen if image_id not in known]
    if unknown:
        raise DataError(
            f"{decisions} decides about {len(unknown)} pictures that {dataset.name} does not have, for example "
            f"{quote_name(unknown[0])}; audit and correct the same source."
        )
    names = {record.image_id: dataset.label_names[record.label] for record in dataset.records}
    _refuse_stale(chosen, names, Path(decisions))
    spellings = {label.strip(): label for label in names.values()}
    chosen = {name: one._replace(label=spellings.get(one.label, one.label)) for name, one in chosen.items()}
    new_labels = _find_new_labels(chosen, set(names.values()), Path(decisions))
    rows = list(_list_rows(dataset, chosen, out.parent))
    if not rows:
        raise DataError(f"{decisions} drops all {len(dataset.records)} pictures; nothing is left for a table.")
    extra = dict.fromkeys(name for row in rows for name in row if name not in _COLUMNS)
    write_csv(out, (*_COLUMNS, *extra), rows)
    return CorrectedTable(
        out=out,
        num_images=len(rows),
        num_relabeled=sum(one.action != "drop" and one.label != names[name] for name, one in chosen.items()),
        num_dropped=len(dataset.records) - len(rows),
        new_labels=new_labels,
    )


def _find_new_labels(chosen: Mapping[str, Decision], present: Set[str], file: Path) -> tuple[str, ...]:
    """Find the labels that begin classes.

    Raises:
        DataError: One is nearly a present label or another new one, or was suggested, and the file does not say that it
            is new; or the file calls a present one new.
    """
    suggested = {one.label for one in chosen.values() if one.is_suggested}
    given: dict[str, set[str]] = {}
    for one in chosen.values():
        if one.action == "new" and one.label in present:
            raise DataError(
                f"{file} calls the label {quote_name(one.label)} new, which pictures have already. Write another "
                "new_label, or the action relabel to move a picture into that class."
            )
        if one.action != "drop" and one.label not in present:
            given.setdefault(one.label, set()).add(one.action)
    known = set(present)
    for label, actions in sorted(given.items()):
        same = next((one for one in sorted(known) if _is_same_number(label, one)), None)
        if same is not None and "new" not in actions:
            raise DataError(_say_number(file, label, same))
        if label in suggested and "new" not in actions:
            raise DataError(
                f"{file} takes the suggested label {quote_name(label)}, which no picture has. {_SPREADSHEET}; else "
                "write the label into new_label."
            )
        near = next((one for one in sorted(known) if are_nearly_equal(label, one)), None)
        if near is not None and "new" not in actions:
            state = "is there" if near in present else "is another new label"
            raise DataError(
                f"{file} gives the label {quote_name(label)}, which no picture has; {quote_name(near)} {state}. "
                "Correct new_label, or write the action new instead of relabel to begin a class of that name."
            )
        known.add(label)
    return tuple(sorted(given))


def are_nearly_equal(label: str, other: str) -> bool:
    """Say whether two labels may be one, written otherwise: in case, blanks, hyphens and underscores, or by a typo.

    One typo counts from four letters on, two from eight, as in a search; labels whose digits differ are two.

    >>> are_nearly_equal("golden-delicious", "Golden Delicious"), are_nearly_equal("Aple", "Apple")
    (True, True)
    >>> are_nearly_equal("class10", "class11"), are_nearly_equal("red", "bed"), are_nearly_equal("C++", "C#")
    (False, False, False)
    """
    one, two = (re.sub(r"[\s_-]+", " ", text.casefold()).strip() for text in (label, other))
    if re.findall(r"\d+", one) != re.findall(r"\d+", two):
        return False
    num_typos = sum(min(len(one), len(two)) >= length for length in TYPO_LENGTHS)
    return one == two or (num_typos > 0 and count_typos(one, two, num_typos) <= num_typos)


def _is_same_number(label: str, other: str) -> bool:
    """Say whether two labels are one number, spelled otherwise: spreadsheets write 2 for 0002, and 1.1 for 1.10.

    >>> _is_same_number("2", "0002"), _is_same_number("2", "2"), _is_same_number("a2", "a02")
    (True, False, False)
    """
    are_numbers = _NUMBER.fullmatch(label) and _NUMBER.fullmatch(other)
    return bool(are_numbers) and label != other and Decimal(label) == Decimal(other)


def _refuse_stale(chosen: Mapping[str, Decision], names: Mapping[str, str], file: Path) -> None:
    """Refuse decisions about labels that have become others meanwhile."""
    stale = [name for name, one in chosen.items() if one.before and names[name].strip() not in (one.before, one.label)]
    for name in stale:
        if _is_same_number(chosen[name].before, names[name].strip()):
            raise DataError(_say_number(file, chosen[name].before, names[name]))
    if stale:
        pictures_have = count_nouns(len(stale), "picture has", "pictures have")
        raise DataError(
            f"{file} is older than the labels: {pictures_have} another label than at the time of the audit, "
            f"for example {quote_name(stale[0])}, which was {quote_name(chosen[stale[0]].before)} and is "
            f"{quote_name(names[stale[0]])}; audit again. {_SPREADSHEET}."
        )


def read_decisions(file: Path) -> dict[str, Decision]:
    """Read what is to be changed, by picture.

    Raises:
        DataError: The file is missing or malformed, contradicts itself, or changes nothing.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")  # spreadsheets put a byte-order mark before the first column
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_find_delimiter(text))
        rows = list(reader)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error}); save it as CSV UTF-8.") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV ({error}); give what --csv or the page wrote.") from None
    for name in ("image_id", "action"):
        if name not in (reader.fieldnames or ()):
            raise DataError(f"{file} has no column {name!r}; give what --csv or the page wrote.")
    found: dict[str, Decision] = {}
    for number, row in enumerate(rows, start=1):
        decision = _read_decision(row, f"{file}, row {number}")
        if decision is None:
            continue
        before = found.setdefault(row["image_id"], decision)
        if before[:3] != decision[:3]:  # wherever the label stands
            raise DataError(
                f"{file}, row {number}: {quote_name(row['image_id'])} is to {_say(decision)}, and before to "
                f"{_say(before)}; decide for one."
            )
    if not found:
        raise DataError(f"{file} changes nothing: no row has the action relabel, new or drop.")
    return found


def _find_delimiter(text: str) -> str:
    r"""Find what stands between the columns: spreadsheets write semicolons where numbers have a decimal comma.

    >>> _find_delimiter("image_id;action\na,b.png;drop\n")
    ';'
    """
    header = text.partition("\n")[0]
    return next((mark for mark in _DELIMITERS if mark in header), _DELIMITERS[0])


def _read_decision(row: Mapping[str, str | None], where: str) -> Decision | None:
    action = (row["action"] or "").strip().lower()
    if action not in ACTIONS:
        raise DataError(f"{where}: {unknown_name_message('action', action, ACTIONS[1:])}")
    before = (row.get("label") or "").strip()
    if action == "drop":
        return Decision(action, "", before)
    if action not in ("relabel", "new"):
        return None
    label = (row.get("new_label") or "").strip()
    suggested = (row.get("suggested_label") or "").strip() if action == "relabel" else ""
    if not label and not suggested:
        raise DataError(f"{where}: {action} needs a label in the column new_label.")
    return Decision(action, label or suggested, before, is_suggested=not label)


def _say_number(file: Path, label: str, other: str) -> str:
    return (
        f"{file} has the label {quote_name(label)} where {quote_name(other)} seems to be meant: a spreadsheet has read "
        "the labels as numbers. Import these columns as text, or correct them."
    )


def _say(decision: Decision) -> str:
    return "be dropped" if decision.action == "drop" else f"become {quote_name(decision.label)}"


def _require_table(dataset: Dataset) -> None:
    if dataset.ground_truth is not None or dataset.positive_pairs:
        raise ConfigError(f"{dataset.name} lists which pictures match one by one, which a table of labels cannot hold.")
    if any(parse_part(record.path) is not None for record in dataset.records):
        raise ConfigError(
            f"the pictures of {dataset.name} are in shards, and a table lists files; correct what was packed."
        )


def _list_rows(dataset: Dataset, chosen: Mapping[str, Decision], folder: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of the pictures that stay."""
    splits: dict[str, set[str]] = {}
    for record in dataset.records:
        splits.setdefault(dataset.label_names[record.label], set()).add(record.split)
    for record in dataset.records:
        decision = chosen.get(record.image_id)
        if decision is not None and decision.action == "drop":
            continue
        label = dataset.label_names[record.label] if decision is None else decision.label
        own = splits.get(label, set())
        split = next(iter(own)) if decision is not None and len(own) == 1 else record.split
        box = ("",) * 4 if record.box is None else map(repr, record.box)
        yield {
            **{name: value for name, value in record.metadata.items() if name not in KNOWN_COLUMNS},
            **_spell_junk(dataset, record),
            "path": spell_table_path(record.path, folder),
            "label": label,
            "split": split,
            "is_query": str(record.is_query).lower(),
            "is_gallery": str(record.is_gallery).lower(),
            **dict(zip(BOX_COLUMNS, box, strict=True)),
        }


def _spell_junk(dataset: Dataset, record: ImageRecord) -> dict[str, str]:
    return {} if dataset.junk_key is None else {JUNK_COLUMN: record.metadata.get(dataset.junk_key, "")}


def spell_table_path(path: Path, folder: Path) -> str:
    """Spell a path for a table in a folder: relative to it, or as an address where the name is no text."""
    absolute = find_absolute(path)
    spelled = spell_path(absolute)
    if spelled != absolute:
        return spelled
    try:
        relative = os.path.relpath(absolute, find_absolute(folder))
        # The system goes up from where a link to the folder leads to. Else links stay, so that all can move together.
        if relative.startswith(os.pardir) and os.path.realpath(folder / relative) != os.path.realpath(absolute):
            relative = os.path.relpath(absolute, os.path.realpath(folder))
    except ValueError:  # on another drive of Windows
        return absolute
    return f"./{relative}" if relative.startswith("~") else relative
