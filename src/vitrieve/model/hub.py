"""timm's models on the hub: any name, fetched quickly or refused quickly."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from vitrieve.data.preprocess import Interpolation
from vitrieve.errors import WeightsError, unknown_name_message
from vitrieve.model.pretrained import WeightsEntry

HUB_FILE = "model.safetensors"
HUB_TIMEOUT_SECONDS = 5.0
"""For the first answer; the download itself may take longer."""
NUM_NEAREST = 3


def describe_timm_weights(name: str, known_names: tuple[str, ...]) -> WeightsEntry:
    """Describe the weights of any timm model by what timm says about them.

    Args:
        name: timm's name, with a tag (``resnet50.a1_in1k``) or without (timm's default weights).
        known_names: Names of the table, for the message.

    Raises:
        WeightsError: timm is not installed or does not know the name.
    """
    try:
        import timm
    except ImportError:
        raise WeightsError(
            unknown_name_message("weights", name, known_names) + " Other timm models need the extra vitrieve[train]."
        ) from None
    if not timm.is_model(name):
        raise WeightsError(_unknown_name(name, known_names, timm.list_models()))
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError):
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise WeightsError(unknown_name_message("weights", name, tags or known_names)) from None
    return _build_entry(name, config)


def _unknown_name(name: str, known_names: tuple[str, ...], timm_names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, [*known_names, *timm_names], n=NUM_NEAREST, cutoff=0.5)
    hint = f" Did you mean {', '.join(map(repr, nearest))}?" if nearest else ""
    return f"unknown weights {name!r}.{hint} Valid: {', '.join(known_names)}, or any timm model name."


def _build_entry(name: str, config: Any) -> WeightsEntry:
    interpolation: Interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    return WeightsEntry(
        name=name,
        architecture=name.partition(".")[0],
        license=config.license or "unknown",
        image_size=int(config.input_size[-1]),
        mean=tuple(map(float, config.mean)),
        std=tuple(map(float, config.std)),
        interpolation=interpolation,
        hub_id=config.hf_hub_id,
    )


def find_hub_file(hub_id: str | None) -> Path | None:
    """Return a file of the hub's own cache, without any network; None when it is not there."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    if hub_id is None:
        return None
    path = try_to_load_from_cache(hub_id, HUB_FILE)
    return Path(path) if isinstance(path, str) else None


def download_hub_file(entry: WeightsEntry, alternatives: str, *, show_progress: bool) -> Path:
    """Download a model's safetensors file into the hub's own cache.

    The file's metadata are asked for first, once and with a short limit: the hub's client retries for half a minute
    before it says that there is no network.

    Raises:
        WeightsError: No such weights, no client, no network; the message names the alternatives.
    """
    if entry.hub_id is None:
        raise WeightsError(f"timm has no weights on the hub for {entry.name!r}. {alternatives}")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars
    except ImportError:
        raise WeightsError(
            f"{entry.name!r} comes from the hub, which needs the extra vitrieve[train]. {alternatives}"
        ) from None
    (enable_progress_bars if show_progress else disable_progress_bars)()
    try:
        get_hf_file_metadata(hf_hub_url(entry.hub_id, HUB_FILE), timeout=HUB_TIMEOUT_SECONDS)
        return Path(hf_hub_download(entry.hub_id, HUB_FILE, etag_timeout=HUB_TIMEOUT_SECONDS))
    except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"the hub cannot give {entry.hub_id!r} ({reason}). {alternatives}") from error
