from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrieve.data.preprocess import build_preprocessing, to_pixels
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.embed.collection import EmbedSettings, embed_images
from vitrieve.errors import ConfigError, DataError
from vitrieve.evaluation.measure import Measurement, measure
from vitrieve.evaluation.metrics import Exclusions, Relevance, score_queries, score_rows
from vitrieve.evaluation.protocols import EvaluationData
from vitrieve.evaluation.reranking import (
    NUM_TIMED,
    RerankingRow,
    choose_reranking,
    choose_row,
    divide_for_choice,
    learn_for_choice,
    learn_reranker,
    measure_rerankings,
    parse_rerankings,
    report_rerankings,
)
from vitrieve.evaluation.run import evaluate
from vitrieve.rerank import learning
from vitrieve.rerank.names import LEARNT
from vitrieve.rerank.parts import compute_parts
from vitrieve.rerank.reranker import RERANKERS, Shortlist
from vitrieve.runtime.device import DeviceName
from vitrieve.runtime.encoder import Encoder
from vitrieve.runtime.engine import EngineName
from vitrieve.similarity import normalize, similarity

NUM_CLASSES, NUM_IMAGES, NUM_TEST_CLASSES = 25, 5, 2
SETTINGS = EmbedSettings(num_threads=1)
HEADLINES = ("recall_at_1", "map_at_r")


@dataclass
class SquareEngine:
    """Sees the colors that tell classes apart in the patches, and in the embedding only where it is not blind."""

    is_blind: bool
    has_patches: bool = True
    name: EngineName = "onnx"
    precision: str = "fp32"
    num_parallel: int = 1
    device: DeviceName = "cpu"
    batch_size = 16

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        means = pixels.mean(axis=(2, 3))
        return normalize(
            np.concatenate([means[:, :1], np.ones((len(means), 1))], axis=1) if self.is_blind else means[:, 1:]
        )

    def encode_squares(self, squares: np.ndarray) -> np.ndarray:
        return self.encode(to_pixels(squares, build_preprocessing(16)))

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        if not self.has_patches:
            raise ConfigError("no patches")
        grid = pixels.reshape(len(pixels), 3, 4, 4, 4, 4).mean(axis=(3, 5)).reshape(len(pixels), 3, 16)
        return grid.transpose(0, 2, 1)[:, :, 1:]


