"""The embeddings of the teacher: of every training image one, made before the first step and kept with the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrieve.config import Config
from vitrieve.data.records import ImageRecord
from vitrieve.embed.collection import embed_images
from vitrieve.embed.embeddings import (
    ROWS_NAME,
    find_other_region,
    load_embeddings,
    tell_changed_files,
    tell_other_files,
)
from vitrieve.errors import ArtifactError, ConfigError, WeightsError
from vitrieve.model.pretrained import find_weights
from vitrieve.model.tensors import read_arrays
from vitrieve.progress import print_message
from vitrieve.quoting import quote_name
from vitrieve.runtime.encoder import find_source_folder, load_encoder
from vitrieve.writing import write_bytes_durably

TEACHER_NAME = "teacher.safetensors"
_TENSOR_NAME = "embeddings"


def read_teacher(config: Config, records: Sequence[ImageRecord], run: Path) -> Tensor | None:
    """Return the teacher's embeddings of the training images, where the objective has a teacher.

    They are written into the run's folder, where a resumed run reads them again.

    Args:
        config: The complete settings.
        records: Readable training images; their order is that of the rows.
        run: Folder of the run.

    Returns:
        ``(N, E)`` float32, rows of unit length; None without a teacher.

    Raises:
        ConfigError: The teacher cannot be loaded, or stored embeddings lack training images.
        DataError: The teacher cannot read a training image.
        ArtifactError: What was kept of the teacher's embeddings is damaged.
    """
    term = config.objective.distillation
    if term.weight == 0 or term.teacher is None:
        return None
    path = run / TEACHER_NAME
    if not path.is_file():
        _write(path, _read_stored(term.teacher, records) if _is_stored(term.teacher) else _embed(config, records))
    vectors = read_arrays(path).get(_TENSOR_NAME)
    if vectors is None or vectors.ndim != 2 or len(vectors) != len(records) or not np.isfinite(vectors).all():
        raise ArtifactError(f"{path} does not hold the teacher's embeddings of {len(records)} images; remove it.")
    return torch.tensor(vectors)


def _write(path: Path, vectors: np.ndarray) -> None:
    from safetensors.numpy import save

    write_bytes_durably(path, save({_TENSOR_NAME: np.ascontiguousarray(vectors, dtype=np.float32)}))


def _is_stored(teacher: str) -> bool:
    return (Path(teacher) / ROWS_NAME).is_file()


def _read_stored(teacher: str, records: Sequence[ImageRecord]) -> np.ndarray:
    """Take the vectors of the training images from stored embeddings, by their ``image_id``."""
    with _naming_the_setting():
        stored = load_embeddings(teacher)
    if any(record.source for record in records):
        raise ConfigError(
            f"{teacher} holds embeddings of one source, and several train; name the encoder as "
            "objective.distillation.teacher, which then embeds the training images."
        )
    found = {record.image_id: row for row, record in enumerate(stored.records)}
    missing = [record.image_id for record in records if record.image_id not in found]
    if missing:
        raise ConfigError(
            f"{teacher} has no vector of {len(missing)} of the {len(records)} training images, the first of them "
            f"{quote_name(missing[0])}; embed the source that trains (vitrieve embed), or name the encoder as teacher."
        )
    rows = [found[record.image_id] for record in records]
    other = find_other_region(stored, rows, records)
    if other is not None:
        raise ConfigError(
            f"{teacher} and the training images look at different regions of {quote_name(other)}; embed the source "
            "that trains (vitrieve embed), or name the encoder as teacher."
        )
    tell_other_files(stored, rows, records)
    tell_changed_files(Path(teacher), records)
    return np.asarray(stored.vectors[rows])


def require_teacher(config: Config, run: Path | None = None) -> None:
    """Refuse a teacher that cannot be found, before a run is begun.

    Args:
        config: The complete settings.
        run: Folder of a run that goes on, which may hold all that it needs of the teacher; None: a run begins.

    Raises:
        ConfigError: There is no such encoder, weights name or folder of embeddings.
    """
    term = config.objective.distillation
    if term.weight == 0 or term.teacher is None or _is_stored(term.teacher):
        return
    if run is not None and (run / TEACHER_NAME).is_file():
        return
    with _naming_the_setting():
        if find_source_folder(term.teacher) is None:
            find_weights(term.teacher)


@contextmanager
def _naming_the_setting() -> Iterator[None]:
    """Turn the error of a teacher that cannot be loaded into one of the setting that names it."""
    try:
        yield
    except (ArtifactError, WeightsError) as error:
        raise ConfigError(f"objective.distillation.teacher: {error}") from error


def _embed(config: Config, records: Sequence[ImageRecord]) -> np.ndarray:
    teacher, train = config.objective.distillation.teacher, config.train
    assert teacher is not None
    with _naming_the_setting():
        encoder = load_encoder(teacher, device=train.device, precision=train.precision, num_threads=train.num_threads)
    print_message(f"embedding {len(records)} training images by the teacher {teacher}")
    return embed_images(encoder, records, max_bad_fraction=0.0, show_progress=True).vectors
