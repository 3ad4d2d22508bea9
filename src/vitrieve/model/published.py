"""``pull_encoder``: an encoder's folder in the cache, made of a repository of the hub. No torch.

Two kinds of repositories are read: an encoder's folder of vitrieve, as ``artifact.py`` describes it, and an ONNX export
as others publish it (``onnx/model.onnx``, or of a model of pictures and texts ``onnx/vision_model.onnx``) beside its
``config.json`` and ``preprocessor_config.json``. Such a graph is kept as it is, between an input and an output that are
named as ours; what these files do not tell clearly is refused. A graph of texts, ``onnx/text_model.onnx`` with
``tokenizer.json``, becomes the encoder's text part (``towers.py``). ``hub.py`` fetches and checks the files. A folder
on disk with the files of an export becomes an encoder in the same way (``convert_folder``). Weights of a pair of towers
alone are exported first, where torch and their library are (``tower_export.py``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitrieve.artifacts import (
    MANIFEST_NAME,
    explaining_full_disk,
    publish_folder,
    read_manifest,
    replacing_durably,
    write_text_durably,
)
from vitrieve.choices import Pooling
from vitrieve.data.preprocess import Interpolation, Preprocessing
from vitrieve.errors import ArtifactError, ConfigError, WeightsError
from vitrieve.machine import cache_folder
from vitrieve.model.artifact import (
    CARD_NAME,
    CHECKED_NAMES,
    EMBEDDING_OUTPUT,
    ONNX_NAME,
    PATCH_TOKENS_OUTPUT,
    PIXELS_INPUT,
    SPEC_NAME,
    WEIGHTS_NAME,
    EncoderSpec,
    ModelCard,
    compute_fingerprint,
    format_card,
    note_export,
    read_contents,
    read_spec,
    write_contents,
)
from vitrieve.model.hub import (
    COMMIT,
    MAX_SMALL_BYTES,
    HubFile,
    HubName,
    HubState,
    fetch_file,
    parse_hub_name,
    read_state,
)
from vitrieve.model.tensors import hash_file
from vitrieve.model.text import (
    MAP_NAME,
    TEXT_GRAPH_NAME,
    TEXT_NAMES,
    TEXT_SUBFOLDER,
    TOKENIZER_NAME,
    TextFiles,
    find_text_part,
    read_text_part,
    write_text_part,
)
from vitrieve.model.towers import (
    MAX_TOKENIZER_BYTES,
    TEXT_TOWER_NAMES,
    TOKENIZER_CONFIG_NAME,
    read_text_tower,
    run_graph,
)
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name

if TYPE_CHECKING:
    import onnx

REVISIONS_FILE = "revisions.json"
GRAPH_NAMES = ("onnx/vision_model.onnx", "vision_model.onnx", "onnx/model.onnx", "model.onnx")
"""Where exports stand, the first that is there: beside a graph of pictures alone, ``model.onnx`` wants texts too."""
CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"
MAX_GRAPH_BYTES = 2**31 - 1
"""Most bytes of a graph that is one file (protobuf's limit)."""


@dataclass(frozen=True, kw_only=True)
class PulledEncoder:
    """An encoder that was fetched.

    Attributes:
        name: ``hf:OWNER/NAME@COMMIT``, which names these bytes and no others.
        folder: The encoder's folder in the cache.
        fingerprint: Its identity.
        spec: What the encoder is.
        was_present: It was here already.
    """

    name: str
    folder: Path
    fingerprint: str
    spec: EncoderSpec
    was_present: bool

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return {
            "name": self.name,
            "path": str(self.folder),
            "fingerprint": self.fingerprint,
            "reads_text": find_text_part(self.folder) is not None,
            "was_present": self.was_present,
            "license": self.spec.weights_license,
            "note": self.spec.weights_note,
            "embedding_dim": self.spec.embedding_dim,
            "image_size": self.spec.preprocessing.image_size,
            "pooling": self.spec.pooling,
        }

    def describe(self) -> list[str]:
        """Tell in lines what it is, where it is, and its license."""
        state = "already here" if self.was_present else "fetched"
        size = self.spec.preprocessing.image_size
        return [
            f"{self.name}: {state}, checksums right; {self.spec.embedding_dim} numbers for an image of {size} px",
            str(self.folder),
            *(["it reads texts, too: search --text"] if find_text_part(self.folder) else []),
            f"license: {self.spec.weights_license}",
            *([self.spec.weights_note] if self.spec.weights_note else []),
        ]


def pull_encoder(source: str | Path, *, is_asked_anew: bool = False, show_progress: bool = True) -> PulledEncoder:
    """Return an encoder of the hub, fetched, checked and made ready when it is not here yet.

    The commit that a name without one stands for is asked for once and noted in the cache; ``is_asked_anew`` asks
    again.

    Args:
        source: ``hf:OWNER/NAME``, or ``hf:OWNER/NAME@REVISION`` with a branch, a tag or a commit.
        is_asked_anew: Ask the hub what the revision is now, and check what is here already.
        show_progress: Show the download on standard error.

    Raises:
        WeightsError: Another form, an unreachable hub, a missing or private repository, a file that is damaged or too
            large, or a repository that holds no encoder that can be read without torch.
        ArtifactError: The folder of an encoder that is incomplete or damaged.
        DiskFullError: There is no room; what was fetched is kept, and the next call goes on.
    """
    name = parse_hub_name(source)
    if not is_asked_anew:
        found = _find_pulled(name)
        if found is not None:
            return found
    state = read_state(name)
    with explaining_full_disk(name.folder):
        name.folder.mkdir(parents=True, exist_ok=True)
        with _locking(name.folder):
            found = _find_pulled(state.name)
            if found is None:
                _make_folder(state, show_progress)
            else:
                read_contents(found.folder)  # checks it
            _note_revision(name, state.commit)
    return replace(found or _require_pulled(state.name), was_present=found is not None)


def _locking(folder: Path) -> Any:
    from huggingface_hub.utils import WeakFileLock

    return WeakFileLock(folder / "writer.lock")


def _find_pulled(name: HubName) -> PulledEncoder | None:
    commit = name.commit or _read_revisions(name).get(name.revision or "")
    if commit is None or not (name.folder / commit / MANIFEST_NAME).is_file():
        return None
    return _require_pulled(replace(name, revision=commit))


def _require_pulled(name: HubName) -> PulledEncoder:
    folder = name.folder / str(name.commit)
    fingerprint = read_manifest(folder, "encoder")["fingerprint"]
    return PulledEncoder(
        name=str(name), folder=folder, fingerprint=fingerprint, spec=read_spec(folder), was_present=True
    )


def _read_revisions(name: HubName) -> dict[str, str]:
    """Read which commit each revision was when it was asked for; the main branch has the empty name."""
    try:
        noted = json.loads((name.folder / REVISIONS_FILE).read_text(encoding="utf-8"))
        return {str(one): commit for one, commit in noted.items() if COMMIT.fullmatch(commit)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _note_revision(name: HubName, commit: str) -> None:
    noted = {**_read_revisions(name), name.revision or "": commit}
    write_text_durably(name.folder / REVISIONS_FILE, json.dumps(noted, indent=2) + "\n")


def _make_folder(state: HubState, show_progress: bool) -> None:
    """Fetch what makes the encoder; its folder appears under its name only when it is complete."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if show_progress else disable_progress_bars)()
    folder = state.name.folder / state.commit
    fetched = state.name.folder / f"{state.commit}.fetched"
    for left in folder.parent.glob(f".{state.commit}-*"):  # by a process that was killed: the lock is ours now
        shutil.rmtree(left)
    make = _make_own if {SPEC_NAME, MANIFEST_NAME} <= state.files.keys() else _make_of_export
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{state.commit}-") as temporary:
        complete = Path(temporary) / "complete"
        complete.mkdir()
        num_bytes = make(state, fetched, complete)
        publish_folder(complete, folder, (folder / MANIFEST_NAME).is_file)
    shutil.rmtree(fetched)
    print_message(f"{state.name}: {num_bytes / 1e6:.1f} MB, checksums right; license: {state.license}")


def _make_own(state: HubState, fetched: Path, complete: Path) -> int:
    """Make an encoder of the folder of one; return the bytes that were fetched."""
    large = (WEIGHTS_NAME, *(name for name in CHECKED_NAMES if name != SPEC_NAME))
    names = [name for name in (SPEC_NAME, CARD_NAME, *large, MANIFEST_NAME) if name in state.files]
    paths = [fetch_file(state, name, fetched, max_bytes=None if name in large else MAX_SMALL_BYTES) for name in names]
    for path in paths:  # the manifest last
        path.rename(complete / path.name)
    contents = read_contents(complete)
    num_bytes = sum(state.files[name].num_bytes for name in names)
    return num_bytes + _fetch_text_part(state, fetched, complete, fingerprint=contents.fingerprint)


_MAX_TEXT_BYTES = {TOKENIZER_NAME: MAX_TOKENIZER_BYTES, TEXT_GRAPH_NAME: MAX_GRAPH_BYTES, MAP_NAME: MAX_GRAPH_BYTES}
"""Most bytes of a file of a text part that is no description."""


def _fetch_text_part(state: HubState, fetched: Path, complete: Path, *, fingerprint: str) -> int:
    """Add the text part of an encoder, where there is one, and check it; return the bytes that were fetched."""
    if f"{TEXT_SUBFOLDER}/{MANIFEST_NAME}" not in state.files:
        return 0
    names = [name for name in TEXT_NAMES if name in state.files]
    part = complete / TEXT_SUBFOLDER
    part.mkdir()
    for name in names:  # the manifest last
        max_bytes = _MAX_TEXT_BYTES.get(name.rpartition("/")[2], MAX_SMALL_BYTES)
        path = fetch_file(state, name, fetched / TEXT_SUBFOLDER, max_bytes=max_bytes)
        path.rename(part / path.name)
    read_text_part(part, fingerprint=fingerprint)
    return sum(state.files[name].num_bytes for name in names)


# An export of others


@dataclass(frozen=True, kw_only=True)
class _Export:
    """An ONNX export of others, wherever it is.

    Attributes:
        name: Name for people.
        files: Its files by name.
        source: Origin of the weights, in a few words.
        license: License of the weights.
        folder: Where ``fetch`` puts files, and where there is room for more of them.
        fetch: Gives the path of a file, of at most so many bytes; None: as many as there is room for.
    """

    name: str
    files: Mapping[str, HubFile]
    source: str
    license: str
    folder: Path
    fetch: Callable[[str, int | None], Path]

    def find(self, names: Sequence[str]) -> str | None:
        """Find the first of some names that is a file."""
        return next((name for name in names if name in self.files), None)


def _make_of_export(state: HubState, fetched: Path, complete: Path) -> int:
    export = _Export(
        name=str(state.name),
        files=state.files,
        source=f"hub {state.name.repository}, commit {state.commit}",
        license=state.license,
        folder=fetched,
        fetch=lambda name, max_bytes: fetch_file(state, name, fetched, max_bytes=max_bytes),
    )
    return _convert(export, complete)


def _convert(export: _Export, complete: Path) -> int:
    """Make an encoder of an export, or of weights that are exported first; return the bytes that were read."""
    package = _find_package(export)
    if package is not None:
        with tempfile.TemporaryDirectory(dir=complete.parent) as temporary:
            return _convert(_export_weights(export, package, Path(temporary)), complete)
    graph_name = export.find(GRAPH_NAMES)
    if graph_name is None or not {CONFIG_NAME, PREPROCESSOR_NAME} <= export.files.keys():
        raise WeightsError(
            f"{export.name} holds no encoder that can be read without torch: neither one of vitrieve ({SPEC_NAME}, "
            f"{MANIFEST_NAME}) nor an ONNX export ({' or '.join(GRAPH_NAMES)}) with {CONFIG_NAME} and "
            f"{PREPROCESSOR_NAME}, nor weights of a CLIP or SigLIP for transformers or open_clip. Weights of timm are "
            "asked for by timm's name (vitrieve weights list)."
        )
    try:
        config, preprocessor = (_fetch_json(export, name) for name in (CONFIG_NAME, PREPROCESSOR_NAME))
        preprocessing = read_preprocessor(preprocessor)
        model, files = _fetch_graph(export, graph_name)
        wrapped = wrap_graph(model, config, preprocessing)
    except ConfigError as error:
        raise WeightsError(
            f"the ONNX export of {export.name} cannot be used: {error} Use another repository, or export the model "
            "yourself (vitrieve export)."
        ) from None
    spec = EncoderSpec(
        backbone=export.name,
        architecture=wrapped.architecture,
        pooling=wrapped.pooling,
        preprocessing=preprocessing,
        embedding_dim=wrapped.embedding_dim,
        graph_sha256=" ".join(_find_checksum(file) for file in files),
        weights_source=export.source,
        weights_license=export.license,
        weights_note="The graph is used as it was published; it cannot be trained further.",
    )
    fingerprint = compute_fingerprint(spec, {})
    write_contents(complete, spec, {}, format_card(spec, ModelCard(), fingerprint), {})
    with replacing_durably(complete / ONNX_NAME) as path:
        path.write_bytes(model.SerializeToString())
        _check_graph(path, wrapped, preprocessing.image_size)
    note_export(complete, (ONNX_NAME,))
    del model
    num_bytes = sum(file.num_bytes for file in files)
    return num_bytes + _add_text_tower(export, config, wrapped, complete, fingerprint=fingerprint)


def _add_text_tower(
    export: _Export, config: Mapping[str, Any], wrapped: WrappedGraph, complete: Path, *, fingerprint: str
) -> int:
    """Add the text part of a pair of towers; one that cannot be read is told, and the encoder is one of pictures.

    Returns:
        The bytes that were read.
    """
    graph_name = export.find(TEXT_TOWER_NAMES)
    if graph_name is None:
        return 0
    try:
        if TOKENIZER_NAME not in export.files:
            raise ConfigError(f"it has no {TOKENIZER_NAME}.")
        told = _fetch_json(export, TOKENIZER_CONFIG_NAME) if TOKENIZER_CONFIG_NAME in export.files else {}
        tokenizer = export.fetch(TOKENIZER_NAME, MAX_TOKENIZER_BYTES)
        model, files = _fetch_graph(export, graph_name)
        tower = read_text_tower(
            model,
            config,
            tokenizer.read_bytes(),
            told,
            name=export.name,
            image_output=wrapped.output,
            embedding_dim=wrapped.embedding_dim,
        )
    except ConfigError as error:
        print_message(f"{export.name} encodes pictures alone, because its text tower cannot be used: {error}")
        return 0
    with tempfile.TemporaryDirectory(dir=complete.parent) as temporary:
        graph, prepared = Path(temporary) / "text.onnx", Path(temporary) / TOKENIZER_NAME
        graph.write_bytes(model.SerializeToString())
        prepared.write_bytes(tower.tokenizer)
        write_text_part(complete, TextFiles(tower.spec, graph, prepared), None, fingerprint=fingerprint)
    return export.files[TOKENIZER_NAME].num_bytes + sum(file.num_bytes for file in files)


_WEIGHTS: dict[str, tuple[str, ...]] = {
    "transformers": (CONFIG_NAME, PREPROCESSOR_NAME, "model.safetensors"),
    "open_clip": ("open_clip_config.json", TOKENIZER_NAME, "open_clip_model.safetensors"),
}
"""What a pair of towers for each library consists of, its weights last."""
_PACKAGE_NAMES = {"transformers": "transformers", "open_clip": "open_clip_torch"}


def _find_package(export: _Export) -> str | None:
    """Find the library whose weights these are, where there is no graph."""
    if export.find(GRAPH_NAMES) is not None:
        return None
    of_texts = TOKENIZER_NAME in export.files  # others' weights of pictures alone are none of these
    return next((name for name, files in _WEIGHTS.items() if of_texts and set(files) <= export.files.keys()), None)


def _export_weights(export: _Export, package: str, out: Path) -> _Export:
    """Export weights with the library that they are for, into ``out``; what identifies the graphs are the weights."""
    missing = [name for name in ("torch", package) if find_spec(name) is None]
    if missing:
        raise WeightsError(
            f"{export.name} holds weights for {package} and no ONNX export. They are exported once, where torch and "
            f"that library are: pip install 'vitrieve[train]' {_PACKAGE_NAMES[package]}; or name a repository with an "
            "export (onnx/vision_model.onnx, onnx/text_model.onnx)."
        )
    try:
        config = _fetch_json(export, CONFIG_NAME) if package == "transformers" else {}
        names = [*_WEIGHTS[package], TOKENIZER_CONFIG_NAME]
        limits = {_WEIGHTS[package][-1]: None, TOKENIZER_NAME: MAX_TOKENIZER_BYTES}
        paths = [export.fetch(name, limits.get(name, MAX_SMALL_BYTES)) for name in names if name in export.files]
        from vitrieve.model.tower_export import export_open_clip, export_transformers

        print_message(f"exporting the weights of {export.name} with {package}; this happens once")
        if package == "transformers":
            preprocessing = read_preprocessor(_fetch_json(export, PREPROCESSOR_NAME))
            exported = export_transformers(paths[0].parent, config, preprocessing.image_size, out)
        else:
            exported = export_open_clip(paths[0].parent, out)
    except (ConfigError, ArtifactError) as error:
        raise WeightsError(f"the weights of {export.name} cannot be used: {error}") from None
    written: dict[str, bytes | None] = {
        CONFIG_NAME: json.dumps(exported.config).encode(),
        PREPROCESSOR_NAME: json.dumps(exported.preprocessor).encode() if exported.preprocessor else None,
        TOKENIZER_NAME: exported.tokenizer,
    }
    for name, content in written.items():
        if content is not None:
            (out / name).write_bytes(content)
    weights = export.files[_WEIGHTS[package][-1]]
    made = {
        path.name: HubFile(
            name=path.name,
            num_bytes=path.stat().st_size,
            sha256=weights.sha256 if path.suffix == ".onnx" else hash_file(path),
            git_sha1=weights.git_sha1 if path.suffix == ".onnx" else "",
        )
        for path in out.iterdir()
    }
    return replace(
        export,
        files={**export.files, **made},
        fetch=lambda name, max_bytes: (
            _find_file(out, made[name], max_bytes) if name in made else export.fetch(name, max_bytes)
        ),
    )


def is_export_folder(folder: Path) -> bool:
    """Say whether a folder on disk has the files of an export, or weights of a pair of towers."""
    if (folder / CONFIG_NAME).is_file() and any((folder / name).is_file() for name in GRAPH_NAMES):
        return True
    return any(all((folder / name).is_file() for name in (*files, TOKENIZER_NAME)) for files in _WEIGHTS.values())


def convert_folder(folder: Path) -> Path:
    """Make an encoder's folder in the cache of a folder with an export or a pair's weights, unless it is there.

    Args:
        folder: One that ``is_export_folder``, as ``git clone`` of a hub's repository leaves it.

    Returns:
        The encoder's folder, whose name is made of the checksums of all files that it was made of.

    Raises:
        WeightsError: A file is missing or cannot be used, or there is no space for the encoder.
    """
    named = (*GRAPH_NAMES, *TEXT_TOWER_NAMES)
    names = [CONFIG_NAME, PREPROCESSOR_NAME, TOKENIZER_NAME, TOKENIZER_CONFIG_NAME]
    names += [name for name in named if (folder / name).is_file()]
    if not any(name in GRAPH_NAMES for name in names):
        names += [name for files in _WEIGHTS.values() for name in files]
    for place in {str(Path(name).parent) for name in names if name in named}:
        names += [path.relative_to(folder).as_posix() for path in sorted((folder / place).glob("*.onnx*data*"))]
    files = {name: _describe_file(folder, name) for name in dict.fromkeys(names) if (folder / name).is_file()}
    identity = json.dumps({name: file.sha256 for name, file in sorted(files.items())})
    made = cache_folder() / "converted" / hashlib.sha256(identity.encode()).hexdigest()
    if (made / MANIFEST_NAME).is_file():
        return made
    export = _Export(
        name=folder.resolve().name,
        files=files,
        source="a folder with an ONNX export",
        license="unknown",
        folder=folder,
        fetch=lambda name, max_bytes: _find_file(folder, files[name], max_bytes),
    )
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=made.parent, prefix=f".{made.name[:12]}-") as temporary:
            complete = Path(temporary) / "complete"
            complete.mkdir()
            print_message(f"making an encoder of {folder}; this happens once")
            _convert(export, complete)
            publish_folder(complete, made, (made / MANIFEST_NAME).is_file)
    except OSError as error:
        raise WeightsError(
            f"cannot make an encoder of {folder} in {made.parent}: {error.strerror or error}. Free some space, or name "
            "another folder with VITRIEVE_CACHE."
        ) from error
    return made


def _describe_file(folder: Path, name: str) -> HubFile:
    path = folder / name
    return HubFile(name=name, num_bytes=path.stat().st_size, sha256=hash_file(path))


def _find_file(folder: Path, file: HubFile, max_bytes: int | None) -> Path:
    if max_bytes is not None and file.num_bytes > max_bytes:
        raise WeightsError(f"{folder / file.name} has {file.num_bytes:,} bytes; at most {max_bytes:,} are read.")
    return folder / file.name


def _find_checksum(file: HubFile) -> str:
    return file.sha256 or file.git_sha1


def _fetch_json(export: _Export, name: str) -> dict[str, Any]:
    path = export.fetch(name, MAX_SMALL_BYTES)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is no JSON ({error}).") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{name} holds no table.")
    return found


def _fetch_graph(export: _Export, name: str) -> tuple[onnx.ModelProto, list[HubFile]]:
    """Fetch a graph with the files of weights that it names, and read it."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.checker import ValidationError
    from onnx.external_data_helper import load_external_data_for_model, uses_external_data

    path = export.fetch(name, MAX_GRAPH_BYTES)
    try:
        model = onnx.load_model(path, load_external_data=False)
    except DecodeError as error:
        raise ConfigError(f"{name} is no ONNX graph ({error}).") from None
    entries = [
        entry for tensor in model.graph.initializer if uses_external_data(tensor) for entry in tensor.external_data
    ]
    files = [export.files[name]]
    for location in sorted({entry.value for entry in entries if entry.key == "location"}):
        beside = name.removesuffix(Path(name).name) + location
        if "/" in location or "\\" in location or beside not in export.files:
            raise ConfigError(f"its weights are said to be in {quote_name(location)}, which is no file beside {name}.")
        files.append(export.files[beside])
    if sum(file.num_bytes for file in files) > MAX_GRAPH_BYTES:
        raise ConfigError("graph and weights have more than 2 GB; a smaller model is needed.")
    for file in files[1:]:
        export.fetch(file.name, None)
    try:
        load_external_data_for_model(model, str(path.parent))
    except (ValidationError, OSError, ValueError) as error:
        reason = quote_name(str(error).partition("\n")[0].rstrip("."))
        raise ConfigError(f"weights that {name} names cannot be read: {reason}.") from None
    return model, files


RESCALE_FACTOR = 1 / 255
_FILTERS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters that vitrieve has."""
_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb")
"""What is done to a picture, always or where the settings say so. Others turn colors around, pad or rotate."""
MAX_PX = 2_048
"""Largest side of a picture; with strangers' sizes the first run could take all memory."""
MAX_CROPPED_PX = 384
"""Size from which the preprocessor of ConvNeXt squeezes pictures instead of cropping them."""


def read_preprocessor(found: Mapping[str, Any]) -> Preprocessing:
    """Read how an export's pictures are prepared.

    Source: the image processors of Hugging Face's transformers, whose settings ``preprocessor_config.json`` holds.

    Raises:
        ConfigError: Something is missing, or done in a way that vitrieve has not.
    """
    try:
        _check_steps(found)
        if not np.isclose(found.get("rescale_factor", RESCALE_FACTOR), RESCALE_FACTOR, rtol=1e-3):
            raise ConfigError(f"{PREPROCESSOR_NAME} rescales by {found['rescale_factor']!r}; expected 1/255.")
        image_size, resize_size, is_cropped = _read_sizes(found)
        if max(image_size, resize_size) > MAX_PX:
            raise ConfigError(f"{PREPROCESSOR_NAME} wants pictures of {resize_size} px; at most {MAX_PX} are taken.")
        is_normalized = bool(found.get("do_normalize", True))
        return Preprocessing(
            image_size=image_size,
            resize_size=resize_size,
            interpolation=_FILTERS[found["resample"]],
            mean=_read_channels(found["image_mean"]) if is_normalized else (0.0,) * 3,
            std=_read_deviations(found["image_std"]) if is_normalized else (1.0,) * 3,
            framing="crop" if is_cropped else "square",
        )
    except KeyError as error:
        raise ConfigError(
            f"{PREPROCESSOR_NAME} does not tell, or tells wrongly: {quote_name(error.args[0])}."
        ) from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{PREPROCESSOR_NAME} is not as expected: {error}") from None


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Tell how pictures are prepared as ``preprocessor_config.json`` does; ``read_preprocessor`` reads it again."""
    side = {"height": preprocessing.image_size, "width": preprocessing.image_size}
    is_cropped = preprocessing.framing == "crop"
    resampling = {name: number for number, name in _FILTERS.items()}
    return {
        "image_processor_type": "BitImageProcessor" if is_cropped else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.resize_size} if is_cropped else side,
        "resample": resampling[preprocessing.interpolation],
        "do_center_crop": is_cropped,
        **({"crop_size": side} if is_cropped else {}),
        "do_rescale": True,
        "rescale_factor": RESCALE_FACTOR,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _check_steps(found: Mapping[str, Any]) -> None:
    """Refuse what would give the encoder other pixels than it was trained on."""
    if not found.get("do_resize", True):
        raise ConfigError(f"{PREPROCESSOR_NAME} does not resize pictures, so the size of the input is not known.")
    if not found.get("do_rescale", True):
        raise ConfigError(f"{PREPROCESSOR_NAME} leaves pixels between 0 and 255 (do_rescale); expected 0 to 1.")
    further = [name for name, value in found.items() if name.startswith("do_") and value and name not in _STEPS]
    if further:
        raise ConfigError(
            f"{PREPROCESSOR_NAME} asks for {', '.join(map(quote_name, further))}; of what it can ask for vitrieve does "
            f"{', '.join(_STEPS)}."
        )


def _read_deviations(values: Sequence[float]) -> tuple[float, ...]:
    deviations = _read_channels(values)
    if min(deviations) <= 0:
        raise ConfigError(f"{PREPROCESSOR_NAME} divides by {list(values)!r}; expected three positive numbers.")
    return deviations


def _read_channels(values: Sequence[float]) -> tuple[float, ...]:
    channels = tuple(map(float, values))
    if len(channels) != 3 or not np.all(np.isfinite(channels)):
        raise ConfigError(f"{PREPROCESSOR_NAME} has {list(values)!r} where three channels are expected.")
    return channels


def _read_sizes(found: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Return the side of the input, the side before the crop, and whether there is a crop."""
    size, is_cropped = found["size"], bool(found.get("do_center_crop", False))
    is_short_side = "shortest_edge" in size if isinstance(size, Mapping) else is_cropped
    side = int(size["shortest_edge"]) if isinstance(size, Mapping) and is_short_side else _read_square(size)
    if is_short_side and is_cropped:
        return _read_square(found["crop_size"]), side, True
    if is_short_side and found.get("crop_pct"):  # ConvNeXt's
        is_small = side < MAX_CROPPED_PX
        return side, int(side / float(found["crop_pct"])) if is_small else side, is_small
    if is_short_side:
        raise ConfigError(f"{PREPROCESSOR_NAME} resizes the short side and cuts nothing: the input is no square.")
    if is_cropped and _read_square(found["crop_size"]) != side:
        raise ConfigError(f"{PREPROCESSOR_NAME} squeezes pictures and then cuts a part out, which vitrieve does not.")
    return side, side, False


def _read_square(size: Any) -> int:
    if not isinstance(size, Mapping):
        return int(size)
    if size["height"] != size["width"]:
        raise ConfigError(f"{PREPROCESSOR_NAME} has {size['height']} by {size['width']} px; vitrieve takes squares.")
    return int(size["height"])


NUM_CLS = {"vit": 1, "vit_msn": 1, "deit": 2, "dinov2": 1, "dinov2_with_registers": 1, "dinov3_vit": 1}
"""Class tokens before the patches, by ``model_type``: of these models the first token is the embedding. Their
``pooler_output``, where they have one, is the same or a layer that was not trained for this."""
_OPERATORS = 10
"""Version of ONNX's operators from which on those that are added here mean the same."""


@dataclass(frozen=True, kw_only=True)
class WrappedGraph:
    """What was found out of a published graph.

    Attributes:
        architecture: ``model_type`` of its configuration.
        pooling: ``cls``: the first token. ``native``: the graph pools itself.
        embedding_dim: Length of the embedding.
        has_patches: It puts out tokens of patches.
        output: Name of the output that the embedding is taken of, as it was published.
    """

    architecture: str
    pooling: Pooling
    embedding_dim: int
    has_patches: bool
    output: str


def wrap_graph(model: onnx.ModelProto, config: Mapping[str, Any], preprocessing: Preprocessing) -> WrappedGraph:
    """Put a published graph between an input and outputs as ours, in place.

    Args:
        model: Graph from pictures ``(B, 3, S, S)`` to tokens or features.
        config: The model's configuration.
        preprocessing: How pictures are prepared.

    Raises:
        ConfigError: It cannot be told what is its input, or its embedding.
    """
    from onnx import compose

    vision = config.get("vision_config")
    of_pictures = vision if isinstance(vision, Mapping) else config
    architecture = quote_name(of_pictures.get("model_type") or config.get("model_type") or "unknown")
    _check_operators(model)
    pixels = _find_input(model, preprocessing.image_size)
    pooling, output = _find_output(model, architecture)
    num_registers = of_pictures.get("num_register_tokens", 0)
    num_prefix = NUM_CLS.get(architecture, 0) + (num_registers if isinstance(num_registers, int) else 0)
    shape = _measure_output(model, pixels, output, preprocessing.image_size)
    if len(shape) < 2 or (pooling == "cls" and (len(shape) != 3 or shape[1] <= num_prefix)):
        raise ConfigError(f"its output {quote_name(output)} has the shape {shape}, of which no embedding can be taken.")
    embedding_dim = shape[-1] if pooling == "cls" else int(np.prod(shape[1:]))
    compose.add_prefix(model, _PREFIX, inplace=True)
    outputs = _add_nodes(model, _PREFIX + output, pooling, num_prefix, embedding_dim)
    _rename_ends(model, _PREFIX + pixels, outputs, preprocessing.image_size)
    return WrappedGraph(
        architecture=architecture,
        pooling=pooling,
        embedding_dim=embedding_dim,
        has_patches=len(outputs) > 1,
        output=output,
    )


_PREFIX = "published/"


def _check_operators(model: onnx.ModelProto) -> None:
    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if version < _OPERATORS:
        raise ConfigError(f"it is written for version {version} of ONNX's operators; expected {_OPERATORS} or later.")


def _find_input(model: onnx.ModelProto, image_size: int) -> str:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    names = ", ".join(quote_name(one.name) for one in inputs)
    if len(inputs) != 1:
        raise ConfigError(f"its graph wants the inputs {names}; expected pictures alone.")
    sides = [dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim]
    if inputs[0].type.tensor_type.elem_type != 1 or len(sides) != 4:  # 1: float32
        raise ConfigError(f"its input {names} is no batch of pictures in float32.")
    fixed = [found or free for found, free in zip(sides, (0, 3, image_size, image_size), strict=True)]
    if fixed != [0, 3, image_size, image_size]:
        raise ConfigError(
            f"its input {names} has the shape {sides} (0 is free); expected any number of pictures of 3 channels and "
            f"{image_size} px, as {PREPROCESSOR_NAME} has it."
        )
    return str(inputs[0].name)


def _find_output(model: onnx.ModelProto, architecture: str) -> tuple[Pooling, str]:
    names = [one.name for one in model.graph.output]
    if "image_embeds" in names:
        return "native", "image_embeds"
    if architecture in NUM_CLS and "last_hidden_state" in names:
        return "cls", "last_hidden_state"
    if "pooler_output" in names and architecture not in NUM_CLS:
        return "native", "pooler_output"
    raise ConfigError(
        f"of its outputs {', '.join(map(quote_name, names))} and the model type {architecture} it cannot be told which "
        f"is the embedding; expected image_embeds, pooler_output, or last_hidden_state of {', '.join(NUM_CLS)}."
    )


def _measure_output(model: onnx.ModelProto, pixels: str, output: str, image_size: int) -> tuple[int, ...]:
    return run_graph(model, {pixels: _draw_pixels(image_size)}, [output])[0].shape


def _draw_pixels(image_size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, image_size, image_size), dtype=np.float32)


def _add_nodes(
    model: onnx.ModelProto, output: str, pooling: Pooling, num_prefix: int, embedding_dim: int
) -> dict[str, str]:
    """Add the nodes that pool and normalize; return what is put out under which name."""
    from onnx import helper, numpy_helper

    def apply(operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        names = []
        for one in inputs:
            if isinstance(one, np.ndarray):
                constant = numpy_helper.from_array(one, f"constant{len(model.graph.initializer)}")
                model.graph.initializer.append(constant)
                one = constant.name
            names.append(one)
        result = f"added{len(model.graph.node)}"
        model.graph.node.append(helper.make_node(operator, names, [result], **attributes))
        return result

    if pooling == "cls":
        pooled = apply("Gather", output, np.array(0, dtype=np.int64), axis=1)  # (B, D)
    else:
        pooled = apply("Flatten", output, axis=1)  # (B, D): some graphs keep a picture of one point
    # Not ReduceL2: its arguments changed between the versions that graphs are written for.
    squares = apply("MatMul", apply("Mul", pooled, pooled), np.ones((embedding_dim, 1), dtype=np.float32))
    length = apply("Max", apply("Sqrt", squares), np.array(1e-12, dtype=np.float32))
    outputs = {EMBEDDING_OUTPUT: apply("Div", pooled, length)}
    if pooling == "cls":
        bounds = [np.array([value], dtype=np.int64) for value in (num_prefix, 2**31, 1)]
        outputs[PATCH_TOKENS_OUTPUT] = apply("Slice", output, *bounds)  # (B, N, D)
    return outputs


def _rename_ends(model: onnx.ModelProto, pixels: str, outputs: Mapping[str, str], image_size: int) -> None:
    from onnx import TensorProto, helper

    graph = model.graph
    constants = [one for one in graph.input if one.name != pixels]
    batch = helper.make_tensor_value_info(PIXELS_INPUT, TensorProto.FLOAT, ["B", 3, image_size, image_size])
    del graph.input[:], graph.output[:]
    graph.input.extend([batch, *constants])
    graph.node.insert(0, helper.make_node("Identity", [PIXELS_INPUT], [pixels]))
    for rank, (name, result) in enumerate(outputs.items(), start=1):
        graph.node.append(helper.make_node("Identity", [result], [name]))
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *([None] * rank)]))


def _check_graph(path: Path, export: WrappedGraph, image_size: int) -> None:
    """Run the graph on noise: the embeddings must be finite, of unit length and not all the same."""
    (found,) = run_graph(path, {PIXELS_INPUT: _draw_pixels(image_size)}, [EMBEDDING_OUTPUT])
    lengths = np.linalg.norm(found, axis=1)
    if found.shape != (2, export.embedding_dim) or not np.allclose(lengths, 1, atol=1e-3):
        raise ConfigError(f"it gives embeddings of shape {found.shape} and lengths {lengths} for two pictures.")


def require_weights(folder: Path, spec: EncoderSpec) -> None:
    """Refuse an encoder that is a published graph where its weights are needed.

    Raises:
        ArtifactError: It is one.
    """
    if spec.graph_sha256:
        raise ArtifactError(
            f"{folder} is the graph of {spec.backbone} as it was published, without weights that torch could read: it "
            "encodes pictures on the CPU, at its own size, and cannot be trained, reduced, adapted or exported. For "
            "that, give the weights that it was made of (vitrieve weights list)."
        )
