from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.forked import ForkedVitrieve
from vitrieve import folders
from vitrieve.artifacts import prepare_folder, replacing_folder, write_manifest
from vitrieve.errors import ArtifactError


def write(folder: Path, text: str) -> None:
    (folder / "content").write_text(text)
    write_manifest(folder, "index", {"num_vectors": 3})


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    prepare_folder(tmp_path / "a")
    write(tmp_path / "a", "old")
    return tmp_path / "a"


@pytest.mark.parametrize("is_at_once", [True, False])
def test_replacing_folder_swaps_when_all_is_done(
    finished: Path, monkeypatch: pytest.MonkeyPatch, is_at_once: bool
) -> None:
    if not is_at_once:
        monkeypatch.setattr(folders, "_exchange_at_once", lambda one, other: False)
    with replacing_folder(finished, is_overwrite=True) as folder:
        write(folder, "new")
        assert (finished / "content").read_text() == "old"
    assert (finished / "content").read_text() == "new"
    assert [path.name for path in finished.parent.iterdir()] == ["a"]


def stop_in_the_middle(finished: Path, **settings: bool) -> None:
    """Begin to replace an artifact, as far as Ctrl-C."""
    with replacing_folder(finished, is_overwrite=True, **settings) as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt


def test_replacing_folder_keeps_the_old_artifact_when_the_block_fails(finished: Path) -> None:
    for is_resumable in (True, False):
        with pytest.raises(KeyboardInterrupt):
            stop_in_the_middle(finished, is_resumable=is_resumable)
        assert (finished / "content").read_text() == "old"
        assert (finished.parent / ".a.new").exists() is is_resumable
    with replacing_folder(finished, is_overwrite=True) as folder:
        assert not (folder / "half").exists()
        write(folder, "new")


def test_replacing_folder_goes_on_with_what_a_stopped_block_left(finished: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle(finished)
    with replacing_folder(finished, is_resume=True) as folder:
        assert (folder / "half").exists()
        write(folder, "new")
    assert (finished / "content").read_text() == "new"
    with pytest.raises(ArtifactError, match="--overwrite"), replacing_folder(finished, is_resume=True):
        pass


def test_replacing_folder_follows_a_link(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(finished)
    with replacing_folder(tmp_path / "link", is_overwrite=True) as folder:
        write(folder, "new")
    assert (tmp_path / "link").is_symlink()
    assert (finished / "content").read_text() == "new"


def test_replacing_folder_says_where_it_must_delete_first(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    with replacing_folder(finished, is_overwrite=True) as folder:
        assert folder == finished
        write(folder, "new")
    assert "is a mount point" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("store", "kills"), [("exact", (0, 1, 3, 6, 9, 12)), ("lance", (1, 6, 12))], ids=["exact", "lance"]
)
def test_index_overwrite_that_is_killed_leaves_the_old_index_or_the_new_one(
    tiny_encoder_folder: Path,
    picture_folder: Path,
    forked_vitrieve: ForkedVitrieve,
    tmp_path: Path,
    store: str,
    kills: tuple[int, ...],
) -> None:
    from vitrieve.cli.main import main
    from vitrieve.data.sources import read_collection
    from vitrieve.embed.collection import embed_collection
    from vitrieve.index.open import build_index, open_index
    from vitrieve.runtime.encoder import load_encoder

    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "old")
    (picture_folder / "00.png").unlink()
    embed_collection(encoder, read_collection(str(picture_folder)), tmp_path / "new")
    build_index(tmp_path / "old", tmp_path / "index", store="exact").close()
    words = ["index", "--embeddings", str(tmp_path / "new"), "--out", str(tmp_path / "index"), "--store", store]
    numbers = []
    for num_syncs in (*kills, None):
        if num_syncs is None:
            assert main([*words, "--overwrite"]) == 0
        else:
            assert forked_vitrieve([*words, "--overwrite"], num_syncs=num_syncs).status in (0, -signal.SIGKILL)
        index = open_index(tmp_path / "index")
        assert index.verify() == []
        numbers.append(index.count())
        index.close()
    assert numbers[0] == 12
    assert numbers[-1] == 11
    assert numbers == sorted(numbers, reverse=True)
    assert not (tmp_path / ".index.new").exists()


def test_a_failed_block_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(KeyboardInterrupt):
            stop_in_the_middle(folder, is_resumable=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not any((tmp_path / "empty").iterdir())


def test_a_failed_block_leaves_nothing_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle(tmp_path / "link", is_resumable=False)
    assert (tmp_path / "link").is_dir()
    assert not any((tmp_path / "empty").iterdir())
