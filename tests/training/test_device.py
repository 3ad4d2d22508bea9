"""Where a run computes; CUDA itself is not here, so that only its absence and the rules can be tested."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitrieve.config import Config, ModelConfig, Precision, TrainConfig
from vitrieve.data.loader import Batch
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import build_encoder
from vitrieve.runtime.device import resolve_device
from vitrieve.training.compute import move_batch, prepare_encoder

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


@needs_no_cuda
def test_resolve_device_without_cuda() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        resolve_device("cuda")


@needs_no_cuda
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_prepare_encoder_writes_attention_out_in_bf16_on_a_cpu(precision: Precision, tiny_weights: Path) -> None:
    model = ModelConfig(backbone="test_vit", weights=str(tiny_weights), image_size=32)
    config = Config(model=model, train=TrainConfig(precision=precision))
    encoder = build_encoder(config.model)
    assert prepare_encoder(encoder, config).type == "cpu"
    fused = [module.fused_attn for module in encoder.modules() if hasattr(module, "fused_attn")]
    assert fused
    assert set(fused) == {precision == "fp32"}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory of another C library is left alone")
def test_keep_freed_memory_saves_page_faults() -> None:
    """In a process of its own: what malloc is told holds for the whole of it.

    Each block is larger than the one before: left alone, glibc asks the system for each of them, whatever it has
    learnt from those that were freed.
    """
    code = (
        "import resource, torch\n"
        "from vitrieve.training.compute import keep_freed_memory\n"
        "torch.set_num_threads(1)\n"
        "def count_faults(sizes):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for num_quarters in sizes: torch.ones(num_quarters * 2**16)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "default = count_faults(range(32, 48))\n"
        "assert keep_freed_memory()\n"
        "print(default, count_faults(range(48, 64)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    default, kept = map(int, done.stdout.split())
    assert kept < default / 4  # the blocks of either have 40,448 pages or more, the largest 4,032


def test_move_batch_to_the_cpu_is_the_batch() -> None:
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1), torch.zeros(1))
    assert move_batch(batch, torch.device("cpu")) is batch


def test_train_refuses_a_device_that_is_not_there(tiny_weights: Path) -> None:
    model = ModelConfig(backbone="test_vit", weights=str(tiny_weights), image_size=32)
    config = Config(model=model, train=TrainConfig(device="cuda"))
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(ConfigError, match="device is cuda"):
        prepare_encoder(build_encoder(model), config)
