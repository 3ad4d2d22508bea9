"""Tables 2 to 9 and figures 2 to 5 of the paper as plans.

A row is a training, or an encoder as it is, that is measured. A plan runs nothing; ``run.py`` turns rows into commands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.reproduce.published import (
    DATASET_TITLES,
    KOLEO_WEIGHTS,
    MARGINS,
    PUBLISHED,
    Measure,
    Percentages,
    grid_name,
)

Chart = Literal["none", "sweep", "energy", "histograms", "gradients"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """A ``vitrieve train`` command without its folders and its seed.

    Attributes:
        recipe: Name of the recipe.
        source: Name of the data set.
        flags: Settings that differ from the recipe.
    """

    recipe: str
    source: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One encoder and the data sets that it is measured on.

    Attributes:
        key: Name in ``--rows`` and on the page, unique in a plan.
        name: Name in the published table; several rows share it where the paper trained on several data sets.
        label: Name for readers.
        group: Heading that the row stands under.
        training: The training of the encoder; None: the encoder is measured as it is.
        encoder: Weights name (or folder) of an encoder that is measured as it is.
        encoder_flags: Flags of ``vitrieve evaluate`` for such an encoder.
        embedding_dim: Dimensions that a PCA of the training images keeps; None: all.
        tests: Names of the data sets that it is measured on.
        published: Published percentages that the results are compared with.
        has_gradients: Whether the directions of the contrastive gradient are measured too, for figure 4.
        series: Name of the line of a chart that the row belongs to.
        x: Position on the x axis of a chart; None: the row is on no line.
        reference: Key of the row from which a stand-in tells the change; empty: none.
    """

    key: str
    name: str
    label: str
    group: str
    training: Training | None = None
    encoder: str = ""
    encoder_flags: tuple[str, ...] = ()
    embedding_dim: int | None = None
    tests: tuple[str, ...]
    published: Percentages = field(default_factory=dict)
    has_gradients: bool = False
    series: str = ""
    x: float | None = None
    reference: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets that the row needs, each once."""
        trained_on = (self.training.source,) if self.training else ()
        return tuple(dict.fromkeys((*trained_on, *self.tests)))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A table or figure as rows to run.

    Attributes:
        name: Name of the table or figure, for example ``table3``.
        title: What it shows.
        claim: What the paper says that it shows.
        rows: Rows in order.
        notes: Facts that a reader must know, for example what the paper leaves open.
        stand_in: Source that takes the part of the paper's data; None: the paper's own data.
        shown: Measures of a stand-in; those of the paper's own data follow from the published percentages.
        chart: Kind of the charts.
        x_name: Title of the x axis of a sweep.
        is_log_x: Whether that axis is logarithmic.
    """

    name: str
    title: str
    claim: str
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...] = ()
    stand_in: str | None = None
    shown: tuple[Measure, ...] = ()
    chart: Chart = "none"
    x_name: str = ""
    is_log_x: bool = False

    @property
    def stem(self) -> str:
        """Name of the page: the pages of a stand-in stand beside the paper's own.

        >>> Plan(name="table3", title="", claim="", rows=(), stand_in="folder:my/pictures").stem
        'table3-pictures'
        """
        return self.name if self.stand_in is None else f"{self.name}-{self.stand_in.rstrip('/').split('/')[-1]}"

    @property
    def groups(self) -> dict[str, list[TableRow]]:
        """The rows under their headings, in order."""
        groups: dict[str, list[TableRow]] = {}
        for row in self.rows:
            groups.setdefault(row.group, []).append(row)
        return groups

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets of all rows, each once."""
        return tuple(dict.fromkeys(source for row in self.rows for source in row.sources))


def plan_table(name: str) -> Plan:
    """Build the plan of a table or figure on the paper's data.

    Args:
        name: ``table2`` to ``table9``, ``figure2`` to ``figure5``.

    Raises:
        ConfigError: The name is unknown; the message lists the valid ones.
    """
    if name not in PLANS:
        raise ConfigError(unknown_name_message("table or figure", name, PLANS))
    plan = PLANS[name]()
    return replace(plan, notes=(SETTINGS_NOTE, *plan.notes))


def choose_rows(plan: Plan, wanted: Sequence[str]) -> tuple[TableRow, ...]:
    """Choose rows by key, or by the name that several share; without names all rows.

    Raises:
        ConfigError: A row is unknown; the message lists the valid ones.
    """
    for name in wanted:
        if not any(name in (row.key, row.name) for row in plan.rows):
            valid = dict.fromkeys(row.key for row in plan.rows)
            raise ConfigError(unknown_name_message(f"row of {plan.stem}", name, valid))
    return tuple(row for row in plan.rows if not wanted or row.key in wanted or row.name in wanted)


DEIT_S = "deit_small_patch16_224.fb_in1k"
DEIT_S_DISTILLED = "deit_small_distilled_patch16_224.fb_in1k"
DEIT_B_DISTILLED = {224: "deit_base_distilled_patch16_224.fb_in1k", 384: "deit_base_distilled_patch16_384.fb_in1k"}
R50 = "resnet50.tv_in1k"
"""torchvision's first weights, whose ImageNet accuracy is the one that the paper states (76.2)."""
R101 = "resnet101.tv_in1k"
R50_FLAGS = ("--model.backbone", R50, "--model.pooling", "gem", "--train.microbatch-size", "64")
"""The micro-batch is the whole batch, so that batch norm sees all of it."""
CATEGORY = ("sop", "cub200", "inshop")
TESTS = {"sop": ("sop",), "cub200": ("cub200",), "inshop": ("inshop",), "sfm120k": ("roxford5k", "rparis6k")}
RECIPE_MARGIN = 0.5
CATEGORY_KOLEO = 0.7
RECIPE_KOLEO = {"sfm120k": 4.0}
"""λ of the recipe ``irt_r_…``, where it is not ``CATEGORY_KOLEO``."""

