"""Encoding a batch in pieces: the same gradient, whatever the pieces, and within a limit of memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vitrieve.config import Config, LoaderConfig, ModelConfig, ObjectiveConfig, TrainConfig, TupleConfig
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import ImageEncoder, build_encoder
from vitrieve.objective.contrastive import ContrastiveConfig
from vitrieve.runtime.device import has_bf16_instructions
from vitrieve.training import compute
from vitrieve.training.compute import (
    GIB,
    SCRATCH_SHARE,
    MemoryPlan,
    count_batch_images,
    encode_batch,
    measure_graph_bytes,
    plan_memory,
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tiny_weights: Path) -> Config:
    return Config(
        loader=LoaderConfig(cache_bytes=0),
        model=ModelConfig(backbone="test_vit", weights=str(tiny_weights), image_size=32, drop_path_rate=0.2),
        objective=ObjectiveConfig(contrastive=ContrastiveConfig(weight=1.0)),
        train=TrainConfig(num_steps=6, batch_size=6, microbatch_size=4, precision="fp32"),
    )


def encode(encoder: ImageEncoder, pixels: torch.Tensor, config: Config) -> torch.Tensor:
    return encode_batch(encoder, pixels, config, MemoryPlan(config.train.microbatch_size)).embeddings


def gradients_of(encoder: ImageEncoder, pixels: torch.Tensor, config: Config, plan: MemoryPlan) -> torch.Tensor:
    """Return the gradients of a loss that looks at all pairs of the batch."""
    embeddings, backward = encode_batch(encoder, pixels, config, plan)
    backward((embeddings @ embeddings.T).triu(1).square().sum())
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights(config: Config) -> None:
    model = dataclasses.replace(config.model, backbone="test_resnet", weights=None, image_size=64, pooling="average")
    encoder = build_encoder(dataclasses.replace(model, drop_path_rate=0.0), is_pretrained=False)
    names = [name for name, _ in encoder.named_buffers() if name.endswith("running_mean")]
    start = {name: tensor.clone() for name, tensor in encoder.named_buffers()}
    pixels = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    frozen_config = dataclasses.replace(config, train=dataclasses.replace(config.train, freeze_batch_norm=True))
    encode(encoder, pixels, frozen_config).sum().backward()
    assert names
    assert all(torch.equal(start[name], tensor) for name, tensor in encoder.named_buffers())
    assert all(parameter.grad is not None for name, parameter in encoder.named_parameters() if "bn" in name)
    encode(encoder, pixels, config)
    assert any(not torch.equal(start[name], encoder.get_buffer(name)) for name in names)


def test_trap_evaluating_leaves_the_encoder_in_train_mode(config: Config) -> None:
    encoder = build_encoder(config.model).eval()
    encode(encoder, torch.zeros(2, 3, 32, 32), config)
    assert encoder.training


def test_microbatches_give_the_gradient_of_the_whole_batch(config: Config) -> None:
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, drop_path_rate=0.0))
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    gradients = []
    for size in (2, 4, 6):
        pieces = dataclasses.replace(config, train=dataclasses.replace(config.train, microbatch_size=size))
        encoder = build_encoder(config.model)
        embeddings = encode(encoder, pixels, pieces)
        (embeddings @ embeddings.T).triu(1).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    for gradient in gradients[:-1]:
        torch.testing.assert_close(gradient, gradients[-1], rtol=1e-3, atol=1e-5)


def test_trap_bf16_ends_in_float32_embeddings_of_unit_length(config: Config) -> None:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="bf16"))
    embeddings = encode(build_encoder(config.model), torch.randn(4, 3, 32, 32), config)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("size", [1, 4, 6])
def test_embedding_twice_gives_the_same_gradient_with_dropped_paths(config: Config, size: int) -> None:
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    gradients, after = [], []
    for is_twice in (False, True):
        encoder = build_encoder(config.model)
        torch.manual_seed(5)
        gradients.append(gradients_of(encoder, pixels, config, MemoryPlan(size, is_encoded_twice=is_twice)))
        after.append(torch.get_rng_state())
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert torch.equal(*after)


def test_embedding_twice_drops_other_paths_for_other_seeds(config: Config) -> None:
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        found.append(gradients_of(build_encoder(config.model), pixels, config, MemoryPlan(2, is_encoded_twice=True)))
    assert not torch.allclose(*found)


def test_trap_embedding_twice_counts_a_batch_once_in_batch_norm(config: Config) -> None:
    model = ModelConfig(backbone="test_resnet", image_size=64, pooling="average", drop_path_rate=0.0)
    pixels = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    statistics = []
    for is_twice in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder(model, is_pretrained=False)
        gradients_of(encoder, pixels, config, MemoryPlan(3, is_encoded_twice=is_twice))
        statistics.append({name: buffer.clone() for name, buffer in encoder.named_buffers()})
    assert statistics[0]
    assert all(torch.equal(buffer, statistics[1][name]) for name, buffer in statistics[0].items())


def test_plan_without_a_limit_keeps_the_micro_batch(config: Config) -> None:
    assert plan_memory(build_encoder(config.model), config) == MemoryPlan(4)


def limited(config: Config, gib: float, **changes: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, memory_limit_gib=gib, **changes))


def test_plan_with_room_keeps_all_graphs_and_one_without_embeds_twice(config: Config) -> None:
    model = dataclasses.replace(config.model, weights=None, image_size=160)
    config = limited(dataclasses.replace(config, model=model), 100, batch_size=4096, microbatch_size=64)
    encoder = build_encoder(model, is_pretrained=False)
    roomy = plan_memory(encoder, config)
    assert (roomy.microbatch_size, roomy.is_encoded_twice) == (64, False)
    tight = plan_memory(encoder, limited(config, 0.9 * roomy.bytes_needed / GIB))
    assert tight.is_encoded_twice
    assert tight.microbatch_size == 64
    assert tight.bytes_needed < 0.9 * roomy.bytes_needed
    _, per_image = measure_graph_bytes(encoder, config)
    tighter = plan_memory(encoder, limited(config, (tight.bytes_needed - 50 * per_image) / GIB))
    assert 1 <= tighter.microbatch_size < 64
    assert "embedded twice" in tighter.describe()


def test_plan_refuses_too_small_a_limit_and_names_what_is_needed(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"needs about \d+\.\d GiB with micro-batches of one"):
        plan_memory(build_encoder(config.model), limited(config, 0.01))


def test_plan_counts_memories_that_are_not_filled_yet(config: Config) -> None:
    encoder = build_encoder(config.model)
    bare, filled = (plan_memory(encoder, limited(config, 100), num_bytes).bytes_needed for num_bytes in (0, GIB))
    assert filled - bare == pytest.approx(GIB, rel=0.1)


def test_plan_counts_half_precision_weights_for_every_graph_of_a_batch(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "_count_process_bytes", lambda: 0)
    encoder = build_encoder(config.model)
    needed = []
    for size in (8, 16):
        train = dataclasses.replace(config.train, precision="bf16", batch_size=64, microbatch_size=size)
        needed.append(plan_memory(encoder, limited(dataclasses.replace(config, train=train), 100)).bytes_needed)
    constant, per_image = measure_graph_bytes(encoder, dataclasses.replace(config, train=train))
    assert constant > 0
    fewer_graphs, larger_pieces = 4 * constant, SCRATCH_SHARE * 8 * per_image
    assert needed[0] - needed[1] == pytest.approx(fewer_graphs - larger_pieces, abs=2)


def test_measuring_the_graph_leaves_no_trace(config: Config) -> None:
    model = ModelConfig(backbone="test_resnet", image_size=64, pooling="average", drop_path_rate=0.0)
    config = dataclasses.replace(config, model=model)
    encoder = build_encoder(model, is_pretrained=False).eval()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    state = torch.get_rng_state()
    measure_graph_bytes(encoder, config)
    assert not encoder.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


GROWTH = """
import sys
import torch
from vitrieve.config import Config, ModelConfig, TrainConfig
from vitrieve.model.encoder import build_encoder
from vitrieve.training.compute import (
    MemoryPlan, _count_process_bytes, encode_batch, measure_graph_bytes, prepare_encoder
)
torch.set_num_threads(1)
graphs = []
for size in (16, 48):
    config = Config(
        model=ModelConfig(backbone="vit_tiny_patch16_224", image_size=112, drop_path_rate=0.0),
        train=TrainConfig(batch_size=size, microbatch_size=8, precision=sys.argv[1]),
    )
    encoder = build_encoder(config.model, is_pretrained=False)
    prepare_encoder(encoder, config)
    constant, per_image = measure_graph_bytes(encoder, config)
    pixels = torch.zeros(size, 3, 112, 112)
    before = _count_process_bytes()
    graphs.append(encode_batch(encoder, pixels, config, MemoryPlan(8)))
    print((_count_process_bytes() - before) / (constant * size / 8 + size * per_image))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read from Linux's /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_estimate_of_the_graph_is_what_the_process_grows_by(precision: str) -> None:
    """The graph of the first batch is held while that of the second, larger one is measured."""
    if precision == "bf16" and not has_bf16_instructions():
        pytest.skip("this processor does not multiply bf16")
    done = subprocess.run([sys.executable, "-c", GROWTH, precision], capture_output=True, text=True, check=True)
    small, large = map(float, done.stdout.split())
    assert 0.8 < small < 1.35
    assert 0.8 < large < 1.35


def test_a_limit_counts_the_images_of_tuples_not_the_batch_size(config: Config) -> None:
    """Tuples of an anchor, a positive and two negatives, three in a batch: twelve images, whatever the batch size."""
    tuples = dataclasses.replace(
        limited(config, 100),
        loader=dataclasses.replace(config.loader, sampling="tuples"),
        tuples=TupleConfig(num_negatives=2, tuples_per_batch=3),
    )
    sizes = [dataclasses.replace(tuples, train=dataclasses.replace(tuples.train, batch_size=n)) for n in (2, 12, 500)]
    assert [count_batch_images(one) for one in sizes] == [12, 12, 12]
    assert count_batch_images(sizes[0], num_classes=2) == 9
    plain = dataclasses.replace(sizes[1], loader=config.loader)
    encoder = build_encoder(config.model)
    per_image = measure_graph_bytes(encoder, config)[1]
    expected = plan_memory(encoder, plain)
    for one in sizes:
        plan = plan_memory(encoder, one)
        assert plan.microbatch_size == expected.microbatch_size
        assert abs(plan.bytes_needed - expected.bytes_needed) < 100 * per_image
