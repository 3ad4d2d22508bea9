"""From the tokens of a backbone, or its feature maps of several scales, to one vector.

All pooling is computed in float32 at least, also under autocast. ``average``, ``max`` and ``gem`` see patch tokens
only, never a prefix token (CLS, distillation, registers). ``rmac`` sees the feature map of a convnet. ``native``, the
model's own pool, needs more than tokens: ``backbone.py:pool_native``.

A convnet may see several scales of one picture. The prepared picture is resized (bilinear) to each scale, an embedding
of unit length is made of each, with the reduction where there is one, and the embeddings are combined coordinate by
coordinate and L2-normalized. GeM without reduction combines by the generalized mean with its own exponent, as the
protocol's authors do for values >= 0. Everything else, in particular what a reduction has made signed, is combined by
the plain mean.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrieve.choices import Pooling
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import ONE_SCALE, EncoderSpec
from vitrieve.model.backbone import MIN_CONVNET_PX, TokenLayout, describe_tokens

GEM_P = 3.0
"""The paper's exponent."""
GEM_P_MAX = 15.0
"""A learned exponent is kept within [1, 15]: beyond, powers of small values leave the range of float32."""
GEM_VALUE_MIN = 0.01
"""Below this pooled value GeM is linear, so that its gradient stays finite."""
NUM_RMAC_SCALES = 3
"""L of R-MAC."""
RMAC_NORM_MIN = 1e-6
"""A region that no channel responds to has no direction: it adds next to nothing."""
_OF_PATCHES: tuple[Pooling, ...] = ("average", "max", "gem", "rmac")


def check_pooling(pooling: Pooling, layout: TokenLayout, backbone_name: str) -> None:
    """Refuse a pooling that needs what a backbone does not put out.

    Raises:
        ConfigError: The message names the poolings that are valid.
    """
    lacks: dict[Pooling, str] = {}
    if layout.num_class_tokens == 0:
        lacks["cls"] = "CLS token"
    if not layout.has_patches:
        lacks |= dict.fromkeys(_OF_PATCHES, "tokens of patches")
    if layout.is_transformer:
        lacks["rmac"] = "feature map, which rmac pools (a convnet has one)"
    if layout.native_width == 0:
        lacks["native"] = "pool of its own"
    if pooling in lacks:
        valid = ", ".join(name for name in get_args(Pooling) if name not in lacks)
        raise ConfigError(f"{backbone_name} has no {lacks[pooling]}; choose --model.pooling from: {valid}.")


def pool_tokens(tokens: Tensor, pooling: Pooling, layout: TokenLayout, p: float | Tensor = GEM_P) -> Tensor:
    """Turn the tokens of each image into one vector.

    ``cls`` of a DeiT † model is the mean of its CLS and its distillation token, in training, evaluation and export
    alike. The paper does not say which token it takes; DeiT's own rule at test time averages the predictions of both
    (Touvron et al. 2021, section 4), and both carry what pre-training put there.

    Args:
        tokens: ``(B, N, D)``, prefix tokens first.
        pooling: Which of the poolings, but not ``native``.
        layout: What the backbone puts out.
        p: Exponent of ``gem``; the other poolings do not read it.

    Returns:
        ``(B, D)``, float32 (float64 stays), not normalized.
    """
    assert pooling != "native", "the model's own pool takes features, not tokens"
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    if pooling == "cls":
        return tokens[:, : layout.num_class_tokens].mean(dim=1)  # (B, D)
    patches = tokens[:, layout.num_prefix_tokens :]  # (B, N - P, D)
    if pooling == "average":
        return patches.mean(dim=1)
    if pooling == "max":
        return patches.amax(dim=1)
    if pooling == "rmac":
        return pool_rmac(patches)
    return pool_gem(patches, p)


def pool_gem(patches: Tensor, p: float | Tensor = GEM_P) -> Tensor:
    """Pool by the generalised mean, for signed tokens.

    ``m = mean(sign(x) |x|^p)``, then ``sign(m) |m|^(1/p)``. For values >= 0 (a feature map after a ReLU) this is GeM.
    Tokens of a transformer are signed: the usual clamp at zero throws half of them away, a plain fractional power of
    a negative number is NaN; the odd extension keeps both signs, and equals the plain formula for p = 3.

    Args:
        patches: ``(B, N, D)``, of any sign.
        p: Exponent, at least 1; 1 is the average, infinity the value of largest magnitude. A tensor of one value is
            learnable, and kept within [1, ``GEM_P_MAX``].

    Returns:
        ``(B, D)``, finite with a finite gradient, also where the mean of powers is zero.

    Source:
        Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", 2018, Eq. 3. Differs
        in the sign, and in being linear for pooled values below ``GEM_VALUE_MIN``.
    """
    if isinstance(p, Tensor):
        p = p.clamp(1.0, GEM_P_MAX)
    mean = (patches.sign() * patches.abs().pow(p)).mean(dim=1)  # (B, D)
    return mean * mean.abs().clamp(min=GEM_VALUE_MIN**p).pow(1 / p - 1)


def pool_rmac(patches: Tensor) -> Tensor:
    """Pool by the regional maximum activation of convolutions (R-MAC), over square regions at three scales.

    Each region is max-pooled and L2-normalized; the regions are added. The encoder L2-normalizes the sum, after its
    reduction, where there is one.

    Args:
        patches: ``(B, N, D)``, the positions of a square feature map row by row.

    Returns:
        ``(B, D)``, finite also where a region is zero.

    Source:
        Tolias, Sicre and Jégou, arXiv:1511.05879, section 3.2. Differs from the paper in that regions are not
        whitened one by one, and from Radenović's code, which adds the whole square map a second time.
    """
    batch_size, num_positions, width = patches.shape
    side = math.isqrt(num_positions)
    assert side * side == num_positions, f"R-MAC needs a square feature map, not {num_positions} positions"
    feature_map = patches.reshape(batch_size, side, side, width)
    pooled = torch.zeros_like(patches[:, 0])  # (B, D)
    for top, left, extent in list_rmac_regions(side):
        region = feature_map[:, top : top + extent, left : left + extent].amax(dim=(1, 2))  # (B, D)
        pooled = pooled + F.normalize(region, dim=1, eps=RMAC_NORM_MIN)
    return pooled


def list_rmac_regions(side: int, num_scales: int = NUM_RMAC_SCALES) -> list[tuple[int, int, int]]:
    """List the regions of a square feature map: at scale l, l x l squares of side 2 side / (l + 1), evenly placed.

    The overlap of 40 % in the paper sets how many more regions the longer side of a picture has. The encoder's input
    is square: there are none, and at scale 1 the only region is the whole map.

    Args:
        side: Positions along a side, 1 or more.
        num_scales: L.

    Returns:
        ``(top, left, extent)`` of each region, in positions; extent is at least 1, so that small maps repeat regions.

    >>> list_rmac_regions(6, 2)
    [(0, 0, 6), (0, 0, 4), (0, 2, 4), (2, 0, 4), (2, 2, 4)]
    """
    regions = []
    for scale in range(1, num_scales + 1):
        extent = max(1, 2 * side // (scale + 1))
        starts = [position * (side - extent) // max(1, scale - 1) for position in range(scale)]
        regions += [(top, left, extent) for top in starts for left in starts]
    return regions


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
