"""The settings of a training run: frozen dataclasses, one per stage, no heavy import.

A recipe (``recipes.py``) returns a complete ``Config``; the command line changes single fields of it
(``--objective.koleo-weight 0.3``); the resolved configuration is saved as JSON in every artifact and
read back strictly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

FLAT = tyro.conf.arg(prefix_name=False)
"""Marks the fields whose flag is short, ``--seed``; all others are dotted, ``--objective.koleo-weight``."""

Augmentation = Literal["random_crop", "random_resized_crop", "square"]
Sampling = Literal["random", "m_per_class", "tuples"]
Framing = Literal["crop", "square"]
Pooling = Literal["cls", "average", "max", "gem", "rmac", "native"]
Schedule = Literal["constant", "cosine", "exponential"]
Algorithm = Literal["adamw", "adam"]
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What the encoder sees in training."""

    augmentation: Augmentation = "random_resized_crop"
    """random_crop: resize to a square, crop, flip (the paper's). random_resized_crop: a random part, flipped.
    square: the whole picture resized to a square, never flipped (the paper's for SfM-120k)."""
    crop_scale_min: float = 0.3
    """Smallest share of the picture's area in a random resized crop, in (0, 1]."""
    flip: bool = True
    """Mirror half of the pictures left to right."""
    sampling: Sampling = "random"
    """random: a permutation of all images each epoch. m_per_class: equally many images of each class in a batch.
    tuples: an anchor, a positive and its hardest negatives, mined again each epoch (settings: tuples)."""
    images_per_class: int = 4
    """Images of one class in a batch, with m_per_class."""
    cache_bytes: int = 2 * 2**30
    """Decoded training pictures are kept in memory up to this size; what does not fit is decoded each time."""


