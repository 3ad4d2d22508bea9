"""Where a run computes; CUDA itself is not here, so that only its absence and the rules can be tested."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitrieve.config import Config, ModelConfig, TrainConfig
from vitrieve.data.loader import Batch
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import build_encoder
from vitrieve.train.device import move_batch, prepare_encoder, resolve_device

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


@needs_no_cuda
def test_resolve_device_without_cuda() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        resolve_device("cuda")


@needs_no_cuda
def test_prepare_encoder_writes_attention_out_on_a_cpu(tiny_weights: Path) -> None:
    config = Config(model=ModelConfig(backbone="test_vit", weights=str(tiny_weights), image_size=32))
    encoder = build_encoder(config.model)
    assert prepare_encoder(encoder, config).type == "cpu"
    fused = [module.fused_attn for module in encoder.modules() if hasattr(module, "fused_attn")]
    assert fused
    assert not any(fused)


def test_move_batch_to_the_cpu_is_the_batch() -> None:
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1), torch.zeros(1))
    assert move_batch(batch, torch.device("cpu")) is batch


def test_train_refuses_a_device_that_is_not_there(tiny_weights: Path) -> None:
    model = ModelConfig(backbone="test_vit", weights=str(tiny_weights), image_size=32)
    config = Config(model=model, train=TrainConfig(device="cuda"))
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ConfigError, match=r"train\.device"):
        prepare_encoder(build_encoder(model), config)
