"""The image size of the encoder that is kept: held-out classes choose between its own and a larger one.

A transformer that was trained on small pictures finds more in larger ones where these are photographs, and less where
they are drawings (docs/results.md). Source of the idea: Touvron et al., Fixing the train-test resolution discrepancy,
arXiv:1906.06423, where an encoder sees larger pictures after training than in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vitrieve.config import Config
from vitrieve.errors import describe_error
from vitrieve.model.backbone import get_patch_px
from vitrieve.model.encoder import ImageEncoder, resize_encoder
from vitrieve.progress import print_message
from vitrieve.training.loop import Evaluate, TrainingResult
from vitrieve.training.ranks import current_ranks
from vitrieve.training.selection import SELECTION_METRIC

LARGER = 1.45
"""Side of the larger pictures, by that of the pictures in training: 182 px after 126 px, of patches of 14 px."""
LEAST_GAIN = 0.01
"""MAP@R that the larger pictures must gain, because an encoder takes twice the time for one, and an image more or less
in the right place is no reason."""


@dataclass(frozen=True, kw_only=True)
class SizeChoice:
    """The measurements of an encoder at several image sizes, and the size that is kept.

    Attributes:
        image_size: Side of the pictures that the encoder takes from now on, in pixels.
        values: MAP@R on the held-out classes, by side in pixels; empty where one size alone was measured.
    """

    image_size: int
    values: dict[int, float] = field(default_factory=dict)

    def describe(self) -> str:
        """Say in a sentence which size is kept, and why; an empty string where there was no choice."""
        if not self.values:
            return ""
        own, larger = sorted(self.values)
        found = (
            f"MAP@R on the held-out classes {100 * self.values[larger]:.1f} at {larger} px, "
            f"{100 * self.values[own]:.1f} at {own} px"
        )
        if self.image_size == larger:
            return f"pictures of {larger} px from now on, where training saw {own} px: {found}"
        return f"pictures of {own} px as in training: {found}, and a larger picture must gain a point"


def choose_image_size(
    config: Config, result: TrainingResult, evaluate: Evaluate | None
) -> tuple[TrainingResult, SizeChoice]:
    """Let the held-out classes choose the image size of the encoder that a run keeps.

    The frozen start, where that is kept, stays as it came. A size that the backbone does not take, or that the machine
    has no memory for, costs a sentence and not the run.

    Args:
        config: The complete settings.
        result: End of the run.
        evaluate: Function that measures an encoder on held-out classes; None: there are none.

    Returns:
        The result, with the encoder at the size that is kept, and the choice.

    Several processes call it alike, because they may measure together.
    """
    own = result.encoder.spec.preprocessing.image_size
    choice = SizeChoice(image_size=own)
    if evaluate is None or not config.train.try_larger_image or result.kept_step == 0:
        return result, choice
    larger = compute_larger_size(result.encoder)
    _tell(f"measuring the held-out classes in pictures of {larger} px")
    try:
        resized = current_ranks().try_together(lambda: resize_encoder(result.encoder, larger))
        found = evaluate(resized)[SELECTION_METRIC]
    except Exception as error:  # where another process is lost, what they do together next says so
        _tell(f"pictures of {larger} px cannot be measured, and the encoder stays at {own} px: {describe_error(error)}")
        return result, choice
    before = result.selection.values[result.kept_step]
    is_larger = found - before >= LEAST_GAIN
    choice = SizeChoice(image_size=larger if is_larger else own, values={own: before, larger: found})
    _tell(choice.describe())
    return (result._replace(encoder=resized) if is_larger else result), choice


def compute_larger_size(encoder: ImageEncoder) -> int:
    """Compute the side of the larger pictures, in pixels: a multiple of the patch, and of 2 without patches."""
    own = encoder.spec.preprocessing.image_size
    unit = get_patch_px(encoder.backbone) or 2
    return max(round(LARGER * own / unit), own // unit + 1) * unit


def _tell(text: str) -> None:
    if current_ranks().is_first:
        print_message(text)
