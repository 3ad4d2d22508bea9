"""The user's own images: a folder for each class, or any folder of images as a collection to embed.

The names of the folders above a picture say its class and its split. The folders directly in the given one are the
classes, and what lies deeper belongs to its class. Two layouts of other programs are read as they are meant, and a note
says so: folders with the names of splits above the classes (``train/CLASS/…``), and one lone folder above all classes,
which is looked through.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Context, InvalidOperation, Overflow, Subnormal
from pathlib import Path

from vitrieve.data.decode import list_image_suffixes
from vitrieve.data.records import HOLD_OUT_EVERY, Dataset, ImageRecord, Split, hold_out_labels, printable_name
from vitrieve.data.walk import Walk, walk_pictures
from vitrieve.errors import DataError
from vitrieve.quoting import quote_name


@dataclass(frozen=True)
class Role:
    """What the name of a split says about the pictures below it."""

    split: Split
    is_query: bool = True
    is_gallery: bool = True


ROLES = {
    **dict.fromkeys(("train", "training"), Role("train")),
    **dict.fromkeys(("val", "valid", "validation"), Role("validation")),
    **dict.fromkeys(("test", "testing"), Role("test")),
    **dict.fromkeys(("query", "queries"), Role("test", is_gallery=False)),
    "gallery": Role("test", is_query=False),
}
"""Roles by the name of a folder, in lower case."""
_ROLE_PREFIX = re.compile(r"([a-z]+)(?:[^a-z].*)?", re.IGNORECASE)


def find_role(path: str) -> Role | None:
    """Find the first part of a path that begins with the name of a split, for archives and tables of many pictures.

    >>> find_role("data/train-00000-of-00002.parquet"), find_role("trains/1.tar")
    (Role(split='train', is_query=True, is_gallery=True), None)
    """
    found = (_ROLE_PREFIX.fullmatch(part) for part in path.split("/"))
    roles = (ROLES.get(one[1].casefold()) for one in found if one)
    return next((role for role in roles if role), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """Where a picture belongs.

    Attributes:
        path: Below the folder, with ``/``.
        class_name: Name of the class folder, as the disk has it.
        role: What the split above the class says; None where there are no splits.
        is_nested: The picture lies in a further folder inside its class.
    """

    path: str
    class_name: str
    role: Role | None
    is_nested: bool


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the folders were read.

    Attributes:
        entries: One entry for every picture that has a class, in the order of the paths.
        bases: The folders whose direct subfolders are classes: the given one (``""``), the one that was looked
            through, or one for each split.
        split_names: Names of the folders that were read as splits, as the disk has them.
        num_outside: Pictures that lie in no class folder.
        notes: What the user must be told about it.
    """

    entries: tuple[Entry, ...]
    bases: tuple[str, ...]
    split_names: tuple[str, ...]
    num_outside: int
    notes: tuple[str, ...]


def read_class_folders(paths: Sequence[str]) -> Reading:
    """Find class and split of each picture.

    Args:
        paths: Pictures below the folder, with ``/``.

    Raises:
        DataError: Folders with the names of splits hold pictures without class folders, or stand beside other
            folders.
    """
    base = _look_through(paths, "")
    notes = []
    if base:
        notes.append(f"{base} is looked through: the folders in it are the classes (or splits).")
    children = _list_children(paths, base)
    split_names = _choose_splits(base, children, notes)
    if split_names:
        bases = {name: _look_through(children[name], _join(base, name)) for name in split_names}
    else:
        bases = {"": base}
    entries = [
        entry
        for name, class_base in bases.items()
        for entry in _list_entries(children[name] if name else paths, class_base, ROLES.get(name.casefold()))
    ]
    if split_names and not entries:
        raise DataError(
            f"the folders {', '.join(split_names)} are names of splits but hold their pictures directly; expected one "
            f"folder for each class in them, as in {split_names[0]}/CLASS/NAME.jpg."
        )
    return Reading(
        entries=tuple(sorted(entries, key=lambda entry: entry.path)),
        bases=tuple(dict.fromkeys((base, *bases.values()))),
        split_names=split_names,
        num_outside=len(paths) - len(entries),
        notes=(*notes, *_note_splits(entries, split_names), *_note_nested(entries)),
    )


