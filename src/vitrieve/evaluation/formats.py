"""``export_as``: an encoder in the format of another library or device, with a card that shows its use.

``vitrieve export --format`` calls it. What is written stands in ``model/hugging_face.py`` and
``model/device_formats.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from vitrieve.artifacts import MANIFEST_NAME, check_replacing, replacing_folder, write_manifest
from vitrieve.errors import ConfigError
from vitrieve.evaluation.sharing import format_metadata
from vitrieve.model.artifact import (
    CARD_NAME,
    USE_SECTION,
    EncoderSpec,
    ModelCard,
    format_card,
    read_card,
    require_apart,
)
from vitrieve.model.tensors import hash_file
from vitrieve.model.text import divide_card
from vitrieve.progress import print_message
from vitrieve.runtime.encoder import find_source_folder
from vitrieve.runtime.engine import require_torch
from vitrieve.writing import explaining_full_disk, sync_file, sync_folder, write_text_durably

if TYPE_CHECKING:
    from vitrieve.model.encoder import ImageEncoder
    from vitrieve.model.hugging_face import WrittenModel

Format = Literal["sentence-transformers", "torch-export", "coreml", "tflite"]
"""What ``export_as`` can write."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """An encoder in the format of another library or device.

    Attributes:
        folder: Folder that was written.
        format: Its format.
        files: Names of its files, sorted.
        num_bytes: Their size together.
        cosine: Smallest cosine between torch's results and those of what was written; None: it cannot run here.
        fingerprint: Fingerprint of the encoder.
        embedding_dim: Length of an embedding.
        image_size: Side of the square input in pixels.
        needs_code: Who opens it must allow code of the folder to run (``trust_remote_code``).
    """

    folder: Path
    format: Format
    files: tuple[str, ...]
    num_bytes: int
    cosine: float | None
    fingerprint: str
    embedding_dim: int
    image_size: int
    needs_code: bool = False


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What the writer of a format tells."""

    cosine: float | None
    use: str
    library: str
    needs_code: bool = False


def export_as(
    encoder: str | Path,
    out: str | Path,
    format: Format,
    *,
    image_size: int | None = None,
    scales: tuple[float, ...] = (),
    overwrite: bool = False,
) -> ExportedModel:
    """Write an encoder in the format of another library or device, and compare it with torch.

    Args:
        encoder: A run, an encoder's folder, or a weights name.
        out: Folder to write.
        format: ``sentence-transformers``: a folder that sentence-transformers, transformers and timm open; none of
            the first two is needed to write it. ``torch-export``: a program that torch alone runs. ``coreml`` and
            ``tflite``: for devices of Apple, and for Android, by ``coremltools`` and ``litert-torch``.
        image_size: Side of the square input in pixels; None: the encoder's own.
        scales: Shares of that side whose embeddings are combined, for convnets; none: the encoder's own.
        overwrite: Replace what ``out`` holds.

    Raises:
        ConfigError: An unknown format, something that the format has not, or a library that is missing.
        ArtifactError: The encoder cannot be read, ``out`` is not free, or what was written differs from torch.
        WeightsError: The weights of a name cannot be had.
    """
    if format not in get_args(Format):
        raise ConfigError(f"there is no format {format!r}; expected onnx or one of: {', '.join(get_args(Format))}.")
    require_torch("exporting", "export")
    from vitrieve.model.encoder import fingerprint_encoder

    out = Path(out)
    source = find_source_folder(encoder)
    if source is not None:
        require_apart(source, out)
    check_replacing(out, kind="export", is_overwrite=overwrite)
    built = _build(encoder, source, image_size, scales)
    spec, fingerprint = built.spec, fingerprint_encoder(built)
    print_message(f"exporting {encoder} for {format} …")
    num_bytes = sum(tensor.nbytes for tensor in built.state_dict().values())
    with replacing_folder(out, kind="export", is_overwrite=overwrite, is_resumable=False) as beside:
        with explaining_full_disk(out, num_bytes=num_bytes, advice="Make room and pass --overwrite."):
            written = _WRITERS[format](built, beside)
            text = _read_card(source, spec, fingerprint)
            write_text_durably(beside / CARD_NAME, _format_card(text, spec, out.resolve().name, written))
        files = tuple(sorted(path.relative_to(beside).as_posix() for path in beside.rglob("*") if path.is_file()))
        files = tuple(name for name in files if not name.startswith("."))
        for path in beside.rglob("*"):  # the converters write by themselves
            (sync_folder if path.is_dir() else sync_file)(path)
        contents = {
            "fingerprint": fingerprint,
            "format": format,
            "embedding_dim": spec.embedding_dim,
            "image_size": spec.preprocessing.image_size,
            "sha256": {name: hash_file(beside / name) for name in files},
        }
        write_manifest(beside, "export", contents)
    return ExportedModel(
        folder=out,
        format=format,
        files=tuple(sorted({*files, MANIFEST_NAME})),
        num_bytes=sum((out / name).stat().st_size for name in (*files, MANIFEST_NAME)),
        cosine=written.cosine,
        fingerprint=fingerprint,
        embedding_dim=spec.embedding_dim,
        image_size=spec.preprocessing.image_size,
        needs_code=written.needs_code,
    )


