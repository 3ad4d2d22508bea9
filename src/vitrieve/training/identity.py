"""What determines a run: it is written when the run begins, and compared when it resumes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitrieve.config import Config, LoaderConfig, ModelConfig, ObjectiveConfig, TrainConfig
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ArtifactError
from vitrieve.model.encoder import ImageEncoder
from vitrieve.objective.own import OwnTerm, describe_own_terms
from vitrieve.runtime.device import resolve_device, resolve_precision
from vitrieve.settings import config_to_json, rename_former
from vitrieve.training.compute import has_batch_norm
from vitrieve.training.ranks import current_ranks, require_equal
from vitrieve.training.state import STATE_NAME, digest_tensors
from vitrieve.writing import write_text_durably

SETTINGS_NAME = "config.json"
MACHINE = "machine"
IS, IS_NOT = "is", "is not"
Relation = tuple[str, str] | tuple[str, str, str]
"""A pair: two ``image_id``. A further label: an ``image_id``, ``IS``, the label. A pair that is none: an ``image_id``,
``IS_NOT``, another ``image_id``."""
NUM_DIGEST_CHARACTERS = 64
FREE_SETTINGS = frozenset(
    {
        "loader.cache_bytes",
        "model.embedding_dim",
        "model.whiten",
        "train.checkpoint_every",
        "train.compile",
        "train.device",
        "train.max_bad_fraction",
        "train.memory_limit_gib",
        "train.num_threads",
        "train.try_larger_image",
    }
)
"""Settings that a resumed run may change, because no step depends on them. Most say how to compute and not what, so
that a run that ran out of memory goes on with less; another device or number of threads may change the last bits of the
result. The others are about the reduction and the image size, which are chosen after the last step."""
MICROBATCH = "train.microbatch_size"
"""A setting that may change as well, unless batch norm trains, whose means and variances are those of a micro-batch."""


def describe_run(
    recipe: str,
    config: Config,
    protocol: str,
    records: Iterable[ImageRecord],
    pairs: Iterable[Relation] = (),
    digests: Mapping[str, bytes] | None = None,
    own_terms: Sequence[OwnTerm] = (),
) -> dict[str, Any]:
    """Describe what determines a run, as plain JSON values.

    Args:
        recipe: Name of the recipe that the configuration began with.
        config: Resolved configuration.
        protocol: The source's protocol.
        records: Images that train or are held out, in order.
        pairs: Pairs that the source lists, and what else is known of images beside one label of each, in order.
        digests: SHA-256 of the file of each image, by ``image_id``; None: the content of the files is not described.
        own_terms: Terms of the objective that are not of this package.
    """
    names, contents = hashlib.sha256(), hashlib.sha256()
    relations: list[str] = []
    rows: dict[str, int] = {}
    num_of_source: Counter[str] = Counter()
    source = ""
    for record in records:
        num_of_source[record.source] += record.image_id not in rows  # what trains may be searched among as well
        rows[record.image_id] = len(rows)
        if record.source != source:
            source = record.source
            contents.update(b"next source\n")
        role = f"{record.label} {record.split}\n"
        names.update(f"{record.image_id!r} {role}".encode())
        contents.update((b"" if digests is None else digests[record.image_id]) + f"{record.box} {role}".encode())
    for first, *kind, second in pairs:
        relation = " ".join([*kind, second])
        names.update(f"{first!r} {relation!r}\n".encode())
        partner = second if kind == [IS] else rows.get(second)
        if first in rows and partner is not None:  # others train nothing
            # Their positions, because images that were moved keep them.
            line = " ".join([str(rows[first]), *kind, f"{partner}\n"])
            if kind:
                relations.append(line)
            else:
                contents.update(line.encode())
    data: dict[str, Any] = {"protocol": protocol, "num_images": len(rows), "images": names.hexdigest()}
    if source:
        data["sources"] = [list(counted) for counted in num_of_source.items()]
    if digests is not None:
        data["content"] = contents.hexdigest()
        data["relations"] = hashlib.sha256("".join(relations).encode()).hexdigest() if relations else None
    return {
        "recipe": recipe,
        "data": data,
        MACHINE: {
            "num_threads": config.train.num_threads or torch.get_num_threads(),
            "precision": resolve_precision(config.train.precision, resolve_device(config.train.device).type),
            **({"num_ranks": current_ranks().size} if current_ranks().size > 1 else {}),
        },
        **config_to_json(config),
        **({"own_terms": describe_own_terms(own_terms)} if own_terms else {}),
    }


def digest_weights(encoder: ImageEncoder) -> str:
    """Compute a digest of an encoder's weights, wherever they were read from."""
    return digest_tensors(sorted(encoder.state_dict().items()))


