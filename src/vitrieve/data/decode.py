"""Bytes to an RGB picture: safely, by one rule for every kind of file, or an error with the reason.

The content decides the format, never the file's name. The rule:

- Formats: JPEG, PNG, WebP, GIF, BMP, TIFF; AVIF where this Pillow was built with it; HEIC where the package
  ``pillow-heif`` is installed. Nothing else is tried.
- RAW files of cameras: the preview in them (``raw.py``).
- Size: more than ``MAX_PIXELS`` pixels in the header is refused before any pixel is decoded, but a JPEG of one scan
  is read at half its width and height up to ``MAX_REDUCED_PIXELS``. Boxes and sizes are always those of the file.
- Scale: whoever makes a picture small says what side is enough; a JPEG without a box is then read at a half, a quarter
  or an eighth of its width and height, as long as its short side has that, for which its format needs not all pixels.
- Work: what ``work.py`` counts is refused before any pixel is decoded; all pictures that are decoded at the same time
  have at most ``MAX_PIXELS`` pixels together (``BUDGET``), and the next one waits.
- Several pictures in one file (animated GIF, WebP, PNG; multi-page TIFF; MPO): the first.
- Whatever the layout of its pixels, it becomes RGB, and upright (``color.py``).
- A damaged or truncated file is an error, never a half-grey picture. A JPEG that lacks its end marker alone is good.

No state of Pillow is changed, so threads may decode at the same time.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from PIL import ExifTags, Image, ImageFile, JpegImagePlugin, UnidentifiedImageError, features

from vitrieve.data.color import NUM_ROWS_AT_ONCE, convert_to_rgb, read_orientation
from vitrieve.data.isobmff import HEAD_BYTES, Kind, find_kind
from vitrieve.data.parts import Part, PartFile, open_part, parse_part
from vitrieve.data.raw import RAW_SUFFIXES, has_rawpy, take_preview
from vitrieve.data.records import ImageRecord
from vitrieve.data.work import (
    BUDGET,
    END_MARKER,
    MAX_PIXELS,
    MAX_REDUCED_PIXELS,
    MAX_SCANS,
    check_pixels,
    check_work,
    read_jpeg_layout,
)
from vitrieve.errors import ConfigError, DecodeError, PictureTooLargeError
from vitrieve.quoting import quote_name
from vitrieve.systems import NO_WAIT, READ

Box = tuple[float, float, float, float]
MISSING_END = "the JPEG lacks its end marker; every pixel is there"
"""Note about such a file."""
MAX_FILE_BYTES = 1 << 29
"""The limit is more than an uncompressed RGBA picture of MAX_PIXELS takes; a larger file is not read into memory."""
_ALWAYS_ACCEPTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_SUFFIXES = (
    *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "gif", "bmp", "tif", "tiff"),
    *("avif", "heic", "heif", "hif"),  # cameras of Canon, Fujifilm and Sony write HIF
)
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES)
"""Files that a reader lists as images, beside RAW files. Whether they are, their content decides."""

_JPEG_START = b"\xff\xd8"
_OTHER_TAILS = (b"\x55" * 64, b"\xfe" * 64, b"\xd3\x4b\x99" * 22)
"""Data of a scan, one of which would show in the pixels of a JPEG that is cut short."""
_PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Names of what may tell the orientation of a PNG, also behind the pixels, where Pillow looks when it has them all."""
_SCALE = "pixels of the file in a pixel"
_SCALES = (8, 4, 2)
"""By what a JPEG can divide width and height, beside the numbers between, which Pillow does not ask for."""
MEMORY_REASON = "the memory did not suffice to decode it"
"""Why there is no picture when ``MemoryError`` was raised; another attempt may succeed."""


def list_image_suffixes() -> frozenset[str]:
    """List the suffixes, in lower case, of the files that a reader lists as images here."""
    return IMAGE_SUFFIXES.union(RAW_SUFFIXES) if has_rawpy() else IMAGE_SUFFIXES


