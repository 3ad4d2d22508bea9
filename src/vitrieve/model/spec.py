"""What an encoder is, without torch: the content of ``encoder.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitrieve.config import Pooling
from vitrieve.data.preprocess import Preprocessing

ReductionKind = Literal["pca", "pca_whitening", "supervised_whitening"]
ONE_SCALE = (1.0,)


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """Everything but the weights that decides an embedding, and where the encoder comes from.

    Attributes:
        backbone: The name it was asked for by: a name of ``pretrained.py`` or a timm model name.
        architecture: timm's model name without the tag.
        pooling: How tokens become one vector.
        preprocessing: How a picture becomes the input.
        embedding_dim: Length of the embedding (after head and reduction, where there are any).
        head_norm: The head standardizes the pooled features of each image.
        head_dim: Outputs of the head's linear layer; None: it has none.
        reduction: Name of the set the PCA was fitted on; None without reduction.
        reduction_kind: What the reduction does beside dropping dimensions; read with a reduction only.
        scales: Sides of the input, as shares of the image size, whose embeddings are combined into one
            (``encoder.py``); several are for convnets.
        weights_source: Where the pre-trained weights come from, in a few words.
        weights_license: License of the weights, as text for the model card.
        weights_note: What a user must know about the pre-trained weights.
        trained_on: One line about the data and recipe of the fine-tuning; empty for frozen weights.
    """

    backbone: str
    architecture: str
    pooling: Pooling
    preprocessing: Preprocessing
    embedding_dim: int
    head_norm: bool = False
    head_dim: int | None = None
    reduction: str | None = None
    reduction_kind: ReductionKind = "pca"
    scales: tuple[float, ...] = ONE_SCALE
    weights_source: str = "unknown"
    weights_license: str = "unknown"
    weights_note: str = ""
    trained_on: str = ""
