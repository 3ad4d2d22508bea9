"""RAW files: the preview in them is the picture, within the bounds of every other."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.data.dng import build_dng
from vitrieve.data import raw
from vitrieve.data.decode import decode_image, measure_image, read_header
from vitrieve.data.raw import is_raw, take_preview
from vitrieve.data.sources import read_collection
from vitrieve.errors import DecodeError, PictureTooLargeError


def make_picture() -> Image.Image:
    """A red picture of 64 x 48 pixels with a blue upper left quarter."""
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    picture.paste((0, 0, 255), (0, 0, 32, 24))
    return picture


def save(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def without_rawpy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    raw.has_rawpy.cache_clear()
    monkeypatch.setattr(raw.importlib.util, "find_spec", lambda name: None)
    assert not raw.has_rawpy()
    yield
    raw.has_rawpy.cache_clear()


def test_the_preview_of_a_raw_file_is_the_picture() -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    jpeg = save(make_picture())
    assert decode_image(build_dng(jpeg)).tobytes() == decode_image(jpeg).tobytes()
    assert read_header(build_dng(jpeg)).format == "JPEG"


@pytest.mark.parametrize(
    ("orientation", "size", "blue"), [(1, (64, 48), (5, 5)), (3, (64, 48), (60, 40)), (6, (48, 64), (40, 5))]
)
@pytest.mark.parametrize("has_exif", [False, True])
def test_a_raw_file_is_upright(orientation: int, size: tuple[int, int], blue: tuple[int, int], has_exif: bool) -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    exif = Image.Exif()
    exif[271] = "A maker"  # a preview with an EXIF block that says nothing of its orientation
    data = build_dng(save(make_picture(), **({"exif": exif.tobytes()} if has_exif else {})), orientation=orientation)
    picture = decode_image(data)
    assert picture.size == measure_image(data) == size
    red, _, blueness = picture.getpixel(blue)
    assert blueness > 200 > 100 > red


@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))])
def test_a_preview_that_is_not_compressed_is_the_picture(orientation: int, size: tuple[int, int]) -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    picture = make_picture()
    data = build_dng(picture.tobytes(), orientation=orientation, pixels_size=picture.size)
    upright = picture.transpose(turns[orientation]) if orientation in turns else picture
    assert decode_image(data).tobytes() == upright.tobytes()
    assert decode_image(data).size == measure_image(data) == size


@pytest.mark.parametrize(("size", "error"), [((8000, 8000), DecodeError), ((13_000, 13_000), PictureTooLargeError)])
def test_a_preview_that_only_announces_its_pixels_is_refused(size: tuple[int, int], error: type[DecodeError]) -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    with pytest.raises(error, match=r"larger than the file|13000 x 13000 pixels"):
        decode_image(build_dng(make_picture().tobytes(), pixels_size=size))


def test_libraw_works_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    rawpy = pytest.importorskip("rawpy", reason="needs rawpy")
    data = build_dng(save(make_picture()))
    read, held = rawpy.imread, []

    def note_and_read(file: io.BytesIO) -> object:
        held.append(raw.BUDGET.num_held)
        return read(file)

    monkeypatch.setattr(rawpy, "imread", note_and_read)
    decode_image(data)
    assert held == [len(data)]
    assert raw.BUDGET.num_held == 0


def test_what_a_raw_file_is_its_content_decides() -> None:
    jpeg = save(make_picture())
    assert is_raw(build_dng(jpeg))
    assert is_raw(build_dng(None))
    for kind in ("JPEG", "TIFF", "PNG"):
        data = save(make_picture(), kind)
        assert not is_raw(data)
        assert take_preview(data) is data
    reduced = save(make_picture(), "TIFF", tiffinfo={254: 1})  # a page in small, without directories below it
    assert not is_raw(reduced)
    for beginning in (b"FUJIFILMCCD-RAW 0201", b"IIRO\x08\0\0\0", b"\0\0\0\x18ftypcrx \0\0\0\x01"):
        assert is_raw(beginning)


def test_a_raw_file_without_a_preview_says_so() -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    with pytest.raises(DecodeError, match="holds no preview"):
        decode_image(build_dng(None))


def test_a_damaged_raw_file_is_one_reason() -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    whole = build_dng(save(make_picture()))
    for length in range(60, len(whole), 997):
        with contextlib.suppress(DecodeError):  # the preview stands first, and may be whole
            assert decode_image(whole[:length]).size == (64, 48)
    for start in range(8, 400, 3):
        damaged = bytearray(whole)
        damaged[start] ^= 0xFF
        with contextlib.suppress(DecodeError):
            decode_image(bytes(damaged))
    with pytest.raises(DecodeError, match="damaged or of an unknown camera"):
        decode_image(b"FUJIFILMCCD-RAW 0201" + bytes(200))


def test_the_preview_has_the_bounds_of_every_picture() -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    jpeg = bytearray(save(make_picture()))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = b"\x4e\x20\x4e\x20"  # 20,000 x 20,000 pixels
    with pytest.raises(PictureTooLargeError):
        decode_image(build_dng(bytes(jpeg)))


def test_a_folder_of_raw_files(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="needs rawpy")
    (tmp_path / "IMG_1.DNG").write_bytes(build_dng(save(make_picture())))
    assert [record.image_id for record in read_collection(str(tmp_path)).records] == ["IMG_1.DNG"]


def test_without_rawpy_a_raw_file_names_what_it_needs(without_rawpy: None, tmp_path: Path) -> None:
    with pytest.raises(DecodeError, match=r"pip install 'vitrieve\[raw\]'"):
        decode_image(build_dng(save(make_picture())))
    (tmp_path / "IMG_1.DNG").write_bytes(build_dng(save(make_picture())))
    (tmp_path / "a.jpg").write_bytes(save(make_picture()))
    dataset = read_collection(str(tmp_path))
    assert len(dataset.records) == 1
    assert any("1 file is RAW and left out; pip install 'vitrieve[raw]'" in note for note in dataset.notes)
