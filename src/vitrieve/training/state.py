"""The state of a run on disk, from which it resumes bit for bit.

One safetensors file holds the weights, their averages, the optimizer and the objective (memories, proxies); its
header holds the step, the selection and a checksum. Tuples are kept, because they were mined with weights that have
changed since. Sampler positions and random states are functions of (seed, step) and are not saved. A file is written
beside its final name, read back, flushed to the disk, then renamed: a kill at any moment leaves the previous state or
the new one. The previous one is kept beside the new one, for the day on which the new one is found damaged. A memory
that several processes divide is written whole, so that any number of them goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrieve.data.loader import EpochTuples
from vitrieve.errors import ArtifactError, DiskFullError
from vitrieve.model.encoder import ImageEncoder
from vitrieve.model.lora import merge_lora
from vitrieve.objective.objective import Objective
from vitrieve.training.compute import MemoryPlan
from vitrieve.training.optimizer import WeightAverage, blend
from vitrieve.training.ranks import Ranks, current_ranks
from vitrieve.training.selection import Selection
from vitrieve.writing import replacing_durably

STATE_NAME = "state"
NUM_KEPT = 2
"""Number of states on the disk: the newest, and the one before it."""
DAMAGE = (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError)
"""Exceptions that reading a damaged state, or one of another run, raises."""
DIVIDED_PREFIX = "memory."
"""What the names of the memory's tensors begin with among those of the objective."""
DIVIDED_TENSORS = ("embeddings", "labels", "rows")
"""Tensors of the memory of which each process has its places, where several divide it."""
FULL_DISK_ADVICE = "The state before is whole: make room, then go on with the same command and --resume."


