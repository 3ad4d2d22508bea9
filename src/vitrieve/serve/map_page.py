"""The page of a map: what its script is given, the map of a service, and the page as one file (``vitrieve map``).

The script draws with WebGL, and without it on a plain canvas; it is one file of ours, ``static/map.js``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from vitrieve.curation.material import open_material
from vitrieve.data.decode import read_image_bytes, shrink, to_data_uri
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DataError, DecodeError, UnreachableError
from vitrieve.index.filter import is_date, read_number
from vitrieve.index.folder import FileStamp, read_stamp
from vitrieve.mapping.collection_map import MAP_NAME, CollectionMap, find_map
from vitrieve.progress import track
from vitrieve.serve.views import TITLE_KEYS, build_environment, find_title
from vitrieve.writing import write_bytes_durably

STATIC_FOLDER = Path(__file__).parent / "static"
MAX_COLUMNS = 24
"""The most columns to color by."""
MAX_VALUES = 254
"""The most values of a column that have a color; the others share one."""
NUM_RANGES = 8
"""Ranges of equal size into which the numbers or dates of a column are divided."""
MIN_NUMBERS = 13
"""A column with fewer different numbers keeps each as a value."""
MAX_VALUE_LENGTH = 120
GROUP_ITEMS = 24
"""Pictures that a group of the list names; the map has all."""
MAX_THUMBNAILS = 800
"""Thumbnails inside a page that is a file: some 3 MB."""
THUMBNAIL_PX = 96
OTHER_VALUES, NO_VALUE = "other values", "no value"
MATCHES = ("its nearest has the same label", "its nearest has another label")


@dataclass(frozen=True, kw_only=True)
class Coloring:
    """A column to color by.

    Attributes:
        name: Name of the column.
        values: Its values, at most 256: of numbers and dates ranges in rising order, else the most frequent one first.
        codes: ``(N,)`` uint8: which value each picture has.
        num_colored: The number of values with a color of their own; those behind mean other or no values.
        is_ordered: Whether the values are ranges in an order.
    """

    name: str
    values: tuple[str, ...]
    codes: np.ndarray
    num_colored: int
    is_ordered: bool = False


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of the list.

    Attributes:
        name: Its name.
        num_images: The number of its pictures.
        members: ``(row, image_id, title)`` of its first pictures.
    """

    name: str
    num_images: int
    members: tuple[tuple[int, str, str], ...]