@dataclass(frozen=True, kw_only=True)
class TupleConfig:
    """What a batch and an epoch hold, with loader.sampling tuples."""

    num_pairs: int = 2_000
    """Pairs of an anchor and a positive in an epoch, one a tuple; fewer where there are fewer."""
    num_candidates: int = 22_000
    """Images of an epoch among which negatives are sought, drawn anew; all where there are fewer."""
    num_negatives: int = 5
    """Negatives of a tuple: the images most similar to its anchor, from as many different classes."""
    tuples_per_batch: int = 5
    """Tuples in an optimizer step."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder to fine-tune."""

    backbone: str = "dinov2-vits14"
    """A weights name of `vitrieve weights list`, or any timm model name."""
    weights: str | None = None
    """Local weights of the backbone: a .safetensors or .pth file, or the folder of a run or an encoder, whose head is
    kept too; by default the backbone's own."""
    image_size: Annotated[int, FLAT] = 112
    """Side of the square input in pixels, a multiple of the patch size."""
    framing: Framing = "crop"
    """What is measured of a picture. crop: its center, after resizing the short side. square: all of it, squeezed."""
    pooling: Pooling | None = None
    """How tokens become one vector; rmac is for convnets, cls for transformers. native: the model's own pool, as timm
    has it before the classifier. None: as those who made the model do: cls, average or native."""
    gem_learnable: bool = False
    """Train the exponent of gem (from 3, at ten times the learning rate, without decay) instead of keeping it at 3."""
    head_norm: bool = False
    """Standardize the pooled features of each image (a layer norm without weights)."""
    head_dim: int | None = None
    """Dimensions of a trained linear layer behind them, which starts at random; None: no such layer."""
    embedding_dim: int | None = None
    """Reduce the embedding to this many dimensions by a PCA of the training images, after training; None: keep all."""
    whiten: bool = False
    """Divide each direction of that PCA by its standard deviation."""
    drop_path_rate: float = 0.1
    """Stochastic depth of the last block in training; earlier blocks linearly less."""
    patch_drop_rate: float = 0.0
    """Share of the patches that a transformer does not see in a training step, drawn anew for each image: faster."""
    num_frozen_blocks: int = 0
    """Lower transformer blocks (with patch and position embedding) that are not trained."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The weighted sum of terms that training minimizes."""

    contrastive_weight: float = 0.0
    """Weight of the contrastive loss (Eq. 1)."""
    margin: float = 0.5
    """beta of Eq. 1: negatives less similar than this cost nothing."""
    mean_nonzero: bool = False
    """Average the contrastive loss over the pairs that cost something, instead of Eq. 1's sum divided by the batch."""
    memory_fraction: float = 0.0
    """Rows of the cross-batch memory as a share of the training set; 0 is off."""
    memory_start_step: int = 0
    """First step at which the memory counts in the loss (it fills from the start)."""
    memory_momentum: float | None = None
    """Fill the memory by a momentum encoder, the moving average of the encoder with this decay; None is off."""
    multi_similarity_weight: float = 0.0
    """Weight of the multi-similarity loss, over pairs of the batch."""
    multi_similarity_beta: float = 50.0
    """Sharpness of the multi-similarity loss towards the hardest negatives."""
    multi_similarity_base: float = 0.5
    """Similarity around which the multi-similarity loss weighs pairs."""
    proxy_anchor_weight: float = 0.0
    """Weight of the Proxy-Anchor loss."""
    normalized_softmax_weight: float = 0.0
    """Weight of the normalized softmax loss."""
    normalized_softmax_temperature: float = 0.05
    """Divides the cosines of the normalized softmax loss."""
    proxy_nca_weight: float = 0.0
    """Weight of the ProxyNCA++ loss."""
    proxy_nca_temperature: float = 1 / 9
    """Divides the squared distances of the ProxyNCA++ loss."""
    scalable_nca_weight: float = 0.0
    """Weight of the scalable NCA loss, over a memory of its own with a slot for each training image."""
    scalable_nca_temperature: float = 0.05
    """Divides the cosines of the scalable NCA loss."""
    scalable_nca_momentum: float = 0.5
    """Share of itself that a slot of the scalable NCA loss keeps when its image comes again."""
    tuple_contrastive_weight: float = 0.0
    """Weight of the contrastive loss on distances, summed over the tuples of a batch."""
    tuple_margin: float = 0.85
    """Negatives of a tuple farther than this Euclidean distance cost nothing."""
    koleo_weight: float = 0.0
    """lambda: weight of the KoLeo entropy regulariser, over the batch."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    algorithm: Algorithm = "adamw"
    """adamw: the decay shrinks the weights. adam: it is added to the gradient."""
    learning_rate: float = 3e-5
    """Of the last layers; lower ones less by layer_decay."""
    layer_decay: float = 1.0
    """Factor from one block to the one below it, in (0, 1]."""
    proxy_learning_rate: float = 1e-2
    """Of proxies and class weights."""
    weight_decay: float = 5e-4
    """Of matrices; biases, norms and other vectors are not decayed."""
    epsilon: float = 1e-8
    """Added to the root of the mean squared gradient that divides each step; near 1, Adam is nearly momentum SGD."""
    num_warmup_steps: int = 0
    """Steps of linear growth of the learning rate from zero."""
    schedule: Schedule = "constant"
    """After the warm-up: constant; cosine: to zero at the last step; exponential: times decay_factor now and then."""
    decay_factor: float = 0.99
    """Of the learning rate, with the exponential schedule, in (0, 1]."""
    decay_every: int = 400
    """Steps from one such multiplication to the next."""
    gradient_clip_norm: float | None = None
    """Largest Euclidean norm of all gradients together; None is off."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how a run goes."""

    num_steps: Annotated[int, FLAT] = 100
    """Optimizer steps."""
    batch_size: Annotated[int, FLAT] = 64
    """Images in an optimizer step."""
    microbatch_size: int = 32
    """Images in one forward pass; the loss is always over the whole batch. Small ones stay in the cache."""
    memory_limit_gib: float | None = None
    """Memory of the process, in GiB, the loader's cache included: chooses a smaller micro-batch, and embeds each batch
    twice, where it must. None: no limit."""
    device: Annotated[Device, tyro.conf.arg(prefix_name=False, aliases=["--train.device"])] = "auto"
    """Where to compute; auto: cuda where torch sees one."""
    compile: bool | None = None
    """torch.compile the encoder; None: on cuda only."""
    low_resolution_size: int | None = None
    """Side of smaller pictures for the first steps, in pixels; None: none."""
    low_resolution_share: float = 0.5
    """Share of the steps that see them, in (0, 1]."""
    seed: Annotated[int, FLAT] = 0
    """Source of all randomness: two runs with one seed are equal."""
    freeze_batch_norm: bool = False
    """Keep the means and variances of batch norm as they came with the weights (convnets only)."""
    num_threads: Annotated[int | None, FLAT] = None
    """CPU threads; None: all cores. Another number may change the last bits of a result."""
    ema_decay: float | None = None
    """Average the weights over steps with this decay and keep the average; None keeps the last weights."""
    frozen_share: float = 0.0
    """Share of the frozen weights in what is kept (and measured), in [0, 1); 0 keeps the trained weights alone."""
    precision: Precision = "auto"
    """auto: bf16 where the processor has instructions for it."""
    holdout: Annotated[bool, FLAT] = False
    """Hold every fifth training class out, measure on it, keep the best state (the frozen one wins ties)."""
    evaluate_every: int | None = None
    """Steps between measurements on the held-out classes."""
    num_patience: int = 2
    """Stop after this many measurements in a row below the frozen start."""
    max_bad_fraction: float = 0.05
    """Largest share of training images that may be unreadable."""
    checkpoint_every: int = 25
    """Steps between states from which a killed run resumes."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a training run, apart from the images."""

    loader: LoaderConfig = LoaderConfig()
    tuples: TupleConfig = TupleConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
