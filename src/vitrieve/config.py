"""The settings of a training run: frozen dataclasses, one for each stage, and what they may hold.

A recipe (``recipes/``) returns a complete ``Config``; the command line changes single fields of it
(``--objective.koleo.weight 0.3``); the resolved configuration is saved as JSON in every artifact and
read back strictly. The settings of each loss stand in its file, and ``objective/losses.py`` lists them. Nothing here
imports torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from vitrieve.choices import Device as Device
from vitrieve.choices import Framing as Framing
from vitrieve.choices import Pooling as Pooling
from vitrieve.choices import Precision as Precision
from vitrieve.errors import ConfigError
from vitrieve.objective.losses import ObjectiveConfig as ObjectiveConfig
from vitrieve.objective.own import OwnTerm
from vitrieve.settings import (
    BelowOne,
    Count,
    CountOrZero,
    Needs,
    NotNegative,
    Positive,
    PositiveShare,
    Seed,
    Share,
    check_ranges,
    list_settings,
)

FLAT = tyro.conf.arg(prefix_name=False)
"""Marks the fields whose flag is short, ``--seed``; all others are dotted, ``--objective.koleo.weight``."""

DEFAULT_WEIGHTS = "vitrieve-general-v2"
"""Name of the weights that ``up``, ``sync`` and ``embed`` take unless another was chosen (``model/default.py``). They
must run without torch."""
START_WEIGHTS = "dinov2-vits14"
"""Name of the weights that training starts from where none is given. They find less than ``DEFAULT_WEIGHTS`` before the
training, and on birds more after it (docs/results.md)."""

Augmentation = Literal["random_crop", "random_resized_crop", "square"]
Sampling = Literal["random", "m_per_class", "tuples"]
SourceRule = Literal["mixed", "one", "together"]
Schedule = Literal["constant", "cosine", "exponential"]
Algorithm = Literal["adamw", "adam"]

CLASS_SAMPLING = Needs("m_per_class sampling", lambda config: config.loader.sampling == "m_per_class")
TUPLES = Needs("tuples sampling", lambda config: config.loader.sampling == "tuples")
NO_TUPLES = Needs("random or m_per_class sampling", lambda config: config.loader.sampling != "tuples")
RESIZED_CROP = Needs("random_resized_crop", lambda config: config.loader.augmentation == "random_resized_crop")
CROP = Needs("a cropping augmentation", lambda config: config.loader.augmentation != "square")
GEM = Needs("gem pooling", lambda config: config.model.pooling == "gem")
REDUCTION = Needs("an embedding_dim", lambda config: config.model.embedding_dim is not None)
EXPONENTIAL = Needs("the exponential schedule", lambda config: config.optimizer.schedule == "exponential")
LORA = Needs("a lora.rank", lambda config: config.model.lora.rank is not None)
LOW_RESOLUTION = Needs("a low_resolution_size", lambda config: config.train.low_resolution_size is not None)
HOLDOUT = Needs("hold-out", lambda config: config.train.holdout)
PROXIES = Needs(
    "a loss that has parameters (proxies, class weights, centers, a projection) or a term of your own",
    lambda config: any(term.has_proxies for term in config.objective.terms.values()),
)


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """The pictures that the encoder sees in training."""

    augmentation: Augmentation = "random_resized_crop"
    """random_crop: resize to a square, crop, flip (the paper's). random_resized_crop: a random part, flipped.
    square: the whole picture resized to a square, never flipped (the paper's for SfM-120k)."""
    crop_scale_min: Annotated[PositiveShare, RESIZED_CROP] = 0.3
    """Smallest share of the picture's area in a random resized crop, in (0, 1]."""
    flip: Annotated[bool, CROP] = True
    """Mirror half of the pictures left to right."""
    background_share: Share = 0.0
    """Share of the pictures on a plain background (drawings, catalogue pictures) that are cut out and shown on a part
    of another training picture, in [0, 1]; photographs stay as they are."""
    sampling: Sampling = "random"
    """random: a permutation of all images each epoch. m_per_class: equally many images of each class in a batch.
    tuples: an anchor, a positive and its hardest negatives, mined again each epoch (settings: tuples)."""
    images_per_class: Annotated[Count, CLASS_SAMPLING] = 4
    """Images of one class in a batch, with m_per_class."""
    sources: Annotated[SourceRule, NO_TUPLES] = "mixed"
    """Where several sources train. mixed: the classes of a batch (random: its images) come from the sources in turn.
    one: each batch is of one source, in turn. together: a source counts by its number of classes (random: of images).
    """
    cache_bytes: CountOrZero = 2 * 2**30
    """Decoded training pictures are kept in memory up to this size; what does not fit is decoded each time."""


@dataclass(frozen=True, kw_only=True)
class TupleConfig:
    """The tuples of a batch and of an epoch, with loader.sampling tuples."""

    num_pairs: Annotated[Count, TUPLES] = 2_000
    """Pairs of an anchor and a positive in an epoch, one a tuple; fewer where there are fewer."""
    num_candidates: Annotated[Count, TUPLES] = 22_000
    """Images of an epoch among which negatives are sought, drawn anew; all where there are fewer."""
    num_negatives: Annotated[Count, TUPLES] = 5
    """Negatives of a tuple: the images most similar to its anchor, from as many different classes."""
    tuples_per_batch: Annotated[Count, TUPLES] = 5
    """Tuples in an optimizer step."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank products that are trained beside the linear layers of the blocks, instead of the weights (LoRA)."""

    rank: Count | None = None
    """Rank of the products, for example 8. Nothing else of the backbone is trained, and the products are added to the
    weights in the end. None: all weights are trained."""
    alpha: Annotated[Positive | None, LORA] = None
    """The products are multiplied by alpha / rank; None: by 1."""


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Tokens that are trained beside those of the picture in every block, instead of the weights (prompt tuning)."""

    num_tokens: Count | None = None
    """Tokens of each block, for example 10. Nothing else of the backbone is trained. None: no such tokens."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder to fine-tune."""

    backbone: str = START_WEIGHTS
    """A weights name of `vitrieve weights list`, or any timm model name."""
    weights: str | None = None
    """Local weights of the backbone: a .safetensors or .pth file, or the folder of a run or an encoder, whose head is
    kept too; by default the backbone's own."""
    image_size: Annotated[int, FLAT] = 112
    """Side of the square input in pixels, a multiple of the patch size."""
    framing: Framing = "crop"
    """The part of a picture that is measured. crop: its center, after the short side is resized. square: all
    of it, squeezed."""
    pooling: Pooling | None = None
    """How tokens become one vector; rmac is for convnets, cls for transformers. native: the model's own pool, as timm
    has it before the classifier. None: as the makers of the model do: cls, average or native."""
    gem_learnable: Annotated[bool, GEM] = False
    """Train the exponent of gem (from 3, at ten times the learning rate, without decay) instead of keeping it at 3."""
    head_norm: bool = False
    """Standardize the pooled features of each image (a layer norm without weights)."""
    head_dim: Count | None = None
    """Dimensions of a trained linear layer behind them, which starts at random; None: no such layer."""
    embedding_dim: Count | None = None
    """Reduce the embedding to this many dimensions by a PCA of the training images, after training; None: keep all."""
    whiten: Annotated[bool, REDUCTION] = False
    """Divide each direction of that PCA by its standard deviation."""
    drop_path_rate: BelowOne = 0.1
    """Stochastic depth of the last block in training; earlier blocks linearly less."""
    patch_drop_rate: BelowOne = 0.0
    """Share of the patches that a transformer does not see in a training step, drawn anew for each image: faster."""
    num_frozen_blocks: CountOrZero = 0
    """Lower transformer blocks (with patch and position embedding) that are not trained."""
    lora: LoraConfig = LoraConfig()
    prompts: PromptConfig = PromptConfig()


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    algorithm: Algorithm = "adamw"
    """adamw: the decay shrinks the weights. adam: it is added to the gradient."""
    learning_rate: Positive = 3e-5
    """Learning rate of the last layers; that of lower ones is less by layer_decay."""
    layer_decay: PositiveShare = 1.0
    """Factor from one block to the one below it, in (0, 1]."""
    proxy_learning_rate: Annotated[Positive, PROXIES] = 1e-2
    """Learning rate of what losses learn (proxies, class weights, centers, a projection) and of terms of your own."""
    weight_decay: NotNegative = 5e-4
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    epsilon: Positive = 1e-8
    """Added to the root of the mean squared gradient that divides each step; near 1, Adam is nearly momentum SGD."""
    num_warmup_steps: CountOrZero = 0
    """Steps of linear growth of the learning rate from zero."""
    schedule: Schedule = "constant"
    """After the warm-up: constant; cosine: to zero at the last step; exponential: times decay_factor now and then."""
    decay_factor: Annotated[PositiveShare, EXPONENTIAL] = 0.99
    """Factor on the learning rate, with the exponential schedule, in (0, 1]."""
    decay_every: Annotated[Count, EXPONENTIAL] = 400
    """Steps from one such multiplication to the next."""
    gradient_clip_norm: Positive | None = None
    """Largest Euclidean norm of all gradients together; None is off."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, and how it is computed and measured."""

    num_steps: Annotated[Count, FLAT] = 100
    """Optimizer steps."""
    batch_size: Annotated[Count, NO_TUPLES, FLAT] = 64
    """Images in an optimizer step."""
    microbatch_size: Count = 32
    """Images in one forward pass; the loss is always over the whole batch. Small ones stay in the cache."""
    memory_limit_gib: Positive | None = None
    """Memory of the process, in GiB, the loader's cache included: chooses a smaller micro-batch, and embeds each batch
    twice, where it must. None: no limit."""
    device: Annotated[Device, tyro.conf.arg(prefix_name=False, aliases=["--train.device"])] = "auto"
    """Device that computes; auto: cuda if torch sees one."""
    compile: bool | None = None
    """torch.compile the encoder; None: on cuda only."""
    low_resolution_size: Count | None = None
    """Side of smaller pictures for the first steps, in pixels; None: none."""
    low_resolution_share: Annotated[PositiveShare, LOW_RESOLUTION] = 0.5
    """Share of the steps that see them, in (0, 1]."""
    seed: Annotated[Seed, FLAT] = 0
    """Source of all randomness: two runs with one seed are equal."""
    freeze_batch_norm: bool = False
    """Keep the means and variances of batch norm as they came with the weights (convnets only)."""
    num_threads: Annotated[Count | None, FLAT] = None
    """CPU threads; None: all cores. Another number may change the last bits of a result."""
    ema_decay: BelowOne | None = None
    """Average the weights over steps with this decay and keep the average; None keeps the last weights."""
    frozen_share: BelowOne = 0.0
    """Share of the frozen weights in the encoder that is kept and measured, in [0, 1); 0: the trained weights alone."""
    precision: Precision = "auto"
    """auto: bf16 where the processor has instructions for it."""
    holdout: Annotated[bool, FLAT] = False
    """Hold every fifth training class out, measure on it, keep the best state (the frozen one wins ties)."""
    evaluate_every: Annotated[Count | None, HOLDOUT] = None
    """Steps between measurements on the held-out classes."""
    num_patience: Annotated[Count, HOLDOUT] = 2
    """Stop after this many measurements in a row below the frozen start."""
    try_larger_image: Annotated[bool, HOLDOUT] = False
    """Measure the encoder that is kept at 1.45 times its image size, too, and keep it at that size where the held-out
    classes gain a point of MAP@R or more. Embedding then takes twice the time."""
    max_bad_fraction: Share = 0.05
    """Largest share of training images that may be unreadable."""
    checkpoint_every: Count = 25
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


def check_config(config: Config, own_terms: Sequence[OwnTerm] = ()) -> None:
    """Refuse values that no run can have; whatever depends on the backbone or the images is checked with them.

    Args:
        config: The complete settings.
        own_terms: Terms of the objective that are not of this package.

    Raises:
        ConfigError: A value is out of range, nothing is left to minimize, or a memory that no term reads.

    >>> from vitrieve.settings import override_config
    >>> check_config(override_config(Config(), {"koleo.weight": 0.7, "num_steps": 0}))
    Traceback (most recent call last):
    vitrieve.errors.ConfigError: train.num_steps is 0; expected 1 or more.
    """
    check_ranges(config)
    objective = config.objective
    if not objective.terms and not own_terms:
        names = ", ".join(f"objective.{name}.weight" for name in objective.losses)
        raise ConfigError(f"every weight of the objective is 0 ({names}): there is nothing to minimize.")
    is_read = any(term.reads_memory for term in objective.terms.values())
    if objective.memory_fraction > 0 and not is_read and not any("memory" in own.arguments for own in own_terms):
        readers = ", ".join(f"objective.{name}.weight" for name, loss in objective.losses.items() if loss.reads_memory)
        raise ConfigError(
            f"objective.memory_fraction is {objective.memory_fraction}, but no term reads the memory; give one that "
            f"does a weight ({readers}), or set the fraction to 0."
        )
    distillation = objective.distillation
    if distillation.weight > 0 and not distillation.teacher:
        raise ConfigError(
            f"objective.distillation.weight is {distillation.weight}, but there is no objective.distillation.teacher: "
            "give a weights name, an encoder or stored embeddings, or set the weight to 0."
        )
    for name, term in objective.terms.items():
        fault = term.describe_fault()
        if fault is not None:
            raise ConfigError(f"objective.{name}.{fault}")
        if term.needs_tuples and config.loader.sampling != "tuples":
            raise ConfigError(
                f"objective.{name}.weight is {term.weight}, but loader.sampling {config.loader.sampling} makes no "
                "tuples; choose loader.sampling tuples, or set the weight to 0."
            )


def find_ineffective(
    config: Config,
    recipe: Config,
    *,
    has_batch_norm: bool = True,
    has_own_terms: bool = False,
    num_sources: int = 1,
) -> list[str]:
    """List the changes of a recipe that change nothing, as sentences for the user.

    Args:
        config: The complete settings.
        recipe: What they began with.
        has_batch_norm: Whether the encoder has layers of batch norm.
        has_own_terms: Whether the objective has terms that are not of this package, which may have parameters.
        num_sources: Number of sources that train.

    >>> find_ineffective(Config(loader=LoaderConfig(images_per_class=8)), Config())
    ['loader.images_per_class has no effect without m_per_class sampling']
    """
    met = {PROXIES} if has_own_terms else set()
    notes = list(_find_ineffective(config, recipe, met))
    if not has_batch_norm and config.train.freeze_batch_norm and not recipe.train.freeze_batch_norm:
        notes.append("train.freeze_batch_norm has no effect without batch norm, which this backbone lacks")
    if num_sources == 1 and config.loader.sources != recipe.loader.sources:
        notes.append("loader.sources has no effect without a second source")
    return notes


def _find_ineffective(config: Config, recipe: Config, met: Collection[Needs]) -> Iterator[str]:
    unused = tuple(f"objective.{name}." for name in config.objective.losses.keys() - config.objective.terms.keys())
    for now, before in zip(list_settings(config), list_settings(recipe), strict=True):
        if now.value == before.value:
            continue
        if now.name.startswith(unused) and not now.name.endswith(".weight"):
            yield f"{now.name} has no effect while {now.name.rpartition('.')[0]}.weight is 0"
        for needed in now.find_marks(Needs):
            if needed not in met and not needed.is_met(config):
                yield f"{now.name} has no effect without {needed.partner}"
