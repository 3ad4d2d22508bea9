"""What is a method's own failure is told in a sentence, and everything else stops the contest."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vitrieve import errors
from vitrieve.comparison.failures import explain_failure

FOLDER = Path("compared/runs/data/small-seed-0-trial-0")


def fail_after_the_last_step(cause: Exception) -> errors.UnfinishedRunError:
    try:
        raise errors.UnfinishedRunError("the training is done, but the export failed") from cause
    except errors.UnfinishedRunError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error", "state.safetensors"),
        TimeoutError("the server is slow"),
        ModuleNotFoundError("no module named 'timm'"),
        errors.UnreachableError("https://example.org does not answer."),
        errors.DecodeError("'a.jpg', which could be read when the run began, no longer can."),
        errors.DataError("5 of 10 images cannot be read."),
        errors.WeightsError("the weights cannot be fetched."),
        errors.ArtifactError("runs/x was begun with other settings."),
        errors.DiskFullError("the disk is full."),
        RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"),
        Exception('Error while serializing: I/O error: Input/output error (os error 5) at path "a"'),
        fail_after_the_last_step(OSError(errno.EIO, "Input/output error")),
        fail_after_the_last_step(errors.DataError("5 of 10 images cannot be read.")),
    ],
    ids=repr,
)
def test_what_the_next_method_would_meet_too_is_raised_with_how_to_go_on(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        explain_failure(error, FOLDER)
    assert raised.value is error
    (note,) = error.__notes__
    assert "--resume" in note
    assert str(FOLDER) in note


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.NonFiniteLossError("the loss is nan at step 3. Lower the rate."), "the loss is nan at step 3"),
        (errors.InputError("query embeddings hold NaN."), "query embeddings hold NaN"),
        (errors.ConfigError("the process ended 2 times."), "the process ended 2 times"),
        (MemoryError(), "MemoryError: "),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
        (RuntimeError("CUDA error: out of memory"), "RuntimeError: CUDA error: out of memory"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it"),
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling it",
        ),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (
            fail_after_the_last_step(errors.ArtifactError("the graph differs.")),
            "the training is done, but the export failed",
        ),
        (errors.UnfinishedRunError("the training is done"), "the training is done"),
    ],
    ids=repr,
)
def test_what_is_a_methods_own_failure_is_a_sentence(error: Exception, said: str) -> None:
    assert explain_failure(error, FOLDER) == said
