"""Pictures and names that want harm: nothing crashes, hangs or is served."""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.serve.conftest import SECRET, make_picture

MAX_SECONDS = 5.0


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, pixels: bytes, *, depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(pixels, 9)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff_of(*entries: tuple[int, int, int, int], order: bytes = b"II") -> bytes:
    end = "<" if order == b"II" else ">"
    body = order + struct.pack(end + "HI", 42, 8) + struct.pack(end + "H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(end + "HHII", tag, kind, count, value)
    return body + struct.pack(end + "I", 0) + b"\x00" * 64


def list_hostile_pictures() -> Iterator[tuple[str, bytes]]:
    good = {name: make_picture((64, 48), name) for name in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")}
    for name, data in good.items():
        yield f"{name} cut in half", data[: len(data) // 2]
        yield f"{name} of ten bytes", data[:10]
        yield f"{name} with a flipped middle", data[: len(data) // 2] + b"\xff" * 16 + data[len(data) // 2 + 16 :]
        yield f"{name} after nothing", b"\x00" * 512 + data
        yield f"{name} with zeros behind its magic", data[:12] + b"\x00" * 4096
        yield f"{name} with noise behind its magic", data[:12] + np.random.default_rng(0).bytes(4096)
    yield "PNG bomb in width", png_of(2**31 - 1, 1, b"\x00")
    yield "PNG bomb of 60,000 squared", png_of(60_000, 60_000, b"\x00" * 100_000)
    yield "PNG one pixel above the limit", png_of(89_478_486, 1, b"\x00")
    yield "PNG without pixels", png_of(0, 10, b"")
    yield "PNG with far too much data", png_of(4, 4, b"\x00" * 50_000_000)
    yield "PNG with too little data", png_of(400, 400, b"\x00" * 9)
    yield (
        "PNG with a text bomb",
        png_of(4, 4, b"\x00" * 64, extra=png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 2**26))),
    )
    yield (
        "PNG with a profile bomb",
        png_of(4, 4, b"\x00" * 64, extra=png_chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 2**26))),
    )
    yield "PNG with an empty palette", png_of(4, 4, b"\x00" * 20, color=3, extra=png_chunk(b"PLTE", b""))
    yield "PNG with an impossible depth", png_of(4, 4, b"\x00" * 64, depth=7)
    yield "PNG with a chunk of 4 GB", b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR" + b"\x00" * 64
    yield "PNG with a wrong checksum", good["PNG"].replace(b"IDAT", b"IDAt")
    yield "APNG of a million frames", png_of(4, 4, b"\x00" * 52, extra=png_chunk(b"acTL", struct.pack(">II", 10**6, 0)))
    yield "JPEG of 65,500 squared", good["JPEG"].replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 65_500, 65_500))
    yield "JPEG without a body", b"\xff\xd8\xff\xd9"
    yield "JPEG of endless markers", b"\xff\xd8" + b"\xff" * 100_000
    yield (
        "JPEG of ten thousand scans",
        good["JPEG"][:-2] + b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00" * 10_000,
    )
    yield (
        "JPEG with damaged EXIF",
        b"\xff\xd8\xff\xe1\x00\x20Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 18 + good["JPEG"][2:],
    )
    yield "JPEG with EXIF that turns to nowhere", make_picture((64, 48), "JPEG", exif=_exif_with_orientation(4711))
    yield "GIF of 65,535 squared", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\x80\0\0" + b"\x00" * 64
    yield (
        "GIF with a frame outside",
        good["GIF"][:13] + b"\x00" * 768 + b"\x2c\xff\xff\xff\xff\xff\xff\xff\xff\x00\x02\x00",
    )
    yield "GIF without frames", good["GIF"][:13] + b"\x3b"
    yield "BMP of two billion rows", good["BMP"][:22] + struct.pack("<i", 2**31 - 1) + good["BMP"][26:]
    yield "BMP of negative width", good["BMP"][:18] + struct.pack("<i", -5) + good["BMP"][22:]
    yield "BMP with an endless run", good["BMP"][:30] + struct.pack("<I", 1) + good["BMP"][34:]
    yield "TIFF that points to itself", b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00"
    yield "TIFF with a count of 4 billion", tiff_of((256, 4, 2**32 - 1, 8), (257, 4, 2**32 - 1, 8))
    yield "TIFF of 60,000 squared", tiff_of((256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1))
    yield (
        "TIFF beyond its end",
        tiff_of((256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 2**31)),
    )
    yield "TIFF of unknown compression", tiff_of((256, 4, 1, 4), (257, 4, 1, 4), (259, 3, 1, 65_000), order=b"MM")
    yield "WebP of the largest size", b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6
    yield "WebP longer than it is", good["WEBP"][:4] + b"\xff\xff\xff\xff" + good["WEBP"][8:]
    yield "AVIF without a picture", b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00avifmif1miaf" + b"\x00" * 64
    yield "HEIC without a picture", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1" + b"\x00" * 64
    yield "SVG with a script", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    yield "SVG that reads a file", b'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "PDF", b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n"
    yield "zip bomb by name", b"PK\x03\x04" + b"\x00" * 2000
    yield "pickle", b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x04true\x94\x85\x94R\x94."
    yield "FLI film", b"\x00\x00\x00\x00\x12\xaf" + b"\xff" * 200
    yield "PSD", b"8BPS\x00\x01" + b"\xff" * 200
    yield "ICO of PNG of 60,000", b"\x00\x00\x01\x00\x01\x00\x00\x00\x00\x00\x01\x00\x20\x00" + b"\xff" * 64
    yield "DDS", b"DDS \x7c\x00\x00\x00" + b"\xff" * 200
    yield "path instead of bytes", b"/etc/passwd"
    yield "address instead of bytes", b"http://169.254.169.254/latest/meta-data/"
    yield "JSON nested deeply", b'{"examples":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    yield "JSON of a long number", b'{"k": ' + b"9" * 100_000 + b"}"
    yield "JSON of many keys", json.dumps({f"key{n}": n for n in range(20_000)}).encode()
    yield "JSON that is no UTF-8", b'{"id": "\xff\xfe"}'
    yield "JSON of half a character", b'{"id": "\\ud800"}'
    yield "JSON of NUL", b'{"id": "\\u0000"}'
    yield "nothing but spaces", b" " * 100_000


def _exif_with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


HOSTILE = dict(list_hostile_pictures())


def test_there_are_enough_hostile_pictures_and_names() -> None:
    assert len(HOSTILE) >= 60
    assert len(TRAVERSALS) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_answered_in_time(client: TestClient, name: str) -> None:
    started = time.process_time()  # what the machine does beside it does not count
    answer = client.post("/search", content=HOSTILE[name])
    form = client.post("/uploads", files={"image": ("a.png", HOSTILE[name])}, headers={"Accept": "application/json"})
    assert time.process_time() - started < 2 * MAX_SECONDS
    for one in (answer, form):
        assert one.status_code in (200, 404, 413, 422), one.text
        assert SECRET not in one.text
        assert "root:" not in one.text
    if answer.status_code != 200:
        assert answer.json()["detail"]
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "name", ["PNG bomb of 60,000 squared", "PNG one pixel above the limit", "JPEG of 65,500 squared"]
)
def test_trap_too_many_pixels_are_refused_before_decoding(client: TestClient, name: str) -> None:
    answer = client.post("/search", content=HOSTILE[name])
    assert answer.status_code in (413, 422)
    assert "pixels" in answer.json()["detail"]


