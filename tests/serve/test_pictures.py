"""Originals and thumbnails: whatever their names are, and whatever becomes of their files meanwhile."""

from __future__ import annotations

import io
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from fastapi import HTTPException
from PIL import Image
from starlette.testclient import TestClient

from vitrieve.data import decode
from vitrieve.data.decode import read_image
from vitrieve.data.records import ImageRecord
from vitrieve.embed.embeddings import Embeddings
from vitrieve.errors import ConfigError
from vitrieve.index.open import build_index
from vitrieve.index.store import StoreKind
from vitrieve.runtime.encoder import load_encoder
from vitrieve.search.searcher import Searcher, parse_path_map
from vitrieve.serve.app import create_app
from vitrieve.serve.pictures import SIDES_PX, Pictures
from vitrieve.serve.settings import Limits
from vitrieve.serve.views import image_url, thumbnail_url

NAMES = (
    "plain.png",
    "with blank/and#hash?query&100%.png",
    "line\nbreak.png",
    "tab\tand\x1b[31mescape.png",
    "../parent/a.png",
    "./here.png",
    "twice//slash.png",
    "/absolute.png",
    "back\\slash.png",
    "..",
    "caf\u00e9.png",
    "bytes \\xe9.png",
)


@pytest.fixture(scope="module", params=["exact", "lance"])
def named(
    request: pytest.FixtureRequest,
    tiny_encoder_folder: Path,
    class_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[TestClient, Searcher, dict[str, bytes]]]:
    """A service over images of odd names; the file of the last one has a name that is not UTF-8."""
    folder = tmp_path_factory.mktemp("named")
    kind: StoreKind = request.param
    records, contents = [], {}
    for number, (name, source) in enumerate(zip(NAMES, sorted(class_folder.rglob("*.png")), strict=False)):
        path = folder / f"{number}.png"
        if name == NAMES[-1]:
            path = Path(os.fsdecode(os.fsencode(folder) + b"/bytes \xe9.png"))
        path.write_bytes(source.read_bytes())
        contents[name] = source.read_bytes()
        records.append(ImageRecord(image_id=name, path=path, label=0, split="test"))
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    embeddings = Embeddings(
        vectors=encoder.encode([read_image(record) for record in records]),
        records=tuple(records),
        failures=(),
        fingerprint=encoder.fingerprint,
        encoder_source=str(tiny_encoder_folder),
        image_size=32,
        license="",
    )
    build_index(embeddings, folder / "index", store=kind).close()
    searcher = Searcher.open(folder / "index", encoder, num_threads=1)
    with TestClient(create_app(searcher), raise_server_exceptions=False) as client:
        yield client, searcher, contents
    searcher.store.close()


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_name_is_found_shown_and_sent(named: tuple[TestClient, Searcher, dict[str, bytes]], name: str) -> None:
    client, _, contents = named
    sent = client.get(image_url(name))
    assert (sent.status_code, sent.content, sent.headers["content-type"]) == (200, contents[name], "image/png")
    head = client.head(image_url(name))
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(contents[name])))
    small = client.get(thumbnail_url(name, 160))
    assert (small.status_code, small.headers["content-type"]) == (200, "image/jpeg")
    found = client.post("/search", content=contents[name]).json()["results"]
    assert found[0]["image_id"] == name
    assert client.post("/search", json={"id": name}).status_code == 200


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_picture_of_a_page_is_there(named: tuple[TestClient, Searcher, dict[str, bytes]], name: str) -> None:
    client = named[0]
    page = client.get("/", params={"plus": name})
    assert page.status_code == 200
    addresses = {unescape(one) for one in re.findall(r'(?:src|href)="(/(?:images|thumbnails)[^"]*)"', page.text)}
    assert len(addresses) >= len(NAMES)
    assert {client.get(address).status_code for address in addresses} == {200}


def test_a_name_in_the_other_unicode_form_is_found(named: tuple[TestClient, Searcher, dict[str, bytes]]) -> None:
    client, _, contents = named
    composed = "caf\u00e9.png"
    decomposed = unicodedata.normalize("NFD", composed)
    assert decomposed != composed
    assert client.get(image_url(decomposed)).content == contents[composed]
    assert client.get(thumbnail_url(decomposed, 160)).status_code == 200
    answers = [client.post("/search", json={"id": name}).json()["results"] for name in (composed, decomposed)]
    assert answers[0] == answers[1]
    assert composed not in {result["image_id"] for result in answers[1]}  # it is the query
    assert client.post("/search", json={"id": decomposed + "x"}).status_code == 404


@pytest.fixture
def pictures(tmp_path: Path, class_folder: Path, named: tuple[TestClient, Searcher, dict[str, bytes]]) -> Pictures:
    return Pictures(named[1].store, Limits())


