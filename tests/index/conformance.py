"""What every vector store must do: a model in plain Python, and a machine that compares a store with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vitrieve.data.records import ImageRecord, spell_path
from vitrieve.errors import DataError, InputError
from vitrieve.index.filter import NOTHING, Condition, Exact, Filter, Kinds, passes, read_kinds, resolve_filter
from vitrieve.index.store import StoreInfo, VectorStore

WIDTH = 8
GRID = 4
"""Coordinates are small integers, so that duplicates and exact ties are common."""

NAMES = st.sampled_from([f"{n:02}.png" for n in range(12)] + ["it's.png", 'a"b\\c.png', "ä/日本 %_.png", "{x}.png", ""])
COLUMNS = st.sampled_from(["label", "Label", "price", "a.b", "it's", "ü", "select", ""])
TEXTS = st.sampled_from(
    ["", "apple", "Apple", "pear", "it's", "1", "01", "1.0", "-0", "2.5", "1e3", "nan", "inf", "1e999"]
)
TEXTS_OR_ANY = TEXTS | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
YEARS = st.sampled_from(["1999", "2020", "2020.0", "7", "-2.5", ""])
FLAGS = st.sampled_from(["true", "false", "True", "FALSE", ""])
DAYS = st.sampled_from(
    ["2019-12-31", "2020", "2020-03", "2020-03-01", "2020-03-01T12:00:00", "2020-03-01 12:30", "2020-03-02", ""]
)
"""Columns of these three are mostly of one kind, so that conditions mean what they mean for it."""
NUMBERS = st.sampled_from([0.0, -0.0, 1, 1.0, 2.5, -3.0, 1000.0, 1e-7, 1e300])


def make_record(image_id: str, metadata: dict[str, str], number: int = 0) -> ImageRecord:
    return ImageRecord(
        image_id=image_id,
        path=Path("/photos") / str(number),
        label=number,
        split="test",
        is_query=bool(number % 2),
        box=(0.0, 1.5, float(number + 1), 9.0) if number % 3 == 0 else None,
        metadata=metadata,
    )


def make_info(kind: str = "exact", fingerprint: str = "f" * 64, embedding_dim: int = WIDTH) -> StoreInfo:
    return StoreInfo(
        kind=kind,  # type: ignore[arg-type]
        fingerprint=fingerprint,
        encoder_source="some-weights",
        image_size=32,
        embedding_dim=embedding_dim,
        license="CC BY, somebody",
    )


def normalized(rows: list[list[int]]) -> np.ndarray:
    """L2-normalized float32, by plain NumPy; zeros stay zeros."""
    matrix = np.array(rows, dtype=np.float64).reshape(-1, WIDTH)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return (matrix / np.where(norms > 0, norms, 1)).astype(np.float32)


VECTORS = st.lists(st.integers(-GRID, GRID), min_size=WIDTH, max_size=WIDTH)
METADATA = st.builds(
    lambda some, typed: {**some, **typed},
    st.dictionaries(COLUMNS, TEXTS_OR_ANY, max_size=3),
    st.fixed_dictionaries({}, optional={"year": YEARS, "flag": FLAGS, "day": DAYS}),
)
RECORDS = st.builds(make_record, NAMES, METADATA, st.integers(0, 2**40))
BATCHES = st.lists(st.tuples(VECTORS, RECORDS), max_size=6, unique_by=lambda pair: pair[1].image_id)

DATES_AND_TIMES = st.sampled_from(["2020", "2020-03", "2020-03-01", "2020-03-01T12", "2020-03-01 12:00", "2020-04-01Z"])
VALUES = TEXTS_OR_ANY | NUMBERS | YEARS | FLAGS | DAYS | DATES_AND_TIMES | st.builds(Exact, DAYS | FLAGS)


@st.composite
def filters(draw: st.DrawFn, columns: tuple[str, ...]) -> Filter:
    if not columns:
        return ()
    conditions = []
    for _ in range(draw(st.integers(0, 2))):
        operator = draw(st.sampled_from(["=", "!=", "<", "<=", ">", ">="]))
        most = 3 if operator in ("=", "!=") else 1
        values = draw(st.lists(VALUES, min_size=1, max_size=most))
        column = draw(st.sampled_from(columns))
        conditions.append(Condition(column=column, operator=operator, values=tuple(values)))
    return tuple(conditions)


class Model:
    """The store as a dict, searched by a product in float64."""

    def __init__(self) -> None:
        self.images: dict[str, tuple[np.ndarray, ImageRecord]] = {}
        self.columns: set[str] = set()

    def upsert(self, vectors: np.ndarray, records: list[ImageRecord]) -> None:
        for vector, record in zip(vectors, records, strict=True):
            self.images[record.image_id] = (vector, record)
            self.columns |= set(record.metadata)

    def delete(self, image_ids: list[str]) -> int:
        return sum(self.images.pop(image_id, None) is not None for image_id in dict.fromkeys(image_ids))

    def kinds(self, columns: Sequence[str]) -> dict[str, Kinds]:
        found = dict.fromkeys(columns, NOTHING)
        for _, record in self.images.values():
            for column in columns:
                found[column] |= read_kinds(record.metadata.get(column, ""))
        return found

    def find(self, filter: Filter) -> dict[str, np.ndarray]:
        """Find what passes; raises as a store where a condition does not fit its column."""
        tests = resolve_filter(filter, self.columns, self.kinds)
        return {name: vector for name, (vector, record) in self.images.items() if passes(record.metadata, tests)}

    def refusal(self, filter: Filter) -> str | None:
        try:
            self.find(filter)
        except InputError as error:
            return str(error)
        return None


def check_hits(model: Model, query: np.ndarray, k: int, filter: Filter, hits: list) -> None:
    """Check one answer without trusting any ranking code: scores, order, completeness, records."""
    found = model.find(filter)
    scores = {name: float(vector.astype(np.float64) @ query.astype(np.float64)) for name, vector in found.items()}
    assert len(hits) == min(k, len(found))
    names = [hit.record.image_id for hit in hits]
    assert len(set(names)) == len(names)
    for hit in hits:
        assert hit.record == model.images[hit.record.image_id][1]
        assert hit.score == pytest.approx(scores[hit.record.image_id], abs=1e-6)
    order = [(-hit.score, hit.record.image_id) for hit in hits]
    assert order == sorted(order)
    left = [name for name in found if name not in names]
    if left and hits:
        assert max(scores[name] for name in left) <= hits[-1].score + 1e-6
        equal = [name for name in left if np.array_equal(found[name], found[names[-1]])]
        assert all(name > names[-1] for name in equal)  # exact duplicates tie, and ties are ordered by name


class StoreMachine(RuleBasedStateMachine):
    """Any sequence of operations, on a store and on the model of it; ``make`` and ``reopen`` are set by a subclass."""

    make: Callable[[], VectorStore]
    reopen: Callable[[VectorStore], VectorStore]

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        self.store = type(self).make()

    @rule(batch=BATCHES)
    def upsert(self, batch: list[tuple[list[int], ImageRecord]]) -> None:
        records = [record for _, record in batch]
        vectors = normalized([vector for vector, _ in batch])
        self.store.upsert(vectors, records)
        self.model.upsert(vectors, records)

    @rule(names=st.lists(NAMES, max_size=4))
    def delete(self, names: list[str]) -> None:
        assert self.store.delete(names) == self.model.delete(names)

    @rule(data=st.data(), vector=VECTORS, k=st.integers(1, 20), length=st.sampled_from([1.0, 0.25, 3.0]))
    def search(self, data: st.DataObject, vector: list[int], k: int, length: float) -> None:
        filter = data.draw(filters(tuple(sorted(self.model.columns))))
        query = normalized([vector])[0] * np.float32(length)
        if (refusal := self.model.refusal(filter)) is not None:
            with pytest.raises(InputError, match=re.escape(refusal)):
                self.store.search(query[None], k, filter)
            return
        (hits,) = self.store.search(query[None], k, filter)
        check_hits(self.model, query, k, filter, hits)

    @rule(data=st.data())
    def count(self, data: st.DataObject) -> None:
        filter = data.draw(filters(tuple(sorted(self.model.columns))))
        if (refusal := self.model.refusal(filter)) is not None:
            with pytest.raises(InputError, match=re.escape(refusal)):
                self.store.count(filter)
            return
        assert self.store.count(filter) == len(self.model.find(filter))

    @rule(names=st.lists(NAMES, max_size=4))
    def get(self, names: list[str]) -> None:
        if any(name not in self.model.images for name in names):
            with pytest.raises(DataError):
                self.store.get(names)
            return
        vectors, records = self.store.get(names)
        assert records == [self.model.images[name][1] for name in names]
        assert vectors.shape == (len(names), WIDTH)
        assert vectors.dtype == np.float32
        assert all(
            np.array_equal(vector, self.model.images[name][0]) for vector, name in zip(vectors, names, strict=True)
        )

    @rule()
    def kinds(self) -> None:
        columns = tuple(sorted(self.model.columns))
        assert self.store.kinds(columns) == self.model.kinds(columns)

    @rule()
    def read_texts(self) -> None:
        assert read_all_texts(self.store) == {
            name: (spell_path(record.path), record.metadata) for name, (_, record) in self.model.images.items()
        }

    @rule(batch=BATCHES.filter(bool))
    def change(self, batch: list[tuple[list[int], ImageRecord]]) -> None:
        stamps = [self.store.read_stamp(), self.store.read_stamp()]
        self.upsert(batch)
        stamps.append(self.store.read_stamp())
        self.delete([batch[0][1].image_id])
        stamps.append(self.store.read_stamp())
        assert stamps[0] == stamps[1]
        assert len(set(stamps)) == 3
        assert None not in stamps

    @rule()
    def optimize(self) -> None:
        self.store.optimize()

    @rule(max_bytes=st.sampled_from([0, 2**30]))
    def hold(self, max_bytes: int) -> None:
        assert not (self.store.hold(max_bytes) and max_bytes == 0 and self.model.images)

    @rule()
    def close_and_open(self) -> None:
        info = self.store.info
        self.store = type(self).reopen(self.store)
        assert self.store.info == info

    @rule()
    def verify(self) -> None:
        assert self.store.verify() == []

    @invariant()
    def holds_the_same_images(self) -> None:
        if hasattr(self, "store"):
            assert list(self.store.image_ids()) == sorted(self.model.images)
            assert self.store.columns() == tuple(sorted(self.model.columns))
            for num_images in (0, 2, 1000):
                some = self.store.sample_ids(num_images)
                assert len(some) == min(num_images, len(self.model.images))
                assert some == sorted(set(some) & set(self.model.images))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.store.close()


def read_all_texts(store: VectorStore) -> dict[str, tuple[str, dict[str, str]]]:
    """Read the texts of a store: path and metadata of every image, each of which must come once."""
    rows = []
    for block in store.read_texts():
        columns = {name: values.to_pylist() for name, values in block.columns.items()}
        for row, (name, path) in enumerate(zip(block.image_ids.to_pylist(), block.paths.to_pylist(), strict=True)):
            metadata = {column: values[row] for column, values in columns.items() if values[row] is not None}
            rows.append((name, (path, metadata)))
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def check_refusals(store: VectorStore) -> None:
    """Bad input is refused with our errors, and changes nothing."""
    before = list(store.image_ids())
    good = normalized([[1] * WIDTH])
    record = make_record("new.png", {"a": "b"})
    bad_batches = [
        (good, []),
        (good[:, :-1], [record]),
        (good * 2, [record]),
        (good * np.float32("nan"), [record]),
        (np.repeat(good, 2, axis=0), [record, record]),
        (good, [replace(record, image_id="\ud800")]),
        (good, [replace(record, metadata={"a": "\0"})]),
        (np.repeat(good, 5000, axis=0), [replace(record, image_id=str(n)) for n in range(5000)]),
    ]
    for vectors, records in bad_batches:
        with pytest.raises(DataError):
            store.upsert(vectors, records)
    with pytest.raises(DataError):
        store.delete([str(n) for n in range(5000)])
    with pytest.raises(DataError, match="not in the index"):
        store.get(["missing.png"])
    unknown = (Condition(column="no such column", operator="=", values=("x",)),)
    for queries, k, filter in [
        (good, 0, ()),
        (good[:, :-1], 1, ()),
        (good * np.float32("inf"), 1, ()),
        (good[0], 1, ()),
        (good, 1, unknown),
    ]:
        with pytest.raises(InputError):
            store.search(queries, k, filter)
    with pytest.raises(InputError, match="no such column"):
        store.count(unknown)
    assert store.search(np.empty((0, WIDTH), dtype=np.float32), 3) == []
    store.upsert(good[:0], [])
    assert store.delete([]) == 0
    assert list(store.image_ids()) == before


def make_many(num_images: int, seed: int = 0, width: int = WIDTH) -> tuple[np.ndarray, list[ImageRecord]]:
    """Random images in the same fifty clusters for every seed, with a label of ten values."""
    centers = np.random.default_rng(0).standard_normal((50, width))
    generator = np.random.default_rng(seed)
    rows = centers[generator.integers(0, 50, num_images)] + 0.3 * generator.standard_normal((num_images, width))
    vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return vectors, [
        make_record(f"{n:06}.png", {"label": str(n % 10), "price": str(n / 4)}, n) for n in range(num_images)
    ]


def fill(store: VectorStore, num_images: int, seed: int = 0) -> Model:
    """Put images into a store, and return the model of it."""
    vectors, records = make_many(num_images, seed)
    model = Model()
    for start in range(0, num_images, 4096):
        store.upsert(vectors[start : start + 4096], records[start : start + 4096])
    model.upsert(vectors, records)
    return model
