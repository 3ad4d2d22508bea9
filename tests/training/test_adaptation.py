"""A linear head: one step against plain NumPy, what held-out classes keep and refuse, and the encoder that has it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.text_encoders import LICENSE
from vitrieve import adapt
from vitrieve.artifacts import write_manifest
from vitrieve.cli.main import main
from vitrieve.config import DEFAULT_WEIGHTS
from vitrieve.data.records import Dataset, ImageRecord, Split
from vitrieve.data.several import forget_labels
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import embed_collection
from vitrieve.embed.embeddings import ROWS_NAME, VECTORS_NAME, load_embeddings, tell_changed_files
from vitrieve.embed.rows import build_table
from vitrieve.errors import ArtifactError, ConfigError, DataError, FingerprintError
from vitrieve.model.encoder import add_linear_head, build_encoder, read_encoder, save_encoder
from vitrieve.model.pretrained import WEIGHTS
from vitrieve.model.reduction import fit_pca
from vitrieve.runtime.encoder import load_encoder
from vitrieve.similarity import normalize
from vitrieve.training import adaptation
from vitrieve.training.adaptation import SCALE, draw_head, map_vectors, order_head, train_head

NUM_CLASSES, NUM_OF_CLASS, WIDTH, NUM_SIGNAL = 40, 8, 64, 8


@pytest.fixture(autouse=True)
def _exports_are_quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the export out where a test is not about it."""
    if "exported" not in request.fixturenames:
        monkeypatch.setattr(adaptation, "export_folder", lambda folder: None)


@pytest.fixture(autouse=True)
def _epochs_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "NUM_EPOCHS_MAX", 60)


@pytest.fixture
def exported() -> None:
    """What a test takes that is about the export."""


def one_step(vectors: np.ndarray, labels: np.ndarray, weight: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """One step of Adam on the cosine classifier, written out in float64: W after it."""
    gradient = np.zeros_like(weight)
    unit_centers = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    for x, label in zip(vectors, labels, strict=True):
        output = weight @ x
        length = np.linalg.norm(output)
        y = output / length
        logits = SCALE * unit_centers @ y
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        shares[label] -= 1
        of_y = SCALE * unit_centers.T @ shares
        of_output = (of_y - y * (y @ of_y)) / length
        gradient += np.outer(of_output, x) / len(vectors)
    gradient += 1e-6 * weight
    mean, square = 0.1 * gradient, 0.001 * gradient**2
    return weight - 1e-3 * (mean / (1 - 0.9)) / (np.sqrt(square / (1 - 0.999)) + 1e-8)


def test_train_head_does_the_step_that_numpy_does() -> None:
    generator = np.random.default_rng(0)
    vectors = normalize(generator.normal(size=(12, 6)))
    labels = generator.integers(0, 3, 12)
    labels[:3] = 0, 1, 2
    weight, centers = (matrix.detach().numpy().astype(np.float64) for matrix in draw_head(6, 4, 3, seed=5))
    found = next(train_head(vectors, labels, seed=5, num_outputs=4))
    assert np.abs(found - weight).max() > 5e-4
    np.testing.assert_allclose(found, one_step(vectors, labels, weight, centers), atol=2e-6)


def test_draw_head_is_within_the_bounds_of_glorot_and_of_its_seed() -> None:
    weight, centers = draw_head(6, 4, 3, seed=5)
    assert weight.abs().max() <= (6 / 10) ** 0.5
    assert centers.abs().max() <= (6 / 7) ** 0.5
    assert torch.equal(weight, draw_head(6, 4, 3, seed=5)[0])
    assert not torch.equal(weight, draw_head(6, 4, 3, seed=6)[0])


def test_order_head_of_a_hand_worked_case() -> None:
    weight = np.array([[0.0, -1.0], [0.0, 0.0], [2.0, 0.0]])
    assert order_head(weight).tolist() == [[2.0, 0.0], [0.0, 1.0]]


def test_order_head_changes_no_similarity() -> None:
    generator = np.random.default_rng(0)
    vectors = normalize(generator.normal(size=(9, 5)))
    for num_outputs in (3, 5, 8):
        weight = generator.normal(size=(num_outputs, 5))
        mapped = map_vectors(vectors, order_head(weight))
        assert mapped.shape == (9, min(num_outputs, 5))
        expected = normalize(vectors @ weight.T)
        np.testing.assert_allclose(mapped @ mapped.T, expected @ expected.T, atol=1e-5)


def test_map_vectors_keeps_zeros_and_may_do_nothing() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert not map_vectors(zeros, np.eye(3, dtype=np.float32)).any()
    assert map_vectors(zeros, None) is zeros


def build_dataset(num_classes: int = NUM_CLASSES) -> Dataset:
    """A data set in memory, without pictures: the last two of its classes are for testing."""
    records = []
    for label in range(num_classes):
        split: Split = "test" if label >= num_classes - 2 else "train"
        records += [
            ImageRecord(image_id=f"{label}/{copy}.png", path=Path(f"{label}/{copy}.png"), label=label, split=split)
            for copy in range(NUM_OF_CLASS)
        ]
    names = tuple(f"class{label}" for label in range(num_classes))
    return Dataset(name="toy", protocol="zero_shot", records=tuple(records), label_names=names)


def draw_vectors(dataset: Dataset, *, signal: float) -> np.ndarray:
    """Vectors whose first few dimensions tell the class, behind a louder rest that tells nothing."""
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(len(dataset.label_names), NUM_SIGNAL))
    vectors = generator.normal(size=(len(dataset.records), WIDTH))
    for row, record in enumerate(dataset.records):
        vectors[row, :NUM_SIGNAL] = signal * centers[record.label] + 0.2 * generator.normal(size=NUM_SIGNAL)
    return normalize(vectors)