def _look_through(paths: Sequence[str], base: str) -> str:
    """Follow lone folders down to the one that holds several; ``base`` itself where there is none."""
    below = base
    while True:
        children = _list_children(paths, below)
        names = [name for name in children if name]
        is_stray = "" in children and below != base
        if is_stray or not names:
            return base
        if len(names) > 1 or names[0].casefold() in ROLES:
            return below
        below = _join(below, names[0])


def _choose_splits(base: str, children: dict[str, list[str]], notes: list[str]) -> tuple[str, ...]:
    """Choose the folders that are read as splits: all, or none."""
    names = sorted(name for name in children if name)
    known = [name for name in names if name.casefold() in ROLES]
    holding = [name for name in known if any(_list_children(children[name], _join(base, name)))]
    others = [name for name in names if name not in known]
    if not known or (not others and len(known) == 1 and not holding):
        return ()
    if not others:
        return tuple(known)
    if len(holding) > 1:
        raise DataError(
            f"the folders {', '.join(holding)} are names of splits with class folders in them, but "
            f"{', '.join(others[:3])} beside them {'is' if len(others) == 1 else 'are'} not; leave the others out "
            f"(--exclude '/{_join(base, others[0])}/'), give a folder that holds classes only, or list "
            "the pictures in a table (table:FILE)."
        )
    notes.append(
        f"{', '.join(known)}: read as {'a class' if len(known) == 1 else 'classes'}, not as splits, because other "
        "folders stand beside."
    )
    return ()


def _list_entries(paths: Iterable[str], base: str, role: Role | None) -> list[Entry]:
    entries = []
    for path in paths:
        class_name, *rest = path[len(base) :].lstrip("/").split("/") if base else path.split("/")
        if rest:
            entries.append(Entry(path=path, class_name=class_name, role=role, is_nested=len(rest) > 1))
    return entries


def _list_children(paths: Iterable[str], base: str) -> dict[str, list[str]]:
    """Group the pictures below a folder by the folder directly in it; those directly in it stand under ``""``."""
    start = len(base) + 1 if base else 0
    children: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        if base and not path.startswith(f"{base}/"):
            continue
        name, slash, _ = path[start:].partition("/")
        children[name if slash else ""].append(path)
    return children


def _join(base: str, name: str) -> str:
    return f"{base}/{name}" if base else name


def _note_splits(entries: Sequence[Entry], split_names: Sequence[str]) -> tuple[str, ...]:
    if not split_names:
        return ()
    counts = Counter(entry.role.split for entry in entries if entry.role)
    shares = ", ".join(f"{split} {number:,}" for split, number in counts.items())
    missing = "" if counts["test"] else "; no folder is for testing"
    return (f"{', '.join(split_names)}: read as splits, the folders in them as classes (images: {shares}{missing}).",)


def _note_nested(entries: Sequence[Entry]) -> tuple[str, ...]:
    folders = sorted({entry.path.rpartition("/")[0] for entry in entries if entry.is_nested})
    if not folders:
        return ()
    example = f"the {len(folders):,} folders" if len(folders) > 1 else "the folder"
    is_split = any(set(folder.casefold().split("/")[1:]) & set(ROLES) for folder in folders)
    splits = " Names of splits count only above the classes." if is_split else ""
    return (
        f"{example} inside class folders belong{'' if len(folders) > 1 else 's'} to the class: {folders[0]}"
        f"{', …' if len(folders) > 1 else ''}.{splits}",
    )


PROTOCOLS = ("own_classes",)
_NUM_NAMED = 3
"""How many names a note spells out."""