def list_formats() -> list[str]:
    """List the formats that can be read here, as people call them."""
    extras = {"AVIF": _list_formats("avif"), "HEIC": _list_formats("heic"), "RAW": has_rawpy()}
    return ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", *(name for name, is_there in extras.items() if is_there)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """What a file says about itself before its pixels are decoded.

    Attributes:
        format: Pillow's name of the format, for example ``JPEG``.
        mode: Pillow's name of the pixel layout, for example ``RGB`` or ``I;16``.
        width_px: Stored width, before EXIF orientation.
        height_px: Stored height, before EXIF orientation.
    """

    format: str
    mode: str
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureFacts:
    """What a file says beside its pixels.

    Attributes:
        width_px: Width of the upright picture, in pixels of the file.
        height_px: Height of the same.
        date_taken: As ``read_date_taken`` says.
        note: As ``find_note`` says.
    """

    width_px: int
    height_px: int
    date_taken: str | None
    note: str | None


def read_image(record: ImageRecord) -> Image.Image:
    """Read, decode and crop the image of a record.

    Args:
        record: Its ``path`` is read; its ``box``, if any, is cut out after EXIF orientation.

    Returns:
        An RGB picture of its own, at least 1 x 1 pixels.

    Raises:
        DecodeError: The file cannot be read or decoded, or the box lies outside the picture. The message is
            the reason alone; who reports it adds the ``image_id``.
    """
    return decode_image(read_image_bytes(record.path), box=record.box)


def read_image_bytes(path: Path) -> bytes:
    """Read a whole image file.

    Raises:
        DecodeError: No such file, not a regular file (a pipe would block), too large, or unreadable.
    """
    with open_image_file(path) as file:
        return read_open_file(file)


def read_open_file(file: BinaryIO) -> bytes:
    """Read what ``open_image_file`` has opened whole.

    Raises:
        DecodeError: Too large, or unreadable.
    """
    try:
        data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DecodeError(f"the file cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_FILE_BYTES:  # it has grown since its size was looked at
        raise DecodeError(f"the file has more than {MAX_FILE_BYTES:,} bytes, which are all that is read")
    return data


def open_image_file(path: Path) -> BinaryIO:
    """Open a file once, and check what was opened: between a look at a path and its use, the path may change.

    Returns:
        The file, for reading; the caller closes it.

    Raises:
        DecodeError: No such file, not a regular file (a pipe would block), too large, or unreadable.
    """
    try:
        # Without NO_WAIT the opening itself waits, where the path is a pipe that nobody writes to.
        descriptor = os.open(path, READ | NO_WAIT)
    except OSError as error:
        part = parse_part(Path(path))
        if part is not None:
            return _open_part(part)
        raise DecodeError(f"the file cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DecodeError(f"the path is not valid: {error}") from error  # a NUL character in it
    status = os.fstat(descriptor)
    problem = ""
    if not stat.S_ISREG(status.st_mode):
        problem = "not a regular file"
    elif status.st_size > MAX_FILE_BYTES:
        problem = f"the file has {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read"
    if problem:
        os.close(descriptor)
        raise DecodeError(problem)
    return os.fdopen(descriptor, "rb")


def _open_part(part: Part) -> BinaryIO:
    if part.length > MAX_FILE_BYTES:
        raise DecodeError(f"the picture has {part.length:,} bytes; at most {MAX_FILE_BYTES:,} are read")
    return cast(BinaryIO, open_part(part))


def open_file_to_send(path: Path) -> BinaryIO:
    """Open a picture as ``open_image_file`` does, with a descriptor that leads to nothing else.

    Of a picture in a shard the bytes are copied into a file without a name, as its descriptor is that of the shard.

    Raises:
        DecodeError: As ``open_image_file``.
        OSError: There is no room for the copy.
    """
    file = open_image_file(path)
    if not isinstance(file, PartFile):
        return file
    with file:
        data = read_open_file(file)
    with tempfile.TemporaryFile(buffering=0) as copy:
        copy.write(data)
        copy.seek(0)
        return os.fdopen(os.dup(copy.fileno()), "rb")


def decode_image(data: bytes, *, box: Box | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Turn the bytes of an image file into an RGB picture, by the rule of this module.

    Args:
        data: The whole file.
        box: The region to cut out, in pixels of the upright picture as the file says its size; None for all of it.
        max_pixels: Largest accepted width times height, above which only a JPEG is read, at half its size.

    Returns:
        A new RGB picture with EXIF orientation applied, at least 1 x 1 pixels.

    Raises:
        PictureTooLargeError: More pixels or work than is spent on a picture.
        DecodeError: Empty, of another format, truncated or damaged, or no pixel in the box; the message is the reason.
        MemoryError: The memory does not suffice now, which says nothing about the file.
    """
    with open_picture(data, box=box, max_pixels=max_pixels) as picture:
        return picture


