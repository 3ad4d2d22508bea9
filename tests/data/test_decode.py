from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from tests.data.isobmff import Item, build_file
from vitrieve.data import decode
from vitrieve.data.color import convert_to_rgb
from vitrieve.data.decode import crop_to_box, decode_image, read_header, read_image, read_image_bytes
from vitrieve.data.records import ImageRecord
from vitrieve.errors import DecodeError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "GIF": {}, "BMP": {}, "TIFF": {}}
ORIENTATION = 0x0112


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def build_png(size: tuple[int, int], depth: int, color_type: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """Write a PNG that Pillow itself cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, 0))
    color_key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + color_key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def draw_corners() -> Image.Image:
    """Draw a 3 x 2 picture whose corners tell how it was turned: red at the top left, green at the top right."""
    image = Image.new("RGB", (3, 2), BLACK)
    image.putpixel((0, 0), RED)
    image.putpixel((2, 0), GREEN)
    image.putpixel((0, 1), BLUE)
    return image


def write_record(path: Path, image: Image.Image, box: tuple[float, float, float, float] | None = None) -> ImageRecord:
    image.save(path)
    return ImageRecord(image_id=path.name, path=path, label=0, split="test", box=box)


@pytest.mark.parametrize("image_format", LOSSLESS)
def test_decode_image_reads_the_accepted_formats(image_format: str) -> None:
    decoded = decode_image(encode(draw_corners(), image_format, **LOSSLESS[image_format]))
    assert decoded.mode == "RGB"
    assert np.array_equal(np.asarray(decoded), np.asarray(draw_corners()))


def test_decode_image_reads_jpeg_and_avif() -> None:
    grey = Image.new("RGB", (16, 16), (100, 100, 100))
    for image_format in ["JPEG", *(["AVIF"] if features.check("avif") else [])]:
        decoded = np.asarray(decode_image(encode(grey, image_format, quality=95)))
        assert np.abs(decoded.astype(int) - 100).max() <= 2, image_format


def test_decode_image_refuses_formats_outside_the_allow_list() -> None:
    for image_format in ("PPM", "ICO", "TGA", "PCX"):
        with pytest.raises(DecodeError, match="accepted format"):
            decode_image(encode(draw_corners(), image_format))
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"%PDF-1.7", b"GIF89", b"hello"):
        with pytest.raises(DecodeError):
            decode_image(data)


def test_decode_image_tells_what_heic_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(decode.importlib, "import_module", refuse)
    decode._list_formats.cache_clear()
    try:
        with pytest.raises(DecodeError, match="pillow-heif"):
            decode_image(build_file([Item(kind=b"hvc1")], b"heic"))
    finally:
        decode._list_formats.cache_clear()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_trap_exif_orientation_is_applied(orientation: int, image_format: str) -> None:
    upright = np.asarray(draw_corners())
    # What a camera stores for each orientation, so that turning it back gives the upright picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    decoded = decode_image(encode(image, image_format, exif=exif, **LOSSLESS[image_format]))
    assert np.array_equal(np.asarray(decoded), upright)


def test_trap_exif_orientation_is_not_applied_twice() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    once = decode_image(encode(draw_corners(), "PNG", exif=exif))
    assert once.size == (2, 3)
    assert np.array_equal(np.asarray(convert_to_rgb(once)), np.asarray(once))
    assert not once.info


def test_decode_image_ignores_damaged_exif() -> None:
    data = bytearray(encode(draw_corners(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffnonsense"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about the EXIF block
        assert decode_image(bytes(data)).size == (3, 2)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_trap_alpha_is_laid_on_white(mode: str, image_format: str) -> None:
    image = Image.new("RGBA", (3, 1))
    for column, alpha in enumerate((0, 128, 255)):
        image.putpixel((column, 0), (*BLACK, alpha))
    pixels = np.asarray(decode_image(encode(image.convert(mode), image_format)))
    assert pixels[0].tolist() == [[255, 255, 255], [127, 127, 127], [0, 0, 0]]


@pytest.mark.parametrize("mode", ["PA", "La", "RGBa"])
def test_trap_rare_alpha_modes_are_laid_on_white(mode: str) -> None:
    image = Image.new("LA" if mode == "La" else "RGBA", (1, 1))  # fully transparent black
    assert convert_to_rgb(image.convert(mode)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_trap_transparent_palette_is_laid_on_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    decoded = decode_image(encode(image, "PNG", transparency=transparency))
    assert [decoded.getpixel((0, 0)), decoded.getpixel((1, 0))] == [WHITE, BLUE]


def test_trap_palette_without_transparency_keeps_its_colors() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    for image_format in ("PNG", "GIF", "BMP", "TIFF"):
        decoded = decode_image(encode(image, image_format))
        assert [decoded.getpixel((0, 0)), decoded.getpixel((1, 0))] == [RED, BLUE], image_format


def test_trap_transparent_color_is_laid_on_white() -> None:
    rgb = build_png((2, 1), 8, 2, b"\0" + bytes([*RED, *BLUE]), struct.pack(">3H", *RED))
    grey = build_png((2, 1), 8, 0, b"\0" + bytes([7, 9]), struct.pack(">H", 7))
    bilevel = build_png((8, 1), 1, 0, b"\0\xf0", struct.pack(">H", 0))
    assert [decode_image(rgb).getpixel((column, 0)) for column in (0, 1)] == [WHITE, BLUE]
    assert [decode_image(grey).getpixel((column, 0)) for column in (0, 1)] == [WHITE, (9, 9, 9)]
    assert np.asarray(decode_image(bilevel)).min() == 255


@pytest.mark.parametrize("mode", ["1", "L"])
def test_trap_one_channel_becomes_grey(mode: str) -> None:
    decoded = decode_image(encode(Image.new(mode, (2, 2), 255), "PNG"))
    assert (decoded.mode, decoded.getpixel((0, 0))) == ("RGB", WHITE)


def test_trap_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for image_format in ("TIFF", "JPEG"):
        pixel = decode_image(encode(red, image_format)).getpixel((4, 4))
        assert np.abs(np.subtract(pixel, RED)).max() <= 2, image_format


def test_trap_ycbcr_and_lab_become_rgb() -> None:
    ycbcr = Image.new("RGB", (4, 4), RED).convert("YCbCr")
    assert np.abs(np.subtract(decode_image(encode(ycbcr, "TIFF")).getpixel((1, 1)), RED)).max() <= 2
    assert decode_image(encode(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF")).mode == "RGB"


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_trap_16_bit_grey_is_scaled_not_clipped(image_format: str) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode_image(encode(Image.fromarray(values), image_format)))
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert np.array_equal(decoded[..., 0], decoded[..., 2])


def test_trap_16_bit_big_endian_and_transparent_grey() -> None:
    big_endian = np.array([[0, 65535]], dtype=">u2")
    assert np.asarray(convert_to_rgb(Image.fromarray(big_endian)))[0, :, 0].tolist() == [0, 255]
    data = build_png((2, 1), 16, 0, b"\0" + struct.pack(">2H", 300, 514), struct.pack(">H", 300))
    assert np.asarray(decode_image(data))[0, :, 0].tolist() == [255, 2]


def test_trap_16_bit_color_is_scaled() -> None:
    data = build_png((2, 1), 16, 2, b"\0" + struct.pack(">6H", 65535, 0, 0, 0, 0x8000, 65535))
    assert np.asarray(decode_image(data))[0].tolist() == [[255, 0, 0], [0, 128, 255]]


def test_trap_unranged_grey_is_stretched() -> None:
    values = np.array([[-1.0, 0.0, 1.0, np.nan, np.inf]], dtype=np.float32)
    assert np.asarray(decode_image(encode(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 128, 255, 0, 0]
    integers = np.array([[-100_000, 0, 100_000]], dtype=np.int32)
    assert np.asarray(convert_to_rgb(Image.fromarray(integers)))[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_trap_unranged_grey_without_range_is_black(value: float) -> None:
    values = np.full((2, 2), value, dtype=np.float32)
    assert np.asarray(convert_to_rgb(Image.fromarray(values))).max() == 0


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_trap_animated_gives_the_first_picture(image_format: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, GREEN, BLUE)]
    options = LOSSLESS[image_format]
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data).getpixel((0, 0)) == RED


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "AVIF"])
def test_pictures_behind_the_first_are_not_decoded(image_format: str) -> None:
    """They are nonsense here, which a decoder that looks at them finds out."""
    noise = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)) for seed in range(3)]
    options = LOSSLESS.get(image_format, {})
    data = encode(noise[0], image_format, save_all=True, append_images=noise[1:], **options)
    start, end = len(data) * 5 // 6, len(data) - 64
    damaged = data[:start] + bytes(end - start) + data[end:]
    assert len(decode_frames(data)) == 3
    assert decode_frames(damaged) != decode_frames(data)
    assert decode_image(damaged).tobytes() == decode_image(data).tobytes()


def decode_frames(data: bytes) -> list[bytes]:
    """Decode all pictures of a file, up to the first that cannot be decoded."""
    frames: list[bytes] = []
    with Image.open(io.BytesIO(data)) as opened, contextlib.suppress(OSError, SyntaxError, EOFError, RuntimeError):
        for number in range(opened.n_frames):
            opened.seek(number)
            frames.append(opened.convert("RGB").tobytes())
    return frames


def test_trap_zero_bytes_and_no_pixels_are_errors() -> None:
    with pytest.raises(DecodeError, match="empty"):
        decode_image(b"")
    gif = bytearray(encode(Image.new("L", (3, 2)), "GIF"))
    gif[6:10] = bytes(4)
    gif[gif.index(b",") + 5 : gif.index(b",") + 9] = bytes(4)
    with pytest.raises(DecodeError):
        decode_image(bytes(gif))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_trap_truncated_is_an_error_not_a_half_grey_picture(image_format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encode(noise, image_format)
    for num_bytes in (4, 20, len(data) // 2, len(data) * 9 // 10):
        with pytest.raises(DecodeError):
            decode_image(data[:num_bytes])


def test_trap_wrong_extension_is_decoded_by_content(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encode(draw_corners(), "PNG"))
    record = ImageRecord(image_id="photo.jpg", path=tmp_path / "photo.jpg", label=0, split="test")
    assert read_image(record).getpixel((0, 0)) == RED


def test_trap_decompression_bomb_is_refused_from_its_header() -> None:
    huge = build_png((40_000, 40_000), 8, 2, b"\0")  # 4.8 GB of pixels in 70 bytes
    with pytest.raises(DecodeError, match="at most 89,478,485"):
        decode_image(huge)
    with pytest.raises(DecodeError, match="12 x 10 pixels; at most 100"):
        decode_image(build_png((12, 10), 8, 2, b"\0"), max_pixels=100)
    assert decode_image(encode(Image.new("RGB", (10, 10)), "PNG"), max_pixels=100).size == (10, 10)


@pytest.mark.filterwarnings("default")
def test_trap_decompression_bomb_limit_holds_where_pillow_only_warns() -> None:
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(DecodeError, match="9500 x 9500"):
        decode_image(build_png((9_500, 9_500), 8, 2, b"\0"))


@pytest.fixture(scope="module")
def small_files() -> list[bytes]:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    files = [encode(noise, image_format) for image_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    files += [encode(noise.convert("RGBA"), "PNG", exif=exif), encode(noise.convert("CMYK"), "JPEG")]
    files += [encode(noise.convert("P"), "PNG", transparency=3), encode(noise, "TIFF", compression="tiff_lzw")]
    return files


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_trap_malformed_bytes_raise_nothing_but_decode_error(small_files: list[bytes], data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(small_files)))
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, min(len(content) - 1, 300)))
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(DecodeError):
        # A changed header may ask for many pixels: legal, but slow in a test.
        decoded = decode_image(bytes(content), max_pixels=1_000_000)
        assert decoded.mode == "RGB"
        assert min(decoded.size) >= 1


def test_trap_pillow_globals_are_not_changed() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:])
    decode_image(encode(draw_corners(), "PNG"))
    with pytest.raises(DecodeError):
        decode_image(encode(draw_corners(), "PNG")[:50])
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, warnings.filters[:]) == before


def test_decode_image_gives_the_same_in_many_threads() -> None:
    files = [encode(Image.new("RGBA", (20, 10), (*RED, alpha)), "PNG") for alpha in range(0, 256, 5)]
    expected = [decode_image(data).tobytes() for data in files]
    barrier = threading.Barrier(4)

    def decode_all(_: int) -> list[bytes]:
        barrier.wait()
        return [decode_image(data).tobytes() for data in files]

    with ThreadPoolExecutor(4) as pool:
        assert all(found == expected for found in pool.map(decode_all, range(4)))


def test_convert_to_rgb_leaves_its_input_alone() -> None:
    image = Image.new("RGBA", (2, 2), (*RED, 0))
    converted = convert_to_rgb(image)
    assert (image.mode, image.getpixel((0, 0)), converted.getpixel((0, 0))) == ("RGBA", (*RED, 0), WHITE)


def test_read_header_tells_the_stored_layout() -> None:
    header = read_header(encode(Image.new("LA", (5, 4)), "PNG"))
    assert (header.format, header.mode, header.width_px, header.height_px) == ("PNG", "LA", 5, 4)
    with pytest.raises(DecodeError, match="empty"):
        read_header(b"")


def test_read_image_crops_to_the_box_after_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # shown 2 wide and 3 high, red at the top right
    path = tmp_path / "turned.png"
    path.write_bytes(encode(draw_corners(), "PNG", exif=exif))
    record = ImageRecord(image_id="turned.png", path=path, label=0, split="test", box=(1, 0, 2, 1))
    image = read_image(record)
    assert (image.size, image.getpixel((0, 0))) == ((1, 1), RED)


def test_crop_to_box_rounds_and_stays_inside() -> None:
    image = Image.new("RGB", (10, 8))
    assert crop_to_box(image, None) is image
    assert crop_to_box(image, (0.4, 1.6, 9.6, 7.0)).size == (10, 5)
    assert crop_to_box(image, (-5, -5, 100, 100)).size == (10, 8)
    for box in [(10, 0, 12, 8), (3, 3, 3.2, 9), (-9, 0, 0, 8)]:
        with pytest.raises(DecodeError, match="no pixel"):
            crop_to_box(image, box)


def test_read_image_bytes_gives_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeError, match="No such file"):
        read_image_bytes(tmp_path / "absent.jpg")
    with pytest.raises(DecodeError, match="regular file"):
        read_image_bytes(tmp_path)
    with pytest.raises(DecodeError, match="null"):
        read_image_bytes(tmp_path / "nul\0.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(DecodeError, match="regular file"):
        read_image_bytes(tmp_path / "pipe.jpg")
    monkeypatch.setattr(decode, "MAX_FILE_BYTES", 3)
    (tmp_path / "large.jpg").write_bytes(b"1234")
    with pytest.raises(DecodeError, match="4 bytes; at most 3"):
        read_image_bytes(tmp_path / "large.jpg")


def test_decode_image_keeps_every_pixel_of_a_photograph(tmp_path: Path) -> None:
    """No reduced-scale decoding: the picture is the one that Pillow gives."""
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (301, 203, 3), dtype=np.uint8))
    record = write_record(tmp_path / "photo.jpg", noise)
    with Image.open(record.path) as opened:
        assert np.array_equal(np.asarray(read_image(record)), np.asarray(opened.convert("RGB")))