def read_folder(folder: Path, protocol: str = PROTOCOLS[0], *, exclude: str | Sequence[str] = ()) -> Dataset:
    """Read a folder of class folders; images may lie deeper inside their class.

    Folders with the names of splits above the classes are read as splits. Where there are none,
    the class names are sorted and every fifth, from the fifth, is for testing; the notes say so. Fewer than five
    classes leave none for testing.

    Args:
        folder: Its direct subfolders are the classes, or the splits. Symbolic links are followed, but never in a
            circle.
        protocol: Only ``own_classes``.
        exclude: Patterns of what to leave out, with the rules of gitignore.

    Returns:
        Records sorted by ``image_id``, the path below ``folder`` with ``/``. Class names are in NFC, in which they are
        compared. What ``walk_pictures`` leaves out, files outside class folders and empty classes are counted in the
        notes.

    Raises:
        DataError: The folder is missing, unreadable, or holds no image in a class folder.
    """
    walk = walk_pictures(folder, exclude)
    reading = read_class_folders(walk.paths)
    if not reading.entries:
        raise DataError(_no_class_message(folder, reading.num_outside, walk))
    names = {entry.class_name: _normalize(entry.class_name) for entry in reading.entries}
    label_names = tuple(sorted(set(names.values())))
    numbers = {name: label for label, name in enumerate(label_names)}
    labels = {raw: numbers[name] for raw, name in names.items()}
    records = _build_records(folder, reading, labels)
    num_test = len({record.label for record in records if record.split == "test"})
    return Dataset(
        name=printable_name(folder.resolve().name) or "folder",
        protocol=protocol,
        records=records,
        label_names=label_names,
        notes=(
            *reading.notes,
            *(note_shared_classes(records) if reading.split_names else note_class_split(len(label_names), num_test)),
            *_note_spellings(names),
            *note_alike(set(names.values())),
            *walk.describe_left_out((reading.num_outside, "outside the class folders")),
            *_note_empty(walk, reading),
        ),
        unreadable_folders=walk.list_unreadable(),
    )


def read_flat_folder(folder: Path, *, exclude: str | Sequence[str] = (), is_empty_allowed: bool = False) -> Dataset:
    """List every image below a folder, as a collection without classes.

    Args:
        folder: Searched at any depth; symbolic links are followed, but never in a circle.
        exclude: Patterns of what to leave out, with the rules of gitignore.
        is_empty_allowed: A folder without an image is a collection of none.

    Returns:
        Records sorted by ``image_id``, the path below ``folder`` with ``/``; all have label 0 and are
        in the split ``test``, as queries and gallery.

    Raises:
        DataError: The folder is missing, unreadable or holds no image.
    """
    walk = walk_pictures(folder, exclude)
    notes = walk.describe_left_out()
    if not walk.paths and not is_empty_allowed:
        raise DataError(" ".join((f"{folder} holds no image at any depth; image files end in {_suffixes()}.", *notes)))
    records = [
        ImageRecord(image_id=printable_name(path), path=folder / path, label=0, split="test") for path in walk.paths
    ]
    return Dataset(
        name=printable_name(folder.resolve().name) or "folder",
        protocol="collection",
        records=tuple(sorted(records, key=lambda record: record.image_id)),
        label_names=("image",),
        notes=notes,
        unreadable_folders=walk.list_unreadable(),
    )


def has_given_splits(splits: Sequence[object | None], image_ids: Sequence[str]) -> bool:
    """Say whether the pictures of archives or tables have splits of their own.

    Args:
        splits: What each picture says of its split; None: nothing.
        image_ids: Their names, for the message.

    Raises:
        DataError: Some have one and others have none: a split of our own could train on what is for testing.
    """
    without = [image_id for image_id, split in zip(image_ids, splits, strict=True) if split is None]
    if not without or len(without) == len(splits):
        return not without
    raise DataError(
        f"{len(without):,} of {len(splits):,} pictures have no split, among them {quote_name(without[0])}, and the "
        "others have one. Give each of them one, in the name of its file (train, validation, test) or, in shards, as "
        "split in its JSON; or give none of them one."
    )


def note_class_split(num_classes: int, num_test: int) -> tuple[str, ...]:
    """Tell how own data without a split is split: by class, one of every five for testing."""
    if num_classes < HOLD_OUT_EVERY:
        return (
            f"no split is given, and every fifth class would be for testing, but there "
            f"{_plural(num_classes, 'is one class', f'are {num_classes} classes')}: all images are for training.",
        )
    if num_test == 0:
        return (
            f"no split is given, and every fifth class would be for testing, but of {num_classes} classes none with "
            "two images can be spared: all images are for training.",
        )
    return (
        f"no split is given: of {num_classes} classes in sorted order every fifth, from the fifth, is for testing "
        f"({num_test}), or where that has one image only, the last before it with two; the others are for training "
        f"({num_classes - num_test}).",
    )


def note_shared_classes(records: Iterable[ImageRecord]) -> tuple[str, ...]:
    """Tell how many test classes are also trained on, where a split is given."""
    trained, tested = set(), set()
    for record in records:
        if record.split == "train":
            trained.add(record.label)
        elif record.split == "test":
            tested.add(record.label)
    return describe_shared_classes(len(trained & tested), len(tested))


