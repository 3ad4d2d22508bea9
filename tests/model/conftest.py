"""Small encoders of real timm models, with random weights from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from vitrieve.config import ModelConfig
from vitrieve.model.encoder import ImageEncoder, build_encoder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products are quicker on one thread, most of all on a busy machine."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def build_tiny() -> Callable[..., ImageEncoder]:
    """Build a tiny encoder in evaluation mode; fields of ``ModelConfig`` can be changed."""

    def build(**fields: Any) -> ImageEncoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = ModelConfig(**{"backbone": "test_vit", "image_size": 32, **fields})
            return build_encoder(config, is_pretrained=False).eval()

    return build


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
