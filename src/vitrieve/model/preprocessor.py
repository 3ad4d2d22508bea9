"""``preprocessor_config.json``: how pictures are prepared, as image processors of Hugging Face's transformers say it.

Source:
    The image processors of https://github.com/huggingface/transformers, whose settings the file holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrieve.data.preprocess import Interpolation, Preprocessing
from vitrieve.errors import ConfigError
from vitrieve.quoting import quote_name

if TYPE_CHECKING:
    pass


PREPROCESSOR_NAME = "preprocessor_config.json"


RESCALE_FACTOR = 1 / 255
_FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters that vitrieve has."""
_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb")
"""What is done to a picture, always or where the settings say so. Others turn colors around, pad or rotate."""
MAX_PX = 2_048
"""Largest side of a picture; with strangers' sizes the first run could take all memory."""
MAX_CROPPED_PX = 384
"""Size from which the preprocessor of ConvNeXt squeezes pictures instead of cropping them."""


def read_preprocessor(found: Mapping[str, Any]) -> Preprocessing:
    """Read how an export's pictures are prepared.

    Source: the image processors of Hugging Face's transformers, whose settings ``preprocessor_config.json`` holds.

    Raises:
        ConfigError: Something is missing, or done in a way that vitrieve has not.
    """
    try:
        _check_steps(found)
        if not np.isclose(found.get("rescale_factor", RESCALE_FACTOR), RESCALE_FACTOR, rtol=1e-3):
            raise ConfigError(f"{PREPROCESSOR_NAME} rescales by {found['rescale_factor']!r}; expected 1/255.")
        image_size, resize_size, is_cropped = _read_sizes(found)
        if max(image_size, resize_size) > MAX_PX:
            raise ConfigError(f"{PREPROCESSOR_NAME} wants pictures of {resize_size} px; at most {MAX_PX} are taken.")
        is_normalized = bool(found.get("do_normalize", True))
        return Preprocessing(
            image_size=image_size,
            resize_size=resize_size,
            interpolation=_FILTERS[found["resample"]],
            mean=_read_channels(found["image_mean"]) if is_normalized else (0.0,) * 3,
            std=_read_deviations(found["image_std"]) if is_normalized else (1.0,) * 3,
            framing="crop" if is_cropped else "square",
        )
    except KeyError as error:
        raise ConfigError(
            f"{PREPROCESSOR_NAME} does not tell, or tells wrongly: {quote_name(error.args[0])}."
        ) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{PREPROCESSOR_NAME} is not as expected: {error}") from None


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Tell how pictures are prepared as ``preprocessor_config.json`` does; ``read_preprocessor`` reads it again."""
    side = {"height": preprocessing.image_size, "width": preprocessing.image_size}
    is_cropped = preprocessing.framing == "crop"
    resampling = {name: number for number, name in _FILTERS.items()}
    return {
        "image_processor_type": "BitImageProcessor" if is_cropped else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.resize_size} if is_cropped else side,
        "resample": resampling[preprocessing.interpolation],
        "do_center_crop": is_cropped,
        **({"crop_size": side} if is_cropped else {}),
        "do_rescale": True,
        "rescale_factor": RESCALE_FACTOR,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _check_steps(found: Mapping[str, Any]) -> None:
    """Refuse what would give the encoder other pixels than it was trained on."""
    if not found.get("do_resize", True):
        raise ConfigError(f"{PREPROCESSOR_NAME} does not resize pictures, so the size of the input is not known.")
    if not found.get("do_rescale", True):
        raise ConfigError(f"{PREPROCESSOR_NAME} leaves pixels between 0 and 255 (do_rescale); expected 0 to 1.")
    further = [name for name, value in found.items() if name.startswith("do_") and value and name not in _STEPS]
    if further:
        raise ConfigError(
            f"{PREPROCESSOR_NAME} asks for {', '.join(map(quote_name, further))}; of what it can ask for vitrieve does "
            f"{', '.join(_STEPS)}."
        )


def _read_deviations(values: Sequence[float]) -> tuple[float, ...]:
    deviations = _read_channels(values)
    if min(deviations) <= 0:
        raise ConfigError(f"{PREPROCESSOR_NAME} divides by {list(values)!r}; expected three positive numbers.")
    return deviations


def _read_channels(values: Sequence[float]) -> tuple[float, ...]:
    channels = tuple(map(float, values))
    if len(channels) != 3 or not np.all(np.isfinite(channels)):
        raise ConfigError(f"{PREPROCESSOR_NAME} has {list(values)!r} where three channels are expected.")
    return channels


def _read_sizes(found: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Return the side of the input, the side before the crop, and whether there is a crop."""
    size, is_cropped = found["size"], bool(found.get("do_center_crop", False))
    is_short_side = "shortest_edge" in size if isinstance(size, Mapping) else is_cropped
    side = int(size["shortest_edge"]) if isinstance(size, Mapping) and is_short_side else _read_square(size)
    if is_short_side and is_cropped:
        return _read_square(found["crop_size"]), side, True
    if is_short_side and found.get("crop_pct"):  # ConvNeXt's
        is_small = side < MAX_CROPPED_PX
        return side, int(side / float(found["crop_pct"])) if is_small else side, is_small
    if is_short_side:
        raise ConfigError(f"{PREPROCESSOR_NAME} resizes the short side and cuts nothing: the input is no square.")
    if is_cropped and _read_square(found["crop_size"]) != side:
        raise ConfigError(f"{PREPROCESSOR_NAME} squeezes pictures and then cuts a part out, which vitrieve does not.")
    return side, side, False


def _read_square(size: Any) -> int:
    if not isinstance(size, Mapping):
        return int(size)
    if size["height"] != size["width"]:
        raise ConfigError(f"{PREPROCESSOR_NAME} has {size['height']} by {size['width']} px; vitrieve takes squares.")
    return int(size["height"])
