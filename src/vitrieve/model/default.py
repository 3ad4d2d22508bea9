"""The encoder that commands take where none is named: it is chosen once, and kept in the cache.

Training never asks here: a recipe names its weights, so that a command gives the same result on every machine.
"""

from __future__ import annotations

import json
from importlib.util import find_spec

from vitrieve.config import DEFAULT_WEIGHTS
from vitrieve.errors import DiskFullError, WeightsError
from vitrieve.machine import cache_folder
from vitrieve.model.hub import is_hub_name
from vitrieve.model.pretrained import WEIGHTS, find_pulled, find_weights, pull_weights, verify_pulled
from vitrieve.model.published import pull_whole
from vitrieve.progress import print_message
from vitrieve.writing import write_text_durably

PUBLISHED_WEIGHTS = "vit_small_patch14_dinov2.lvd142m"
"""DINOv2 as it was published; ``DEFAULT_WEIGHTS`` were made of a copy of it in the package index."""
CHOICE_FILE = "default_encoder.json"


def get_default_encoder() -> str:
    """Return the name of the default encoder as far as it is chosen, without asking anybody."""
    return _read_choice() or DEFAULT_WEIGHTS


def use_weights(name: str) -> str:
    """Make an encoder the default of ``up``, ``sync`` and ``embed``; it is fetched when it is not here.

    Args:
        name: A weights name, or ``hf:OWNER/NAME``, of which the commit is kept.

    Returns:
        The name that is kept.

    Raises:
        WeightsError: It is unknown, cannot be had or is damaged; the default stays what it was.
        DiskFullError: There is no room for it; the default stays what it was.
    """
    if is_hub_name(name):
        name = pull_whole(name).name
    else:
        name = find_weights(name).name
        pull_weights(name)
        verify_pulled(name)
    cache_folder().mkdir(parents=True, exist_ok=True)
    write_text_durably(cache_folder() / CHOICE_FILE, json.dumps({"encoder": name}) + "\n")
    return name


def choose_default_encoder() -> str:
    """Choose the encoder for what is new, once, and say in a line which it is.

    Weights that are here stay the default. Only where they would have to be fetched from the package index, the hub is
    asked for the published weights, with a short limit; they are then the default from that moment on.
    """
    name, why = _choose()
    print_message(f"the encoder is {name}{why}")
    return name


def _choose() -> tuple[str, str]:
    """Choose the encoder; return its name, and the rest of the line that says why."""
    name = _read_choice()
    difference = WEIGHTS[DEFAULT_WEIGHTS].delta
    if name is None and find_pulled(DEFAULT_WEIGHTS if difference is None else difference.base) is not None:
        name = DEFAULT_WEIGHTS
    if name is not None:
        return name, ", the default on this machine (vitrieve weights use NAME changes it)"
    try:
        use_weights(PUBLISHED_WEIGHTS)
    except (WeightsError, DiskFullError):  # nothing is kept: where neither can be had, the next call asks again
        if find_spec("huggingface_hub") is None:
            return DEFAULT_WEIGHTS, f"; the hub is not asked for {PUBLISHED_WEIGHTS}: that needs vitrieve[hub]"
        why = f"{PUBLISHED_WEIGHTS} cannot be had (vitrieve weights pull {PUBLISHED_WEIGHTS} says why)"
        return DEFAULT_WEIGHTS, f": {why}"
    return PUBLISHED_WEIGHTS, ", from now on the default on this machine (vitrieve weights use NAME changes it)"


def _read_choice() -> str | None:
    try:
        chosen = json.loads((cache_folder() / CHOICE_FILE).read_text(encoding="utf-8"))["encoder"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return chosen if isinstance(chosen, str) else None
