"""Names of weights that other programs wrote, as timm spells them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vitrieve.errors import WeightsError
from vitrieve.quoting import quote_name

NUM_KEYS_SHOWN = 4
MIN_SHARE_FOUND = 0.5
"""Of a backbone's own names, that must stand behind a prefix which not all names share."""
_PREFERRED = ("teacher", "ema", "model", "backbone", "encoder", "visual")
"""Which of several copies of a model is taken: the one whose prefix has the earliest of these words."""


class Renamed(NamedTuple):
    """Weights under other names.

    Attributes:
        states: Name to tensor.
        notes: What was changed or left out, in sentences.
    """

    states: Mapping[str, Tensor]
    notes: tuple[str, ...]


def strip_prefix(states: Mapping[str, Tensor], expected: Collection[str], source: str) -> Renamed:
    """Take off what stands before the names of a backbone: ``module.``, ``model.``, ``teacher.backbone.``.

    A prefix that all names share is taken off. Where some names have another, or none, the prefix is the one behind
    which the backbone's own names stand; the other tensors are left out, and named.

    Args:
        states: Name to tensor.
        expected: The backbone's own names.
        source: Where the weights come from, for the message.

    Raises:
        WeightsError: The backbone is there under several prefixes, none of which is preferred.
    """
    prefix = _find_common_prefix(states, expected)
    inner = {name.removeprefix(prefix): tensor for name, tensor in states.items()}
    if not any(name in expected for name in inner):
        further = _find_inner_prefix(inner, expected, source)
        prefix += further
        inner = {name.removeprefix(further): tensor for name, tensor in inner.items() if name.startswith(further)}
    if not prefix:
        return Renamed(states, ())
    note = f"the names in {source} begin with {quote_name(prefix)}, which was taken off."
    left_out = sorted(name for name in states if not name.startswith(prefix))
    if left_out:
        note += f" Left out, for they do not: {shorten_names(left_out)}."
    return Renamed(inner, (note,))


def _find_common_prefix(names: Collection[str], expected: Collection[str]) -> str:
    prefix = ""
    while True:
        parts = {name.removeprefix(prefix).partition(".")[:2] for name in names}
        if len(parts) != 1:
            return prefix
        part, dot = parts.pop()
        if not dot or any(name.startswith(f"{part}.") for name in expected):
            return prefix
        prefix += f"{part}."


def _find_inner_prefix(names: Collection[str], expected: Collection[str], source: str) -> str:
    anchors = {*expected, *_HUGGING_FACE_ANCHORS}
    counts: Counter[str] = Counter()
    for name in names:
        places = [place + 1 for place, sign in enumerate(name) if sign == "."]
        counts.update(name[:place] for place in places if name[place:] in anchors)
    whole = [prefix for prefix, count in counts.items() if count >= MIN_SHARE_FOUND * len(expected)]
    whole = whole or [prefix for prefix in counts if prefix + _HUGGING_FACE_ANCHORS[0] in names]
    ranks = {prefix: _rank_prefix(prefix) for prefix in whole}
    best = [prefix for prefix in whole if ranks[prefix] == min(ranks.values())]
    if len(best) > 1:
        raise WeightsError(
            f"{source} holds the backbone under several names: {shorten_names(sorted(best))}. Save the one you want "
            "alone, with safetensors.torch.save_file."
        )
    return best[0] if best else ""


def _rank_prefix(prefix: str) -> int:
    return next((rank for rank, word in enumerate(_PREFERRED) if word in prefix), len(_PREFERRED))


def shorten_names(names: list[str]) -> str:
    """List the first few of many names."""
    rest = len(names) - NUM_KEYS_SHOWN
    return ", ".join(map(quote_name, names[:NUM_KEYS_SHOWN])) + (f", and {rest} more" if rest > 0 else "")


_HUGGING_FACE_ANCHORS = ("embeddings.cls_token",)
_HUGGING_FACE_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.distillation_token$", "dist_token"),
        (r"^embeddings\.patch_embeddings\.(projection\.)?(?=weight|bias)", "patch_embed.proj."),
        (r"^embeddings\.", ""),
        (r"^((model|encoder)\.)?layer\.(\d+)\.", r"blocks.\3."),
        (r"^(layernorm|norm)\.", "norm."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(attention\.)?(query|key|value)\.", r".\2."),
        (r"\.attention\.(q)_proj\.", ".query."),
        (r"\.attention\.(k)_proj\.", ".key."),
        (r"\.attention\.(v)_proj\.", ".value."),
        (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"(\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"\.mlp\.weights_in\.", ".mlp.w12."),
        (r"\.mlp\.weights_out\.", ".mlp.w3."),
    )
)
_PARTS = ("query", "key", "value")


def rename_hugging_face(states: Mapping[str, Tensor], source: str) -> Renamed:
    """Turn the names that Hugging Face's transformers give to ViT, DeiT, DINOv2 and DINOv3 into their authors'.

    timm's own filters take it from there. Other weights are handed on as they are.
    """
    if _HUGGING_FACE_ANCHORS[0] not in states:
        return Renamed(states, ())
    is_dinov3 = any(name.endswith("_proj.weight") for name in states)
    is_gated = any(".mlp.gate_proj." in name for name in states)
    layers = ("norm", "layernorm", "embeddings", "encoder", "layer", "model")
    left_out = sorted(name for name in states if name.partition(".")[0] not in layers)
    named = {_rename(name): tensor for name, tensor in states.items() if name not in left_out}
    if is_dinov3:
        named = {_rename_dinov3(name, is_gated): tensor for name, tensor in named.items()}
    elif "register_tokens" in named or any(name.endswith(".ls1.gamma") for name in named):
        named.setdefault("mask_token", torch.zeros(1))  # by which timm knows DINOv2
    note = f"the names in {source} are Hugging Face's; they were turned into timm's."
    if left_out:
        note += f" Left out: {shorten_names(left_out)}."
    return Renamed(_join_parts(named), (note,))


def _rename(name: str) -> str:
    for pattern, replacement in _HUGGING_FACE_NAMES:
        name = pattern.sub(replacement, name)
    return name


def _rename_dinov3(name: str, is_gated: bool) -> str:
    inner = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
    plain = {"up_proj": "fc1", "down_proj": "fc2"}
    for theirs, ours in (inner if is_gated else plain).items():
        name = name.replace(f".mlp.{theirs}.", f".mlp.{ours}.")
    return "storage_tokens" if name == "register_tokens" else name


def _join_parts(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put query, key and value, which stand apart, into one matrix; a missing bias (DINOv3's key) is zero."""
    joined = {name: tensor for name, tensor in named.items() if name.split(".")[-2:-1][:1] not in ([p] for p in _PARTS)}
    blocks = {name.rpartition(".query.")[0] for name in named if ".query." in name}
    for block in sorted(blocks):
        for kind in ("weight", "bias"):
            parts = [named.get(f"{block}.{part}.{kind}") for part in _PARTS]
            like = next((part for part in parts if part is not None), None)
            if like is not None:
                whole = [torch.zeros_like(like) if part is None else part for part in parts]
                joined[f"{block}.attn.qkv.{kind}"] = torch.cat(whole)  # (3 D, D) or (3 D,)
    return joined
