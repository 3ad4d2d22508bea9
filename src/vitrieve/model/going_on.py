"""What a run that goes on from an encoder of ours keeps of it, and what it leaves out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from vitrieve.config import ModelConfig
from vitrieve.errors import WeightsError
from vitrieve.model.local_weights import LocalWeights, read_local_weights
from vitrieve.model.pretrained import WeightsEntry
from vitrieve.model.spec import ONE_SCALE, EncoderSpec


class Start(NamedTuple):
    """What training starts from.

    Attributes:
        entry: The name's weights, with the preprocessing of the encoder that is gone on from.
        config: The settings, with the pooling and the head of that encoder where they say none.
        weights: Local weights of the backbone; None: the name's own.
        head: Trained weights of the head; empty: it starts at random, or there is none.
        gem_p: The encoder's exponent of GeM; None: it has none of its own.
        notes: What is left out, in sentences.
    """

    entry: WeightsEntry
    config: ModelConfig
    weights: LocalWeights | None = None
    head: Mapping[str, Tensor] = MappingProxyType({})
    gem_p: float | None = None
    notes: tuple[str, ...] = ()


def settle_start(entry: WeightsEntry, config: ModelConfig) -> Start:
    """Read the local weights that the settings name, where they name any.

    Of an encoder of ours, backbone, pooling, head, exponent of GeM and preprocessing of the channels are kept, unless
    the settings ask for others; a reduction is not, because it was fitted on features that training changes.

    Raises:
        WeightsError: The weights cannot be read, or are of another backbone.
        ArtifactError: They are of an encoder that is incomplete or damaged.
    """
    if config.weights is None:
        return Start(entry, config)
    weights = read_local_weights(Path(config.weights))
    spec = weights.spec
    if spec is None:
        return Start(entry, config, weights)
    if spec.architecture != entry.architecture:
        raise WeightsError(
            f"{config.weights} is an encoder of {spec.backbone}, not of {entry.name}; give --model.backbone "
            f"{spec.backbone}."
        )
    head = _select(weights.states, "head.")
    asked = (config.head_norm, config.head_dim)
    is_head_kept = asked in ((False, None), (spec.head_norm, spec.head_dim))
    kept = dataclasses.replace(
        config,
        pooling=config.pooling or spec.pooling,
        head_norm=spec.head_norm if is_head_kept else config.head_norm,
        head_dim=spec.head_dim if is_head_kept else config.head_dim,
    )
    preprocessing = spec.preprocessing
    return Start(
        entry=dataclasses.replace(
            entry, mean=preprocessing.mean, std=preprocessing.std, interpolation=preprocessing.interpolation
        ),
        config=kept,
        weights=dataclasses.replace(weights, states=_select(weights.states, "backbone.")),
        head=head if is_head_kept else {},
        gem_p=weights.states["gem_p"].item() if "gem_p" in weights.states and kept.pooling == "gem" else None,
        notes=tuple(_list_left_out(spec, kept, is_head_kept)),
    )


def _select(states: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in states.items() if name.startswith(prefix)}


def _list_left_out(spec: EncoderSpec, kept: ModelConfig, is_head_kept: bool) -> list[str]:
    left_out = []
    if spec.pooling != kept.pooling:
        left_out.append(f"its pooling {spec.pooling}: the settings ask for {kept.pooling}")
    if not is_head_kept and (spec.head_norm or spec.head_dim is not None):
        left_out.append("its head: the settings ask for another")
    if spec.reduction is not None:
        left_out.append(
            f"its reduction to {spec.embedding_dim} dimensions, fitted on {spec.reduction}: training changes what it "
            f"was fitted on (--model.embedding-dim {spec.embedding_dim} fits a new one)"
        )
    if spec.scales != ONE_SCALE:
        left_out.append("its several scales: training sees one")
    return [f"of the encoder that training goes on from is left out {one}." for one in left_out]
