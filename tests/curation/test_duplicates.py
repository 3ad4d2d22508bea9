"""Groups of duplicates: what is found, what is kept, and what happens with nothing to compare."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.curation.sweaters import draw_ground, lay_sweater
from vitrieve import EmbedSettings, build_index, duplicates, embed_collection, embed_images, open_index, read_collection
from vitrieve.curation import links
from vitrieve.curation.copies import COPIES
from vitrieve.curation.duplicates import group_by_best
from vitrieve.curation.links import choose_threshold
from vitrieve.curation.material import embed_material
from vitrieve.curation.pages import build_thumbnails
from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ConfigError, DataError, FingerprintError, UnreachableError
from vitrieve.runtime.encoder import Encoder
from vitrieve.similarity import normalize, pairs_above, similarity

COPIES_OF_0 = {"0.png", "more/same_file.png", "more/same_pixels.bmp"}


def test_exact_finds_the_same_pixels_whatever_the_file(album: Path) -> None:
    report = duplicates(album, level="exact")
    (group,) = report.groups
    # All have the same size and sharpness, so the largest file is kept: the one without compression.
    assert (group.keep, set(group.image_ids), group.level) == ("more/same_pixels.bmp", COPIES_OF_0, "exact")
    assert report.num_images == 12
    assert [image_id for image_id, _ in report.failures] == ["broken.jpg"]


def test_near_finds_the_smaller_copy_too_and_keeps_more_pixels(album: Path, encoder: Encoder) -> None:
    report = duplicates(album, encoder, threshold=0.9999)
    (group,) = report.groups
    assert set(group.image_ids) == COPIES_OF_0
    assert group.level == "exact"  # of the pictures, whatever was asked for
    assert report.num_images == 11
    vectors = embed_images(encoder, read_collection(str(album)).records, max_bad_fraction=1).vectors
    names = [record.image_id for record in read_collection(str(album)).records if record.image_id != "broken.jpg"]
    rows = [names.index("more/smaller.png"), names.index("0.png")]
    alike = float(similarity(vectors[rows[:1]], vectors[rows[1:]])[0, 0])
    with_smaller = duplicates(album, encoder, threshold=alike)
    group = next(group for group in with_smaller.groups if group.keep == "more/same_pixels.bmp")
    assert COPIES_OF_0 | {"more/smaller.png"} <= set(group.image_ids)
    assert group.level == "near"
    assert list(group.similarities) == sorted(group.similarities, reverse=True)


def test_what_is_kept_has_most_pixels_then_is_sharpest_then_largest_then_first_by_name(
    tmp_path: Path, encoder: Encoder
) -> None:
    """Each picture is before the next by one thing, and after it by all that count less."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    blocks = np.random.default_rng(0).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    sharp = Image.fromarray(blocks).resize((60, 48), Image.Resampling.NEAREST)
    blurred = sharp.filter(ImageFilter.GaussianBlur(3))
    Image.new("RGB", (60, 49)).save(folder / "e.png")
    sharp.save(folder / "d.png")
    blurred.save(folder / "c.bmp")
    blurred.save(folder / "a.png")
    blurred.save(folder / "b.png")
    order = ["e.png", "d.png", "c.bmp", "a.png", "b.png"]
    sizes = {name: (folder / name).stat().st_size for name in order}
    assert sizes["e.png"] < sizes["d.png"] < sizes["c.bmp"] > sizes["a.png"] == sizes["b.png"]
    embeddings = embed_images(encoder, read_collection(str(folder)).records)
    build_index(embeddings, tmp_path / "index", store="exact").close()
    for number, name in enumerate(order[:-1]):
        (group,) = duplicates(folder, encoder, threshold=-1).groups  # all are linked
        assert (group.keep, set(group.image_ids)) == (name, set(order[number:]))
        same = [group.keep for group in duplicates(folder, level="exact").groups]
        assert same == [name if number > 1 else "c.bmp"]
        # Of the index, the files that are gone are still there by their vectors, and none of them is kept.
        (group,) = duplicates(tmp_path / "index", threshold=-1).groups
        assert (group.keep, set(group.image_ids)) == (name, set(order))
        (folder / name).unlink()


def test_the_json_has_the_fields_that_programs_read(album: Path) -> None:
    value = duplicates(album, level="exact").to_json()
    assert value["groups"][0]["image_ids"][0] == value["groups"][0]["keep"]
    assert {"image_ids", "keep", "level"} <= set(value["groups"][0])


