"""Pooling: from the tokens of a backbone to one vector. Next file: ``reduction.py``.

All of it in float32 at least, also under autocast. ``average``, ``max`` and ``gem`` see patch tokens only, never a
prefix token (CLS, distillation, registers).
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from vitrieve.config import Pooling
from vitrieve.errors import ConfigError
from vitrieve.model.backbone import TokenLayout

GEM_P = 3.0
"""The paper's exponent."""
GEM_MEAN_MIN = 1e-6
"""Below this mean of powers (a pooled value below 0.01) GeM is linear, so that its gradient stays finite."""


def check_pooling(pooling: Pooling, layout: TokenLayout, backbone_name: str) -> None:
    """Refuse CLS pooling for a backbone without a class token.

    Raises:
        ConfigError: The message names the poolings that are valid.
    """
    if pooling == "cls" and layout.num_class_tokens == 0:
        valid = ", ".join(name for name in get_args(Pooling) if name != "cls")
        raise ConfigError(f"{backbone_name} has no CLS token; choose --model.pooling from: {valid}.")


def pool_tokens(tokens: Tensor, pooling: Pooling, layout: TokenLayout) -> Tensor:
    """Turn the tokens of each image into one vector.

    ``cls`` of a DeiT † model is the mean of its CLS and its distillation token, in training, evaluation and export
    alike. The paper does not say which token it takes; DeiT's own rule at test time averages the predictions of both
    (Touvron et al. 2021, section 4), and both carry what pre-training put there.

    Args:
        tokens: ``(B, N, D)``, prefix tokens first.
        pooling: Which of the poolings.
        layout: What the backbone puts out.

    Returns:
        ``(B, D)``, float32 (float64 stays), not normalised.
    """
    tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
    if pooling == "cls":
        return tokens[:, : layout.num_class_tokens].mean(dim=1)  # (B, D)
    patches = tokens[:, layout.num_prefix_tokens :]  # (B, N - P, D)
    if pooling == "average":
        return patches.mean(dim=1)
    if pooling == "max":
        return patches.amax(dim=1)
    return pool_gem(patches)


def pool_gem(patches: Tensor, p: float = GEM_P) -> Tensor:
    """Pool by the generalised mean, for signed tokens.

    ``m = mean(sign(x) |x|^p)``, then ``sign(m) |m|^(1/p)``. For values >= 0 (a feature map after a ReLU) this is GeM.
    Tokens of a transformer are signed: the usual clamp at zero throws half of them away, a plain fractional power of
    a negative number is NaN; the odd extension keeps both signs, and equals the plain formula for p = 3.

    Args:
        patches: ``(B, N, D)``, of any sign.
        p: Exponent, at least 1; 1 is the average, infinity the value of largest magnitude.

    Returns:
        ``(B, D)``, finite with a finite gradient, also where the mean of powers is zero.

    Source:
        Radenović, Tolias and Chum, "Fine-tuning CNN image retrieval with no human annotation", 2018, Eq. 3. Differs
        in the sign, in a fixed p, and in being linear for ``|m|`` below ``GEM_MEAN_MIN``.
    """
    mean = (patches.sign() * patches.abs().pow(p)).mean(dim=1)  # (B, D)
    return mean * mean.abs().clamp(min=GEM_MEAN_MIN).pow(1 / p - 1)
