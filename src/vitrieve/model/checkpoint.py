"""Weights from a file into a backbone: names of other publishers, prefixes, positions."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitrieve.errors import WeightsError
from vitrieve.model.artifact import describe_non_finite
from vitrieve.model.key_names import Renamed, rename_hugging_face, shorten_names, strip_prefix
from vitrieve.model.positions import resample_positions


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


def load_backbone_states(backbone: nn.Module, states: Mapping[str, Tensor], source: str) -> tuple[str, ...]:
    """Load weights into a backbone, strictly, after timm's own filter.

    The filter of the model's family renames keys of other publishers. A position embedding of another size is resampled
    by ``positions.py``, or by the filter where it is laid out in another way. The classifier of the weights is left
    out: the backbone has none. A prefix before the names is taken off, and Hugging Face's names are understood
    (``key_names.py``). Weights of a vitrieve encoder (``backbone.…``) are accepted too.

    Args:
        backbone: The model; changed in place.
        states: Name to tensor.
        source: Where they come from, for the message.

    Returns:
        What was changed in the names, or left out, in sentences for the user; empty where nothing was.

    Raises:
        WeightsError: Keys or shapes differ (the message names the first few), or a tensor holds NaN or infinity.
    """
    renamed = _read_own_names(states, source) or strip_prefix(states, backbone.state_dict().keys(), source)
    states, notes = renamed
    states, further = rename_hugging_face(states, source)
    _check_biases(backbone, states, source)
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
    return (*notes, *further)


def _read_own_names(states: Mapping[str, Tensor], source: str) -> Renamed | None:
    """Take the backbone out of an encoder of ours; None where there is none."""
    prefix = "backbone."
    inner = {name.removeprefix(prefix): tensor for name, tensor in states.items() if name.startswith(prefix)}
    left_out = sorted(name for name in states if not name.startswith(prefix))
    note = f"of {source} the backbone is used; left out: {shorten_names(left_out)}."
    return Renamed(inner, (note,) if left_out else ()) if inner else None


def _check_biases(backbone: nn.Module, states: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights of DINOv3 with biases for a model without: timm's filter would drop them."""
    lacks = "storage_tokens" in states and not any(name.endswith(".q_bias") for name in backbone.state_dict())
    used = [name for name, tensor in states.items() if name.endswith("attn.qkv.bias") and tensor.nan_to_num().any()]
    if lacks and used:
        raise WeightsError(
            f"{source} does not fit the backbone: it has biases in its attention ({shorten_names(used)}), which the "
            "backbone has not. Use the backbone whose name ends in dinov3_qkvb."
        )


def _resample_positions(backbone: nn.Module, states: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    table, wanted = states.get("pos_embed"), getattr(backbone, "pos_embed", None)
    if table is None or not isinstance(wanted, Tensor) or table.ndim != 3 or table.shape[::2] != wanted.shape[::2]:
        return states
    num_prefix = 0 if getattr(backbone, "no_embed_class", False) else count_prefix_tokens(backbone)
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
    """Leave out the classifier, and the layers of its head that stand behind the pool and not in the backbone."""
    named = cast(Any, backbone).pretrained_cfg.get("classifier") or ()
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    dropped = {f"{classifier}.{kind}" for classifier in classifiers for kind in ("weight", "bias")}
    heads = tuple(f"{classifier.rpartition('.')[0]}." for classifier in classifiers if "." in classifier)
    own = backbone.state_dict().keys()
    return {
        name: tensor
        for name, tensor in states.items()
        if name not in dropped and (name in own or not heads or not name.startswith(heads))
    }


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
    described = [f"{len(keys)} {what} ({shorten_names(keys)})" for what, keys in parts.items() if keys]
    return f"{source} does not fit the backbone: {'; '.join(described)}. Check --model.backbone and --model.weights."
