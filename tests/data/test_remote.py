"""Shards on servers: the same as on disk over S3 and HTTP, through faults, in forks, with a cache that has a limit."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.shard_servers import S3, FolderServer, cut, hang_up, quick_attempts, refuse, send_all, shorten, stall
from vitrieve.cli.main import main
from vitrieve.data import blocks, remote
from vitrieve.data.blocks import RemoteReader, blocks_folder, find_file
from vitrieve.data.decode import open_file_to_send, read_image_bytes
from vitrieve.data.pack import PackSettings, pack_dataset
from vitrieve.data.parts import stat_picture
from vitrieve.data.records import parse_path, spell_path
from vitrieve.data.remote import check_address, parse_address, shorten_addresses, spell_address
from vitrieve.data.sources import find_source_path, read_source
from vitrieve.errors import ConfigError, DataError, DecodeError, UnreachableError
from vitrieve.training import loop

pytest.importorskip("s3fs", reason="needs vitrieve[remote]")
ALONE = PackSettings(num_processes=1)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    pytest.importorskip("moto", reason="needs vitrieve[test]")
    with S3() as server, quick_attempts():
        yield server


@pytest.fixture(scope="module")
def packed(class_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty small pictures of five classes in one shard."""
    folder = tmp_path_factory.mktemp("packed") / "set"
    pack_dataset(read_source(f"folder:{class_folder}"), folder, settings=ALONE)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a process that remembers nothing."""
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    forget()
    return tmp_path / "cache"


@pytest.fixture
def server(packed: Path) -> Iterator[FolderServer]:
    with FolderServer(packed.parent) as served, quick_attempts():
        yield served


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 512 bytes, so that the shard has 262 of them."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 512)


def forget() -> None:
    """Begin as a new process does, but for connections."""
    blocks._forget_in_fork()


def local(packed: Path) -> list[bytes]:
    return [read_image_bytes(record.path) for record in read_source(f"shards:{packed}").records]


# Addresses


def test_an_address_is_a_path_that_any_table_keeps() -> None:
    for address in ("s3://bucket/a/b.tar", "https://host:8000/a%20b/ä.tar", "gs://b/c.tar"):
        path = spell_address(address)
        assert parse_address(Path(os.path.abspath(path))) == address
        assert parse_address(parse_path(spell_path(path))) == address
    for local_path in ("/photos/s3:/bucket/a.tar", "s3:/bucket/a.tar", "/ftp:/bucket/a.tar", "/s3:/bucket"):
        assert parse_address(Path(local_path)) is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/a", r"ftp:// is not read; accepted: s3://, gs://, http://, https://"),
        ("https://me:secret@host/a", r"shards:https://…@host/a: .* without a query and a password"),
        ("https://host/a?X-Signature=secret", r"shards:https://host/a\?…: .* without a query"),
        ("s3:///a", "SCHEME://HOST/PATH"),
        ("s3://bucket/a/../b", r"no empty part, '.' or '..'"),
        ("s3://bucket//b", "no empty part"),
    ],
)
def test_addresses_that_are_not_read(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_source(f"shards:{address}")
    assert "secret" not in str(caught.value)


def test_no_command_writes_or_prints_a_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "small"], ["data", "pack"]):
        assert main([*words, "--data", "shards:https://me:secret@host/a", "--out", str(tmp_path / "out")]) == 2
    printed = "".join(capsys.readouterr())
    assert printed.count("…@host") == 2
    assert "secret" not in printed
    assert not (tmp_path / "out").exists()


def test_shorten_addresses_leaves_other_text_alone() -> None:
    text = "url='https://host/x.tar?X-Amz-Signature=secret', from s3://a:secret@b/c to a@b.c? Yes"
    assert shorten_addresses(text) == "url='https://host/x.tar?…', from s3://…@b/c to a@b.c? Yes"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme, package, install in (("gs", "gcsfs", "gcsfs"), ("s3", "s3fs", r"'vitrieve\[remote\]'")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setattr(remote, "_systems", remote._Systems())
        with pytest.raises(ConfigError, match=f"needs the package {package}: pip install {install}"):
            read_source(f"shards:{scheme}://bucket/a")


def test_packing_to_an_address_is_refused(class_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "pack", f"folder:{class_folder}", "--out", "s3://bucket/set"]) == 2
    assert "Pack there, and copy it when it is finished" in capsys.readouterr().err
    assert not Path("s3:").exists()


# S3


def test_shards_over_s3_hold_the_same_records_and_bytes(s3: S3, packed: Path) -> None:
    source = f"shards:{s3.upload(packed, 'same')}"
    dataset, before = read_source(source), read_source(f"shards:{packed}")
    assert find_source_path(source) is None
    assert [replace(one, path=Path()) for one in dataset.records] == [
        replace(one, path=Path()) for one in before.records
    ]
    assert replace(dataset, records=(), source="") == replace(before, records=(), source="")
    assert dataset.records[0].path == Path("/s3:/pictures/same/000000.tar/@512+3684.png").parent / (
        before.records[0].path.name
    )
    assert [read_image_bytes(record.path) for record in dataset.records] == local(packed)
    with open_file_to_send(dataset.records[3].path) as file:
        assert file.read() == local(packed)[3]
        assert os.fstat(file.fileno()).st_size == len(local(packed)[3])


def test_training_embedding_and_evaluation_over_s3_equal_those_from_the_folder(
    s3: S3, photographs: Path, tiny_encoder_folder: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    from vitrieve import embed_collection, evaluate, load_embeddings, load_encoder

    pack_dataset(read_source(f"folder:{photographs}"), tmp_path / "set", settings=ALONE)
    sources = {"local": f"shards:{tmp_path / 'set'}", "s3": f"shards:{s3.upload(tmp_path / 'set', 'work')}"}
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    words = [
        *("train", "small", "--model.backbone", "test_vit", "--model.weights", str(tiny_weights)),
        *("--image-size", "32", "--num-steps", "3", "--batch-size", "6", "--num-threads", "1"),
        *("--train.evaluate-every", "3", "--no-holdout"),
    ]
    for name, source in sources.items():
        embed_collection(encoder, read_source(source), tmp_path / name)
        assert main([*words, "--data", source, "--out", str(tmp_path / f"run-{name}")]) == 0
    weights = [load_file(tmp_path / f"run-{name}" / "encoder" / "model.safetensors") for name in sources]
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])
    stored = [load_embeddings(tmp_path / name) for name in sources]
    assert np.array_equal(stored[0].vectors, stored[1].vectors)
    assert read_image_bytes(stored[1].records[2].path) == read_image_bytes(stored[0].records[2].path)
    results = [evaluate(tiny_encoder_folder, source, device="cpu").results[0].metrics for source in sources.values()]
    assert results[0] == results[1]
    again = embed_collection(encoder, read_source(sources["s3"]), tmp_path / "again", reuse=tmp_path / "s3")
    assert np.array_equal(again.vectors, stored[1].vectors)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "cache" not in str(path))
    assert b"hidden-secret" not in written


def write_tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def picture(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_foreign_shards_over_s3_are_indexed_once_and_again_when_they_change(
    s3: S3, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train/a", "test/b"):
        s3.put(f"foreign/{name}.tar", write_tar({"1.png": picture(1), "1.cls": b"kiwi", "2.png": picture(2)}))
    first = read_source("shards:s3://pictures/foreign/")
    assert [record.image_id for record in first.records] == [
        "test/b/1.png", "test/b/2.png", "train/a/1.png", "train/a/2.png",
    ]  # fmt: skip
    assert [record.split for record in first.records] == ["test", "test", "train", "train"]
    assert read_image_bytes(first.records[1].path) == picture(2)
    assert "2 shards are indexed, once" in capsys.readouterr().err
    assert read_source("shards:s3://pictures/foreign") == first
    assert capsys.readouterr().err == ""
    s3.put("foreign/test/b.tar", write_tar({"1.png": picture(3), "1.cls": b"kiwi", "2.png": picture(2)}))
    assert read_image_bytes(read_source("shards:s3://pictures/foreign").records[0].path) == picture(3)
    assert "are indexed" in capsys.readouterr().err


def test_sync_over_s3_embeds_what_has_changed(
    s3: S3, class_folder: Path, tiny_encoder_folder: Path, tmp_path: Path
) -> None:
    from vitrieve import load_encoder, sync

    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    shutil.copytree(class_folder, tmp_path / "classes")
    counts = []
    for change in (
        lambda: None,
        lambda: None,
        lambda: Image.new("RGB", (9, 9)).save(tmp_path / "classes/class2/1.png"),
    ):
        change()
        dataset = replace(read_source(f"folder:{tmp_path / 'classes'}"), name="classes")
        pack_dataset(dataset, tmp_path / "set", settings=ALONE, overwrite=True)
        source = f"shards:{s3.upload(tmp_path / 'set', 'synced')}"
        counts.append(sync(source, tmp_path / "index", encoder).num_embedded)
    assert counts == [20, 0, 1]


def test_what_is_wrong_with_a_set_on_s3_is_one_message(s3: S3, packed: Path) -> None:
    with pytest.raises(DataError, match=r"s3://pictures/none holds neither index.parquet nor a .tar file"):
        read_source("shards:s3://pictures/none")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/none holds neither"):
        read_source("shards:s3://no-such-bucket/none")
    source = f"shards:{s3.upload(packed, 'lost')}"
    records = read_source(source).records
    s3.put("lost/000000.tar", b"x" * 9)
    with pytest.raises(DataError, match=r"the shard 000000.tar has 9 bytes and should have"):
        read_source(source)
    with pytest.raises(DecodeError, match=r"000000.tar has changed since it was indexed"):
        read_image_bytes(records[0].path)
    s3.delete("lost/000000.tar")
    with pytest.raises(DataError, match=r"s3://pictures/lost lacks the shard 000000.tar .*No such file"):
        read_source(source)
    forget()
    with pytest.raises(DecodeError, match=r"the shard 000000.tar cannot be read: No such file"):
        read_image_bytes(records[0].path)
    with pytest.raises(FileNotFoundError):
        stat_picture(records[0].path)


def test_a_process_that_knows_an_older_shard_finds_the_pictures_of_a_newer_one(s3: S3, tmp_path: Path) -> None:
    s3.put("newer/test/a.tar", write_tar({"1.png": picture(1)}))
    before = read_source("shards:s3://pictures/newer").records[0]
    s3.put("newer/test/a.tar", write_tar({"0.txt": b"x", "1.png": picture(2)}))
    known = dict(blocks._files._known)
    after = read_source("shards:s3://pictures/newer").records[0]
    blocks._files._known = known
    assert after.path != before.path
    assert read_image_bytes(after.path) == picture(2)


# Faults

FAULTS = {
    "500": refuse(500),
    "503": refuse(503),
    "cut": cut,
    "shorten": shorten,
    "hang_up": hang_up,
    "stall": stall,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_tried_again(
    fault: Callable[..., None], server: FolderServer, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is stall:
        monkeypatch.setattr(remote, "TIMEOUT_SECONDS", 1.0)  # in which a busy machine answers
        monkeypatch.setattr(remote, "BYTES_PER_SECOND", 1e9)
    server.faults = [fault, fault]  # of the index
    records = read_source(f"shards:{server.address}/set").records
    server.faults = [fault, fault, fault]
    assert [read_image_bytes(record.path) for record in records] == local(packed)
    assert server.faults == []


def test_a_server_that_is_gone_is_one_message_with_address_attempts_and_what_to_do(
    server: FolderServer, tiny_encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"shards:{server.address}/set"
    read_source(source)
    words = ["embed", "--encoder", str(tiny_encoder_folder), "--data", source, "--out", str(tmp_path / "out")]
    server.faults = [hang_up] * 40
    assert main(words) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"the shard server is gone: {server.address}/set/" in message
    assert "not read in 4 attempts" in message
    assert "repeat the command, with --resume" in message
    server.faults = []
    assert main([*words, "--resume"] if (tmp_path / "out").exists() else words) == 0
    server.is_down = True
    with pytest.raises(UnreachableError, match=r"the shard server is gone: .*index.parquet was not read in 4 attempts"):
        read_source(source)


def test_training_whose_server_goes_away_ends_with_one_message_and_goes_on_where_it_was(
    server: FolderServer,
    small_blocks: None,
    tiny_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", "small", "--model.backbone", "test_vit", "--model.weights", str(tiny_weights)]
    words += ["--image-size", "32", "--num-steps", "12", "--batch-size", "6", "--num-threads", "1", "--no-report"]
    words += ["--data", f"shards:{server.address}/set", "--out", str(tmp_path / "run"), "--train.checkpoint-every", "1"]
    words += ["--loader.cache-bytes", "0", "--no-holdout"]
    monkeypatch.setattr("vitrieve.training.finishing.export_folder", lambda folder: None)
    train_step = loop.train_step

    def lose_server(state: Any, *given: Any) -> Any:
        server.is_down = state.step >= 1
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        forget()
        return train_step(state, *given)

    monkeypatch.setattr(loop, "train_step", lose_server)
    assert main(words) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the shard server is gone" in message
    assert "--resume" in message
    server.is_down = False
    monkeypatch.setattr(loop, "train_step", train_step)
    assert main([*words, "--resume"]) == 0
    assert "step 12/12" in capsys.readouterr().err


def test_refused_access_is_not_tried_again(server: FolderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.status = 403
    with pytest.raises(UnreachableError, match=r"access is refused .*give credentials in the environment"):
        read_source(f"shards:{server.address}/set")
    assert len(server.requests) == 2  # HEAD, and GET for a server that knows no HEAD


def test_missing_keys_are_said(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(remote, "_systems", remote._Systems())
    with pytest.raises(UnreachableError, match=r"access is refused .*AWS_ACCESS_KEY_ID"):
        read_source("shards:s3://pictures/same")


def test_a_server_without_ranges_is_told_at_once(server: FolderServer, small_blocks: None) -> None:
    records = read_source(f"shards:{server.address}/set").records
    server.faults = [send_all]
    with pytest.raises(DataError, match=r"sends the whole file where a part is asked for.*python -m http.server"):
        read_image_bytes(records[0].path)
    assert server.count_parts() == 2


def test_http_lists_nothing(server: FolderServer) -> None:
    with pytest.raises(DataError, match=r"holds no index.parquet, and HTTP lists no files"):
        read_source(f"shards:{server.address}/elsewhere")


def test_a_page_says_that_the_server_of_a_picture_does_not_answer() -> None:
    pytest.importorskip("fastapi", reason="needs vitrieve[serve]")
    from vitrieve.serve.pages import get_refusal

    status, message = get_refusal(UnreachableError("s3://bucket/a was not read"))
    assert status == 503
    assert "bucket" not in message


# Blocks


def test_who_reads_in_order_finds_what_comes_next(server: FolderServer, packed: Path, small_blocks: None) -> None:
    file = find_file(f"{server.address}/set/000000.tar")
    content = (packed / "000000.tar").read_bytes()
    assert RemoteReader(file).read() == content
    forget()
    file = find_file(f"{server.address}/set/000000.tar")
    shutil.rmtree(blocks_folder())
    server.requests.clear()
    assert b"".join(file.read(at, 300) for at in range(0, len(content), 300)) == content
    num_blocks = -(-len(content) // 512)
    assert 2 < server.count_parts() <= 4 + num_blocks / 16
    forget()
    shutil.rmtree(blocks_folder())
    file = find_file(f"{server.address}/set/000000.tar")
    server.requests.clear()
    for at in (512 * 90, 512 * 40, 512 * 110, 512 * 10):
        assert file.read(at, 512) == content[at : at + 512]
    assert [given for method, _, given in server.requests if method == "GET"] == [
        f"bytes={512 * block}-{512 * block + 511}" for block in (90, 40, 110, 10)
    ]
    assert file.read(len(content) - 3, 100) == content[-3:]
    assert file.read(len(content), 1) == b""


def test_threads_that_want_the_same_fetch_it_once(server: FolderServer, packed: Path) -> None:
    records = read_source(f"shards:{server.address}/set").records
    server.requests.clear()
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: found.append([read_image_bytes(one.path) for one in records])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [local(packed)] * 8
    assert server.count_parts() == 1


def test_the_cache_serves_a_new_process_and_damaged_blocks_are_fetched_again(
    server: FolderServer, packed: Path, cache: Path
) -> None:
    source = f"shards:{server.address}/set"
    records = read_source(source).records
    assert [read_image_bytes(record.path) for record in records] == local(packed)
    forget()
    server.requests.clear()
    records = read_source(source).records
    assert [read_image_bytes(record.path) for record in records] == local(packed)
    assert server.count_parts() == 0
    kept = [path for path in (cache / "shard-blocks").rglob("*") if path.is_file()]
    for number, path in enumerate(kept):
        data = path.read_bytes()
        path.write_bytes(data[:-9] if number % 2 else bytes([data[0] ^ 1]) + data[1:])
    forget()
    records = read_source(source).records
    assert [read_image_bytes(record.path) for record in records] == local(packed)
    assert server.count_parts() == len(kept) == 2


def fork(work: Callable[[], bool]) -> int:
    """Work in a fork of this process, which ends well if that gives True; return its number."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(2)
    return child


