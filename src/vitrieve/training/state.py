"""The state of a run on disk, from which it resumes bit for bit.

One safetensors file holds the weights, their averages, the optimiser and the objective (memories, proxies); its
header holds the step and the selection. Tuples are kept, because they were mined with weights that have changed
since. Sampler positions and random states are functions of (seed, step) and need no
place. A file is written beside its final name, flushed to the disk, then renamed: a kill at any moment leaves the
previous state or the new one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vitrieve.artifacts import replacing_durably
from vitrieve.data.sampler import EpochTuples
from vitrieve.errors import ArtifactError
from vitrieve.model.encoder import ImageEncoder
from vitrieve.objective.objective import Objective
from vitrieve.training.average import WeightAverage, blend
from vitrieve.training.microbatch import MemoryPlan
from vitrieve.training.selection import Selection

STATE_NAME = "state"
FULL_DISK_ADVICE = "The state before is whole: make room, then go on with the same command and --resume."


@dataclass(kw_only=True)
class TrainingState:
    """Everything that changes while training.

    Attributes:
        encoder: What is trained.
        plan: How its batches are encoded.
        objective: The loss terms with their memories and proxies.
        optimizer: Over both.
        average: Running average of the encoder's weights, or None.
        momentum: The momentum encoder that fills the memory, always in eval mode, or None: the encoder fills it.
        tuples: Tuples of the current epoch, or None: the run trains on none, or has not mined any yet.
        best_weights: Weights of the best measured state; None while that is the frozen start.
        selection: Measurements on held-out classes.
        frozen: Parameters of the start, by name, for ``frozen_share``; not saved, they are the pre-trained ones.
        frozen_share: Their weight in what is kept, in [0, 1).
        step: Number of finished steps.
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

    def build_result(self) -> ImageEncoder:
        """Build what would be kept now: the trained encoder or its average, blended with the frozen start."""
        trained = self.average.module if self.average is not None else self.encoder
        return blend(trained, self.frozen, self.frozen_share) if self.frozen_share > 0 else trained

    def save(self, run: Path) -> None:
        """Write the state into the run's folder and drop older ones.

        Raises:
            DiskFullError: The disk has no room for it beside the state before, which stays.
        """
        folder = run / STATE_NAME
        folder.mkdir(exist_ok=True)
        path = folder / f"step_{self.step:07d}.safetensors"
        tensors = self._tensors()
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        with replacing_durably(path, num_bytes=num_bytes, advice=FULL_DISK_ADVICE) as temporary:
            save_file(tensors, temporary, metadata={"state": json.dumps(self._description())})
        _remove_others(path)

    def load(self, run: Path) -> bool:
        """Continue from the newest state in the run's folder; return whether there was one.

        Raises:
            ArtifactError: The state does not fit this run's configuration, or is damaged.
        """
        paths = sorted((run / STATE_NAME).glob("step_*.safetensors"))
        if not paths:
            return False
        try:
            with safe_open(paths[-1], framework="pt") as file:
                description = json.loads(file.metadata()["state"])
                # Cloned: tensors of safetensors may share the mapped file, which the next save removes.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            self._restore(tensors, description)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"cannot resume from {paths[-1]}: it is damaged or of another run ({error}). The training up to "
                "this state is lost unless you put the file back; start again with --overwrite."
            ) from error
        _remove_others(paths[-1])
        return True

    def _tensors(self) -> dict[str, Tensor]:
        parts: dict[str, Mapping[str, Tensor]] = {
            "encoder": self.encoder.state_dict(),
            "objective": self.objective.state_dict(),
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
        self.objective.load_state_dict(parts.get("objective", {}))
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
        if self.momentum is not None:
            self.momentum.module.load_state_dict(parts["momentum"])
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


def _remove_others(path: Path) -> None:
    """Remove older states, and what a kill left half written."""
    for other in path.parent.iterdir():
        if other != path:
            other.unlink()


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
