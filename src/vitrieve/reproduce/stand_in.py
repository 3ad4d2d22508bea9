"""The same grids on data that is here, with a short budget.

What can be compared with the paper is the direction of a change, not a figure: other pictures, another backbone, and a
hundredth of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vitrieve.errors import ConfigError
from vitrieve.reproduce.methods import CATEGORY_KOLEO, RECIPE_MARGIN, irt_training
from vitrieve.reproduce.plan import plan_table, require_known
from vitrieve.reproduce.published import SOP, TABLE3, TABLE4, TABLE5, TABLE7, TABLE9, Figures, Measure, grid_name
from vitrieve.reproduce.rows import Plan, Row, Training

NAMES = ("grocery", "emoji")
NUM_STEPS = 60
MEMORY_START_SHARE = 3
"""The memory counts after this part of the steps, 1 / 3, as in the recipe."""
MARGINS = (0.3, 0.5, 0.7)
KOLEO_WEIGHTS = (0.0, 0.3, 0.7, 1.0)
SWEEP_DIMS = (8, 16, 32, 64, 128, 256, 384)
SHORT_DIM = 128
NO_STAND_IN = {
    "table2": "it compares with figures of other methods on its own data sets, which nothing here can stand for; "
    "table4 has the objectives",
    "table8": "it is one model at 384 px that a CPU cannot train; table7 has resolution and dimension",
}


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """What stands for the paper's data and models.

    Attributes:
        source: ``grocery``, ``emoji``, or any source as ``NAME:PATH``.
        vit: Weights name of the transformer.
        vit_flags: Its flags of ``vitrieve train``; empty: the recipe's own.
        convnet: Weights name of the convolutional side.
        image_sizes: Sides in pixels, the first of them everywhere but in the sweep of resolutions.
        sweep_dims: Dimensions of the sweep of Table 7, the last of them the transformer's own.
        short_dim: Dimensions of the rows that are 128 in the paper.
        num_steps: Length of each training.
    """

    source: str
    vit: str = "dinov2-vits14"
    vit_flags: tuple[str, ...] = ()
    convnet: str = "efficientnet-lite0"
    image_sizes: tuple[int, ...] = (112, 168, 224)
    sweep_dims: tuple[int, ...] = SWEEP_DIMS
    short_dim: int = SHORT_DIM
    num_steps: int = NUM_STEPS

    @property
    def shown(self) -> tuple[Measure, ...]:
        """The measures of every row."""
        return (Measure(self.source, "recall_at_1"), Measure(self.source, "map_at_r"))

    def convnet_flags(self, pooling: str = "average") -> tuple[str, ...]:
        """Return the flags of ``vitrieve train`` for the convolutional side.

        Its batch norms keep their statistics: in so few steps the running ones do not follow the batch's.
        """
        return ("--model.backbone", self.convnet, "--model.pooling", pooling, "--train.freeze-batch-norm")


def check_source(source: str) -> None:
    """Refuse what is no stand-in before anything is planned.

    Raises:
        ConfigError: Neither a name of ``NAMES`` nor a source with its path.
    """
    if source not in NAMES and ":" not in source:
        raise ConfigError(
            f"unknown stand-in {source!r}. Valid: {', '.join(NAMES)}, or any source with its path, folder:DIR."
        )


def plan_stand_in(name: str, stand_in: StandIn) -> Plan:
    """Build the plan of a table or figure on data that is here.

    Args:
        name: ``table3`` to ``table7``, ``table9``, ``figure2`` to ``figure5``.
        stand_in: Data, models, and length.

    Raises:
        ConfigError: An unknown name, or one without a sensible stand-in; the message says why.
    """
    require_known(name)
    if name in NO_STAND_IN:
        raise ConfigError(f"{name} has no stand-in: {NO_STAND_IN[name]}. Valid: {', '.join(_PLANS)}.")
    paper = plan_table(name)
    notes = (
        f"A stand-in: {stand_in.source} in place of the paper's data, {stand_in.vit} (for DeiT-S) and "
        f"{stand_in.convnet} (for ResNet-50) as backbones, {stand_in.num_steps} steps of training. Compare the "
        "direction of a change with the paper's, not the figures.",
        "Every training image trains, the last state is kept, and no frozen weights are blended in, so that a training "
        "that collapses shows as one.",
    )
    return replace(_PLANS[name](stand_in, paper), stand_in=stand_in.source, shown=stand_in.shown, notes=notes)


def _train(stand_in: StandIn, koleo: float, *, margin: float = RECIPE_MARGIN, flags: Sequence[str] = ()) -> Training:
    """Build a training of the small recipes; ``flags`` choose the backbone where it is not the transformer."""
    always = (
        "--num-steps",
        f"{stand_in.num_steps}",
        "--no-holdout",
        "--train.frozen-share",
        "0",
        "--objective.memory-start-step",
        f"{stand_in.num_steps // MEMORY_START_SHARE}",
    )
    chosen = (*always, *(flags or stand_in.vit_flags))
    return irt_training(stand_in.source, koleo, margin=margin, flags=chosen, suffix="small")


def _row(stand_in: StandIn, name: str, label: str, training: Training | None, published: Figures) -> Row:
    """Build a row; without training the transformer as it is."""
    is_frozen = training is None
    return Row(
        key=name,
        name=name,
        label=label,
        group=stand_in.source,
        training=training,
        encoder=stand_in.vit if is_frozen else "",
        encoder_flags=("--image-size", f"{stand_in.image_sizes[0]}") if is_frozen else (),
        tests=(stand_in.source,),
        published=published,
        # Eq. 1 with its memory is what figure 4 is about; other objectives have no β.
        has_gradients=not is_frozen,
    )


def _take_sop(figures: Figures) -> Figures:
    return {measure: value for measure, value in figures.items() if measure == SOP[0]}


def _table3(stand_in: StandIn, paper: Plan) -> Plan:
    rows = (
        _row(stand_in, "irt_o", "O: as it is", None, _take_sop(TABLE3["irt_o"])),
        _row(stand_in, "irt_l", "L: fine-tuned", _train(stand_in, 0), _take_sop(TABLE3["irt_l"])),
        _row(stand_in, "irt_r", "R: with KoLeo", _train(stand_in, CATEGORY_KOLEO), _take_sop(TABLE3["irt_r"])),
    )
    changes = (rows[0], replace(rows[1], reference="irt_o"), replace(rows[2], reference="irt_l"))
    return replace(paper, rows=changes)


_OTHER_OBJECTIVES = {
    "nsoftmax": ("Normalized softmax", ("--objective.normalized-softmax.weight", "1")),
    "snca": ("Scalable NCA", ("--objective.scalable-nca.weight", "1")),
}
_NO_CONTRASTIVE = ("--objective.contrastive.weight", "0", "--objective.memory-fraction", "0")


def _table4(stand_in: StandIn, paper: Plan) -> Plan:
    rows = []
    for backbone, flags in (("r50", stand_in.convnet_flags()), ("deit_s", stand_in.vit_flags)):
        title = stand_in.convnet if backbone == "r50" else stand_in.vit
        side = "convnet" if backbone == "r50" else "vit"
        for name, (label, changed) in _OTHER_OBJECTIVES.items():
            training = _train(stand_in, 0, flags=flags)
            # The memory is Eq. 1's; without it its start is a setting without effect.
            kept = _drop_flag(training.flags, "--objective.memory-start-step")
            training = replace(training, flags=(*kept, *_NO_CONTRASTIVE, *changed))
            row = _row(stand_in, f"{name}-{side}", f"{label}, {title}", training, TABLE4[f"{name}-{backbone}"])
            rows.append(replace(row, has_gradients=False, reference=f"contrastive-{side}"))
        training = _train(stand_in, 0, flags=flags)
        label = f"Contrastive (IRT_L), {title}"
        rows.append(_row(stand_in, f"contrastive-{side}", label, training, TABLE4[f"contrastive-{backbone}"]))
    return replace(paper, rows=tuple(rows))


def _drop_flag(flags: Sequence[str], name: str) -> tuple[str, ...]:
    """Leave a flag and its value out."""
    place = flags.index(name)
    return (*flags[:place], *flags[place + 2 :])


def _grid(stand_in: StandIn, margins: Sequence[float], weights: Sequence[float]) -> list[Row]:
    rows = []
    for margin in margins:
        for weight in weights:
            name = f"b{margin:g}-l{weight:g}"
            row = _row(
                stand_in,
                name,
                f"β {margin:g}, λ {weight:g}",
                _train(stand_in, weight, margin=margin),
                TABLE5.get(grid_name("deit_s", margin, weight), {}),
            )
            reference = "" if weight == 0 else f"b{margin:g}-l0"
            rows.append(replace(row, series=f"β = {margin:g}", x=weight, reference=reference))
    return rows


def _table5(stand_in: StandIn, paper: Plan) -> Plan:
    return replace(paper, rows=tuple(_grid(stand_in, MARGINS, KOLEO_WEIGHTS)))


def _table6(stand_in: StandIn, paper: Plan) -> Plan:
    # The paper's figures are mean average precision on Oxford and Paris: nothing here is like them.
    rows = _grid(stand_in, (RECIPE_MARGIN,), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    return replace(
        paper, rows=tuple(replace(row, published={}, series=stand_in.vit, label=f"λ {row.x:g}") for row in rows)
    )


def _table7(stand_in: StandIn, paper: Plan) -> Plan:
    return replace(
        paper,
        rows=(*_backbone_rows(stand_in), *_sweep_rows(stand_in)),
        chart="sweep",
        x_name="dimensions",
        is_log_x=True,
    )


def _backbone_rows(stand_in: StandIn) -> list[Row]:
    """Build the rows of backbones and resolutions, each with all and with few dimensions."""
    models: list[tuple[str, str, int, tuple[str, ...], str]] = [
        (
            f"convnet_{pooling}-{stand_in.image_sizes[0]}",
            f"{stand_in.convnet}, {title}",
            stand_in.image_sizes[0],
            stand_in.convnet_flags(pooling),
            f"r50_{pooling}-224",
        )
        for pooling, title in (("gem", "GeM"), ("rmac", "R-MAC"))
    ]
    for size, published in zip(stand_in.image_sizes, ("deit_s_distilled-224", "", ""), strict=False):
        models.append((f"vit-{size}", stand_in.vit, size, stand_in.vit_flags, published))
    rows = []
    for key, label, size, flags, parallel in models:
        sized = flags if size == stand_in.image_sizes[0] else (*flags, "--image-size", f"{size}")
        training = _train(stand_in, 0, flags=sized)
        for dims, name in ((None, "full"), (stand_in.short_dim, f"{stand_in.short_dim}")):
            figures = TABLE7.get(f"{parallel}-{'full' if dims is None else '128'}", {})
            row = _row(stand_in, f"{key}-{name}", f"{label}, {name} dimensions", training, figures)
            rows.append(
                replace(
                    row,
                    group=f"{stand_in.source}, {size} px",
                    embedding_dim=dims,
                    reference="" if dims is None else f"{key}-full",
                )
            )
    return rows


def _sweep_rows(stand_in: StandIn) -> list[Row]:
    rows = []
    for name, koleo in (("irt_l", 0.0), ("irt_r", CATEGORY_KOLEO)):
        for dims in stand_in.sweep_dims:
            is_full = dims == stand_in.sweep_dims[-1]
            title = f"{name.upper()}, {dims} d"
            row = _row(stand_in, f"{name}-{dims}", title, _train(stand_in, koleo), {})
            rows.append(
                replace(
                    row,
                    group=f"{stand_in.source}, dimensions by PCA",
                    series=name.upper(),
                    x=float(dims),
                    embedding_dim=None if is_full else dims,
                    reference="" if name == "irt_l" else f"irt_l-{dims}",
                )
            )
    return rows


def _table9(stand_in: StandIn, paper: Plan) -> Plan:
    rows = []
    for name, label in (("average", "Average"), ("max", "Max"), ("gem", "GeM"), ("cls", "CLS token")):
        # CLS is the recipe's own: without the flag the training is Table 3's.
        flags = stand_in.vit_flags if name == "cls" else (*stand_in.vit_flags, "--model.pooling", name)
        row = _row(stand_in, name, label, _train(stand_in, 0, flags=flags), _take_sop(TABLE9[name]))
        rows.append(replace(row, reference="" if name == "cls" else "cls"))
    return replace(paper, rows=tuple(rows))


def _figure2(stand_in: StandIn, paper: Plan) -> Plan:
    rows = _grid(stand_in, (RECIPE_MARGIN,), KOLEO_WEIGHTS)
    frozen = replace(_table3(stand_in, paper).rows[0], series="as it is")
    return replace(paper, rows=(frozen, *(replace(row, series=f"λ = {row.x:g}") for row in rows)))


def _figure3(stand_in: StandIn, paper: Plan) -> Plan:
    rows = []
    frozen = _table3(stand_in, paper).rows[0]
    sides = (
        ("vit", stand_in.vit, stand_in.vit_flags, frozen),
        (
            "convnet",
            stand_in.convnet,
            stand_in.convnet_flags(),
            replace(frozen, encoder=stand_in.convnet, published={}),
        ),
    )
    for side, title, flags, as_it_is in sides:
        rows.append(
            replace(
                as_it_is,
                key=f"irt_o-{side}",
                name=f"irt_o-{side}",
                label=f"{title}, as it is",
                series=f"{title}, as it is",
            )
        )
        for name, koleo in (("irt_l", 0.0), ("irt_r", CATEGORY_KOLEO)):
            backbone = "deit_s" if side == "vit" else "r50"
            published = TABLE5[grid_name(backbone, RECIPE_MARGIN, koleo)]
            row = _row(
                stand_in, f"{name}-{side}", f"{title}, λ {koleo:g}", _train(stand_in, koleo, flags=flags), published
            )
            rows.append(
                replace(row, series=f"{title}, λ = {koleo:g}", reference="" if name == "irt_l" else f"irt_l-{side}")
            )
    return replace(paper, rows=tuple(rows))


def _figure4(stand_in: StandIn, paper: Plan) -> Plan:
    rows = [replace(row, series=f"λ = {row.x:g}") for row in _grid(stand_in, MARGINS, KOLEO_WEIGHTS)]
    margins = [margin for margin in MARGINS for _ in KOLEO_WEIGHTS]
    return replace(paper, rows=tuple(replace(row, x=margin) for row, margin in zip(rows, margins, strict=True)))


def _figure5(stand_in: StandIn, paper: Plan) -> Plan:
    return replace(paper, rows=tuple(replace(row, series=row.label) for row in _table3(stand_in, paper).rows))


_PLANS: dict[str, Callable[[StandIn, Plan], Plan]] = {
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "table6": _table6,
    "table7": _table7,
    "table9": _table9,
    "figure2": _figure2,
    "figure3": _figure3,
    "figure4": _figure4,
    "figure5": _figure5,
}
