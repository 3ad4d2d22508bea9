from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.embed.test_collection import ALL_ALLOWED, CountingEngine
from tests.forked import ForkedVitrieve
from vitrieve.data.records import Dataset
from vitrieve.data.sources import read_collection
from vitrieve.embed.collection import EmbedSettings, embed_collection
from vitrieve.embed.job_array import Shard, embed_shard, join_shards, parse_shard
from vitrieve.embed.unfinished import PLAN_NAME, read_plan
from vitrieve.errors import ArtifactError, ConfigError, DataError, FingerprintError, IncompleteError
from vitrieve.runtime.encoder import Encoder, load_encoder


@pytest.fixture(scope="module")
def encoder(tiny_encoder_folder: Path) -> Encoder:
    return load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)


@pytest.fixture(scope="module")
def other_encoder(encoder: Encoder) -> Encoder:
    return dataclasses.replace(encoder, fingerprint="0" * 64)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrieve.embed.unfinished.PART_SIZE", 2)  # 6 parts of the 12 pictures


@pytest.fixture
def dataset(picture_folder: Path) -> Dataset:
    return read_collection(str(picture_folder))


def assert_same_files(one: Path, other: Path) -> None:
    """Compare artifacts byte by byte; the manifest but for the time at which each was begun."""
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for name in ("vectors.npy", "rows.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (one, other)]
    assert all(manifest.pop("begun") > 0 for manifest in manifests)
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("num_shards", [1, 4, 16])
def test_shards_make_what_one_process_makes(
    encoder: Encoder, dataset: Dataset, picture_folder: Path, tmp_path: Path, num_shards: int
) -> None:
    (picture_folder / "03.png").write_bytes(b"")
    embed_collection(encoder, dataset, tmp_path / "whole", settings=ALL_ALLOWED)
    results = {}
    for number in reversed(range(1, num_shards + 1)):
        shard = f"{number}/{num_shards}"
        results[shard] = embed_shard(encoder, dataset, tmp_path / "out", shard=shard, settings=ALL_ALLOWED)
    assert sum(result.num_images for result in results.values()) == 12
    assert [name for result in results.values() for name, _ in result.failures] == ["03.png"]
    joined = join_shards(encoder, dataset, tmp_path / "out", settings=ALL_ALLOWED)
    assert joined.vectors.shape == (11, 64)
    assert_same_files(tmp_path / "out", tmp_path / "whole")


def test_shards_divide_the_parts() -> None:
    for num_parts in (0, 1, 5, 16, 40):
        for num_shards in (1, 3, 16):
            shares = [Shard(number, num_shards).choose_parts(num_parts) for number in range(1, num_shards + 1)]
            assert [part for share in shares for part in share] == list(range(num_parts))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "3/", "-1/4", "1/0", "a/b", "1/4/4", "٣/4 "])
def test_parse_shard_refuses_what_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="3/16"):
        parse_shard(text)


def test_join_names_what_is_missing_and_what_is_cut_short(encoder: Encoder, dataset: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ArtifactError, match="nothing to join"):
        join_shards(encoder, dataset, out)
    assert not out.exists()
    embed_shard(encoder, dataset, out, shard="1/3")
    embed_shard(encoder, dataset, out, shard="3/3")
    cut = out / "parts" / "000004.npz"
    cut.write_bytes(cut.read_bytes()[:-30])
    message = r"shard 2/3 lacks 2 of 2 parts; shard 3/3 lacks 1 of 2 parts, 1 of them cut short.*--shard 2/3"
    with pytest.raises(IncompleteError, match=message) as caught:
        join_shards(encoder, dataset, out)
    assert caught.value.shards == ("2/3", "3/3")
    embed_shard(encoder, dataset, out, shard="2/3")
    engine = CountingEngine(encoder.runner)
    embed_shard(dataclasses.replace(encoder, runner=engine), dataset, out, shard="3/3")
    assert engine.num_seen == 2  # the part that was cut short, not the other
    assert len(join_shards(encoder, dataset, out).vectors) == 12
    with pytest.raises(ArtifactError, match="its parts are joined"):
        join_shards(encoder, dataset, out)
    with pytest.raises(ArtifactError, match=r"is finished: .* another --out, or remove the folder") as finished:
        embed_shard(encoder, dataset, out, shard="3/3")
    assert "--overwrite" not in str(finished.value)  # which a shard does not take


