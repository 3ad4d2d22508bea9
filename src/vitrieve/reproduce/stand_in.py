"""The same tables and figures on data that is here, with a short budget.

The direction of a change can be compared with the paper, not a number: the pictures and the backbone are others, and
the steps are few (60 instead of thousands).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vitrieve.errors import ConfigError
from vitrieve.reproduce.plans import (
    CATEGORY_KOLEO,
    POOLINGS,
    RECIPE_MARGIN,
    Plan,
    TableRow,
    Training,
    irt_training,
    plan_table,
)
from vitrieve.reproduce.published import PUBLISHED, SOP, Measure, Percentages, grid_name

NAMES = ("grocery", "emoji")
NUM_STEPS = 60
MEMORY_START_SHARE = 3
"""The memory counts after this part of the steps, 1 / 3, as in the recipe."""
MARGINS = (0.3, 0.5, 0.7)
KOLEO_WEIGHTS = (0.0, 0.3, 0.7, 1.0)
NO_STAND_IN = {
    "table2": "it compares with figures of other methods on its own data sets, which nothing here can stand for; "
    "table4 has the objectives",
    "table8": "it is one model at 384 px that a CPU cannot train; table7 has resolution and dimension",
}


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """The data and the models that take the part of the paper's.

    Attributes:
        source: ``grocery``, ``emoji``, or any source as ``NAME:PATH``.
        vit: Weights name of the transformer.
        vit_flags: Flags of ``vitrieve train`` that start from it; empty: its name as the backbone.
        convnet: Weights name of the convolutional network.
        image_sizes: Sides in pixels, the first of them everywhere but in the sweep of resolutions.
        sweep_dims: Dimensions of the sweep of Table 7, the last of them the transformer's own.
        short_dim: Dimensions of the rows that have 128 in the paper.
        num_steps: Length of each training.
    """

    source: str
    vit: str = "dinov2-vits14"
    vit_flags: tuple[str, ...] = ()
    convnet: str = "efficientnet-lite0"
    image_sizes: tuple[int, ...] = (112, 168, 224)
    sweep_dims: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 384)
    short_dim: int = 128
    num_steps: int = NUM_STEPS

    @property
    def start_flags(self) -> tuple[str, ...]:
        """Flags of ``vitrieve train`` for the transformer: a change is told from the very encoder that is measured."""
        return self.vit_flags or ("--model.backbone", self.vit)

    def convnet_flags(self, pooling: str = "average") -> tuple[str, ...]:
        """Return the flags of ``vitrieve train`` for the convolutional network.

        Its batch norms keep their statistics: in so few steps the running ones do not follow the batch's.
        """
        return ("--model.backbone", self.convnet, "--model.pooling", pooling, "--train.freeze-batch-norm")

    def train(
        self, koleo: float, *, margin: float = RECIPE_MARGIN, flags: Sequence[str] = (), has_memory: bool = True
    ) -> Training:
        """Build a training of the small recipes; ``flags`` choose the backbone where it is not the transformer."""
        always = ["--num-steps", f"{self.num_steps}", "--no-holdout", "--train.frozen-share", "0"]
        if has_memory:
            always += ["--objective.memory-start-step", f"{self.num_steps // MEMORY_START_SHARE}"]
        flags = (*always, *(flags or self.start_flags))
        return irt_training(self.source, koleo, margin=margin, flags=flags, suffix="small")

    def row(
        self, key: str, label: str, training: Training | None, published: Percentages, *, reference: str = ""
    ) -> TableRow:
        """Build a row; without training it is the transformer as it is."""
        row = TableRow(
            key=key,
            name=key,
            label=label,
            group=self.source,
            training=training,
            tests=(self.source,),
            published=published,
            # Eq. 1 with its memory is the subject of figure 4; other objectives have no β.
            has_gradients=training is not None,
            reference=reference,
        )
        if training is not None:
            return row
        return replace(row, encoder=self.vit, encoder_flags=("--image-size", f"{self.image_sizes[0]}"))

    def grid(self, margins: Iterable[float], weights: Sequence[float]) -> list[TableRow]:
        """Build the rows of some margins β and weights λ."""
        rows = []
        for margin in margins:
            for weight in weights:
                row = self.row(
                    f"b{margin:g}-l{weight:g}",
                    f"β {margin:g}, λ {weight:g}",
                    self.train(weight, margin=margin),
                    PUBLISHED["table5"].get(grid_name("deit_s", margin, weight), {}),
                    reference="" if weight == 0 else f"b{margin:g}-l0",
                )
                rows.append(replace(row, series=f"β = {margin:g}", x=weight))
        return rows


def build_plan(name: str, stand_in: str | None, num_steps: int | None) -> Plan:
    """Build the plan of a table or figure: on the paper's data, or on a stand-in for it.

    Args:
        name: ``table2`` to ``table9``, or ``figure2`` to ``figure5``.
        stand_in: Source of data that is here; None: the paper's data sets.
        num_steps: Steps of each training; None: the recipes' own, of a stand-in few.

    Raises:
        ConfigError: The table or the stand-in is unknown, or they do not go together.
    """
    if stand_in is not None:
        if stand_in not in NAMES and ":" not in stand_in:
            raise ConfigError(
                f"unknown stand-in {stand_in!r}. Valid: {', '.join(NAMES)}, or any source with its path, folder:DIR."
            )
        return plan_stand_in(name, StandIn(source=stand_in, num_steps=num_steps or NUM_STEPS))
    plan = plan_table(name)
    if num_steps is None:
        return plan
    return replace(plan, rows=tuple(_set_num_steps(row, num_steps) for row in plan.rows))


def _set_num_steps(row: TableRow, num_steps: int) -> TableRow:
    if row.training is None:
        return row
    return replace(row, training=replace(row.training, flags=(*row.training.flags, "--num-steps", f"{num_steps}")))


def plan_stand_in(name: str, stand_in: StandIn) -> Plan:
    """Build the plan of a table or figure on data that is here.

    Args:
        name: ``table3`` to ``table7``, ``table9``, ``figure2`` to ``figure5``.
        stand_in: Data, models, and length.

    Raises:
        ConfigError: The name is unknown, or has no sensible stand-in; the message says why.
    """
    if name in NO_STAND_IN:
        raise ConfigError(f"{name} has no stand-in: {NO_STAND_IN[name]}. Valid: {', '.join(_ROWS)}.")
    plan = plan_table(name)
    if name == "table7":
        plan = replace(plan, chart="sweep", x_name="dimensions", is_log_x=True)
    notes = (
        f"A stand-in: {stand_in.source} in place of the paper's data, {stand_in.vit} (for DeiT-S) and "
        f"{stand_in.convnet} (for ResNet-50) as backbones, {stand_in.num_steps} steps of training. Compare the "
        "direction of a change with the paper's, not the figures.",
        "Every training image trains, the last state is kept, and no frozen weights are blended in, so that a training "
        "that collapses shows as one.",
    )
    shown = (Measure(stand_in.source, "recall_at_1"), Measure(stand_in.source, "map_at_r"))
    return replace(plan, rows=tuple(_ROWS[name](stand_in)), stand_in=stand_in.source, shown=shown, notes=notes)


def _of_sop(table: str, name: str) -> Mapping[Measure, float]:
    """Take the published Recall@1 on SOP of a row."""
    return {SOP[0]: PUBLISHED[table][name][SOP[0]]}


def _table3(stand_in: StandIn) -> list[TableRow]:
    return [
        stand_in.row("irt_o", "O: as it is", None, _of_sop("table3", "irt_o")),
        stand_in.row("irt_l", "L: fine-tuned", stand_in.train(0), _of_sop("table3", "irt_l"), reference="irt_o"),
        stand_in.row(
            "irt_r", "R: with KoLeo", stand_in.train(CATEGORY_KOLEO), _of_sop("table3", "irt_r"), reference="irt_l"
        ),
    ]


def _table4(stand_in: StandIn) -> list[TableRow]:
    rows = []
    for side, title, flags, parallel in (
        ("convnet", stand_in.convnet, stand_in.convnet_flags(), "r50"),
        ("vit", stand_in.vit, stand_in.start_flags, "deit_s"),
    ):
        for name, label, weight in (
            ("nsoftmax", "Normalized softmax", "--objective.normalized-softmax.weight"),
            ("snca", "Scalable NCA", "--objective.scalable-nca.weight"),
        ):
            # The memory is Eq. 1's; without it its start is a setting without effect.
            training = stand_in.train(0, flags=flags, has_memory=False)
            changed = ("--objective.contrastive.weight", "0", "--objective.memory-fraction", "0", weight, "1")
            training = replace(training, flags=(*training.flags, *changed))
            published = PUBLISHED["table4"][f"{name}-{parallel}"]
            row = stand_in.row(
                f"{name}-{side}", f"{label}, {title}", training, published, reference=f"contrastive-{side}"
            )
            rows.append(replace(row, has_gradients=False))
        published = PUBLISHED["table4"][f"contrastive-{parallel}"]
        training = stand_in.train(0, flags=flags)
        rows.append(stand_in.row(f"contrastive-{side}", f"Contrastive (IRT_L), {title}", training, published))
    return rows


def _table5(stand_in: StandIn) -> list[TableRow]:
    return stand_in.grid(MARGINS, KOLEO_WEIGHTS)


def _table6(stand_in: StandIn) -> list[TableRow]:
    # The published percentages are mean average precision on Oxford and Paris: nothing here is like them.
    rows = stand_in.grid((RECIPE_MARGIN,), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0))
    return [replace(row, published={}, series=stand_in.vit, label=f"λ {row.x:g}") for row in rows]


def _table7(stand_in: StandIn) -> list[TableRow]:
    """Build the rows of backbones and resolutions, with all and with few dimensions, and the sweep of dimensions."""
    first = stand_in.image_sizes[0]
    models = [
        (f"convnet_{pooling}-{first}", f"{stand_in.convnet}, {title}", first, stand_in.convnet_flags(pooling))
        for pooling, title in (("gem", "GeM"), ("rmac", "R-MAC"))
    ]
    models += [(f"vit-{size}", stand_in.vit, size, stand_in.start_flags) for size in stand_in.image_sizes]
    parallels = ("r50_gem-224", "r50_rmac-224", "deit_s_distilled-224")
    rows = []
    for number, (key, label, size, flags) in enumerate(models):
        sized = flags if size == first else (*flags, "--image-size", f"{size}")
        for dims, name in ((None, "full"), (stand_in.short_dim, f"{stand_in.short_dim}")):
            parallel = f"{parallels[number] if number < len(parallels) else ''}-{'128' if dims else 'full'}"
            row = stand_in.row(
                f"{key}-{name}",
                f"{label}, {name} dimensions",
                stand_in.train(0, flags=sized),
                PUBLISHED["table7"].get(parallel, {}),
                reference=f"{key}-full" if dims else "",
            )
            rows.append(replace(row, group=f"{stand_in.source}, {size} px", embedding_dim=dims))
    for name, koleo in (("irt_l", 0.0), ("irt_r", CATEGORY_KOLEO)):
        for dims in stand_in.sweep_dims:
            row = stand_in.row(
                f"{name}-{dims}",
                f"{name.upper()}, {dims} d",
                stand_in.train(koleo),
                {},
                reference="" if name == "irt_l" else f"irt_l-{dims}",
            )
            row = replace(row, group=f"{stand_in.source}, dimensions by PCA", series=name.upper(), x=float(dims))
            rows.append(replace(row, embedding_dim=None if dims == stand_in.sweep_dims[-1] else dims))
    return rows


def _table9(stand_in: StandIn) -> list[TableRow]:
    rows = []
    for name, label in POOLINGS.items():
        flags = () if name == "cls" else (*stand_in.start_flags, "--model.pooling", name)
        training, reference = stand_in.train(0, flags=flags), "" if name == "cls" else "cls"
        rows.append(stand_in.row(name, label, training, _of_sop("table9", name), reference=reference))
    return rows


def _figure2(stand_in: StandIn) -> list[TableRow]:
    frozen = replace(_table3(stand_in)[0], series="as it is")
    rows = stand_in.grid((RECIPE_MARGIN,), KOLEO_WEIGHTS)
    return [frozen, *(replace(row, series=f"λ = {row.x:g}") for row in rows)]


def _figure3(stand_in: StandIn) -> list[TableRow]:
    rows = []
    frozen = _table3(stand_in)[0]
    for side, title, flags, parallel in (
        ("vit", stand_in.vit, stand_in.start_flags, "deit_s"),
        ("convnet", stand_in.convnet, stand_in.convnet_flags(), "r50"),
    ):
        as_it_is, key = f"{title}, as it is", f"irt_o-{side}"
        start = replace(frozen, key=key, name=key, label=as_it_is, series=as_it_is)
        rows.append(start if side == "vit" else replace(start, encoder=title, published={}))
        for name, koleo in (("irt_l", 0.0), ("irt_r", CATEGORY_KOLEO)):
            row = stand_in.row(
                f"{name}-{side}",
                f"{title}, λ {koleo:g}",
                stand_in.train(koleo, flags=flags),
                PUBLISHED["table5"][grid_name(parallel, RECIPE_MARGIN, koleo)],
                reference="" if name == "irt_l" else f"irt_l-{side}",
            )
            rows.append(replace(row, series=f"{title}, λ = {koleo:g}"))
    return rows


def _figure4(stand_in: StandIn) -> list[TableRow]:
    return [
        replace(row, series=f"λ = {row.x:g}", x=margin)
        for margin in MARGINS
        for row in stand_in.grid((margin,), KOLEO_WEIGHTS)
    ]


def _figure5(stand_in: StandIn) -> list[TableRow]:
    return [replace(row, series=row.label) for row in _table3(stand_in)]


_ROWS: dict[str, Callable[[StandIn], list[TableRow]]] = {
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
