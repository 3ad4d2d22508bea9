"""Prompt tuning: a few tokens that are trained stand beside those of the picture in every block; the weights stay.

Behind the class token and the registers, each block gets P tokens of its own, and what it makes of them is dropped:
the next block has its own. So the rest of the encoder sees the tokens that it always saw.

Source:
    Jia et al., Visual Prompt Tuning, arXiv:2203.12119, Eq. 6 and 7 (VPT-Deep), drawn as in the authors' code. Their
    dropout of the prompts is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitrieve.config import PromptConfig
from vitrieve.errors import ConfigError

PROMPTS = "prompts"
"""Name of a block's parameter."""


class PromptedBlock(nn.Module):
    """The part that a block of timm inherits from when it has prompts: a block keeps its weights and their names.

    Attributes:
        prompts: ``(P, D)``, the tokens of this block.
        num_prefix_tokens: Tokens before the patches, behind which the prompts stand.
    """

    prompts: nn.Parameter
    num_prefix_tokens: int

    def forward(self, tokens: Tensor, *args: Any, **options: Any) -> Tensor:
        """Compute ``(B, N, D)`` to ``(B, N, D)`` with the prompts among the tokens."""
        prefix, patches = tokens[:, : self.num_prefix_tokens], tokens[:, self.num_prefix_tokens :]
        prompts = self.prompts.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        out = super().forward(torch.cat((prefix, prompts, patches), dim=1), *args, **options)
        first_patch = self.num_prefix_tokens + len(self.prompts)
        return torch.cat((out[:, : self.num_prefix_tokens], out[:, first_patch:]), dim=1)


def add_prompts(backbone: nn.Module, num_tokens: int) -> None:
    """Give every block of a backbone prompts.

    Args:
        backbone: A plain vision transformer of timm; changed. The prompts are drawn from torch's global generator.
        num_tokens: Prompts of a block.

    Raises:
        ConfigError: The backbone is another one: its blocks would not take further tokens.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(backbone, VisionTransformer):
        raise ConfigError(
            f"model.prompts.num_tokens adds tokens to the blocks of a plain vision transformer (ViT, DeiT, DINOv2); "
            f"the blocks of {type(backbone).__name__} take none."
        )
    bound = math.sqrt(6 / (3 * math.prod(backbone.patch_embed.patch_size) + backbone.embed_dim))
    for block in cast(Iterable[Any], backbone.blocks):
        block.__class__ = type(f"Prompted{type(block).__name__}", (PromptedBlock, type(block)), {})
        block.num_prefix_tokens = backbone.num_prefix_tokens
        start = next(backbone.parameters()).new_empty(num_tokens, backbone.embed_dim)
        block.prompts = nn.Parameter(nn.init.uniform_(start, -bound, bound))


def tune_prompts(backbone: nn.Module, config: PromptConfig, *, keeps_trained: bool) -> None:
    """Let prompts be trained, and nothing else of a backbone.

    Args:
        backbone: The backbone; changed. Where its weights came with prompts, these are trained on.
        config: Number of prompts; without one nothing is changed.
        keeps_trained: Whether something else was chosen to be trained, too (LoRA), and is left so.

    Raises:
        ConfigError: The backbone takes no prompts, or has another number of them already.
    """
    if config.num_tokens is None:
        return
    if not keeps_trained:
        backbone.requires_grad_(False)
    before = count_prompts(backbone.state_dict())
    if before not in (0, config.num_tokens):
        raise ConfigError(
            f"model.prompts.num_tokens is {config.num_tokens}, but the weights come with {before} prompts; use "
            f"{before}."
        )
    if before == 0:
        add_prompts(backbone, config.num_tokens)
    for name, parameter in backbone.named_parameters():
        if name.endswith(f".{PROMPTS}"):
            parameter.requires_grad_(True)


def count_prompts(states: Mapping[str, Tensor]) -> int:
    """Count the prompts of a block in the weights of a backbone; 0 where it has none."""
    return next((len(tensor) for name, tensor in states.items() if name.endswith(f".{PROMPTS}")), 0)
