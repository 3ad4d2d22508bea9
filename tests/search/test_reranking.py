from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.errors import ArtifactError, ConfigError, DecodeError, FingerprintError
from vitrieve.evaluation.measure import EvaluationResult
from vitrieve.evaluation.reranking import RerankingReport
from vitrieve.evaluation.run import Evaluation
from vitrieve.index.open import build_index
from vitrieve.rerank.head import HEAD_WIDTH, VOTE_WIDTH, Head
from vitrieve.rerank.names import LEARNT, Reranking
from vitrieve.rerank.parts import ByteArray, compute_parts, stack_parts
from vitrieve.rerank.remember import RERANKER_NAME, KeptReranking, load_kept, save_kept
from vitrieve.rerank.reranker import RERANKERS, Shortlist, build_learnt
from vitrieve.runtime.encoder import Encoder, load_encoder
from vitrieve.search.part_store import PARTS_NAME, PartStore, keep_reranking
from vitrieve.search.request import Example, SearchAnswer, SearchRequest
from vitrieve.search.searcher import Searcher
from vitrieve.similarity import normalize


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture
def index_folder(encoder: Encoder, picture_folder: Path, tmp_path: Path) -> Path:
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "embeddings")
    build_index(tmp_path / "embeddings", tmp_path / "index", store="exact").close()
    return tmp_path / "index"


@pytest.fixture
def searcher(index_folder: Path, encoder: Encoder) -> Iterator[Searcher]:
    with Searcher.open(index_folder, encoder) as opened:
        yield opened


def find(searcher: Searcher, picture: Path, reranking: Reranking = "auto") -> list[str]:
    answer = searcher.answer(SearchRequest(plus=(Example(picture=picture),), k=20, reranking=reranking))
    assert answer.reranking == reranking or reranking == "auto"
    return ids(answer)


def ids(answer: SearchAnswer) -> list[str]:
    return [result.image_id for result in answer.results]


@pytest.mark.parametrize("name", ["chamfer", "optimal_transport", "image_tiles", "superglobal"])
def test_search_orders_as_the_reranking_scores(
    name: str, searcher: Searcher, encoder: Encoder, picture_folder: Path
) -> None:
    picture = picture_folder / "02.png"
    records = read_collection(str(picture_folder)).records
    vectors = np.stack([encoder.encode(record.path) for record in records])
    query = vectors[2]
    order = np.argsort(-(vectors @ query), kind="stable")
    reranker = RERANKERS[name]
    parts = stack_parts(compute_parts(encoder, records, reranker.parts or "tiles"))
    shortlist = Shortlist(query=query, vectors=vectors[order], find_parts=lambda kind: (parts[2], parts[order]))
    expected = [records[order[row]].image_id for row in reranker.order(shortlist)]
    assert find(searcher, picture, name) == expected
    by_id = searcher.answer(SearchRequest(plus=(Example(image_id="02.png"),), k=20, reranking=name))
    assert by_id.reranking == name
    assert sorted(ids(by_id)) == sorted(set(expected) - {"02.png"})


def test_parts_are_kept_beside_the_index_and_taken_from_there(
    searcher: Searcher, index_folder: Path, encoder: Encoder, picture_folder: Path, tmp_path: Path
) -> None:
    query = tmp_path / "query.png"
    query.write_bytes((picture_folder / "05.png").read_bytes())
    expected = find(searcher, query, "chamfer")
    with closing(sqlite3.connect(index_folder / PARTS_NAME)) as connection:
        ((number, size),) = connection.execute("SELECT count(*), max(length(parts)) FROM parts").fetchall()
    assert (number, size) == (12, 4 * 64)
    for path in picture_folder.glob("*.png"):
        path.unlink()
    assert find(searcher, query, "chamfer") == expected
    with Searcher.open(index_folder, encoder) as again:
        assert find(again, query, "chamfer") == expected
    with pytest.raises(DecodeError, match="none of 12 pictures"):
        find(searcher, query, "tiles")
    assert sorted(find(searcher, query, "superglobal")) == sorted(expected)


def test_parts_of_a_picture_that_changed_are_not_taken(
    searcher: Searcher, encoder: Encoder, index_folder: Path, picture_folder: Path
) -> None:
    store = PartStore(index_folder, encoder)
    vectors, records = searcher.store.get(["01.png", "02.png"])
    before = store.find("patches", records, vectors)
    records[0].path.write_bytes(records[1].path.read_bytes())
    np.testing.assert_array_equal(store.find("patches", records, vectors), before)  # the index has not seen the change
    changed = store.find("patches", records, vectors[[1, 1]])
    np.testing.assert_array_equal(changed, before[[1, 1]])


