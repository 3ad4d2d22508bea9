"""Which pictures of a collection are copies of each other, or show the same scene.

The encoder names candidates, and the pixels decide. Vectors alone do not tell copies: two packages of milk may be
nearer than a picture and its mirror image. So the nearest pictures of each are laid on it, and those that fit and agree
in every region are copies (``comparing.py``). How well copies agree depends on the collection, too: two drawings may
agree better than a photograph and its framed copy. So the threshold is calibrated on the collection itself, on copies
that are made of some of its pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vitrieve.curation.comparing import Thumbnails, measure_copies
from vitrieve.curation.copies import COPIES, cut_half
from vitrieve.curation.material import Material
from vitrieve.data.decode import describe_failure, read_image
from vitrieve.errors import DataError, DecodeError
from vitrieve.progress import track
from vitrieve.runtime.encoder import Encoder
from vitrieve.similarity import FloatArray, Pairs, pairs_above, top_k

NUM_NEAREST, NUM_ALIKE = 5, 2
"""Pictures that are laid on each: those with the nearest vectors, and those that look most alike in a few gray pixels
(``describe_thumbnail``): an encoder takes a frame or a caption for something else."""
NUM_SAMPLED = 40
"""Pictures that copies are made of."""
LEAST_AGREEMENT = 0.8
"""Pictures that agree less are never copies, whatever the calibration says."""
STRANGER_WEIGHT = 10
"""A picture that is wrongly taken for a copy counts as much as so many copies that are missed."""
SURE_COPY, SURE_SCENE = 10.0, 75.0
"""Percentile of the made copies from which other pictures are taken for copies that nobody knows of. Pixels tell copies
from others with a gap between, similarities do not."""
FOUND_SHARE = 0.99
"""A threshold is never so low that more than this share of the copies is found."""
SAME_PICTURE = 0.9999
"""From this similarity on, a neighbor is the same picture, not a stranger."""


@dataclass(frozen=True, kw_only=True)
class CopyThresholds:
    """What two pictures need to count as copies, and what that rests on.

    Attributes:
        least_agreement: Agreement of the pixels (``measure_agreements``) from which two pictures are copies.
        same_scene: Similarity from which two pictures show the same scene; None where it was not asked for.
        num_sampled: Pictures of which copies were made.
        found: Kind of a copy -> share of the copies that agree so with their originals.
        strangers: Share of the nearest other pictures that agree so, too; some of them are copies that nobody knows of.
    """

    least_agreement: float
    same_scene: float | None
    num_sampled: int
    found: Mapping[str, float]
    strangers: float


@dataclass(frozen=True, kw_only=True)
class Links:
    """Pairs of pictures that belong together, and why.

    Attributes:
        pairs: Rows and their similarity.
        is_copy: ``(P,)``; whether the pixels say that the two are copies.
        calibration: How the thresholds were chosen; None where a similarity was given.
        failures: Row -> why a picture that was looked at cannot be read.
    """

    pairs: Pairs
    is_copy: npt.NDArray[np.bool_]
    calibration: CopyThresholds | None
    failures: Mapping[int, str]


def find_links(material: Material, level: Literal["near", "same-scene"], threshold: float | None = None) -> Links:
    """Find the pictures that belong together.

    Args:
        material: Pictures and vectors.
        level: ``near``: copies; ``same-scene``: also pictures whose similarity is that of two that share about half of
            what they show.
        threshold: Similarity from which two pictures belong together, whatever their pixels are; None: calibrated.

    Raises:
        DataError: Nothing can be calibrated, because no picture can be read.
    """
    none = np.empty(0, dtype=np.int64)
    nothing = Pairs(none, none, none.astype(np.float32))
    if len(material.image_ids) < 2:
        return Links(pairs=nothing, is_copy=none.astype(bool), calibration=None, failures={})
    if threshold is not None:
        pairs = pairs_above(material.vectors, threshold, shown_as="compare vectors")
        return Links(pairs=pairs, is_copy=np.zeros(len(pairs.first), dtype=bool), calibration=None, failures={})
    thumbnails = Thumbnails(material)
    encoder = material.load_encoder() if level == "same-scene" else None
    thumbnails.make(range(len(material.image_ids)), show_progress=True)
    calibration = calibrate_copies(material, thumbnails, encoder)
    candidates = find_all_candidates(material, thumbnails, range(len(material.vectors)), show_progress=True)
    agreements = thumbnails.measure_agreements(candidates, show_progress=True)
    copies = _choose(candidates, agreements >= calibration.least_agreement)
    scenes = nothing
    if calibration.same_scene is not None:
        scenes = pairs_above(material.vectors, calibration.same_scene, shown_as="compare vectors")
    both = Pairs(
        np.concatenate([copies.first, scenes.first]),
        np.concatenate([copies.second, scenes.second]),
        np.concatenate([copies.similarities, scenes.similarities]),
    )
    _, places = np.unique(both.first * len(material.vectors) + both.second, return_index=True)  # of equals the copy
    return Links(
        pairs=_choose(both, places),
        is_copy=places < len(copies.first),
        calibration=calibration,
        failures=thumbnails.failures,
    )


def _choose(pairs: Pairs, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Pairs:
    return Pairs(pairs.first[chosen], pairs.second[chosen], pairs.similarities[chosen])


def find_all_candidates(
    material: Material, thumbnails: Thumbnails, rows: Sequence[int], *, show_progress: bool = False
) -> Pairs:
    """Pair some pictures with those that the encoder or a few gray pixels find nearest; no pair twice.

    Args:
        material: Pictures and vectors.
        thumbnails: Those of the pictures.
        rows: The pictures to pair.
        show_progress: Report progress on standard error.
    """
    names = ("nearest vectors", "most alike in gray") if show_progress else (None, None)
    near = find_candidates(material.vectors, rows, NUM_NEAREST, shown_as=names[0])
    alike = find_candidates(thumbnails.describe(), rows, NUM_ALIKE, shown_as=names[1])
    num_pictures = len(material.vectors)
    is_new = ~np.isin(alike.first * num_pictures + alike.second, near.first * num_pictures + near.second)
    first, second = alike.first[is_new], alike.second[is_new]
    products = [
        float(material.vectors[one] @ material.vectors[other]) for one, other in zip(first, second, strict=True)
    ]
    return Pairs(
        np.concatenate([near.first, first]),
        np.concatenate([near.second, second]),
        np.concatenate([near.similarities, np.array(products, dtype=np.float32)]),
    )


def find_candidates(
    vectors: FloatArray, rows: Sequence[int], num_nearest: int, *, shown_as: str | None = None
) -> Pairs:
    """Pair some pictures with the others nearest to each; no pair twice.

    Args:
        vectors: ``(N, E)`` embeddings; any N.
        rows: The pictures to pair.
        num_nearest: How many others of each.
        shown_as: As ``top_k`` takes it.
    """
    none = np.empty(0, dtype=np.int64)
    if len(vectors) < 2:
        return Pairs(none, none, none.astype(np.float32))
    similarities, neighbors = top_k(vectors[list(rows)], vectors, min(len(vectors), num_nearest + 1), shown_as=shown_as)
    owners = np.repeat(np.asarray(rows, dtype=np.int64), neighbors.shape[1])
    others = neighbors.ravel().astype(np.int64)
    keys = np.minimum(owners, others) * len(vectors) + np.maximum(owners, others)
    unique, places = np.unique(keys, return_index=True)
    first, second = np.divmod(unique, len(vectors))
    is_pair = first != second
    return Pairs(first[is_pair], second[is_pair], similarities.ravel()[places][is_pair].astype(np.float32))


def calibrate_copies(
    material: Material,
    thumbnails: Thumbnails,
    encoder: Encoder | None = None,
    *,
    num_sampled: int = NUM_SAMPLED,
) -> CopyThresholds:
    """Choose thresholds on copies of the collection's own pictures.

    The same collection gives the same thresholds: what is drawn depends on nothing else.

    Args:
        material: Pictures and vectors.
        thumbnails: Where those of the sampled pictures are kept.
        encoder: The encoder that made the vectors, for the threshold of the level same-scene; None: that is left out.
        num_sampled: The most pictures of which copies are made.

    Raises:
        DataError: None of the sampled pictures can be read.
    """
    generator = np.random.default_rng(0)
    num_pictures = len(material.image_ids)
    rows = np.sort(generator.choice(num_pictures, min(num_sampled, num_pictures), replace=False))
    originals: list[int] = []
    agreements, similarities = [], []
    reason = ""
    sampled = zip(rows.tolist(), material.fetch(rows.tolist()), strict=True)
    for row, record in track(sampled, "calibrate", total=len(rows)):
        try:
            image = read_image(record)
        except (DecodeError, MemoryError) as error:
            reason = f"{record.image_id}: {describe_failure(error)}"
            continue
        pictures = [make(image, generator) for make in COPIES.values()]
        agreements.append(measure_copies(image, pictures))
        originals.append(row)
        if encoder is not None:
            vectors = encoder.encode([*pictures, cut_half(image, generator)])
            similarities.append(vectors @ material.vectors[row])
    if not originals:
        raise DataError(
            f"no threshold can be calibrated, because none of {len(rows)} pictures can be read ({reason}). Give one "
            "yourself with --threshold, for example 0.95."
        )
    copies = np.array(agreements, dtype=np.float32)
    strangers = thumbnails.measure_agreements(find_all_candidates(material, thumbnails, originals))
    least_agreement = max(LEAST_AGREEMENT, choose_threshold(copies.ravel(), strangers, STRANGER_WEIGHT, SURE_COPY))
    same_scene = None
    if similarities:
        nearest = find_strangers(material.vectors, originals)
        same_scene = choose_threshold(np.stack(similarities).ravel(), nearest, 1)
    return CopyThresholds(
        least_agreement=least_agreement,
        same_scene=same_scene,
        num_sampled=len(originals),
        found=dict(zip(COPIES, (copies >= least_agreement).mean(axis=0).tolist(), strict=True)),
        strangers=float((strangers >= least_agreement).mean()) if len(strangers) else 0.0,
    )


def find_strangers(vectors: FloatArray, rows: Sequence[int]) -> FloatArray:
    """Return the similarity of some pictures to their nearest other one, without those that are the same picture."""
    if len(vectors) < 2:
        return np.empty(0, dtype=np.float32)
    similarities, neighbors = top_k(vectors[list(rows)], vectors, 2)
    others = np.where(neighbors[:, 0] == rows, similarities[:, 1], similarities[:, 0])
    return np.asarray(others[others < SAME_PICTURE], dtype=np.float32)


def choose_threshold(
    copies: FloatArray, strangers: FloatArray, stranger_weight: float, sure_percentile: float = SURE_SCENE
) -> float:
    """Choose the similarity or agreement that tells copies from strangers best.

    The strangers are the nearest other pictures, and some of them are copies that nobody knows of. Those above a
    percentile of the made copies are sure to be. A quarter of all copies are above the 75th, for example, so four times
    as many strangers as are above it are taken for copies, spread as the made ones are, and do not count against a
    threshold.

    Args:
        copies: ``(C,)`` similarities of copies to their originals.
        strangers: ``(S,)`` similarities of pictures to their nearest other picture; any S.
        stranger_weight: How many missed copies a stranger counts as much as.
        sure_percentile: The percentile of the made copies above which strangers are copies, below 100.

    Returns:
        Of the similarities of copies, but for the lowest hundredth, the one with the best F1 of finding copies, where
        strangers are weighted; the highest among equals.

    >>> round(choose_threshold(np.float32([0.7, 0.9, 0.95]), np.float32([0.8, 0.1]), 1.0), 3)
    0.9
    """
    candidates = np.sort(copies)[int(len(copies) * (1 - FOUND_SHARE)) :]
    right = 1 - np.searchsorted(np.sort(copies), candidates) / len(copies)
    wrong = np.zeros_like(right)
    if len(strangers):
        num_sure = float((strangers >= np.percentile(copies, sure_percentile)).mean())
        unknown_copies = min(1.0, num_sure / (1 - sure_percentile / 100))
        reached = 1 - np.searchsorted(np.sort(strangers), candidates) / len(strangers)
        wrong = np.maximum(0, reached - unknown_copies * right)
    f1 = 2 * right / (1 + right + stranger_weight * wrong)
    return float(candidates[np.flatnonzero(f1 == f1.max())[-1]])
