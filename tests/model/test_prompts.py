"""Prompt tuning: what is trained, what it computes, and what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.training.test_loop import (
    _one_thread,
    assert_same_bits,
    config,
    final_state,
    grow,
    measured_each_step,
    records,
    run_training,
    train_some_steps,
    train_until_ctrl_c,
)
from vitrieve import export
from vitrieve.config import Config, ModelConfig, PromptConfig
from vitrieve.data.records import ImageRecord
from vitrieve.errors import ConfigError
from vitrieve.model.encoder import (
    ImageEncoder,
    build_encoder,
    fingerprint_encoder,
    leave_out_untrained,
    read_encoder,
    save_encoder,
)
from vitrieve.model.prompts import PROMPTS, add_prompts, count_prompts
from vitrieve.runtime.encoder import load_encoder
from vitrieve.settings import override_config

__all__ = ["_one_thread", "config", "records"]  # fixtures

NUM_PROMPTS = 3


def with_prompts(config: Config, **changes: float) -> Config:
    return override_config(config, {"model.prompts.num_tokens": NUM_PROMPTS, **changes})


def build(config: Config) -> ImageEncoder:
    return build_encoder(config.model, seed=0).eval()


def draw_pixels() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def compute_slowly(backbone: VisionTransformer, plain: VisionTransformer, pixels: Tensor) -> Tensor:
    """Run the plain blocks on tokens to which the prompts are added, one picture after the other."""
    out = []
    for picture in pixels:
        tokens = plain._pos_embed(plain.patch_embed(picture[None]))
        tokens = plain.norm_pre(tokens)[0]
        for prompted, block in zip(backbone.blocks, plain.blocks, strict=True):
            rows = [*tokens[: plain.num_prefix_tokens], *prompted.prompts, *tokens[plain.num_prefix_tokens :]]
            after = list(block(torch.stack(rows)[None])[0])
            del after[plain.num_prefix_tokens : plain.num_prefix_tokens + len(prompted.prompts)]
            tokens = torch.stack(after)
        out.append(plain.norm(tokens))
    return torch.stack(out)


@pytest.mark.parametrize("num_registers", [0, 2])
def test_prompts_compute_what_a_slow_loop_does(num_registers: int) -> None:
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
    backbone, plain = (VisionTransformer(**options, reg_tokens=num_registers).eval() for _ in range(2))
    plain.load_state_dict(backbone.state_dict())
    add_prompts(backbone, NUM_PROMPTS)
    assert count_prompts(backbone.state_dict()) == NUM_PROMPTS
    with torch.no_grad():
        expected = compute_slowly(backbone, plain, draw_pixels())
        torch.testing.assert_close(backbone.forward_features(draw_pixels()), expected, atol=1e-5, rtol=0)
        assert (plain.forward_features(draw_pixels()) - expected).abs().max() > 0.01


def test_prompts_alone_are_trained(config: Config, records: list[ImageRecord]) -> None:
    before = dict(build(with_prompts(config)).named_parameters())
    state = train_some_steps(with_prompts(config), records, 3)
    trained = {name for name, parameter in state.encoder.named_parameters() if parameter.requires_grad}
    num_blocks = len(state.encoder.backbone.get_submodule("blocks"))  # type: ignore[arg-type]
    assert trained == {f"backbone.blocks.{number}.{PROMPTS}" for number in range(num_blocks)}
    for name, parameter in state.encoder.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trained)


def test_a_share_of_the_frozen_weights_is_none_of_the_random_prompts(
    config: Config, records: list[ImageRecord]
) -> None:
    state = train_some_steps(override_config(with_prompts(config), {"frozen_share": 0.25}), records, 2)
    name = f"backbone.blocks.0.{PROMPTS}"
    assert name not in state.frozen
    average = state.encoder if state.average is None else state.average.module
    assert torch.equal(state.build_result().get_parameter(name), average.get_parameter(name))


def test_a_share_of_prompts_that_came_with_the_weights_is_kept(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    encoder = build(with_prompts(config))
    save_encoder(encoder, tmp_path / "encoder")
    again = override_config(
        config, {"model.weights": str(tmp_path / "encoder"), "frozen_share": 0.25, "ema_decay": None}
    )
    state = train_some_steps(again, records, 2)
    name = f"backbone.blocks.0.{PROMPTS}"
    start, trained = encoder.get_parameter(name), state.encoder.get_parameter(name)
    assert not torch.equal(start, trained)
    torch.testing.assert_close(state.build_result().get_parameter(name), 0.25 * start + 0.75 * trained)


def test_an_encoder_with_prompts_is_saved_read_exported_and_gone_on_from(config: Config, tmp_path: Path) -> None:
    encoder = build(with_prompts(config))
    fingerprint = save_encoder(encoder, tmp_path / "encoder")
    restored = read_encoder(tmp_path / "encoder")
    assert_same_bits(encoder.state_dict(), restored.state_dict())
    assert fingerprint == fingerprint_encoder(restored) != fingerprint_encoder(build(config))
    export(tmp_path / "encoder")
    with torch.no_grad():
        expected = encoder(draw_pixels())
    engine = load_encoder(tmp_path / "encoder", precision="fp32")
    assert engine.engine != "torch"
    torch.testing.assert_close(
        torch.from_numpy(engine.encode_pixels(draw_pixels().numpy())), expected, atol=1e-5, rtol=0
    )
    again = override_config(config, {"model.weights": str(tmp_path / "encoder")})
    assert_same_bits(encoder.state_dict(), build(again).state_dict())
    assert build(with_prompts(again)).get_parameter(f"backbone.blocks.0.{PROMPTS}").requires_grad
    with pytest.raises(ConfigError, match="is 4, but the weights come with 3 prompts; use 3"):
        build(override_config(again, {"model.prompts.num_tokens": 4}))


def test_trap_resume_of_prompts_equals_an_uninterrupted_run_bit_for_bit(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    tuned = measured_each_step(with_prompts(config, **{"frozen_share": 0.3}))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    torch.manual_seed(0)  # from which prompts are drawn, as in a run of train
    expected = run_training(tuned, records, whole, grow(0.01))
    torch.manual_seed(0)
    train_until_ctrl_c(tuned, records, stopped, 3)
    resumed = run_training(tuned, records, stopped, grow(0.01 * 5))
    assert_same_bits(final_state(whole), final_state(stopped))
    assert_same_bits(expected.encoder.state_dict(), resumed.encoder.state_dict())


def test_prompts_where_nothing_is_better_keep_the_start_without_them(
    config: Config, records: list[ImageRecord], tmp_path: Path
) -> None:
    measured: list[nn.Module] = []
    values = grow(0.5, -0.01)
    result = run_training(
        measured_each_step(with_prompts(config)), records, tmp_path, lambda one: (measured.append(one), values(one))[1]
    )
    assert result.kept_step == 0
    assert_same_bits(result.encoder.state_dict(), build(config).state_dict())
    assert count_prompts(measured[0].state_dict()) == 0
    assert count_prompts(measured[1].state_dict()) == NUM_PROMPTS


def test_lora_and_prompts_are_trained_together(config: Config) -> None:
    encoder = build(override_config(with_prompts(config), {"model.lora.rank": 2}))
    trained = {name.rpartition(".")[2] for name, one in encoder.named_parameters() if one.requires_grad}
    assert trained == {"lora_a", "lora_b", PROMPTS}
    assert leave_out_untrained(with_prompts(config).model) == config.model


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_prompts_refuse_what_has_no_tokens(backbone: str) -> None:
    settings = ModelConfig(backbone=backbone, image_size=32, drop_path_rate=0.0, prompts=PromptConfig(num_tokens=2))
    with pytest.raises(ConfigError, match="adds tokens to the blocks of a plain vision transformer"):
        build_encoder(settings, is_pretrained=False)
