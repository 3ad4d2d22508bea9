"""Lower resolution first: the first steps of a run see smaller pictures, which cost less. Next file: ``microbatch.py``.

Source of the idea: Touvron et al., Fixing the train-test resolution discrepancy, arXiv:1906.06423, and Howard's
progressive resizing.
"""

from __future__ import annotations

from typing import Any, cast

from timm.layers import Format

from vitrieve.config import Config
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder


def image_size_at(config: Config, step: int) -> int:
    """Return the side of the pictures of the step after ``step`` finished ones, in pixels.

    >>> from vitrieve.config import TrainConfig
    >>> config = Config(train=TrainConfig(num_steps=10, low_resolution_size=64, low_resolution_share=0.5))
    >>> image_size_at(config, 4), image_size_at(config, 5) == config.model.image_size
    (64, True)
    """
    low = config.train.low_resolution_size
    is_low = low is not None and step < config.train.low_resolution_share * config.train.num_steps
    return low if low is not None and is_low else config.model.image_size


def allow_low_resolution(encoder: ImageEncoder, config: Config) -> None:
    """Let an encoder take the smaller pictures too; positions are resampled in each of their steps.

    Raises:
        ConfigError: The size is not below the encoder's, or no multiple of the patch.
    """
    size = config.train.low_resolution_size
    if size is None:
        return
    if size >= config.model.image_size:
        raise ConfigError(
            f"train.low_resolution_size is {size}; expected less than model.image_size, {config.model.image_size}."
        )
    patch_embed: Any = getattr(encoder.backbone, "patch_embed", None)
    if encoder.layout.is_transformer:
        patch = int(patch_embed.patch_size[0])
        if size % patch:
            raise ConfigError(f"train.low_resolution_size is {size}; expected a multiple of the patch, {patch} px.")
        cast(Any, encoder.backbone).dynamic_img_size = True
        patch_embed.strict_img_size, patch_embed.flatten, patch_embed.output_fmt = False, False, Format.NHWC
    encoder.extra_image_sizes = (size,)