@contextlib.contextmanager
def open_picture(
    data: bytes, *, box: Box | None = None, max_pixels: int = MAX_PIXELS, enough_px: int | None = None
) -> Iterator[Image.Image]:
    """Decode like ``decode_image``, and let the picture count in ``BUDGET`` until the block is left.

    Whoever makes the picture small does so inside the block, and decodes no second picture there.

    Args:
        data: As for ``decode_image``.
        box: As for ``decode_image``.
        max_pixels: As for ``decode_image``.
        enough_px: Short side from which the picture is large enough, as ``find_enough_px`` says; None: its own size.

    Yields:
        The picture; the caller keeps no reference to it.
    """
    with _open_rgb(take_preview(data), box, max_pixels, enough_px) as (_, _, rgb):
        yield crop_to_box(rgb, box)


@contextlib.contextmanager
def open_described_picture(
    data: bytes, *, box: Box | None = None, enough_px: int | None = None
) -> Iterator[tuple[Image.Image, PictureFacts]]:
    """Decode like ``open_picture``, and say of the same opening what else the file tells.

    Args:
        data: As for ``decode_image``.
        box: As for ``decode_image``.
        enough_px: As for ``open_picture``.

    Yields:
        The picture, to which the caller keeps no reference, and what ``measure_image``, ``read_date_taken`` and
        ``find_note`` say of the file.
    """
    preview = take_preview(data)
    with _open_rgb(preview, box, MAX_PIXELS, enough_px) as (image, (width_px, height_px), rgb):
        if get_scale(rgb) == 1:
            width_px, height_px = rgb.size  # upright
        elif read_orientation(image) >= 5:
            width_px, height_px = height_px, width_px
        date_taken = _read_date(image, data) if preview is data else read_date_taken(data)
        facts = PictureFacts(width_px=width_px, height_px=height_px, date_taken=date_taken, note=find_note(data))
        yield crop_to_box(rgb, box), facts


@contextlib.contextmanager
def _open_rgb(
    data: bytes, box: Box | None, max_pixels: int, enough_px: int | None
) -> Iterator[tuple[ImageFile.ImageFile, tuple[int, int], Image.Image]]:
    """Open and decode, within the budget.

    Yields:
        What was opened, its stored width and height, and the whole picture as RGB, upright.
    """
    # The stored size counts of a picture that is read at half its size, too.
    with _open_image(data, max_pixels) as (image, num_pixels), BUDGET.hold(num_pixels):
        stored_size = image.size
        scale = _choose_scale(image, max_pixels, enough_px if box is None else None)
        _reduce(image, scale)
        loaded = _load(image, data)
        try:
            rgb = convert_to_rgb(loaded)
        except OSError as error:
            raise DecodeError(f"the file is damaged: {error}") from error
        if scale > 1:
            rgb.info[_SCALE] = scale
        yield loaded, stored_size, rgb


def describe_failure(error: DecodeError | MemoryError) -> str:
    """Return the reason why an image has no picture, for a list of bad images."""
    return MEMORY_REASON if isinstance(error, MemoryError) else str(error)


