"""How a method of the paper becomes a row: its recipe, its flags, its test sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitrieve.reproduce.published import TABLE5, Figures, grid_name
from vitrieve.reproduce.rows import Row, Training, join_figures, name_group

DEIT_S = "deit_small_patch16_224.fb_in1k"
DEIT_S_DISTILLED = "deit_small_distilled_patch16_224.fb_in1k"
DEIT_B_DISTILLED = {224: "deit_base_distilled_patch16_224.fb_in1k", 384: "deit_base_distilled_patch16_384.fb_in1k"}
R50 = "resnet50.tv_in1k"
"""torchvision's first weights, whose ImageNet accuracy is the one the paper states (76.2)."""
R101 = "resnet101.tv_in1k"
CATEGORY = ("sop", "cub200", "inshop")
TESTS = {"sop": ("sop",), "cub200": ("cub200",), "inshop": ("inshop",), "sfm120k": ("roxford5k", "rparis6k")}
RECIPE_MARGIN = 0.5
RECIPE_KOLEO = {"sfm120k": 4.0}
"""λ of the recipe ``irt_r_…``, where it is not ``CATEGORY_KOLEO``."""
CATEGORY_KOLEO = 0.7
CONVNET_POOLING = "gem"

SETTINGS_NOTE = (
    "Not stated in the paper: schedule, warm-up, drop-path, images a class in a batch, seeds; the recipes' docstrings "
    "say what is taken here."
)
CONVNET_NOTE = (
    "The pooling of the category-level ResNet-50 rows is not stated in the paper; GeM here. ResNets start from "
    "torchvision's first ImageNet weights, whose accuracy is the one the paper states."
)


def irt_training(
    source: str, koleo: float, *, margin: float = RECIPE_MARGIN, flags: Sequence[str] = (), suffix: str | None = None
) -> Training:
    """Build the training of IRT_L (λ = 0) or IRT_R; only what differs from the recipe becomes a flag.

    So the same training has the same command in every table, and is run once.

    Args:
        source: Name of the training set.
        koleo: λ.
        margin: β.
        flags: Further flags.
        suffix: End of the recipe's name; None: the source.
    """
    suffix = suffix or source
    changed = [] if margin == RECIPE_MARGIN else ["--objective.contrastive.margin", f"{margin:g}"]
    if koleo not in (0, RECIPE_KOLEO.get(suffix, CATEGORY_KOLEO)):
        changed += ["--objective.koleo.weight", f"{koleo:g}"]
    recipe = f"irt_r_{suffix}" if koleo else f"irt_l_{suffix}"
    return Training(recipe=recipe, source=source, flags=(*flags, *changed))


def trained_row(name: str, label: str, training: Training, published: Figures, *, is_alone: bool = False) -> Row:
    """Build a row that trains and is measured on the test sets of its training set.

    Args:
        name: Its name in the published table.
        label: What a reader calls it.
        training: How it is trained.
        published: All figures of the published row; those of other test sets are left out.
        is_alone: The plan trains on this set only: the row's key is its name.
    """
    tests = TESTS[training.source]
    is_contrastive = training.recipe.startswith("irt_") and training.source in CATEGORY
    return Row(
        key=name if is_alone else f"{name}-{training.source}",
        name=name,
        label=label,
        group=name_group(training.source),
        training=training,
        tests=tests,
        published=join_figures(published, tests),
        has_gradients=is_contrastive,
    )


def frozen_row(name: str, label: str, source: str, encoder: str, published: Figures) -> Row:
    """Build a row that measures a backbone as it is; ``source`` is the training set of the rows beside it."""
    return Row(
        key=f"{name}-{source}",
        name=name,
        label=label,
        group=name_group(source),
        encoder=encoder,
        tests=TESTS[source],
        published=join_figures(published, TESTS[source]),
    )


R50_FLAGS = ("--model.backbone", R50, "--model.pooling", CONVNET_POOLING, "--train.microbatch-size", "64")
"""One micro-batch, so that batch norm sees the whole batch."""


def grid_rows(backbone: str, margins: Sequence[float], weights: Sequence[float]) -> list[Row]:
    """Build rows of Table 5: a backbone (``r50`` or ``deit_s``) on SOP, by margin β and weight λ."""
    flags = R50_FLAGS if backbone == "r50" else ()
    title = "R50" if backbone == "r50" else "DeiT-S"
    rows = []
    for margin in margins:
        for weight in weights:
            name = grid_name(backbone, margin, weight)
            training = irt_training("sop", weight, margin=margin, flags=flags)
            row = trained_row(name, f"{title}, β {margin:g}, λ {weight:g}", training, TABLE5[name], is_alone=True)
            series = f"β = {margin:g}"
            rows.append(replace(row, group=f"SOP, {title}", series=series, x=weight))
    return rows
