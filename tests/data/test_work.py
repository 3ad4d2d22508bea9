"""Files that ask for more work than their bytes and pixels show, and files that ask for just enough."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from vitrieve.data import decode, work
from vitrieve.data.decode import (
    decode_image,
    find_note,
    get_scale,
    measure_image,
    open_described_picture,
    open_picture,
    read_date_taken,
    read_header,
)
from vitrieve.data.work import read_jpeg_layout
from vitrieve.errors import DecodeError, PictureTooLargeError

END = b"\xff\xd9"


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def draw_noise(width_px: int, height_px: int, seed: int = 0) -> Image.Image:
    """Draw a picture whose every pixel differs from its neighbors."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8))


def add_scans(data: bytes, num_scans: int) -> bytes:
    """Repeat the last scan of a progressive JPEG, which adds nothing to the picture."""
    last = data[data.rindex(b"\xff\xda") : -len(END)]
    return data[: -len(END)] + last * num_scans + END


def resize_header(data: bytes, width_px: int, height_px: int) -> bytes:
    """Give a JPEG another size in its frame."""
    frame = re.search(rb"\xff[\xc0\xc2]..\x08", data, re.DOTALL)
    assert frame is not None
    return data[: frame.end()] + struct.pack(">HH", height_px, width_px) + data[frame.end() + 4 :]


