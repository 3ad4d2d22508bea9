"""The tokens before those of the patches, as a timm model's attributes tell them. Next file: ``checkpoint.py``."""

from __future__ import annotations

from torch import nn


def is_transformer(backbone: nn.Module) -> bool:
    """Say whether a timm model puts out tokens with a prefix, and no feature map."""
    return hasattr(backbone, "num_prefix_tokens") or count_class_tokens(backbone) > 0


def count_class_tokens(backbone: nn.Module) -> int:
    """Count the leading tokens that stand for the whole picture."""
    cls_token, dist_token = (getattr(backbone, name, None) for name in ("cls_token", "dist_token"))
    if not isinstance(cls_token, nn.Parameter):
        return 0
    if not hasattr(backbone, "num_prefix_tokens"):  # PiT keeps both of its tokens in one table
        return int(cls_token.shape[1])
    return 1 + int(isinstance(dist_token, nn.Parameter))


def count_prefix_tokens(backbone: nn.Module) -> int:
    """Count the leading tokens that are not of patches: class tokens and registers."""
    counted = getattr(backbone, "num_prefix_tokens", None)
    return count_class_tokens(backbone) if counted is None else int(counted)
