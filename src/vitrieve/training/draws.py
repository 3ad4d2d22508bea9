"""Which paths and patches a training step drops: a function of seed, step and the image's place in the batch.

timm draws for the images of one forward pass from torch's global generator, so that the choice depends on how a batch
is cut into pieces, and on how many processes share it. Here it is drawn for the whole batch, and a piece takes its
rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn

_PATHS, _PATCHES = 6, 7
"""Keep the generators of the two purposes apart, and apart from those of sampler, views and tuples."""


class PlacedDropPath(DropPath):
    """timm's stochastic depth with the choice given; where none is, as timm draws it."""

    factors: Tensor | None = None
    """``(b,)`` factors of the paths of the next piece: 0, or one by the share that is kept."""

    def forward(self, x: Tensor) -> Tensor:
        """Drop the path of some images, in training."""
        if not self.training or self.factors is None:
            return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]
        return x * self.factors.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


class PlacedPatchDropout(PatchDropout):
    """timm's dropout of patches with the generator given; where none is, as timm draws it."""

    places: np.ndarray | None = None
    """``(b,)`` places in the batch of the images of the next piece."""
    num_images: int = 0
    seeds: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """Leave out some patches of each image, in training."""
        if not self.training or self.places is None:
            return super().forward(x)
        num_patches = x.shape[1] - self.num_prefix_tokens
        drawn = np.random.default_rng(self.seeds).random((self.num_images, num_patches), np.float32)[self.places]
        kept = np.argsort(drawn, axis=1)[:, : max(1, int(num_patches * (1 - self.prob)))]
        kept = np.sort(kept, axis=1) if self.ordered else kept
        rows = torch.from_numpy(kept).to(x.device)[:, :, None].expand(-1, -1, x.shape[2])
        return torch.cat([x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :].gather(1, rows)], dim=1)


def place_draws(encoder: nn.Module) -> None:
    """Replace timm's layers that draw by those of this file, which have no weights either."""
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is DropPath:
                setattr(parent, name, PlacedDropPath(child.drop_prob, child.scale_by_keep))
            elif type(child) is PatchDropout:
                setattr(parent, name, PlacedPatchDropout(child.prob, child.num_prefix_tokens, child.ordered))


@dataclass(frozen=True)
class StepDraws:
    """What a step drops.

    Attributes:
        seed: Seed of the run.
        step: Number of finished steps.
        num_images: Images in the whole batch.
        places: ``(b,)`` int64 places in the batch of the images that this process encodes.
    """

    seed: int
    step: int
    num_images: int
    places: np.ndarray

    def pieces(self, encoder: nn.Module, pixels: Tensor, size: int) -> Iterator[Tensor]:
        """Cut pixels into pieces; the encoder drops for each, until the next, what is drawn for its images.

        Args:
            encoder: Encoder, after ``place_draws``.
            pixels: ``(b, 3, S, S)``.
            size: Images in a piece; the last may have fewer.
        """
        paths = [part for part in encoder.modules() if isinstance(part, PlacedDropPath)]
        patches = [part for part in encoder.modules() if isinstance(part, PlacedPatchDropout)]
        drawn = np.random.default_rng([self.seed, _PATHS, self.step]).random((len(paths), self.num_images))
        for start in range(0, len(pixels), size):
            places = self.places[start : start + size]
            for part, values in zip(paths, drawn, strict=True):
                kept = 1 - part.drop_prob
                scale = 1 / kept if part.scale_by_keep and kept > 0 else 1.0
                factors = np.where(values[places] < kept, scale, 0.0).astype(np.float32)
                part.factors = torch.from_numpy(factors).to(pixels.device)
            for number, one in enumerate(patches):
                one.places, one.num_images = places, self.num_images
                one.seeds = (self.seed, _PATCHES, self.step, number)
            yield pixels[start : start + size]
        for part in paths:
            part.factors = None
        for one in patches:
            one.places = None