SECRET_NAMES = ["../secret.png", "class0/../../secret.png", "../../../../../../../../etc/passwd", "/etc/passwd"]


def list_traversals() -> Iterator[str]:
    """Spell the way out of the folder as it has been spelt against servers before; without the leading route."""
    for name in SECRET_NAMES:
        yield name
        yield quote(name, safe="")
        yield quote(quote(name, safe=""), safe="")
        yield quote(name).replace("..", "%2e%2e")
        yield quote(name).replace("..", "%252e%252e")
        yield name.replace("/", "\\")
        yield name.replace("/", "%5c")
        yield name.replace("/", "//")
        yield name.replace("..", "....//")
        yield name.replace("..", ".%2e")
        yield name.replace("/", "%c0%af")
        yield name.replace("/", "%ef%bc%8f")
        yield name + "%00.png"
        yield "class0/0.png/" + name
        yield "./" + name
        yield name + "?class0/0.png"
    yield from (
        "file:///etc/passwd",
        "%00",
        "..",
        "../",
        ".",
        "~",
        "~root/.bashrc",
        "$HOME",
        "*",
        "class0/*",
        "class0",
        "",
    )
    yield from (
        "C:\\Windows\\win.ini",
        "\\\\host\\share\\a.png",
        "CON",
        "a" * 4000,
        "%ff%fe",
        "%",
        "%zz",
        "' OR '1'='1",
    )
    yield from ("class0/0.png' --", "class0/0.png; DROP TABLE images", "class0/0.PNG", "class0/0.png ", "class0//0.png")


