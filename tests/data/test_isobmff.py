"""AVIF and HEIC: what the stream behind a small canvas asks for is refused before a decoder sees it."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, features

from tests.data.isobmff import Item, build_av1, build_file, build_grid, build_hevc, build_track
from vitrieve.data import decode
from vitrieve.data.decode import decode_image, measure_image, read_header
from vitrieve.data.isobmff import count_coded_pictures, find_kind
from vitrieve.errors import DecodeError, PictureTooLargeError
from vitrieve.serve.body import find_image_type

MAX_PARTS = 1 << 16
TILE = Item(kind=b"hvc1", size=(512, 512), content=build_hevc(1))


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def shrink_canvas(data: bytes) -> bytes:
    """Let a file announce 16 x 16 pixels, whatever its stream holds."""
    start = data.index(b"ispe") + 8
    return data[:start] + struct.pack(">II", 16, 16) + data[start + 8 :]


def fail_to_open(*_: object) -> None:
    raise AssertionError("a decoder was called")


LARGE = {
    "tile behind a small canvas": build_file([Item(kind=b"av01", content=build_av1((20_000, 20_000)))]),
    "canvas": build_file([Item(kind=b"av01", size=(20_000, 20_000), content=build_av1((16, 16)))]),
    "frames that are not shown": build_file([Item(kind=b"av01", content=build_av1((4_000, 4_000), 100))]),
    "pictures that are not shown": build_file(
        [Item(kind=b"hvc1", size=(4_000, 4_000), content=build_hevc(99))], b"heic"
    ),
    "grid of one tile": build_file(
        [Item(kind=b"grid", content=build_grid(256, 200, (16, 16)), references={b"dimg": [2] * 51_200}), TILE], b"heic"
    ),
    "grid that says another size": build_file(
        [Item(kind=b"grid", content=build_grid(1, 1, (20_000, 20_000)), references={b"dimg": [2]}), TILE], b"heic"
    ),
    "grids of grids": build_file(
        [
            Item(kind=b"grid", content=build_grid(30, 30, (16, 16)), references={b"dimg": [number + 2] * 900})
            for number in range(2)
        ]
        + [TILE],
        b"heic",
    ),
    "transparency": build_file(
        [Item(kind=b"av01", content=build_av1((16, 16)))]
        + [Item(kind=b"av01", content=build_av1((9_000, 9_000)), references={b"auxl": [1]})] * 5
    ),
    "items": build_file([Item(kind=b"av01", content=build_av1((16, 16)))] * 1001),
    "pictures of a film": build_file([Item(kind=b"av01", content=build_av1((16, 16)))], b"avis", build_track(1 << 24)),
    "bytes that all items share": build_file(
        [Item(kind=b"av01", content=build_av1((16, 16)) + b"\x7a\0" * 1000)]
        + [Item(kind=b"av01", is_shared=True, references={b"auxl": [1]})] * 9
    ),
    "units": build_file([Item(kind=b"av01", content=build_av1((16, 16)) + b"\x7a\0" * 100_000)]),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_pictures_are_refused_before_a_decoder_sees_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_open_header", fail_to_open)
    for use in (decode_image, read_header, measure_image):
        with pytest.raises(PictureTooLargeError):
            use(LARGE[name])


def test_frames_of_a_film_count_by_the_largest_size_that_they_may_choose() -> None:
    still, film = (
        count_coded_pictures(
            build_file([Item(kind=b"av01", content=build_av1((40, 600), is_still=is_still))]), MAX_PARTS
        )
        for is_still in (True, False)
    )
    assert still.largest == film.largest == (40, 600)
    assert (still.num_pixels, film.num_pixels) == (40 * 600, 64 * 1024)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            build_file([Item(kind=b"grid", content=build_grid(1, 1, (16, 16)), references={b"dimg": [1]})]),
            "made of each other",
        ),
        (build_file([Item(kind=b"av01")], b"avif", build_file([])[24:]), "two boxes 'meta'"),
        (build_file([Item(kind=b"av01", content=b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff")]), "no length"),
        (build_file([Item(kind=b"grid")]), "end early"),
        (build_file([Item(kind=b"av01")])[:24] + b"\0\0\0\4meta", "smaller than its own head"),
    ],
)
def test_damaged_boxes_are_one_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_image(data)


def test_an_auxiliary_picture_of_another_coding_is_no_reason_to_refuse_a_file() -> None:
    items = [Item(kind=b"av01", content=build_av1((16, 16))), Item(kind=b"jpeg", references={b"auxl": [1]})]
    assert count_coded_pictures(build_file(items), MAX_PARTS).num_pixels == 2 * 16 * 16


def test_every_shorter_file_is_an_error_of_one_line() -> None:
    whole = encode(Image.new("RGB", (40, 30)), "AVIF") if features.check("avif") else build_file([TILE])
    for length in range(8, len(whole)):
        with pytest.raises(DecodeError):
            decode_image(whole[:length])


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="needs a Pillow with libavif")


@needs_avif
def test_the_stream_counts_and_not_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    data = shrink_canvas(encode(Image.new("RGB", (600, 400)), "AVIF"))
    counted = count_coded_pictures(data, MAX_PARTS)
    assert counted.largest == (600, 400)
    held = []

    class Budget:
        @contextmanager
        def hold(self, num_pixels: int) -> Iterator[None]:
            held.append(num_pixels)
            yield

    monkeypatch.setattr(decode, "BUDGET", Budget())
    assert decode_image(data).size == (16, 16)
    assert held == [counted.num_pixels]


@needs_avif
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_usual_avif_is_decoded(mode: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 4), np.uint8)).convert(mode)
    data = encode(picture, "AVIF")
    assert decode_image(data).size == (90, 70)
    film = encode(picture, "AVIF", save_all=True, append_images=[picture] * 3)
    assert decode_image(film).size == (90, 70)
    assert count_coded_pictures(film, MAX_PARTS).largest == (90, 70)


def test_usual_heic_is_decoded() -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    heif.register_heif_opener()
    picture = Image.linear_gradient("L").resize((300, 200)).convert("RGBA")
    picture.putalpha(100)
    for mode, options in (("RGB", {}), ("RGBA", {}), ("L", {}), ("RGB", {"tile_size": 64})):
        data = encode(picture.convert(mode), "HEIF", **options)
        assert decode_image(data).size == (300, 200)
        assert 60_000 <= count_coded_pictures(data, MAX_PARTS).num_pixels < 160_000


@pytest.mark.parametrize(
    ("major", "compatible", "kind"),
    [
        (b"avif", [b"mif1"], "avif"),
        (b"mif1", [b"mif1", b"avif", b"miaf"], "avif"),
        (b"mif1", [b"miaf", b"MA1B", b"abcd", b"efgh", b"ijkl", b"avif"], "avif"),
        (b"msf1", [b"avis"], "avif"),
        (b"heic", [b"mif1"], "heic"),
        (b"mif1", [b"mif1", b"heic"], "heic"),
        (b"mif1", [], "heic"),
        (b"hevm", [b"msf1"], "heic"),
        (b"isom", [b"mp42"], None),
        (b"crx ", [b"crx "], None),
    ],
)
def test_brands_say_what_a_file_is_to_decoder_and_service_alike(
    major: bytes, compatible: list[bytes], kind: str | None
) -> None:
    brands = b"".join(compatible)
    data = struct.pack(">I4s4sI", 16 + len(brands), b"ftyp", major, 0) + brands + bytes(500)
    assert find_kind(data) == kind
    assert find_image_type(data[:256]) == (f"image/{kind}" if kind else ("image/x-raw" if major == b"crx " else None))


@needs_avif
def test_avif_of_a_general_brand_is_decoded_as_avif() -> None:
    data = encode(Image.new("RGB", (40, 30)), "AVIF")
    general = data[:8] + b"mif1" + data[12:]
    assert decode_image(general).tobytes() == decode_image(data).tobytes()
    assert decode._list_formats(find_kind(general)) == ("AVIF",)
