"""Recipes: functions that return a complete ``Config``.

Each docstring tells the source, the exact command, the expected or the published result, and what the source does not
state. A variant is a function with ``dataclasses.replace``; single fields change on the command line. Read ``irt.py``,
``baselines.py``, ``small.py``, then ``methods.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vitrieve.config import Config
from vitrieve.errors import ConfigError, unknown_name_message
from vitrieve.recipes import baselines, irt, methods
from vitrieve.recipes import small as own

Recipe = Callable[[], Config]


def _by_name(*recipes: Recipe) -> dict[str, Recipe]:
    return {recipe.__name__: recipe for recipe in recipes}


RECIPE_GROUPS: Mapping[str, Mapping[str, Recipe]] = {
    "for your own images": _by_name(own.small, own.small_lora, own.irt_l_small, own.irt_r_small),
    "methods to compare, with the budget of small": _by_name(
        methods.contrastive,
        methods.multi_similarity,
        methods.supervised_contrastive,
        methods.triplet,
        methods.circle,
        methods.smooth_ap,
        methods.recall_at_k,
        methods.hyperbolic,
        methods.spherical,
        methods.normalized_softmax,
        methods.proxy_nca_pp,
        methods.proxy_anchor,
        methods.cosface,
        methods.arcface,
        methods.large_batch,
    ),
    "the paper's methods": _by_name(
        irt.irt_l,
        irt.irt_r,
        irt.irt_l_cub200,
        irt.irt_l_sop,
        irt.irt_l_inshop,
        irt.irt_l_sfm120k,
        irt.irt_r_cub200,
        irt.irt_r_sop,
        irt.irt_r_inshop,
        irt.irt_r_sfm120k,
    ),
    "what it compares with": _by_name(
        baselines.contrastive_sop,
        baselines.nsoftmax_sop,
        baselines.snca_sop,
        baselines.proxynca_pp_cub200,
        baselines.proxynca_pp_sop,
        baselines.proxynca_pp_inshop,
        baselines.xbm_sop,
        baselines.xbm_inshop,
    ),
}
"""Title of a group -> its recipes by name, in the order of the listing."""

RECIPES: dict[str, Recipe] = {name: recipe for group in RECIPE_GROUPS.values() for name, recipe in group.items()}


def find_recipe(name: str) -> Recipe:
    """Look a recipe up by name.

    Raises:
        ConfigError: IRT_O, which is not trained, or an unknown name; the message tells what is valid.
    """
    if name == "irt_o" or name.startswith("irt_o_"):
        raise ConfigError(
            "IRT_O is not trained: it is the off-the-shelf backbone. Measure it with "
            "vitrieve evaluate --encoder deit_small_patch16_224.fb_in1k --data SOURCE."
        )
    if name not in RECIPES:
        raise ConfigError(unknown_name_message("recipe", name, RECIPES))
    return RECIPES[name]
