"""Figures 2 to 5 of the paper on the paper's data."""

from __future__ import annotations

from dataclasses import replace

from vitrieve.reproduce.methods import (
    CATEGORY_KOLEO,
    CONVNET_NOTE,
    DEIT_S,
    R50,
    RECIPE_MARGIN,
    SETTINGS_NOTE,
    frozen_row,
    grid_rows,
)
from vitrieve.reproduce.published import KOLEO_WEIGHTS, MARGINS, TABLE3, TABLE5
from vitrieve.reproduce.rows import Plan, Row
from vitrieve.reproduce.tables import build_table3


def build_figure2() -> Plan:
    """Build the plan of Figure 2."""
    rows = [replace(row, published=TABLE5[row.name]) for row in grid_rows("deit_s", (RECIPE_MARGIN,), KOLEO_WEIGHTS)]
    return Plan(
        name="figure2",
        title="Energy of the principal components for several λ, on SOP (DeiT-S)",
        claim="Training collapses dimensions: few components hold nearly all energy. The regulariser spreads it again, "
        "the more the larger λ.",
        rows=tuple(replace(row, series=f"λ = {row.x:g}") for row in rows),
        notes=(SETTINGS_NOTE, "The paper prints this figure without numbers; the table has Recall@1 of Table 5."),
        chart="energy",
    )


def build_figure3() -> Plan:
    """Build the plan of Figure 3."""
    rows = []
    for backbone, encoder in (("r50", R50), ("deit_s", DEIT_S)):
        title = "R50" if backbone == "r50" else "DeiT-S"
        # R50 as it is has no published Recall@1.
        published = TABLE3["irt_o"] if backbone == "deit_s" else {}
        frozen = frozen_row(f"irt_o-{backbone}", f"{title}, as it is", "sop", encoder, published)
        rows.append(replace(frozen, series=f"{title}, as it is"))
        for row in grid_rows(backbone, (RECIPE_MARGIN,), (0.0, CATEGORY_KOLEO)):
            rows.append(replace(row, group="SOP", series=f"{title}, λ = {row.x:g}"))
    return Plan(
        name="figure3",
        title="Energy of the principal components, ResNet-50 beside DeiT-S, on SOP",
        claim="DeiT-S collapses less than ResNet-50.",
        rows=tuple(rows),
        notes=(SETTINGS_NOTE, CONVNET_NOTE, "The paper prints this figure without numbers."),
        chart="energy",
    )


def build_figure4() -> Plan:
    """Build the plan of Figure 4."""
    rows = grid_rows("deit_s", MARGINS, KOLEO_WEIGHTS)
    return Plan(
        name="figure4",
        title="Nuclear norm of the covariance of the contrastive gradient directions, on SOP (DeiT-S)",
        claim="In how many ways the gradient points, against β and for several λ.",
        rows=tuple(replace(row, series=f"λ = {row.x:g}", x=_margin(row)) for row in rows),
        notes=(SETTINGS_NOTE, "The paper prints this figure without numbers; the table has Recall@1 of Table 5."),
        chart="gradients",
        x_name="β",
    )


def _margin(row: Row) -> float:
    """Read β from the name of a row of Table 5."""
    return float(row.name.split("-b")[1].split("-l")[0])


def build_figure5() -> Plan:
    """Build the plan of Figure 5."""
    rows = tuple(row for row in build_table3().rows if row.tests == ("sop",))
    return Plan(
        name="figure5",
        title="Similarities of positive and negative pairs for O, L and R, on SOP (DeiT-S)",
        claim="How far training parts the two kinds of pairs, and what the regulariser adds.",
        rows=tuple(replace(row, series=row.label) for row in rows),
        notes=(SETTINGS_NOTE, "The paper prints this figure without numbers."),
        chart="histograms",
    )
