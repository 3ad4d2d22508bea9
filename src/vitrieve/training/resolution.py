"""Lower resolution first: the first steps of a run see smaller pictures, which cost less.

Source of the idea: Touvron et al., Fixing the train-test resolution discrepancy, arXiv:1906.06423, and Howard's
progressive resizing.
"""

from __future__ import annotations

from typing import Any

from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer

from vitrieve.config import Config
from vitrieve.errors import ConfigError
from vitrieve.model.backbone import describe_tokens, get_patch_px
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
        ConfigError: The size is not below the encoder's, no multiple of the patch, or the backbone is of a family that
            takes pictures of one size only.
    """
    size = config.train.low_resolution_size
    if size is None:
        return
    if size >= config.model.image_size:
        raise ConfigError(
            f"train.low_resolution_size is {size}; expected less than model.image_size, {config.model.image_size}."
        )
    backbone: Any = encoder.backbone
    patch = get_patch_px(backbone)
    if patch and size % patch:
        raise ConfigError(f"train.low_resolution_size is {size}; expected a multiple of the patch, {patch} px.")
    if isinstance(encoder.backbone, VisionTransformer):
        backbone.dynamic_img_size = True
        patches = backbone.patch_embed
        patches.strict_img_size, patches.flatten, patches.output_fmt = False, False, Format.NHWC
    try:
        describe_tokens(backbone, size, encoder.spec.architecture)
    except ConfigError as error:
        raise ConfigError(
            f"train.low_resolution_size is {size}, but {encoder.spec.backbone} takes pictures of one size only; leave "
            "it out, or choose a backbone that takes several: ViT, DeiT, DINOv2, DINOv3, or a convnet."
        ) from error
    encoder.extra_image_sizes = (size,)