def get_scale(picture: Image.Image) -> float:
    """Return how many pixels of its file stand side by side in a pixel of a decoded picture: 1, 2, 4 or 8."""
    return float(picture.info.get(_SCALE, 1))


def measure_image(data: bytes) -> tuple[int, int]:
    """Return width and height after EXIF orientation, in pixels of the file, without decoding any.

    Raises:
        DecodeError: As ``decode_image``, as far as the header shows it.
    """
    data = take_preview(data)
    with _open_image(data, MAX_PIXELS) as (image, _):
        width_px, height_px = image.size
        # TIFF says its upright size when it is opened. Pillow decodes a whole PNG to find its orientation.
        is_upright = image.format == "TIFF" or (
            image.format == "PNG" and not any(name in data for name in _PNG_ORIENTATIONS)
        )
        is_lying = not is_upright and read_orientation(image) >= 5
        return (height_px, width_px) if is_lying else (width_px, height_px)


def find_note(data: bytes) -> str | None:
    """Say what is odd about a picture that can be decoded; None where nothing is."""
    if data[:2] != _JPEG_START:
        return None
    layout = read_jpeg_layout(data, max_scans=MAX_SCANS, max_header_parts=len(data))
    return None if layout.has_end else MISSING_END


def read_header(data: bytes) -> ImageHeader:
    """Read format, mode and stored size without decoding pixels.

    Raises:
        DecodeError: As ``decode_image``, as far as the header shows it.
    """
    with _open_image(take_preview(data), MAX_PIXELS) as (image, _):
        width_px, height_px = image.size
        return ImageHeader(format=image.format or "unknown", mode=image.mode, width_px=width_px, height_px=height_px)


def has_several_pictures(data: bytes) -> bool:
    """Say whether a file is an animation or has pages: what is read of it, its first picture, is not the whole of it.

    The further pictures of an MPO, which are views of the first, do not count.

    Raises:
        DecodeError: As ``decode_image``, as far as the header shows it.
    """
    data = take_preview(data)
    with _open_image(data, MAX_PIXELS) as (image, _), _explained(data):
        return bool(getattr(image, "is_animated", False))


def read_date_taken(data: bytes) -> str | None:
    """Read from its EXIF block when a picture was taken, by the camera's clock, as text that sorts by time.

    Args:
        data: The whole file.

    Returns:
        For example ``2026-11-23T10:00:00``; None where the file does not say it, or says nonsense.
    """
    try:
        with _open_image(data, MAX_PIXELS) as (image, _):
            return _read_date(image, data)
    except DecodeError:
        return None


def _read_date(image: ImageFile.ImageFile, data: bytes) -> str | None:
    try:
        with _explained(data):
            exif = image.getexif()
            details = exif.get_ifd(ExifTags.IFD.Exif)
            texts = (details.get(ExifTags.Base.DateTimeOriginal), details.get(ExifTags.Base.DateTimeDigitized))
            text = next((one for one in (*texts, exif.get(ExifTags.Base.DateTime)) if one), "")
            return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
    except ValueError:  # no such date, or the DecodeError of a damaged block, whose pixels may be good nevertheless
        return None


