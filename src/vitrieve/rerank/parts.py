"""The parts of a picture as a few vectors of bytes: its patches, drawn together, or its tiles.

Patches: the tokens that the backbone puts out for the patches of a picture, which an exported graph has as well.
``pool_tokens`` groups like ones, so that a uniform background becomes one token and what differs keeps its own.
Tiles: the embeddings of the whole picture and of its four quarters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from vitrieve.data.decode import open_picture, read_image_bytes
from vitrieve.data.preprocess import to_pixels, to_square
from vitrieve.data.records import ImageRecord
from vitrieve.embed.batches import encode_ahead, prepare_ahead
from vitrieve.errors import ConfigError, DecodeError
from vitrieve.progress import track
from vitrieve.runtime.encoder import Encoder
from vitrieve.similarity import FloatArray, normalize

PartKind = Literal["patches", "tiles"]
ByteArray = npt.NDArray[np.int8]

NUM_TOKENS = 32
"""Tokens kept of a picture; with a backbone 384 wide they take 12,288 bytes, where an embedding takes 1,536."""
NUM_TILES = 5
NUM_ROUNDS = 3
"""Rounds of k-means after the first choice; more change little (assumed, not measured)."""
BATCH_SIZE = 8
MAX_BYTE = 127


def pool_tokens(tokens: FloatArray, num_tokens: int = NUM_TOKENS) -> FloatArray:
    """Draw the tokens of a picture together, like ones into one.

    Spherical k-means. The first center is the token that is least like their mean; each further one is the token least
    like all centers so far; then every token joins its nearest center, and a center becomes the mean direction of its
    tokens. Nothing is random.

    Args:
        tokens: ``(N, D)`` float32 of any length.
        num_tokens: Tokens to keep, at least 1.

    Returns:
        ``(min(N, num_tokens), D)`` float32, rows of unit length; all tokens, where there are no more.

    Source:
        Clavié, Chaffin and Adams, "Reducing the Footprint of Multi-Vector Retrieval with Minimal Performance Impact
        via Token Pooling", arXiv:2409.14683, for words of text. They cluster by Ward's method; k-means needs no
        library. The first centers are Gonzalez's (1985).
    """
    rows = normalize(tokens)
    if len(rows) <= num_tokens:
        return rows
    nearest = rows @ normalize(rows.mean(axis=0, keepdims=True))[0]  # (N,) similarity to the nearest center so far
    centers = np.empty((num_tokens, rows.shape[1]), np.float32)
    for number in range(num_tokens):
        centers[number] = rows[np.argmin(nearest)]
        own = rows @ centers[number]
        nearest = own if number == 0 else np.maximum(nearest, own)
    for _ in range(NUM_ROUNDS):
        is_member = np.argmax(rows @ centers.T, axis=1)[:, None] == np.arange(num_tokens)  # (N, num_tokens)
        sums = is_member.T.astype(np.float32) @ rows
        # A center that loses all its tokens to a duplicate stays where it is.
        centers = np.where(is_member.any(axis=0)[:, None], normalize(sums), centers)
    return centers


def to_bytes(rows: FloatArray) -> ByteArray:
    """Round vectors to a byte a number: each divided by its largest magnitude, times 127; zeros stay zeros.

    >>> to_bytes(np.float32([[0.5, -1.0], [0.0, 0.0]])).tolist()
    [[64, -127], [0, 0]]
    """
    largest = np.abs(rows).max(axis=-1, keepdims=True)
    return np.asarray(np.rint(MAX_BYTE * (rows / np.where(largest > 0, largest, 1))), dtype=np.int8)


def from_bytes(parts: ByteArray) -> FloatArray:
    """Turn bytes ``(…, D)`` back into float32 rows of unit length; a row of zeros stays zeros."""
    return normalize(parts.reshape(-1, parts.shape[-1])).reshape(parts.shape)


def cut_tiles(image: Image.Image) -> list[Image.Image]:
    """Cut a picture into the whole and its four quarters; of a picture of one pixel a quarter is that pixel."""
    width, height = image.size
    middle_x, middle_y = max(1, width // 2), max(1, height // 2)
    left, top = min(middle_x, width - 1), min(middle_y, height - 1)
    boxes = [
        (x_1, y_1, x_2, y_2)
        for y_1, y_2 in ((0, middle_y), (top, height))
        for x_1, x_2 in ((0, middle_x), (left, width))
    ]
    return [image, *(image.crop(box) for box in boxes)]


def prepare_parts(image: Image.Image, encoder: Encoder, kind: PartKind) -> npt.NDArray[np.uint8]:
    """Turn an RGB picture into the squares that its parts are computed of: ``(1 or NUM_TILES, S, S, 3)``."""
    pictures = [image] if kind == "patches" else cut_tiles(image)
    return np.stack([to_square(picture, encoder.preprocessing) for picture in pictures])


def encode_parts(squares: npt.NDArray[np.uint8], encoder: Encoder, kind: PartKind) -> ByteArray:
    """Compute the parts of prepared pictures.

    Args:
        squares: ``(B, 1 or NUM_TILES, S, S, 3)`` of ``prepare_parts``; B is at least 1.
        encoder: Its patches or embeddings are the parts.
        kind: Which of them.

    Returns:
        ``(B, P, D)`` bytes.

    Raises:
        ConfigError: Patches are wanted of an encoder that puts none out.
    """
    flat = squares.reshape(-1, *squares.shape[2:])
    if kind == "tiles":
        return to_bytes(encoder.encode_squares(flat)).reshape(*squares.shape[:2], -1)
    tokens = encoder.patch_tokens(to_pixels(flat, encoder.preprocessing))
    return to_bytes(np.stack([pool_tokens(one) for one in tokens]))


def compute_parts(
    encoder: Encoder, records: Sequence[ImageRecord], kind: PartKind, *, show_progress: bool = False
) -> list[ByteArray | None]:
    """Read pictures and compute their parts, in as many threads as the engine has streams, decoding ahead in others.

    Args:
        encoder: Its patches or embeddings are the parts.
        records: The pictures, any number.
        kind: Which parts.
        show_progress: Report progress on standard error.

    Returns:
        For each picture its parts ``(P, D)``; None where it cannot be read.

    Raises:
        ConfigError: As ``encode_parts``.
    """
    batches = [records[start : start + BATCH_SIZE] for start in range(0, len(records), BATCH_SIZE)]
    prepared = prepare_ahead(partial(_prepare, encoder=encoder, kind=kind), batches)
    encoded = encode_ahead(partial(_encode, encoder=encoder, kind=kind), prepared, encoder.num_parallel)
    tracked = track(
        encoded, f"{kind} of {len(records):,} images", total=len(records), weight=BATCH_SIZE, is_shown=show_progress
    )
    with closing(tracked):
        return [one for batch in tracked for one in batch]


def stack_parts(parts: Sequence[ByteArray | None]) -> ByteArray:
    """Stack the parts of pictures: ``(N, P, D)``; zeros stand for those of an unreadable one.

    Raises:
        DecodeError: No picture can be read.
    """
    readable = next((one for one in parts if one is not None), None)
    if readable is None:
        raise DecodeError(
            f"none of {len(parts)} pictures can be read, so their parts cannot be compared; put them back where they "
            "were, say where they are now (--map-path of search and serve), or leave re-ranking by parts away "
            "(--rerank none)."
        )
    return np.stack([np.zeros_like(readable) if one is None else one for one in parts])


def _prepare(record: ImageRecord, encoder: Encoder, kind: PartKind) -> npt.NDArray[np.uint8] | None:
    try:
        with open_picture(read_image_bytes(record.path), box=record.box) as picture:
            return prepare_parts(picture, encoder, kind)
    except (DecodeError, MemoryError):
        return None


def _encode(
    squares: Sequence[npt.NDArray[np.uint8] | None], encoder: Encoder, kind: PartKind
) -> list[ByteArray | None]:
    readable = [one for one in squares if one is not None]
    parts = iter(encode_parts(np.stack(readable), encoder, kind) if readable else ())
    return [None if one is None else next(parts) for one in squares]


def has_patches(encoder: Encoder) -> bool:
    """Say whether an encoder puts out tokens of patches, by asking it for those of one picture."""
    side = encoder.preprocessing.image_size
    try:
        encoder.patch_tokens(np.zeros((1, 3, side, side), dtype=np.float32))
    except ConfigError:
        return False
    return True


FindParts = Callable[[PartKind], tuple[ByteArray, ByteArray]]
"""Finds the parts of a query ``(P, D)`` and of its first images ``(M, P, D)``."""
