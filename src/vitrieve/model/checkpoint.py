"""Weights of a file or folder in a backbone: what the file holds, names of other publishers, prefixes, positions.

A user may name a safetensors file, a checkpoint of torch, or the folder of a run or an encoder. No code that a file
holds is run. Names are turned into timm's, and a position embedding of another size is resampled.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import struct
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vitrieve.errors import WeightsError
from vitrieve.model.artifact import (
    SPEC_NAME,
    WEIGHTS_NAME,
    EncoderSpec,
    find_encoder_folder,
    read_contents,
    require_weights,
)
from vitrieve.model.hub import is_hub_name
from vitrieve.model.positions import resample_positions
from vitrieve.model.prompts import add_prompts, count_prompts
from vitrieve.model.published import pull_encoder
from vitrieve.model.tensors import describe_non_finite
from vitrieve.model.text import find_text_part
from vitrieve.quoting import quote_name

NUM_KEYS_SHOWN = 4
MIN_SHARE_FOUND = 0.5
"""Share of a backbone's own names that must stand behind a prefix which not all names have."""
_PREFERRED_WORDS = ("teacher", "ema", "model", "backbone", "encoder", "visual")
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
        source: Name of the file, for the message.

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
        ends = [position + 1 for position, sign in enumerate(name) if sign == "."]
        counts.update(name[:end] for end in ends if name[end:] in anchors)
    whole = [prefix for prefix, count in counts.items() if count >= MIN_SHARE_FOUND * len(expected)]
    whole = whole or [prefix for prefix in counts if any(prefix + anchor in names for anchor in _HUGGING_FACE_ANCHORS)]
    ranks = {prefix: _rank_prefix(prefix) for prefix in whole}
    best = [prefix for prefix in whole if ranks[prefix] == min(ranks.values())]
    if len(best) > 1:
        raise WeightsError(
            f"{source} holds the backbone under several names: {shorten_names(sorted(best))}. Save the one you want "
            "alone, with safetensors.torch.save_file."
        )
    return best[0] if best else ""


def _rank_prefix(prefix: str) -> int:
    words = re.split(r"[._]", prefix)
    return next((rank for rank, word in enumerate(_PREFERRED_WORDS) if word in words), len(_PREFERRED_WORDS))


def shorten_names(names: list[str]) -> str:
    """List the first few of many names."""
    rest = len(names) - NUM_KEYS_SHOWN
    return ", ".join(map(quote_name, names[:NUM_KEYS_SHOWN])) + (f", and {rest} more" if rest > 0 else "")