def wait_for(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_cached() -> int:
    return sum(path.stat().st_size for path in blocks_folder().rglob("*") if path.is_file())


def test_the_cache_has_a_limit_for_all_processes_together(
    server: FolderServer, packed: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 20 << 10  # the shard has 131 KiB
    monkeypatch.setenv("VITRIEVE_SHARD_CACHE_GIB", str(limit / 2**30))
    expected, source = local(packed), f"shards:{server.address}/set"

    def read_often() -> bool:
        for _ in range(3):
            forget()
            if [read_image_bytes(record.path) for record in read_source(source).records] != expected:
                return False
        return True

    assert [wait_for(child) for child in [fork(read_often) for _ in range(2)]] == [0, 0]
    # Each may have written a twentieth, and a block, since it looked.
    assert 0 < count_cached() <= limit + 2 * (limit // 20 + 516)


def test_the_blocks_that_were_used_last_stay(
    server: FolderServer, packed: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "NUM_BLOCKS_IN_MEMORY", 0)
    file = find_file(f"{server.address}/set/000000.tar")
    for block in (0, 20, 80, 40, 60):  # not in order
        file.read(512 * block, 512)
    kept = {path.name.rpartition(".")[2]: path for path in blocks_folder().rglob("*") if path.is_file()}
    assert set(kept) == {"0", "20", "40", "60", "80"}
    for age, name in enumerate(["80", "60", "40", "20", "0"]):
        os.utime(kept[name], ns=(10**9 * age, 10**9 * age))
    file.read(512 * 80, 512)  # the oldest, which is used now
    monkeypatch.setenv("VITRIEVE_SHARD_CACHE_GIB", str(516 * 4.5 / 2**30))
    file.read(512 * 110, 512)
    left = {path.name.rpartition(".")[2] for path in blocks_folder().rglob("*") if path.is_file()}
    assert left == {"0", "20", "80", "110"}


@pytest.mark.parametrize("limit", ["0", "-1", "much", "nan"])
def test_a_limit_that_is_none_is_refused(limit: str, server: FolderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRIEVE_SHARD_CACHE_GIB", limit)
    with pytest.raises(ConfigError, match=r"VITRIEVE_SHARD_CACHE_GIB is .*; it must be a number of GiB above 0"):
        read_source(f"shards:{server.address}/set")


def test_a_full_disk_ends_the_keeping_and_not_the_reading(
    server: FolderServer,
    packed: Path,
    mount_small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    small_blocks: None,
) -> None:
    disk = mount_small_disk(64 << 10)
    monkeypatch.setenv("VITRIEVE_CACHE", str(disk))
    monkeypatch.setattr(blocks, "NUM_BLOCKS_IN_MEMORY", 0)
    records = read_source(f"shards:{server.address}/set").records
    assert [read_image_bytes(record.path) for record in records] == local(packed)
    told = capsys.readouterr().err
    assert told.count("keeps no more of the shards (No space left on device)") == 1
    assert not [path for path in blocks_folder().rglob("*") if len(path.suffixes) > 1]


def test_a_fork_reads_after_its_parent_has(server: FolderServer, packed: Path, small_blocks: None) -> None:
    records = read_source(f"shards:{server.address}/set").records
    read_image_bytes(records[0].path)
    expected = local(packed)
    assert wait_for(fork(lambda: [read_image_bytes(record.path) for record in records] == expected)) == 0
    assert [read_image_bytes(record.path) for record in records] == expected


def test_a_spawned_process_reads_what_it_is_sent(server: FolderServer, packed: Path) -> None:
    records = read_source(f"shards:{server.address}/set").records
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(read_image_bytes, [record.path for record in records[:3]]) == local(packed)[:3]


def test_packing_reads_from_a_server_with_processes(server: FolderServer, packed: Path, tmp_path: Path) -> None:
    """Shards become shards again: processes that were spawned read over HTTP."""
    dataset = read_source(f"shards:{server.address}/set")
    pack_dataset(dataset, tmp_path / "again", settings=replace(ALONE, num_processes=2))
    assert local(tmp_path / "again") == local(packed)
    again, before = (pq.read_table(folder / "index.parquet") for folder in (tmp_path / "again", packed))
    assert again == before
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["num_images"] == 20


def test_check_address_takes_slashes_from_the_end() -> None:
    assert check_address("s3://bucket/set//") == "s3://bucket/set"
    assert check_address("s3://bucket") == "s3://bucket"
