"""Small encoders of real timm models, with random weights from a fixed seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download
import pytest
import torch

from tests.model.hub_server import Hub
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
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories, an empty cache, and a client that does not rest between its attempts."""
    monkeypatch.setenv("VITRIEVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as hub:
        for name, value in {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(huggingface_hub.file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield hub


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
