"""The plan of every table and figure by name."""

from __future__ import annotations

from collections.abc import Callable

from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.reproduce import figures, tables
from vitrieve.reproduce.rows import Plan

PLANS: dict[str, Callable[[], Plan]] = {
    "table2": tables.build_table2,
    "table3": tables.build_table3,
    "table4": tables.build_table4,
    "table5": tables.build_table5,
    "table6": tables.build_table6,
    "table7": tables.build_table7,
    "table8": tables.build_table8,
    "table9": tables.build_table9,
    "figure2": figures.build_figure2,
    "figure3": figures.build_figure3,
    "figure4": figures.build_figure4,
    "figure5": figures.build_figure5,
}


def plan_table(name: str) -> Plan:
    """Build the plan of a table or figure on the paper's data.

    Args:
        name: ``table2`` to ``table9``, ``figure2`` to ``figure5``.

    Raises:
        ConfigError: An unknown name; the message lists the valid ones.
    """
    require_known(name)
    return PLANS[name]()


def require_known(name: str) -> None:
    """Refuse a table or figure that the paper does not have, or that is not reproduced.

    Raises:
        ConfigError: The message lists the valid names.
    """
    if name not in PLANS:
        raise ConfigError(unknown_name_message("table or figure", name, PLANS))