SETTINGS_NOTE = (
    "Not stated in the paper: schedule, warm-up, drop-path, images a class in a batch, seeds; the recipes' docstrings "
    "say what is taken here."
)
CONVNET_NOTE = (
    "The pooling of the category-level ResNet-50 rows is not stated in the paper; GeM here. ResNets start from "
    "torchvision's first ImageNet weights, whose accuracy is the one the paper states."
)
NO_NUMBERS = "The paper prints this figure without numbers"


def irt_training(
    source: str, koleo: float, *, margin: float = RECIPE_MARGIN, flags: Sequence[str] = (), suffix: str | None = None
) -> Training:
    """Build the training of IRT_L (λ = 0) or IRT_R; only a setting that differs from the recipe becomes a flag.

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


def _trained_row(
    table: str, name: str, label: str, training: Training, *, is_alone: bool = False, embedding_dim: int | None = None
) -> TableRow:
    """Build a row that trains and is measured on the test sets of its training set.

    Args:
        table: Published table with the percentages; those of other test sets are left out.
        name: Name in that table.
        label: Name for readers.
        training: The training.
        is_alone: Whether the plan trains on this set only: the row's key is then its name.
        embedding_dim: Dimensions that a PCA keeps; None: all.
    """
    tests = TESTS[training.source]
    return TableRow(
        key=name if is_alone else f"{name}-{training.source}",
        name=name,
        label=label,
        group=_group_title(training.source),
        training=training,
        embedding_dim=embedding_dim,
        tests=tests,
        published=_of_tests(PUBLISHED[table][name], tests),
        has_gradients=training.recipe.startswith("irt_") and training.source in CATEGORY,
    )


def _frozen_row(name: str, label: str, source: str, encoder: str, published: Percentages) -> TableRow:
    """Build a row that measures a backbone as it is; ``source`` is the training set of the rows beside it."""
    tests = TESTS[source]
    return TableRow(
        key=f"{name}-{source}",
        name=name,
        label=label,
        group=_group_title(source),
        encoder=encoder,
        tests=tests,
        published=_of_tests(published, tests),
    )


def _grid_rows(backbone: str, margins: Sequence[float], weights: Sequence[float]) -> list[TableRow]:
    """Build rows of Table 5: a backbone (``r50`` or ``deit_s``) on SOP, by margin β and weight λ."""
    flags, title = (R50_FLAGS, "R50") if backbone == "r50" else ((), "DeiT-S")
    rows = []
    for margin in margins:
        for weight in weights:
            training = irt_training("sop", weight, margin=margin, flags=flags)
            label = f"{title}, β {margin:g}, λ {weight:g}"
            row = _trained_row("table5", grid_name(backbone, margin, weight), label, training, is_alone=True)
            rows.append(replace(row, group=f"SOP, {title}", series=f"β = {margin:g}", x=weight))
    return rows


def _group_title(source: str) -> str:
    return "SfM-120k, measured on ROxford and RParis" if source == "sfm120k" else DATASET_TITLES[source]


def _of_tests(published: Percentages, tests: Sequence[str]) -> Mapping[Measure, float]:
    return {measure: value for measure, value in published.items() if measure.dataset in tests}


def _table2() -> Plan:
    rows = []
    for source in CATEGORY:
        proxynca = Training(recipe=f"proxynca_pp_{source}", source=source)
        narrow = replace(proxynca, flags=("--model.head-dim", "512"))
        irt_r = irt_training(source, CATEGORY_KOLEO)
        distilled = irt_training(source, CATEGORY_KOLEO, flags=("--model.backbone", DEIT_S_DISTILLED))
        if source != "cub200":
            xbm = Training(recipe=f"xbm_{source}", source=source)
            rows.append(_trained_row("table2", "xbm_128", "XBM, R50, 128 d", xbm))
        rows += [
            _trained_row("table2", "proxynca_pp_512", "ProxyNCA++, R50, 512 d", narrow),
            _trained_row("table2", "proxynca_pp_2048", "ProxyNCA++, R50, 2048 d", proxynca),
            _trained_row("table2", "irt_r_128", "IRT_R, DeiT-S, 128 d", irt_r, embedding_dim=128),
            _trained_row("table2", "irt_r_384", "IRT_R, DeiT-S, 384 d", irt_r),
            _trained_row("table2", "irt_r_distilled_384", "IRT_R, DeiT-S†, 384 d", distilled),
        ]
    return Plan(
        name="table2",
        title="Category-level retrieval beside other methods",
        claim="IRT_R with DeiT-S is ahead of ResNet-50 methods on all three benchmarks.",
        rows=tuple(rows),
        notes=(
            "The figures of XBM and ProxyNCA++ are those of their authors; the recipes' docstrings say what differs.",
        ),
    )


def _table3() -> Plan:
    rows = []
    for source in (*CATEGORY, "sfm120k"):
        koleo = RECIPE_KOLEO.get(source, CATEGORY_KOLEO)
        rows += [
            _frozen_row("irt_o", "IRT_O, as it is", source, DEIT_S, PUBLISHED["table3"]["irt_o"]),
            _trained_row("table3", "irt_l", "IRT_L", irt_training(source, 0)),
            _trained_row("table3", "irt_r", "IRT_R", irt_training(source, koleo)),
        ]
    return Plan(
        name="table3",
        title="Supervision: off the shelf, fine-tuned, fine-tuned with the entropy regularizer (DeiT-S, 224 px)",
        claim="Fine-tuning gains much everywhere (O to L), the regularizer a little more (L to R).",
        rows=tuple(rows),
    )


def _table4() -> Plan:
    objectives = {
        "nsoftmax": ("Normalized softmax", Training(recipe="nsoftmax_sop", source="sop")),
        "snca": ("Scalable NCA", Training(recipe="snca_sop", source="sop")),
        "contrastive": ("Contrastive (IRT_L)", irt_training("sop", 0)),
    }
    rows = []
    for backbone, title, flags in (("r50", "R50", R50_FLAGS), ("deit_s", "DeiT-S", ())):
        for name, (label, training) in objectives.items():
            training = replace(training, flags=(*flags, *training.flags))
            rows.append(_trained_row("table4", f"{name}-{backbone}", f"{label}, {title}", training, is_alone=True))
    return Plan(
        name="table4",
        title="Objectives, on SOP",
        claim="The contrastive loss with a memory is the best of the three for both backbones, and DeiT-S gains more.",
        rows=tuple(rows),
        notes=(CONVNET_NOTE,),
    )


def _table5() -> Plan:
    return Plan(
        name="table5",
        title="Margin β and weight of the regularizer λ, on SOP",
        claim="The regularizer helps where the margin is not too small; training collapses where β and λ are both "
        "high, with ResNet-50 sooner than with DeiT-S.",
        rows=tuple(row for backbone in ("r50", "deit_s") for row in _grid_rows(backbone, MARGINS, KOLEO_WEIGHTS)),
        notes=(CONVNET_NOTE,),
        chart="sweep",
        x_name="λ",
    )


def _table6() -> Plan:
    rows = []
    for weight in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        training = irt_training("sfm120k", weight)
        row = _trained_row("table6", f"l{weight:g}", f"λ {weight:g}", training, is_alone=True)
        rows.append(replace(row, series="DeiT-S", x=weight))
    return Plan(
        name="table6",
        title="Weight of the regularizer for particular objects (DeiT-S, 224 px)",
        claim="λ of 3 to 4 is best; 5 is too much.",
        rows=tuple(rows),
        chart="sweep",
        x_name="λ",
    )


_BACKBONES7 = {
    "r50_gem": ("R50, GeM", R50, "gem"),
    "r50_rmac": ("R50, R-MAC", R50, "rmac"),
    "r101_gem": ("R101, GeM", R101, "gem"),
    "r101_rmac": ("R101, R-MAC", R101, "rmac"),
    "deit_s_distilled": ("DeiT-S†", DEIT_S_DISTILLED, ""),
    "deit_b_distilled": ("DeiT-B†", "", ""),
}


def _flags7(backbone: str, image_size: int) -> tuple[str, ...]:
    _, weights, pooling = _BACKBONES7[backbone]
    flags = ["--model.backbone", weights or DEIT_B_DISTILLED[image_size]]
    flags += ["--model.pooling", pooling] if pooling else []
    return (*flags, *(() if image_size == 224 else ("--image-size", f"{image_size}")))


def _table7() -> Plan:
    rows = []
    for name in PUBLISHED["table7"]:
        backbone, size, dims = name.split("-")
        training = irt_training("sfm120k", 0, flags=_flags7(backbone, int(size)))
        label, is_short = _BACKBONES7[backbone][0], dims == "128"
        row = _trained_row("table7", name, label, training, is_alone=True, embedding_dim=128 if is_short else None)
        rows.append(replace(row, group=f"{size} px, {'128' if is_short else 'all'} dimensions"))
    return Plan(
        name="table7",
        title="Backbones, resolution and dimension for particular objects (IRT_L)",
        claim="Transformers are ahead of convnets of the same cost, above all with few dimensions.",
        rows=tuple(rows),
        notes=("128 dimensions come from a PCA fitted on the training images of SfM-120k.",),
    )


def _table8() -> Plan:
    rows = []
    for name in PUBLISHED["table8"]:
        method, dims = name.split("-")
        koleo = RECIPE_KOLEO["sfm120k"] if method == "irt_r" else 0
        training = irt_training("sfm120k", koleo, flags=_flags7("deit_b_distilled", 384))
        label, embedding_dim = f"{method.upper()}, {dims} d", 128 if dims == "128" else None
        rows.append(_trained_row("table8", name, label, training, is_alone=True, embedding_dim=embedding_dim))
    return Plan(
        name="table8",
        title="The largest model for particular objects (DeiT-B† at 384 px)",
        claim="The regularizer gains much at 768 dimensions, next to nothing at 128.",
        rows=tuple(rows),
    )


POOLINGS = {"average": "Average", "max": "Max", "gem": "GeM", "cls": "CLS token"}
"""Poolings of Table 9; the class token is the recipe's own, so that its training is Table 3's and is run once."""


def _table9() -> Plan:
    rows = []
    for source in (*CATEGORY, "sfm120k"):
        for name, label in POOLINGS.items():
            flags = () if name == "cls" else ("--model.pooling", name)
            rows.append(_trained_row("table9", name, label, irt_training(source, 0, flags=flags)))
    return Plan(
        name="table9",
        title="Pooling (IRT_L, DeiT-S)",
        claim="The CLS token is as good as average pooling or better, by far for particular objects.",
        rows=tuple(rows),
        notes=("GeM takes the odd extension of the power, as tokens of a ViT are signed.",),
    )


def _figure2() -> Plan:
    rows = _grid_rows("deit_s", (RECIPE_MARGIN,), KOLEO_WEIGHTS)
    return Plan(
        name="figure2",
        title="Energy of the principal components for several λ, on SOP (DeiT-S)",
        claim="Training collapses dimensions: few components hold nearly all energy. The regularizer spreads it again, "
        "the more the larger λ.",
        rows=tuple(replace(row, series=f"λ = {row.x:g}") for row in rows),
        notes=(f"{NO_NUMBERS}; the table has Recall@1 of Table 5.",),
        chart="energy",
    )


def _figure3() -> Plan:
    rows = []
    # The paper has no Recall@1 of R50 as it is.
    for backbone, title, encoder, published in (
        ("r50", "R50", R50, {}),
        ("deit_s", "DeiT-S", DEIT_S, PUBLISHED["table3"]["irt_o"]),
    ):
        frozen = _frozen_row(f"irt_o-{backbone}", f"{title}, as it is", "sop", encoder, published)
        rows.append(replace(frozen, series=frozen.label))
        for row in _grid_rows(backbone, (RECIPE_MARGIN,), (0.0, CATEGORY_KOLEO)):
            rows.append(replace(row, group="SOP", series=f"{title}, λ = {row.x:g}"))
    return Plan(
        name="figure3",
        title="Energy of the principal components, ResNet-50 beside DeiT-S, on SOP",
        claim="DeiT-S collapses less than ResNet-50.",
        rows=tuple(rows),
        notes=(CONVNET_NOTE, f"{NO_NUMBERS}."),
        chart="energy",
    )


def _figure4() -> Plan:
    rows = [
        replace(row, series=f"λ = {row.x:g}", x=margin)
        for margin in MARGINS
        for row in _grid_rows("deit_s", (margin,), KOLEO_WEIGHTS)
    ]
    return Plan(
        name="figure4",
        title="Nuclear norm of the covariance of the contrastive gradient directions, on SOP (DeiT-S)",
        claim="In how many ways the gradient points, against β and for several λ.",
        rows=tuple(rows),
        notes=(f"{NO_NUMBERS}; the table has Recall@1 of Table 5.",),
        chart="gradients",
        x_name="β",
    )


def _figure5() -> Plan:
    rows = tuple(row for row in _table3().rows if row.tests == ("sop",))
    return Plan(
        name="figure5",
        title="Similarities of positive and negative pairs for O, L and R, on SOP (DeiT-S)",
        claim="How far training parts the two kinds of pairs, and what the regularizer adds.",
        rows=tuple(replace(row, series=row.label) for row in rows),
        notes=(f"{NO_NUMBERS}.",),
        chart="histograms",
    )


PLANS: dict[str, Callable[[], Plan]] = {
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "table6": _table6,
    "table7": _table7,
    "table8": _table8,
    "table9": _table9,
    "figure2": _figure2,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
}
