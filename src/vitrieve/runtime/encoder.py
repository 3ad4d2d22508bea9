"""``load_encoder``: from a run, a folder or a weights name to something that encodes pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from vitrieve.artifacts import read_manifest
from vitrieve.data.decode import Picture, open_any_picture
from vitrieve.data.preprocess import Preprocessing, find_enough_px, to_square
from vitrieve.errors import ArtifactError, ConfigError, WeightsError
from vitrieve.model.artifact import (
    INT8_NAMES,
    ONE_SCALE,
    ONNX_NAME,
    EncoderContents,
    find_encoder_folder,
    read_contents,
    read_spec,
)
from vitrieve.model.hub import is_hub_name, parse_hub_name
from vitrieve.model.named_graph import has_named_graph, make_delta_folder, make_named_folder
from vitrieve.model.pretrained import WEIGHTS, find_exported_sizes, find_weights, get_export_folder
from vitrieve.model.text import find_text_part
from vitrieve.runtime.device import DeviceName, resolve_precision
from vitrieve.runtime.engine import (
    ClosedEngine,
    Engine,
    EngineChoice,
    EngineName,
    PrecisionChoice,
    choose_device,
    choose_engine,
)
from vitrieve.runtime.graph_engines import OnnxEngine, OpenVinoEngine
from vitrieve.similarity import normalize, similarity

if TYPE_CHECKING:
    from vitrieve.choices import Device, Precision
    from vitrieve.model.encoder import ImageEncoder
    from vitrieve.runtime.text import TextEncoder


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Turns pictures into embeddings of unit length, with whatever engine is there.

    Attributes:
        name: Name for people: the folder's or that of the weights.
        source: Origin, as ``load_encoder`` takes it: a path or a weights name.
        fingerprint: Identity of weights, pooling, reduction and preprocessing; engine and precision do not count.
        embedding_dim: Length of an embedding.
        preprocessing: What happens to a picture first.
        runner: The engine.
        scales: Shares of the input's side whose embeddings are combined into one.
        backbone: Name of the weights that it is, or that its training started from; empty: unknown.
        text_part: Folder of what turns texts into embeddings (``vitrieve align``); None: only pictures can be encoded.
        num_threads: CPU threads that it was loaded with; None: all cores.
    """

    name: str
    source: str
    fingerprint: str
    embedding_dim: int
    preprocessing: Preprocessing
    runner: Engine
    scales: tuple[float, ...] = ONE_SCALE
    backbone: str = ""
    text_part: Path | None = None
    num_threads: int | None = None

    @property
    def engine(self) -> EngineName:
        """Return the name of the engine."""
        return self.runner.name

    @property
    def precision(self) -> str:
        """Return the precision of the engine's matrix products: ``fp32``, ``bf16`` or ``int8``."""
        return self.runner.precision

    @property
    def num_parallel(self) -> int:
        """Return how many calls the engine computes side by side, from as many threads."""
        return self.runner.num_parallel

    @property
    def device(self) -> DeviceName:
        """Return where the engine computes: ``cpu`` or ``cuda``."""
        return self.runner.device

    @property
    def batch_size(self) -> int:
        """Return the pictures in one forward pass with which the engine is fastest."""
        return self.runner.batch_size

    def encode(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """Embed pictures of any sizes, prepared a few at a time, in as many threads as the engine has streams.

        Args:
            images: A picture, or any number of them, in a list, a column of a table or whatever yields them: each the
                path of a file, the bytes of one, or a Pillow picture of any mode. All become upright RGB by the rule of
                ``data/decode.py``.

        Returns:
            ``(N, E)`` float32, rows of unit length, in order; of one picture that is not in a list ``(E,)``.

        Raises:
            DecodeError: A picture cannot be read or decoded; the message says which.
        """
        if isinstance(images, (str, Path, bytes, Image.Image)):
            vectors = self._encode_all([images])
            return vectors.reshape(-1)
        return self._encode_all(list(images))  # what counts is their order, not names that a table gives its rows

    def _encode_all(self, images: Sequence[Picture]) -> np.ndarray:
        enough_px = find_enough_px(self.preprocessing)

        def prepare(position: int) -> np.ndarray:
            with open_any_picture(images[position], f"image {position}", enough_px=enough_px) as picture:
                return to_square(picture, self.preprocessing)

        def encode_some(bounds: tuple[int, int]) -> np.ndarray:
            return self.encode_squares(np.stack([prepare(position) for position in range(*bounds)]))

        cuts = _cut(len(images), self.batch_size)
        if self.num_parallel == 1 or len(cuts) == 1:
            parts = [encode_some(bounds) for bounds in cuts]
        else:
            with ThreadPoolExecutor(self.num_parallel) as pool:
                parts = list(pool.map(encode_some, cuts))
        return np.concatenate([np.empty((0, self.embedding_dim), np.float32), *parts])

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Embed prepared pictures.

        Args:
            pixels: ``(B, 3, S, S)`` float32, from ``preprocess``; any B.

        Returns:
            ``(B, E)`` float32, rows of unit length, in order.

        Raises:
            ConfigError: Another shape.
        """
        parts = self._run(self.runner.encode, pixels)
        return np.concatenate([np.empty((0, self.embedding_dim), np.float32), *parts])

    def encode_squares(self, squares: np.ndarray, *, batch_size: int | None = None) -> np.ndarray:
        """Embed pictures that are resized and cropped, but not yet normalized: the engine does that fastest.

        Args:
            squares: ``(B, S, S, 3)`` uint8, from ``to_square``; any B.
            batch_size: Pictures in one forward pass; None: as many as the engine is fastest with.

        Returns:
            ``(B, E)`` float32, rows of unit length, in order.

        Raises:
            ConfigError: Another shape or type.
        """
        size = self.preprocessing.image_size
        if squares.ndim != 4 or squares.shape[1:] != (size, size, 3) or squares.dtype != np.uint8:
            raise ConfigError(
                f"squares of shape {squares.shape}, {squares.dtype}; this encoder takes (B, {size}, {size}, 3), uint8."
            )
        cuts = _cut(len(squares), batch_size or self.batch_size)
        parts = [self.runner.encode_squares(squares[start:stop]) for start, stop in cuts]
        return np.concatenate([np.empty((0, self.embedding_dim), np.float32), *parts])

    def encode_text(self, texts: str | Iterable[str]) -> np.ndarray:
        """Embed texts into the space of the pictures.

        Args:
            texts: A text, or any number of them.

        Returns:
            ``(N, E)`` float32, rows of unit length, in order; of one text that is not in a list ``(E,)``.

        Raises:
            ConfigError: The encoder has no text part, or a text is too long, or in a script that it does not know.
            ArtifactError: The text part is damaged.
        """
        if isinstance(texts, str):
            return self._text.encode([texts]).reshape(-1)
        several, text_encoder = list(texts), self._text  # which no text loads, too
        return text_encoder.encode(several) if several else np.empty((0, self.embedding_dim), np.float32)

    def knows_text(self, text: str) -> bool:
        """Say whether the text part knows enough of the words of a text, or parts of them, to encode it.

        Raises:
            ConfigError: The encoder has no text part.
        """
        return self._text.is_known(text)

    @cached_property
    def _text(self) -> TextEncoder:
        if self.text_part is None:
            raise ConfigError(
                f"the encoder {self.name} has no text part, so it cannot be asked in words. Make one from the names or "
                "descriptions of some pictures: vitrieve align --encoder ENCODER --data SOURCE --text-column COLUMN "
                "--out FOLDER, and search with --encoder FOLDER; the index stays as it is."
            )
        from vitrieve.runtime.text import load_text_encoder

        return load_text_encoder(self.text_part, fingerprint=self.fingerprint, num_threads=self.num_threads)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Compare embeddings by the cosine of the angle between them; higher is more alike.

        Args:
            a: ``(N, E)`` embeddings of this encoder, or one of them, ``(E,)``.
            b: ``(M, E)``, or one, ``(E,)``.

        Returns:
            ``(N, M)`` float32 in [-1, 1]; without the dimension of an argument that is one embedding.

        Raises:
            InputError: Another width, or numbers that are not finite.
        """
        rows, others = np.atleast_2d(a), np.atleast_2d(b)
        for given in (rows, others):
            if given.shape[1:] != (self.embedding_dim,):
                raise ConfigError(
                    f"embeddings of shape {given.shape}; this encoder makes (N, {self.embedding_dim}), or one of them."
                )
        cosines = similarity(normalize(rows), normalize(others))
        return cosines.reshape(np.shape(a)[:-1] + np.shape(b)[:-1])

    def close(self) -> None:
        """Let go of the engine and its memory; what is encoded afterwards fails. A second call does nothing."""
        object.__setattr__(self, "runner", ClosedEngine(self.runner))

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def patch_tokens(self, pixels: np.ndarray) -> np.ndarray:
        """Compute the tokens of the patches of prepared pictures, not normalized.

        Args:
            pixels: ``(B, 3, S, S)`` float32, from ``preprocess``; B is at least 1.

        Returns:
            ``(B, N, D)`` float32, row by row of the picture; D is the backbone's width.

        Raises:
            ConfigError: Another shape, or no picture.
        """
        if len(pixels) == 0:
            raise ConfigError("patch_tokens needs at least one picture.")
        return np.concatenate(self._run(self.runner.patch_tokens, pixels))

    def _run(self, function: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> list[np.ndarray]:
        size = self.preprocessing.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ConfigError(f"pixels of shape {pixels.shape}; this encoder takes (B, 3, {size}, {size}).")
        return [function(pixels[start:stop]) for start, stop in _cut(len(pixels), self.batch_size)]


def _cut(num_images: int, batch_size: int) -> list[tuple[int, int]]:
    return [(start, min(start + batch_size, num_images)) for start in range(0, num_images, batch_size)]


class _Wanted(NamedTuple):
    """What ``load_encoder`` was asked for beside the encoder; None: the encoder's own."""

    image_size: int | None
    scales: tuple[float, ...] | None
    engine: EngineChoice
    precision: PrecisionChoice
    num_threads: int | None
    device: DeviceName


def load_encoder(
    source: str | Path,
    *,
    image_size: int | None = None,
    scales: tuple[float, ...] | None = None,
    engine: EngineChoice = "auto",
    precision: PrecisionChoice = "auto",
    num_threads: int | None = None,
    device: Device = "auto",
) -> Encoder:
    """Load an encoder.

    Args:
        source: A run's folder, an encoder's folder, a weights name, or ``hf:OWNER/NAME@REVISION``, an encoder of the
            hub or a published ONNX export there. Without a revision: the state that the cache has, else the newest.
        image_size: Another side in pixels than the folder's or the name's own (with torch only).
        scales: Other shares of that side whose embeddings are combined (with torch only; several for convnets).
        engine: ``auto``: the fastest that is installed and can compute it (``engine.py``).
        precision: Precision of the matrix products. ``auto``: bf16 where engine and processor have it, else fp32;
            ``int8`` for an encoder that was quantized.
        num_threads: CPU threads; None: all cores. With torch it holds for the whole process.
        device: Device to compute on; ``auto``: on a GPU where torch sees one and the engine may be torch.

    Raises:
        ArtifactError: The path is missing, or not a finished run or encoder, or not exported as the engine needs it.
        WeightsError: The weights name is unknown or its weights cannot be had.
        ConfigError: The image size or the scales do not fit, or cannot be changed without torch; or the engine is not
            installed or does not compute in the precision, or on the device.
    """
    if num_threads is not None and num_threads < 1:
        raise ConfigError(
            f"num_threads {num_threads} is not a number of threads; give 1 or more, or none for all cores."
        )
    if is_hub_name(source):
        from vitrieve.model.published import pull_encoder

        source = pull_encoder(source).name  # with the commit, which whoever uses the encoder notes
    folder = find_source_folder(source)
    if folder is not None and device == "auto" and read_spec(folder).graph_sha256:
        device = "cpu"  # what others published only runs there
    chosen_device = choose_device(device, engine, precision)
    scales = None if scales is None else tuple(scales)
    wanted = _Wanted(image_size, scales, engine, precision, num_threads, chosen_device)
    if folder is None:
        return _load_named(str(source), wanted)
    loaded = _load_folder(source, folder, wanted)
    return replace(loaded, text_part=find_text_part(folder), num_threads=num_threads)


def _load_folder(source: str | Path, folder: Path, wanted: _Wanted) -> Encoder:
    """Load the image encoder of a folder."""
    name = parse_hub_name(source).repository if is_hub_name(source) else Path(source).resolve().name
    folder = _find_graph_folder(folder, wanted)
    chosen = choose_engine(wanted.engine, wanted.precision, has_graph=_has_graph(folder, wanted), device=wanted.device)
    if chosen == "torch":
        assert wanted.precision != "int8", "torch does not compute in it: choose_engine has refused"
        from vitrieve.model.encoder import read_encoder

        encoder = read_encoder(folder, image_size=wanted.image_size, scales=wanted.scales)
        encoder.to(wanted.device)
        return wrap_encoder(
            encoder, name=name, source=str(source), num_threads=wanted.num_threads, precision=wanted.precision
        )
    return _load_graph(folder, chosen, wanted, name=name, source=str(source))


def wrap_encoder(
    encoder: ImageEncoder,
    *,
    name: str,
    source: str = "",
    num_threads: int | None = None,
    precision: Precision = "auto",
) -> Encoder:
    """Make an ``Encoder`` of a torch module in memory, for example during training.

    The fingerprint is that of the weights now; each call computes with the weights of its moment.

    Args:
        encoder: Run in evaluation mode, on the device it is on; left in the mode it was in.
        name: Name for people.
        source: Origin of the encoder; empty: nowhere on disk.
        num_threads: CPU threads of the whole process; None: as it is.
        precision: Precision of the matrix products.
    """
    from vitrieve.model.encoder import fingerprint_encoder
    from vitrieve.runtime.torch_engine import TorchEngine

    return Encoder(
        name=name,
        source=source or name,
        fingerprint=fingerprint_encoder(encoder),
        embedding_dim=encoder.spec.embedding_dim,
        preprocessing=encoder.spec.preprocessing,
        runner=TorchEngine(encoder, num_threads=num_threads, precision=precision),
        scales=encoder.spec.scales,
        backbone=encoder.spec.backbone,
    )


def find_source_folder(source: str | Path) -> Path | None:
    """Return the encoder's folder behind a run's or encoder's path; None when ``source`` can only be a weights name.

    An encoder of the hub is fetched, and a folder with an ONNX export of others is converted once, into the cache.

    Raises:
        ArtifactError: A path that is missing or something else.
        WeightsError: The hub does not give the encoder.
    """
    if is_hub_name(source):
        from vitrieve.model.published import pull_encoder

        return pull_encoder(source).folder
    path = Path(source)
    folder = find_encoder_folder(path)
    if folder is not None or str(source) in WEIGHTS:
        return folder
    from vitrieve.model.conversion import convert_folder, is_export_folder

    if is_export_folder(path):
        return convert_folder(path)
    if path.exists():
        raise ArtifactError(f"{path} is neither a run with an encoder nor an encoder. {_describe_accepted()}")
    if isinstance(source, Path) or len(path.parts) > 1 or str(source).startswith("."):
        raise ArtifactError(f"{source} does not exist. {_describe_accepted()}")
    return None


def _describe_accepted() -> str:
    return (
        "Accepted: the folder of a finished run, of an encoder or of an ONNX export (config.json, onnx/…), "
        "hf:OWNER/NAME, or a weights name "
        f"({', '.join(list(WEIGHTS)[:3])}, …: see vitrieve weights list)."
    )


def _load_named(name: str, wanted: _Wanted) -> Encoder:
    try:
        entry = find_weights(name)
    except WeightsError as error:
        raise WeightsError(f"{name!r} is not a folder, and {error} {_describe_accepted()}") from error
    size = entry.image_size if wanted.image_size is None else wanted.image_size
    folder = get_export_folder(name, size)
    if has_named_graph(entry) and wanted.engine != "torch" and wanted.device == "cpu" and wanted.scales is None:
        make_named_folder(entry, size)
    has_graph = size in find_exported_sizes(name) and _has_graph(folder, wanted)
    chosen = choose_engine(wanted.engine, wanted.precision, has_graph=has_graph, device=wanted.device)
    if chosen == "torch":
        assert wanted.precision != "int8", "torch does not compute in it: choose_engine has refused"
        from vitrieve.model.encoder import build_frozen_encoder

        encoder = build_frozen_encoder(name, image_size=wanted.image_size, scales=wanted.scales).to(wanted.device)
        return wrap_encoder(encoder, name=name, num_threads=wanted.num_threads, precision=wanted.precision)
    if not folder.is_dir():
        raise WeightsError(_describe_missing_export(name, size))
    return _load_graph(folder, chosen, wanted, name=name, source=name)


def _find_graph_folder(folder: Path, wanted: _Wanted) -> Path:
    """Return the folder to load: for a difference to other weights one with a graph, made in the cache, if possible."""
    is_own_size = wanted.image_size in (None, read_manifest(folder, "encoder")["image_size"])
    if wanted.engine == "torch" or wanted.device != "cpu" or not is_own_size or wanted.scales is not None:
        return folder
    return make_delta_folder(folder)


def _has_graph(folder: Path, wanted: _Wanted) -> bool:
    """Say whether an encoder's folder is exported for the wanted size and scales."""
    manifest = read_manifest(folder, "encoder")
    return (
        ONNX_NAME in manifest.get("sha256", {})
        and wanted.image_size in (None, manifest["image_size"])
        and (wanted.scales is None or wanted.scales == read_spec(folder).scales)
    )


def _describe_missing_export(name: str, image_size: int) -> str:
    sizes = find_exported_sizes(name)
    exported = f" Exported here: at {', '.join(map(str, sizes))} px (--image-size)." if sizes else ""
    return (
        f"without torch, {name!r} at {image_size} px needs an export.{exported} On a machine with vitrieve[train] run: "
        f"vitrieve export --encoder {name} --image-size {image_size} --out FOLDER, copy the folder here, and give it "
        "instead of the name."
    )


def _load_graph(folder: Path, engine: EngineName, wanted: _Wanted, *, name: str, source: str) -> Encoder:
    """Load an exported encoder into an engine other than torch."""
    contents = read_contents(folder)
    _check_export(contents, folder, wanted)
    preprocessing = contents.spec.preprocessing
    runner: Engine
    if engine == "onnx":
        runner = OnnxEngine(folder / ONNX_NAME, preprocessing, num_threads=wanted.num_threads)
    else:
        runner = OpenVinoEngine(
            folder / ONNX_NAME,
            preprocessing,
            precision=_resolve(wanted.precision, folder, source),
            quantized_path=folder / INT8_NAMES[0],
            num_threads=wanted.num_threads,
            checksums=[value for _, value in sorted(read_manifest(folder, "encoder")["sha256"].items())],
        )
    return Encoder(
        name=name,
        source=source,
        fingerprint=contents.fingerprint,
        embedding_dim=contents.spec.embedding_dim,
        preprocessing=preprocessing,
        runner=runner,
        scales=contents.spec.scales,
        backbone=contents.spec.backbone,
    )


def _resolve(precision: PrecisionChoice, folder: Path, source: str) -> str:
    """Turn ``auto`` into a precision; int8 needs its graph."""
    if precision != "int8":
        return resolve_precision(precision)
    if INT8_NAMES[0] not in read_manifest(folder, "encoder").get("sha256", {}):
        raise ArtifactError(
            f"{source} has no graph in int8; make it with some of your pictures: "
            f"vitrieve quantize --encoder {source} --data FOLDER"
        )
    return precision


def _check_export(contents: EncoderContents, folder: Path, wanted: _Wanted) -> None:
    if not contents.has_onnx:
        raise ArtifactError(
            f"{folder} has no {ONNX_NAME}, which every engine but torch needs. On a machine with vitrieve[train] run: "
            f"vitrieve export --encoder {folder}"
        )
    exported = contents.spec.preprocessing.image_size
    if wanted.image_size not in (None, exported) or wanted.scales not in (None, contents.spec.scales):
        from vitrieve.model.artifact import require_weights

        require_weights(folder, contents.spec)  # only those with weights can be exported otherwise
    if wanted.image_size not in (None, exported):
        raise ConfigError(
            f"{folder} was exported for {exported} px; the graph holds the positions of that size, so it cannot run at "
            f"{wanted.image_size} px. With vitrieve[train] run: vitrieve export --encoder {folder} "
            f"--image-size {wanted.image_size} --out FOLDER"
        )
    if wanted.scales not in (None, contents.spec.scales):
        asked, found = (
            " ".join(f"{scale:g}" for scale in some or ()) for some in (wanted.scales, contents.spec.scales)
        )
        raise ConfigError(
            f"{folder} was exported for the scales {found}, which are part of the graph, so it cannot run at {asked}. "
            f"With vitrieve[train] run: vitrieve export --encoder {folder} --scales {asked} --out FOLDER"
        )