def test_calibrated_thresholds_are_the_same_twice_and_said(album: Path, encoder: Encoder) -> None:
    near, scene = duplicates(album, encoder), duplicates(album, encoder, level="same-scene")
    assert near == duplicates(album, encoder)
    assert near.calibration is not None
    assert scene.calibration is not None
    assert near.calibration.least_agreement == scene.calibration.least_agreement
    assert near.threshold is near.calibration.same_scene is None
    assert scene.threshold == scene.calibration.same_scene
    assert near.calibration.num_sampled == 11
    assert set(near.calibration.found) >= {"crop", "resize", "jpeg", "flip", "color", "border", "text"}


def test_near_finds_copies_of_every_kind_and_same_scene_has_them_too(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "NUM_NEAREST", 19)  # all others: the encoder of the tests has learnt nothing
    folder, generator = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        blocks = Image.fromarray(generator.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        picture = blocks.resize((180, 140), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:02}.png")
        if number < len(COPIES):
            kind, make = list(COPIES.items())[number]
            make(picture, generator).save(folder / f"{number:02}-{kind}.png")
    pairs = {frozenset([f"{number:02}.png", f"{number:02}-{kind}.png"]) for number, kind in enumerate(COPIES)}
    near = duplicates(folder, encoder)
    assert {frozenset(group.image_ids) for group in near.groups} == pairs
    assert {group.level for group in near.groups} <= {"near", "exact"}
    material = embed_material(encoder, read_collection(str(folder)))
    scene = links.find_links(material, "same-scene")
    linked = zip(scene.pairs.first.tolist(), scene.pairs.second.tolist(), scene.is_copy.tolist(), strict=True)
    names = material.image_ids
    assert pairs == {frozenset([names[one], names[other]]) for one, other, is_copy in linked if is_copy}


def test_different_things_on_one_ground_are_no_copies(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "NUM_NEAREST", 11)  # all others
    folder, ground = tmp_path / "table", draw_ground(0)
    folder.mkdir()
    for number in range(10):
        lay_sweater(ground, number).save(folder / f"{number}.png")
    for number, kind in enumerate(("jpeg", "flip")):
        picture = lay_sweater(ground, number)
        COPIES[kind](picture, np.random.default_rng(number)).save(folder / f"{number}-{kind}.png")
    report = duplicates(folder, encoder)
    assert {frozenset(group.image_ids) for group in report.groups} == {
        frozenset(["0.png", "0-jpeg.png"]),
        frozenset(["1.png", "1-flip.png"]),
    }
    assert report.calibration is not None
    assert np.mean([*report.calibration.found.values()]) > 0.95


def test_an_index_and_its_embeddings_give_the_same_groups(album: Path, encoder: Encoder, tmp_path: Path) -> None:
    embeddings = embed_images(encoder, read_collection(str(album)).records, max_bad_fraction=1)
    build_index(embeddings, tmp_path / "index", store="exact").close()
    from_folder = duplicates(album, encoder, threshold=0.99)
    settings = EmbedSettings(max_bad_fraction=1)
    embed_collection(encoder, read_collection(str(album)), tmp_path / "embeddings", settings=settings)
    assert duplicates(tmp_path / "embeddings", threshold=0.99) == from_folder
    with pytest.raises(ConfigError, match="--exclude leaves files out of a folder"):
        duplicates(tmp_path / "index", exclude=["more/"])
    assert duplicates(tmp_path / "index", threshold=0.99).groups == from_folder.groups
    assert duplicates(tmp_path / "index", level="exact").groups == duplicates(album, level="exact").groups


def test_an_index_without_files_is_compared_by_its_vectors_alone(tmp_path: Path, album: Path, encoder: Encoder) -> None:
    embeddings = embed_images(encoder, read_collection(str(album)).records, max_bad_fraction=1)
    build_index(embeddings, tmp_path / "index", store="exact").close()
    for path in [*album.rglob("*.*")]:
        path.unlink()
    report = duplicates(tmp_path / "index", threshold=0.9999)
    (group,) = report.groups
    assert (group.keep, set(group.image_ids), group.level) == ("0.png", COPIES_OF_0, "near")
    assert {image_id for image_id, _ in report.failures} == COPIES_OF_0
    with pytest.raises(DataError, match="--level near"):
        duplicates(tmp_path / "index", level="exact")
    with pytest.raises(DataError, match="--threshold"):
        duplicates(tmp_path / "index", encoder)


def test_nothing_and_one_picture_have_no_duplicates(tmp_path: Path, album: Path, encoder: Encoder) -> None:
    embeddings = embed_images(encoder, read_collection(str(album)).records[:1])
    build_index(embeddings, tmp_path / "index", store="exact").close()
    assert duplicates(tmp_path / "index").groups == ()
    with closing(open_index(tmp_path / "index")) as store:
        store.delete(["0.png"])
    for level in ("exact", "near", "same-scene"):
        report = duplicates(tmp_path / "index", level=level)
        assert (report.num_images, report.groups) == (0, ())
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        duplicates(tmp_path / "empty", encoder)


def test_wrong_thresholds_and_encoders_are_refused(album: Path, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"threshold is 0\.9"):
        duplicates(album, level="exact", threshold=0.9)
    with pytest.raises(ConfigError, match=r"threshold is 1\.5"):
        duplicates(album, threshold=1.5)
    vectors = normalize(np.random.default_rng(0).normal(size=(11, encoder.embedding_dim)))
    records = embed_images(encoder, read_collection(str(album)).records, max_bad_fraction=1).records
    foreign = Embeddings(
        vectors=vectors, records=records, failures=(), fingerprint="0" * 64, encoder_source="elsewhere", image_size=32
    )
    build_index(foreign, tmp_path / "foreign", store="exact").close()
    with pytest.raises(FingerprintError, match="another encoder"):
        duplicates(tmp_path / "foreign", encoder)


def test_every_member_of_a_group_resembles_the_picture_that_is_kept() -> None:
    angles = np.linspace(0, np.pi / 2, 31)  # a chain: each resembles the next, the ends have nothing in common
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    pairs = pairs_above(vectors, 0.99)
    order = np.random.default_rng(0).permutation(31).tolist()
    groups = group_by_best(pairs, order)
    matrix = similarity(vectors, vectors)
    members = [row for rows, _ in groups for row in rows]
    assert len(members) == len(set(members))
    for rows, similarities in groups:
        assert all(matrix[rows[0], row] >= 0.99 for row in rows[1:])
        assert [matrix[rows[0], row] for row in rows[1:]] == similarities[1:]
        assert rows[0] == min(rows, key=order.index)
    firsts = [rows[0] for rows, _ in groups]
    assert all(matrix[one, other] < 0.99 for one, other in pairwise(sorted(firsts)))


def test_a_page_is_drawn_though_a_server_does_not_answer(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> bytes:
        if path.name == "1.png":
            raise UnreachableError("https://example.org/1.tar was not read")
        return path.read_bytes()

    monkeypatch.setattr("vitrieve.curation.pages.read_image_bytes", read)
    records = [
        ImageRecord(image_id=name, path=album / name, label=0, split="test") for name in ("0.png", "1.png", "2.png")
    ]
    uris = build_thumbnails(records)
    assert [bool(uris[record.image_id]) for record in records] == [True, False, True]


def test_choose_threshold_by_hand() -> None:
    copies = np.array([0.6, 0.8, 0.9, 1.0] * 10, dtype=np.float32)
    assert choose_threshold(copies, np.empty(0, np.float32), 10) == pytest.approx(0.6)
    # At 0.8: 3/4 found and none of the strangers, F1 = 2 * 0.75 / 1.75; at 0.6 all found, but 1/2 of the strangers.
    strangers = np.array([0.7, 0.1] * 10, dtype=np.float32)
    assert choose_threshold(copies, strangers, 10) == pytest.approx(0.8)
    # Copies among the strangers are made out by those above the upper quartile, and change nothing.
    assert choose_threshold(copies, np.concatenate([strangers, copies]), 10) == pytest.approx(0.8)
    # Strangers at 0.85 count against 0.6 and 0.8, unless all above the lower quartile are copies.
    assert choose_threshold(copies, np.float32([0.85] * 10 + [0.1] * 10), 10) == pytest.approx(0.9)
    assert choose_threshold(copies, np.float32([0.85] * 10 + [0.1] * 10), 10, 25) == pytest.approx(0.6)
    # At 0.6: F1 = 2 / (2 + 0.5) = 0.8; at 0.8: 1.5 / 1.75 = 0.857; with a tenth of the weight 2 / 2.05 wins.
    assert choose_threshold(copies, strangers, 0.1) == pytest.approx(0.6)
