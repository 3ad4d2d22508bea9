"""``build_foreign_encoder``: weights that others trained, in a file, become an encoder.

Of a checkpoint for timm the classifier is left out. Of one of open_clip the tower of pictures is taken, and the layer
that projects its features into the common space becomes the head's linear layer: so the embeddings are open_clip's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vitrieve.choices import Pooling
from vitrieve.errors import ConfigError, WeightsError
from vitrieve.model.backbone import build_backbone, describe_tokens
from vitrieve.model.checkpoint import LocalWeights, read_local_weights
from vitrieve.model.encoder import ImageEncoder, build_spec
from vitrieve.model.pretrained import find_weights

_TOWER = "visual."
"""What the names of open_clip's tower of pictures begin with."""
_WRAPPER = "module."
"""What torch's wrapper for several processes puts before every name."""


class _Tower(NamedTuple):
    """The tower of pictures of a checkpoint of open_clip.

    Attributes:
        states: Its weights, under the names that they have there.
        projection: ``(E, D)``, into the common space; None: the features are the embeddings.
    """

    states: Mapping[str, Tensor]
    projection: Tensor | None


def build_foreign_encoder(
    name: str, path: Path, *, image_size: int | None = None, pooling: Pooling | None = None
) -> tuple[ImageEncoder, tuple[str, ...]]:
    """Build an encoder of weights in a file.

    Args:
        name: A timm model name, which tells the layers, and how pictures are prepared; or a weights name.
        path: A safetensors file, a checkpoint of torch or a folder with ``model.safetensors``, for timm or open_clip.
        image_size: Side of the square input in pixels; None: the name's own. Positions are resampled.
        pooling: How tokens become one vector; None: as the model's makers do.

    Returns:
        The encoder in evaluation mode, and what was changed in the names of the weights or left out, in sentences.

    Raises:
        ConfigError: The image size or the pooling does not fit.
        WeightsError: The name is unknown; or the file is missing, damaged, holds more than tensors (nothing in it is
            run), or fits another model.
    """
    entry = find_weights(name)
    given = read_local_weights(path)
    if given.spec is not None:
        raise ConfigError(f"{path} is an encoder of vitrieve already; name it instead of {name}.")
    size = entry.image_size if image_size is None else image_size
    tower = _find_tower(given)
    notes: list[str] = list(given.notes)
    weights = dataclasses.replace(given, states=given.states if tower is None else tower.states, notes=())
    try:
        backbone = build_backbone(name, image_size=size, weights=weights, on_note=notes.append)
    except WeightsError as error:
        told = str(error).replace(
            "--model.backbone and --model.weights", "--encoder, which tells the layers, and --weights"
        )
        raise WeightsError(told) from None
    layout = describe_tokens(backbone, size, entry.architecture)
    spec = build_spec(entry, layout, size, pooling)
    spec = dataclasses.replace(
        spec,
        weights_source=f"the file {path.name}" + ("" if tower is None else " of open_clip, its tower of pictures"),
        weights_license="unknown (a local file)",
        weights_note=" ".join(notes),
    )
    if tower is None:
        return ImageEncoder(backbone, spec, layout=layout).eval(), tuple(notes)
    preparation = dataclasses.replace(spec.preprocessing, resize_size=size)  # open_clip cuts nothing off a square
    spec = dataclasses.replace(spec, preprocessing=preparation)
    if tower.projection is None:
        return ImageEncoder(backbone, spec, layout=layout).eval(), tuple(notes)
    width, features = tower.projection.shape
    if features != spec.embedding_dim:
        raise WeightsError(
            f"{path} projects {features} features, and {name} pools {spec.embedding_dim}; name the model that it was "
            "trained as."
        )
    spec = dataclasses.replace(spec, head_dim=width, embedding_dim=width)
    with torch.random.fork_rng(devices=[]):  # the head is drawn, and then read
        encoder = ImageEncoder(backbone, spec, layout=layout).eval()
    encoder.head.load_state_dict({"linear.weight": tower.projection.float(), "linear.bias": torch.zeros(width)})
    return encoder, tuple(notes)


def _find_tower(given: LocalWeights) -> _Tower | None:
    """Find the tower of pictures of open_clip's; None: the weights are of pictures alone.

    Raises:
        WeightsError: It projects by something else than one matrix.
    """
    states = given.states
    if all(name.startswith(_WRAPPER) for name in states):
        states = {name.removeprefix(_WRAPPER): tensor for name, tensor in states.items()}
    inner = {name: tensor for name, tensor in states.items() if name.startswith(_TOWER)}
    if not inner or len(inner) == len(states):  # others call the whole model so
        return None
    heads = {name: inner.pop(name) for name in list(inner) if name.startswith(f"{_TOWER}head.")}
    projection = inner.pop(f"{_TOWER}proj", None)
    if projection is not None:  # of a transformer of its own: features times the matrix
        projection = projection.T.contiguous()
    if not any(name.startswith(f"{_TOWER}trunk.") for name in inner):
        inner["logit_scale"] = torch.zeros(())  # so that not all names begin with what timm knows open_clip's layers by
    if heads.keys() - {f"{_TOWER}head.proj.weight"}:
        raise WeightsError(
            f"{given.path} projects its features by {', '.join(sorted(heads))}, and an encoder by one matrix; give the "
            "folder of the model (open_clip_config.json, tokenizer.json, open_clip_model.safetensors) as the encoder."
        )
    return _Tower(inner, next(iter(heads.values()), projection))
