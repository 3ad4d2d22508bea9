"""``diagnose`` checks this machine and installation; it imports nothing heavy and changes nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vitrieve import __version__
from vitrieve.machine import cache_folder
from vitrieve.plugins import Plugin, check_plugins

INSTALL_PAIR = "Install the pair, in the checkout: pip install '.[train]'"
TRAIN_PACKAGES = ("torch", "torchvision", "timm", "tensorboard")
OTHER_PACKAGES = ("openvino", "resvg-py", "pillow-heif", "faiss-cpu")
CPU_FEATURES = {
    "avx2": "avx2",
    "avx512": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "bf16": "avx512_bf16",
    "amx": "amx_tile",
}
"""Our name of a feature, and the kernel's."""
MIN_FREE_BYTES = 2**30
"""Free memory and disk below which embedding or fetching weights fails sooner or later."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The findings of ``diagnose``; ``problems`` says what to do about each."""

    problems: tuple[str, ...]
    versions: Mapping[str, str | None]
    is_torch_pair: bool | None
    cpu: Mapping[str, Any]
    memory: Mapping[str, int | None]
    disk: Mapping[str, Any]
    weights: Mapping[str, bool]
    data: Mapping[str, str | None]
    plugins: tuple[Plugin, ...]


def diagnose() -> Diagnosis:
    """Check this machine and installation."""
    versions = read_versions()
    pair = is_torch_pair(versions["torch"], versions["torchvision"])
    memory, disk = read_memory(), read_disk(cache_folder())
    plugins = find_plugins()
    return Diagnosis(
        problems=(*_find_problems(versions, pair, memory, disk), *(one.problem for one in plugins if one.problem)),
        versions=versions,
        is_torch_pair=pair,
        cpu=read_cpu(),
        memory=memory,
        disk=disk,
        weights=find_weights_here(),
        data=find_data_here(),
        plugins=plugins,
    )


def list_required() -> tuple[str, ...]:
    """List the packages that vitrieve needs whatever it is used for, from its own metadata; none where it has none."""
    try:
        requirements = metadata.requires("vitrieve") or []
    except metadata.PackageNotFoundError:
        return ()
    return tuple(re.split(r"[^\w.-]", text)[0].lower() for text in requirements if "extra ==" not in text)


def read_versions() -> dict[str, str | None]:
    """Read the versions of Python and the packages, from their metadata; None: not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "vitrieve": __version__}
    for package in (*list_required(), *TRAIN_PACKAGES, *OTHER_PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def is_torch_pair(torch: str | None, torchvision: str | None) -> bool | None:
    """Tell whether torchvision was built for this torch: torch 2.x.y goes with torchvision 0.(x + 15).y.

    Returns:
        None when either is missing, or for another major version, whose rule is not known here.

    >>> is_torch_pair("2.14.1+cpu", "0.29.1"), is_torch_pair("2.15.0", "0.29.1"), is_torch_pair("2.14.1", None)
    (True, False, None)
    """
    if torch is None or torchvision is None:
        return None
    torch_parts, vision_parts = (version.split("+")[0].split(".") for version in (torch, torchvision))
    if torch_parts[0] != "2" or vision_parts[0] != "0":
        return None
    return vision_parts[1:] == [str(int(torch_parts[1]) + 15), *torch_parts[2:]]


def read_cpu(path: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Read the number of threads and what the processor can do; a feature is None where that cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    features = {name: None if flags is None else flag in flags for name, flag in CPU_FEATURES.items()}
    return {"model": model, "num_threads": os.cpu_count(), **features}


def read_memory(path: Path = Path("/proc/meminfo")) -> dict[str, int | None]:
    """Read total and available memory in bytes; None where the system does not say."""
    values: dict[str, int] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, rest = line.partition(":")
            values[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        values = {}
    return {"total_bytes": values.get("MemTotal"), "available_bytes": values.get("MemAvailable")}


def read_disk(folder: Path) -> dict[str, Any]:
    """Read the free space where the cache folder is or will be, and whether it can be written."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    is_writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    return {"cache": str(folder), "is_writable": is_writable, "free_bytes": shutil.disk_usage(existing).free}


def find_weights_here() -> dict[str, bool]:
    """Tell for each known name whether its weights are on this machine."""
    from vitrieve.model.pretrained import WEIGHTS, find_pulled

    return {name: find_pulled(name) is not None for name in WEIGHTS}


def find_data_here() -> dict[str, str | None]:
    """Find the data sets that need no download; None: not here (emoji: fetched when first used)."""
    from vitrieve.data.emoji import CACHE_NAME
    from vitrieve.data.sources import find_source_folder

    grocery = find_source_folder("grocery")
    emoji = cache_folder() / CACHE_NAME
    return {
        "grocery": None if grocery is None else str(grocery),
        "emoji": str(emoji) if (emoji / "drawings.json").is_file() else None,
    }


def find_plugins() -> tuple[Plugin, ...]:
    """Load what other packages add, and say of each whether it can be used."""
    from vitrieve.data.sources import DESCRIPTIONS
    from vitrieve.index.store import BUILT_IN_STORES

    return check_plugins({"source": DESCRIPTIONS, "store": BUILT_IN_STORES})


def _find_problems(
    versions: Mapping[str, str | None], pair: bool | None, memory: Mapping[str, int | None], disk: Mapping[str, Any]
) -> Iterable[str]:
    missing = [package for package in list_required() if versions[package] is None]
    if missing:
        yield f"missing packages: {', '.join(missing)}. Install them, in the checkout: pip install ."
    if pair is False:
        yield (
            f"torch {versions['torch']} and torchvision {versions['torchvision']} do not belong together. "
            f"{INSTALL_PAIR}"
        )
    if (versions["torch"] is None) != (versions["torchvision"] is None):
        yield f"of torch and torchvision only one is installed. {INSTALL_PAIR}"
    available = memory["available_bytes"]
    if available is not None and available < MIN_FREE_BYTES:
        yield f"only {format_bytes(available)} of memory is free; close other programs."
    if not disk["is_writable"]:
        yield f"the cache folder {disk['cache']} cannot be written; name another one with VITRIEVE_CACHE."
    if disk["free_bytes"] < MIN_FREE_BYTES:
        yield (
            f"only {format_bytes(disk['free_bytes'])} of disk is free for the cache {disk['cache']}; "
            "make room, or name another folder with VITRIEVE_CACHE."
        )


def format_bytes(num_bytes: int | None) -> str:
    """Spell a number of bytes in GiB; ``unknown`` for None."""
    return "unknown" if num_bytes is None else f"{num_bytes / 2**30:.1f} GiB"