def test_parts_that_cannot_be_written_are_computed_each_time(
    searcher: Searcher, encoder: Encoder, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, records = searcher.store.get(["01.png", "02.png"])
    store = PartStore(tmp_path / "missing", encoder)
    first = store.find("patches", records, vectors)
    np.testing.assert_array_equal(store.find("patches", records, vectors), first)
    assert capsys.readouterr().err.count("cannot be used (unable to open database file)") == 1


def test_fill_computes_all_and_drops_what_is_gone(searcher: Searcher, encoder: Encoder, index_folder: Path) -> None:
    store = PartStore(index_folder, encoder)
    assert store.fill("patches", searcher.store) == 12 * 4 * 64
    searcher.store.delete(["03.png"])
    store.fill("patches", searcher.store)
    with closing(sqlite3.connect(index_folder / PARTS_NAME)) as connection:
        names = [name for (name,) in connection.execute("SELECT image_id FROM parts ORDER BY image_id")]
    assert names == [f"{number:02}.png" for number in range(12) if number != 3]


def test_auto_is_what_the_index_remembers(index_folder: Path, encoder: Encoder, picture_folder: Path) -> None:
    picture = picture_folder / "02.png"
    with Searcher.open(index_folder, encoder) as searcher:
        plain = find(searcher, picture, "none")
        assert find(searcher, picture) == plain
        expected = find(searcher, picture, "chamfer")
    save_kept(KeptReranking(name="chamfer", fingerprint=encoder.fingerprint, reason="measured"), index_folder)
    with Searcher.open(index_folder, encoder) as searcher:
        assert find(searcher, picture) == expected != plain
        assert find(searcher, picture, "none") == plain
        vector = SearchRequest(plus=(Example(vector=encoder.encode(picture)),), k=20)
        assert searcher.answer(vector).reranking == "none"
        assert ids(searcher.answer(vector)) == plain
        with pytest.raises(ConfigError, match="a vector and a text have no parts"):
            searcher.answer(dataclasses.replace(vector, reranking="chamfer"))
        both = (Example(picture=picture), Example(image_id="03.png"))
        assert searcher.answer(SearchRequest(plus=both)).reranking == "none"
        with pytest.raises(ConfigError, match="several examples have several"):
            searcher.answer(SearchRequest(plus=both, reranking="tiles"))


def test_what_the_index_keeps_is_left_out_where_the_pictures_are_gone(
    index_folder: Path, encoder: Encoder, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Searcher.open(index_folder, encoder) as searcher:
        request = SearchRequest(plus=(Example(image_id="02.png"),), k=20)
        plain = ids(searcher.answer(request))
    save_kept(KeptReranking(name="tiles", fingerprint=encoder.fingerprint, reason="measured"), index_folder)
    for path in picture_folder.glob("*.png"):
        path.unlink()
    with Searcher.open(index_folder, encoder) as searcher:
        answer = searcher.answer(request)
        assert (ids(answer), answer.reranking) == (plain, "none")
        assert ids(searcher.answer(request)) == plain
        assert capsys.readouterr().err.count("searching without the re-ranking tiles: ") == 1
        with pytest.raises(DecodeError, match="pictures can be read"):
            searcher.answer(dataclasses.replace(request, reranking="tiles"))


def test_what_an_index_remembers_must_be_its_encoders_and_whole(index_folder: Path, encoder: Encoder) -> None:
    save_kept(KeptReranking(name="chamfer", fingerprint="00" * 32, reason="measured"), index_folder)
    with pytest.raises(FingerprintError, match="another encoder"):
        Searcher.open(index_folder, encoder)
    for text in ("{", "{}", '{"name": "magic", "fingerprint": "", "reason": ""}', '{"name": 1}'):
        (index_folder / RERANKER_NAME).write_text(text)
        with pytest.raises(ArtifactError, match="damaged"):
            load_kept(index_folder)


def draw_head(width: int = 64, seed: int = 0) -> Head:
    """A head with random weights, without torch."""
    generator = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"corner": (1,), "scale": (1,), "offset": (1,)}
    for name, rows, columns in (
        ("projection", HEAD_WIDTH, width),
        ("dustbin_hidden", HEAD_WIDTH, HEAD_WIDTH),
        ("dustbin", 1, HEAD_WIDTH),
        ("vote_hidden", VOTE_WIDTH, 1),
        ("vote", 1, VOTE_WIDTH),
    ):
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name, size in (("projection_norm", HEAD_WIDTH), ("vote_norm", VOTE_WIDTH)):
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return Head(arrays={name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def test_an_index_remembers_what_was_learnt(index_folder: Path, encoder: Encoder, picture_folder: Path) -> None:
    picture, head = picture_folder / "02.png", draw_head()
    with Searcher.open(index_folder, encoder) as searcher, pytest.raises(ConfigError, match="remembers none"):
        find(searcher, picture, "elvis")
    learnt = dataclasses.replace(report(encoder, None).rerankings[0], chosen=build_learnt(head))
    keep_reranking(Evaluation(results=(), rerankings=(learnt,)), index_folder, encoder)
    kept = load_kept(index_folder)
    assert kept is not None
    assert kept.head is not None
    for name, array in head.arrays.items():
        np.testing.assert_array_equal(kept.head.arrays[name], array)
    with Searcher.open(index_folder, encoder) as searcher:
        assert find(searcher, picture) == find(searcher, picture, "elvis")
        assert searcher.answer(SearchRequest(plus=(Example(picture=picture),))).reranking == "elvis"
        assert sorted(find(searcher, picture)) == sorted(find(searcher, picture, "none"))
    (head_file,) = index_folder.glob("reranker-*.safetensors")
    head_file.write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="not the head that was measured"):
        load_kept(index_folder)


def test_a_choice_is_remembered_where_no_picture_of_the_index_can_be_read(
    index_folder: Path, encoder: Encoder, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture_folder.rename(picture_folder.with_name("moved"))
    keep_reranking(report(encoder, "tiles"), index_folder, encoder)
    kept = load_kept(index_folder)
    assert kept is not None
    assert kept.name == "tiles"
    assert "the index remembers tiles, but holds no parts of its pictures yet: none of 12 pictures" in (
        capsys.readouterr().err
    )


def test_a_stop_between_two_heads_leaves_the_old_choice(
    index_folder: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (
        KeptReranking(
            name="elvis", fingerprint=encoder.fingerprint, reason=f"measured {seed}", head=draw_head(seed=seed)
        )
        for seed in (0, 1)
    )
    save_kept(first, index_folder)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrieve.rerank.remember.write_text_durably", stop)
    with pytest.raises(KeyboardInterrupt):
        save_kept(second, index_folder)
    kept = load_kept(index_folder)
    assert kept is not None
    assert kept.reason == "measured 0"
    monkeypatch.undo()
    save_kept(second, index_folder)
    kept = load_kept(index_folder)
    assert kept is not None
    assert kept.reason == "measured 1"
    assert len(list(index_folder.glob("reranker-*"))) == 1
    save_kept(KeptReranking(name="none", fingerprint=encoder.fingerprint, reason="measured 2"), index_folder)
    assert not list(index_folder.glob("reranker-*"))


@pytest.mark.parametrize("name", ["chamfer", "optimal_transport", "query_tiles", "image_tiles", "tiles", LEARNT])
def test_pictures_that_cannot_be_read_keep_their_places_and_the_others_are_ordered_among_theirs(name: str) -> None:
    generator = np.random.default_rng(0)
    parts = generator.integers(-127, 128, (9, 4, 64)).astype(np.int8)
    parts[[0, 4, 7]] = 0
    query, vectors = parts[8], normalize(generator.standard_normal((10, 64)).astype(np.float32))
    reranker = build_learnt(draw_head()) if name == LEARNT else RERANKERS[name]

    def build_shortlist(rows: list[int], query: ByteArray) -> Shortlist:
        return Shortlist(query=vectors[9], vectors=vectors[rows], find_parts=lambda kind: (query, parts[rows]))

    order = reranker.order(build_shortlist([*range(9)], query)).tolist()
    assert [order[place] for place in (0, 4, 7)] == [0, 4, 7]
    readable = [1, 2, 3, 5, 6, 8]
    alone = [readable[row] for row in reranker.order(build_shortlist(readable, query))]
    assert [row for row in order if row in readable] == alone != readable
    assert reranker.order(build_shortlist([*range(9)], np.zeros_like(query))).tolist() == [*range(9)]
    assert reranker.order(build_shortlist([0, 4, 7], query)).tolist() == [0, 1, 2]


def test_a_query_whose_picture_is_gone_is_told_once_beside_others_that_are_gone(
    index_folder: Path, encoder: Encoder, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_kept(KeptReranking(name="tiles", fingerprint=encoder.fingerprint, reason="measured"), index_folder)
    for name in ("02.png", "05.png"):
        (picture_folder / name).unlink()
    found = []
    with Searcher.open(index_folder, encoder) as searcher:
        for name in ("02.png", "03.png", "02.png", "03.png"):
            found.append(searcher.answer(SearchRequest(plus=(Example(image_id=name),), k=20)).reranking)
            told = capsys.readouterr().err
            assert ("searching without the re-ranking tiles: " in told) is (len(found) == 1)
            assert ("re-ranking by tiles: 2 pictures cannot be read" in told) is (len(found) == 2)
    assert found == ["none", "tiles", "none", "tiles"]


def test_a_search_keeps_the_copy_of_its_query_first_whose_picture_is_gone(
    searcher: Searcher, picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = tmp_path / "query.png"
    (picture_folder / "05.png").rename(query)
    for _ in range(2):
        assert find(searcher, query, "tiles")[0] == "05.png"
    told = capsys.readouterr().err
    assert told.count("re-ranking by tiles: 1 picture cannot be read and keeps its place among the first") == 1


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_file_of_parts_that_is_empty_or_damaged_is_made_anew(
    content: bytes, searcher: Searcher, index_folder: Path, picture_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = find(searcher, picture_folder / "05.png", "chamfer")
    (index_folder / PARTS_NAME).write_bytes(content)
    assert find(searcher, picture_folder / "05.png", "chamfer") == expected
    assert capsys.readouterr().err.count("was damaged") == bool(content)
    assert find(searcher, picture_folder / "05.png", "chamfer") == expected
    with closing(sqlite3.connect(index_folder / PARTS_NAME)) as connection:
        assert connection.execute("SELECT count(*) FROM parts").fetchone() == (12,)


def test_parts_are_read_where_they_cannot_be_written(
    searcher: Searcher,
    encoder: Encoder,
    index_folder: Path,
    picture_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = PartStore(index_folder, encoder)
    ids = [f"{number:02}.png" for number in range(11)]
    vectors, records = searcher.store.get(ids)
    before = store.find("patches", records, vectors)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, **named: connect(f"file:{path}?mode=ro", uri=True, **named))
    more = searcher.store.get([*ids, "11.png"])
    assert len(store.find("patches", more[1], more[0])) == 12
    for path in picture_folder.glob("*.png"):
        path.unlink()
    np.testing.assert_array_equal(store.find("patches", records, vectors), before)
    assert store.fill("patches", searcher.store) == 11 * 4 * 64
    assert capsys.readouterr().err.count("cannot be used (attempt to write a readonly database)") == 1


def test_fill_goes_on_behind_a_block_that_cannot_be_read(
    searcher: Searcher, encoder: Encoder, index_folder: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrieve.search.part_store.FILL_SIZE", 4)
    for number in range(4):
        (picture_folder / f"{number:02}.png").unlink()
    assert PartStore(index_folder, encoder).fill("patches", searcher.store) == 8 * 4 * 64
    for path in picture_folder.glob("*.png"):
        path.unlink()
    with pytest.raises(DecodeError, match="none of 12 pictures can be read"):
        PartStore(None, encoder).fill("patches", searcher.store)


def report(encoder: Encoder, name: str | None) -> Evaluation:
    choice = RerankingReport(
        encoder="tiny",
        fingerprint=encoder.fingerprint,
        dataset="colors",
        protocol="all",
        num_queries=4,
        rows=(),
        chosen=None if name is None else RERANKERS[name],
        reason="measured",
        chooses=True,
    )
    results: tuple[EvaluationResult, ...] = ()
    return Evaluation(results=results, rerankings=(choice, dataclasses.replace(choice, chooses=False)))


def test_keep_reranking_remembers_the_choice_and_its_parts(index_folder: Path, encoder: Encoder) -> None:
    assert keep_reranking(report(encoder, None), index_folder, encoder).name == "none"
    assert load_kept(index_folder) == KeptReranking(name="none", fingerprint=encoder.fingerprint, reason="measured")
    assert not (index_folder / PARTS_NAME).exists()
    kept = keep_reranking(report(encoder, "tiles"), index_folder, encoder)
    assert load_kept(index_folder) == kept
    assert kept.reranker is RERANKERS["tiles"]
    with closing(sqlite3.connect(index_folder / PARTS_NAME)) as connection:
        assert connection.execute("SELECT kind, count(*) FROM parts GROUP BY kind").fetchall() == [("tiles", 12)]


def test_keep_reranking_refuses_another_encoder_and_no_choice(index_folder: Path, encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="0 times"):
        keep_reranking(Evaluation(results=()), index_folder, encoder)
    other = dataclasses.replace(encoder, fingerprint="00" * 32)
    with pytest.raises(FingerprintError):
        keep_reranking(report(other, "tiles"), index_folder, encoder)
    with pytest.raises(FingerprintError):
        keep_reranking(report(encoder, "tiles"), index_folder, other)
