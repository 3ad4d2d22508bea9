"""What a backbone costs: parameters, and floating-point operations for an image.

torch counts the operations (``FlopCounterMode``) while the model runs on the ``meta`` device: shapes without numbers,
so that nothing is allocated and no weights are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrieve.model.backbone import build_backbone, compute_features, describe_tokens, use_explicit_attention

LINEAR_OPERATORS = frozenset({"aten.convolution", "aten.addmm", "aten.mm"})
"""Products with weights: convolutions (the patch embedding is one) and linear layers. The rest (``aten.bmm``) are the
products of tokens with tokens in attention."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a backbone without classifier; pooling and reduction add less than a thousandth.

    A multiplication with its addition counts as two operations; biases, norms and activations do not count.

    Attributes:
        image_size: Side of the input in pixels.
        num_parameters: All of them, among them the position embedding of that size.
        linear_flops: Operations for one image in linear layers and convolutions: the published figures' way.
        flops: The same with the two matrix products of attention.
        num_tokens: Tokens (positions of a feature map) that come out, prefix tokens included; 0: no row of tokens.
        width: Length of a token.
    """

    image_size: int
    num_parameters: int
    linear_flops: int
    flops: int
    num_tokens: int
    width: int


def count_cost(name: str, image_size: int) -> Cost:
    """Count parameters and operations of a backbone; takes no weights and leaves the random state alone.

    Args:
        name: A weights name of ``pretrained.py`` or any timm model name.
        image_size: Side of the square input in pixels.

    Raises:
        ConfigError: The image size does not fit.
        WeightsError: The name is unknown.

    Source:
        The figures of arXiv:2102.05644, Tables 2, 7 and 8, are reproduced for DeiT to 0.1 GFLOPs. Those of ResNet-50
        and -101 (8.3 and 15.7) are 0.13 and 0.10 above the convolutions alone (8.17 and 15.60); the paper does not
        say what was added. Published parameters count the classifier of DeiT; the 46 M of ResNet-101 are neither with
        (44.5 M) nor without it (42.5 M).
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        backbone = build_backbone(name, image_size=image_size, is_pretrained=False).eval()
        pixels = torch.zeros(1, 3, image_size, image_size)
        layout = describe_tokens(backbone, image_size, name)
    use_explicit_attention(backbone)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        compute_features(backbone, pixels)
    flops = {str(operator): int(count) for operator, count in counter.get_flop_counts()["Global"].items()}
    return Cost(
        image_size=image_size,
        num_parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        linear_flops=sum(count for operator, count in flops.items() if operator in LINEAR_OPERATORS),
        flops=sum(flops.values()),
        num_tokens=layout.num_tokens,
        width=layout.width,
    )


def format_cost(cost: Cost) -> str:
    """Describe a cost in one line.

    >>> format_cost(Cost(image_size=224, num_parameters=21_665_664, linear_flops=8_481_669_120, flops=9_196_996_608,
    ...                  num_tokens=197, width=384))
    '21.7 M parameters; 8.5 GFLOPs an image at 224 px in linear layers, 9.2 with attention'
    """
    attention = f", {cost.flops / 1e9:.1f} with attention" if cost.flops != cost.linear_flops else ""
    return (
        f"{cost.num_parameters / 1e6:.1f} M parameters; {cost.linear_flops / 1e9:.1f} GFLOPs an image at "
        f"{cost.image_size} px in linear layers{attention}"
    )
