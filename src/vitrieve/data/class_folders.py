"""Which class and split each picture of a folder belongs to, by the names of the folders above it.

The rule: the folders directly in the given one are the classes, and what lies deeper belongs to its class. Two
layouts of other programs are read as they are meant, and said: folders with the names of splits above the classes
(``train/CLASS/…``), and one lone folder above all classes, which is looked through.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vitrieve.data.records import Split
from vitrieve.errors import DataError


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
"""By the name of a folder, in lower case."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
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
        places: Of every picture that has a class, in the order of the paths.
        bases: The folders whose direct subfolders are classes: the given one (``""``), the one that was looked
            through, or one for each split.
        split_names: Names of the folders that were read as splits, as the disk has them.
        num_outside: Pictures that lie in no class folder.
        notes: What the user must be told about it.
    """

    places: tuple[Place, ...]
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
    places = [
        place
        for name, class_base in bases.items()
        for place in _place(children[name] if name else paths, class_base, ROLES.get(name.casefold()))
    ]
    if split_names and not places:
        raise DataError(
            f"the folders {', '.join(split_names)} are names of splits but hold their pictures directly; expected one "
            f"folder for each class in them, as in {split_names[0]}/CLASS/NAME.jpg."
        )
    return Reading(
        places=tuple(sorted(places, key=lambda place: place.path)),
        bases=tuple(dict.fromkeys((base, *bases.values()))),
        split_names=split_names,
        num_outside=len(paths) - len(places),
        notes=(*notes, *_note_splits(places, split_names), *_note_nested(places)),
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


def _place(paths: Iterable[str], base: str, role: Role | None) -> list[Place]:
    places = []
    for path in paths:
        class_name, *rest = path[len(base) :].lstrip("/").split("/") if base else path.split("/")
        if rest:
            places.append(Place(path=path, class_name=class_name, role=role, is_nested=len(rest) > 1))
    return places


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


def _note_splits(places: Sequence[Place], split_names: Sequence[str]) -> tuple[str, ...]:
    if not split_names:
        return ()
    counts = Counter(place.role.split for place in places if place.role)
    shares = ", ".join(f"{split} {number:,}" for split, number in counts.items())
    missing = "" if counts["test"] else "; no folder is for testing"
    return (f"{', '.join(split_names)}: read as splits, the folders in them as classes (images: {shares}{missing}).",)


def _note_nested(places: Sequence[Place]) -> tuple[str, ...]:
    folders = sorted({place.path.rpartition("/")[0] for place in places if place.is_nested})
    if not folders:
        return ()
    example = f"the {len(folders):,} folders" if len(folders) > 1 else "the folder"
    is_split = any(set(folder.casefold().split("/")[1:]) & set(ROLES) for folder in folders)
    splits = " Names of splits count only above the classes." if is_split else ""
    return (
        f"{example} inside class folders belong{'' if len(folders) > 1 else 's'} to the class: {folders[0]}"
        f"{', …' if len(folders) > 1 else ''}.{splits}",
    )
