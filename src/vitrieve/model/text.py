"""The text part of an encoder's folder, without torch: what turns a text into a vector of the image space.

It lies in the folder ``text`` of the encoder, so that it travels with it:

text.json         ``TextSpec``
tokenizer.json    the tokenizer, as the package ``tokenizers`` reads it
text.onnx         the graph of the text encoder
map.safetensors   ``weight`` (E, D) and ``bias`` (E,), from the text encoder's vectors into the image space; missing
                  where the text encoder was trained with the image encoder, and so speaks of its space (``towers.py``)
manifest.json     checksums, and the fingerprint of the image encoder it was made for; written last
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vitrieve.artifacts import MANIFEST_NAME, read_manifest, write_manifest
from vitrieve.errors import ArtifactError, ConfigError, FingerprintError
from vitrieve.folders import copy_folder
from vitrieve.model.tensors import hash_file, read_arrays
from vitrieve.progress import print_message
from vitrieve.settings import config_from_json, config_to_json
from vitrieve.writing import write_bytes_durably, write_text_durably

TEXT_SUBFOLDER = "text"
TEXT_SPEC_NAME = "text.json"
TOKENIZER_NAME = "tokenizer.json"
TEXT_GRAPH_NAME = "text.onnx"
MAP_NAME = "map.safetensors"
_PARTS = (TEXT_SPEC_NAME, TOKENIZER_NAME, TEXT_GRAPH_NAME)
TEXT_NAMES = tuple(f"{TEXT_SUBFOLDER}/{name}" for name in (*_PARTS, MAP_NAME, MANIFEST_NAME))
"""All files of a text part, as they stand in the encoder's folder, the manifest last."""
INPUT_IDS, ATTENTION_MASK, TOKEN_TYPES = "input_ids", "attention_mask", "token_type_ids"
"""Names of the inputs of a text encoder's graph; the last is optional."""
TEXT_SECTION = "\n## Text\n"
"""Begins what the model card says of the text part, up to the next heading."""
UNKNOWN_LICENSE = "unknown"

TextPooling = Literal["mean", "first", "native"]
"""How the vectors of a text's tokens become one: their mean, that of the first token, or the graph pools itself."""


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Everything but weights and tokenizer that decides the vector of a text, and where the text encoder comes from.

    Attributes:
        name: Name of the text encoder, for people.
        license: License of the text encoder, as text for the model card.
        max_tokens: Most tokens of a text, those that the tokenizer adds included.
        pooling: How the vectors of tokens become one.
        output: Name of the graph's output; empty: its first.
        is_padded: Every text is filled up to ``max_tokens``, and read with what fills it up, as in training.
        trained_on: One line about the pairs that the map was learned from.
    """

    name: str
    max_tokens: int
    pooling: TextPooling
    license: str = UNKNOWN_LICENSE
    output: str = ""
    is_padded: bool = False
    trained_on: str = ""


class TextMap(NamedTuple):
    """An affine map from the text encoder's vectors into the image space: ``weight @ vector + bias``.

    Attributes:
        weight: ``(E, D)`` float32.
        bias: ``(E,)`` float32.
    """

    weight: np.ndarray
    bias: np.ndarray


class TextFiles(NamedTuple):
    """A text encoder whose vectors are not mapped yet.

    Attributes:
        spec: What it is.
        graph: File of its graph.
        tokenizer: File of its tokenizer.
    """

    spec: TextSpec
    graph: Path
    tokenizer: Path


def write_text_part(folder: Path, files: TextFiles, text_map: TextMap | None, *, fingerprint: str) -> None:
    """Add a text part to an encoder's folder, its manifest last.

    Args:
        folder: Folder of the encoder.
        files: The text encoder.
        text_map: The map into the image space; None: the text encoder's vectors lie there.
        fingerprint: Fingerprint of the image encoder.
    """
    from safetensors.numpy import save

    part = folder / TEXT_SUBFOLDER
    part.mkdir(parents=True)
    write_text_durably(part / TEXT_SPEC_NAME, json.dumps(config_to_json(files.spec), indent=2) + "\n")
    write_bytes_durably(part / TOKENIZER_NAME, files.tokenizer.read_bytes())
    write_bytes_durably(part / TEXT_GRAPH_NAME, files.graph.read_bytes())
    if text_map is not None:
        arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in text_map._asdict().items()}
        write_bytes_durably(part / MAP_NAME, save(arrays))
    names = (*_PARTS, *([MAP_NAME] if text_map else []))
    checksums = {name: hash_file(part / name) for name in names}
    write_manifest(part, "text", {"fingerprint": fingerprint, "sha256": checksums})


def find_text_part(folder: Path) -> Path | None:
    """Return the folder of an encoder's text part; None when it has none."""
    part = folder / TEXT_SUBFOLDER
    return part if part.is_dir() else None


