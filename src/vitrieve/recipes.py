"""Recipes: functions that return a complete ``Config``.

Each docstring tells the source, the exact command, the expected time and the expected result. A variant is a
function with ``dataclasses.replace``; single fields change on the command line. Next file: ``similarity.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vitrieve.config import (
    Config,
    LoaderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
)
from vitrieve.errors import ConfigError, unknown_name_message

KOLEO_WEIGHT = 0.7
"""λ of the paper for category-level retrieval (PAPER.md, section 2)."""


def irt_l() -> Config:
    """IRT_L of the paper: DeiT-S, Eq. 1 with a memory as large as the training set.

    Source: arXiv:2102.05644, section 4.1. Not stated in the paper: schedule, warm-up, clipping, drop-path,
    images a class in a batch. ``--num-steps 2000`` is the paper's length for CUB-200.
    Command: ``vitrieve train irt_l --data sop:DIR --out runs/irt_l``.
    Time: meant for a GPU (not run here); 35,000 steps of 64 take days on two CPU cores.
    Published: SOP 83.0, CUB-200 74.2, In-Shop 90.3 Recall@1.
    """
    return Config(
        loader=LoaderConfig(augmentation="random_crop", sampling="random"),
        model=ModelConfig(backbone="deit_small_patch16_224.fb_in1k", image_size=224, drop_path_rate=0.0),
        objective=ObjectiveConfig(contrastive_weight=1.0, margin=0.5, memory_fraction=1.0),
        optimizer=OptimizerConfig(learning_rate=3e-5, weight_decay=5e-4),
        train=TrainConfig(num_steps=35_000, batch_size=64, checkpoint_every=500, holdout=False),
    )


def irt_r() -> Config:
    """IRT_R of the paper: IRT_L plus the KoLeo regulariser with λ = 0.7.

    Source: arXiv:2102.05644, section 4.1; open points as in ``irt_l``.
    Command: ``vitrieve train irt_r --data sop:DIR --out runs/irt_r``.
    Time: as ``irt_l``.
    Published: SOP 84.0, CUB-200 74.7, In-Shop 91.5 Recall@1.
    """
    return _with_koleo(irt_l())


def irt_l_small() -> Config:
    """IRT_L's objective with careful settings for small collections on a CPU.

    Source: the objective of ``irt_l``; the settings are those of ``small``. The memory fills from the start and counts
    from step 40, on the assumption (not measured) that few of its negatives then still lie above the margin.
    Command: ``vitrieve train irt_l_small --data grocery:DIR --out runs/irt_l_small``.
    Time: about four minutes on two CPU cores with bf16 instructions.
    Result: docs/experiments.md.
    """
    config = small()
    return replace(
        config, objective=ObjectiveConfig(contrastive_weight=1.0, margin=0.5, memory_fraction=1.0, memory_start_step=40)
    )


def irt_r_small() -> Config:
    """IRT_R's objective with careful settings for small collections on a CPU: ``irt_l_small`` plus KoLeo, λ = 0.7.

    Source: the objective of ``irt_r``; settings and time as in ``irt_l_small``.
    Command: ``vitrieve train irt_r_small --data grocery:DIR --out runs/irt_r_small``.
    Result: docs/experiments.md.
    """
    return _with_koleo(irt_l_small())


def small() -> Config:
    """The default for own data: multi-similarity with layer-wise learning rates, for small collections on a CPU.

    Source: Wang et al., arXiv:1904.06627 (loss); Clark et al., arXiv:2003.10555 (layer-wise decay of the learning
    rate); Wortsman et al., arXiv:2109.01903 (a quarter of the frozen weights in the result). The settings are ours,
    compared on held-out training classes of Grocery and emoji, one seed each (docs/experiments.md).
    Command: ``vitrieve train small --data folder:DIR --out runs/mine``.
    Time: about four minutes on two CPU cores with bf16 instructions.
    Result: docs/experiments.md.
    """
    return Config(
        loader=LoaderConfig(sampling="m_per_class", images_per_class=4),
        model=ModelConfig(backbone="dinov2-vits14", image_size=112, drop_path_rate=0.1),
        objective=ObjectiveConfig(multi_similarity_weight=1.0, multi_similarity_beta=10.0, multi_similarity_base=0.3),
        optimizer=OptimizerConfig(learning_rate=2e-4, layer_decay=0.8, num_warmup_steps=10, schedule="cosine"),
        train=TrainConfig(
            num_steps=120, microbatch_size=64, frozen_share=0.25, holdout=True, evaluate_every=40, checkpoint_every=40
        ),
    )


def _with_koleo(config: Config) -> Config:
    return replace(config, objective=replace(config.objective, koleo_weight=KOLEO_WEIGHT))


RECIPES: dict[str, Callable[[], Config]] = {
    "irt_l": irt_l,
    "irt_r": irt_r,
    "irt_l_small": irt_l_small,
    "irt_r_small": irt_r_small,
    "small": small,
}


def find_recipe(name: str) -> Callable[[], Config]:
    """Look a recipe up by name.

    Raises:
        ConfigError: Unknown name; the message lists the valid ones.
    """
    if name not in RECIPES:
        raise ConfigError(unknown_name_message("recipe", name, RECIPES))
    return RECIPES[name]