def _build(encoder: str | Path, source: Path | None, image_size: int | None, scales: tuple[float, ...]) -> ImageEncoder:
    from vitrieve.model.encoder import build_frozen_encoder, read_encoder

    if source is None:
        return build_frozen_encoder(str(encoder), image_size=image_size, scales=scales or None)
    return read_encoder(source, image_size=image_size, scales=scales or None)


def _read_card(source: Path | None, spec: EncoderSpec, fingerprint: str) -> str:
    """Read the card of the encoder's folder, but for its texts, unless what is written is another encoder."""
    text = "" if source is None else divide_card(read_card(source))[0]
    return text if fingerprint in text else format_card(spec, ModelCard(), fingerprint)


def _format_card(text: str, spec: EncoderSpec, name: str, written: _Written) -> str:
    """Write the card: metadata for the hub, and the use in the other library."""
    note = "vitrieve wrote this folder, and does not read it: keep the folder of the encoder, too."
    use = f"## Use\n\n{written.use.strip()}\n\n{note}"
    body = text.replace(USE_SECTION, use) if USE_SECTION in text else f"{text.rstrip()}\n\n{use}\n"
    return format_metadata(spec, name, written.library) + body


# sentence-transformers, transformers and timm


def _write_hugging_face(encoder: ImageEncoder, folder: Path) -> _Written:
    from vitrieve.model.hugging_face import write_hugging_face

    written = write_hugging_face(encoder, folder)
    return _Written(
        cosine=written.cosine,
        use=describe_hugging_face(written),
        library="sentence-transformers",
        needs_code=written.needs_code,
    )


def describe_hugging_face(written: WrittenModel, repository: str = "") -> str:
    """Show the use of what ``write_hugging_face`` wrote, in Markdown.

    Args:
        written: What was written.
        repository: ``OWNER/NAME``, where the files of the model are in ``MODEL_FOLDER``; none: it is all in ``FOLDER``.
    """
    from vitrieve.model.hugging_face import MODEL_FOLDER

    where = "this repository" if repository else "this folder"
    code = (
        f"The pooling of this encoder is code of {where} (`modeling_vitrieve.py`), which must be allowed to run.\n\n"
        if written.needs_code
        else ""
    )
    steps, imports = _NORM if written.has_norm else "", ""
    if written.dense:
        file = f"{written.dense}/model.safetensors"
        path = f'hf_hub_download("{repository}", "{file}")' if repository else f'"FOLDER/{file}"'
        steps += _DENSE.format(path=path)
        imports = "from safetensors.torch import load_file\n"
        imports = f"from huggingface_hub import hf_hub_download\n{imports}" if repository else imports
    return code + _HUGGING_FACE_USE.format(
        name=repository or "FOLDER",
        note="" if repository else "        # this folder, or its repository of the hub",
        part=f', subfolder="{MODEL_FOLDER}"' if repository else "",
        trust=", trust_remote_code=True" if written.needs_code else "",
        imports=imports,
        steps=steps,
    )


