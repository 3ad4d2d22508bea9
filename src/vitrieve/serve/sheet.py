"""A contact sheet: small copies of several pictures in one, each with its number and its name."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vitrieve.data.decode import encode_jpeg
from vitrieve.quoting import escape_text

CELL_PX = 200
NUM_COLUMNS = 6
_LABEL_PX = 34
_GAP_PX = 8
_FONT_PX = 13
_PAPER, _INK, _MISSING = (255, 255, 255), (30, 30, 30), (225, 225, 225)


def draw_sheet(pictures: Sequence[tuple[str, bytes | None]]) -> bytes:
    """Draw a contact sheet as a JPEG.

    Args:
        pictures: Name and JPEG of each picture, in order; None: its file cannot be read, and its cell is gray.

    Returns:
        The JPEG, ``CELL_PX`` for a picture, ``NUM_COLUMNS`` in a row, numbered from 1.
    """
    num_columns = min(NUM_COLUMNS, max(1, len(pictures)))
    num_rows = -(-len(pictures) // num_columns)
    width_px, height_px = CELL_PX + _GAP_PX, CELL_PX + _LABEL_PX + _GAP_PX
    sheet = Image.new("RGB", (num_columns * width_px + _GAP_PX, num_rows * height_px + _GAP_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_PX)
    for place, (name, jpeg) in enumerate(pictures):
        x = _GAP_PX + place % num_columns * width_px
        y = _GAP_PX + place // num_columns * height_px
        if jpeg is None:
            draw.rectangle((x, y, x + CELL_PX - 1, y + CELL_PX - 1), fill=_MISSING)
            draw.text((x + 12, y + CELL_PX // 2), "cannot be read", fill=_INK, font=font)
        else:
            with Image.open(io.BytesIO(jpeg)) as picture:
                picture.thumbnail((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)
                sheet.paste(picture, (x + (CELL_PX - picture.width) // 2, y + (CELL_PX - picture.height) // 2))
        draw.text((x, y + CELL_PX + 3), _shorten(f"{place + 1}. {escape_text(name)}", font), fill=_INK, font=font)
    return encode_jpeg(sheet)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Take characters out of the middle, until a text fits under its picture: the end of a name tells most."""
    text = text if len(text) <= 200 else text[:100] + text[-100:]
    if font.getlength(text) <= CELL_PX:
        return text
    for num_left in range(len(text) // 2, 3, -1):
        shorter = f"{text[:num_left]}\N{HORIZONTAL ELLIPSIS}{text[-num_left:]}"
        if font.getlength(shorter) <= CELL_PX:
            return shorter
    return text[:4]