def read_text_part(part: Path, *, fingerprint: str) -> tuple[TextFiles, TextMap | None]:
    """Read a text part, and check every file of it.

    Args:
        part: Its folder.
        fingerprint: Fingerprint of the image encoder that it is to serve.

    Returns:
        The text encoder, and the map into the image space; None: its vectors lie there.

    Raises:
        ArtifactError: Missing, unfinished or damaged.
        FingerprintError: A file was changed, or it belongs to another image encoder.
    """
    manifest = read_manifest(part, "text")
    if manifest.get("fingerprint") != fingerprint:
        raise FingerprintError(
            f"{part} was made for another image encoder ({str(manifest.get('fingerprint'))[:12]}…) than this one "
            f"({fingerprint[:12]}…); make it again with vitrieve align."
        )
    checksums = manifest.get("sha256", {})
    has_map = MAP_NAME in checksums
    for name in (*_PARTS, *([MAP_NAME] if has_map else [])):
        if not (part / name).is_file() or hash_file(part / name) != checksums.get(name):
            raise FingerprintError(
                f"{part / name} is missing, or is not the file that the manifest was written for; copy the whole "
                "folder, or make it again with vitrieve align."
            )
    try:
        spec = _read_spec(part)
        arrays = read_arrays(part / MAP_NAME) if has_map else None
        text_map = TextMap(arrays["weight"], arrays["bias"]) if arrays else None
    except (ValueError, KeyError, ConfigError) as error:
        raise ArtifactError(f"{part} is damaged ({error}); make it again with vitrieve align.") from None
    return TextFiles(spec, part / TEXT_GRAPH_NAME, part / TOKENIZER_NAME), text_map


def _read_spec(part: Path) -> TextSpec:
    return config_from_json(TextSpec, json.loads((part / TEXT_SPEC_NAME).read_text(encoding="utf-8")))


def describe_text_encoder(spec: TextSpec) -> str:
    """Name the text encoder and its license, in sentences for the model card."""
    return f"The folder `{TEXT_SUBFOLDER}` holds the text encoder {spec.name}. Its license is {spec.license}."


def divide_card(card: str) -> tuple[str, str]:
    r"""Divide a model card into all else and what its section says of the text part, which may be nothing.

    >>> divide_card("An encoder.\n\n## Text\n\nWords.\n\n## License\n\nmit\n")
    ('An encoder.\n\n## License\n\nmit\n', '\nWords.\n')
    >>> divide_card("An encoder.\n\n## Text\n# License\n\nmit\n")
    ('An encoder.\n# License\n\nmit\n', '')
    """
    before, _, rest = card.partition(TEXT_SECTION)
    heading = re.search(r"(?:\A|\n)##? ", rest)
    end = len(rest) if heading is None else heading.start()
    return before + rest[end:], rest[:end]


def complete_card(card: str, folder: Path) -> str:
    """Name the text encoder at the end of a model card that does not speak of the text part.

    Args:
        card: Text of the card.
        folder: Folder of the encoder; without a text part, the card stays as it is.
    """
    part = find_text_part(folder)
    if part is None or TEXT_SECTION in card:
        return card
    return f"{card.rstrip()}\n{TEXT_SECTION}\n{describe_text_encoder(_read_spec(part))}\n"


def carry_text_part(source: Path | None, folder: Path, *, fingerprint: str) -> None:
    """Copy the text part of an encoder to another one that is made of it, or say why it does not fit there.

    Args:
        source: Folder of the first encoder; None: it has none, and so no text part.
        folder: Folder of the other one; made when it is missing.
        fingerprint: Fingerprint of the other one.
    """
    part = None if source is None else find_text_part(source)
    if part is None:
        return
    try:
        read_text_part(part, fingerprint=fingerprint)  # checks every file
    except ArtifactError as error:
        print_message(f"the text part is left out: {error}")
        return
    copy_folder(part, folder / TEXT_SUBFOLDER)