def test_no_advice_to_shards_is_a_flag_that_they_refuse(
    encoder: Encoder, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    embed_shard(encoder, dataset, out, shard="1/3")
    fewer = dataclasses.replace(dataset, records=dataset.records[1:])
    with pytest.raises(ArtifactError, match="another collection") as told:
        embed_shard(encoder, fewer, out, shard="2/3")
    assert "another --out" in str(told.value)
    assert "--overwrite" not in str(told.value)
    with pytest.raises(FingerprintError, match="another --out") as told_encoder:
        embed_shard(dataclasses.replace(encoder, fingerprint="0" * 64), dataset, out, shard="2/3")
    assert "--overwrite" not in str(told_encoder.value)


def test_a_part_whose_bytes_have_changed_is_named_when_it_is_joined(
    encoder: Encoder, dataset: Dataset, tmp_path: Path
) -> None:
    embed_shard(encoder, dataset, tmp_path / "out", shard="1/1")
    path = tmp_path / "out" / "parts" / "000001.npz"
    data = bytearray(path.read_bytes())
    data[300] ^= 1  # among the vectors
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"000001\.npz is damaged"):
        join_shards(encoder, dataset, tmp_path / "out")


def test_a_killed_shard_repeats_no_finished_part(encoder: Encoder, dataset: Dataset, tmp_path: Path) -> None:
    settings = EmbedSettings(batch_size=1)
    stopping = dataclasses.replace(encoder, runner=CountingEngine(encoder.runner, 3))
    with pytest.raises(KeyboardInterrupt):
        embed_shard(stopping, dataset, tmp_path / "out", shard="1/2", settings=settings)
    engine = CountingEngine(encoder.runner)
    counted = dataclasses.replace(encoder, runner=engine)
    embed_shard(counted, dataset, tmp_path / "out", shard="1/2", settings=settings)
    assert engine.num_seen == 4  # of the 6 pictures of this shard, those of the first part were kept
    embed_shard(counted, dataset, tmp_path / "out", shard="1/2", settings=settings)
    assert engine.num_seen == 4


