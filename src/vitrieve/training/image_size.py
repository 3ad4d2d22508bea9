"""The image size of the encoder that is kept: held-out classes choose between that of the training and a larger one.

An encoder that was trained on small pictures finds more in larger ones where these are photographs, and less where they
are drawings (docs/results.md). Source of the idea: Touvron et al., Fixing the train-test resolution discrepancy,
arXiv:1906.06423, where an encoder sees larger pictures after training than in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vitrieve.config import Config
from vitrieve.errors import RankLostError, describe_error
from vitrieve.model.artifact import find_encoder_folder, read_spec
from vitrieve.model.backbone import get_patch_px
from vitrieve.model.encoder import ImageEncoder, resize_encoder
from vitrieve.progress import print_message
from vitrieve.training.loop import Evaluate, TrainingResult
from vitrieve.training.ranks import current_ranks
from vitrieve.training.selection import SELECTION_METRIC

LARGER = 1.45
"""Side of the larger pictures, by that of the pictures in training: 182 px after 126 px, of patches of 14 px."""
LEAST_GAIN = 1.0
"""Points of MAP@R that the larger pictures must gain, as they are printed, because an encoder takes twice the time for
one, and an image more or less in the right place is no reason."""
OUT_OF_MEMORY = (MemoryError, RuntimeError, RankLostError)
"""What measuring raises where there is no memory: torch says so by the second, another process by the third."""


@dataclass(frozen=True, kw_only=True)
class SizeChoice:
    """The measurements of an encoder at two image sizes, and the size that is kept.

    Attributes:
        image_size: Side of the pictures that the encoder takes, in pixels.
        values: MAP@R on the held-out classes, by side in pixels; empty where one size alone was measured.
    """

    image_size: int
    values: dict[int, float] = field(default_factory=dict)

    def describe(self, num_measured: int = 1) -> str:
        """Say in a sentence which size is kept, and why; an empty string where there was no choice.

        Args:
            num_measured: Number of sources over which the measurements are means.
        """
        if not self.values:
            return ""
        own, larger = sorted(self.values)
        before, after = (_round_points(self.values[size]) for size in (own, larger))
        mean = f" (the mean over {num_measured} sources)" if num_measured > 1 else ""
        found = f"MAP@R on the held-out classes{mean} is {after:.1f} at {larger} px and {before:.1f} at {own} px"
        if self.image_size == larger:
            return f"the encoder takes pictures of {larger} px, and was trained on {own} px: {found}"
        return f"the encoder takes pictures of {own} px, as in training: {found}"


def choose_image_size(
    config: Config, result: TrainingResult, evaluate: Evaluate | None, num_measured: int = 1
) -> tuple[TrainingResult, SizeChoice]:
    """Let the held-out classes choose the image size of the encoder that a run keeps.

    The frozen start, where that is kept, stays as it came: at the size of the training, or, where the run goes on from
    an encoder that takes larger pictures, at that encoder's, unless it finds less there. A size that the backbone does
    not take, or that the machine has no memory for, costs a sentence and not the run.

    Args:
        config: The complete settings.
        result: End of the run.
        evaluate: Function that measures an encoder on held-out classes; None: there are none.
        num_measured: Number of sources over which its values are means.

    Returns:
        The result, with the encoder at the size that is kept, and the choice. Where measuring failed for another
        reason, the result has the failure.

    Several processes call it alike, because they may measure together.
    """
    own, given = result.encoder.spec.preprocessing.image_size, find_given_size(config)
    choice = SizeChoice(image_size=own)
    is_start = result.kept_step == 0
    if evaluate is None or not config.train.try_larger_image or (is_start and given <= own):
        return result, choice
    larger = given if given > own else compute_larger_size(result.encoder)
    try:
        resized = current_ranks().try_together(lambda: resize_encoder(result.encoder, larger))
    except Exception:  # timm's models refuse in many ways
        _tell(f"{result.encoder.spec.backbone} takes no pictures of {larger} px: the encoder stays at {own} px")
        return result, choice
    _tell(f"measuring the held-out classes in pictures of {larger} px")
    try:
        found = evaluate(resized)[SELECTION_METRIC]
    except OUT_OF_MEMORY as error:
        _tell(f"pictures of {larger} px cannot be measured, and the encoder stays at {own} px: {describe_error(error)}")
        return result, choice
    except Exception as error:
        return result._replace(failure=error), choice
    before = result.selection.values[result.kept_step]
    gain = round(_round_points(found) - _round_points(before), 1)
    is_larger = gain >= (0 if is_start else LEAST_GAIN)
    choice = SizeChoice(image_size=larger if is_larger else own, values={own: before, larger: found})
    _tell(choice.describe(num_measured))
    return (result._replace(encoder=resized) if is_larger else result), choice


def find_given_size(config: Config) -> int:
    """Return the image size of the encoder that a run goes on from, in pixels; 0 where it begins with other weights."""
    folder = None if config.model.weights is None else find_encoder_folder(Path(config.model.weights))
    return 0 if folder is None else read_spec(folder).preprocessing.image_size


def compute_larger_size(encoder: ImageEncoder) -> int:
    """Compute the side of the larger pictures, in pixels: a multiple of the patch, and of 2 without patches."""
    own = encoder.spec.preprocessing.image_size
    unit = get_patch_px(encoder.backbone) or 2
    return max(round(LARGER * own / unit), own // unit + 1) * unit


def _round_points(value: float) -> float:
    """Turn MAP@R in [0, 1] into points, rounded as they are printed."""
    return round(100 * value, 1)


def _tell(text: str) -> None:
    if current_ranks().is_first:
        print_message(text)
