"""What visitors sent, in a folder that several services share."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import make_picture
from vitrieve.errors import ArtifactError, DecodeError
from vitrieve.search.searcher import Searcher
from vitrieve.serve.app import create_app
from vitrieve.serve.settings import Limits
from vitrieve.serve.uploads import PART_SECONDS, SharedUploads

PICTURES = [make_picture((20 + number, 20)) for number in range(8)]
DAY = 24 * 3600


def list_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".lock"}


def make_older(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_picture_that_one_service_got_is_found_by_the_other(
    searcher: Searcher, picture: bytes, tmp_path: Path
) -> None:
    apps = [create_app(searcher, uploads=tmp_path / "uploads") for _ in range(2)]
    with TestClient(apps[0]) as one, TestClient(apps[1]) as other:
        sent = one.post("/uploads", files={"image": picture}, headers={"Accept": "application/json"}).json()
        assert "class2/1.png" in other.get(sent["address"]).text
        upload_id = sent["address"].partition("upload=")[2]
        assert other.get(f"/uploads/{upload_id}").headers["content-type"] == "image/jpeg"
    assert (tmp_path / "uploads").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "uploads" / upload_id).stat().st_mode & 0o777 == 0o600


def test_number_and_bytes_are_bounded_and_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    one, other = (SharedUploads(tmp_path, Limits(num_uploads=3)) for _ in range(2))
    ids = [one.add(data).upload_id for data in PICTURES[:3]]
    for age, upload_id in enumerate(ids):
        make_older(tmp_path / upload_id, 100 - age)
    assert other.find(ids[0]) is not None  # it was used now
    ids.append(other.add(PICTURES[3]).upload_id)
    assert list_names(tmp_path) == {ids[0], ids[2], ids[3]}
    most = len(PICTURES[4]) + len(PICTURES[5])
    few = SharedUploads(tmp_path, Limits(upload_bytes=most))
    ids = [few.add(data).upload_id for data in PICTURES[4:6]]
    assert list_names(tmp_path) == set(ids)


def test_two_services_that_add_at_once_never_hold_more_than_the_bound(tmp_path: Path) -> None:
    services = [SharedUploads(tmp_path, Limits(num_uploads=2)) for _ in range(4)]
    is_over, most = threading.Event(), 0

    def watch() -> None:
        nonlocal most
        while not is_over.is_set():
            most = max(most, len(list_names(tmp_path)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: services[number % 4].add(PICTURES[number % 8]), range(80)))
    is_over.set()
    watcher.join()
    assert most <= 2 + 1  # renaming onto the picture that is there, for a moment there are both
    assert len(list_names(tmp_path)) == 2


def test_what_expired_and_what_was_never_finished_is_removed_and_nothing_else(tmp_path: Path) -> None:
    uploads = SharedUploads(tmp_path, Limits(upload_seconds=DAY))
    old, new = (uploads.add(data).upload_id for data in PICTURES[:2])
    parts = [f"{old}.{digit * 16}.part" for digit in "ab"]
    for name in (*parts, "photograph.png", "0123"):
        (tmp_path / name).write_bytes(b"x")
    for name in (old, "photograph.png", "0123"):
        make_older(tmp_path / name, DAY + 60)
    make_older(tmp_path / parts[0], PART_SECONDS + 60)
    assert uploads.find(old) is None
    uploads.clean()
    assert list_names(tmp_path) == {new, parts[1], "photograph.png", "0123"}


@pytest.mark.parametrize("kind", ["another picture", "cut short", "a link", "a pipe", "a folder"])
def test_trap_a_file_that_is_not_what_was_sent_counts_as_none(tmp_path: Path, kind: str) -> None:
    uploads = SharedUploads(tmp_path / "uploads", Limits())
    upload_id = uploads.add(PICTURES[0]).upload_id
    path = tmp_path / "uploads" / upload_id
    path.rename(tmp_path / "elsewhere")
    if kind == "another picture":
        path.write_bytes(PICTURES[1])
    elif kind == "cut short":
        path.write_bytes(PICTURES[0][:-1])
    elif kind == "a link":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert uploads.find(upload_id) is None
    assert uploads.find("../elsewhere") is None


def test_bad_pictures_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DecodeError):
        SharedUploads(tmp_path, Limits()).add(b"no picture")
    assert list_names(tmp_path) == set()
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="folder of uploads"):
        SharedUploads(tmp_path / "file", Limits())


def test_a_folder_that_vanished_is_told_and_the_search_goes_on(
    searcher: Searcher, picture: bytes, tmp_path: Path
) -> None:
    app = create_app(searcher, uploads=tmp_path / "uploads")
    with TestClient(app, raise_server_exceptions=False) as client:
        (tmp_path / "uploads" / ".lock").unlink()
        (tmp_path / "uploads").rmdir()
        answer = client.post("/uploads", files={"image": picture})
        assert (answer.status_code, "log says why" in answer.text) == (503, True)
        page = client.post("/uploads", files={"image": picture}, headers={"Accept": "text/html"})
        assert (page.status_code, 'type="file"' in page.text, "Try again" in page.text) == (503, True, False)
        assert client.post("/search", content=picture).status_code == 200