def build(is_blind: bool, *, has_patches: bool = True) -> Encoder:
    engine = SquareEngine(is_blind, has_patches)
    return Encoder(
        name="square",
        source="square",
        fingerprint="ab" * 32,
        embedding_dim=2,
        preprocessing=build_preprocessing(16),
        runner=engine,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Classes of one hue of green and blue each, with any red; the files of the test classes are missing."""
    folder = tmp_path_factory.mktemp("colors")
    generator = np.random.default_rng(0)
    records = []
    for label in range(NUM_CLASSES):
        angle = 2 * np.pi * label / NUM_CLASSES
        for number in range(NUM_IMAGES):
            color = [generator.uniform(0, 255), 120 + 100 * np.cos(angle), 120 + 100 * np.sin(angle)]
            noise = generator.normal(0, 4, (20, 20, 3))
            path = folder / f"{label:02}-{number}.png"
            Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(path)
            records.append(ImageRecord(image_id=path.name, path=path, label=label, split="train"))
    for label in range(NUM_CLASSES, NUM_CLASSES + NUM_TEST_CLASSES):
        records += [
            ImageRecord(image_id=f"test {label} {n}", path=folder / "missing.png", label=label, split="test")
            for n in range(3)
        ]
    names = tuple(f"class {label}" for label in range(NUM_CLASSES + NUM_TEST_CLASSES))
    return Dataset(name="colors", protocol="all", records=tuple(records), label_names=names, ks=(1, 2))


@pytest.fixture(autouse=True)
def _quick_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "NUM_STEPS", 2)


def measure_held_out(dataset: Dataset, encoder: Encoder) -> Measurement:
    data = divide_for_choice(dataset)
    assert data is not None
    embeddings = embed_images(encoder, data.held_out.records, num_threads=1)
    return measure(data.held_out, embeddings, encoder.name, has_intervals=False)


def test_a_head_that_is_learned_already_is_not_learned_again(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(is_blind=True)
    expected = choose_reranking(encoder, dataset, name="square", settings=SETTINGS)
    learnt = learn_for_choice(encoder, dataset, SETTINGS)
    monkeypatch.setattr(learning, "learn_head", None)
    found = choose_reranking(encoder, dataset, name="square", settings=SETTINGS, learnt=learnt)
    assert [row.metrics for row in found.rows] == [row.metrics for row in expected.rows]
    assert LEARNT in [row.reranking for row in found.rows]
    (tested,) = report_rerankings(measure_held_out(dataset, encoder), encoder, (LEARNT,), SETTINGS, learnt=learnt)
    assert [row.reranking for row in tested.rows][1:] == [LEARNT]


def test_score_rows_equals_score_queries_with_ties_and_junk() -> None:
    generator = np.random.default_rng(0)
    vectors = normalize(generator.integers(-1, 2, (40, 3)) + 0.0)  # many are equal
    labels, junk = generator.integers(0, 6, 40), generator.integers(-1, 3, 40)
    exclusions = Exclusions(query_junk=junk)
    expected = score_queries(vectors, labels, exclusions=exclusions)
    found = score_rows(similarity(vectors, vectors), Relevance(labels, None, exclusions))
    np.testing.assert_array_equal(found.first_rank, expected.first_rank)
    np.testing.assert_array_equal(found.map_at_r, expected.map_at_r)
    np.testing.assert_array_equal(found.r_precision, expected.r_precision)


def score_slowly(measurement: Measurement, name: str, depth: int) -> tuple[float, float]:
    """Recall@1 and MAP@R of one way, query by query, with a sorted list of names."""
    task, vectors, recalls, averages = measurement.task, np.asarray(measurement.vectors), [], []
    for query in task.query_rows:
        others = [row for row in task.gallery_rows if row != query]
        ranked = sorted(others, key=lambda row: -float(similarity(vectors[query][None], vectors[row][None])[0, 0]))
        first = ranked[:depth]
        scores = RERANKERS[name].score(Shortlist(query=vectors[query], vectors=vectors[first]))
        ranked = [row for _, row in sorted(zip(-scores, first, strict=True), key=lambda pair: pair[0])] + ranked[depth:]
        right = [task.labels[row] == task.labels[query] for row in ranked]
        num_relevant = sum(right)
        recalls.append(right[0])
        averages.append(sum(sum(right[: k + 1]) / (k + 1) for k in range(num_relevant) if right[k]) / num_relevant)
    return float(np.mean(recalls)), float(np.mean(averages))


@pytest.mark.parametrize("depth", [5, 400])
@pytest.mark.parametrize("name", ["superglobal", "k_reciprocal", "average_query_expansion"])
def test_measure_rerankings_equals_a_slow_reference(dataset: Dataset, name: str, depth: int) -> None:
    encoder = build(is_blind=False)
    measurement = measure_held_out(dataset, encoder)
    reranker = dataclasses.replace(RERANKERS[name], depth=depth)
    none, row = measure_rerankings(measurement, encoder, [reranker])
    assert none.metrics == measurement.result.metrics
    assert (none.reranking, none.gain, row.reranking, row.bytes_per_image) == ("none", None, name, 0)
    recall, average = score_slowly(measurement, name, depth)
    assert row.metrics["recall_at_1"] == pytest.approx(recall)
    assert row.metrics["map_at_r"] == pytest.approx(average)


def test_auto_keeps_what_helps_and_never_reads_test_images(dataset: Dataset) -> None:
    report = choose_reranking(build(is_blind=True), dataset, name="square", settings=SETTINGS)
    assert report.chosen is not None
    assert report.chosen.parts == "patches"
    rows = {row.reranking: row for row in report.rows}
    assert set(rows) == {"none", LEARNT, *RERANKERS}
    kept = rows[report.chosen.name]
    assert kept.metrics["map_at_r"] == max(row.metrics["map_at_r"] for row in report.rows)
    assert kept.metrics["map_at_r"] > rows["none"].metrics["map_at_r"] + 0.2
    assert kept.gain is not None
    assert kept.gain[0] > 0
    assert kept.bytes_per_image == 16 * 2
    assert (report.num_queries, report.dataset) == (5 * NUM_IMAGES, "colors, held out")
    assert report.reason.startswith(f"kept {report.chosen.name}: +")
    assert json.loads(json.dumps(report.to_json()))["chosen"] == report.chosen.name
    assert report.chosen.name in str(report)


def test_auto_keeps_none_where_nothing_helps(dataset: Dataset) -> None:
    report = choose_reranking(build(is_blind=False), dataset, name="square", settings=SETTINGS)
    assert report.chosen is None
    assert report.reason.startswith("kept none")
    assert report.to_json()["chosen"] == "none"


def test_auto_keeps_none_without_enough_classes_and_leaves_patches_out_where_there_are_none(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    few = dataclasses.replace(
        dataset, records=tuple(record for record in dataset.records if record.label in (0, 1, NUM_CLASSES))
    )
    report = choose_reranking(build(is_blind=True), few, name="square", settings=SETTINGS)
    assert (report.chosen, report.rows) == (None, ())
    assert "too few training classes" in str(report)
    flat = choose_reranking(build(is_blind=True, has_patches=False), dataset, name="square", settings=SETTINGS)
    assert {row.reranking for row in flat.rows} == {"none"} | {
        n for n, one in RERANKERS.items() if one.parts != "patches"
    }
    told = capsys.readouterr().err
    assert "no tokens of patches; what compares them is left out" in told
    assert "the re-ranking elvis is left out: the encoder puts out no tokens" in told


def test_choose_row_wants_a_gain_beyond_chance_and_no_loss_of_the_first_rank() -> None:
    def row(name: str, recall: float, average: float, gain: tuple[float, float] | None) -> RerankingRow:
        metrics = {"recall_at_1": recall, "map_at_r": average}
        return RerankingRow(reranking=name, metrics=metrics, gain=gain, milliseconds=1.0, bytes_per_image=0)

    none = row("none", 0.8, 0.5, None)
    unsure, costly = row("unsure", 0.9, 0.7, (-0.01, 0.4)), row("costly", 0.79, 0.65, (0.1, 0.2))
    good, better = row("good", 0.8, 0.55, (0.01, 0.1)), row("better", 0.8, 0.6, (0.02, 0.2))
    assert choose_row([none, unsure, costly], HEADLINES) is None
    assert choose_row([none, unsure, costly, good, better], HEADLINES) is better


def test_held_out_images_look_for_the_catalogue_where_there_is_one(dataset: Dataset) -> None:
    shown = [
        ImageRecord(image_id=f"shown {label}", path=Path("x"), label=label, split="test", is_query=False)
        for label in range(NUM_CLASSES + NUM_TEST_CLASSES)
    ]
    data = divide_for_choice(dataclasses.replace(dataset, records=(*dataset.records, *shown)))
    assert data is not None
    queries = [record for record in data.held_out.records if record.is_query]
    gallery = [record for record in data.held_out.records if record.is_gallery]
    assert {record.label for record in queries} == {4, 9, 14, 19, 24}
    assert [record.image_id for record in gallery] == [f"shown {label}" for label in range(NUM_CLASSES)]
    assert {record.label for record in data.fit}.isdisjoint({4, 9, 14, 19, 24, *range(NUM_CLASSES, 100)})


def test_a_catalogue_of_too_few_classes_is_not_looked_for(dataset: Dataset) -> None:
    shown = [
        ImageRecord(image_id=f"shown {label}", path=Path("x"), label=label, split="test", is_query=False)
        for label in (4, 9)
    ]
    data = divide_for_choice(dataclasses.replace(dataset, records=(*dataset.records, *shown)))
    assert data is not None
    assert data.num_judges == 5
    assert not any(record.image_id.startswith("shown") for record in data.held_out.records)
    assert all(record.is_gallery for record in data.held_out.records if record.is_query)


def test_the_choice_is_made_with_so_many_images(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrieve.evaluation.reranking.MAX_CHOOSING", 15)
    data = divide_for_choice(dataset)
    assert data is not None
    assert [record.label for record in data.held_out.records] == [4] * 3 + [9] * 3 + [14] * 3 + [19] * 3 + [24] * 3
    names = [record.image_id for record in data.held_out.records[:3]]
    assert names == ["04-0.png", "04-2.png", "04-4.png"]  # from all over a class that is cut
    shown = [
        ImageRecord(image_id=f"shown {label} {n}", path=Path("x"), label=label, split="test", is_query=False)
        for label in range(NUM_CLASSES)
        for n in range(40)
    ]
    data = divide_for_choice(dataclasses.replace(dataset, records=(*dataset.records, *shown)))
    assert data is not None
    assert sum(record.is_gallery for record in data.held_out.records) == 15
    assert data.num_judges == 5


def test_auto_keeps_none_and_computes_nothing_where_fewer_than_five_classes_are_held_out(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(dataset, records=tuple(record for record in dataset.records if record.label < 20))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be embedded")

    monkeypatch.setattr("vitrieve.evaluation.reranking.embed_images", refuse)
    report = choose_reranking(build(is_blind=True), few, name="square", settings=SETTINGS)
    assert (report.chosen, report.rows) == (None, ())
    assert report.reason == (
        "kept none: 4 training classes of colors can be held out, and fewer than 5 cannot tell a gain from chance; "
        "give a source of 25 training classes or more with two images or more each"
    )


def test_auto_counts_the_held_out_classes_that_can_be_read(dataset: Dataset) -> None:
    records = tuple(
        dataclasses.replace(record, path=record.path.with_name("missing.png"))
        if record.label == 24 and not record.image_id.endswith("0.png")
        else record
        for record in dataset.records
    )
    settings = dataclasses.replace(SETTINGS, max_bad_fraction=0.5)
    broken = dataclasses.replace(dataset, records=records)
    report = choose_reranking(build(is_blind=True), broken, name="square", settings=settings)
    assert report.chosen is None
    assert len(report.rows) > 1
    assert "4 training classes of colors can be held out" in report.reason


def test_a_head_is_left_out_where_no_pair_can_be_read(dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        dataclasses.replace(record, path=record.path if record.image_id.endswith("0.png") else Path("missing.png"))
        for record in dataset.split("train")
    ]
    settings = dataclasses.replace(SETTINGS, max_bad_fraction=1.0)
    assert learn_reranker(build(is_blind=True), records, settings) is None
    assert "elvis is left out: of no two training classes a pair" in capsys.readouterr().err


def test_what_a_protocol_ignores_is_ordered_again_and_then_taken_out(dataset: Dataset) -> None:
    """Images of the query's own camera are in the shortlist, as a search shows them, but not in the ranking."""
    cameras = [
        dataclasses.replace(record, metadata={"camera": f"{record.label} {int(record.image_id[3]) // 2}"})
        for record in dataset.records
        if record.split == "train"
    ]
    held = divide_for_choice(dataclasses.replace(dataset, records=tuple(cameras), junk_key="camera"))
    assert held is not None
    encoder = build(is_blind=False)
    embeddings = embed_images(encoder, held.held_out.records, num_threads=1)
    measurement = measure(held.held_out, embeddings, "square", has_intervals=False)
    task, vectors = measurement.task, np.asarray(measurement.vectors)
    seen: list[int] = []

    def score(shortlist: Shortlist) -> np.ndarray:
        seen.append(len(shortlist.vectors))
        return RERANKERS["superglobal"].score(shortlist)

    depth = 8
    reranker = dataclasses.replace(RERANKERS["superglobal"], depth=depth, score=score)
    _, row = measure_rerankings(measurement, encoder, [reranker])
    assert set(seen) == {depth}
    averages = []
    for query in task.query_rows:
        others = [row for row in task.gallery_rows if row != query]
        ranked = sorted(others, key=lambda row: -float(similarity(vectors[query][None], vectors[row][None])[0, 0]))
        scores = RERANKERS["superglobal"].score(Shortlist(query=vectors[query], vectors=vectors[ranked[:depth]]))
        ranked = [ranked[n] for n in np.argsort(-scores, kind="stable")] + ranked[depth:]
        assert task.junk_groups is not None
        right = [
            task.labels[row] == task.labels[query] for row in ranked if task.junk_groups[row] != task.junk_groups[query]
        ]
        total = sum(right)
        averages.append(sum(sum(right[: k + 1]) / (k + 1) for k in range(total) if right[k]) / total)
    assert row.metrics["map_at_r"] == pytest.approx(float(np.mean(averages)))


def test_parts_are_computed_of_the_queries_and_what_they_are_shown_alone(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = dataset.split("train")
    records = [dataclasses.replace(one, split="test", is_query=one.image_id == "00-0.png") for one in trained]
    encoder = build(is_blind=False)
    embeddings = embed_images(encoder, records, num_threads=1)
    measurement = measure(dataclasses.replace(dataset, records=tuple(records)), embeddings, "x", has_intervals=False)
    numbers = []

    def count(encoder: Encoder, records: Sequence[ImageRecord], *rest: Any, **named: Any) -> list[Any]:
        numbers.append(len(records))
        return compute_parts(encoder, records, *rest, **named)

    monkeypatch.setattr("vitrieve.evaluation.reranking.compute_parts", count)
    rerankers = [dataclasses.replace(RERANKERS[name], depth=7) for name in ("chamfer", "optimal_transport")]
    _, chamfer, _ = measure_rerankings(measurement, encoder, rerankers)
    assert numbers[0] == 1 + 7
    assert numbers[1:] == [1] * min(NUM_TIMED, len(measurement.task.query_rows))  # to time them, once
    monkeypatch.undo()
    _, whole = measure_rerankings(measurement, encoder, [RERANKERS["chamfer"]])
    assert chamfer.bytes_per_image == whole.bytes_per_image


def test_unreadable_pictures_are_counted_before_their_parts_are_compared(
    dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = build(is_blind=False)
    measurement = measure_held_out(dataset, encoder)
    expected = measurement.scores.means((1, 2))
    records = measurement.task.records
    lost = {record.image_id for record in records[::2]}
    gone = tuple(
        dataclasses.replace(one, path=one.path.with_name("missing.png")) if one.image_id in lost else one
        for one in records
    )
    object.__setattr__(measurement.task, "records", gone)  # the files vanish after the vectors were made
    with pytest.raises(DataError, match=r"13 of 25 images whose tiles are compared cannot be read.*max_bad_fraction"):
        measure_rerankings(measurement, encoder, [RERANKERS["tiles"]])
    rerankers = [RERANKERS["tiles"], RERANKERS["superglobal"]]
    rows = measure_rerankings(measurement, encoder, rerankers, max_bad_fraction=0.6)
    assert "13 of 25 images whose tiles are compared cannot be read; they keep the place" in capsys.readouterr().err
    assert rows[0].metrics == expected
    assert abs(rows[1].metrics["map_at_r"] - expected["map_at_r"]) < 0.2  # zeros would push half of them to the end


def test_auto_is_refused_where_all_classes_are_measured(dataset: Dataset, tmp_path: Path) -> None:
    data = EvaluationData(datasets=(dataset,), classes="all")
    with pytest.raises(ConfigError, match="--classes all measures on as well"):
        evaluate(build(is_blind=False), data, tmp_path / "out", rerank="auto")
    assert not (tmp_path / "out").exists()


def test_the_parts_of_a_query_count_in_its_time(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(is_blind=False)
    monkeypatch.setattr("vitrieve.evaluation.reranking._Shortlists.time_query_parts", lambda *_: 5000.0)
    rerankers = [RERANKERS[name] for name in ("chamfer", "superglobal")]
    _, chamfer, superglobal = measure_rerankings(measure_held_out(dataset, encoder), encoder, rerankers)
    assert superglobal.milliseconds < 5_000_000 < chamfer.milliseconds


def test_parse_rerankings_refuses_unknown_names() -> None:
    assert parse_rerankings("") == ()
    assert parse_rerankings(["superglobal", "chamfer, superglobal"]) == ("superglobal", "chamfer")
    with pytest.raises(ConfigError, match="Did you mean 'chamfer'"):
        parse_rerankings("chamfers")
    assert parse_rerankings("none") == ()
    for together in ("auto,chamfer", "none,chamfer", "auto,none"):
        with pytest.raises(ConfigError, match="give one of them alone"):
            parse_rerankings(together)


def test_evaluate_tells_choice_and_test_figures(dataset: Dataset, tmp_path: Path) -> None:
    tests = [
        dataclasses.replace(record, image_id=f"again {record.image_id}", label=record.label + NUM_CLASSES, split="test")
        for record in dataset.records
        if record.label < NUM_TEST_CLASSES
    ]
    whole = dataclasses.replace(dataset, records=(*dataset.split("train"), *tests))
    evaluation = evaluate(build(is_blind=True), whole, tmp_path / "out", num_threads=1, rerank="auto")
    choice, tested = evaluation.rerankings
    assert choice.chosen is not None
    assert (choice.chooses, tested.chooses) == (True, False)
    assert [row.reranking for row in tested.rows] == ["none", choice.chosen.name]
    assert tested.rows[0].metrics == evaluation.results[0].metrics
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(evaluation.to_json()))
    assert "bytes an image" in str(evaluation)
    tables = list_tables((tmp_path / "out" / "report.html").read_text())
    assert [[row[0] for row in table] for table in tables] == [
        [row.reranking + (" ✓" if row.reranking == choice.chosen.name else "") for row in choice.rows],
        ["none", choice.chosen.name],
    ]
    kept = next(row for row in choice.rows if row.reranking == choice.chosen.name)
    shown = next(row for row in tables[0] if row[0] == f"{kept.reranking} ✓")
    assert shown[1:5] == [f"{100 * kept.metrics[name]:.1f}" for name in choice.rows[0].metrics]
    assert shown[5].startswith("▲ +")
    assert shown[-1] == f"{kept.bytes_per_image:,}"
    named = evaluate(build(is_blind=True), whole, num_threads=1, rerank="superglobal,tiles,elvis")
    assert [row.reranking for row in named.rerankings[0].rows] == ["none", "superglobal", "tiles", "elvis"]
    assert "rerankings" not in evaluate(build(is_blind=True), whole, num_threads=1).to_json()


def test_the_report_says_why_nothing_was_chosen(dataset: Dataset, tmp_path: Path) -> None:
    records = [dataclasses.replace(record, split="test") for record in dataset.split("train")]
    whole = dataclasses.replace(dataset, records=tuple(records))
    evaluate(build(is_blind=True), whole, tmp_path / "out", num_threads=1, rerank="auto")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "has too few training classes to hold some out" in page
    assert list_tables(page) == []


def list_tables(page: str) -> list[list[list[str]]]:
    """The texts of the cells of every table behind the title Re-ranking, row by row."""
    section = page[page.index('<h3 class="title">Re-ranking') : page.index('<div class="gallery">')]
    bodies = re.findall(r"<tbody>(.*?)</tbody>", section, flags=re.DOTALL)
    rows = [re.findall(r"<tr>(.*?)</tr>", body, flags=re.DOTALL) for body in bodies]
    cells = [[re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in table] for table in rows]
    return [[[" ".join(re.sub("<.*?>", "", cell).split()) for cell in row] for row in table] for table in cells]
