"""A vision transformer of one block and 16 dimensions, which timm knows by a name: small enough to be kept."""

from __future__ import annotations

import sys
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

NAME = "vit_of_one_block"

default_cfgs = generate_default_cfgs(
    {
        f"{NAME}.random": {
            "input_size": (3, 32, 32),
            "interpolation": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "num_classes": 10,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


def vit_of_one_block(pretrained: bool = False, **options: Any) -> VisionTransformer:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return build_model_with_cfg(VisionTransformer, NAME, pretrained, **{**shape, **options})


def register() -> None:
    """Tell timm the name: it looks for the function and the table of weights in a module by its name."""
    sys.modules.setdefault(vit_of_one_block.__module__, sys.modules[__name__])
    register_model(vit_of_one_block)


register()
