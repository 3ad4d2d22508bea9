"""Copies of pictures as people make them, and thresholds that tell copies from other pictures.

What a similarity means depends on the encoder and on the collection: two packages of milk may be nearer than a picture
and its mirror image. So the thresholds are calibrated on the collection itself. Copies of some of its pictures are
made, and their similarity to the original is compared with that of the nearest other picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from vitrieve.curation.material import Material
from vitrieve.data.decode import encode_jpeg, read_image
from vitrieve.errors import DataError, DecodeError
from vitrieve.runtime.encoder import Encoder
from vitrieve.similarity import FloatArray, top_k

NUM_SAMPLED = 100
"""Pictures that copies are made of."""
STRANGER_WEIGHT = 10
"""At the level near, a picture that is wrongly taken for a copy counts as much as so many copies that are missed."""
FOUND_SHARE = 0.95
"""A threshold is never so low that more than this share of the copies is found."""
SAME_PICTURE = 0.9999
"""From this similarity on, a neighbor is the same picture, not a stranger."""

CopyMaker = Callable[[Image.Image, np.random.Generator], Image.Image]


def crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Cut out 75 to 90 % of the area, anywhere."""
    return _crop_to_share(image, generator.uniform(0.75, 0.9), generator)


def resize(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Make both sides 40 to 70 % as long."""
    share = generator.uniform(0.4, 0.7)
    size = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    return image.resize(size, Image.Resampling.LANCZOS)


def compress(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Save as JPEG of a quality from 20 to 60."""
    with Image.open(io.BytesIO(encode_jpeg(image, int(generator.integers(20, 61))))) as copy:
        return copy.convert("RGB")


def flip(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Mirror left and right; nothing is drawn."""
    return ImageOps.mirror(image)


def change_color(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Change brightness, contrast and saturation by up to 30 % each."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(generator.uniform(0.7, 1.3))
    return image


def add_border(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Put a frame of one color around it, 4 to 12 % of the longer side wide."""
    width = max(1, round(max(image.size) * generator.uniform(0.04, 0.12)))
    color = (255, 255, 255) if generator.random() < 0.5 else (0, 0, 0)
    return ImageOps.expand(image, width, color)


def add_text(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Write a line across it, with letters 8 to 14 % of the height high."""
    copy = image.copy()
    height = max(8, round(image.height * generator.uniform(0.08, 0.14)))
    place = (image.width // 20, round((image.height - height) * generator.random()))
    letters = "".join(map(chr, generator.integers(ord("A"), ord("Z") + 1, 12).tolist()))
    draw = ImageDraw.Draw(copy)
    draw.text(place, letters, font=ImageFont.load_default(height), fill=(255, 255, 255), stroke_width=1, stroke_fill=0)
    return copy


def change_several(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Crop, change the color and save as JPEG, one after the other."""
    return compress(change_color(crop(image, generator), generator), generator)


COPIES: Mapping[str, CopyMaker] = {
    "crop": crop,
    "resize": resize,
    "jpeg": compress,
    "flip": flip,
    "color": change_color,
    "border": add_border,
    "text": add_text,
    "several": change_several,
}
"""Kind of a copy -> what makes one of an RGB picture; all draws come from the generator."""


def cut_half(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Cut out half of the area and change its colors: another picture of the same scene, as far as one can be made."""
    return change_color(_crop_to_share(image, 0.5, generator), generator)


def _crop_to_share(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * share**0.5)) for side in image.size)
    left, top = (int(generator.integers(0, room + 1)) for room in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


@dataclass(frozen=True, kw_only=True)
class CopyThresholds:
    """Similarities from which two pictures count as copies, and what they rest on.

    Attributes:
        near: Threshold of the level near.
        same_scene: Threshold of the level same-scene, at most ``near``.
        num_sampled: Pictures of which copies were made.
        found: Kind of a copy -> share of the copies that the level near finds.
        strangers: Share of the pictures whose nearest other picture would count as a copy, at the level near.
    """

    near: float
    same_scene: float
    num_sampled: int
    found: Mapping[str, float]
    strangers: float


def calibrate_copies(encoder: Encoder, material: Material, *, num_sampled: int = NUM_SAMPLED) -> CopyThresholds:
    """Choose thresholds on copies of the collection's own pictures.

    The same collection gives the same thresholds: what is drawn depends on nothing else.

    Args:
        encoder: The encoder that made the vectors.
        material: Pictures and vectors.
        num_sampled: The most pictures of which copies are made.

    Raises:
        DataError: None of the sampled pictures can be read.
    """
    generator = np.random.default_rng(0)
    num_pictures = len(material.image_ids)
    rows = np.sort(generator.choice(num_pictures, min(num_sampled, num_pictures), replace=False))
    originals, of_copies, of_halves = [], [], []
    reason = ""
    for row, record in zip(rows.tolist(), material.fetch(rows.tolist()), strict=True):
        try:
            image = read_image(record)
        except DecodeError as error:
            reason = f"{record.image_id}: {error}"
            continue
        pictures = [make(image, generator) for make in (*COPIES.values(), cut_half)]
        similarities = encoder.encode(pictures) @ material.vectors[row]
        originals.append(row)
        of_copies.append(similarities[:-1])
        of_halves.append(similarities[-1:])
    if not originals:
        raise DataError(
            f"no threshold can be calibrated, because none of {len(rows)} pictures can be read ({reason}). Give one "
            "yourself with --threshold, for example 0.95."
        )
    copies, strangers = np.stack(of_copies), find_strangers(material.vectors, originals)
    near = choose_threshold(copies.ravel(), strangers, STRANGER_WEIGHT)
    scene = choose_threshold(np.concatenate([copies.ravel(), *of_halves]), strangers, 1)
    return CopyThresholds(
        near=near,
        same_scene=min(near, scene),
        num_sampled=len(originals),
        found=dict(zip(COPIES, (copies >= near).mean(axis=0).tolist(), strict=True)),
        strangers=float((strangers >= near).mean()) if len(strangers) else 0.0,
    )


def find_strangers(vectors: FloatArray, rows: Sequence[int]) -> FloatArray:
    """Return the similarity of some pictures to their nearest other one, without those that are the same picture."""
    if len(vectors) < 2:
        return np.empty(0, dtype=np.float32)
    similarities, neighbors = top_k(vectors[list(rows)], vectors, 2)
    others = np.where(neighbors[:, 0] == rows, similarities[:, 1], similarities[:, 0])
    return np.asarray(others[others < SAME_PICTURE], dtype=np.float32)


def choose_threshold(copies: FloatArray, strangers: FloatArray, stranger_weight: float) -> float:
    """Choose the similarity that tells copies from strangers best.

    The strangers are the nearest other pictures, and some of them are copies that nobody knows of. A quarter of all
    copies are above the upper quartile of the made ones. So four times as many strangers as are above it are taken for
    copies, spread as the made ones are, and do not count against a threshold.

    Args:
        copies: ``(C,)`` similarities of copies to their originals.
        strangers: ``(S,)`` similarities of pictures to their nearest other picture; any S.
        stranger_weight: How many missed copies a stranger counts as much as.

    Returns:
        Of the similarities of copies, but for the lowest 5 %, the one with the best F1 of finding copies, where
        strangers are weighted; the highest among equals.

    >>> round(choose_threshold(np.float32([0.7, 0.9, 0.95]), np.float32([0.8, 0.1]), 1.0), 3)
    0.9
    """
    candidates = np.sort(copies)[int(len(copies) * (1 - FOUND_SHARE)) :]
    right = 1 - np.searchsorted(np.sort(copies), candidates) / len(copies)
    wrong = np.zeros_like(right)
    if len(strangers):
        unknown_copies = min(1.0, 4 * float((strangers >= np.percentile(copies, 75)).mean()))
        reached = 1 - np.searchsorted(np.sort(strangers), candidates) / len(strangers)
        wrong = np.maximum(0, reached - unknown_copies * right)
    f1 = 2 * right / (1 + right + stranger_weight * wrong)
    return float(candidates[np.flatnonzero(f1 == f1.max())[-1]])
