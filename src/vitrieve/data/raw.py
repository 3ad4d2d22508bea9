"""The preview in a RAW file of a camera, mostly a JPEG of full size, where the package ``rawpy`` is installed.

It is what the camera's maker thinks the photograph looks like; nothing of ours turns the values of a sensor into a
picture.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import struct

from PIL import Image

from vitrieve.data.work import BUDGET, check_pixels, read_tiff_directory
from vitrieve.errors import DecodeError

RAW_SUFFIXES = (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
"""Suffixes that cameras give to such files."""
RAW_BEGINNINGS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
"""First bytes of RAW files that are no plain TIFF."""
_SUBFILE_TYPE, _ORIENTATION, _SUB_DIRECTORIES, _DNG_VERSION = 254, 0x0112, 330, 50706
_REDUCED, _COLOR_FILTER_ARRAY = 1, 32803
_FLIPS = {3: (3, Image.Transpose.ROTATE_180), 5: (8, Image.Transpose.ROTATE_90), 6: (6, Image.Transpose.ROTATE_270)}
"""LibRaw's number of a turn: EXIF's orientation, and Pillow's turn."""


@functools.cache
def has_rawpy() -> bool:
    """Say whether RAW files can be read here."""
    return importlib.util.find_spec("rawpy") is not None


def is_raw(data: bytes) -> bool:
    """Say whether the content is that of a RAW file, whatever its name.

    Most are TIFF files with a small picture in front: a DNG says so, a CR2 too, and the others have a reduced picture
    first and further directories below it, or a picture of sensor values.
    """
    if data.startswith(RAW_BEGINNINGS) or data[4:12] == b"ftypcrx ":
        return True
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return False
    if data[8:10] == b"CR":
        return True
    found = read_tiff_directory(data)
    number = {tag: value for tag, (_, _, value) in found.items()}
    if _DNG_VERSION in found or number.get(262) == _COLOR_FILTER_ARRAY:
        return True
    return number.get(_SUBFILE_TYPE) == _REDUCED and _SUB_DIRECTORIES in found


def take_preview(data: bytes) -> bytes:
    """Take the preview out of a RAW file.

    Args:
        data: The whole file; anything but a RAW file is returned as it is.

    Returns:
        A JPEG, or a PNG where the preview is not compressed, with its orientation.

    Raises:
        DecodeError: rawpy is not installed, there is no preview, or the file is damaged; the message is the reason.
        PictureTooLargeError: The preview has too many pixels.
    """
    if not is_raw(data):
        return data
    if not has_rawpy():
        raise DecodeError("RAW pictures need the package rawpy (pip install 'vitrieve[raw]')")
    # LibRaw copies the file and the preview in it; a pixel of the budget stands for three bytes or more.
    with BUDGET.hold(len(data)):
        return _extract_preview(data)


def _extract_preview(data: bytes) -> bytes:
    import rawpy

    try:
        with rawpy.imread(io.BytesIO(data)) as raw:
            preview, flip = raw.extract_thumb(), raw.sizes.flip
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        raise DecodeError("the RAW file holds no preview; develop it, and index the result") from None
    except rawpy.LibRawUnsufficientMemoryError as error:
        raise MemoryError(str(error)) from error
    except rawpy.LibRawError as error:
        reason = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise DecodeError(f"the RAW file is damaged or of an unknown camera: {reason}") from error
    if isinstance(preview.data, bytes):
        return _orient_jpeg(preview.data, flip)
    height_px, width_px = preview.data.shape[:2]
    check_pixels(width_px, height_px)
    if preview.data.nbytes > len(data):  # LibRaw lays out what the file announces, and fills what is there
        raise DecodeError("the RAW file is damaged: its preview is larger than the file")
    picture = Image.fromarray(preview.data)
    if flip in _FLIPS:
        picture = picture.transpose(_FLIPS[flip][1])
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _orient_jpeg(data: bytes, flip: int) -> bytes:
    """Write the orientation of the RAW file into a preview that says none of its own."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            is_told = _ORIENTATION in image.getexif()
    except Exception:  # the decoder will say what is wrong with it
        return data
    if is_told or flip not in _FLIPS:
        return data
    directory = struct.pack("<HHHIHHI", 1, _ORIENTATION, 3, 1, _FLIPS[flip][0], 0, 0)
    block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
