"""Weights that the user names: a file, or the folder of a run or an encoder."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrieve.errors import WeightsError
from vitrieve.model.artifact import SPEC_NAME, WEIGHTS_NAME, find_encoder_folder, read_contents
from vitrieve.model.key_names import shorten_names
from vitrieve.model.spec import EncoderSpec

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_PREFERRED = ("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "model_state_dict", "module")
"""Names under which checkpoints keep a model, best first: an average before what was averaged, as timm has it."""


@dataclass(frozen=True, kw_only=True)
class LocalWeights:
    """Weights of a file or a folder, under the names that they have there.

    Attributes:
        path: What the user gave.
        states: Name to tensor.
        spec: What the encoder is that they are of; None: a file of somebody else.
        notes: What was chosen in reading them, in sentences.
    """

    path: Path
    states: Mapping[str, Tensor]
    spec: EncoderSpec | None = None
    notes: tuple[str, ...] = ()


def read_local_weights(path: Path) -> LocalWeights:
    """Read weights; runs no code that the file may hold.

    Args:
        path: A safetensors file, a checkpoint of torch (``.pth``, ``.pt``, ``.bin``, ``.ckpt``), the folder of a run or
            of an encoder, or the weights inside one.

    Raises:
        WeightsError: Missing, damaged, of another format, or holding more than tensors.
        ArtifactError: An encoder's folder that is incomplete or damaged.
    """
    own = find_encoder_folder(path) if path.is_dir() else None
    if path.name == WEIGHTS_NAME and (path.parent / SPEC_NAME).is_file():
        own = path.parent
    if own is not None:
        contents = read_contents(own)
        states = {name: torch.tensor(array) for name, array in contents.states.items()}
        return LocalWeights(path=path, states=states, spec=contents.spec)
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(
            f"the weights {path} {'hold no ' + WEIGHTS_NAME if path.is_dir() else 'do not exist'}; give a .safetensors "
            "or .pth file, or the folder of a finished run or of an encoder."
        )
    if file.suffix in PICKLE_SUFFIXES:
        return _read_checkpoint(file)
    return LocalWeights(path=path, states=read_states(file))


def read_states(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; never a pickle.

    Raises:
        WeightsError: Missing, another format or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise WeightsError(
            f"{path} is neither a .safetensors file nor a checkpoint of torch ({', '.join(PICKLE_SUFFIXES)}); save the "
            "model's state_dict() with safetensors.torch.save_file."
        )
    if not path.is_file():
        raise WeightsError(f"the weights file {path} does not exist; give a .safetensors file.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); fetch or make it again.") from None


def _read_checkpoint(path: Path) -> LocalWeights:
    try:
        # Tensors and plain containers alone; of classes only the one of parsed arguments, which many keep beside them.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} holds more than tensors, and opening the rest can run code. Where you trust it, save the tensors "
            f"alone: torch.save(model.state_dict(), {path.name!r}), or safetensors.torch.save_file."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise WeightsError(f"{path} cannot be read ({reason}); fetch or make it again.") from None
    place, states = find_tensors(loaded, str(path))
    notes = (f"of what {path} holds, {'.'.join(place)} was read.",) if place else ()
    return LocalWeights(path=path, states=states, notes=notes)


def find_tensors(loaded: Any, source: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Find the weights in what a checkpoint holds, however deep they lie.

    Args:
        loaded: What ``torch.load`` returned.
        source: Where it comes from, for the message.

    Returns:
        The names that lead to the weights, and the weights by name.

    Raises:
        WeightsError: There are none, or several of which none is known by its name.

    >>> find_tensors({"epoch": 3, "model": {"weight": torch.zeros(1)}}, "x.pth")[0]
    ('model',)
    """
    place: tuple[str, ...] = ()
    while True:
        if not isinstance(loaded, Mapping):
            raise WeightsError(f"{source} holds no weights by name; save the model's state_dict().")
        tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
        inner = [name for name, value in loaded.items() if isinstance(name, str) and _holds_tensors(value)]
        if tensors or not inner:
            if not tensors:
                raise WeightsError(f"{source} holds no weights by name; save the model's state_dict().")
            return place, tensors
        known = [name for name in _PREFERRED if name in inner]
        if not known and len(inner) > 1:
            raise WeightsError(
                f"{source} holds several sets of weights: {shorten_names(sorted(inner))}; save the one you want alone."
            )
        chosen = known[0] if known else inner[0]
        place, loaded = (*place, chosen), loaded[chosen]


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(
        isinstance(name, str) and (isinstance(one, Tensor) or _holds_tensors(one)) for name, one in value.items()
    )
