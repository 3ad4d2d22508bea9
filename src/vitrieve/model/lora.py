"""LoRA: of each linear layer in the blocks of a transformer, a product of two small matrices is trained beside it.

``y = W x + b + α/r · B A x`` with ``A (r, n)`` and ``B (m, r)``; ``W`` and ``b`` stay as they are. B begins at zero, so
the encoder begins as it came. After training the product is added to ``W``: the encoder is one like any other.

Source:
    Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685, Eq. 3. A is drawn as in the
    authors' code. What differs: all linear layers of the blocks are adapted, not the query and value
    projections alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrieve.config import LoraConfig
from vitrieve.errors import ConfigError
from vitrieve.model.backbone import compute_features, evaluation_mode

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LoraLinear(nn.Linear):
    """A linear layer that is not trained, and the two factors of what is added to it, which are.

    Args:
        layer: Layer whose weight and bias are shared.
        rank: Rows of A and columns of B.
        scale: Factor on the product.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = scale
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """Compute ``(…, n)`` to ``(…, m)``."""
        added = functional.linear(functional.linear(input, self.lora_a), self.scale * self.lora_b)
        return super().forward(input) + added

    def merge(self) -> nn.Linear:
        """Build the plain layer that computes the same; the product is added in double precision."""
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        with torch.no_grad():
            merged = self.weight.double() + self.scale * self.lora_b.double() @ self.lora_a.double()
        plain.weight, plain.bias = nn.Parameter(merged.to(self.weight.dtype)), self.bias
        return plain.train(self.training)


def add_lora(backbone: nn.Module, config: LoraConfig, image_size: int) -> None:
    """Let factors be trained beside the linear layers of the blocks, and nothing else of a backbone.

    Layers that are frozen already get none.

    Args:
        backbone: A timm transformer; changed. Factors are drawn from torch's global generator.
        config: Rank and alpha; without a rank nothing is changed.
        image_size: Side of the pictures in pixels.

    Raises:
        ConfigError: No blocks with linear layers, a rank that is not below the sides of any, or a backbone that takes
            weights out of its layers and multiplies itself.
    """
    if config.rank is None:
        return
    rank, blocks = config.rank, getattr(backbone, "blocks", None)
    linear = {name: layer for name, layer in _list_linear(blocks) if layer.weight.requires_grad}
    chosen = {name: layer for name, layer in linear.items() if rank < min(layer.weight.shape)}
    if not chosen or blocks is None:
        reason = f"the rank {rank} is not below the sides of any of its layers" if linear else "none is left to train"
        raise ConfigError(
            f"model.lora.rank adapts the linear layers in the blocks of a vision transformer; of "
            f"{type(backbone).__name__} {reason if blocks is not None else 'there are none'}."
        )
    _check_called(backbone, chosen, image_size)
    for parameter in backbone.parameters():
        parameter.requires_grad_(False)
    scale = 1.0 if config.alpha is None else config.alpha / rank
    for name, layer in chosen.items():
        blocks.set_submodule(name, LoraLinear(layer, rank, scale).train(layer.training))


def _list_linear(blocks: nn.Module | None) -> Iterator[tuple[str, nn.Linear]]:
    if blocks is None:
        return
    for name, part in blocks.named_modules():
        if type(part) is nn.Linear:
            yield name, part


def _check_called(backbone: nn.Module, layers: dict[str, nn.Linear], image_size: int) -> None:
    """Refuse a backbone that does not call a layer, whose factors would be without effect."""
    called: set[nn.Module] = set()
    hooks = [layer.register_forward_hook(lambda part, *_: called.add(part)) for layer in layers.values()]
    device = next(backbone.parameters()).device
    with evaluation_mode(backbone), torch.no_grad():
        compute_features(backbone, torch.zeros(1, 3, image_size, image_size, device=device))
    for hook in hooks:
        hook.remove()
    left_out = [name for name, layer in layers.items() if layer not in called]
    if left_out:
        raise ConfigError(
            f"{type(backbone).__name__} multiplies by the weights of {left_out[0]} itself, so that model.lora.rank "
            "would be without effect there; choose a plain vision transformer (ViT, DeiT, DINOv2)."
        )


def merge_lora(module: ModuleT) -> ModuleT:
    """Return a copy in which every product is added to its layer; the module itself where it has none."""
    if not any(isinstance(part, LoraLinear) for part in module.modules()):
        return module
    merged = copy.deepcopy(module)
    for name, part in list(merged.named_modules()):
        if isinstance(part, LoraLinear):
            merged.set_submodule(name, part.merge())
    return merged


def describe_trained(module: nn.Module) -> str:
    """Say how many of a module's weights are trained."""
    sizes = {True: 0, False: 0}
    for parameter in module.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    return f"{sizes[True] / 1e6:.2f} M weights are trained, beside {sizes[False] / 1e6:.1f} M that stay as they are"