def require_same_run(run: Path, settings: Mapping[str, Any], *, encoder: ImageEncoder | None = None) -> list[str]:
    """Write the settings of a run, or compare them with what it was begun with.

    Args:
        run: Folder of the run.
        settings: Result of ``describe_run``.
        encoder: Encoder that the run starts from, by which a file of weights that was moved is recognized; None: it is
            recognized by its name.

    Returns:
        Sentences about what has changed and is accepted: settings that cannot change the mathematics, another machine,
        images or weights that were moved, another recipe with equal settings.

    Raises:
        ArtifactError: The run was begun with other settings, other images or other weights, or nobody can say, because
            the file is damaged or missing.
    """
    path = run / SETTINGS_NAME
    now = dict(settings)
    if encoder is not None:
        now["start"] = {"weights": digest_weights(encoder)}
    notes: list[str] = []
    if not path.exists() and any((run / STATE_NAME).glob("*")):
        raise ArtifactError(
            f"{path} is missing, but {run} holds a training state; nobody can say whether this command goes on with "
            "the same run. Put the file back, or start again with --overwrite; the steps so far are lost then."
        )
    if path.exists():
        before = _read_settings(path)
        changes = _list_changes(before, now)
        trains_batch_norm = encoder is not None and has_batch_norm(encoder) and not now["train"]["freeze_batch_norm"]
        notes = _accept_accepted(changes, before, trains_batch_norm=trains_batch_norm)
        if changes:
            listed = "; ".join(f"{name} was {_spell(old)} and is {_spell(new)}" for name, (old, new) in changes.items())
            raise ArtifactError(
                f"{run} was begun with other settings: {listed}. Resume with the values of before, or start again with "
                "--overwrite and without --resume."
            )
    write_text_durably(path, json.dumps(now, indent=2) + "\n")
    return notes


def require_same_on_ranks(described: Mapping[str, Any]) -> None:
    """Refuse processes of one training that were started with other settings, images or weights than the first.

    Args:
        described: What must be equal, plain JSON values; ``machine`` may differ.

    Raises:
        ConfigError: Something differs; the message names the process and what differs.
    """
    given = {name: value for name, value in described.items() if name != MACHINE}
    require_equal(
        current_ranks(),
        given,
        lambda first, other: {
            name: (_spell(one), _spell(two)) for name, (one, two) in _list_changes(first, other).items()
        },
    )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _build_damaged_error(path, str(error)) from None
    if not isinstance(found, dict):
        raise _build_damaged_error(path, "it holds no table")
    for name, stage in (("loader", LoaderConfig()), ("model", ModelConfig()), ("train", TrainConfig())):
        if isinstance(found.get(name), dict):
            # What a later version brought is off by default, or means nothing to a run of before, such as the sources.
            found[name] = {**config_to_json(stage), **found[name]}
    if isinstance(found.get("objective"), dict):
        found["objective"] = _fill_objective(rename_former(ObjectiveConfig, found["objective"]))
    return found


def _fill_objective(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Add the losses and settings that the file does not know, because a later version brought them: they were off."""
    filled = dict(saved)
    for name, value in config_to_json(ObjectiveConfig()).items():
        table = filled.setdefault(name, value)
        if isinstance(value, dict) and isinstance(table, dict):
            filled[name] = {**value, **table}
    return filled


def _build_damaged_error(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged ({reason}), so nobody can say whether this command goes on with the same run. Put the file "
        "back, or start again with --overwrite; the steps so far are lost then."
    )


Changes = dict[str, tuple[Any, Any]]
"""Dotted name of a setting -> its value before and now."""


def _list_changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Changes:
    changes: Changes = {}
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changes |= _list_changes(old, new, f"{prefix}{name}.")
        elif old != new:
            changes[prefix + name] = (old, new)
    return changes


def _accept_accepted(changes: Changes, before: Mapping[str, Any], *, trains_batch_norm: bool) -> list[str]:
    """Take the changes that a resumed run may have out of ``changes``, and return what to say of them."""
    data = before.get("data", {})
    for name, has_it in (
        ("data.content", "content" in data),
        ("data.num_images", "num_images" in data),
        ("data.relations", "relations" in data or "data.images" in changes),  # without the key, the names cover them
        ("start", "start" in before),
    ):
        if name in changes and not has_it:  # begun by a version that did not write it
            del changes[name]
    notes = _accept_moved(changes, before)
    notes += _accept_free(changes, trains_batch_norm=trains_batch_norm)
    if changes.keys() == {"recipe"}:
        old, new = changes.pop("recipe")
        notes.append(f"begun with the recipe {old}; the settings of {new} are equal")
    return notes


def _accept_moved(changes: Changes, before: Mapping[str, Any]) -> list[str]:
    notes = []
    if "data.images" in changes and "data.content" not in changes and "content" in before.get("data", {}):
        del changes["data.images"]
        changes.pop("data.sources", None)  # their names; where one ends and the next begins is in the content
        notes.append("the images have other names than when the run was begun, but the same content")
    if "model.weights" in changes and "start.weights" not in changes and "start" in before:
        del changes["model.weights"]
        notes.append("the file of the first weights has another name than when the run was begun, but the same content")
    return notes


def _accept_free(changes: Changes, *, trains_batch_norm: bool) -> list[str]:
    notes = []
    free = sorted((FREE_SETTINGS if trains_batch_norm else FREE_SETTINGS | {MICROBATCH}) & changes.keys())
    if free:
        listed = "; ".join(f"{name} was {_spell(changes[name][0])} and is {_spell(changes[name][1])}" for name in free)
        notes.append(f"accepted, as no step depends on it: {listed}")
    if trains_batch_norm and "train.memory_limit_gib" in free:
        notes.append("batch norm trains on micro-batches, which this limit may make smaller: the result may differ")
    machine = [name for name in changes if name.startswith(f"{MACHINE}.")]
    if machine:
        notes.append(f"begun with another {' and '.join(machine)}: the result may differ in the last bits")
    for name in (*free, *machine):
        del changes[name]
    return notes


def _spell(value: Any) -> str:
    """Spell a setting as the command line does; a digest by its beginning."""
    text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return f"{text[:8]}…" if len(text) == NUM_DIGEST_CHARACTERS and " " not in text else text