def write_embeddings(folder: Path, dataset: Dataset, vectors: np.ndarray, encoder: Path) -> Path:
    """Write embeddings that say they were made by an encoder."""
    import pyarrow.parquet as pq

    folder.mkdir()
    np.save(folder / VECTORS_NAME, vectors)
    pq.write_table(build_table(dataset.records, [None] * len(dataset.records), 0), folder / ROWS_NAME)
    made_by = json.loads((encoder / "manifest.json").read_text())
    manifest = {
        "fingerprint": made_by["fingerprint"],
        "encoder_source": str(encoder),
        "image_size": made_by["image_size"],
        "embedding_dim": vectors.shape[1],
        "license": "",
    }
    write_manifest(folder, "embeddings", manifest)
    return folder


@pytest.fixture
def write(tiny_encoder_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(dataset: Dataset, vectors: np.ndarray, encoder: Path = tiny_encoder_folder) -> Path:
        return write_embeddings(tmp_path / "embeddings", dataset, vectors, encoder)

    return write


def test_adapt_helps_where_the_classes_hide_in_few_directions(write: Callable[..., Path], tmp_path: Path) -> None:
    dataset = build_dataset()
    adapted = adapt(write(dataset, draw_vectors(dataset, signal=0.7)), dataset, tmp_path / "out")
    assert adapted.is_adapted
    for before, after in (adapted.held_out, adapted.test):
        assert after.metrics["map_at_r"] > before.metrics["map_at_r"] + 0.05
    assert 0.05 < adapted.gain[0] < adapted.gain[1]
    assert (adapted.num_images, adapted.num_classes) == (31 * NUM_OF_CLASS, 31)
    assert adapted.fingerprint == load_encoder(tmp_path / "out").fingerprint


@pytest.mark.parametrize("kind", ["noise", "perfect"])
def test_trap_adapt_keeps_the_encoder_where_nothing_can_be_learnt(
    write: Callable[..., Path], tiny_encoder_folder: Path, tmp_path: Path, kind: str
) -> None:
    dataset = build_dataset()
    vectors = draw_vectors(dataset, signal=0.0)
    if kind == "perfect":
        labels = np.array([record.label for record in dataset.records])
        vectors = np.eye(WIDTH, dtype=np.float32)[labels]
    embeddings = write(dataset, vectors)
    adapted = adapt(embeddings, dataset, tmp_path / "out", embeddings_out=tmp_path / "same")
    assert not adapted.is_adapted
    assert adapted.gain[0] <= 0
    assert len(adapted.test) == 1
    assert adapted.fingerprint == load_encoder(tiny_encoder_folder).fingerprint
    assert adapted.fingerprint == load_embeddings(tmp_path / "same").fingerprint
    assert np.array_equal(load_embeddings(tmp_path / "same").vectors, vectors)
    assert "was tried; it was not better" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("signal", [0.0, 0.7])
def test_the_text_part_goes_with_an_encoder_that_stays_and_is_told_where_it_cannot(
    write: Callable[..., Path],
    aligned_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    signal: float,
) -> None:
    dataset = build_dataset()
    embeddings = write(dataset, draw_vectors(dataset, signal=signal))
    adapted = adapt(embeddings, dataset, tmp_path / "out", encoder=aligned_folder)
    assert adapted.is_adapted is (signal > 0)
    told = "the text part is left out" in capsys.readouterr().err
    assert told is adapted.is_adapted
    assert (load_encoder(tmp_path / "out").text_part is None) is adapted.is_adapted
    if not adapted.is_adapted:
        expected = load_encoder(aligned_folder).encode_text("dark red")
        np.testing.assert_array_equal(load_encoder(tmp_path / "out").encode_text("dark red"), expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert (f"Its license is {LICENSE}." in card) is not adapted.is_adapted


@pytest.mark.parametrize(("num_classes", "told"), [(9, "the one held-out class"), (18, "the 3 held-out classes")])
def test_trap_few_held_out_classes_prove_nothing(
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    num_classes: int,
    told: str,
) -> None:
    monkeypatch.setattr(adaptation, "difference_interval", lambda *_: {"map_at_r": (0.1, 0.1)})
    dataset = build_dataset(num_classes)
    adapted = adapt(write(dataset, draw_vectors(dataset, signal=0.0)), dataset, tmp_path / "out")
    assert not adapted.is_adapted
    assert f"on {told} the best head changes MAP@R by +10.0 to +10.0 points, but" in capsys.readouterr().err


def test_adapt_says_that_its_encoder_has_seen_the_test_classes(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = build_dataset(9)
    entry = replace(WEIGHTS[DEFAULT_WEIGHTS], architecture="test_vit", trained_on=(dataset.name,))
    monkeypatch.setitem(WEIGHTS, "test_vit", entry)
    adapt(write(dataset, draw_vectors(dataset, signal=0.0)), dataset, tmp_path / "out")
    assert f"its start, test_vit, has seen the test classes of {dataset.name}: " in capsys.readouterr().err


def test_embeddings_longer_than_iliass_keep_as_many_dimensions_as_asked_for(write: Callable[..., Path]) -> None:
    dataset = build_dataset(12)
    vectors = normalize(np.random.default_rng(0).normal(size=(len(dataset.records), 540)))
    stored = load_embeddings(write(dataset, vectors))
    learnt = adaptation._learn(stored, dataset, adaptation.HeadSettings(embedding_dim=530))
    assert learnt.head.components.shape == (530, 540)
    assert adaptation._choose_dims(540, None) == (128, 256, 512, 540)


def test_trap_test_classes_decide_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    dataset = build_dataset()
    vectors = draw_vectors(dataset, signal=0.7)
    first = adapt(write(dataset, vectors), dataset, tmp_path / "one")
    is_test = np.array([record.split == "test" for record in dataset.records])
    vectors[is_test] = vectors[is_test][:, ::-1]
    (tmp_path / "embeddings").rename(tmp_path / "before")
    second = adapt(write(dataset, vectors), dataset, tmp_path / "two")
    assert first.fingerprint == second.fingerprint
    assert first.held_out == second.held_out
    assert first.test != second.test


def test_adapt_keeps_as_many_dimensions_as_asked_for(write: Callable[..., Path], tmp_path: Path) -> None:
    dataset = build_dataset()
    embeddings = write(dataset, draw_vectors(dataset, signal=0.7))
    adapted = adapt(embeddings, dataset, tmp_path / "out", embedding_dim=10, embeddings_out=tmp_path / "short")
    assert adapted.embedding_dim == 10
    assert load_embeddings(tmp_path / "short").vectors.shape == (NUM_CLASSES * NUM_OF_CLASS, 10)
    with pytest.raises(ConfigError, match="embedding_dim is 65; a linear map of 64 dimensions has at most 64"):
        adapt(embeddings, dataset, tmp_path / "other", embedding_dim=65)


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Twelve classes of four pictures: stripes of a color of the class, under noise of every color."""
    folder = tmp_path / "pictures"
    generator = np.random.default_rng(0)
    for label in range(12):
        (folder / f"class{label:02}").mkdir(parents=True)
        color = generator.integers(0, 200, 3)
        for copy in range(4):
            pixels = (color + generator.integers(0, 56, (36, 36, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label:02}" / f"{copy}.png")
    return f"folder:{folder}"


@pytest.mark.parametrize("is_reduced", [False, True])
def test_the_encoder_gives_what_the_head_makes_of_stored_vectors(
    tiny_encoder_folder: Path, tmp_path: Path, pictures: str, is_reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_encoder_folder
    if is_reduced:
        from vitrieve.model.encoder import add_reduction

        fitted = fit_pca(np.random.default_rng(0).normal(size=(80, 64)), 16, fitted_on="noise")
        folder = tmp_path / "reduced"
        save_encoder(add_reduction(read_encoder(tiny_encoder_folder), fitted), folder)
    encoder = load_encoder(folder, engine="torch", precision="fp32")
    embed_collection(encoder, read_collection(pictures), tmp_path / "embeddings")
    monkeypatch.setattr(adaptation, "difference_interval", lambda *_: {"map_at_r": (0.1, 0.2)})  # keep any head
    monkeypatch.setattr(adaptation, "NUM_JUDGES_MIN", 1)
    adapted = adapt(tmp_path / "embeddings", pictures, tmp_path / "out", embeddings_out=tmp_path / "mapped")
    again = load_encoder(tmp_path / "out", engine="torch", precision="fp32")
    expected = embed_collection(again, read_collection(pictures), tmp_path / "again")
    mapped = load_embeddings(tmp_path / "mapped")
    np.testing.assert_allclose(mapped.vectors, expected.vectors, atol=1e-5)
    assert mapped.fingerprint == expected.fingerprint == adapted.fingerprint != encoder.fingerprint
    assert mapped.records == expected.records
    assert mapped.encoder_source == str(tmp_path / "out")


def test_adapted_encoder_runs_without_torch_and_is_told(
    exported: None,
    tiny_encoder_folder: Path,
    tmp_path: Path,
    pictures: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(pictures), tmp_path / "embeddings")
    monkeypatch.setattr(adaptation, "difference_interval", lambda *_: {"map_at_r": (0.1, 0.2)})
    monkeypatch.setattr(adaptation, "NUM_JUDGES_MIN", 1)
    words = ["adapt", "--embeddings", tmp_path / "embeddings", "--data", pictures, "--out", tmp_path / "out"]
    assert main([*map(str, words), "--embeddings-out", str(tmp_path / "mapped"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["is_adapted"] is True
    assert [one["encoder"] for one in printed["held_out"]] == ["before", "adapted"]
    assert [one["encoder"] for one in printed["test"]] == ["before", "adapted"]
    again = load_encoder(tmp_path / "out", engine="onnx", num_threads=1)
    found = embed_collection(again, read_collection(pictures), tmp_path / "again")
    np.testing.assert_allclose(load_embeddings(tmp_path / "mapped").vectors, found.vectors, atol=1e-5)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "linear head fitted on training images of" in card
    assert "a linear head on stored embeddings" in card
    assert printed["fingerprint"] == again.fingerprint


# What is refused


def test_trap_embeddings_and_data_that_do_not_belong_together(write: Callable[..., Path], tmp_path: Path) -> None:
    dataset = build_dataset()
    embeddings = write(dataset, draw_vectors(dataset, signal=0.7))
    others = tuple(replace(record, image_id=f"other/{record.image_id}") for record in dataset.records)
    with pytest.raises(DataError, match=r"no vector of 304 of the 304 training images of toy, the first.*other/0/0"):
        adapt(embeddings, replace(dataset, records=others), tmp_path / "out")
    cropped = tuple(replace(record, box=(0.0, 0.0, 5.0, 5.0)) for record in dataset.records)
    with pytest.raises(DataError, match="look at different regions of 0/0"):
        adapt(embeddings, replace(dataset, records=cropped), tmp_path / "out")
    tests = tuple(one if one.split == "train" else new for one, new in zip(dataset.records, cropped, strict=True))
    with pytest.raises(DataError, match="look at different regions of"):
        adapt(embeddings, replace(dataset, records=tests), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapt_takes_embeddings_of_boxes_for_shards_of_what_was_in_them(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = build_dataset()
    cropped = tuple(replace(record, box=(0.0, 0.0, 5.0, 5.0)) for record in dataset.records)
    embeddings = write(replace(dataset, records=cropped), draw_vectors(dataset, signal=0.7))
    packed = tuple(
        replace(record, path=Path("shards.tar") / f"@{row}+9.png") for row, record in enumerate(dataset.records)
    )
    assert adapt(embeddings, replace(dataset, records=packed), tmp_path / "out").folder == tmp_path / "out"


def test_trap_another_encoder_is_refused_and_a_moved_one_can_be_named(
    write: Callable[..., Path], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    from vitrieve.config import ModelConfig

    dataset = build_dataset()
    other = tmp_path / "other"
    save_encoder(build_encoder(ModelConfig(backbone="test_vit", image_size=32), is_pretrained=False, seed=1), other)
    embeddings = write(dataset, draw_vectors(dataset, signal=0.7), other)
    with pytest.raises(FingerprintError, match="were made by another encoder"):
        adapt(embeddings, dataset, tmp_path / "out", encoder=tiny_encoder_folder)
    moved = other.rename(tmp_path / "moved")
    with pytest.raises(ArtifactError, match="no longer there; name where it is now with --encoder"):
        adapt(embeddings, dataset, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert adapt(embeddings, dataset, tmp_path / "out", encoder=moved).is_adapted


def test_adapt_refuses_what_cannot_be_measured_or_written(
    write: Callable[..., Path], tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    few = build_dataset(5)
    embeddings = write(few, draw_vectors(few, signal=0.7))
    with pytest.raises(DataError, match="too few classes to hold some out"):
        adapt(embeddings, few, tmp_path / "out")
    with pytest.raises(ArtifactError, match="holds the encoder itself"):
        adapt(embeddings, few, tiny_encoder_folder, overwrite=True)
    with pytest.raises(ArtifactError, match="give the adapted embeddings a folder of their own"):
        adapt(embeddings, few, tmp_path / "out", embeddings_out=embeddings)
    with pytest.raises(ArtifactError, match="give the adapted embeddings a folder of their own"):
        adapt(embeddings, few, tmp_path / "both" / "out", embeddings_out=tmp_path / "both")
    with pytest.raises(ArtifactError, match=r"holds .*embeddings, which is read"):
        adapt(embeddings, few, tmp_path, overwrite=True)
    with pytest.raises(DataError, match="toy was read without its classes"):
        adapt(embeddings, forget_labels(few), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_takes_long_tells_its_epochs(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = build_dataset()
    embeddings = write(dataset, draw_vectors(dataset, signal=0.7))
    for seconds, is_told in ((np.inf, False), (-1.0, True)):
        monkeypatch.setattr(adaptation, "SECONDS_BETWEEN_LINES", seconds)
        adapt(embeddings, dataset, tmp_path / "out", overwrite=is_told)
        assert ("epoch 1: MAP@R on the held-out classes " in capsys.readouterr().err) is is_told


def test_of_many_classes_and_images_the_seed_draws_some_and_all_of_those_held_out_judge(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = build_dataset()
    embeddings = write(dataset, draw_vectors(dataset, signal=0.7))
    monkeypatch.setattr(adaptation, "MAX_CLASSES", 20)
    monkeypatch.setattr(adaptation, "MAX_CHOOSING", 30)
    sizes = []
    measure = adaptation._measure

    def count(dataset: Dataset, *rest: Any, **named: Any) -> Any:
        sizes.append(len(dataset.records))
        return measure(dataset, *rest, **named)

    monkeypatch.setattr(adaptation, "_measure", count)
    adapted = adapt(embeddings, dataset, tmp_path / "out")
    assert (adapted.num_images, adapted.num_classes) == (20 * NUM_OF_CLASS, 20)
    told = capsys.readouterr().err
    assert "learning from 20 of the 31 classes, which the seed draws" in told
    assert "choosing epochs and dimensions with 28 of the 56 held-out images; the last figures are of all" in told
    assert adapted.is_adapted
    assert {*sizes[:-4]} == {7 * 4}  # every second of eight images of each class
    assert sizes[-4:] == [7 * NUM_OF_CLASS] * 2 + [2 * NUM_OF_CLASS] * 2  # held out and test, before and after


def test_images_that_can_only_be_found_do_not_displace_those_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptation, "MAX_CHOOSING", 30)

    def record(name: str, label: int, *, is_query: bool) -> ImageRecord:
        return ImageRecord(image_id=name, path=Path("x"), label=label, split="test", is_query=is_query)

    shown = [record(f"{label}.png", label, is_query=False) for label in range(40)]
    asking = [record(f"last/{number}.png", 99, is_query=True) for number in range(6)]
    names = tuple(map(str, range(100)))
    held_out = Dataset(name="toy", protocol="p", records=(*shown, *asking), label_names=names)
    kept = adaptation._limit_choosing(held_out).records
    assert kept[:6] == tuple(asking)
    assert len(kept) == 30


def test_pictures_that_were_written_after_their_vectors_are_told(
    tiny_encoder_folder: Path, pictures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    dataset = read_collection(pictures)
    embed_collection(encoder, dataset, tmp_path / "embeddings")
    tell_changed_files(tmp_path / "embeddings", dataset.records)
    assert capsys.readouterr().err == ""
    later = time.time() + 60
    os.utime(dataset.records[1].path, (later, later))
    tell_changed_files(tmp_path / "embeddings", dataset.records)
    told = capsys.readouterr().err
    assert told.startswith(f"1 picture was written after {tmp_path / 'embeddings'} was begun, the first of them ")
    assert dataset.records[1].image_id in told


def test_a_vector_that_holds_nan_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    dataset = build_dataset()
    vectors = draw_vectors(dataset, signal=0.7)
    vectors[next(row for row, one in enumerate(dataset.records) if one.image_id == "7/1.png")] = np.nan
    with pytest.raises(DataError, match=r"the vector of 7/1.png holds NaN or infinity"):
        adapt(write(dataset, vectors), dataset, tmp_path / "out")


def test_vectors_of_files_elsewhere_are_told(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = build_dataset()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "0.png").touch()
    stored = tuple(
        replace(one, path=tmp_path / "old" / "0.png") if one.image_id == "3/0.png" else one for one in dataset.records
    )
    embeddings = write(replace(dataset, records=stored), draw_vectors(dataset, signal=0.7))
    adapt(embeddings, dataset, tmp_path / "out")
    printed = capsys.readouterr().err
    assert "1 vector was computed from other files of the same names" in printed
    assert f"({tmp_path / 'old' / '0.png'}; the data has 3/0.png)" in printed


def test_a_head_behind_several_scales_is_refused(tiny_encoder_folder: Path) -> None:
    encoder = read_encoder(tiny_encoder_folder)
    encoder.spec = replace(encoder.spec, scales=(1.0, 0.5))
    with pytest.raises(ConfigError, match="combines 2 scales after they are normalized"):
        add_linear_head(encoder, np.eye(64, dtype=np.float32), fitted_on="toy")


def test_adapt_learns_what_its_seed_says() -> None:
    dataset = build_dataset()
    vectors = draw_vectors(dataset, signal=0.7)
    labels = np.array([record.label for record in dataset.records])
    found = [next(train_head(vectors, labels, seed=seed)) for seed in (0, 0, 1)]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