@dataclass(kw_only=True)
class TrainingState:
    """Everything that changes while training.

    Attributes:
        encoder: Encoder that is trained.
        plan: Plan of how its batches are encoded.
        wrapped: What is called instead of the encoder, so that several processes add their gradients; None: itself.
        read_memory: A divided memory as the file had it, until the other processes have their parts.
        piece_size: Images on all processes together that batch norm trains on at a time; None: no batch norm trains.
        objective: Loss terms with their memories and proxies.
        optimizer: Optimizer of the weights of both.
        average: Running average of the encoder's weights, or None.
        momentum: The momentum encoder that fills the memory, always in eval mode, or None: the encoder fills it.
        tuples: Tuples of the current epoch, or None: the run trains on none, or has not mined any yet.
        best_weights: Weights of the best measured state; None while that is the frozen start.
        selection: Measurements on held-out classes.
        frozen: Parameters of the start, by name, but for prompts, which are drawn; for ``frozen_share``; not saved,
            they are the pre-trained ones.
        frozen_share: Their weight in the encoder that is kept, in [0, 1).
        step: Number of finished steps.
        saved_step: Step of the newest state on the disk, or None.
        is_whole: Whether all parts are of one step; False while a step changes them one after the other.
    """

    encoder: ImageEncoder
    plan: MemoryPlan
    objective: Objective
    optimizer: torch.optim.Optimizer
    average: WeightAverage[ImageEncoder] | None = None
    momentum: WeightAverage[ImageEncoder] | None = None
    tuples: EpochTuples | None = None
    best_weights: dict[str, Tensor] | None = None
    selection: Selection = field(default_factory=Selection)
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    frozen_share: float = 0.0
    step: int = 0
    saved_step: int | None = None
    is_whole: bool = True
    wrapped: nn.Module | None = None
    piece_size: int | None = None
    read_memory: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def can_save_alone(self) -> bool:
        """Whether a process has all of the state, so that it can save it when the others are gone."""
        return self.objective.memory is None or self.objective.memory.division is None

    @property
    def trained(self) -> nn.Module:
        """What embeds a batch in training."""
        return self.encoder if self.wrapped is None else self.wrapped

    def build_result(self) -> ImageEncoder:
        """Build the encoder to keep now: the trained one or its average, LoRA merged, blended with the frozen start."""
        trained = merge_lora(self.average.module if self.average is not None else self.encoder)
        return blend(trained, self.frozen, self.frozen_share) if self.frozen_share > 0 else trained

    def save(self, run: Path) -> None:
        """Write the state into the run's folder; of the older ones the last is kept.

        Of several processes the first alone writes; all call it, because they may divide the memory.

        Where the disk has no room for three states, the oldest makes room before the new one is written.

        Raises:
            ArtifactError: What was written reads back differently; the state before stays.
            DiskFullError: The disk has no room for it beside the state before, which stays.
        """
        memory = self._gather_memory()
        if not current_ranks().is_first:
            self.saved_step = self.step
            return
        folder = run / STATE_NAME
        folder.mkdir(exist_ok=True)
        path = folder / f"step_{self.step:07d}.safetensors"
        older = [other for other in _list_states(folder) if _read_step(other) <= self.step][:NUM_KEPT]
        _remove_others(folder, older)  # half written by a killed run, or newer and damaged
        try:
            self._write(path, memory)
        except DiskFullError:
            if len(older) < NUM_KEPT:
                raise
            older.pop().unlink()
            self._write(path, memory)
        _remove_others(folder, _list_states(folder)[:NUM_KEPT])
        self.saved_step = self.step

    def load(self, run: Path) -> str | None:
        """Continue from the newest state in the run's folder that is whole.

        Returns:
            A sentence about which one that is; None without a state.

        Raises:
            ArtifactError: No state is whole, or none fits this run's configuration.
        """
        failures = []
        for path in _list_states(run / STATE_NAME):
            try:
                self._restore(*_read_checked(path))
            except DAMAGE as error:
                failures.append((path, error))
                continue
            self.saved_step = self.step
            told = "".join(f"{damaged.name} is damaged ({error}); " for damaged, error in failures)
            return f"{told}going on from the state after step {self.step}, {path.name}"
        if not failures:
            return None
        told = ", and ".join(f"from {path}: it is damaged or of another run ({error})" for path, error in failures)
        raise ArtifactError(
            f"cannot resume {told}. The training is lost unless you put a state back; start again with --overwrite."
        ) from failures[0][1]

    def share(self, ranks: Ranks) -> None:
        """Give all processes of a training the state of the first."""
        description, saved_step = ranks.share_first(lambda: (self._description(), self.saved_step))
        tensors = ranks.share_tensors(self._tensors(self.read_memory or self._list_blank_memory()))
        if not ranks.is_first:
            self._restore(tensors, description)
            self.saved_step = saved_step
        self.read_memory = {}

    def _list_blank_memory(self) -> dict[str, Tensor]:
        """Return the tensors of a divided memory that is whole and empty, on the CPU, by their names in a file."""
        memory = self.objective.memory
        if memory is None or memory.division is None:
            return {}
        tensors = {name: getattr(memory, name) for name in DIVIDED_TENSORS}
        return {
            f"{DIVIDED_PREFIX}{name}": torch.zeros(memory.memory_size, *tensor.shape[1:], dtype=tensor.dtype)
            for name, tensor in tensors.items()
        }

    def _gather_memory(self) -> dict[str, Tensor]:
        """Gather a divided memory from all processes, by the names in a file; of another nothing."""
        memory = self.objective.memory
        if memory is None or memory.division is None:
            return {}
        with torch.no_grad():
            return {
                f"{DIVIDED_PREFIX}{name}": current_ranks().gather_rows(
                    getattr(memory, name).cpu(), memory.list_places()
                )
                for name in DIVIDED_TENSORS
            }

    def _cut_memory(self, objective: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace the tensors of a whole memory by those of the part that this process keeps."""
        memory = self.objective.memory
        if memory is None or memory.division is None:
            return dict(objective)
        names = [f"{DIVIDED_PREFIX}{name}" for name in DIVIDED_TENSORS]
        own = slice(memory.division.part, None, memory.division.num_parts)
        return {name: tensor[own] if name in names else tensor for name, tensor in objective.items()}

    def _write(self, path: Path, memory: Mapping[str, Tensor]) -> None:
        tensors = self._tensors(memory)
        description = json.dumps(self._description())
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        metadata = {"state": description, "sha256": _digest_state(sorted(tensors.items()), description)}
        with replacing_durably(path, num_bytes=num_bytes, advice=FULL_DISK_ADVICE) as temporary:
            save_file(tensors, temporary, metadata=metadata)
            if not _is_intact(temporary):
                raise ArtifactError(
                    f"{path} was written, but reads back differently: the disk may be failing. The state before is "
                    "kept; go on with the same command and --resume, on another disk if need be."
                )

    def _tensors(self, memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """List all tensors; ``memory`` stands for the part of a divided one that this process keeps."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "encoder": self.encoder.state_dict(),
            "objective": {**self.objective.state_dict(), **memory},
            "best": self.best_weights or {},
        }
        if self.average is not None:
            parts["average"] = self.average.module.state_dict()
        if self.momentum is not None:
            parts["momentum"] = self.momentum.module.state_dict()
        if self.tuples is not None:
            parts["tuples"] = {
                "epoch": torch.tensor(self.tuples.epoch),
                "rows": torch.from_numpy(self.tuples.rows),
                "tuples_per_batch": torch.tensor(self.tuples.tuples_per_batch),
            }
        for index, values in self.optimizer.state_dict()["state"].items():
            parts[f"optimizer.{index}"] = values
        # A convnet on a GPU keeps its channels last, and safetensors writes no such layout.
        return {
            f"{part}/{name}": tensor.contiguous() for part, values in parts.items() for name, tensor in values.items()
        }

    def _description(self) -> dict[str, object]:
        return {"step": self.step, "selection": dataclasses.asdict(self.selection)}

    def _restore(self, tensors: Mapping[str, Tensor], description: Mapping[str, object]) -> None:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            part, name = key.split("/", 1)
            parts.setdefault(part, {})[name] = tensor
        self.encoder.load_state_dict(parts["encoder"])
        objective = parts.get("objective", {})
        self.objective.load_state_dict(self._cut_memory(objective))
        if not self.can_save_alone:
            self.read_memory = {name: objective[name] for name in self._list_blank_memory()}
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
        if self.momentum is not None:
            self.momentum.module.load_state_dict(parts["momentum"])
        self.tuples = None
        if "tuples" in parts:
            epoch, rows, tuples_per_batch = (parts["tuples"][name] for name in ("epoch", "rows", "tuples_per_batch"))
            self.tuples = EpochTuples(epoch=int(epoch), rows=rows.numpy(), tuples_per_batch=int(tuples_per_batch))
        self.best_weights = parts.get("best")
        self.optimizer.load_state_dict(
            {
                "state": {
                    int(part.split(".")[1]): values for part, values in parts.items() if part.startswith("optimizer.")
                },
                "param_groups": self.optimizer.state_dict()["param_groups"],
            }
        )
        self.step, self.selection = _read_description(description)


