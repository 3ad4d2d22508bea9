"""Every store against the model of ``conformance.py``: sequences of operations, refusals, damage, other processes."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.index.conformance import (
    StoreMachine,
    check_hits,
    check_refusals,
    fill,
    make_info,
    make_many,
    make_record,
    normalized,
)
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ArtifactError, ConfigError, FingerprintError, InputError
from vitrieve.index import resident
from vitrieve.index.filter import name_kind, parse_filter
from vitrieve.index.open import build_index, create_index, open_index
from vitrieve.index.store import SERVERS, IndexSettings, VectorStore

IS_LONG = os.environ.get("VITRIEVE_LONG_TESTS") == "1"
"""`make test-all`: more sequences, more kills."""
NUM_SEQUENCES = {"exact": 8, "lance": 5, "milvus": 4, "pgvector": 4}
"""Of thirty operations each, fewer where an operation takes longer."""
SNAPSHOT_REASON = "milvus-lite has no snapshots"

CHECKOUT = Path(__file__).resolve().parents[2]


def test_any_sequence_of_operations_equals_the_model(kind: str, settings_of: IndexSettings, tmp_path: Path) -> None:
    numbers = itertools.count()

    class Machine(StoreMachine):
        folder = tmp_path

        @staticmethod
        def make() -> VectorStore:
            Machine.folder = tmp_path / str(next(numbers))
            return create_index(make_info(kind), Machine.folder, settings=settings_of)

        @staticmethod
        def reopen(store: VectorStore) -> VectorStore:
            store.close()
            return open_index(Machine.folder)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=200 if IS_LONG else NUM_SEQUENCES[kind],
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_bad_input_is_refused_and_changes_nothing(store: VectorStore) -> None:
    check_refusals(store)  # empty
    fill(store, 20)
    check_refusals(store)


KINDS_OF_COLUMNS = {"label": "text", "year": "number", "flag": "boolean", "day": "date", "code": "text", "gone": "text"}
ROWS = {
    "a": {"label": "apple", "year": "2020", "flag": "true", "day": "2020-03-01", "code": "01", "gone": ""},
    "b": {"label": "pear", "year": "2020.0", "flag": "False", "day": "2020-03-01T12:00:00", "code": "1"},
    "c": {"label": "5", "year": "1999", "flag": "True", "day": "2020-12-31 23:59", "code": "A7"},
    "d": {"label": "it's", "year": "-3.5", "flag": "", "day": "2019-12-31", "code": "1.0"},
    "e": {"label": "2020-03", "year": "", "day": "2021-01"},
    "f": {},
}


def fill_rows(store: VectorStore) -> None:
    vectors = normalized([[1, number, 0, 0, 0, 0, 0, 0] for number in range(len(ROWS))])
    store.upsert(vectors, [make_record(name, row) for name, row in ROWS.items()])


@pytest.mark.parametrize("kind_of_filter", ["search", "count"])
def test_conditions_mean_what_the_kind_of_their_column_says(store: VectorStore, kind_of_filter: str) -> None:
    """The right answers are written out by hand: the model of the machine shares the code that finds them."""
    fill_rows(store)
    expected = {
        # numbers, however they are spelled
        "year=2020": "ab",
        "year=2020.0": "ab",
        'year="2020.0"': "b",
        "year=2020|1999": "abc",
        "year!=2020": "cdef",
        "year<2020": "cd",
        "year>=-3.5": "abcd",
        "year=": "e",
        # truth values
        "flag=true": "ac",
        "flag=FALSE": "b",
        "flag!=true": "bdef",
        'flag="True"': "c",
        # a shorter date is a period
        "day>=2020": "abce",
        "day>2020": "e",
        "day<2020": "d",
        "day<=2020": "abcd",
        "day=2020": "abc",
        "day!=2020": "def",
        "day=2020-03": "ab",
        "day>2020-03-01": "ce",
        "day<=2020-03-01": "abd",
        "day=2020-03-01": "ab",
        'day="2020-03-01"': "a",
        "day=2020-03-01T12": "b",
        "day=2020-03-01 12:00": "b",
        "day>=2020-03-01 12:00": "bce",
        "day>2020-03-01T11:59Z": "bce",
        "day<2020-03-01T12": "ad",
        "day<=2020-12-31T23:59": "abcd",
        "day<2020-12-31T23:59": "abd",
        "day=2019|2021": "de",
        # texts, also where they look like something else
        "label=apple|5": "ac",
        'label="5"': "c",
        "label>=5": "c",
        'label>="5"': "abcd",
        "label=2020-03": "e",
        "label!=apple": "bcdef",
        "code=01": "a",
        "code=1": "abd",
        'code="1"': "b",
        "code>0.5": "abd",
    }
    found = {}
    for text in expected:
        filter = parse_filter(text)
        if kind_of_filter == "count":
            found[text] = store.count(filter)
        else:
            hits = store.search(normalized([[1] * 8]), 10, filter)[0]
            found[text] = "".join(sorted(hit.record.image_id for hit in hits))
    assert found == ({text: len(names) for text, names in expected.items()} if kind_of_filter == "count" else expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("year>=abc", "year>=abc does not fit: year is a number column; write for example year>=2020."),
        ("year=abc", "year is a number column; write for example year=2020."),
        ("year!=2020|abc", "year!=abc does not fit: year is a number column; write for example year!=2020."),
        ("year<2020-03-01", "year is a number column"),
        ("flag=maybe", "flag=maybe does not fit: flag is a boolean column; write for example flag=true."),
        ("flag=1", "flag is a boolean column"),
        ("flag>true", "flag>true does not fit: flag is a boolean column; write for example flag=true."),
        ("day>=soon", "day>=soon does not fit: day is a date column; write for example day>=2020-03-01."),
        ('day="soon"', "day is a date column"),
        ("day<20.5", "day is a date column"),
    ],
)
def test_a_condition_of_another_kind_than_its_column_is_refused(store: VectorStore, text: str, message: str) -> None:
    fill_rows(store)
    for ask in (store.count, lambda filter: store.search(normalized([[1] * 8]), 3, filter)):
        with pytest.raises(InputError) as caught:
            ask(parse_filter(text))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_order_of_numbers_in_a_column_without_any_is_refused(store: VectorStore) -> None:
    fill_rows(store)
    store.delete(["c"])
    with pytest.raises(InputError, match='label>5 does not fit: label is a text column; write for example label>"5"'):
        store.count(parse_filter("label>5"))
    assert store.count(parse_filter('label>"5"')) == 3


def test_the_kind_of_a_column_follows_its_values(store: VectorStore, tmp_path: Path) -> None:
    fill_rows(store)

    def name_kinds() -> dict[str, str]:
        return {column: name_kind(kinds) for column, kinds in store.kinds(store.columns()).items()}

    assert name_kinds() == KINDS_OF_COLUMNS
    reader = open_index(tmp_path / "index")
    assert reader.count("year>=2000") == 2  # a filter may be a text
    store.upsert(normalized([[1] * 8]), [make_record("g", {"year": "unknown"})])
    assert name_kinds()["year"] == "text"
    assert reader.count("year=unknown") == 1
    assert reader.count("year>=2000") == 2
    store.delete(["g"])
    assert name_kinds()["year"] == "number"
    with pytest.raises(InputError, match="year is a number column"):
        reader.count("year=unknown")
    reader.close()


def test_more_images_than_one_segment_or_page(store: VectorStore) -> None:
    model = fill(store, 6_000)
    store.optimize()
    assert store.count() == 6_000
    assert store.count(parse_filter(["label=3|4", "price<500"])) == len(
        model.find(parse_filter(["label=3|4", "price<500"]))
    )
    vectors, records = store.get([f"{n:06}.png" for n in range(5_999, 0, -3)])
    assert [record.image_id for record in records] == [f"{n:06}.png" for n in range(5_999, 0, -3)]
    assert np.array_equal(vectors, np.stack([model.images[record.image_id][0] for record in records]))
    for seed in range(5):
        query = make_many(1, seed + 10)[0][0]
        for filter in ((), parse_filter(["label=3"]), parse_filter(["price>1499.5"])):
            hits = store.search(query[None], 10, filter)[0]
            found = model.find(filter)
            expected = sorted((-float(vector @ query), name) for name, vector in found.items())[:10]
            names = [hit.record.image_id for hit in hits]
            assert len(names) == min(10, len(found))
            assert len(set(names) & {name for _, name in expected}) >= len(names) - 1  # the index is approximate
            assert all(hit.score == pytest.approx(float(found[hit.record.image_id] @ query), abs=1e-6) for hit in hits)
    assert store.delete([f"{n:06}.png" for n in range(4_000)]) == 4_000
    store.optimize()
    assert store.count() == 2_000
    assert len(store.search(query[None], 50)[0]) == 50
    assert store.verify() == []


def test_images_that_all_tie_are_ordered_by_name(store: VectorStore) -> None:
    vector = normalized([[1, 2, 0, 0, 0, 0, 0, 0]])
    names = [f"{n:03}.png" for n in range(150)]
    for start in (100, 50, 0):  # not in the order of the names
        records = [make_record(name, {}) for name in names[start : start + 50]]
        store.upsert(np.repeat(vector, 50, axis=0), records)
    assert [hit.record.image_id for hit in store.search(vector, 7)[0]] == names[:7]


def test_several_queries_are_answered_one_by_one(store: VectorStore) -> None:
    model = fill(store, 100)
    queries = make_many(5, seed=3)[0]
    answers = store.search(queries, 9)
    for query, hits in zip(queries, answers, strict=True):
        check_hits(model, query, 9, (), hits)
        assert store.search(query[None], 9) == [hits]


def test_trap_vectors_of_another_encoder_are_refused(store: VectorStore, tmp_path: Path) -> None:
    fill(store, 5)
    store.close()
    path = tmp_path / "index" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "0" * 64}))
    with pytest.raises(FingerprintError, match="another encoder"):
        open_index(tmp_path / "index")


def test_closed_store_is_refused_and_closes_twice(store: VectorStore) -> None:
    store.close()
    store.close()
    for call in (store.count, store.columns, lambda: list(store.image_ids()), lambda: store.delete(["a"])):
        with pytest.raises(ArtifactError, match="closed"):
            call()


def test_snapshot_stays_as_it_was(kind: str, store: VectorStore, tmp_path: Path) -> None:
    model = fill(store, 30)
    if kind == "milvus":
        with pytest.raises(ConfigError, match="milvus-backup"):
            store.snapshot(tmp_path / "copy")
        pytest.skip(SNAPSHOT_REASON)
    store.snapshot(tmp_path / "copy")
    store.delete(sorted(model.images)[:20])
    store.optimize()
    copy = open_index(tmp_path / "copy")
    assert list(copy.image_ids()) == sorted(model.images)
    assert copy.verify() == []
    copy.upsert(*make_many(3, seed=9))
    assert store.count() == 10
    with pytest.raises(ArtifactError):
        store.snapshot(tmp_path / "copy")
    copy.close()


def test_build_index_opens_as_its_kind(kind: str, settings_of: IndexSettings, tmp_path: Path) -> None:
    vectors, records = make_many(40)
    embeddings = Embeddings(
        vectors=vectors,
        records=tuple(records),
        failures=(),
        fingerprint="f" * 64,
        encoder_source="some-weights",
        image_size=32,
        license="CC BY, somebody",
    )
    built = build_index(embeddings, tmp_path / "index", store=kind, settings=settings_of)  # type: ignore[arg-type]
    opened = open_index(tmp_path / "index")
    assert built.info == opened.info == make_info(kind)
    assert np.array_equal(opened.get([record.image_id for record in records])[0], vectors)
    with pytest.raises(ArtifactError, match="--overwrite"):
        build_index(embeddings, tmp_path / "index", store=kind, settings=settings_of)  # type: ignore[arg-type]
    built.close()
    opened.close()


@pytest.mark.parametrize("is_held", [False, True])
def test_readers_in_threads_see_whole_changes(
    store: VectorStore, kind: str, tmp_path: Path, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change replaces all ten images by ten of one generation: a reader must never see two generations."""
    if is_held and kind != "lance":
        pytest.skip("only the LanceDB store holds a copy in memory")
    monkeypatch.setattr(resident, "PAUSE_PER_LOADING_SECOND", 0)
    vectors = make_many(10)[0]

    def write(generation: int) -> None:
        records = [make_record(f"{n}.png", {"generation": str(generation)}, n) for n in range(10)]
        store.upsert(vectors, records)

    write(0)
    faults: list[str] = []
    is_done = threading.Event()

    def read() -> None:
        reader = open_index(tmp_path / "index")
        reader.hold(2**30 if is_held else 0)
        last = 0
        while not is_done.is_set():
            hits = reader.search(vectors[:1], 20)[0]
            seen = {int(hit.record.metadata["generation"]) for hit in hits}
            if len(hits) != 10 or len(seen) != 1 or max(seen) < last:
                faults.append(f"{len(hits)} images of the generations {seen} after {last}")
            last = max(seen, default=last)
        reader.close()

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for generation in range(1, 25):
        write(generation)
        # During a flush milvus-lite 3.2 now and then answers from the segments of the flush before.
        if generation % 8 == 0 and kind != "milvus":
            store.optimize()
    is_done.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]