TRAVERSALS = list(dict.fromkeys(list_traversals()))


@pytest.mark.parametrize("name", TRAVERSALS)
def test_names_that_are_not_in_the_index_serve_nothing(client: TestClient, name: str) -> None:
    for route in ("images", "thumbnails", "uploads", "static"):
        answer = client.get(f"/{route}/{name}")
        is_start = answer.request.url.path == "/"  # the client went up and out by itself
        is_nameless = answer.request.url.path == f"/{route}"  # it took "." away: then the name is missing
        assert (
            is_start
            or (is_nameless and answer.status_code == 422)
            or answer.status_code in (303, 307, 400, 404, 405, 410)
        ), (route, answer.status_code)
        assert SECRET not in answer.text
        assert "root:" not in answer.text
        assert not answer.headers["content-type"].startswith("image/") if "content-type" in answer.headers else True


def test_raw_paths_that_no_client_tidies_up_serve_nothing(searcher_app: object) -> None:
    """Clients resolve ``..`` themselves; the application must not rely on it."""
    import asyncio

    for name in (*SECRET_NAMES, "class0/0.png\x00", "class0/./0.png"):
        for route in ("/images/", "/thumbnails/", "/static/"):
            status, body = asyncio.run(get_raw(searcher_app, route + name))
            assert status in (404, 405), (route, name, status)
            assert SECRET.encode() not in body


@pytest.mark.parametrize("name", ["a link elsewhere", "another file", "a pipe", "nothing"])
def test_a_file_that_became_something_else_is_not_served(
    connect_to_copy: tuple[TestClient, Path], tmp_path: Path, name: str
) -> None:
    client, path = connect_to_copy
    assert client.get("/images/one.png").status_code == 200
    path.unlink()
    if name == "a link elsewhere":
        (tmp_path / "secret.txt").write_text(SECRET)
        path.symlink_to(tmp_path / "secret.txt")
    elif name == "another file":
        path.write_text(SECRET)
    elif name == "a pipe":
        os.mkfifo(path)
    for route in ("images", "thumbnails"):
        answer = client.get(f"/{route}/one.png")
        assert answer.status_code == 410, route
        assert SECRET not in answer.text
        assert str(path) not in answer.text
    # The vector is still there: the image can be searched for and found.
    assert client.post("/search", json={"id": "one.png"}).status_code == 200


async def get_raw(app: object, path: str) -> tuple[int, bytes]:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    await app(scope, receive, send)  # type: ignore[operator]
    return int(str(sent[0]["status"])), b"".join(bytes(one.get("body", b"")) for one in sent[1:])  # type: ignore[arg-type]


@pytest.fixture
def searcher_app(client: TestClient) -> object:
    return client.app


@pytest.fixture
def connect_to_copy(searcher: object, tmp_path: Path) -> Iterator[tuple[TestClient, Path]]:
    """A service over an index of one file that the test may change."""
    from vitrieve.data.records import ImageRecord
    from vitrieve.embed.embeddings import Embeddings
    from vitrieve.index.open import build_index
    from vitrieve.search.searcher import Searcher
    from vitrieve.serve.app import create_app

    assert isinstance(searcher, Searcher)
    path = tmp_path / "one.png"
    path.write_bytes(make_picture())
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        vectors = searcher.encoder.encode([image.convert("RGB")])
    embeddings = Embeddings(
        vectors=vectors,
        records=(ImageRecord(image_id="one.png", path=path, label=0, split="test"),),
        failures=(),
        fingerprint=searcher.encoder.fingerprint,
        encoder_source=searcher.encoder.source,
        image_size=32,
        license="",
    )
    store = build_index(embeddings, tmp_path / "index", store="exact")
    with TestClient(create_app(Searcher(store, searcher.encoder)), raise_server_exceptions=False) as client:
        yield client, path
    store.close()
