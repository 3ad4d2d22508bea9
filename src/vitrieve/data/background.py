"""Drawings and catalogue pictures in front of other pictures: a training view that learns to look past the background.

It is apart from ``preprocess.py``, which needs Pillow and NumPy only, because SciPy comes with ``vitrieve[train]``.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import ndimage

_PLAIN_LEVELS = 10
"""Largest difference of a channel from the border's median that still counts as the plain background."""
_PLAIN_BORDER_SHARE = 0.95
"""Share of the border that must be plain: what is cut off by the border is no cut-out."""
_CUTOUT_SHARES = 0.02, 0.9
"""Least and largest share of the picture that a cut-out takes; less is a speck, more leaves no background."""
_BACKGROUND_SCALE_MIN = 0.1
"""Smallest share of another picture's area that becomes a background: parts show texture more often than objects."""


def find_cutout(image: Image.Image) -> np.ndarray | None:
    """Find what stands on the plain background of a picture, such as a drawing or a catalogue picture.

    The background is what has the border's color and is connected with the border, so that a white shirt on white
    loses no hole in its middle.

    Args:
        image: An RGB picture.

    Returns:
        ``(H, W)`` bool, true where the object is; None where the border is not of one color, or hardly anything, or
        nearly everything, stands on it.
    """
    pixels = np.asarray(image).astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = np.median(border, axis=0)
    if (np.abs(border - color).max(axis=1) <= _PLAIN_LEVELS).mean() < _PLAIN_BORDER_SHARE:
        return None
    parts, _ = ndimage.label(np.abs(pixels - color).max(axis=2) <= _PLAIN_LEVELS)
    outer = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    cutout = ~np.isin(parts, outer[outer > 0])
    least, largest = _CUTOUT_SHARES
    return cutout if least <= cutout.mean() <= largest else None


def paste(image: Image.Image, cutout: np.ndarray, other: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Show a cut-out in its place on a random part of another picture.

    Args:
        image: An RGB picture.
        cutout: ``(H, W)`` bool, true where the object is (``find_cutout``).
        other: Another RGB picture, of any size.
        generator: All randomness comes from it.

    Source: Dwibedi, Misra and Hebert, "Cut, Paste and Learn", ICCV 2017, arXiv:1708.01642, for detection. What differs:
    the object keeps its place and its size, which the crop of the view changes, and edges are not blended.
    """
    share = math.sqrt(generator.uniform(_BACKGROUND_SCALE_MIN, 1))
    width, height = share * other.width, share * other.height
    left, top = generator.uniform(0, other.width - width), generator.uniform(0, other.height - height)
    box = (left, top, left + width, top + height)
    background = other.resize(image.size, Image.Resampling.BICUBIC, box=box)
    return Image.fromarray(np.where(cutout[:, :, None], np.asarray(image), np.asarray(background)))