_HUGGING_FACE_USE = """In sentence-transformers (from version 5.4 on):

```python
from PIL import Image
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}"{trust}){note}
vectors = model.encode([Image.open("picture.jpg").convert("RGB")])     # (N, E) float32, unit length
```

In transformers:

```python
import torch
from PIL import Image
{imports}from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{name}"{part})
model = AutoModel.from_pretrained("{name}"{part}{trust}).eval()
pixels = processor([Image.open("picture.jpg").convert("RGB")], return_tensors="pt")
with torch.inference_mode():
    features = model(**pixels).pooler_output
{steps}    vectors = torch.nn.functional.normalize(features)
```
"""
_NORM = "    features = torch.nn.functional.layer_norm(features, features.shape[1:])\n"
_DENSE = (
    "    linear = load_file({path})\n"
    '    features = torch.nn.functional.linear(features, linear["linear.weight"], linear["linear.bias"])\n'
)


# Programs of one file


def _write_program(encoder: ImageEncoder, folder: Path) -> _Written:
    from vitrieve.model.device_formats import PROGRAM_NAME, write_program

    cosine = write_program(encoder, folder)
    run = (
        f'model = torch.export.load("FOLDER/{PROGRAM_NAME}").module()\n'
        "vectors = model(pixels)    # any number of pictures at a time"
    )
    return _Written(cosine=cosine, use=_format_use(encoder, "import torch\n", run, "pt"), library="pytorch")


def _write_tflite(encoder: ImageEncoder, folder: Path) -> _Written:
    from vitrieve.model.device_formats import TFLITE_NAME, write_tflite

    cosine = write_tflite(encoder, folder)
    run = (
        f'interpreter = Interpreter(model_path="FOLDER/{TFLITE_NAME}")\ninterpreter.allocate_tensors()\n'
        'interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)    # one picture at a time\n'
        'interpreter.invoke()\nvectors = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])'
    )
    imports = "from ai_edge_litert.interpreter import Interpreter\n"
    return _Written(cosine=cosine, use=_format_use(encoder, imports, run, "np"), library="tf-lite")


def _write_coreml(encoder: ImageEncoder, folder: Path) -> _Written:
    from vitrieve.model.device_formats import COREML_NAME, write_coreml

    write_coreml(encoder, folder)
    run = (
        f'model = coremltools.models.MLModel("FOLDER/{COREML_NAME}")    # on macOS; Swift opens the same\n'
        'vectors = model.predict({"pixels": pixels})["embedding"]    # one picture at a time'
    )
    use = _format_use(encoder, "import coremltools\n", run, "np")
    note = "It was converted on a machine that cannot run it: compare it with the encoder before you use it.\n\n"
    return _Written(cosine=None, use=note + use, library="coreml")


def _format_use(encoder: ImageEncoder, imports: str, run: str, tensors: str) -> str:
    """Show the use of a program: how a picture is prepared in a few lines, and how it is run."""
    told = encoder.spec.preprocessing
    side, filter_name = told.image_size, told.interpolation.upper()
    if told.framing == "square":
        steps = f"picture = picture.resize(({side}, {side}), Image.Resampling.{filter_name})\n"
    else:
        steps = (
            f"size = [int({told.resize_size} * length / min(picture.size)) for length in picture.size]\n"
            f"picture = picture.resize(size, Image.Resampling.{filter_name})\n"
            f"left, top = [round((length - {side}) / 2) for length in size]\n"
            f"picture = picture.crop((left, top, left + {side}, top + {side}))\n"
        )
    to_tensor = "pixels = torch.from_numpy(pixels)\n" if tensors == "pt" else ""
    return (
        "`preprocessor_config.json` tells how a picture is prepared; in Python:\n\n```python\n"
        f"import numpy as np\n{imports}from PIL import Image\n\n"
        'picture = Image.open("picture.jpg").convert("RGB")\n'
        f"{steps}"
        f"pixels = (np.asarray(picture, np.float32) / 255 - {list(told.mean)}) / {list(told.std)}\n"
        f"pixels = pixels.astype(np.float32).transpose(2, 0, 1)[None]    # (1, 3, {side}, {side})\n"
        f"{to_tensor}{run}\n```\n"
    )


_WRITERS: Mapping[Format, Callable[[ImageEncoder, Path], _Written]] = {
    "sentence-transformers": _write_hugging_face,
    "torch-export": _write_program,
    "coreml": _write_coreml,
    "tflite": _write_tflite,
}