class MapView:
    """What the page of a map shows.

    Args:
        collection_map: The map.
        link: Spells the address of a picture, of its name; None: a place in the page itself.
    """

    def __init__(self, collection_map: CollectionMap, link: Callable[[str], str] | None = None) -> None:
        self.map = collection_map
        self._link = link
        self.image_ids = collection_map.image_ids
        titles = next((key for key in TITLE_KEYS if key in collection_map.columns), None)
        self._titles = None if titles is None else collection_map.table[titles].to_pylist()
        self.colorings = list(self._find_colorings())
        self.groups = self._find_groups()

    def title(self, row: int) -> str:
        """Say what a picture shows, or else its file's name."""
        value = None if self._titles is None else self._titles[row]
        return find_title(self.image_ids[row], {"label": value} if value else {})

    def link(self, image_id: str, row: int) -> str:
        """Spell the address to which the name of a picture leads."""
        return f"#picture-{row}" if self._link is None else self._link(image_id)

    def build_data(self) -> dict[str, Any]:
        """Build what the script is given, as JSON values.

        Returns:
            ``ids``; ``titles``, null where a title is the end of the name; ``xy``, pairs of uint16 that go from the
            left to the right and from the bottom to the top, in base64; and ``columns`` with ``name``, ``values``,
            ``codes`` (bytes in base64), ``num_colored`` and ``is_ordered``.
        """
        steps = np.round((self.map.places.clip(-1, 1).astype(np.float64) + 1) / 2 * 65535).astype("<u2")
        return {
            "ids": self.image_ids,
            "titles": None if self._titles is None else [value and _shorten(value) for value in self._titles],
            "xy": _encode(steps),
            "columns": [
                {
                    "name": one.name,
                    "values": one.values,
                    "codes": _encode(one.codes),
                    "num_colored": one.num_colored,
                    "is_ordered": one.is_ordered,
                }
                for one in self.colorings
            ],
        }

    def _find_colorings(self) -> Sequence[Coloring]:
        names = [self._name_cluster(number) for number in range(self.map.num_clusters)]
        num_own = min(len(names), MAX_VALUES)
        shown = np.minimum(self.map.clusters, MAX_VALUES)
        if len(names) > MAX_VALUES:
            names = [*names[:MAX_VALUES], "smaller groups"]
        found = [Coloring(name="cluster", values=tuple(names), codes=shown.astype(np.uint8), num_colored=num_own)]
        found += self._find_matches()
        for name in self.map.columns:
            coloring = build_coloring(name, self.map.table[name].to_pylist())
            if coloring is not None and len(found) < MAX_COLUMNS:
                found.append(coloring)
        return found

    def _find_matches(self) -> list[Coloring]:
        """Color by whether the most similar other picture has the same label, and by how similar it is."""
        found = []
        nearest = self.map.nearest
        if self._titles is not None and (nearest >= 0).any():
            labels = np.array([value or "" for value in self._titles], dtype=object)
            is_known = (labels != "") & (labels[nearest] != "") & (nearest >= 0)
            codes = np.where(is_known, np.where(labels == labels[nearest], 0, 1), 2).astype(np.uint8)
            values = MATCHES if is_known.all() else (*MATCHES, NO_VALUE)
            found.append(Coloring(name="match", values=values, codes=codes, num_colored=2))
        similarities = self.map.table["nearest_similarity"].to_pylist()
        texts = [None if value is None else f"{value:.3f}" for value in similarities]
        coloring = build_coloring("similarity to the nearest", texts)
        return found if coloring is None else [*found, coloring]

    def _name_cluster(self, number: int) -> str:
        if self._titles is None:
            return f"Group {number + 1}"
        rows = np.flatnonzero(self.map.clusters == number)
        counts = Counter(value for row in rows if (value := self._titles[row]))
        common = [_shorten(value) for value, count in counts.most_common(2) if 4 * count >= len(rows)]
        return f"Group {number + 1}" + (f": {', '.join(common)}" if common else "")

    def _find_groups(self) -> list[Group]:
        coloring = self.colorings[0]
        groups = []
        for code, name in enumerate(coloring.values):
            rows = np.flatnonzero(coloring.codes == code)
            members = tuple((row, self.image_ids[row], self.title(row)) for row in rows[:GROUP_ITEMS].tolist())
            groups.append(Group(name=name, num_images=len(rows), members=members))
        return groups


def build_coloring(name: str, values: Sequence[str | None]) -> Coloring | None:
    """Divide the values of a column into colors; None where no two pictures share one.

    >>> build_coloring("label", ["pear", "apple", "apple", None]).values
    ('apple', 'pear', 'no value')
    """
    counts = Counter(value for value in values if value)
    ordered = _divide(counts)
    if ordered is None and max(counts.values(), default=0) < 2:
        return None
    if ordered is not None:
        spelled, code_of = ordered
        num_colored = len(spelled)
    else:
        common = [value for value, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MAX_VALUES]]
        spelled = [_shorten(value) for value in common]
        code_of = {value: code for code, value in enumerate(common)}
        num_colored = len(common)
        if len(counts) > len(common):
            spelled.append(OTHER_VALUES)
    other, missing = len(spelled) - 1, len(spelled)
    codes = np.array([code_of.get(value, other) if value else missing for value in values], dtype=np.uint8)
    if missing in codes:
        spelled.append(NO_VALUE)
    return Coloring(
        name=_shorten(name),
        values=tuple(spelled),
        codes=codes,
        num_colored=num_colored,
        is_ordered=ordered is not None,
    )


