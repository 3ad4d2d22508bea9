"""The last block of a vision transformer, where only the class tokens that come out of it are pooled.

Every token is a key and a value of the class tokens, and nothing else of it is read: no query, no projection and no
hidden layer. Leaving them out saves nine twelfths of the block's products with weights, and changes rounding only.

Training changes its encoder for that (``keep_class_tokens``, ``pooled_only``). The torch engine takes a second encoder
with the same weights (``share_for_embedding``), because another thread may want the tokens of the first; and a graph
has the last block twice (``forward_both_apart``), so that an engine computes what it is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from vitrieve.model.encoder import ImageEncoder


class ClassTokenBlock(Block):
    """timm's block, of which only the class tokens come out within ``pooled_only``.

    Attributes:
        num_class_tokens: Leading tokens that come out then.
        is_pooled_only: Whether nothing else is read.
    """

    num_class_tokens: int
    is_pooled_only = False

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        """Compute ``(B, N, D)`` to ``(B, num_class_tokens, D)`` where nothing else is read, else to ``(B, N, D)``."""
        if not self.is_pooled_only or args or options:
            return super().forward(x, *args, **options)
        kept = x[:, : self.num_class_tokens]
        kept = kept + self.drop_path1(self.ls1(_attend(self.attn, self.norm1(x), self.num_class_tokens)))
        return kept + self.drop_path2(self.ls2(self.mlp(self.norm2(kept))))  # type: ignore[no-any-return]


def keep_class_tokens(encoder: ImageEncoder) -> None:
    """Let an encoder compute within ``pooled_only`` what is pooled of its last block; its weights stay as they are.

    Args:
        encoder: Encoder; changed where it is a plain vision transformer of timm that is pooled by its class tokens.
    """
    if _can_keep_class_tokens(encoder):
        _change_block(_get_blocks(encoder)[-1], encoder)


def share_for_embedding(encoder: ImageEncoder) -> ImageEncoder:
    """Return an encoder that computes embeddings alone, of the last block only what is pooled.

    Args:
        encoder: Encoder; it stays as it is, and can be used at the same time.

    Returns:
        An encoder with the same parameters, not copies of them; the one that was given where nothing can be left out.
    """
    if not _can_keep_class_tokens(encoder):
        return encoder
    shared, backbone, blocks = (_copy_module(part) for part in (encoder, encoder.backbone, _get_blocks(encoder)))
    block: Any = _copy_module(blocks[-1])
    _change_block(block, encoder)
    block.is_pooled_only = True
    blocks[-1] = block
    backbone.blocks = blocks
    shared.backbone = backbone
    return shared  # type: ignore[no-any-return]


def forward_both_apart(encoder: ImageEncoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute embeddings and patch tokens as ``encoder.forward_both``, with a last block for each.

    In a graph that is traced from it the embeddings need nothing that is computed for the tokens alone.
    """
    shared = share_for_embedding(encoder)
    if shared is encoder:
        return encoder.forward_both(pixels)
    tokens: list[Tensor] = []
    handle = _get_blocks(encoder)[-1].register_forward_pre_hook(lambda _, given: tokens.append(given[0]))
    try:
        patch_tokens = encoder.patch_tokens(pixels)
    finally:
        handle.remove()
    backbone: Any = encoder.backbone
    class_tokens = backbone.norm(_get_blocks(shared)[-1](tokens[0]))  # (B, num_class_tokens, D)
    return encoder.embed_features(class_tokens), patch_tokens


def _get_blocks(encoder: ImageEncoder) -> Any:
    return encoder.backbone.blocks


def _can_keep_class_tokens(encoder: ImageEncoder) -> bool:
    backbone = encoder.backbone
    is_plain = (
        isinstance(backbone, VisionTransformer)
        and type(backbone).forward_features is VisionTransformer.forward_features
    )
    if encoder.spec.pooling != "cls" or not is_plain:
        return False
    block = _get_blocks(encoder)[-1]
    return (
        type(block) in (Block, ClassTokenBlock)
        and type(block.attn) is Attention
        and getattr(block.attn, "gate", None) is None
    )


def _change_block(block: Any, encoder: ImageEncoder) -> None:
    block.__class__ = ClassTokenBlock
    block.num_class_tokens = encoder.layout.num_class_tokens


def _copy_module(module: Any) -> Any:
    """Copy a module without its parts, which both have then; parts may be put in the place of those of the copy."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


@contextmanager
def pooled_only(encoder: nn.Module) -> Iterator[None]:
    """Compute embeddings, and no tokens, of an encoder that may have been through ``keep_class_tokens``."""
    blocks = [part for part in encoder.modules() if isinstance(part, ClassTokenBlock)]
    for block in blocks:
        block.is_pooled_only = True
    try:
        yield
    finally:
        for block in blocks:
            block.is_pooled_only = False


def _attend(layer: Any, tokens: Tensor, num_queries: int) -> Tensor:
    """Compute timm's attention for the first tokens alone; ``(B, N, D)`` to ``(B, num_queries, D)``."""
    num_images, num_tokens, _ = tokens.shape
    products = layer.qkv(tokens).reshape(num_images, num_tokens, 3, layer.num_heads, -1)
    q, k, v = products.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, D / H) each
    q, k = layer.q_norm(q[:, :, :num_queries]), layer.k_norm(k)
    if layer.fused_attn:
        dropout = layer.attn_drop.p if layer.training else 0.0
        values = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        values = layer.attn_drop((q * layer.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
    values = values.transpose(1, 2).flatten(2)  # (B, num_queries, D)
    return layer.proj_drop(layer.proj(layer.norm(values)))  # type: ignore[no-any-return]
