"""What determines a run, written at its beginning and compared when it resumes. Next file: ``device.py``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vitrieve.artifacts import write_text_durably
from vitrieve.config import Config
from vitrieve.config_json import config_to_json
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError
from vitrieve.runtime.precision import resolve_precision

SETTINGS_NAME = "config.json"
_MACHINE = "machine"


def describe_run(
    recipe: str,
    config: Config,
    protocol: str,
    records: Iterable[ImageRecord],
    positive_pairs: Iterable[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Describe what determines a run, as plain JSON values.

    Args:
        recipe: Name the configuration began with.
        config: Resolved configuration.
        protocol: The source's protocol.
        records: Images that train and judge, in order.
        positive_pairs: Pairs that the source lists, in order.
    """
    identity = hashlib.sha256()
    for record in records:
        identity.update(f"{record.image_id!r} {record.label} {record.split}\n".encode())
    for anchor_id, positive_id in positive_pairs:
        identity.update(f"{anchor_id!r} {positive_id!r}\n".encode())
    return {
        "recipe": recipe,
        "data": {"protocol": protocol, "images": identity.hexdigest()},
        _MACHINE: {
            "num_threads": config.train.num_threads or torch.get_num_threads(),
            "precision": resolve_precision(config.train.precision),
        },
        **config_to_json(config),
    }


def settle(run: Path, settings: Mapping[str, Any]) -> str:
    """Write the settings of a run, or compare them with what it was begun with.

    Returns:
        A warning when another machine goes on with the run: its number of threads or its precision may change the
        last bits of the result. Otherwise empty.

    Raises:
        ArtifactError: The run was begun with other settings or other images.
    """
    path = run / SETTINGS_NAME
    warning = ""
    if path.is_file():
        differing = _list_differing(json.loads(path.read_text(encoding="utf-8")), settings)
        if any(not name.startswith(f"{_MACHINE}.") for name in differing):
            raise ArtifactError(
                f"{run} was begun with other settings ({', '.join(differing)}); resume with the same command, or start "
                "again with --overwrite."
            )
        if differing:
            warning = f"begun with another {' and '.join(differing)}: the result may differ in the last bits"
    write_text_durably(path, json.dumps(settings, indent=2) + "\n")
    return warning


def _list_differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{name}.{inner}" for inner in _list_differing(old, new)]
        elif old != new:
            names.append(name)
    return names