def test_shards_that_disagree_are_refused(
    encoder: Encoder, other_encoder: Encoder, tiny_encoder_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed_shard(encoder, dataset, out, shard="1/2")
    fewer = dataclasses.replace(dataset, records=dataset.records[:-1])
    torch_encoder = load_encoder(tiny_encoder_folder, engine="torch", num_threads=1, precision="fp32")
    with pytest.raises(FingerprintError, match="another encoder"):
        embed_shard(other_encoder, dataset, out, shard="2/2")
    with pytest.raises(ArtifactError, match="another collection"):
        embed_shard(encoder, fewer, out, shard="2/2")
    with pytest.raises(ArtifactError, match="num_shards 2, now 3"):
        embed_shard(encoder, dataset, out, shard="2/3")
    with pytest.raises(ArtifactError, match=r"'engine': 'onnx'.*'engine': 'torch'"):
        embed_shard(torch_encoder, dataset, out, shard="2/2")
    embed_shard(encoder, dataset, out, shard="2/2")
    with pytest.raises(FingerprintError, match="another encoder"):
        join_shards(other_encoder, dataset, out)
    with pytest.raises(ArtifactError, match="another collection"):
        join_shards(encoder, fewer, out)


@pytest.mark.parametrize("way", ["encoder", "collection"])
def test_a_part_of_other_work_is_found_where_folders_were_copied_together(
    encoder: Encoder, other_encoder: Encoder, dataset: Dataset, tmp_path: Path, way: str
) -> None:
    embed_shard(encoder, dataset, tmp_path / "one", shard="1/2")
    backwards = dataclasses.replace(dataset, records=dataset.records[::-1])
    if way == "encoder":
        embed_shard(other_encoder, dataset, tmp_path / "two", shard="2/2")
    else:
        embed_shard(encoder, backwards, tmp_path / "two", shard="2/2")
    for path in (tmp_path / "two" / "parts").iterdir():
        shutil.copy(path, tmp_path / "one" / "parts")
    with pytest.raises(FingerprintError, match=r"00000[345]\.npz was made with another"):
        join_shards(encoder, dataset, tmp_path / "one")


def test_shards_in_folders_of_their_own_are_joined_once_copied_together(
    encoder: Encoder, dataset: Dataset, tmp_path: Path
) -> None:
    embed_collection(encoder, dataset, tmp_path / "whole")
    for number in (1, 2, 3):
        embed_shard(encoder, dataset, tmp_path / str(number), shard=f"{number}/3")
        shutil.copytree(tmp_path / str(number), tmp_path / "out", dirs_exist_ok=True)
    join_shards(encoder, dataset, tmp_path / "out")
    assert_same_files(tmp_path / "out", tmp_path / "whole")


def test_too_many_unreadable_pictures_stop_a_shard_and_the_join(
    encoder: Encoder, dataset: Dataset, picture_folder: Path, tmp_path: Path
) -> None:
    for name in ("00.png", "11.png"):
        (picture_folder / name).write_bytes(b"")
    one_allowed = EmbedSettings(max_bad_fraction=1 / 12)
    for shard in ("1/2", "2/2"):
        embed_shard(encoder, dataset, tmp_path / "out", shard=shard, settings=one_allowed)
    with pytest.raises(DataError, match="2 of 12 images"):
        join_shards(encoder, dataset, tmp_path / "out", settings=one_allowed)
    with pytest.raises(DataError, match="1 of 12 images"):
        embed_shard(encoder, dataset, tmp_path / "out", shard="1/2", settings=EmbedSettings(max_bad_fraction=0))
    assert len(join_shards(encoder, dataset, tmp_path / "out", settings=ALL_ALLOWED).vectors) == 10


def test_shards_reuse_known_vectors(encoder: Encoder, dataset: Dataset, tmp_path: Path) -> None:
    before = embed_collection(encoder, dataset, tmp_path / "whole")
    engine = CountingEngine(encoder.runner)
    counted = dataclasses.replace(encoder, runner=engine)
    result = embed_shard(counted, dataset, tmp_path / "out", shard="1/1", reuse=tmp_path / "whole")
    assert (result.num_images, engine.num_seen) == (12, 0)
    joined = join_shards(encoder, dataset, tmp_path / "out")
    assert np.array_equal(joined.vectors, before.vectors)


def test_a_plain_resume_finishes_what_shards_began(encoder: Encoder, dataset: Dataset, tmp_path: Path) -> None:
    embed_collection(encoder, dataset, tmp_path / "whole")
    embed_shard(encoder, dataset, tmp_path / "out", shard="2/3")
    embed_collection(encoder, dataset, tmp_path / "out", is_resume=True)
    assert_same_files(tmp_path / "out", tmp_path / "whole")
    embed_shard(encoder, dataset, tmp_path / "plain", shard="1/1")
    plan = tmp_path / "plain" / "plan.json"
    fields = json.loads(plan.read_text())
    plan.write_text(json.dumps({name: fields[name] for name in ("fingerprint", "num_records", "records_sha256")}))
    with pytest.raises(ArtifactError, match="not begun by shards"):
        join_shards(encoder, dataset, tmp_path / "plain")


def test_a_shard_killed_at_any_sync_goes_on(tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path) -> None:
    small_parts = "from vitrieve.embed import unfinished\nunfinished.PART_SIZE = 2\n"
    run = ForkedVitrieve(tmp_path)
    words = ("--encoder", tiny_encoder_folder, "--data", picture_folder, "--engine", "onnx", "--num-threads", 1)
    try:
        assert run(["embed", *words, "--out", tmp_path / "whole"], prelude=small_parts).status == 0
        shard = ["embed", *words, "--out", tmp_path / "out", "--shard", "1/2"]
        num_kills = 0
        while run(shard, num_syncs=num_kills % 3, prelude=small_parts).status != 0:
            num_kills += 1
            assert num_kills < 40
        assert num_kills >= 3
        missing = run(["embed", *words, "--out", tmp_path / "out", "--join"], prelude=small_parts)
        assert missing.status == 2
        lines = [line for line in missing.printed.splitlines() if line.startswith("missing: vitrieve embed ")]
        assert [line.endswith("--shard 2/2 --engine onnx --num-threads 1") for line in lines] == [True]
        command = lines[0].removeprefix("missing: vitrieve ").split()
        assert run(command, prelude=small_parts).status == 0
        joined = run(["embed", *words, "--out", tmp_path / "out", "--join", "--json"], prelude=small_parts)
        assert joined.status == 0
        assert '"num_embedded": 12' in joined.printed
    finally:
        run.close()
    assert_same_files(tmp_path / "out", tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--shard", "1/2", "--join"], "give one of them"),
        (["--shard", "1/2", "--overwrite"], "other shards"),
        (["--join", "--overwrite"], "other shards"),
        (["--join", "--reuse", "x"], "encodes nothing"),
        (["--shard", "3/2"], "the third of 16"),
    ],
)
def test_flags_that_do_not_belong_together(
    words: list[str],
    reason: str,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vitrieve.cli.main import main

    given = ["--encoder", tiny_encoder_folder, "--data", picture_folder, "--out", tmp_path / "out", *words]
    assert main(["embed", *map(str, given)]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_plan_that_was_half_written_is_told(tmp_path: Path) -> None:
    (tmp_path / PLAN_NAME).write_text('{"fingerprint": "a')
    with pytest.raises(ArtifactError, match=r"is damaged .* remove .* and start again"):
        read_plan(tmp_path)