def add_chunks(kind: bytes, content: bytes, number: int) -> bytes:
    """Put chunks between the header of a PNG and its pixels."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    data = encode(Image.new("RGB", (4, 4)), "PNG")
    return data[:33] + chunk * number + data[33:]


def fail_to_decode(*_: object) -> None:
    raise AssertionError("pixels were decoded")


def test_jpeg_of_many_scans_is_refused_before_a_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    monkeypatch.setattr(decode, "_load", fail_to_decode)
    with pytest.raises(PictureTooLargeError, match="7700 x 7700 pixels in more than 18 scans"):
        decode_image(add_scans(resize_header(data, 7700, 7700), 300))
    with pytest.raises(PictureTooLargeError, match="more than 1,000 scans"):
        decode_image(add_scans(data, 1000))


def test_jpeg_of_usual_scans_is_decoded_and_bytes_beside_its_scans_are_none() -> None:
    data = encode(draw_noise(40, 30), "JPEG", progressive=True)
    assert read_jpeg_layout(data, max_scans=100, max_header_parts=100).num_scans == data.count(b"\xff\xda") == 10
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 4000) + b"\xff\xda" * 2000
    film = b"\xff\xda" * 2000
    assert decode_image(data[:2] + comment + data[2:] + film).tobytes() == decode_image(data).tobytes()
    assert decode_image(add_scans(data, 20)).size == (40, 30)


def test_layout_follows_restarts_fill_bytes_and_the_end() -> None:
    data = encode(draw_noise(64, 64), "JPEG", restart_marker_blocks=1)
    layout = read_jpeg_layout(data + data, max_scans=100, max_header_parts=1000)
    assert (layout.num_scans, layout.has_end, layout.width_px, layout.height_px) == (1, True, 64, 64)
    filled = data[:2] + b"\xff" * 50 + data[2:]
    assert read_jpeg_layout(filled, max_scans=9, max_header_parts=1000).num_header_parts == layout.num_header_parts + 50
    assert decode_image(filled).tobytes() == decode_image(data).tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff" * 10_000_000,
        b"\xff\xd8\xff\xfe\x00\x02" + b"\x00" * 10_000_000,
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 200_000,
        add_chunks(b"tEXt", b"", 200_000),
        add_chunks(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20)), 300),
        add_chunks(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)), 300),
        b"GIF89a\x04\0\x04\0\0\0\0!\xfe" + b"\x01a" * 100_000 + b"\0",
        b"GIF89a\x04\0\x04\0\0\0\0" + b"!\xfe\0" * 100_000,
        b"GIF89a\x04\0\x04\0\0\0\0" + b"\0" * 100_000,
        b"BM" + bytes(28) + struct.pack("<I", 1) + bytes(work.MAX_RUN_LENGTH_BYTES),
        b"RIFF\x20\0\0\0WEBP" + b"ANMF\1\0\0\0\0\0" * 100_000,
        b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(64),
        b"RIFF\x20\0\0\0WEBPVP8L\x40\0\0\0\x2f\xff\xff\xff\x0f" + bytes(64),
        b"RIFF\x20\0\0\0WEBPVP8 \x40\0\0\0\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(64),
        b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 273, 4, 1 << 20, 8) + bytes(100),
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 40) + bytes(100),
    ],
    ids=[
        "JPEG of fill bytes",
        "JPEG of nothing",
        "JPEG of comments",
        "PNG of texts",
        "PNG of profiles",
        "PNG of packed texts",
        "GIF comment in bits",
        "GIF of comments",
        "GIF of nothing",
        "BMP of runs",
        "WebP of chunks",
        "WebP of a large canvas",
        "lossless WebP of a large picture",
        "WebP of a large picture",
        "TIFF of strips",
        "TIFF of tags",
    ],
)
def test_files_of_many_parts_are_refused_before_pillow_opens_them(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_open_header", fail_to_decode)
    for use in (decode_image, read_header, measure_image):
        with pytest.raises(PictureTooLargeError):
            use(data)


def test_tiff_of_jpeg_counts_the_scans_of_its_strips() -> None:
    data = encode(Image.new("L", (64, 64)), "TIFF", compression="jpeg")
    assert decode_image(data).size == (64, 64)
    wide = data
    for tag in (256, 257):  # width and height
        wide = wide.replace(struct.pack("<HHII", tag, 3, 1, 64), struct.pack("<HHII", tag, 3, 1, 9000))
    with pytest.raises(PictureTooLargeError, match="scans"):
        decode_image(wide + b"\xff\xda" * 100)


def test_other_formats_are_never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", fail_to_decode)
    small = Image.new("RGB", (16, 16))
    files = [
        encode(small, name) for name in ("EPS", "ICO", "ICNS", "JPEG2000", "PDF", "PPM", "TGA", "PCX", "DDS", "SGI")
    ]
    files += [b"\xd7\xcd\xc6\x9a" + bytes(80), b"SIMPLE  =                    T" + b" " * 2850, b"8BPS\0\1" + bytes(99)]
    for data in files:
        with pytest.raises(DecodeError, match="accepted format"):
            decode_image(data)


def test_large_jpeg_of_one_scan_is_read_at_half_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (60, 41), (0, 0, 250))
    picture.paste((250, 0, 0), (40, 0, 60, 41))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown upright, 41 wide and 60 high, red at the bottom
    data = encode(picture, "JPEG", exif=exif, quality=95)
    progressive = encode(picture, "JPEG", progressive=True)
    for module in (decode, work):
        monkeypatch.setattr(module, "MAX_PIXELS", 2000)
    monkeypatch.setattr(decode, "MAX_REDUCED_PIXELS", 8000)
    with open_picture(data, max_pixels=2000) as reduced:
        assert (reduced.size, get_scale(reduced)) == ((21, 30), 2)
    assert measure_image(data) == (41, 60)
    red = decode_image(data, box=(0, 48, 41, 60), max_pixels=2000)
    assert red.size == (20, 6)  # halves are rounded to even
    assert np.abs(np.subtract(np.asarray(red), (250, 0, 0))).max() < 20
    with pytest.raises(PictureTooLargeError, match="more than 1 scans"):
        decode_image(progressive, max_pixels=2000)
    with pytest.raises(PictureTooLargeError):
        decode_image(encode(picture, "PNG"), max_pixels=2000)
    monkeypatch.setattr(decode, "MAX_REDUCED_PIXELS", 2400)
    with pytest.raises(PictureTooLargeError):
        decode_image(data, max_pixels=2000)


def test_jpeg_that_pillow_suspects_is_read_from_its_header() -> None:
    """Pillow refuses 200 megapixels, whatever the format allows."""
    assert measure_image(resize_header(encode(draw_noise(8, 8), "JPEG"), 16_384, 12_288)) == (16_384, 12_288)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"subsampling": 0}])
@pytest.mark.parametrize("seed", range(5))
def test_jpeg_without_its_end_is_accepted_with_a_note_and_truncated_pixels_are_not(
    seed: int, options: dict[str, object]
) -> None:
    data = encode(draw_noise(50, 37, seed), "JPEG", **options)
    assert find_note(data) is None
    assert decode_image(data[:-2]).tobytes() == decode_image(data).tobytes()
    assert find_note(data[:-2]) == decode.MISSING_END
    for num_bytes in (8, 30, 300, len(data) // 2):
        with pytest.raises(DecodeError, match="damaged"):
            decode_image(data[:-num_bytes])
    if options.get("progressive"):  # a scan that is missing leaves every pixel, but coarse
        with pytest.raises(DecodeError, match="truncated"):
            decode_image(data[: data.rindex(b"\xff\xda")])


def test_shortage_of_memory_and_own_faults_are_not_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(draw_noise(9, 9), "PNG")

    def run_out(*_: object) -> None:
        raise MemoryError

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    for name, fault, kind in (("_open_header", run_out, MemoryError), ("convert_to_rgb", fail, ZeroDivisionError)):
        with monkeypatch.context() as patch:
            patch.setattr(decode, name, fault)
            with pytest.raises(kind):
                decode_image(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_measure_image_agrees_with_decoding_and_decodes_nothing(
    image_format: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(draw_noise(30, 20), image_format, exif=exif)
    expected = decode_image(data).size
    monkeypatch.setattr(decode, "_load", fail_to_decode)
    assert measure_image(data) == expected


@pytest.mark.parametrize("where", ["nowhere", "before", "behind"])
def test_measure_image_decodes_a_png_only_where_it_may_say_its_orientation(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(draw_noise(30, 20), "PNG", **({} if where == "nowhere" else {"exif": exif}))
    if where == "behind":
        begin = data.index(b"eXIf") - 4
        end = begin + 12 + int.from_bytes(data[begin : begin + 4], "big")
        data = data[:begin] + data[end:-12] + data[begin:end] + data[-12:]
    assert measure_image(data) == decode_image(data).size == ((30, 20) if where == "nowhere" else (20, 30))
    if where == "nowhere":
        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail_to_decode)
        assert measure_image(data) == (30, 20)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "GIF", "BMP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("enough_px", [None, 40])
@pytest.mark.parametrize("date", ["", "2026:11:23 10:00:00", "2026:13:45"])
def test_described_picture_is_what_separate_readings_say(
    image_format: str, orientation: int, enough_px: int | None, date: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    if date:
        exif.get_ifd(0x8769)[0x9003] = exif[0x0132] = date
    data = encode(draw_noise(171, 90), image_format, exif=exif)
    whole = [data, data[:-2]] if image_format == "JPEG" else [data]
    for one in whole:
        with open_described_picture(one, enough_px=enough_px) as (picture, facts):
            pixels = np.asarray(picture).copy()
        with open_picture(one, enough_px=enough_px) as picture:
            np.testing.assert_array_equal(pixels, np.asarray(picture))
        assert (facts.width_px, facts.height_px) == measure_image(one)
        assert facts.date_taken == read_date_taken(one)
        assert facts.note == find_note(one)
    if date.endswith("00") and image_format in ("JPEG", "PNG", "TIFF", "WEBP"):
        assert facts.date_taken == "2026-11-23T10:00:00"