def describe_shared_classes(num_shared: int, num_tested: int) -> tuple[str, ...]:
    """Say that some test classes are also trained on; empty where none is."""
    if not num_shared:
        return ()
    return (
        f"{num_shared:,} of {num_tested:,} test classes are also trained on: figures are not about unseen classes.",
    )


def _build_records(folder: Path, reading: Reading, labels: dict[str, int]) -> tuple[ImageRecord, ...]:
    num_images = Counter(labels[entry.class_name] for entry in reading.entries)
    # A class for testing needs two images, of which one can find the other.
    held_out = hold_out_labels(labels.values(), {label for label, count in num_images.items() if count > 1})
    records = []
    for entry in reading.entries:
        label = labels[entry.class_name]
        role = entry.role or Role("test" if label in held_out else "train")
        records.append(
            ImageRecord(
                image_id=printable_name(entry.path),
                path=folder / entry.path,
                label=label,
                split=role.split,
                is_query=role.is_query,
                is_gallery=role.is_gallery,
            )
        )
    return tuple(sorted(records, key=lambda record: record.image_id))


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", printable_name(name))


def _note_spellings(names: dict[str, str]) -> tuple[str, ...]:
    counts = Counter(names.values())
    twice = sorted(name for name, count in counts.items() if count > 1)
    if not twice:
        return ()
    return (
        f"{len(twice)} {_plural(len(twice), 'class is', 'classes are')} spelled in two forms of Unicode (NFC and NFD), "
        f"which are read as one: {_name_some(twice)}.",
    )


_MAX_DIGITS = 50
"""Length of a name that may be a number; longer ones, as of checksums, are compared as they are."""
_NUMBERS = Context(prec=_MAX_DIGITS, Emin=-999999, Emax=999999, traps=[InvalidOperation, Overflow, Subnormal])


def note_alike(names: Iterable[str]) -> tuple[str, ...]:
    """Note classes whose names are one to a reader, in another case, with other blanks, or as another form of a number.

    Args:
        names: Names of classes, each once.

    Returns:
        One sentence, or none where every name is far enough from the others.
    """
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        alike[_fold(name)].append(name)
    groups = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if not groups:
        return ()
    more = f", and {len(groups) - 3} more such groups" if len(groups) > 3 else ""
    return (f"each of these names is a class of its own, however alike they are: {'; '.join(groups[:3])}{more}.",)


def _fold(name: str) -> str:
    folded = " ".join(name.casefold().split())
    if len(folded) > _MAX_DIGITS or "_" in folded:  # Python's way to write 12 as 1_2 is nobody's
        return folded
    try:
        return str(_NUMBERS.create_decimal(folded).normalize(_NUMBERS))
    except ArithmeticError:  # no number, or one that is infinite or has no room here
        return folded


def _note_empty(walk: Walk, reading: Reading) -> tuple[str, ...]:
    """Name the folders that could be a class (or a split) but hold no image."""
    used = {path[:end] for path in walk.paths for end, sign in enumerate(path) if sign == "/"}
    empty = [one for one in walk.folders if one.rpartition("/")[0] in reading.bases and one not in used]
    if not empty:
        return ()
    return (f"{len(empty)} {_plural(len(empty), 'class', 'classes')} without an image: {_name_some(empty)}.",)


def _name_some(names: Iterable[str]) -> str:
    first = [printable_name(name) for name in names]
    return ", ".join(first[:_NUM_NAMED]) + (", …" if len(first) > _NUM_NAMED else "")


def _no_class_message(folder: Path, num_outside: int, walk: Walk) -> str:
    if num_outside:
        return (
            f"{folder} holds {num_outside} {_plural(num_outside, 'image', 'images')} but no folder of images; "
            "expected one subfolder for each class, or a table that names them (table:FILE). Without classes, vitrieve "
            "up searches the images, and vitrieve train small --classes none trains on them."
        )
    said = f"{folder} holds no image; expected one subfolder for each class, with files that end in {_suffixes()}."
    return " ".join((said, *walk.describe_left_out()))


def _suffixes() -> str:
    return ", ".join(sorted(list_image_suffixes()))


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
