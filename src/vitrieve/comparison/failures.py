"""Which failures are a method's own: they are rows of the page, and every other failure stops the contest."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from vitrieve.errors import ArtifactError, DataError, UnfinishedRunError, WeightsError, describe_error
from vitrieve.writing import is_full_disk

_NO_METHODS_FAULT = (ImportError, OSError, DataError, WeightsError, ArtifactError)
"""Errors of a package, a disk, a server, pictures, weights or files: the next training would most likely meet them."""
_TEXTS_OF_OTHERS = re.compile(
    r"CUDA error(?!: (?:out of memory|CUBLAS_STATUS_ALLOC_FAILED))"  # after it no kernel runs in this process
    rf"|\(os error (?!{errno.ENOMEM}\))"  # how libraries in Rust, such as safetensors, spell an error of the system
)


def explain_failure(error: Exception, folder: Path) -> str:
    """Say in a sentence why a method failed; raise what is no method's fault.

    Args:
        error: What a training, or the measurement of its encoder, has raised.
        folder: Folder of the training.

    Raises:
        Exception: ``error`` itself, where it is no method's fault. A note on it says how the contest goes on.
    """
    if _is_no_methods_fault(error):
        error.add_note(
            "The contest has stopped; once the cause is mended, the same command with --resume goes on. To begin this "
            f"training anew, remove {folder} first."
        )
        raise error
    return re.split(r"\.\s", describe_error(error), maxsplit=1)[0].rstrip(".")


def _is_no_methods_fault(error: BaseException) -> bool:
    if is_full_disk(error):
        return True
    if isinstance(error, UnfinishedRunError) and error.__cause__ is not None:
        # What failed after the last step. An ArtifactError there says that the exported graph differs from the encoder.
        return not isinstance(error.__cause__, ArtifactError) and _is_no_methods_fault(error.__cause__)
    if getattr(error, "errno", None) == errno.ENOMEM:
        return False
    return isinstance(error, _NO_METHODS_FAULT) or bool(_TEXTS_OF_OTHERS.search(str(error)))
