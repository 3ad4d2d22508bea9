"""The head: what a baseline trains between pooling and normalisation. Next file: ``reduction.py``.

The paper's own models have none. ProxyNCA++ and the normalised softmax standardise the pooled features; XBM, and every
row with a stated number of dimensions, ends in a linear layer.
"""

from __future__ import annotations

from torch import nn

from vitrieve.model.spec import EncoderSpec


def build_head(width: int, spec: EncoderSpec) -> nn.Sequential:
    """Build the head of an encoder; with neither part it hands the features on, and has no weights.

    Args:
        width: Dimensions of the pooled features, D.
        spec: ``head_norm`` standardises the D values of each image to mean 0 and variance 1; ``head_dim`` adds a
            linear layer with bias, drawn from torch's global generator.

    Returns:
        ``(B, D)`` to ``(B, head_dim)``, or to ``(B, D)`` without linear layer.

    Source:
        Teh, DeVries and Taylor, arXiv:2004.01113, section 3.3; Zhai and Wu, arXiv:1811.12649, section 3.3 (norm, then
        linear layer); Wang et al., arXiv:1912.06798, section 4.1 (linear layer).
    """
    parts = nn.Sequential()
    if spec.head_norm:
        parts.add_module("norm", nn.LayerNorm(width, elementwise_affine=False))
    if spec.head_dim is not None:
        parts.add_module("linear", nn.Linear(width, spec.head_dim))
    return parts
