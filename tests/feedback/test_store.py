"""Corrections are kept whole, whoever writes at the same time, and come back as they were."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.feedback import store as store_module
from vitrieve.feedback.events import KINDS, Correction, check_correction, find_last_words
from vitrieve.feedback.pairs import read_pairs, write_pairs
from vitrieve.feedback.store import SqliteFeedback, count_new

NOW = "2026-11-29T08:00:00.000+00:00"
RIGHT = Correction(kind="right", image_id="b/ä.jpg", query_id="a.jpg", at=NOW, fingerprint="f1", who="Eva")

WATCHDOG_SECONDS = 300


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    return folder


def test_what_is_kept_comes_back_in_order(index: Path) -> None:
    said = [
        RIGHT,
        replace(RIGHT, kind="wrong", query_id="", query="two words"),
        replace(RIGHT, kind="tagged", query_id="", tags=("red", "'; DROP TABLE corrections"), label="apple"),
        replace(RIGHT, kind="same_group"),
        replace(RIGHT, kind="taken_back"),
    ]
    feedback = SqliteFeedback(index)
    assert feedback.read() == []
    assert not feedback.path.exists()
    for one in said:
        feedback.add(one)
    assert SqliteFeedback(index).read() == said
    assert feedback.path == index.parent / "index.feedback.sqlite"


def test_database_stands_beside_the_index_that_a_path_through_a_link_leads_to(index: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    index.rename(tmp_path / "far" / "index")
    assert SqliteFeedback(tmp_path / "link" / ".." / "index").path == tmp_path / "far" / "index.feedback.sqlite"


def test_database_outlives_an_index_that_is_made_anew(index: Path) -> None:
    SqliteFeedback(index).add(RIGHT)
    index.rmdir()
    index.mkdir()
    assert SqliteFeedback(index).read() == [RIGHT]


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from vitrieve.feedback.events import Correction
from vitrieve.feedback.store import SqliteFeedback
index, writer, at = sys.argv[1:]
for turn in range(20):
    one = Correction(kind="right", image_id=f"{writer}-{turn}", query="x", at=at)
    SqliteFeedback(Path(index)).add(one)
"""


def test_writers_at_once_lose_nothing(index: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(index)]
    writers = [subprocess.Popen([*command, str(number), NOW]) for number in range(4)]
    assert [writer.wait(WATCHDOG_SECONDS) for writer in writers] == [0, 0, 0, 0]
    kept = [one.image_id for one in SqliteFeedback(index).read()]
    for number in range(4):
        assert [name for name in kept if name.startswith(f"{number}-")] == [f"{number}-{turn}" for turn in range(20)]
    assert len(kept) == 80


JOINER = """
import sys
from pathlib import Path
from vitrieve.feedback.events import Correction, find_last_words
from vitrieve.feedback.store import SqliteFeedback
index, writer, at = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()  # all of them begin together
def join(history, word):
    said = find_last_words(history)
    old = said[0].tags if said else ()
    return [Correction(kind="tagged", image_id="a", tags=(*old, word), at=at)]
for turn in range(6):
    SqliteFeedback(Path(index)).add_to(lambda history: join(history, f"{writer}-{turn}"))
"""


