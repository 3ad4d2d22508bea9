"""What every vector store must pass: the rules of ``VectorStore``, checked on whatever store the caller makes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.search.memory_store import MemoryStore
from vitrieve.data.records import ImageRecord
from vitrieve.embed.collection import Embeddings
from vitrieve.index.filter import Condition, Filter, parse_filter
from vitrieve.index.open import build_index, open_index
from vitrieve.index.store import Hit, StoreInfo, StoreKind, VectorStore
from vitrieve.similarity import normalize

WIDTH = 4
NAMES = ("a.png", "b c.png", "it's.png", "ü/ö.jpg", "new\nline.gif", "z%.bmp")
TEXTS = ("apple", "pear", "3", "3.0", "-1e2", "2026-11-23", "O'Neil; DROP TABLE", "", "ß")
COLUMNS = ("label", "price", "Folder.Name", "it's")
FILTERS: tuple[Filter, ...] = (
    (),
    *((condition,) for condition in parse_filter(["label=apple|pear", "label!=3", "price<3", "price>=-100"])),
    parse_filter(["label>=2026-01-01", "price!=pear"]),
    (Condition(column="it's", operator="=", values=("O'Neil; DROP TABLE",)),),
    (Condition(column="Folder.Name", operator="=", values=(3.0,)),),
)


def make_records(names: list[str], metadata: list[dict[str, str]]) -> list[ImageRecord]:
    return [
        ImageRecord(image_id=name, path=Path("/photos") / name, label=row, split="test", metadata=values)
        for row, (name, values) in enumerate(zip(names, metadata, strict=True))
    ]


def make_embeddings(vectors: np.ndarray, image_ids: list[str] | None = None) -> Embeddings:
    names = image_ids or [f"picture-{row:04}.png" for row in range(len(vectors))]
    return Embeddings(
        vectors=vectors,
        records=tuple(make_records(names, [{"row": str(row)} for row in range(len(names))])),
        failures=(),
        fingerprint="f" * 64,
        encoder_source="some-weights",
        image_size=32,
        license="CC BY, somebody",
    )


def random_vectors(num_rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return normalize(np.random.default_rng(seed).standard_normal((num_rows, width)))


def summarize(hits: list[list[Hit]]) -> list[list[tuple[str, float]]]:
    return [[(hit.record.image_id, hit.score) for hit in one] for one in hits]


def build_machine(kind: StoreKind) -> type[RuleBasedStateMachine]:  # noqa: C901  a class with its rules
    """Build the state machine that compares a store with a dictionary, operation by operation."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = Path(tempfile.mkdtemp(prefix="vitrieve-store-"))
            self.path = self.folder / "index"
            first = make_embeddings(np.eye(1, WIDTH, dtype=np.float32), ["first.png"])
            self.store: VectorStore = build_index(first, self.path, store=kind)
            info = StoreInfo(kind=kind, fingerprint="f" * 64, encoder_source="", image_size=32, embedding_dim=WIDTH)
            self.model = MemoryStore(info)
            self.model.upsert(first.vectors, first.records)
            self.known = {"row"}
            self.num_copies = 0

        def teardown(self) -> None:
            self.store.close()
            shutil.rmtree(self.folder)

        @rule(
            names=st.lists(st.sampled_from(NAMES), min_size=0, max_size=4, unique=True),
            seed=st.integers(0, 5),
            data=st.data(),
        )
        def upsert(self, names: list[str], seed: int, data: st.DataObject) -> None:
            some = st.dictionaries(st.sampled_from(COLUMNS), st.sampled_from(TEXTS), max_size=3)
            metadata = [data.draw(some) for _ in names]
            # Few different vectors: ties and exact duplicates are the rule here, not the exception.
            vectors = random_vectors(3, WIDTH, seed)[[row % 3 for row in range(len(names))]]
            records = make_records(names, metadata)
            self.store.upsert(vectors, records)
            self.model.upsert(vectors, records)
            self.known |= {column for values in metadata for column in values}

        @rule(names=st.lists(st.sampled_from((*NAMES, "first.png", "absent.png")), max_size=3, unique=True))
        def delete(self, names: list[str]) -> None:
            assert self.store.delete(names) == self.model.delete(names)

        @rule(seed=st.integers(0, 5), k=st.integers(1, 9), filter=st.sampled_from(FILTERS))
        def search(self, seed: int, k: int, filter: Filter) -> None:
            if not {condition.column for condition in filter} <= self.known:
                return
            queries = random_vectors(2, WIDTH, seed)
            assert self.store.search(queries, k, filter) == self.model.search(queries, k, filter)
            assert self.store.count(filter) == len(self.model.search(queries, 100, filter)[0])

        @precondition(lambda self: self.model.images)
        @rule(data=st.data())
        def get(self, data: st.DataObject) -> None:
            names = data.draw(st.lists(st.sampled_from(sorted(self.model.images)), max_size=4))
            vectors, records = self.store.get(names)
            assert np.array_equal(vectors, np.array([self.model.images[name][0] for name in names]).reshape(-1, WIDTH))
            assert records == [self.model.images[name][1] for name in names]

        @rule()
        def optimise(self) -> None:
            self.store.optimise()

        @rule(is_snapshot=st.booleans())
        def open_again(self, is_snapshot: bool) -> None:
            if is_snapshot:
                self.num_copies += 1
                self.path = self.folder / f"copy-{self.num_copies}"
                self.store.snapshot(self.path)
            self.store.close()
            self.store = open_index(self.path)

        @invariant()
        def holds_the_same(self) -> None:
            assert list(self.store.image_ids()) == sorted(self.model.images)
            assert self.store.count() == len(self.model.images)
            assert set(self.store.columns()) == self.known
            assert self.store.verify() == []

    Machine.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
    return Machine
