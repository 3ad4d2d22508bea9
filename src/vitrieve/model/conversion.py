"""An encoder's folder made of an export of others: from files of the hub, or of a folder on disk. No torch.

An export is an ONNX graph (``onnx/model.onnx``, or of a model of pictures and texts ``onnx/vision_model.onnx``) beside
its ``config.json`` and ``preprocessor_config.json``. The graph is kept as it is (``published_graph.py``). A graph of
texts, ``onnx/text_model.onnx`` with ``tokenizer.json``, becomes the encoder's text part (``towers.py``). Weights of a
pair of towers alone are exported first, where torch and their library are (``tower_export.py``).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrieve.artifacts import MANIFEST_NAME
from vitrieve.errors import ArtifactError, ConfigError, WeightsError
from vitrieve.folders import publish_folder
from vitrieve.machine import cache_folder
from vitrieve.model.artifact import (
    CARD_NAME,
    ONNX_NAME,
    SPEC_NAME,
    EncoderSpec,
    ModelCard,
    compute_fingerprint,
    format_card,
    note_export,
    read_card,
    write_contents,
)
from vitrieve.model.hub import (
    MAX_SMALL_BYTES,
    HubFile,
)
from vitrieve.model.preprocessor import PREPROCESSOR_NAME, read_preprocessor
from vitrieve.model.published_graph import WrappedGraph, check_graph, wrap_graph
from vitrieve.model.tensors import hash_file
from vitrieve.model.text import (
    TOKENIZER_NAME,
    TextFiles,
    complete_card,
    write_text_part,
)
from vitrieve.model.towers import (
    MAX_TOKENIZER_BYTES,
    TEXT_TOWER_NAMES,
    TOKENIZER_CONFIG_NAME,
    read_text_tower,
)
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.writing import replacing_durably, write_text_durably

if TYPE_CHECKING:
    import onnx


GRAPH_NAMES = ("onnx/vision_model.onnx", "vision_model.onnx", "onnx/model.onnx", "model.onnx")
"""Where exports stand, the first that is there: beside a graph of pictures alone, ``model.onnx`` wants texts too."""
CONFIG_NAME = "config.json"
MAX_GRAPH_BYTES = 2**31 - 1
"""Most bytes of a graph that is one file (protobuf's limit)."""


@dataclass(frozen=True, kw_only=True)
class Export:
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


def convert_export(export: Export, complete: Path) -> int:
    """Make an encoder of an export, or of weights that are exported first.

    Args:
        export: The export.
        complete: Empty folder that becomes the encoder's.

    Returns:
        The bytes that were read.

    Raises:
        WeightsError: A file is missing, damaged or too large, or what the files hold cannot be read without torch.
    """
    package = _find_package(export)
    if package is not None:
        with tempfile.TemporaryDirectory(dir=complete.parent) as temporary:
            return convert_export(_export_weights(export, package, Path(temporary)), complete)
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
        check_graph(path, wrapped, preprocessing.image_size)
    note_export(complete, (ONNX_NAME,))
    del model
    num_bytes = sum(file.num_bytes for file in files)
    return num_bytes + _add_text_tower(export, config, wrapped, complete, fingerprint=fingerprint)


def _add_text_tower(
    export: Export, config: Mapping[str, Any], wrapped: WrappedGraph, complete: Path, *, fingerprint: str
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
        spec = replace(tower.spec, license=export.license)
        write_text_part(complete, TextFiles(spec, graph, prepared), None, fingerprint=fingerprint)
    write_text_durably(complete / CARD_NAME, complete_card(read_card(complete), complete))
    return export.files[TOKENIZER_NAME].num_bytes + sum(file.num_bytes for file in files)


_WEIGHTS: dict[str, tuple[str, ...]] = {
    "transformers": (CONFIG_NAME, PREPROCESSOR_NAME, "model.safetensors"),
    "open_clip": ("open_clip_config.json", TOKENIZER_NAME, "open_clip_model.safetensors"),
}
"""What a pair of towers for each library consists of, its weights last."""
_PACKAGE_NAMES = {"transformers": "transformers", "open_clip": "open_clip_torch"}


def _find_package(export: Export) -> str | None:
    """Find the library whose weights these are, where there is no graph."""
    if export.find(GRAPH_NAMES) is not None:
        return None
    of_texts = TOKENIZER_NAME in export.files  # others' weights of pictures alone are none of these
    return next((name for name, files in _WEIGHTS.items() if of_texts and set(files) <= export.files.keys()), None)


def _export_weights(export: Export, package: str, out: Path) -> Export:
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
    export = Export(
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
            convert_export(export, complete)
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


def _fetch_json(export: Export, name: str) -> dict[str, Any]:
    path = export.fetch(name, MAX_SMALL_BYTES)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is no JSON ({error}).") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{name} holds no table.")
    return found


def _fetch_graph(export: Export, name: str) -> tuple[onnx.ModelProto, list[HubFile]]:
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
