"""``shards:``: random access, what changed or hostile shards say, and that every command reads them."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitrieve.data.check import check_dataset
from vitrieve.data.decode import open_file_to_send, read_image, read_image_bytes
from vitrieve.data.pack import PackSettings, pack_dataset
from vitrieve.data.parts import parse_part, spell_part, stat_picture
from vitrieve.data.records import Dataset, ImageRecord, parse_path, spell_path
from vitrieve.data.shards import SCHEMA, SET_KEY, ShardRecords, ShardSet, add_set, read_index
from vitrieve.data.sources import list_protocols, read_collection, read_source
from vitrieve.data.tars import END_OF_ARCHIVE, build_member
from vitrieve.embed.batches import EncodedBatch
from vitrieve.errors import DataError, DecodeError
from vitrieve.runtime.encoder import Encoder

ALONE = PackSettings(num_processes=1)


@pytest.fixture
def packed(class_folder: Path, tmp_path: Path) -> Path:
    """Twenty small pictures of five classes in one shard."""
    pack_dataset(read_source(f"folder:{class_folder}"), tmp_path / "packed", settings=ALONE)
    return tmp_path / "packed"


def picture(number: int, image_format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def rewrite_index(folder: Path, change: Callable[[dict[str, list[object]]], object], **values: object) -> None:
    """Write the index anew with changed columns and, as keywords, changed values of the set."""
    table = pq.read_table(folder / "index.parquet")
    said = {**json.loads(table.schema.metadata[SET_KEY]), **values}
    columns = table.to_pydict()
    change(columns)
    import pyarrow as pa

    schema = SCHEMA.with_metadata({SET_KEY: json.dumps(said).encode()})
    pq.write_table(pa.table(columns, schema=schema), folder / "index.parquet")


def test_a_path_through_a_link_leads_to_the_shards(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    packed.rename(tmp_path / "far" / "packed")
    records = read_source(f"shards:{tmp_path}/link/../packed").records
    assert read_image(records[0]).size == (36, 40)


def test_records_are_a_sequence_like_the_tuple(packed: Path) -> None:
    records = read_source(f"shards:{packed}").records
    whole = tuple(records)
    assert isinstance(records, ShardRecords)
    assert len(records) == len(whole) == 20
    assert records == whole == records[:]
    assert records[3] == whole[3] == records[-17]
    assert records[4:9] == whole[4:9]
    assert records[::-3] == whole[::-3]
    assert records[9:4] == ()
    assert records[5:6][0].image_id == "class1/1.png"
    assert records != whole[1:]
    assert tuple(reversed(records)) == whole[::-1]
    with pytest.raises(IndexError):
        records[20]


def test_a_place_in_a_shard_is_a_path_that_any_table_keeps(packed: Path) -> None:
    record = read_source(f"shards:{packed}").records[7]
    assert parse_path(spell_path(record.path)) == record.path
    assert parse_part(record.path) == parse_part(Path(os.path.abspath(record.path)))
    assert stat_picture(record.path).st_ino == (packed / "000000.tar").stat().st_ino
    assert parse_part(Path("/photos/@1+2.jpg")) is None  # a name that somebody may have given
    with pytest.raises(NotADirectoryError):
        stat_picture(packed / "000000.tar" / "else.jpg")
    with open_file_to_send(record.path) as file:
        assert os.pread(file.fileno(), 1 << 20, 0) == read_image_bytes(record.path) == file.read()


def test_a_file_of_such_a_name_is_read_as_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "odd.tar"
    folder.mkdir()
    (folder / "@512+10.jpg").write_bytes(picture(1))
    assert read_image_bytes(folder / "@512+10.jpg") == picture(1)
    with pytest.raises(DecodeError, match="not a regular file"):
        read_image_bytes(folder / "@512+11.jpg")


def test_embedding_and_evaluation_give_what_the_files_give(
    photographs: Path, tiny_encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrieve import embed_collection, evaluate, load_encoder
    from vitrieve.embed import collection

    sources = (f"folder:{photographs}", f"shards:{tmp_path / 'packed'}")
    pack_dataset(read_source(sources[0]), tmp_path / "packed", settings=ALONE)
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    plain = embed_collection(encoder, read_source(sources[0]), tmp_path / "plain")
    shards = embed_collection(encoder, read_source(sources[1]), tmp_path / "shards")
    assert np.array_equal(plain.vectors, shards.vectors)
    assert [one.image_id for one in shards.records] == [one.image_id for one in plain.records]
    assert read_image(shards.records[3]).size == (40, 40)
    results = [evaluate(tiny_encoder_folder, source, device="cpu").results[0].metrics for source in sources]
    assert results[0] == results[1]

    num_encoded: list[int] = []
    encode = collection.encode_batches

    def count(encoder: Encoder, batches: Iterable[Sequence[ImageRecord]], **values: Any) -> Iterator[EncodedBatch]:
        listed = list(batches)
        num_encoded.append(sum(map(len, listed)))
        return encode(encoder, listed, **values)

    monkeypatch.setattr(collection, "encode_batches", count)
    again = embed_collection(encoder, read_source(sources[1]), tmp_path / "again", reuse=tmp_path / "shards")
    assert num_encoded == [0]
    assert np.array_equal(again.vectors, shards.vectors)


def test_training_draws_the_same_batches_as_from_files(packed: Path, class_folder: Path) -> None:
    pytest.importorskip("torch", reason="needs vitrieve[train]")
    from vitrieve.config import LoaderConfig
    from vitrieve.data.loader import TrainingLoader
    from vitrieve.data.preprocess import build_preprocessing

    batches = []
    for source in (f"folder:{class_folder}", f"shards:{packed}"):
        records = read_source(source).split("train")
        loader = TrainingLoader(records, LoaderConfig(), build_preprocessing(32), batch_size=6, seed=3)
        batches.append(list(loader.batches(4, 7)))
    for one, other in zip(*batches, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        assert one.pixels.equal(other.pixels)


def test_sync_embeds_what_has_changed_in_shards_that_were_packed_anew(
    packed: Path, class_folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    from vitrieve import load_encoder, sync

    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    source, index = f"shards:{packed}", tmp_path / "index"
    assert sync(source, index, encoder).num_embedded == 20
    assert not sync(source, index, encoder).is_changed
    shutil.copytree(class_folder, tmp_path / "changed")
    Image.new("RGB", (9, 9)).save(tmp_path / "changed" / "class2" / "1.png")
    dataset = replace(read_source(f"folder:{tmp_path / 'changed'}"), name="classes")
    pack_dataset(dataset, packed, settings=ALONE, overwrite=True)
    report = sync(source, index, encoder)
    assert (report.num_embedded, report.num_removed, report.num_indexed, report.failures) == (1, 0, 20, ())


def test_data_check_reads_shards(packed: Path) -> None:
    report = check_dataset(read_source(f"shards:{packed}"), num_threads=1)
    assert (report.num_images, report.unreadable, report.formats) == (20, (), {"PNG": 20})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "000000.tar").unlink(), r"lacks the shard 000000.tar .*No such file"),
        (
            lambda folder: (folder / "000000.tar").write_bytes(b"x" * 9),
            r"000000.tar has 9 bytes and should have .*it has changed since it was packed",
        ),
        (lambda folder: (folder / "index.parquet").write_bytes(b"PAR1"), r"index.parquet cannot be read"),
        (lambda folder: rewrite_index(folder, lambda columns: columns["offset"].__setitem__(2, 1 << 40)), "row 3 lies"),
        (lambda folder: rewrite_index(folder, lambda columns: columns["length"].__setitem__(2, -1)), "row 3 lies"),
        (lambda folder: rewrite_index(folder, lambda columns: columns["split"].__setitem__(2, "x")), "split x is unk"),
        (
            lambda folder: rewrite_index(folder, lambda columns: columns["label"].__setitem__(2, None)),
            "'label' has gaps",
        ),
        (
            lambda folder: rewrite_index(folder, lambda columns: columns["image_id"].__setitem__(2, "class0/0.png")),
            "the same image_id",
        ),
        (
            lambda folder: rewrite_index(
                folder, len, shards=[{"name": "../../etc/a.tar", "num_bytes": 1, "modified_ns": None}]
            ),
            r"names a shard ../../etc/a.tar",
        ),
        (lambda folder: rewrite_index(folder, len, format_version=9), "format version 9"),
        (lambda folder: rewrite_index(folder, len, label_names=3), "is damaged"),
    ],
)
def test_what_has_changed_is_one_message(packed: Path, change: Callable[[Path], object], message: str) -> None:
    change(packed)
    with pytest.raises(DataError, match=message):
        read_source(f"shards:{packed}")


def test_a_shard_that_changes_after_it_was_opened_is_a_bad_picture(packed: Path) -> None:
    records = read_source(f"shards:{packed}").records
    shard = packed / "000000.tar"
    good = shard.read_bytes()
    shard.write_bytes(bytes(512) + good[512:])
    with pytest.raises(DecodeError, match=r"000000.tar has changed since it was indexed"):
        read_image(records[0])
    assert read_image(records[1]).size == (36, 40)
    shard.unlink()
    with pytest.raises(DecodeError, match=r"the shard 000000.tar cannot be read: No such file"):
        read_image(records[1])


def foreign(folder: Path) -> Dataset:
    return read_source(f"shards:{folder}")


def test_foreign_shards_with_classes_captions_and_json(tmp_path: Path) -> None:
    said = {"label": "kiwi", "price": 2.5, "is_new": True, "tags": ["a"]}
    samples = {
        "./a/0001.jpg": picture(1),
        "./a/0001.cls": b"apple\n",
        "./a/0001.txt": b"a red apple",
        "b.0/0002.seg.png": picture(2, "PNG"),
        "b.0/0002.json": json.dumps(said).encode(),
        "0003.webp": picture(3, "WEBP"),
        "0003.txt": b"a caption",
        "0004.txt": b"no picture",
        "README": b"no sample",
    }
    write_tar(tmp_path / "set" / "some.tar", samples)
    dataset = foreign(tmp_path / "set")
    assert [record.image_id for record in dataset.records] == [
        "some/a/0001.jpg", "some/b.0/0002.seg.png", "some/0003.webp",
    ]  # fmt: skip
    assert [dataset.label_names[record.label] for record in dataset.records] == ["apple", "kiwi", "a caption"]
    assert [dict(record.metadata) for record in dataset.records] == [
        {"text": "a red apple"}, {"price": "2.5", "is_new": "true"}, {},
    ]  # fmt: skip
    for number, record in enumerate(dataset.records, start=1):
        assert read_image_bytes(record.path) == samples[list(samples)[3 * (number - 1) - (number == 3)]]
    notes = " ".join(dataset.notes)
    assert "1 sample without a picture is left out." in notes
    assert "1 member is no file of a sample" in notes


def test_a_label_of_foreign_json_that_is_a_list_is_told(tmp_path: Path) -> None:
    said = ({"label": ["a"], "split": {}}, {"class": {"id": 1}}, {"label": "pear"})
    members = {f"{row}.jpg": picture(row) for row in range(3)}
    members |= {f"{row}.json": json.dumps(one).encode() for row, one in enumerate(said)}
    write_tar(tmp_path / "a.tar", dict(sorted(members.items())))
    dataset = foreign(tmp_path)
    assert [dataset.label_names[record.label] for record in dataset.records] == ["image", "image", "pear"]
    assert [note for note in dataset.notes if "a list" in note] == [
        "2 samples have a list or an object as label, which names no label and is passed over.",
        "1 sample has a list or an object as split, which names no split and is passed over.",
    ]


def test_a_list_beside_a_label_of_foreign_json_is_not_told(tmp_path: Path) -> None:
    said = ({"label": "pear", "class": ["fruit"]}, {"class": "plum", "label": {"id": 1}}, {"label": ["a"]})
    members = {f"{row}.jpg": picture(row) for row in range(3)} | {"2.cls": b"kiwi"}
    members |= {f"{row}.json": json.dumps(one).encode() for row, one in enumerate(said)}
    write_tar(tmp_path / "a.tar", dict(sorted(members.items())))
    dataset = foreign(tmp_path)
    assert [dataset.label_names[record.label] for record in dataset.records] == ["pear", "plum", "kiwi"]
    assert not any("a list" in note for note in dataset.notes)


def test_foreign_pictures_without_a_class_are_told_where_others_have_one(tmp_path: Path) -> None:
    bare = {"1.jpg": picture(1), "2.jpg": picture(2), "2.cls": b" "}
    write_tar(tmp_path / "bare" / "a.tar", bare)
    dataset = foreign(tmp_path / "bare")
    assert dataset.label_names == ("image",)
    assert not any("no label" in note for note in dataset.notes)
    write_tar(tmp_path / "mixed" / "a.tar", {**bare, "3.jpg": picture(3), "3.cls": b"pear"})
    dataset = foreign(tmp_path / "mixed")
    assert [dataset.label_names[record.label] for record in dataset.records] == ["image", "image", "pear"]
    assert "2 pictures have no label, and the class 'image' instead" in dataset.notes[-1]


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_long_names_and_letters_of_all_kinds(tmp_path: Path, tar_format: int) -> None:
    name = "äpfel/" + "long" * 40
    write_tar(tmp_path / "a.tar", {f"{name}.jpg": picture(1), f"{name}.cls": b"7"}, tar_format)
    (record,) = foreign(tmp_path).records
    assert record.image_id == f"a/{name}.jpg"
    assert read_image_bytes(record.path) == picture(1)


def test_foreign_splits_come_from_names_of_shards_or_whole_classes(tmp_path: Path) -> None:
    for name in ("train-000", "val/000", "test_1"):
        write_tar(tmp_path / "named" / f"{name}.tar", {"1.jpg": picture(1), "1.cls": b"a"})
    assert [record.split for record in foreign(tmp_path / "named").records] == ["test", "train", "validation"]
    write_tar(tmp_path / "named" / "more.tar", {"1.jpg": picture(1), "1.cls": b"a"})
    with pytest.raises(DataError, match=r"1 of 4 pictures have no split, among them '?more/1\.jpg'?, and the others"):
        foreign(tmp_path / "named")
    told = {"1.jpg": picture(1), "1.json": b'{"label": "a", "split": "val"}'}
    write_tar(tmp_path / "named" / "more.tar", told)
    assert [record.split for record in foreign(tmp_path / "named").records] == [
        "validation", "test", "train", "validation",
    ]  # fmt: skip
    members = {
        f"{row:03}.{kind}": data
        for row in range(12)
        for kind, data in [("jpg", picture(row)), ("cls", b"%d" % (row // 2))]
    }
    write_tar(tmp_path / "plain" / "000.tar", members)
    dataset = foreign(tmp_path / "plain")
    assert {dataset.label_names[record.label] for record in dataset.split("test")} == {"4"}
    assert "every fifth" in dataset.notes[0]


def test_foreign_shards_are_indexed_once_and_again_when_they_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "a.tar", {"1.jpg": picture(1)})
    first = foreign(tmp_path)
    assert "1 shards are indexed" in capsys.readouterr().err
    assert foreign(tmp_path) == first
    assert capsys.readouterr().err == ""
    table, shard_set = read_index(tmp_path / "index.parquet", "it")
    assert (table.num_rows, shard_set.is_packed) == (1, False)
    write_tar(tmp_path / "b.tar", {"1.jpg": picture(2)})
    assert [record.image_id for record in foreign(tmp_path).records] == ["a/1.jpg", "b/1.jpg"]
    (tmp_path / "index.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"index\.parquet cannot be read .* or delete the index"):
        foreign(tmp_path)


def test_the_index_of_a_folder_that_cannot_be_written_is_in_the_cache(
    tmp_path: Path,
    mount_small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    disk = mount_small_disk(1 << 20)
    write_tar(disk / "a.tar", {"1.jpg": picture(1)})
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    first = foreign(disk)
    assert "its index is kept in" in capsys.readouterr().err
    assert foreign(disk) == first
    assert capsys.readouterr().err == ""
    (cached,) = (tmp_path / "cache").rglob("index.parquet")
    cached.write_bytes(b"damaged")
    assert foreign(disk) == first
    assert "It is made anew." in capsys.readouterr().err
    assert read_image(first.records[0]).size == (8, 8)


def change_header(data: bytes, start: int, new: bytes) -> bytes:
    """Change bytes of the first header, and its checksum with them."""
    header = bytearray(data[:512])
    header[start : start + len(new)] = new
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def hostile(kind: str, tmp_path: Path) -> bytes:
    write_tar(tmp_path / "one.tar", {"1.jpg": picture(1)})
    good = (tmp_path / "one.tar").read_bytes()
    return {
        "size beyond": lambda: change_header(good, 124, b"77777777777\0"),
        "size negative": lambda: change_header(good, 124, b"\xff" * 12),
        "cut short": lambda: good[:700],
        "absolute": lambda: change_header(good, 0, b"/etc/1.jpg"),
        "parent": lambda: change_header(good, 0, b"a/../../1.jpg"),
        "sparse": lambda: change_header(good, 156, b"S"),
        "long name": lambda: change_header(change_header(good, 156, b"L"), 124, b"00000400000\0") + bytes(1 << 18),
        "extended": lambda: change_header(good, 156, b"x"),
        "compressed": lambda: b"\x1f\x8b\x08" + bytes(2000),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("size beyond", r"8,589,934,591 bytes, and .* are left"),
        ("size negative", r"the archive is cut short or damaged"),
        ("cut short", r"the archive is cut short or damaged"),
        ("absolute", r"names a member /etc/1.jpg, which leads out"),
        ("parent", r"names a member a/../../1.jpg, which leads out"),
        ("sparse", r"1.jpg is a sparse file"),
        ("long name", r"a name has 131,072 bytes; at most 65,536"),
        ("extended", r"damaged extended header"),
        ("compressed", r"is not a tar archive .*neither compressed"),
    ],
)
def test_hostile_archives_are_one_message(kind: str, message: str, tmp_path: Path) -> None:
    data = hostile(kind, tmp_path)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "bad.tar").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        foreign(tmp_path / "set")
    assert "bad.tar" in str(caught.value)
    assert not (tmp_path / "set" / "index.parquet").exists()


def test_links_are_left_out_and_read_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("1.jpg", tarfile.SYMTYPE), ("2.jpg", tarfile.LNKTYPE), ("d.x", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", 0
            archive.addfile(info)
        info = tarfile.TarInfo("3.jpg")
        info.size = len(picture(3))
        archive.addfile(info, io.BytesIO(picture(3)))
    dataset = foreign(tmp_path)
    assert [record.image_id for record in dataset.records] == ["a/3.jpg"]
    assert "3 members are no files of a sample" in dataset.notes[-1]


def test_hidden_files_of_macos_neither_are_pictures_nor_end_a_sample(tmp_path: Path) -> None:
    members = {".DS_Store": b"x"}
    for key, label in (("a", b"pear"), ("b", b"apple")):
        for kind, content in (("jpg", picture(1)), ("cls", label)):
            members |= {f"./d/._{key}.{kind}": b"\0\5\26\7", f"./d/{key}.{kind}": content}
    write_tar(tmp_path / "s.tar", members)
    dataset = foreign(tmp_path)
    labels = {record.image_id: dataset.label_names[record.label] for record in dataset.records}
    assert labels == {"s/d/a.jpg": "pear", "s/d/b.jpg": "apple"}
    assert "5 members are no files of a sample" in dataset.notes[-1]


def test_half_an_emoji_in_json_costs_no_sample(tmp_path: Path) -> None:
    said = b'{"label": "kiwi \\ud83e", "\\udd5d": "cut \\ud83e", "whole": "\\ud83e\\udd5d"}'
    write_tar(tmp_path / "s.tar", {"1.jpg": picture(1), "1.json": said})
    dataset = foreign(tmp_path)
    assert dataset.label_names == ("kiwi \N{REPLACEMENT CHARACTER}",)
    assert dataset.records[0].metadata == {
        "\N{REPLACEMENT CHARACTER}": "cut \N{REPLACEMENT CHARACTER}", "whole": "\N{KIWIFRUIT}"
    }  # fmt: skip


def test_two_samples_of_one_key_and_no_picture_are_refused(tmp_path: Path) -> None:
    sample = build_member("1.jpg", picture(1))
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "a.tar").write_bytes(sample + build_member("2.txt", b"x") + sample + END_OF_ARCHIVE)
    with pytest.raises(DataError, match=r"two samples are called a/1\.jpg"):
        foreign(tmp_path / "twice")
    write_tar(tmp_path / "none" / "a.tar", {"1.txt": b"x"})
    with pytest.raises(DataError, match="no picture is in 1 shards"):
        foreign(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \.tar file"):
        foreign(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        foreign(tmp_path / "missing")


def test_a_parquet_file_of_others_is_not_taken_for_an_index(tmp_path: Path) -> None:
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    with pytest.raises(DataError, match="no index of shards that vitrieve made"):
        read_source(f"shards:{tmp_path}")


def test_an_empty_index_has_no_records(tmp_path: Path) -> None:
    shard_set = ShardSet(name="a", protocol="b", label_names=(), shards=(), is_packed=True)
    pq.write_table(SCHEMA.empty_table().cast(add_set(SCHEMA, shard_set)), tmp_path / "index.parquet")
    assert list(read_source(f"shards:{tmp_path}").records) == []


def test_the_source_has_one_protocol(packed: Path) -> None:
    assert list_protocols(f"shards:{packed}") == ("as_packed",)
    assert replace(read_collection(f"shards:{packed}"), source="") == read_source(f"shards:{packed}")
    assert spell_part("/a/b.tar", 512, 7, ".png") == Path("/a/b.tar/@512+7.png")