def test_a_picture_that_is_exchanged_while_it_is_sent_stays_the_one_that_was_looked_at(
    named: tuple[TestClient, Searcher, dict[str, bytes]], pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, searcher, contents = named
    path = searcher.store.get(["plain.png"])[1][0].path
    secret = path.with_name("secret.txt")
    secret.write_text("this must never be served")
    find = Pictures.find_file

    def exchange(self: Pictures, image_id: str):  # type: ignore[no-untyped-def]
        found = find(self, image_id)
        path.unlink()
        path.symlink_to(secret)
        return found

    try:
        with monkeypatch.context() as changed:
            changed.setattr(Pictures, "find_file", exchange)
            assert client.get("/images/plain.png").content == contents["plain.png"]
        assert client.get("/images/plain.png").status_code == 410
        assert client.get("/thumbnails/plain.png").status_code == 410
    finally:
        path.unlink()
        path.write_bytes(contents["plain.png"])


def test_thumbnails_are_bounded_one_by_one_and_together(
    named: tuple[TestClient, Searcher, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = Pictures(named[1].store, Limits(thumbnail_bytes=3000))
    for name in NAMES:
        for side_px in SIDES_PX:
            pictures.build_thumbnail(name, side_px)
            assert pictures._cache_bytes == sum(map(len, pictures._cache.values())) <= 3000
    assert pictures._cache
    noise = np.random.default_rng(0).integers(0, 256, (SIDES_PX[-1], SIDES_PX[-1] + 1, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG", compress_level=0)
    assert len(pictures.shrink_upload("noise", file.getvalue(), SIDES_PX[-1])) < 2 << 20
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 10)  # a file that is larger than what is read of any
    with pytest.raises(HTTPException, match="410"):
        pictures.build_thumbnail("plain.png", SIDES_PX[1])


def test_no_descriptor_is_left_open(named: tuple[TestClient, Searcher, dict[str, bytes]], pictures: Pictures) -> None:
    client, searcher, contents = named

    def count_open() -> int:
        links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
        return sum(link.is_symlink() and os.readlink(link).endswith(".png") for link in links)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    before = count_open()
    for name in NAMES:
        client.get(image_url(name))
        client.get(image_url(name), headers={"Range": "bytes=0-9"})
        client.head(image_url(name))
        pictures.build_thumbnail(name, 160)
    path = searcher.store.get(["plain.png"])[1][0].path
    path.write_bytes(b"no picture any more")
    with pytest.raises(HTTPException):
        pictures.find_file("plain.png")
    path.unlink()
    os.mkfifo(path)  # opening it must not wait for a writer
    with pytest.raises(HTTPException):
        pictures.find_file("plain.png")
    path.unlink()
    path.write_bytes(contents["plain.png"])
    assert count_open() == before


@pytest.mark.parametrize("kind", ["exact", "lance"])
def test_photographs_under_another_path_are_shown_without_changing_the_index(
    kind: StoreKind, tiny_encoder_folder: Path, class_folder: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(tiny_encoder_folder, engine="onnx", num_threads=1)
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(class_folder, old)
    paths = sorted(old.rglob("*.png"))
    records = [
        ImageRecord(image_id=path.relative_to(old).as_posix(), path=path, label=0, split="test") for path in paths
    ]
    embeddings = Embeddings(
        vectors=encoder.encode([read_image(record) for record in records]),
        records=tuple(records),
        failures=(),
        fingerprint=encoder.fingerprint,
        encoder_source=str(tiny_encoder_folder),
        image_size=32,
        license="",
    )
    build_index(embeddings, tmp_path / "index", store=kind).close()
    content = paths[0].read_bytes()
    old.rename(new)
    maps = [parse_path_map(f"{tmp_path}=/nowhere"), parse_path_map(f"{old}={new}")]  # the inner folder decides
    searcher = Searcher.open(tmp_path / "index", encoder, num_threads=1, maps=maps)
    with TestClient(create_app(searcher)) as client:
        assert client.get(image_url(records[0].image_id)).content == content
        assert client.get(thumbnail_url(records[1].image_id, 160)).status_code == 200
        found = client.post("/search", json={"id": records[0].image_id}).json()["results"]
        assert len(found) == 10
    assert searcher.search(new / records[0].image_id, k=1)[0].path == new / records[0].image_id
    assert searcher.reopen().store.get([records[0].image_id])[1][0].path == new / records[0].image_id
    searcher.store.close()


@pytest.mark.parametrize("text", ["/a", "/a=b", "a=/b", "=/b", "/a="])
def test_a_path_map_needs_two_absolute_paths(text: str) -> None:
    with pytest.raises(ConfigError, match="expected OLD=NEW with two absolute paths"):
        parse_path_map(text)
