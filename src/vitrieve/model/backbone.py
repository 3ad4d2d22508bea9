"""Backbones: any timm vision transformer or convnet, at any fitting image size, and what one costs.

torch counts the operations (``FlopCounterMode``) while a model runs on the ``meta`` device: shapes without numbers, so
that nothing is allocated and no weights are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitrieve.errors import ConfigError
from vitrieve.model.checkpoint import (
    LocalWeights,
    count_class_tokens,
    count_prefix_tokens,
    is_transformer,
    load_backbone_states,
    read_local_weights,
)
from vitrieve.model.pretrained import find_weights, pull_weights

MIN_CONVNET_PX = 32
"""The usual convnet halves its input five times."""
MAX_REASON_LENGTH = 150
"""Characters of what timm says about a setting."""


OwnPooling = Literal["cls", "average", "native"]


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """What a backbone puts out.

    Attributes:
        width: Length of a token (of a position of a feature map).
        num_class_tokens: Leading tokens that stand for the whole picture: 1 (CLS), 2 (CLS and distillation token of
            the DeiT † models), 0 for convnets and transformers without a class token.
        num_prefix_tokens: All leading tokens that are not patches: class tokens and registers.
        is_transformer: Tokens, not a feature map.
        num_tokens: Tokens that come out, prefix tokens included; 0 where what comes out is not one row of tokens.
        has_patches: Behind the prefix tokens stand those of the patches, row by row of a square picture.
        native_width: Length of what the model's own pool makes of them (timm's ``forward_head``); 0: it has none.
        own_pooling: How the model is pooled by those who made it: ``cls`` or ``average`` where that is the same as its
            own pool, else ``native``.
    """

    width: int
    num_class_tokens: int
    num_prefix_tokens: int
    is_transformer: bool
    num_tokens: int = 0
    has_patches: bool = True
    native_width: int = 0
    own_pooling: OwnPooling = "native"


def build_backbone(
    name: str,
    *,
    image_size: int,
    weights: str | Path | LocalWeights | None = None,
    drop_path_rate: float = 0.0,
    patch_drop_rate: float = 0.0,
    is_pretrained: bool = True,
    on_note: Callable[[str], None] = lambda note: None,
) -> nn.Module:
    """Build a timm model without its classifier.

    Args:
        name: A weights name of ``pretrained.py`` or any timm model name.
        image_size: Side of the square input in pixels; for a transformer a multiple of its patch. The position
            embedding of the weights is resampled to it.
        weights: A local file or folder with the backbone's weights (``checkpoint.py``), or None for the name's own.
        drop_path_rate: Stochastic depth of the last block, in [0, 1); earlier blocks linearly less.
        patch_drop_rate: Share of the patches left out in training, in [0, 1), drawn for each image from torch's
            global generator; prefix tokens stay (Liu et al., arXiv:2208.07220). For transformers.
        is_pretrained: False leaves the weights random (drawn from torch's global generator).
        on_note: Called with each sentence about what was changed in the names of local weights, or left out; of weights
            that were fetched by name nothing is told.

    Returns:
        The model in training mode, float32.

    Raises:
        ConfigError: The image size does not fit, or the model has no stochastic depth or no patches to drop.
        WeightsError: The weights are unknown, unreachable or do not fit.
    """
    architecture = find_weights(name).architecture
    drop_rates = {"drop_path_rate": drop_path_rate, "patch_drop_rate": patch_drop_rate}
    if weights is None and not is_pretrained:
        return _create_model(architecture, image_size, drop_rates)
    with torch.random.fork_rng(devices=[]):  # a random start that is thrown away must not change what follows
        backbone = _create_model(architecture, image_size, drop_rates)
    is_named = weights is None
    if not isinstance(weights, LocalWeights):
        weights = read_local_weights(Path(weights) if weights is not None else pull_weights(name))
    notes = (*weights.notes, *load_backbone_states(backbone, weights.states, str(weights.path)))
    for note in () if is_named else notes:
        on_note(note)
    return backbone


def _create_model(architecture: str, image_size: int, drop_rates: Mapping[str, float]) -> nn.Module:
    import timm

    if image_size < 1:
        raise ConfigError(f"image size {image_size} is not a number of pixels; the usual ones are 112 and 224.")
    options: dict[str, Any] = {"num_classes": 0}
    described = timm.get_pretrained_cfg(architecture)
    if described is not None and described.fixed_input_size:
        options["img_size"] = image_size
    elif image_size < MIN_CONVNET_PX:
        raise ConfigError(f"image size {image_size} is too small for {architecture}; use {MIN_CONVNET_PX} or more.")
    options |= {name: rate for name, rate in drop_rates.items() if rate > 0}
    try:
        backbone = timm.create_model(architecture, pretrained=False, **options)
    except Exception as error:  # each family raises its own
        raise ConfigError(_explain_refusal(architecture, options, error)) from error
    _check_image_size(backbone, architecture, image_size)
    if drop_rates["patch_drop_rate"] > 0:
        patch_drop = getattr(backbone, "patch_drop", None)
        if not getattr(patch_drop, "prob", 0):
            raise ConfigError(_REFUSED_OPTIONS["patch_drop_rate"].format(architecture))
        # timm builds the distilled models' dropout before it counts their second token, which would be dropped.
        cast(Any, patch_drop).num_prefix_tokens = cast(Any, backbone).num_prefix_tokens
    return backbone


_REFUSED_OPTIONS = {
    "drop_path_rate": "{} has no stochastic depth; use --model.drop-path-rate 0.",
    "patch_drop_rate": (
        "{} cannot leave patches out; use --model.patch-drop-rate 0, or a plain vision transformer (ViT, DeiT, DINOv2, "
        "DINOv3, EVA-02)."
    ),
}


def _explain_refusal(architecture: str, options: Mapping[str, Any], error: Exception) -> str:
    """Say which of the options is the one that timm's model does not take."""
    import timm

    for name, message in _REFUSED_OPTIONS.items():
        if name in options:
            others = {other: value for other, value in options.items() if other != name}
            with suppress(Exception), torch.device("meta"):  # shapes without numbers: quick
                timm.create_model(architecture, pretrained=False, **others)
                return message.format(architecture)
    return _refuse_image_size(architecture, options.get("img_size"), _get_own_size(architecture), error)


def _refuse_image_size(name: str, image_size: int | None, own_size: int | None, error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    at_size = "" if image_size is None else f" pictures of {image_size} px"
    advice = f"; it was made for {own_size} px (--image-size {own_size})" if own_size not in (None, image_size) else ""
    return f"{name} cannot be used with{at_size or ' these settings'}: {reason[:MAX_REASON_LENGTH]}{advice}."


def _get_own_size(architecture: str) -> int | None:
    import timm

    described = timm.get_pretrained_cfg(architecture)
    return None if described is None else int(described.input_size[-1])


def _check_image_size(backbone: nn.Module, architecture: str, image_size: int) -> None:
    patch = get_patch_px(backbone)
    if patch and (image_size < patch or image_size % patch):
        below = image_size // patch * patch
        nearest = [size for size in (below, below + patch) if size > 0]
        raise ConfigError(
            f"image size {image_size} is not a multiple of the patch of {architecture} ({patch} px); "
            f"the nearest valid: {' or '.join(map(str, nearest))}."
        )


def get_patch_px(backbone: nn.Module) -> int | None:
    """Return the side of a patch in pixels; None for a model that cuts no patches."""
    patch_size = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch_size is None:
        return None
    return int(patch_size[0] if isinstance(patch_size, tuple | list) else patch_size)


def use_explicit_attention(backbone: nn.Module) -> None:
    """Let attention be two matrix products and a softmax, instead of torch's fused kernel.

    In bf16 the gradient of torch's fused kernel for CPUs takes 40 % of a training step of ViT-S at 112 px; written out,
    the step is 1.7 times as fast (measured with torch 2.14 by ``benchmarks/training_step.py``). In float32 the fused
    kernel is as fast and needs a sixth less memory. The values differ by rounding only.
    """
    for module in backbone.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = False


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Switch a module to evaluation, and each of its parts back to what it was afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def describe_tokens(backbone: nn.Module, image_size: int, name: str = "the backbone") -> TokenLayout:
    """Describe what a timm model puts out, by running it on one picture.

    Args:
        backbone: Any timm model; left as it was.
        image_size: Side of the picture in pixels.
        name: What the message and the rule for DINOv3 know the model by.

    Raises:
        ConfigError: The model cannot take pictures of this size.
    """
    device = next(backbone.parameters()).device
    ramp = torch.arange(3 * image_size * image_size, device=device, dtype=torch.float32)
    pixels = torch.sin(ramp).reshape(1, 3, image_size, image_size)
    with evaluation_mode(backbone), torch.no_grad():
        try:
            features = compute_features(backbone, pixels)
            native = cast(Any, backbone).forward_head(features, pre_logits=True)
        except Exception as error:  # each family raises its own
            own_size = cast(Any, backbone).pretrained_cfg["input_size"][-1]
            raise ConfigError(_refuse_image_size(name, image_size, int(own_size), error)) from error
    has_native = isinstance(native, Tensor) and native.ndim == 2
    num_class, num_prefix = count_class_tokens(backbone), count_prefix_tokens(backbone)
    tokens = features_to_tokens(backbone, features) if isinstance(features, Tensor) else None
    num_tokens = 0 if tokens is None else tokens.shape[1]
    num_patches = num_tokens - num_prefix
    return TokenLayout(
        width=native.shape[-1] if tokens is None else tokens.shape[-1],
        num_class_tokens=0 if tokens is None else num_class,
        num_prefix_tokens=num_prefix,
        is_transformer=is_transformer(backbone),
        num_tokens=num_tokens,
        has_patches=num_patches > 0 and math.isqrt(num_patches) ** 2 == num_patches,
        native_width=native.shape[-1] if has_native else 0,
        own_pooling=_name_own_pooling(name, tokens, native, num_class, num_prefix),
    )


def _name_own_pooling(
    name: str, tokens: Tensor | None, native: Tensor, num_class_tokens: int, num_prefix_tokens: int
) -> OwnPooling:
    if tokens is None or tokens.is_meta:
        return "native"
    if "dinov3" in name and num_class_tokens:  # its authors take CLS; timm's mean is only its constructor's default
        return "cls"
    candidates: dict[OwnPooling, Tensor] = {
        "cls": tokens[:, :num_class_tokens].mean(dim=1),
        "average": tokens[:, num_prefix_tokens:].mean(dim=1),
    }
    for pooling, candidate in candidates.items():
        is_same = candidate.shape == native.shape and torch.allclose(candidate, native, rtol=1e-4, atol=1e-6)
        if is_same and candidate.any():
            return pooling
    return "native"


def compute_features(backbone: nn.Module, pixels: Tensor) -> Any:
    """Run a timm model up to its head.

    Args:
        backbone: Any timm model.
        pixels: Normalized images, ``(B, 3, S, S)``.

    Returns:
        What ``forward_features`` gives: tokens, a feature map in either order, or a list of the model's own.
    """
    return cast(Any, backbone).forward_features(pixels)


def features_to_tokens(backbone: nn.Module, features: Tensor) -> Tensor:
    """Lay features out as tokens.

    Returns:
        ``(B, N, D)``: prefix tokens first, then patches row by row; a feature map is flattened in the same order.
    """
    if features.ndim == 3:
        return features
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)  # (B, H, W, D) -> (B, H * W, D)
    return features.flatten(2).transpose(1, 2)  # (B, D, H, W) -> (B, H * W, D)


def pool_native(backbone: nn.Module, features: Any) -> Tensor:
    """Pool features as the model itself does before its classifier, in float32.

    Args:
        backbone: Any timm model.
        features: Result of ``compute_features``.

    Returns:
        ``(B, D)`` float32, not normalized: timm's ``forward_head(pre_logits=True)``.
    """
    many = features if isinstance(features, list | tuple) else [features]
    exact = [feature.float() for feature in many]
    with torch.autocast(exact[0].device.type, enabled=False):
        pooled = cast(Any, backbone).forward_head(exact if many is features else exact[0], pre_logits=True)
    return cast(Tensor, pooled)


def freeze_lower_blocks(backbone: nn.Module, num_blocks: int) -> None:
    """Stop the training of the embedding of patches and positions and of the first transformer blocks.

    Args:
        backbone: A timm model; its parameters' ``requires_grad`` is changed.
        num_blocks: How many blocks; 0 changes nothing.

    Raises:
        ConfigError: More blocks than there are, or a model without transformer blocks.
    """
    if num_blocks == 0:
        return
    blocks = getattr(backbone, "blocks", None)
    if not is_transformer(backbone) or not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise ConfigError(
            f"num_frozen_blocks is {num_blocks}, but {type(backbone).__name__} is not a vision transformer with blocks "
            "of one size; use 0."
        )
    if not 0 <= num_blocks <= len(blocks):
        raise ConfigError(f"num_frozen_blocks {num_blocks} is out of range; the backbone has {len(blocks)} blocks.")
    children = [name for name, _ in backbone.named_children()]
    above = set(children[children.index("blocks") + 1 :])
    if above & _CLASS_BLOCKS:  # the class token joins the patches above the blocks
        above.add("cls_token")
    frozen_blocks = {str(number) for number in range(num_blocks)}
    for name, parameter in backbone.named_parameters():
        part, _, rest = name.partition(".")
        if part not in above and (part != "blocks" or rest.partition(".")[0] in frozen_blocks):
            parameter.requires_grad_(False)


_CLASS_BLOCKS = frozenset({"blocks_token_only", "cls_attn_blocks"})
"""Names of the blocks of CaiT and XCiT in which the class token looks at the patches."""


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