def _count_in_another_process(store: VectorStore) -> int:
    return store.count()


def test_store_travels_to_a_spawned_process(store: VectorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CHECKOUT)  # the new process imports this file
    fill(store, 25)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(_count_in_another_process, [store, store])) == [25, 25]


WRITER = """
import sys
import numpy as np
from tests.index.conformance import make_many, make_record
from vitrieve.index.open import open_index

store = open_index(sys.argv[1])
first = int(sys.argv[2])
vectors = make_many(20)[0]
for number in range(first, first + 10_000):
    records = [make_record(f"{number % 7}-{n}.png", {"batch": str(number)}, n) for n in range(20)]
    store.upsert(vectors, records)
    print("done", number, flush=True)
    if number % 5 == 4:
        store.delete([f"{(number + 1) % 7}-{n}.png" for n in range(20)])
        print("deleted", number, flush=True)
    if number % 9 == 8:
        store.optimize()
"""


def check_after_kill(store: VectorStore, before: dict[int, int], lines: list[str]) -> dict[int, int]:
    """Compare the store with what was acknowledged, and what may have been under way; return what is there."""
    state = dict(before)
    last = -1
    for line in lines:
        word, number = line.split()[0], int(line.split()[1])
        last = number
        if word == "done":
            state[number % 7] = number
        else:
            state.pop((number + 1) % 7, None)
    if store.info.kind == "milvus":
        store.optimize()  # mends what milvus-lite leaves of a flush; tests/index/test_milvus.py makes it on purpose
    assert store.verify() == []
    found: dict[int, int] = {}
    for group in range(7):
        hits = [image_id for image_id in store.image_ids() if image_id.startswith(f"{group}-")]
        assert len(hits) in (0, 20), "a change is there in part"
        if hits:
            batches = {int(record.metadata["batch"]) for record in store.get(hits)[1]}
            assert len(batches) == 1, "a change is there in part"
            found[group] = batches.pop()
    allowed = [state]
    if lines and lines[-1].startswith("done") and last % 5 == 4:
        allowed.append({group: number for group, number in state.items() if group != (last + 1) % 7})
    elif lines:
        allowed.append(state | {(last + 1) % 7: last + 1})
    assert found in allowed, f"{found} after {lines[-3:]}, expected one of {allowed}"
    return found


