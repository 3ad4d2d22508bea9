"""``data pack``: what is in the shards, and that stops, processes and full disks change nothing of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.forked import ForkedVitrieve
from vitrieve.cli.main import main
from vitrieve.data import pack
from vitrieve.data.decode import read_image, read_image_bytes
from vitrieve.data.pack import PackSettings, pack_dataset
from vitrieve.data.records import Dataset, ImageRecord
from vitrieve.data.sources import read_collection, read_source
from vitrieve.errors import ArtifactError, ConfigError, DataError, DiskFullError

ALONE = PackSettings(num_processes=1, shard_mib=1)


@pytest.fixture
def noisy_folder(tmp_path: Path) -> Path:
    """Five classes of six pictures of noise, 0.26 MiB each, of which three fit into a shard of one MiB."""
    generator = np.random.default_rng(0)
    for number in range(30):
        folder = tmp_path / "noisy" / f"class{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "noisy"


def read_all(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_shards_hold_the_same_records_and_bytes(noisy_folder: Path, tmp_path: Path) -> None:
    source = read_source(f"folder:{noisy_folder}")

    report = pack_dataset(source, tmp_path / "out", settings=ALONE)
    packed = read_source(f"shards:{tmp_path / 'out'}")

    assert (report.num_images, report.num_shards, report.failures) == (30, 10, ())
    assert report.num_bytes == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert (packed.name, packed.protocol, packed.label_names) == (source.name, source.protocol, source.label_names)
    assert packed.notes == source.notes
    assert len(packed.split("test")) == 6
    for one, other in zip(source.records, packed.records, strict=True):
        assert replace(other, path=one.path) == one
        assert read_image_bytes(other.path) == one.path.read_bytes()
    shard_names = {record.path.parent.name for record in packed.records}
    assert shard_names == {f"{number:06}.tar" for number in range(10)}


def test_python_reads_the_shards_as_webdataset_does(noisy_folder: Path, tmp_path: Path) -> None:
    source = read_source(f"folder:{noisy_folder}")
    pack_dataset(source, tmp_path / "out", settings=ALONE)
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                key, _, kind = member.name.partition(".")
                content = archive.extractfile(member)
                assert content is not None
                samples.setdefault(key, {})[kind] = content.read()
                row = index[int(key)]
                if kind == "png":
                    assert (row["key"], row["shard"], row["offset"]) == (key, path.name, member.offset_data)
                    assert row["length"] == member.size
    assert len(samples) == 30
    for record, (key, sample) in zip(source.records, samples.items(), strict=True):
        assert sample["png"] == record.path.read_bytes()
        assert int(sample["cls"]) == record.label
        said = json.loads(sample["json"])
        assert (said["image_id"], said["label"]) == (record.image_id, source.label_names[record.label])
        assert index[int(key)]["label"] == said["label"]


def test_large_pictures_are_made_smaller_and_boxes_are_cut_out(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100), (250, 0, 0)).save(tmp_path / "wide.png")
    two = Image.new("RGB", (60, 40), (0, 0, 250))
    two.paste((0, 250, 0), (30, 0, 60, 40))
    two.save(tmp_path / "two.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 30), "white").save(tmp_path / "turned.jpg", exif=exif)
    rows = ["path,label,x_1,y_1,x_2,y_2", "wide.png,a,,,,", "two.bmp,a,30,0,60,40", "turned.jpg,b,,,,"]
    (tmp_path / "table.csv").write_text("\n".join(rows))

    settings = replace(ALONE, max_side_px=80)
    pack_dataset(read_source(f"table:{tmp_path / 'table.csv'}"), tmp_path / "out", settings=settings)
    packed = read_source(f"shards:{tmp_path / 'out'}").records

    wide, box, turned = map(read_image, packed)
    assert (wide.size, box.size, turned.size) == ((80, 40), (30, 40), (30, 50))
    assert np.abs(np.asarray(wide, int) - (250, 0, 0)).max() < 6
    assert np.abs(np.asarray(box, int) - (0, 250, 0)).max() < 6
    assert [record.path.suffix for record in packed] == [".jpg", ".jpg", ".jpg"]
    assert [record.box for record in packed] == [None, None, None]
    assert read_image_bytes(packed[2].path) == (tmp_path / "turned.jpg").read_bytes()


def test_bad_images_are_listed_and_too_many_stop_it(noisy_folder: Path, tmp_path: Path) -> None:
    (noisy_folder / "class1" / "1.png").write_bytes(b"")
    (noisy_folder / "class4" / "29.png").write_bytes(b"no picture")
    source = read_source(f"folder:{noisy_folder}")
    with pytest.raises(DataError, match=r"2 of 30 images .* --resume and a larger --max-bad-fraction"):
        pack_dataset(source, tmp_path / "out", settings=ALONE)
    settings = replace(ALONE, max_bad_fraction=0.1)
    report = pack_dataset(source, tmp_path / "out", settings=settings, resume=True)
    assert [image_id for image_id, _ in report.failures] == ["class1/1.png", "class4/29.png"]
    assert "empty" in report.failures[0][1]
    listed = pq.read_table(tmp_path / "out" / "unreadable.parquet").to_pylist()
    assert [(row["image_id"], row["reason"]) for row in listed] == list(report.failures)
    assert len(read_source(f"shards:{tmp_path / 'out'}").records) == 28


def test_nothing_to_pack_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 1 images can be read.*empty"):
        pack_dataset(read_collection(str(tmp_path)), tmp_path / "out", settings=replace(ALONE, max_bad_fraction=1.0))
    with pytest.raises(DataError, match="no image to pack"):
        pack_dataset(Dataset(name="a", protocol="b", records=(), label_names=()), tmp_path / "other")
    with pytest.raises(ConfigError, match="shard_mib is 0"):
        PackSettings(shard_mib=0)


def test_a_benchmark_keeps_its_roles_and_ground_truth(tmp_path: Path, picture_folder: Path) -> None:
    from vitrieve.data.records import GroundTruth

    records = [
        ImageRecord(image_id=path.name, path=path, label=0, split="test", is_query=row == 0, is_gallery=row > 0)
        for row, path in enumerate(sorted(picture_folder.iterdir()))
    ]
    dataset = Dataset(
        name="bench",
        protocol="hard",
        records=records,
        label_names=("any",),
        ks=(1, 10),
        junk_key="group",
        license="CC0",
        positive_pairs=(("00.png", "01.png"),),
        ground_truth={"00.png": GroundTruth(easy=("01.png",), junk=("02.png", "03.png"))},
    )
    pack_dataset(dataset, tmp_path / "out", settings=ALONE)
    packed = read_source(f"shards:{tmp_path / 'out'}")
    paths = tuple(replace(one, path=other.path) for one, other in zip(packed.records, records, strict=True))
    assert replace(packed, records=paths) == replace(dataset, records=tuple(records))


def test_further_labels_of_a_table_are_packed(noisy_folder: Path, tmp_path: Path) -> None:
    rows = [f"class{number % 5}/{number}.png,{number % 5},round;{number % 2}" for number in range(10)]
    (noisy_folder / "own.csv").write_text("\n".join(["path,label,more_labels", *rows]))
    source = read_source(f"table:{noisy_folder / 'own.csv'}")
    pack_dataset(source, tmp_path / "out", settings=ALONE)
    packed = read_source(f"shards:{tmp_path / 'out'}")
    names = [{packed.label_names[label] for label in packed.more_labels[f"class0/{number}.png"]} for number in (0, 5)]
    assert names == [{"round"}, {"round", "1"}]
    assert (packed.more_labels, packed.label_names) == (source.more_labels, source.label_names)


def test_processes_change_nothing(noisy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (noisy_folder / "class1" / "1.png").write_bytes(b"")
    source = read_source(f"folder:{noisy_folder}")
    monkeypatch.setattr(pack, "CHUNK_SIZE", 7)
    pack_dataset(source, tmp_path / "one", settings=ALONE)
    report = pack_dataset(source, tmp_path / "two", settings=replace(ALONE, num_processes=2))
    assert read_all(tmp_path / "one") == read_all(tmp_path / "two")
    assert len(report.failures) == 1


def test_a_killed_run_goes_on_to_the_same_bytes(
    noisy_folder: Path, forked_vitrieve: ForkedVitrieve, tmp_path: Path
) -> None:
    """Killed at several of its durable writes, run by run, until it is done."""
    words = ["data", "pack", f"folder:{noisy_folder}", "--shard-mib", "1", "--num-processes", "1"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    statuses = [
        forked_vitrieve([*words, "--out", tmp_path / "killed", "--resume"], num_syncs=num_syncs).status
        for num_syncs in (1, 4, 13, 100)
    ]
    assert statuses == [-signal.SIGKILL] * 3 + [0]
    assert read_all(tmp_path / "killed") == read_all(tmp_path / "whole")


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    """The parent is killed while its process waits for work: the process sees that, and closes the pipe it holds."""
    script = (
        "import os, sys, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from vitrieve.data.pack import _end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, get_context('spawn'), initializer=_end_with_parent)\n"
        "    pool.submit(os.getpid).result()\n"
        "    print('working', flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "run.py").write_text(script)
    parent = subprocess.Popen([sys.executable, tmp_path / "run.py"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "working\n"
    parent.kill()
    assert parent.stdout.read() == ""  # the end of the file comes when the process has ended too: it holds the pipe
    parent.wait()
    parent.stdout.close()


def test_another_source_or_setting_is_not_gone_on_with(noisy_folder: Path, tmp_path: Path) -> None:
    source = read_source(f"folder:{noisy_folder}")
    (noisy_folder / "class0" / "0.png").write_bytes(b"")
    with pytest.raises(DataError):
        pack_dataset(source, tmp_path / "out", settings=replace(ALONE, max_bad_fraction=0.0))
    with pytest.raises(DataError, match=r"unfinished shards; run vitrieve data pack again with --resume"):
        read_source(f"shards:{tmp_path / 'out'}")
    with pytest.raises(ArtifactError, match=r"shard_mib was 1, and is 2"):
        pack_dataset(source, tmp_path / "out", settings=replace(ALONE, shard_mib=2), resume=True)
    fewer = replace(source, records=source.records[:9])
    with pytest.raises(ArtifactError, match=r"num_records was 30, and is 9"):
        pack_dataset(fewer, tmp_path / "out", settings=ALONE, resume=True)
    pack_dataset(fewer, tmp_path / "out", settings=replace(ALONE, max_bad_fraction=0.2), overwrite=True)
    with pytest.raises(ArtifactError, match="--overwrite"):
        pack_dataset(fewer, tmp_path / "out", settings=ALONE)


def test_a_full_disk_is_one_message_and_loses_nothing(
    noisy_folder: Path, tmp_path: Path, mount_small_disk: Callable[[int], Path]
) -> None:
    disk = mount_small_disk(4 << 20)
    source = read_source(f"folder:{noisy_folder}")
    with pytest.raises(DiskFullError, match=r"\.tar.*the disk is full;.*--resume"):
        pack_dataset(source, disk / "out", settings=ALONE)
    finished = sorted(path.name for path in (disk / "out").glob("*.tar"))
    assert finished == [f"{number:06}.tar" for number in range(len(finished))]
    assert 1 < len(finished) < 10
    assert not list((disk / "out").glob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    pack_dataset(source, disk / "out", settings=ALONE, resume=True)
    pack_dataset(source, tmp_path / "whole", settings=ALONE)
    assert read_all(disk / "out") == read_all(tmp_path / "whole")


def test_the_command_on_a_full_disk_tells_it_once_and_goes_on_when_there_is_room(
    noisy_folder: Path,
    tmp_path: Path,
    mount_small_disk: Callable[[int], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = mount_small_disk(4 << 20)
    words = ["data", "pack", "--data", f"folder:{noisy_folder}", "--num-processes", "2", "--shard-mib", "1"]
    assert main([*words, "--out", str(disk / "out")]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the disk is full" in message
    assert "--resume" in message
    kept = {path.name: path.stat().st_mtime_ns for path in (disk / "out").glob("*.tar")}
    assert kept
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert main([*words, "--out", str(disk / "out"), "--resume"]) == 0
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert read_all(disk / "out") == read_all(tmp_path / "whole")
    assert {name: (disk / "out" / name).stat().st_mtime_ns for name in kept} == kept


def test_the_command_prints_one_object(noisy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (noisy_folder / "class1" / "1.png").write_bytes(b"")
    words = ["data", "pack", "--data", f"folder:{noisy_folder}", "--out", str(tmp_path / "out"), "--num-processes", "1"]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["num_images"], result["num_shards"]) == (29, 1)
    assert result["failures"] == [{"image_id": "class1/1.png", "reason": "the file is empty (0 bytes)"}]
    assert "not packed: class1/1.png" in printed.err
    assert "pack: 30/30" in printed.err
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert "29 pictures in 1 shard of" in capsys.readouterr().out


def test_shards_of_one_source_are_the_same_each_time() -> None:
    """A member's header holds no time and no user."""
    from vitrieve.data.tars import build_member

    member = build_member("000000001.jpg", b"abc")
    assert len(member) == 1024
    with tarfile.open(fileobj=io.BytesIO(member + bytes(1024))) as archive:
        (info,) = archive.getmembers()
    assert (info.name, info.size, info.mtime, info.uid, info.uname) == ("000000001.jpg", 3, 0, 0, "")
    assert os.path.basename(info.name) == info.name