def test_what_follows_from_the_history_loses_nothing_of_other_processes(index: Path) -> None:
    """Three processes join tags with those of before: nobody reads while another one is about to write."""
    command = [sys.executable, "-c", JOINER, str(index)]
    with ExitStack() as running:
        writers = []
        for number in range(3):
            process = subprocess.Popen(
                [*command, str(number), NOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            writers.append(running.enter_context(process))
            running.callback(process.kill)
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
        assert [writer.wait(WATCHDOG_SECONDS) for writer in writers] == [0, 0, 0]
    (said,) = find_last_words(SqliteFeedback(index).read())
    assert sorted(said.tags) == [f"{writer}-{turn}" for writer in range(3) for turn in range(6)]


def test_nothing_is_kept_of_what_cannot_be_built(index: Path) -> None:
    feedback = SqliteFeedback(index)
    feedback.add(RIGHT)

    def fail(history: list[Correction]) -> list[Correction]:
        assert history == [RIGHT]
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        feedback.add_to(fail)
    with pytest.raises(DataError, match="without tags and without a label"):
        feedback.add_to(lambda history: [replace(RIGHT, kind="wrong"), replace(RIGHT, kind="tagged")])
    assert feedback.read() == [RIGHT]
    feedback.add_to(lambda history: [replace(history[0], kind="wrong")])
    assert [one.kind for one in feedback.read()] == ["right", "wrong"]


def test_a_first_correction_that_is_refused_leaves_an_empty_history(index: Path) -> None:
    feedback = SqliteFeedback(index)
    with pytest.raises(DataError, match="without tags and without a label"):
        feedback.add_to(lambda history: [replace(RIGHT, kind="tagged")])
    assert feedback.read() == []
    feedback.add(RIGHT)
    assert feedback.read() == [RIGHT]


def test_words_of_all_scripts_and_emoji_are_kept(index: Path) -> None:
    persian, farmer = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f33e"
    tagged = replace(RIGHT, kind="tagged", query_id="", tags=(persian, farmer), label=persian, who=farmer)
    SqliteFeedback(index).add(tagged)
    assert SqliteFeedback(index).read() == [tagged]


def test_writer_that_does_not_finish_is_told(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = SqliteFeedback(index)
    feedback.add(RIGHT)
    monkeypatch.setattr(store_module, "WAIT_SECONDS", 0.05)
    other = sqlite3.connect(feedback.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ArtifactError, match="being written by another process; try again"):
        feedback.add(RIGHT)
    other.rollback()
    feedback.add(RIGHT)
    other.close()


def test_damaged_file_and_later_version_are_told(index: Path) -> None:
    feedback = SqliteFeedback(index)
    feedback.add(RIGHT)
    with sqlite3.connect(feedback.path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ArtifactError, match="of format 7, of a later version"):
        feedback.read()
    feedback.path.write_bytes(b"no database" * 100)
    with pytest.raises(ArtifactError, match="move it away to begin anew"):
        feedback.read()
    with pytest.raises(ArtifactError, match="move it away to begin anew"):
        feedback.add(RIGHT)


def test_full_database_is_told(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_CORRECTIONS", 1)
    SqliteFeedback(index).add(RIGHT)
    with pytest.raises(ConfigError, match="has 1 corrections, and at most 1 are kept"):
        SqliteFeedback(index).add(RIGHT)
    assert SqliteFeedback(index).read() == [RIGHT]


def test_feedback_is_off_where_nothing_can_be_written(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteFeedback(index).add(RIGHT)
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != index and may(path, mode))  # a root may all
    with pytest.raises(ConfigError, match=r"feedback is off: the folder .*index is read-only"):
        SqliteFeedback(index).add(RIGHT)
    assert SqliteFeedback(index).read() == [RIGHT], "what is there can be read and exported"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "rigth"}, "Did you mean 'right'"),
        ({"image_id": ""}, "without an image_id"),
        ({"query_id": ""}, "right needs the query"),
        ({"kind": "same_group", "query_id": "", "query": "words"}, "same_group needs query_id"),
        ({"kind": "same_group", "query_id": "b/ä.jpg"}, "in its own group anyway"),
        ({"kind": "tagged"}, "without tags and without a label"),
        ({"tags": ("red",)}, "belong to the kind tagged"),
        ({"kind": "tagged", "tags": ("a\nb",)}, "cannot be printed"),
        ({"kind": "tagged", "tags": ("a\u202eb",)}, "cannot be printed"),
        ({"kind": "tagged", "label": "\u200d"}, "cannot be printed"),
        ({"kind": "tagged", "tags": (" ",)}, "none of them empty"),
        ({"kind": "tagged", "tags": ("a",) * 21}, "21 tags; give at most 20"),
        ({"who": "x" * 101}, "who has 101 characters"),
        ({"query": "a\0b"}, "query has characters"),
    ],
)
def test_corrections_that_say_nothing_are_refused(index: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        SqliteFeedback(index).add(replace(RIGHT, **changes))  # type: ignore[arg-type]


def _find_last_words_slowly(said: list[Correction]) -> list[Correction]:
    """A correction counts unless the same person says another one about the same thing after it."""

    def is_about_tags(one: Correction) -> bool:
        return one.kind == "tagged" or not (one.query_id or one.query)

    def is_same_thing(one: Correction, other: Correction) -> bool:
        if (one.who, one.image_id, is_about_tags(one)) != (other.who, other.image_id, is_about_tags(other)):
            return False
        return is_about_tags(one) or (one.query_id, one.query) == (other.query_id, other.query)

    return [
        one
        for number, one in enumerate(said)
        if one.kind != "taken_back" and not any(is_same_thing(one, other) for other in said[number + 1 :])
    ]


def test_last_words_count() -> None:
    draw = random.Random(3)
    for _ in range(200):
        said = []
        for _ in range(draw.randrange(12)):
            kind = draw.choice(KINDS)
            query_id, query = draw.choice([("q", ""), ("r", ""), ("", "w"), ("", "")])
            one = Correction(
                kind=kind, image_id=draw.choice("ab"), query_id=query_id, query=query, who=draw.choice("xy")
            )
            said.append(replace(one, tags=("t",)) if kind == "tagged" else one)
        assert find_last_words(said) == _find_last_words_slowly(said)


def test_new_are_those_on_results_of_this_encoder() -> None:
    said = [RIGHT, replace(RIGHT, kind="wrong"), replace(RIGHT, image_id="c", fingerprint="f2")]
    assert (count_new(said, "f1"), count_new(said, "f2"), count_new(said, "f3")) == (1, 1, 0)


def test_pairs_come_back_from_their_file(tmp_path: Path) -> None:
    said = [RIGHT, replace(RIGHT, kind="tagged", query_id="", tags=("red", "round"), label="apple")]
    write_pairs(said, tmp_path / "pairs.parquet")
    assert read_pairs(tmp_path / "pairs.parquet") == said
    by_hand = pa.table({"kind": ["same_group"], "image_id": ["a"], "query_id": ["b"]})
    pq.write_table(by_hand, tmp_path / "hand.parquet")
    (pair,) = read_pairs(tmp_path / "hand.parquet")
    assert pair == Correction(kind="same_group", image_id="a", query_id="b")
    check_correction(pair)


def test_whole_numbers_of_a_table_are_names(tmp_path: Path) -> None:
    said = {"kind": ["tagged", "right"], "image_id": [7, 8], "query_id": [None, 7]}
    for label in ([3, None], [3.0, float("nan")]):  # pandas keeps whole numbers with gaps as the second
        pq.write_table(pa.table({**said, "label": label, "query": [None, float("nan")]}), tmp_path / "hand.parquet")
        assert read_pairs(tmp_path / "hand.parquet") == [
            Correction(kind="tagged", image_id="7", label="3"),
            Correction(kind="right", image_id="8", query_id="7"),
        ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"kind": ["right"]}, "lack the column image_id"),
        ({"kind": ["right"], "image_id": ["a"], "query_id": ["b"], "color": ["x"]}, "unknown column 'color'"),
        ({"kind": ["right", "right"], "image_id": ["a", "a"], "query_id": ["b", ""]}, "row 2 of the pairs"),
        ({"kind": pa.array([], pa.string()), "image_id": pa.array([], pa.string())}, "have no row"),
        ({"kind": [1], "image_id": ["a"]}, "row 1 of the pairs"),
        ({"kind": ["tagged"], "image_id": ["a"], "tags": [["b", None]]}, "row 1 of the pairs .* none of them empty"),
        ({"kind": ["tagged"], "image_id": ["a"], "tags": ["b"]}, "'tags' is of the type string; accepted: lists of"),
        ({"kind": ["tagged"], "image_id": [1.5], "label": ["b"]}, "'image_id' is of the type double; accepted: text"),
        ({"kind": ["tagged"], "image_id": ["a"], "label": [float("nan")]}, "without tags and without a label"),
    ],
)
def test_bad_pairs_are_refused(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path / "pairs.parquet")


def test_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("kind,image_id\n")
    for name in ("pairs.csv", "gone.parquet"):
        with pytest.raises(DataError, match=r"cannot be read .*vitrieve feedback writes such a file"):
            read_pairs(tmp_path / name)