@pytest.mark.slow
def test_trap_a_killed_writer_loses_nothing_acknowledged(
    kind: str, settings_of: IndexSettings, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """kill -9 of the writing process (now and then of the server too, where there is one) at random moments."""
    create_index(make_info(kind), tmp_path / "index", settings=settings_of).close()
    (tmp_path / "writer.py").write_text(WRITER)
    server = request.getfixturevalue({"milvus": "server", "pgvector": "postgres"}[kind]) if kind in SERVERS else None
    generator = np.random.default_rng(0)
    expected: dict[int, int] = {}
    first = 0
    for kill in range(100 if IS_LONG else 2):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "writer.py"), str(tmp_path / "index"), str(first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ["PYTHONPATH"]])},
        )
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        assert lines[0], "the writer does not start"
        num_more = int(generator.integers(0, 15))
        lines += [process.stdout.readline() for _ in range(num_more)]
        time.sleep(float(generator.uniform(0, 0.05)))
        if server is not None and kill % 2:
            server.kill()
        process.kill()
        lines += process.stdout.read().splitlines()
        process.wait()
        process.stdout.close()
        if server is not None and kill % 2:
            server.start()
        lines = [line for line in lines if len(line.split()) == 2]
        store = open_index(tmp_path / "index")
        expected = check_after_kill(store, expected, lines)
        store.close()
        first = int(lines[-1].split()[1]) + 2
