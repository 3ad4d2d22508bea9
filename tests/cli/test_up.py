from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from PIL import Image, ImageDraw, ImageFont

from vitrieve.cli.main import main
from vitrieve.search.searcher import Searcher


@contextmanager
def up(*words: object, log: Path) -> Iterator[str]:
    """Run ``vitrieve up`` on a free port in a process of its own; yield its address."""
    command = [sys.executable, "-m", "vitrieve", "up", *map(str, words), "--port", "0", "--num-threads", "1"]
    environment = {**os.environ, "VITRIEVE_CACHE": str(log.parent / "cache")}
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        process.stdout.close()


class WouldServe(NamedTuple):
    """What ``up`` has told when it would begin to serve, and the images that it would serve."""

    told: str
    image_ids: set[str]


@pytest.fixture
def served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., WouldServe]:
    """Run ``vitrieve up`` in this process as far as it would serve: starting processes takes most of the time.

    It has the cache that ``up`` has with a log in ``tmp_path``.
    """
    found: list[set[str]] = []

    def note(searcher: Searcher, settings: object, **others: object) -> None:
        found.append(set(searcher.store.image_ids()))

    def run(*words: object) -> WouldServe:
        assert main(["up", *map(str, words), "--port", "0", "--num-threads", "1"]) == 0
        return WouldServe(capsys.readouterr().err, found[-1])

    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("vitrieve.serve.server.serve", note)
    return run


def test_up_serves_a_folder_and_embeds_only_what_is_new_the_next_time(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, served: Callable[..., WouldServe]
) -> None:
    words = (picture_folder, "--encoder", tiny_encoder_folder)
    (picture_folder / "deep").mkdir()
    (picture_folder / "03.png").rename(picture_folder / "deep" / "03.png")
    with up(*words, log=tmp_path / "log") as address:
        picture = (picture_folder / "deep" / "03.png").read_bytes()
        answer = httpx.post(f"{address}search?k=1", content=picture, timeout=60)
        assert answer.json()["results"][0]["image_id"] == "deep/03.png"
        assert "<form" in httpx.get(address, timeout=60).text
    assert "12 images indexed; 12 embedded" in (tmp_path / "log").read_text()
    assert str(tmp_path / "cache" / "indexes") in (tmp_path / "log").read_text()
    (picture_folder / "04.png").unlink()
    assert "9 images indexed; 3 removed" in served(*words, "--exclude", "06.png", "--exclude", "05.png").told
    as_before = served(*words).told
    assert "left out as before: 06.png, 05.png" in as_before
    assert "9 images indexed; nothing to do" in as_before
    again = served(*words, "--exclude", "")
    assert "11 images indexed; 2 embedded" in again.told
    assert again.image_ids >= {"05.png", "deep/03.png"}
    assert "04.png" not in again.image_ids


def test_up_looks_where_a_path_through_a_link_leads_to(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path, served: Callable[..., WouldServe]
) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/deep")
    picture_folder.rename(tmp_path / "far" / "pictures")
    found = served(f"{tmp_path}/link/../pictures", "--encoder", tiny_encoder_folder)
    assert len(found.image_ids) == 12


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["missing"], "missing is no folder"),
        (["empty"], "holds no image"),
        (["pictures", "--host", "0.0.0.0"], "needs a token"),
        (["pictures", "--encoder", "nothing-such"], "unknown weights"),
        ([], "name the collection once: --data SOURCE"),
        (["pictures", "--encoder", "TINY", "--ocr", "--no-ocr"], "--ocr and --no-ocr contradict each other; give one"),
    ],
)
def test_up_refuses_wrong_use_with_one_message(
    words: list[str],
    part: str,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(tiny_encoder_folder) if word == "TINY" else word for word in words]
    monkeypatch.delenv("VITRIEVE_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert picture_folder == tmp_path / "pictures"
    assert main(["up", *words, "--port", "0"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert part in printed.err


def test_up_reads_the_text_in_pictures_and_a_later_sync_goes_on_with_it(
    tiny_encoder_folder: Path,
    tmp_path: Path,
    served: Callable[..., WouldServe],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("rapidocr_onnxruntime", reason="needs rapidocr-onnxruntime")
    cartons, index = tmp_path / "cartons", tmp_path / "index"
    cartons.mkdir()

    def draw(word: str) -> None:
        picture = Image.new("RGB", (480, 120), (190, 40, 50))
        ImageDraw.Draw(picture).text((30, 20), word, fill="white", font=ImageFont.load_default(60))
        picture.save(cartons / f"{len(list(cartons.iterdir()))}.png")

    def search(word: str) -> list[str]:
        capsys.readouterr()
        assert main(["search", "--text", word, "--index", str(index), "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["queries"]
        return [result["image_id"] for result in found["results"]]

    draw("Oatly")
    assert "as before" not in served(cartons, "--encoder", tiny_encoder_folder, "--index", index, "--ocr").told
    draw("Barista")
    told = served(cartons, "--index", index).told
    assert "the text in pictures is read as before; --no-ocr reads no more of it" in told
    assert (search("oatly"), search("barista")) == (["0.png"], ["1.png"])
    draw("Kaffe")
    assert main(["sync", "--data", str(cartons), "--index", str(index), "--no-ocr"]) == 0
    assert (search("barista"), search("kaffe")) == (["1.png"], [])


@pytest.mark.parametrize("word", ["emoji", "./emoji", "table"])
def test_up_means_the_folder_whatever_its_name(
    word: str,
    tiny_encoder_folder: Path,
    picture_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served: Callable[..., WouldServe],
) -> None:
    picture_folder.rename(tmp_path / word)
    monkeypatch.chdir(tmp_path)
    told, image_ids = served(word, "--encoder", tiny_encoder_folder)
    assert "12 images indexed; 12 embedded" in told
    assert "05.png" in image_ids


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a name space of processes")
def test_up_as_the_first_process_of_a_container_stops_when_told(
    tiny_encoder_folder: Path, picture_folder: Path, tmp_path: Path
) -> None:
    words = [picture_folder, "--encoder", tiny_encoder_folder, "--index", tmp_path / "index", "--port", "0"]
    command = ["unshare", "--pid", "--fork", sys.executable, "-m", "vitrieve", "up", *map(str, words)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://"), (tmp_path / "log").read_text()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.stdout.close()