def crop_to_box(image: Image.Image, box: Box | None) -> Image.Image:
    """Cut ``(x_1, y_1, x_2, y_2)``, rounded to whole pixels and limited to the picture; None is the whole picture.

    The numbers are pixels of the file where the picture was read at half its size.

    Raises:
        DecodeError: No pixel of the picture lies inside the box.
    """
    if box is None:
        return image
    scale = get_scale(image)
    x_1, y_1, x_2, y_2 = (round(side / scale) for side in box)
    inside = (max(x_1, 0), max(y_1, 0), min(x_2, image.width), min(y_2, image.height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DecodeError(f"the box {box} holds no pixel of the picture ({image.width} x {image.height})")
    return image.crop(inside)


@contextlib.contextmanager
def _open_image(data: bytes, max_pixels: int) -> Iterator[tuple[ImageFile.ImageFile, int]]:
    """Open the header, after a look at the work that the file asks for.

    What is raised in the block stays as it is: our own faults are not the file's.

    Yields:
        The opened picture, and the number of pixels that decoding it works on.
    """
    if not data:
        raise DecodeError("the file is empty (0 bytes)")
    num_coded_pixels = check_work(data)
    with _explained(data, max_pixels):
        image = _open_header(data)
    with image:
        if min(image.size) < 1:
            raise DecodeError(f"the picture has no pixels ({image.width} x {image.height})")
        # check_work has seen to it that a JPEG larger than MAX_PIXELS has one scan.
        is_reducible = max_pixels == MAX_PIXELS and image.format == "JPEG"
        check_pixels(*image.size, MAX_REDUCED_PIXELS if is_reducible else max_pixels)
        yield image, max(image.width * image.height, num_coded_pixels)


def _open_header(data: bytes) -> ImageFile.ImageFile:
    if data[:2] == _JPEG_START:
        # Not by Image.open: it would look for more pictures (MPO), and warn of a size that is read at half.
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=_list_formats(find_kind(data[:HEAD_BYTES])))


@contextlib.contextmanager
def _explained(data: bytes, max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Turn whatever Pillow raises in the block into a ``DecodeError``.

    Malformed files raise far more than ``OSError`` inside Pillow (SyntaxError, KeyError, struct.error, OverflowError),
    so every exception is taken as a statement about the file, but for a shortage of memory. The block holds calls of
    Pillow alone.
    """
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise DecodeError(_explain_unidentified(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureTooLargeError(f"the picture has too many pixels; at most {max_pixels:,} are decoded") from None
    except Exception as error:
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise DecodeError(f"the file is damaged: {kind}{error}") from error


def _choose_scale(image: ImageFile.ImageFile, max_pixels: int, enough_px: int | None) -> int:
    """Choose by what width and height are divided: 2 where the picture is too large, more where that is enough."""
    is_too_large = image.width * image.height > max_pixels
    if enough_px is not None and image.format == "JPEG":
        for scale in _SCALES:
            if min(image.size) >= scale * enough_px:
                return scale
    return 2 if is_too_large else 1


def _reduce(image: ImageFile.ImageFile, scale: int) -> None:
    """Ask for a part of the width and height, and note it."""
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
        image.info[_SCALE] = scale


def _load(image: ImageFile.ImageFile, data: bytes) -> ImageFile.ImageFile:
    """Decode the pixels, those of a JPEG that lacks only its end marker too."""
    try:
        with _explained(data):
            image.load()
        return image
    except DecodeError:
        if data[:2] != _JPEG_START:
            raise
        completed = _complete(data, int(get_scale(image)))
        if completed is None:
            raise
        return completed


def _complete(data: bytes, scale: int) -> ImageFile.ImageFile | None:
    """Decode a JPEG that lacks its end marker; None unless its pixels are the same whatever would follow."""
    layout = read_jpeg_layout(data, max_scans=MAX_SCANS, max_header_parts=len(data))
    if layout.has_end or not layout.is_told_completely:
        return None
    try:
        first = _load_with_tail(data, b"", scale)
        is_whole = all(_is_equal(first, _load_with_tail(data, tail, scale)) for tail in _OTHER_TAILS)
    except DecodeError:
        return None
    return first if is_whole else None


def _load_with_tail(data: bytes, tail: bytes, scale: int) -> ImageFile.ImageFile:
    with _explained(data):
        image = _open_header(data + tail + END_MARKER)
        _reduce(image, scale)
        image.load()
    return image


def _is_equal(one: Image.Image, other: Image.Image) -> bool:
    """Compare the pixels of two pictures of one size and mode, without a copy of all of them."""
    bands = (
        (0, top, one.width, min(top + NUM_ROWS_AT_ONCE, one.height)) for top in range(0, one.height, NUM_ROWS_AT_ONCE)
    )
    return all(one.crop(band).tobytes() == other.crop(band).tobytes() for band in bands)


@functools.cache
def _list_formats(kind: Kind | None) -> tuple[str, ...]:
    """List Pillow's names of the formats that a file of a kind may have; none where its decoder is not here.

    The package for HEIC registers its reader with Pillow once, when the first such file comes.
    """
    if kind is None:
        return _ALWAYS_ACCEPTED
    if kind == "avif":
        return ("AVIF",) if features.check("avif") else ()
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return ()
    return ("HEIF",)


def _explain_unidentified(data: bytes) -> str:
    kind = find_kind(data[:HEAD_BYTES])
    if kind == "heic" and not _list_formats(kind):
        return "HEIC pictures need the package pillow-heif (pip install pillow-heif)"
    if kind == "avif" and not _list_formats(kind):
        return "AVIF pictures need a Pillow that was built with libavif (pip install --upgrade pillow)"
    accepted = ", ".join(_ALWAYS_ACCEPTED + _list_formats("avif"))
    return f"no readable picture of an accepted format ({accepted}); the content decides, not the file's name"


Picture = str | Path | bytes | Image.Image
"""A path, the bytes of an image file, or a Pillow picture."""
JPEG_QUALITY = 85


@contextmanager
def open_any_picture(
    picture: Picture, name: str, *, box: Box | None = None, enough_px: int | None = None
) -> Iterator[Image.Image]:
    """Turn a picture into RGB by the rule of this module, and let it count in the budget of pixels in the block.

    Args:
        picture: A path, the bytes of an image file, or a Pillow picture of any mode, which is not changed.
        name: What a message calls it; the path is added to it.
        box: The region to cut out, in pixels of the upright picture; None for all of it.
        enough_px: As for ``open_picture``; it counts for files.

    Yields:
        The RGB picture; the caller keeps no reference to it.

    Raises:
        DecodeError: The picture cannot be read or decoded, or the box holds no pixel of it.
        ConfigError: Something else than a picture.
    """
    if not isinstance(picture, (str, Path, bytes, Image.Image)):
        raise ConfigError(
            f"{name} is a {type(picture).__name__}; give a path, the bytes of a file, or a Pillow picture."
        )
    with _named(picture, name):
        if isinstance(picture, Image.Image):
            yield crop_to_box(_convert(picture), box)
            return
        data = picture if isinstance(picture, bytes) else read_image_bytes(Path(picture))
        with open_picture(data, box=box, enough_px=enough_px) as opened:
            yield opened


def _convert(image: Image.Image) -> Image.Image:
    try:
        return convert_to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow reads the pixels of an opened file only now, and a damaged one raises anything
        raise DecodeError(str(error) or type(error).__name__) from None


@contextmanager
def _named(picture: Picture, name: str) -> Iterator[None]:
    """Begin the message of a ``DecodeError`` with what the picture is; its class stays."""
    try:
        yield
    except DecodeError as error:
        where = f" {quote_name(picture)}" if isinstance(picture, (str, Path)) else ""
        raise type(error)(f"{name}{where}: {error}.") from None


def shrink(data: bytes, side_px: int, box: Box | None = None) -> bytes:
    """Make a small JPEG of an image file.

    Args:
        data: The file.
        side_px: Longest side of the copy; a smaller picture keeps its size.
        box: The region to show; None for all of it.

    Raises:
        DecodeError: No picture, or no pixel of it in the box.
    """
    with open_picture(data, box=box) as image:
        image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
        return encode_jpeg(image)


def encode_jpeg(image: Image.Image, quality: int = JPEG_QUALITY) -> bytes:
    """Encode an RGB picture as JPEG, of a quality in [1, 95]."""
    jpeg = io.BytesIO()
    image.save(jpeg, format="JPEG", quality=quality, optimize=True)
    return jpeg.getvalue()


def to_data_uri(jpeg: bytes) -> str:
    """Return a JPEG as an address that holds the picture itself, for pages in one file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
