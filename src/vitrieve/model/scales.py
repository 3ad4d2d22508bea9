"""Several scales of one picture, combined into one embedding, for convnets.

The rule: the prepared picture is resized (bilinear) to each scale, an embedding of unit length is made of each, with
the reduction where there is one, and the embeddings are combined coordinate by coordinate and L2-normalized. GeM
without reduction combines by the generalised mean with its own exponent, as the protocol's authors do for values
>= 0; all else, in particular what a reduction has made signed, by the plain mean.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from vitrieve.errors import ConfigError
from vitrieve.model.backbone import MIN_CONVNET_PX, TokenLayout, describe_tokens
from vitrieve.model.pooling import GEM_P_MAX
from vitrieve.model.spec import ONE_SCALE, EncoderSpec

MAX_SCALE = 2.0
"""The square that is scaled has been resized already: larger scales only blow it up."""


def check_scales(spec: EncoderSpec, backbone: nn.Module, layout: TokenLayout) -> None:
    """Refuse scales that an encoder cannot have.

    Raises:
        ConfigError: None at all, one that is out of range, leaves too few pixels or a size that the backbone cannot
            take, or several for a transformer, whose position embedding has one size.
    """
    scales, image_size = spec.scales, spec.preprocessing.image_size
    if scales == ONE_SCALE:
        return
    if layout.is_transformer:
        raise ConfigError(
            f"scales are {_spell(scales)}, but {spec.backbone} is a transformer: its position embedding is of one "
            "size. Leave --scales away, or choose another --image-size; several scales are for convnets."
        )
    if not scales or len(set(scales)) != len(scales) or not all(0 < scale <= MAX_SCALE for scale in scales):
        raise ConfigError(
            f"scales are {_spell(scales)}; expected different numbers in (0, {MAX_SCALE:g}], for example 1 0.7071 0.5."
        )
    smallest = _scale_px(image_size, min(scales))
    if smallest < MIN_CONVNET_PX:
        raise ConfigError(
            f"scale {min(scales):g} of {image_size} px leaves {smallest} px; {spec.backbone} needs {MIN_CONVNET_PX} or "
            "more. Choose larger scales or a larger --image-size."
        )
    for scale in scales:
        try:
            describe_tokens(backbone, _scale_px(image_size, scale))
        except ConfigError as error:
            raise ConfigError(
                f"scales are {_spell(scales)}, but {spec.backbone} takes no pictures of {_scale_px(image_size, scale)} "
                "px beside those of its own size; several scales are for convnets. Leave --scales away."
            ) from error


def resize_pixels(pixels: Tensor, scale: float) -> Tensor:
    """Resize prepared pictures to a share of their side.

    Args:
        pixels: ``(B, 3, S, S)``.
        scale: Share of the side, which is rounded to whole pixels.

    Returns:
        ``(B, 3, S', S')``.

    Source:
        Radenović, Tolias and Chum, arXiv:1711.02512, section 4.1, and their ``extract_ms``: bilinear, not antialiased.
    """
    side = _scale_px(int(pixels.shape[-1]), scale)  # a tensor while it is exported
    return F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)


def combine_scales(embeddings: Tensor, p: float | Tensor) -> Tensor:
    """Combine the embeddings of several scales by the generalised mean, for signed values too.

    ``m = mean(sign(x) |x|^p)``, then ``sign(m) |m|^(1/p)``: for values >= 0 the usual formula, for p = 1 the mean, and
    never NaN. For inference: where ``m`` is zero the gradient is not finite.

    Args:
        embeddings: ``(B, S, E)``, S scales, rows of unit length.
        p: Exponent, at least 1.

    Returns:
        ``(B, E)``, not normalized.

    >>> import torch
    >>> combine_scales(torch.tensor([[[1.0, -1.0], [0.0, -1.0]]]), 1.0)
    tensor([[ 0.5000, -1.0000]])
    """
    if isinstance(p, Tensor):
        p = p.clamp(1.0, GEM_P_MAX)
    # Coordinates of unit vectors are small; brought to about 1, their powers stay in the range of float32.
    size = embeddings.shape[-1] ** 0.5
    mean = (embeddings.sign() * (embeddings.abs() * size).pow(p)).mean(dim=1)  # (B, E)
    combined: Tensor = mean.sign() * mean.abs().pow(1 / p) / size
    return combined


def _scale_px(image_size: int, scale: float) -> int:
    return round(image_size * scale)


def _spell(scales: tuple[float, ...]) -> str:
    return " ".join(f"{scale:g}" for scale in scales) or "none"
