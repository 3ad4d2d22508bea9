"""Backbones: any timm vision transformer or convnet, at any fitting image size. Next file: ``pooling.py``."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitrieve.errors import ConfigError, WeightsError
from vitrieve.model.artefact import describe_non_finite
from vitrieve.model.positions import resample_positions
from vitrieve.model.pretrained import find_weights, pull_weights

MIN_CONVNET_PX = 32
"""The usual convnet halves its input five times."""
NUM_KEYS_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """What a backbone puts out.

    Attributes:
        width: Length of a token (of a position of a feature map).
        num_class_tokens: Leading tokens that stand for the whole picture: 1 (CLS), 2 (CLS and distillation token of
            the DeiT † models), 0 for convnets and transformers without a class token.
        num_prefix_tokens: All leading tokens that are not patches: class tokens and registers.
        is_transformer: Tokens, not a feature map.
    """

    width: int
    num_class_tokens: int
    num_prefix_tokens: int
    is_transformer: bool


def build_backbone(
    name: str,
    *,
    image_size: int,
    weights: str | Path | None = None,
    drop_path_rate: float = 0.0,
    patch_drop_rate: float = 0.0,
    is_pretrained: bool = True,
) -> nn.Module:
    """Build a timm model without its classifier.

    Args:
        name: A weights name of ``pretrained.py`` or any timm model name.
        image_size: Side of the square input in pixels; for a transformer a multiple of its patch. The position
            embedding of the weights is resampled to it (``positions.py``).
        weights: A local ``.safetensors`` file with the backbone's weights, or None for the name's own.
        drop_path_rate: Stochastic depth of the last block, in [0, 1); earlier blocks linearly less.
        patch_drop_rate: Share of the patches left out in training, in [0, 1), drawn for each image from torch's
            global generator; prefix tokens stay (Liu et al., arXiv:2208.07220). For transformers.
        is_pretrained: False leaves the weights random (drawn from torch's global generator).

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
    path = Path(weights) if weights is not None else pull_weights(name)
    load_backbone_states(backbone, read_states(path), str(path))
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
    except TypeError as error:
        raise ConfigError(
            f"{architecture} cannot be built with {options} ({error}). A model without stochastic depth needs "
            "--model.drop-path-rate 0, one without patches --model.patch-drop-rate 0."
        ) from error
    _check_image_size(backbone, architecture, image_size)
    if drop_rates["patch_drop_rate"] > 0:
        # timm builds the distilled models' dropout before it counts their second token, which would be dropped.
        cast(Any, backbone).patch_drop.num_prefix_tokens = cast(Any, backbone).num_prefix_tokens
    return backbone


def _check_image_size(backbone: nn.Module, architecture: str, image_size: int) -> None:
    patch = _get_patch_px(backbone)
    if patch and (image_size < patch or image_size % patch):
        below = image_size // patch * patch
        nearest = [size for size in (below, below + patch) if size > 0]
        raise ConfigError(
            f"image size {image_size} is not a multiple of the patch of {architecture} ({patch} px); "
            f"the nearest valid: {' or '.join(map(str, nearest))}."
        )


def _get_patch_px(backbone: nn.Module) -> int | None:
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


def describe_tokens(backbone: nn.Module) -> TokenLayout:
    """Describe what ``forward_features`` of a timm model puts out."""
    num_prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
    has_class_token = isinstance(getattr(backbone, "cls_token", None), nn.Parameter)
    has_distillation_token = isinstance(getattr(backbone, "dist_token", None), nn.Parameter)
    return TokenLayout(
        width=int(cast(int, backbone.num_features)),
        num_class_tokens=int(has_class_token) + int(has_distillation_token),
        num_prefix_tokens=num_prefix_tokens,
        is_transformer=hasattr(backbone, "num_prefix_tokens"),
    )


def compute_tokens(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """Run a timm model up to its last norm.

    Args:
        backbone: Any timm model.
        pixels: Normalised images, ``(B, 3, S, S)``.

    Returns:
        ``(B, N, D)``: prefix tokens first, then patches row by row; a feature map is flattened in the same order.
    """
    forward_features = cast(Any, backbone).forward_features
    features = cast(Tensor, forward_features(pixels))
    if features.ndim == 3:
        return features
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)  # (B, H, W, D) -> (B, H * W, D)
    return features.flatten(2).transpose(1, 2)  # (B, D, H, W) -> (B, H * W, D)


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
    if not describe_tokens(backbone).is_transformer or blocks is None:
        raise ConfigError("num_frozen_blocks needs a vision transformer; use 0 with a convnet.")
    if not 0 <= num_blocks <= len(blocks):
        raise ConfigError(f"num_frozen_blocks {num_blocks} is out of range; the backbone has {len(blocks)} blocks.")
    frozen_blocks = {f"blocks.{number}." for number in range(num_blocks)}
    above = ("blocks.", "norm.", "fc_norm.", "attn_pool.", "head")
    for name, parameter in backbone.named_parameters():
        is_below_blocks = not name.startswith(above)
        if is_below_blocks or any(name.startswith(block) for block in frozen_blocks):
            parameter.requires_grad_(False)


def read_states(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; never a pickle.

    Raises:
        WeightsError: Missing, another format or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is not a .safetensors file; other formats can run code when they are opened. Convert it first "
            "with safetensors.torch.save_file."
        )
    if not path.is_file():
        raise WeightsError(f"the weights file {path} does not exist; give a .safetensors file.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); fetch or make it again.") from None


def load_backbone_states(backbone: nn.Module, states: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a backbone, strictly, after timm's own filter.

    The filter of the model's family renames keys of other publishers. A position embedding of another size is resampled
    by ``positions.py``, or by the filter where it is laid out in another way. The classifier of the weights is left
    out: the backbone has none. Weights of a vitrieve encoder (``backbone.…``) are accepted too.

    Args:
        backbone: The model; changed in place.
        states: Name to tensor.
        source: Where they come from, for the message.

    Raises:
        WeightsError: Keys or shapes differ (the message names the first few), or a tensor holds NaN or infinity.
    """
    prefix = "backbone."
    if any(name.startswith(prefix) for name in states):
        states = {name.removeprefix(prefix): tensor for name, tensor in states.items() if name.startswith(prefix)}
    states = _filter_states(backbone, _resample_positions(backbone, states), source)
    states = _drop_classifier(backbone, states)
    expected = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in states.items()}
    # Old weights lack the counters of batch norm, which nothing reads in evaluation; torch fills them in.
    counters = {name for name in expected.keys() - found.keys() if name.endswith(".num_batches_tracked")}
    if {name: shape for name, shape in expected.items() if name not in counters} != found:
        raise WeightsError(_describe_mismatch(source, expected, found))
    broken = describe_non_finite({name: tensor.float().numpy() for name, tensor in states.items()})
    if broken:
        raise WeightsError(f"{source} cannot be used: {broken}. Fetch or make the file again.")
    backbone.load_state_dict(states, strict=True)


def _resample_positions(backbone: nn.Module, states: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    table, wanted = states.get("pos_embed"), getattr(backbone, "pos_embed", None)
    if table is None or not isinstance(wanted, Tensor) or table.ndim != 3 or table.shape[::2] != wanted.shape[::2]:
        return states
    num_prefix = 0 if getattr(backbone, "no_embed_class", False) else describe_tokens(backbone).num_prefix_tokens
    old_side, side = (math.isqrt(one.shape[1] - num_prefix) for one in (table, wanted))
    if [old_side**2 + num_prefix, side**2 + num_prefix] != [table.shape[1], wanted.shape[1]] or old_side == side:
        return states
    resampled = resample_positions(table.float().numpy(), num_prefix, side)
    return {**states, "pos_embed": torch.from_numpy(resampled)}


def _filter_states(backbone: nn.Module, states: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    # timm hands a family's filter over inside its builder; by convention it has this name in the family's module.
    filter_states = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if filter_states is None:
        return dict(states)
    try:
        return dict(filter_states(dict(states), backbone))
    except (KeyError, RuntimeError, AttributeError, AssertionError) as error:
        raise WeightsError(f"{source} does not fit {type(backbone).__name__}: {error}.") from error


def _drop_classifier(backbone: nn.Module, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = cast(Any, backbone).pretrained_cfg.get("classifier") or ()
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    dropped = {f"{classifier}.{kind}" for classifier in classifiers for kind in ("weight", "bias")}
    return {name: tensor for name, tensor in states.items() if name not in dropped}


def _describe_mismatch(
    source: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    shared = expected.keys() & found.keys()
    differing = [f"{key} {found[key]} for {expected[key]}" for key in sorted(shared) if found[key] != expected[key]]
    parts = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": differing,
    }
    described = [f"{len(keys)} {what} ({_shorten(keys)})" for what, keys in parts.items() if keys]
    return f"{source} does not fit the backbone: {'; '.join(described)}. Check --model.backbone and --model.weights."


def _shorten(keys: list[str]) -> str:
    rest = len(keys) - NUM_KEYS_SHOWN
    return ", ".join(keys[:NUM_KEYS_SHOWN]) + (f", and {rest} more" if rest > 0 else "")