def _divide(counts: Counter[str]) -> tuple[list[str], dict[str, int]] | None:
    """Divide many numbers, or dates, into ranges that hold about as many pictures each; None where they are neither."""
    if len(counts) < MIN_NUMBERS:
        return None
    keys: dict[str, float | str] = {}
    for value in counts:
        number = read_number(value)
        if number is not None:
            keys[value] = number
    if len(keys) < len(counts):
        if not all(map(is_date, counts)):
            return None
        keys = {value: value for value in counts}
    rising = sorted(counts, key=lambda value: keys[value])
    ends = np.cumsum([counts[value] for value in rising])
    numbers = np.minimum((ends - 1) * NUM_RANGES // ends[-1], NUM_RANGES - 1).tolist()
    code_of: dict[str, int] = {}
    spelled: list[str] = []
    for number in sorted(set(numbers)):
        part = [value for value, one in zip(rising, numbers, strict=True) if one == number]
        code_of.update(dict.fromkeys(part, len(spelled)))
        spelled.append(part[0] if len(part) == 1 else f"{_shorten(part[0])} to {_shorten(part[-1])}")
    return spelled, code_of


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_VALUE_LENGTH else text[: MAX_VALUE_LENGTH - 1] + "…"


def _encode(numbers: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()


def spread_rows(places: np.ndarray, num_rows: int) -> list[int]:
    """Choose rows from all over a map: one of each cell of ever finer grids.

    Args:
        places: ``(N, 2)`` in [-1, 1].
        num_rows: The most rows.

    Returns:
        The rows, in the order in which they were chosen; the same for the same places.

    >>> spread_rows(np.array([[-1, -1], [-0.9, -1], [1, 1]]), 2)
    [0, 2]
    """
    chosen: dict[int, None] = {}
    if num_rows >= len(places):
        return list(range(len(places)))
    side = 2
    while len(chosen) < num_rows and side <= 2**14:
        cells = np.minimum((places + 1) / 2 * side, side - 1).astype(np.int64) @ np.array([1, side])
        for row in np.sort(np.unique(cells, return_index=True)[1]).tolist():
            if len(chosen) < num_rows:
                chosen.setdefault(row)
        side *= 2
    return list(chosen)


@dataclass(frozen=True, kw_only=True)
class ServedMap:
    """A map as the service holds it.

    Attributes:
        view: What the page shows.
        data: What its script is given, as JSON.
        tag: What tells it from the next one.
    """

    view: MapView
    data: bytes
    tag: str


class KeptMap:
    """The map of an index that is served, held in memory, and read anew when its file changed; for several threads.

    Args:
        folder: Folder of the index; None: there is no map.
        link: Spells the address of a picture, of its name.
    """

    def __init__(self, folder: Path | None, link: Callable[[str], str]) -> None:
        self._path = None if folder is None else folder / MAP_NAME
        self._link = link
        self._lock = threading.Lock()
        self._held: tuple[FileStamp, ServedMap | None] | None = None

    def is_there(self) -> bool:
        """Say whether there is a map, without reading it."""
        return self._path is not None and self._path.is_file()

    def find(self) -> ServedMap | None:
        """Return the map; None where there is none that can be read."""
        stamp = None if self._path is None else read_stamp(self._path)
        if self._path is None or stamp is None:
            return None
        with self._lock:  # 100,000 pictures take two seconds: once is enough
            if self._held is None or self._held[0] != stamp:
                self._held = (stamp, self._read(self._path.parent))
            return self._held[1]

    def _read(self, folder: Path) -> ServedMap | None:
        found = find_map(folder)
        if found is None:
            return None
        view = MapView(found, self._link)
        data = json.dumps(view.build_data(), separators=(",", ":")).encode()
        return ServedMap(view=view, data=data, tag=f'"{hashlib.sha256(data).hexdigest()[:32]}"')


def write_map_page(collection_map: CollectionMap, path: Path | str) -> None:
    """Write the page of a map as one file, which needs no other; ``MAX_THUMBNAILS`` thumbnails are inside.

    Args:
        collection_map: The map, of which the index or the embeddings are still there.
        path: HTML file to write; its folder is made where needed.

    Raises:
        DataError: The index has other pictures by now.
    """
    view = MapView(collection_map)
    with ExitStack() as stack:
        material = open_material(collection_map.path.parent, None, stack, has_vectors=False)
        if list(material.image_ids) != view.image_ids:
            raise DataError(f"{collection_map.path.parent} changed after its map was made; run vitrieve map again.")
        rows = spread_rows(collection_map.places, MAX_THUMBNAILS)
        thumbnails = _build_thumbnails(material.fetch(rows), rows)
        assert material.info is not None
        environment = build_environment(material.info)
    page = environment.get_template("map_file.html").render(
        view=view,
        data={**view.build_data(), "thumbnails": thumbnails},
        style=Markup("\n".join((STATIC_FOLDER / name).read_text("utf-8") for name in ("page.css", "map.css"))),
        script=Markup((STATIC_FOLDER / "map.js").read_text("utf-8")),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_durably(path, page.encode(errors="backslashreplace"))


def _build_thumbnails(records: Sequence[ImageRecord], rows: Sequence[int]) -> dict[str, str]:
    """Return small copies as addresses, by row; a picture that cannot be read has none."""
    uris = {}
    with closing(track(zip(records, rows, strict=True), "thumbnails", total=len(rows))) as tracked:
        for record, row in tracked:
            try:
                uris[str(row)] = to_data_uri(shrink(read_image_bytes(record.path), THUMBNAIL_PX, record.box))
            except (DecodeError, UnreachableError, MemoryError):
                continue
    return uris