def _list_states(folder: Path) -> list[Path]:
    """List the states in a folder, the newest first."""
    return sorted(folder.glob("step_*.safetensors"), key=_read_step, reverse=True)


def _read_step(path: Path) -> int:
    """Read the step out of a state's name: its digits are filled up to seven, and from ten million on there are more.

    >>> _read_step(Path("step_9999999.safetensors")) < _read_step(Path("step_10000000.safetensors"))
    True
    """
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def _remove_others(folder: Path, kept: Sequence[Path]) -> None:
    for other in folder.iterdir():
        if other not in kept:
            other.unlink()


def _digest_state(tensors: Iterable[tuple[str, Tensor]], description: str) -> str:
    return hashlib.sha256(f"{digest_tensors(tensors)} {description}".encode()).hexdigest()


def _is_intact(path: Path) -> bool:
    """Tell whether a state reads as it was written; one of a version that wrote no checksum counts as intact."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
        return "sha256" not in metadata or metadata["sha256"] == _digest_state(tensors, metadata["state"])


def _read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read a state's tensors and description.

    Raises:
        ValueError: The checksum does not fit.
    """
    if not _is_intact(path):
        raise ValueError("its checksum does not fit")
    with safe_open(path, framework="pt") as file:
        # Cloned: tensors of safetensors may share the mapped file, which a later save removes.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["state"])


def _read_description(description: Mapping[str, object]) -> tuple[int, Selection]:
    step, values = description["step"], description["selection"]
    assert isinstance(step, int)
    assert isinstance(values, dict)
    selection = Selection(
        values={int(key): float(value) for key, value in values["values"].items()},
        best_step=values["best_step"],
        num_worse=values["num_worse"],
    )
    return step, selection


def digest_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Compute the SHA-256 of named tensors: of each its name, its shape and its bytes.

    Args:
        tensors: Names and tensors, in the order of the names; one at a time is held.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