_HUGGING_FACE_ANCHORS = ("embeddings.cls_token", "embeddings.class_embedding")
_HUGGING_FACE_CLIP = {"embeddings.class_embedding", "embeddings.position_embedding.weight"}
"""Names by which a CLIP is known; BLIP, whose other layers differ, has only the first."""
_HUGGING_FACE_NAMES = (
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
_HUGGING_FACE_CLIP_NAMES = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_laye?rnorm\.", "norm_pre."),  # CLIP has the first spelling, and some that follow it the second
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.q_proj\.", ".query."),
    (r"\.self_attn\.k_proj\.", ".key."),
    (r"\.self_attn\.v_proj\.", ".value."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)
_PARTS = ("query", "key", "value")


def rename_hugging_face(states: Mapping[str, Tensor], source: str) -> Renamed:
    """Turn the names that Hugging Face's transformers give to ViT, DeiT, DINOv2, DINOv3 and CLIP into known ones.

    They become the names of the models' authors, of CLIP timm's own; timm's filters take it from there. Other weights
    are handed on as they are.
    """
    is_clip = states.keys() >= _HUGGING_FACE_CLIP
    if not is_clip and _HUGGING_FACE_ANCHORS[0] not in states:
        return Renamed(states, ())
    layers: tuple[str, ...] = ("norm", "layernorm", "embeddings", "encoder", "layer", "model")
    if is_clip:
        layers = ("embeddings", "encoder", "pre_layrnorm", "pre_layernorm", "post_layernorm")
    left_out = sorted(name for name in states if name.partition(".")[0] not in layers or name.endswith(".position_ids"))
    table = _HUGGING_FACE_CLIP_NAMES if is_clip else _HUGGING_FACE_NAMES
    named = {_rename(name, table): tensor for name, tensor in states.items() if name not in left_out}
    if is_clip:
        named = {name: _add_dimensions(name, tensor) for name, tensor in named.items()}
    elif any(name.endswith("_proj.weight") for name in states):
        is_gated = any(".mlp.gate_proj." in name for name in states)
        named = {_rename_dinov3(name, is_gated): tensor for name, tensor in named.items()}
    elif "register_tokens" in named or any(name.endswith(".ls1.gamma") for name in named):
        named.setdefault("mask_token", torch.zeros(1))  # by which timm knows DINOv2
    note = f"the names in {source} are Hugging Face's; they were turned into timm's."
    if is_clip:
        note += " They do not tell the activation: for quick_gelu, a backbone is needed whose name has quickgelu."
    if left_out:
        note += f" Left out: {shorten_names(left_out)}."
    return Renamed(_join_parts(named), (note,))


def _add_dimensions(name: str, tensor: Tensor) -> Tensor:
    """Give CLIP's class token ``(D,)`` and positions ``(N, D)`` timm's shapes, ``(1, 1, D)`` and ``(1, N, D)``."""
    return tensor.reshape(1, -1, tensor.shape[-1]) if name in ("cls_token", "pos_embed") and tensor.ndim else tensor


def _rename(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def _rename_dinov3(name: str, is_gated: bool) -> str:
    inner = {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
    plain = {"up_proj": "fc1", "down_proj": "fc2"}
    for theirs, ours in (inner if is_gated else plain).items():
        name = name.replace(f".mlp.{theirs}.", f".mlp.{ours}.")
    return "storage_tokens" if name == "register_tokens" else name


def _join_parts(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put query, key and value, which stand apart, into one matrix.

    A missing bias of the key is zero: DINOv3 has none, and attention is the same with any. Where another part is
    missing, the parts stay apart, and are refused.
    """
    joined = {name: tensor for name, tensor in named.items() if name.split(".")[-2:-1][:1] not in ([p] for p in _PARTS)}
    blocks = {name.rpartition(".query.")[0] for name in named if ".query." in name}
    for block in sorted(blocks):
        for kind in ("weight", "bias"):
            found = {part: named[f"{block}.{part}.{kind}"] for part in _PARTS if f"{block}.{part}.{kind}" in named}
            if kind == "bias" and found.keys() == {"query", "value"}:
                found["key"] = torch.zeros_like(found["query"])
            if found.keys() == {*_PARTS}:
                joined[f"{block}.attn.qkv.{kind}"] = torch.cat([found[part] for part in _PARTS])  # (3 D, D) or (3 D,)
            else:
                joined |= {f"{block}.{part}.{kind}": tensor for part, tensor in found.items()}
    return joined


_CHECKPOINT_STARTS = (b"PK", b"\x80")
"""First bytes of what torch.save writes: a zip archive, and before torch 1.6 a pickle."""
NUM_BYTES_SHOWN = 23
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_PREFERRED_KEYS = ("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "model_state_dict", "module")
"""Names under which checkpoints keep a model, best first: an average before what was averaged, as timm has it."""


@dataclass(frozen=True, kw_only=True)
class LocalWeights:
    """Weights of a file or a folder, under the names that they have there.

    Attributes:
        path: What the user gave.
        states: Name to tensor.
        spec: What the encoder is that they are of; None: a file of somebody else.
        notes: What was chosen in reading them, in sentences.
        has_text_part: Whether that encoder reads texts, too.
    """

    path: Path
    states: Mapping[str, Tensor]
    spec: EncoderSpec | None = None
    notes: tuple[str, ...] = ()
    has_text_part: bool = False


def read_local_weights(path: Path) -> LocalWeights:
    """Read weights; runs no code that the file may hold.

    Args:
        path: A safetensors file, a checkpoint of torch (``.pth``, ``.pt``, ``.bin``, ``.ckpt``), the folder of a run or
            of an encoder, the weights inside one, or ``hf:OWNER/NAME``, an encoder of the hub.

    Raises:
        WeightsError: Missing, damaged, of another format, or holding more than tensors.
        ArtifactError: An encoder's folder that is incomplete or damaged.
    """
    if is_hub_name(path):
        path = pull_encoder(path).folder
    own = find_encoder_folder(path) if path.is_dir() else None
    if path.name == WEIGHTS_NAME and (path.parent / SPEC_NAME).is_file():
        own = path.parent
    if own is not None:
        contents = read_contents(own)
        require_weights(own, contents.spec)
        states = {name: torch.tensor(array) for name, array in contents.states.items()}
        has_text_part = find_text_part(own) is not None
        return LocalWeights(path=path, states=states, spec=contents.spec, has_text_part=has_text_part)
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(
            f"the weights {path} {'hold no ' + WEIGHTS_NAME if path.is_dir() else 'do not exist'}; give a .safetensors "
            "or .pth file, or the folder of a finished run or of an encoder."
        )
    if file.suffix in PICKLE_SUFFIXES:
        return _read_checkpoint(file)
    return LocalWeights(path=path, states=read_states(file))


def read_states(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; never a pickle.

    Raises:
        WeightsError: Missing, another format or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is neither a .safetensors file nor a checkpoint of torch ({', '.join(PICKLE_SUFFIXES)}); save the "
            "model's state_dict() with safetensors.torch.save_file."
        )
    if not path.is_file():
        raise WeightsError(f"the weights file {path} does not exist; give a .safetensors file.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); fetch or make it again.") from None


def _read_checkpoint(path: Path) -> LocalWeights:
    try:
        # Tensors and plain containers alone; of classes only the one of parsed arguments, which many keep beside them.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        beginning = _read_beginning(path)
        if not beginning.startswith(_CHECKPOINT_STARTS):
            raise WeightsError(
                f"{path} is no checkpoint of torch: it begins with {quote_name(beginning.decode('ascii', 'replace'))}"
                f"{_explain_beginning(beginning)}; fetch or make it again."
            ) from None
        raise WeightsError(
            f"{path} holds more than tensors, and opening the rest can run code. Where you trust it, save the tensors "
            f"alone: torch.save(model.state_dict(), {path.name!r}), or safetensors.torch.save_file."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, struct.error) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise WeightsError(f"{path} cannot be read ({reason}); fetch or make it again.") from None
    keys, states = find_tensors(loaded, str(path))
    notes = (f"of what {path} holds, {'.'.join(keys)} was read.",) if keys else ()
    return LocalWeights(path=path, states=states, notes=notes)


def _read_beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(NUM_BYTES_SHOWN)


def _explain_beginning(beginning: bytes) -> str:
    """Say what a file is that is no checkpoint, where its first bytes tell."""
    if beginning.startswith(b"version https://git-lfs"):
        return ", which stands for a file that git-lfs has not fetched (git lfs pull)"
    return ", as a web page does" if beginning.lstrip().startswith(b"<") else ""


def find_tensors(loaded: Any, source: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Find the weights in what a checkpoint holds, however deep they lie.

    Args:
        loaded: What ``torch.load`` returned.
        source: Name of the file, for the message.

    Returns:
        The names that lead to the weights, and the weights by name.

    Raises:
        WeightsError: There are none, or several of which none is known by its name.

    >>> find_tensors({"epoch": 3, "model": {"weight": torch.zeros(1)}}, "x.pth")[0]
    ('model',)
    """
    keys: tuple[str, ...] = ()
    while True:
        if not isinstance(loaded, Mapping):
            raise WeightsError(f"{source} holds no weights by name; save the model's state_dict().")
        tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
        inner = [name for name, value in loaded.items() if isinstance(name, str) and _holds_tensors(value)]
        # A single number beside tables of weights, as the best accuracy so far, is no weight.
        if any(tensor.numel() > 1 for tensor in tensors.values()) or not inner:
            if not tensors:
                raise WeightsError(f"{source} holds no weights by name; save the model's state_dict().")
            return keys, tensors
        known = [name for name in _PREFERRED_KEYS if name in inner]
        if not known and len(inner) > 1:
            raise WeightsError(
                f"{source} holds several sets of weights: {shorten_names(sorted(inner))}; save the one you want alone."
            )
        chosen = known[0] if known else inner[0]
        keys, loaded = (*keys, chosen), loaded[chosen]


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(
        isinstance(name, str) and (isinstance(one, Tensor) or _holds_tensors(one)) for name, one in value.items()
    )


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
    by ``resample_positions``, or by the filter where it is laid out in another way. The classifier is left
    out: the backbone has none. A prefix before the names is taken off, and Hugging Face's names are understood.
    Weights of a vitrieve encoder (``backbone.…``) are accepted too, with their prompts (``prompts.py``).

    Args:
        backbone: The model; changed in place.
        states: Name to tensor.
        source: Name of the file, for the message.

    Returns:
        What was changed in the names, or left out, in sentences for the user; empty where nothing was.

    Raises:
        WeightsError: Keys or shapes differ (the message names the first few), or a tensor holds NaN or infinity.
    """
    renamed = _read_own_names(states, source) or strip_prefix(states, backbone.state_dict().keys(), source)
    states, notes = renamed
    states, further = rename_hugging_face(states, source)
    if num_prompts := count_prompts(states):
        add_prompts(backbone, num_prompts)
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
